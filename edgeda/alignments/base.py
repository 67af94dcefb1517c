"""What every alignment is: a loss of both domains' outputs, with parameters of its own if it needs them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from edgeda.models import Output


class Alignment(nn.Module, ABC):
    """Built for features `(B, features)` and logits `(B, classes)`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.features, self.classes = features, classes

    @abstractmethod
    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """The scalar loss that the adapted network minimizes at `progress` of the stage."""
