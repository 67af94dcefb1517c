"""Memory of this process: kept once it was paid for, and how much of it was in use at most."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""glibc's malloc.h."""
TOP_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Make the C library keep what is freed for the next allocation, and use large pages; whether it could be asked.

    By default every large tensor is mapped and unmapped anew, and the system clears each of its pages: hundreds of
    thousands of page faults in a training step on a CPU. torch looks for large pages when it makes its first
    tensor: call this before that, be it after `import torch`.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(option, value) for option, value in
               ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD)))  # fmt: skip


def peak_memory_mb() -> float:
    """The most memory this process ever had resident, in MB (10^6 bytes)."""
    found = _status_mb("VmHWM")
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch has an error of its own on a GPU; on a CPU it is a RuntimeError like any."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def resident_memory_mb() -> float | None:
    """The memory this process has resident now, in MB (10^6 bytes); None where the system does not say."""
    return _status_mb("VmRSS")


def _status_mb(field: str) -> float | None:
    """A field of Linux's own account. `getrusage` also counts what the process was before it ran this program."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((round(int(line.split()[1]) * 1024 / 1e6, 1) for line in lines if line.startswith(field + ":")), None)
