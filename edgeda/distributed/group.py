"""What the processes of a run do together: gather rows, average gradients, agree. Alone, all of it is nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from edgeda.distributed.world import speaks_first
from edgeda.errors import WorkerLost

BUCKET = 2**23
"""Numbers that are averaged in one message, at least."""
Json = TypeVar("Json")


class Group:
    """One process of `size`, number `rank`.

    Every process holds an equal part of the batch, runs the networks on it, and then sees all rows of the outputs
    (`whole`): losses are computed on the whole batch by every process, with the same numbers. A gradient is the mean
    of those that the processes have (`average`), which is right for what came from whole rows, and for means over
    the own part alike.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self._device = device or torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this process writes files and decides for all."""
        return self.rank == 0

    def whole(self, rows: Tensor) -> Tensor:
        """Rows `(b, ...)` of every process as `(size * b, ...)`, in the order of processes; differentiable.

        The gradient that comes back is that of the own rows times `size`: gradients are averaged later, and the other
        processes contribute nothing to these rows.
        """
        if self.size == 1:
            return rows
        gathered: Tensor = _Whole.apply(rows, self.rank, self.size)
        return gathered

    def own(self, rows: Tensor) -> Tensor:
        """The part of whole rows `(size * b, ...)` that is this process's: `(b, ...)`."""
        count = len(rows) // self.size
        return rows[self.rank * count : (self.rank + 1) * count]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, the same bits in all of them; no gradients."""
        values = values.detach()
        if self.size == 1:
            return values
        summed = values.clone()
        dist.all_reduce(summed)
        return summed / self.size

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over processes, in few messages."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            flat /= self.size
            at = 0
            for tensor in bucket:
                tensor.copy_(flat[at : at + tensor.numel()].view(tensor.shape))
                at += tensor.numel()

    def follow(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the first process."""
        for tensor in tensors if self.size > 1 else ():
            values = tensor.detach().contiguous()
            dist.broadcast(values, 0)
            tensor.detach().copy_(values)

    def decide(self, value: Callable[[], Json]) -> Json:
        """What the first process computes, in all of them: a JSON value. WorkerLost for the others when it fails."""
        if self.size == 1:
            return value()
        with self.together():
            text = json.dumps(value()).encode() if self.leads else b""
        length = torch.tensor([len(text)], device=self._device)
        dist.broadcast(length, 0)
        sent = torch.tensor(list(text) or [0] * int(length), dtype=torch.uint8, device=self._device)
        dist.broadcast(sent, 0)
        decided: Json = json.loads(bytes(sent.tolist()))
        return decided

    @contextmanager
    def together(self) -> Iterator[None]:
        """A part of the work that all finish or none: when it fails in one process, the others raise WorkerLost."""
        if self.size == 1:
            yield
            return
        try:
            yield
        except Exception:
            speaks_first()
            self._all_well(False)
            raise
        if not self._all_well(True):
            raise WorkerLost("another process of this run failed")

    def leader_first(self, work: Callable[[], Json]) -> Json:
        """Work that all do, the first process before the others: they find in caches what it left there."""
        results: list[Json] = []
        for turn in (True, False) if self.size > 1 else (True,):
            with self.together():
                if self.leads == turn:
                    results.append(work())
        return results[0]

    def _all_well(self, well: bool) -> bool:
        flag = torch.tensor([int(well)], device=self._device)
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag.item())


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.size, ctx.count = rank, size, len(rows)
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(size)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        own = gradients[0][ctx.rank * ctx.count : (ctx.rank + 1) * ctx.count]
        return own * ctx.size, None, None


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type after each other, in lists of BUCKET numbers or a little more."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[Tensor] = []
        for tensor in (tensor for tensor in tensors if tensor.dtype == dtype):
            bucket.append(tensor)
            if sum(held.numel() for held in bucket) >= BUCKET:
                yield bucket
                bucket = []
        if bucket:
            yield bucket
