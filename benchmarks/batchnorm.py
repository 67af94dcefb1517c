"""BatchNorm and what is behind it in a whole network: torch's operations, and edgeda's compiled kernels, in turn.

    python benchmarks/batchnorm.py [--network r50 --batch-size 32 --size 224 --precision bf16 --threads 0]

Every BatchNorm of the network, forward and backward, with the ReLU and the addition or pooling that follow it, of
random numbers in channels-last format; convolutions are left out. What is compared with is what trains without the
kernels: in bf16, ReLU on the bits as integers. Prints milliseconds (medians) by shape and for the whole network. Needs
the extra `fast`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

TURNS, SETTLING = 12, 4


def shapes(network: str, batch: int, size: int) -> Counter[tuple[tuple[int, ...], str]]:
    """How often each `(B, C, H, W)` is normalized, and what is behind it."""
    import torch

    from edgeda.models import Architecture, build_network

    found: Counter[tuple[tuple[int, ...], str]] = Counter()
    model = build_network(Architecture(network, 31))[0].eval()
    last = {"BasicBlock": "bn2", "Bottleneck": "bn3"}
    ends = {f"{name}.{last[type(block).__name__]}" for name, block in model.named_modules()
            if type(block).__name__ in last}  # fmt: skip
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            behind = "-" if "downsample" in name else "ReLU, sum" if name in ends else "ReLU"
            behind = "ReLU, pooling" if name == "backbone.bn1" else behind

            def note(module: Any, inputs: Any, out: Any, behind: str = behind) -> None:
                found[((batch, *out.shape[1:]), behind)] += 1

            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return found


def milliseconds(shape: tuple[int, ...], behind: str, precision: str) -> dict[str, float]:
    """A forward and a backward of each kind."""
    import torch

    from edgeda.fast_layers import rectify
    from edgeda.kernels.batchnorm import CompiledBatchNorm2d, normalize
    from edgeda.kernels.stem import normalize_and_pool

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    images, shortcut = (torch.randn(shape).to(kind).contiguous(memory_format=torch.channels_last) for _ in range(2))
    images.requires_grad_()
    shortcut.requires_grad_()
    plain, compiled = torch.nn.BatchNorm2d(shape[1]), CompiledBatchNorm2d(shape[1])
    pool = torch.nn.MaxPool2d(3, 2, 1)

    def torchs() -> torch.Tensor:
        out = plain(images)
        out = out.add_(shortcut) if "sum" in behind else pool(out) if "pooling" in behind else out
        return rectify(out, inplace=True) if "ReLU" in behind else out

    def ours() -> torch.Tensor:
        if "pooling" in behind:
            return normalize_and_pool(compiled, images)
        return normalize(compiled, images, "ReLU" in behind, shortcut if "sum" in behind else None)

    inputs = [images, *([shortcut] if "sum" in behind else [])]
    gradient = torch.randn(torchs().shape).to(kind).contiguous(memory_format=torch.channels_last)
    ways: dict[str, tuple[Callable[[], torch.Tensor], torch.nn.Module]]
    ways = {"torch": (torchs, plain), "kernels": (ours, compiled)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, (forward, layer) in ways.items():
            started = time.perf_counter()
            torch.autograd.grad(forward(), [*inputs, *layer.parameters()], gradient)
            seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(times[SETTLING:]) for name, times in seconds.items()}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="r50")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    from edgeda.memory import keep_freed_memory

    keep_freed_memory()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    totals = {"torch": 0.0, "kernels": 0.0}
    print(f"{options.network}, {options.batch_size} images of {options.size} px, {options.precision}, "
          f"{torch.get_num_threads()} threads\n")  # fmt: skip
    print("| values | behind it | layers | torch, ms | kernels, ms | times |\n|---|---|---:|---:|---:|---:|")
    for (shape, behind), count in shapes(options.network, options.batch_size, options.size).items():
        found = milliseconds(shape, behind, options.precision)
        ratio = found["torch"] / found["kernels"]
        size = " x ".join(map(str, shape))
        print(
            f"| {size} | {behind} | {count} | {found['torch']:.1f} | {found['kernels']:.1f} | {ratio:.2f} |", flush=True
        )
        for name in totals:
            totals[name] += count * found[name]
    print(f"| all | | | {totals['torch']:.0f} | {totals['kernels']:.0f} | {totals['torch'] / totals['kernels']:.2f} |")


if __name__ == "__main__":
    main()
