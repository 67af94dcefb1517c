"""What every alignment is: a loss of both domains' outputs, with parameters of its own if it needs them."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from edgeda.errors import InputError
from edgeda.outputs import Output


class Alignment(nn.Module, ABC):
    """Built for features `(B, features)` and logits `(B, classes)`; InputError for others.

    The first line of a subclass' docstring is its line in `edgeda adapt --help`.
    """

    own_ramp: ClassVar[bool] = False
    """True: its schedule lies inside, in reversed gradients, and its own heads learn from the first step on.
    False: the method ramps the whole loss with gamma(p)."""

    least_classes: ClassVar[int] = 1
    """A source with fewer is refused by `build_alignments`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.features, self.classes = features, classes
        self.register_forward_pre_hook(_check_features)

    @classmethod
    def summary(cls) -> str:
        """What it is, in one line without a full stop."""
        return (inspect.getdoc(cls) or "").partition("\n")[0].removesuffix(".")

    @abstractmethod
    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """The scalar loss that the adapted network minimizes at `progress` of the stage."""


def _check_features(module: nn.Module, args: tuple[Any, ...]) -> None:
    assert isinstance(module, Alignment)
    for output in args[:2]:
        if output.features.ndim != 2 or output.features.shape[1] != module.features:
            raise InputError(
                f"{type(module).__name__} needs features of shape (images, {module.features}), "
                f"not {tuple(output.features.shape)}: pool them to vectors first"
            )
