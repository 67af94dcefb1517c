"""Knowledge distillation. In every loss here the teacher is detached, and the result is a mean over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeda.losses.float32 import without_autocast


@without_autocast
def distillation_kl(student_logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """tau**2 * KL(teacher || student) of softmax outputs at temperature tau, mean over the batch.

    L_distill of KD-UDA eqs. 3-4 with the tau**2 of Hinton et al. (2015), which keeps the size of the
    gradient independent of tau. The teacher is detached: it learns nothing from this loss. Both
    `(B, C)`; returns a scalar in nats.
    """
    student = F.log_softmax(student_logits.float() / tau, dim=1)
    teacher = F.log_softmax(teacher_logits.detach().float() / tau, dim=1)
    return tau**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


@without_autocast
def distillation_ce(student_logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """tau**2 * H(teacher, student) = -tau**2 * sum_c p_c log q_c at temperature tau, mean over the batch.

    This is `distillation_kl` plus tau**2 times the teacher's entropy, a constant: the gradient is the same.
    Both `(B, C)`; returns a scalar in nats.
    """
    teacher = F.softmax(teacher_logits.detach().float() / tau, dim=1)
    return tau**2 * F.cross_entropy(student_logits.float() / tau, teacher)


@without_autocast
def distillation_mse(student_logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """tau**2 * sum_c (p_c - q_c)**2 of softmax outputs at temperature tau, mean over the batch.

    A sum over classes, as the other losses, not a mean. Softened outputs and their derivatives both shrink with
    1 / tau, hence tau**2. Both `(B, C)`; returns a scalar in [0, 2 tau**2].
    """
    student = F.softmax(student_logits.float() / tau, dim=1)
    teacher = F.softmax(teacher_logits.detach().float() / tau, dim=1)
    return tau**2 * (student - teacher).square().sum(dim=1).mean()


@without_autocast
def decoupled_distillation(
    student_logits: Tensor, teacher_logits: Tensor, target_classes: Tensor, tau: float, alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:  # fmt: skip
    """tau**2 * (alpha * TCKD + beta * NCKD), mean over the batch (DKD, Zhao et al., CVPR 2022).

    TCKD is KL(teacher || student) of the pair (p_k, 1 - p_k), with k the target class; NCKD is KL(teacher || student)
    of the outputs over the other classes alone. KL(teacher || student) is TCKD + (1 - p_k of the teacher) * NCKD.
    Logits `(B, C)` with C >= 2, target classes int64 `(B,)`; returns a scalar in nats.
    """
    student, teacher = student_logits.float() / tau, teacher_logits.detach().float() / tau
    chosen = F.one_hot(target_classes, student.shape[1]).bool()
    student_others, teacher_others = (logits[~chosen].view(len(logits), -1) for logits in (student, teacher))
    target = _kl(_binary(student, student_others, chosen), _binary(teacher, teacher_others, chosen))
    others = _kl(F.log_softmax(student_others, dim=1), F.log_softmax(teacher_others, dim=1))
    return tau**2 * (alpha * target + beta * others)


def _binary(logits: Tensor, others: Tensor, chosen: Tensor) -> Tensor:
    """(log p_k, log(1 - p_k)) `(B, 2)`, both from logits, so that neither is the log of a rounded 0."""
    pair = torch.stack([logits[chosen], torch.logsumexp(others, dim=1)], dim=1)
    return F.log_softmax(pair, dim=1)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


@without_autocast
def similarity_distillation(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """||G_student - G_teacher||_F^2 / B^2 (similarity-preserving KD, Tung and Mori, ICCV 2019).

    G is the Gram matrix of a batch's features, rows scaled to length 1: which images look alike. Widths may differ,
    so no adapter is needed; there is no temperature. `(B, D)` and `(B, E)`; returns a scalar in [0, 4 / B].
    """
    difference = _similarities(student_features.float()) - _similarities(teacher_features.detach().float())
    return difference.square().mean()


def _similarities(features: Tensor) -> Tensor:
    return F.normalize(features @ features.T, dim=1)
