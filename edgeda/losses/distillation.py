"""Knowledge distillation on softened outputs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation_kl(student_logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """tau**2 * KL(teacher || student) of softmax outputs at temperature tau, mean over the batch.

    L_distill of KD-UDA eqs. 3-4 with the tau**2 of Hinton et al. (2015), which keeps the size of the
    gradient independent of tau. The teacher is detached: it learns nothing from this loss. Both
    `(B, C)`; returns a scalar in nats.
    """
    student = F.log_softmax(student_logits.float() / tau, dim=1)
    teacher = F.log_softmax(teacher_logits.detach().float() / tau, dim=1)
    return tau**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
