"""BatchNorm with the statistics of the whole batch, wherever its images are computed.

torch's SyncBatchNorm knows GPUs only, where it is what runs here too; on a CPU the same is done with gloo.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from edgeda.errors import InputError

_alone: list[bool] = []


@contextmanager
def alone() -> Iterator[None]:
    """While it lasts, statistics are those of the process's own images: for what every process does by itself."""
    _alone.append(True)
    try:
        yield
    finally:
        _alone.pop()


def batchnorm_layers(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Every BatchNorm layer of a network."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def synchronize(network: nn.Module) -> None:
    """Exchange the BatchNorm layers of `network` in place; parameters, their names and what is saved stay the same.

    InputError for a kind of BatchNorm that is not known here.
    """
    for layer in batchnorm_layers(network):
        if type(layer) not in _SYNCHRONIZED:
            raise InputError(
                f"this network's {type(layer).__name__} cannot be synchronized between devices; use --devices 1, or "
                "another backbone (ResNets can)"
            )
        layer.process_group = None  # type: ignore[assignment] # all processes
        layer.__class__ = _SYNCHRONIZED[type(layer)]  # type: ignore[assignment]


class _Synchronized(nn.SyncBatchNorm):
    """In train mode, mean and variance over the images of all processes; the running ones follow those."""

    plain: type[nn.Module]
    """The layer it was."""

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C, ...)` to the same shape."""
        if not self.training or _alone:
            output: Tensor = self.plain.forward(self, input)
            return output
        output = super().forward(input) if input.is_cuda else self._on_cpu(input)
        if isinstance(self, BatchNormAct2d):
            output = self.act(self.drop(output))
        return output

    def _on_cpu(self, input: Tensor) -> Tensor:
        normalized, mean, variance, count = _Normalize.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (count / (count - 1).clamp_min(1)), share)
        output: Tensor = normalized
        return output


class _Normalize(torch.autograd.Function):
    """weight * (x - mean) / sqrt(variance + eps) + bias, over all processes' images; and mean, variance, count."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        places = [dim for dim in range(input.dim()) if dim != 1]
        variance, mean = torch.var_mean(_full(input), places, correction=0)
        own = torch.cat([mean, variance, mean.new_tensor([input.numel() / input.shape[1]])])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        stacked = torch.stack(parts)
        means, variances, counts = stacked[:, : len(mean)], stacked[:, len(mean) : -1], stacked[:, -1:]
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count  # no small difference of squares
        ctx.save_for_backward(input, weight, mean, variance)
        ctx.eps, ctx.count = eps, float(count)
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(input, mean, variance, weight, bias, eps=eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        input, weight, mean, variance = ctx.saved_tensors
        scale = torch.rsqrt(variance + ctx.eps)
        # as if mean and variance were constants: also the sums of g and of g * normalized x, over the own images
        passed, by_normalized, summed = torch.ops.aten.native_batch_norm_backward(
            gradients[0], input, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        if ctx.needs_input_grad[0]:
            sums = torch.cat([by_normalized, summed])
            dist.all_reduce(sums)
            slope, offset = sums.view(2, -1) / ctx.count
            if weight is not None:
                slope, offset = slope * weight, offset * weight
            slope = slope * scale * scale
            shape = [-1 if dim == 1 else 1 for dim in range(input.dim())]
            through = torch.addcmul((offset * scale - slope * mean).view(shape), _full(input), slope.view(shape))
            passed = (passed - through).to(input.dtype)
        return passed, (by_normalized if weight is not None else None), (summed if weight is not None else None), None


def _full(values: Tensor) -> Tensor:
    """In float32, if they have fewer bits."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


_SYNCHRONIZED: dict[type[nn.Module], type[nn.Module]] = {
    plain: type(f"Synchronized{plain.__name__}", (_Synchronized, plain), {"plain": plain})
    for plain in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
}
