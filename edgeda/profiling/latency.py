"""How long one call takes, and whether the machine was free to answer honestly."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeda.errors import InputError

CLEAN_PRESSURE = 0.05
"""A measurement is clean while at most this share of its wall time saw some task wait for a CPU."""

PRESSURE_FILE = Path("/proc/pressure/cpu")


@dataclass(frozen=True)
class Latency:
    """Wall time of single calls, in milliseconds.

    The median is the usual one; p90, p95 and p99 are by nearest rank, so each is a call that was
    really seen, and with fewer than 100 calls p99 is the slowest.
    """

    n: int
    min_ms: float
    mean_ms: float
    median_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    pressure: float | None
    """Share of the wall time, 0 to 1, in which some task on this machine waited for a CPU; None: not told."""

    @property
    def clean(self) -> bool | None:
        """Whether `pressure` stayed within `CLEAN_PRESSURE`; None where the system does not tell."""
        return None if self.pressure is None else self.pressure <= CLEAN_PRESSURE

    def images_per_s(self, batch: int) -> float:
        """Sustained throughput of calls with `batch` images each: from the mean, not the median."""
        return batch * 1e3 / self.mean_ms


def nearest_rank(ordered: Sequence[float], percent: int) -> float:
    """Of ascending values, the smallest that at least `percent` % (1 to 100) of them do not exceed."""
    return ordered[-(-percent * len(ordered) // 100) - 1]


def summarize(durations_ms: Sequence[float], pressure: float | None = None) -> Latency:
    """The `Latency` of durations in ms; InputError when there are none."""
    if not durations_ms:
        raise InputError("no durations to summarize")
    ordered = sorted(durations_ms)
    return Latency(
        n=len(ordered),
        min_ms=ordered[0],
        mean_ms=statistics.fmean(ordered),
        median_ms=statistics.median(ordered),
        p90_ms=nearest_rank(ordered, 90),
        p95_ms=nearest_rank(ordered, 95),
        p99_ms=nearest_rank(ordered, 99),
        pressure=pressure,
    )


def cpu_stall_us(path: Path = PRESSURE_FILE) -> int | None:
    """Microseconds since boot in which some task waited for a CPU (Linux PSI); None where not kept."""
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("some "):
                return int(line.rpartition("total=")[2])
    except (OSError, ValueError):
        return None
    return None


def measure_latency(
    run: Callable[[], object],
    *,
    warmup_ms: float = 200.0,
    budget_s: float = 1.0,
    min_runs: int = 20,
    max_runs: int = 100_000,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    stall_us: Callable[[], int | None] = cpu_stall_us,
) -> Latency:
    """Time single calls of `run`, after a warm-up, each by itself.

    Warms up for `warmup_ms` (at least one call), then calls until `budget_s` seconds have gone, but
    never fewer than `min_runs` times (a slow model goes over the budget) nor more than `max_runs`.
    Raises InputError when a budget makes no sense; whatever `run` raises passes through.
    """
    if not (budget_s > 0 and math.isfinite(budget_s)) or warmup_ms < 0 or not 1 <= min_runs <= max_runs:
        raise InputError(
            f"cannot measure with budget_s={budget_s}, warmup_ms={warmup_ms}, min_runs={min_runs}, "
            f"max_runs={max_runs}; give a positive budget and 1 <= min_runs <= max_runs"
        )
    warm_until = clock_ns() + int(warmup_ms * 1e6)
    run()
    while clock_ns() < warm_until:
        run()

    durations: list[float] = []
    stalled = stall_us()
    began = clock_ns()
    until = began + int(budget_s * 1e9)
    finished = began
    while len(durations) < max_runs and (len(durations) < min_runs or finished < until):
        started = clock_ns()
        run()
        finished = clock_ns()
        durations.append((finished - started) / 1e6)
    stalled_after = stall_us()
    pressure = None
    if stalled is not None and stalled_after is not None and finished > began:
        pressure = min(1.0, (stalled_after - stalled) * 1e3 / (finished - began))
    return summarize(durations, pressure)
