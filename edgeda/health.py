"""Numbers that are not finite: which term, which network, which batch, and what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeda.errors import Diverged, some

if TYPE_CHECKING:
    from edgeda.data.batches import Batch
    from edgeda.methods.base import Method
    from edgeda.methods.learner import Learner

HINT = "start again with --overwrite and a lower teacher.lr or student.lr (--set), or --precision fp32"
LEAST_SCALE = 2.0**-20
"""Of fp16's loss scaling, which begins at 2**16: when halving it 36 times has not helped, no scale will."""
SHOWN = 3
"""Files of a batch that are named."""


def describe_terms(terms: Mapping[str, Tensor] | None) -> str:
    """The terms of a loss that are not finite, such as ` (mmd is nan)`; what can be said where all are."""
    values = {name: float(value.detach()) for name, value in (terms or {}).items()}
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        return f" ({', '.join(bad)})"
    return f" (its terms are, before weighting: {', '.join(values)})" if values else ""


def infinite_gradients(learners: Mapping[str, Learner]) -> list[str]:
    """Names of the learners with a gradient that is not finite."""
    return [
        name for name, learner in learners.items()
        if not _finite(parameter.grad for parameter in learner.parameters if parameter.grad is not None)
    ]  # fmt: skip


def finite_step(method: Method, batch: Batch, progress: float) -> Mapping[str, Tensor]:
    """A method's step; a Diverged also names the learners whose gradients are not finite."""
    try:
        return method.step(batch, progress)
    except Diverged as error:
        bad = infinite_gradients(method.learners)
        raise Diverged(f"{error}{': that of ' + ', '.join(bad) if bad else ''}") from error


def check_weights(networks: Mapping[str, nn.Module]) -> None:
    """Diverged when a network has weights or statistics that are not finite: they must not become the last state."""
    for role, network in networks.items():
        if not _finite(value for value in network.state_dict().values() if value.is_floating_point()):
            raise Diverged(f"the weights of the {role} are not finite")


def _finite(tensors: Iterator[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


@contextmanager
def explained(where: str, names: Callable[[], Sequence[Sequence[str]]], kept: Callable[[], str]) -> Iterator[None]:
    """Give a Diverged of the block its place, its images (of source and target) and what can be done."""
    try:
        yield
    except Diverged as error:
        source, target = (some(part, SHOWN, None) for part in names())
        raise Diverged(f"{error} in {where} (source {source}; target {target}); {kept()}; {HINT}") from error
