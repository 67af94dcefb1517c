"""Which precision a run computes in: measured once for a machine and network, then remembered."""

from __future__ import annotations

import json
import logging
import platform
import time
from pathlib import Path

import torch

from edgeda.errors import MachineError
from edgeda.fast_blocks import use_fast_network
from edgeda.models import Architecture, build_network
from edgeda.profiling.machine import cpu_flags
from edgeda.user_cache import cache_folder
from edgeda.whole_file import write_text

log = logging.getLogger(__name__)

FABRIC = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
WORTH_IT = 1.2
"""How many times faster bf16 must be to be chosen."""
PROBE_BATCH, PROBE_SIZE, PROBE_TURNS = 16, 64, 3
"""Images of a probing step up to `PROBE_SIZE` px, fewer above; and how often both precisions are timed."""
HOPELESS = 3.0
HALF = frozenset(("avx512f", "avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"))
"""Instruction sets that bf16 can be fast with; with none of them it is five times as slow as fp32, and not tried."""


def resolve_device(device: str) -> str:
    """`cpu` or `cuda`; MachineError when the GPU asked for is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise MachineError("no CUDA device here (torch.cuda.is_available() is false); use --set train.device=cpu")
    return device


def resolve_precision(precision: str, device: str, architecture: Architecture, size: int) -> str:
    """`fp32`, `bf16` or `fp16`; `auto` times a training step of the largest network in fp32 and bf16, if need be.

    The outcome is kept in the user's cache folder, so that two runs on one machine agree.
    """
    if precision == "fp16" and device == "cpu":
        raise MachineError("fp16 training needs a GPU; use --precision bf16 or fp32 on this machine")
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    key = f"{platform.machine()}|{_cpu()}|torch {torch.__version__}|{architecture.backbone}|{size}|2"
    remembered = _read_cache()
    flags = cpu_flags()
    if flags and not flags & HALF:
        return "fp32"
    if key not in remembered:
        log.info("precision: timing a step in fp32 and in bf16, once on this machine")
        fp32, bf16 = _step_seconds(architecture, size)
        remembered[key] = "bf16" if fp32 > WORTH_IT * bf16 else "fp32"
        log.info("precision: a step takes %.2f s in fp32, %.2f s in bf16: using %s", fp32, bf16, remembered[key])
        _write_cache(remembered)
    return remembered[key]


def _step_seconds(architecture: Architecture, size: int) -> tuple[float, float]:
    """Seconds of a training step in fp32 and in bf16: the fastest of some, taken in turn after a warm-up.

    Taking them in turn keeps a machine that is busy with something else from deciding; the fastest
    counts because only delays are random. Stops as soon as bf16 is far behind: without instructions
    for it a step can take ten times as long.
    """
    with torch.random.fork_rng(devices=[]):
        network = build_network(architecture)[0].to(memory_format=torch.channels_last).train()
        use_fast_network(network, half=True, pixels=0)  # they act in bf16 alone
        count = min(PROBE_BATCH, max(2, round(PROBE_BATCH * (PROBE_SIZE / size) ** 2)))
        images = torch.randn(count, 3, size, size).to(memory_format=torch.channels_last)
        _timed_step(network, images, False)
        fp32, bf16 = _timed_step(network, images, False), _timed_step(network, images, True)
        for _ in range(PROBE_TURNS):
            if bf16 > HOPELESS * fp32:
                break
            fp32 = min(fp32, _timed_step(network, images, False))
            bf16 = min(bf16, _timed_step(network, images, True))
    return fp32, bf16


def _timed_step(network: torch.nn.Module, images: torch.Tensor, half: bool) -> float:
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = network(images).logits.float().square().mean()
    loss.backward()
    return time.perf_counter() - start


def _cache_file() -> Path:
    return cache_folder() / "precision.json"


def _read_cache() -> dict[str, str]:
    try:
        read = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in read.items() if v in FABRIC} if isinstance(read, dict) else {}


def _write_cache(values: dict[str, str]) -> None:
    path = _cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(values, indent=1), shared=True)
    except OSError as error:
        log.info("the precision chosen could not be remembered: %s", error)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip() + f" x{torch.get_num_threads()}"
    except OSError:
        pass
    return f"x{torch.get_num_threads()}"
