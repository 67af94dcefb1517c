"""What networks return, apart from them: losses' users need not import every backbone."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """What a network says of a batch: `features` `(B, D)` before the head, `logits` `(B, C)`."""

    features: Tensor
    logits: Tensor
