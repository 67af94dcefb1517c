"""How long one call takes, and whether the machine was free to answer honestly."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    jitter_mad_ms: float
    """Median absolute deviation from the median: what a usual call differs by, whatever the outliers do."""
    pressure: float | None
    """Share of the wall time, 0 to 1, in which some task on this machine waited for a CPU; None: not told."""
    wall_s: float
    """From the first call's start to the last one's end; concurrent calls overlap in it."""

    @property
    def clean(self) -> bool | None:
        """Whether `pressure` stayed within `CLEAN_PRESSURE`; None where the system does not tell."""
        return None if self.pressure is None else self.pressure <= CLEAN_PRESSURE

    def images_per_s(self, batch: int) -> float:
        """Sustained throughput of calls with `batch` images each: calls over wall time, not from the median."""
        return batch * self.n / self.wall_s


def nearest_rank(ordered: Sequence[float], percent: int) -> float:
    """Of ascending values, the smallest that at least `percent` % (1 to 100) of them do not exceed."""
    return ordered[-(-percent * len(ordered) // 100) - 1]


def summarize(durations_ms: Sequence[float], pressure: float | None = None, wall_s: float | None = None) -> Latency:
    """The `Latency` of durations in ms, one after the other unless `wall_s` says else; InputError for none."""
    if not durations_ms:
        raise InputError("no durations to summarize")
    ordered = sorted(durations_ms)
    middle = statistics.median(ordered)
    return Latency(
        n=len(ordered),
        min_ms=ordered[0],
        mean_ms=statistics.fmean(ordered),
        median_ms=middle,
        p90_ms=nearest_rank(ordered, 90),
        p95_ms=nearest_rank(ordered, 95),
        p99_ms=nearest_rank(ordered, 99),
        jitter_mad_ms=statistics.median(abs(duration - middle) for duration in ordered),
        pressure=pressure,
        wall_s=math.fsum(ordered) / 1e3 if wall_s is None else wall_s,
    )


def cpu_stall_us(path: Path = PRESSURE_FILE) -> int | None:
    """Microseconds since boot in which some task waited for a CPU (Linux PSI); None where not kept."""
    total = _pressure(path, "total")
    return None if total is None else int(total)


def cpu_pressure(path: Path = PRESSURE_FILE) -> float | None:
    """Share of the last ten seconds, 0 to 1, in which some task waited for a CPU; None where not kept."""
    percent = _pressure(path, "avg10")
    return None if percent is None else percent / 100


def _pressure(path: Path, name: str) -> float | None:
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("some "):
                return float(dict(part.split("=") for part in line.split()[1:])[name])
    except (OSError, ValueError, KeyError):
        return None
    return None


def measure_latency(
    run: Callable[[], object],
    *more: Callable[[], object],
    warmup_ms: float = 200.0,
    budget_s: float = 1.0,
    min_runs: int = 20,
    max_runs: int = 100_000,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    stall_us: Callable[[], int | None] = cpu_stall_us,
    began: Callable[[], object] = lambda: None,
) -> Latency:
    """Time single calls of `run`, after a warm-up, each by itself; with `more`, of all at once, a stream each.

    Warms up for `warmup_ms` (at least one call), then calls until `budget_s` seconds have gone, but
    never fewer than `min_runs` times (a slow model goes over the budget) nor more than `max_runs` (in
    each stream). `began` is called as the measurement proper begins.
    Raises InputError when a budget makes no sense; whatever `run` raises passes through.
    """
    if not (budget_s > 0 and math.isfinite(budget_s)) or warmup_ms < 0 or not 1 <= min_runs <= max_runs:
        raise InputError(
            f"cannot measure with budget_s={budget_s}, warmup_ms={warmup_ms}, min_runs={min_runs}, "
            f"max_runs={max_runs}; give a positive budget and 1 <= min_runs <= max_runs"
        )
    streams = (run, *more)
    warm_until = clock_ns() + int(warmup_ms * 1e6)
    for stream in streams:
        stream()
    while clock_ns() < warm_until:
        for stream in streams:
            stream()

    def calls(stream: Callable[[], object]) -> list[float]:
        durations: list[float] = []
        finished = start
        while len(durations) < max_runs and (len(durations) < min_runs or finished < until):
            started = clock_ns()
            stream()
            finished = clock_ns()
            durations.append((finished - started) / 1e6)
        return durations

    began()
    stalled = stall_us()
    start = clock_ns()
    until = start + int(budget_s * 1e9)
    if more:
        with ThreadPoolExecutor(len(streams)) as pool:
            durations = [duration for part in pool.map(calls, streams) for duration in part]
    else:
        durations = calls(run)
    wall_ns = clock_ns() - start
    stalled_after = stall_us()
    pressure = None
    if stalled is not None and stalled_after is not None and wall_ns > 0:
        pressure = min(1.0, (stalled_after - stalled) * 1e3 / wall_ns)
    return summarize(durations, pressure, wall_ns / 1e9)
