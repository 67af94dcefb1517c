"""How much arithmetic a network takes per image, and how many parameters it has.

GMACs are 10^9 multiply-accumulates of one image; GFLOPs are twice that (a multiply and an add). The
papers' "GFLOPS" are GMACs.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeda.errors import InputError, one_line, require

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Complexity:
    """Cost of one image: `gmacs`, `gflops` = 2 x `gmacs`, and `params_m`, millions of parameters."""

    gmacs: float
    gflops: float
    params_m: float


def complexity(macs: float, parameters: int) -> Complexity:
    """From counts of one image."""
    return Complexity(gmacs=macs / 1e9, gflops=2 * macs / 1e9, params_m=parameters / 1e6)


def torch_complexity(network: nn.Module, input_size: int) -> Complexity:
    """Complexity of a network taking images `(B, 3, input_size, input_size)`, counted by fvcore.

    fvcore adds batch normalization (unfused) and average pooling to convolutions, linear layers and
    matrix products: 1.819 GMACs for a ResNet-18 of 1000 classes at 224 px, of which 1.814 are
    convolutions. Fused attention is added here. Every parameter counts, buffers do not.
    Raises InputError when the network does not take such images.
    """
    with counting(network, input_size) as analysis:
        macs = float(analysis.total())
    return complexity(macs, sum(parameter.numel() for parameter in network.parameters()))


@contextlib.contextmanager
def counting(network: nn.Module, input_size: int) -> Iterator[Any]:
    """fvcore's analysis of one image, in eval mode without gradients; InputError as `torch_complexity`."""
    torch = require("torch", "train", "counting a network's arithmetic")
    modes = [(module, module.training) for module in network.modules()]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # fvcore scripts functions as it is imported, and traces the network
        fvcore = require("fvcore.nn", "train", "counting a network's arithmetic")
        example = next(network.parameters())
        images = torch.zeros(1, 3, input_size, input_size, dtype=example.dtype, device=example.device)
        try:
            analysis = fvcore.FlopCountAnalysis(network.eval(), images)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
            analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
            yield analysis
        except (RuntimeError, AssertionError, ValueError) as error:
            size = f"{input_size} x {input_size}"
            raise InputError(f"the network does not take images of {size}: {one_line(error)}") from error
        finally:
            for module, training in modes:
                module.training = training


def _attention_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Queries `(..., N, D)` times keys `(..., M, D)`, and the weights times values of the same size."""
    queries: list[int] = inputs[0].type().sizes()
    keys: list[int] = inputs[1].type().sizes()
    return 2 * math.prod(queries) * keys[-2]
