"""Losses are computed in float32, whatever autocast is on around them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import ParamSpec

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")


def without_autocast(loss: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """The same loss with autocast off inside.

    `.float()` alone is not enough: under autocast a matrix product of float32 tensors is computed in bf16.
    """

    @functools.wraps(loss)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        device = _device([*args, *kwargs.values()])
        if device is None or not torch.is_autocast_enabled(device):
            return loss(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return loss(*args, **kwargs)

    return wrapped


def _device(values: Iterable[object]) -> str | None:
    """The device type of the first tensor among `values` and the sequences in them."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device.type
        if isinstance(value, (list, tuple)) and (found := _device(value)):
            return found
    return None
