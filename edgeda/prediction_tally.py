"""Counting and timing a run of `predict` in fixed memory, and the line that shows it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeda.runtime import Result, Source


class Tally:
    """Counts and times of any number of frames in fixed memory."""

    _EDGES_MS = np.geomspace(0.01, 1e6, 1851)
    """Bins of 1 %."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.frames = self.unreadable = 0
        self.labels: Counter[str] = Counter()
        self.per_source: Counter[str] = Counter({source.name: 0 for source in sources})
        self._bins = np.zeros(len(self._EDGES_MS) + 1, np.int64)
        self._began: float | None = None
        self._last = 0.0

    def add(self, result: Result) -> None:
        """Count one result."""
        self._last = time.monotonic()
        if self._began is None:
            self._began = result.frame.arrived
        if result.prediction is None:
            self.unreadable += 1
            return
        self.frames += 1
        self.labels[result.prediction.label] += 1
        self.per_source[result.frame.source.name] += 1
        self._bins[np.searchsorted(self._EDGES_MS, result.latency_ms)] += 1

    @property
    def rate(self) -> float | None:
        """Frames per second since the first arrived."""
        seconds = self._last - self._began if self._began is not None else 0.0
        return self.frames / seconds if seconds > 0 else None

    def latency_ms(self, percent: float) -> float | None:
        """A percentile of the latencies, to 1 %; None before the first frame."""
        if self.frames == 0:
            return None
        at = int(np.searchsorted(np.cumsum(self._bins), percent / 100 * self.frames))
        return float(f"{self._EDGES_MS[min(at, len(self._EDGES_MS) - 1)]:.4g}")

    def to_dict(self) -> dict[str, Any]:
        """The part of the summary that is known from the results."""
        return {
            "frames": self.frames,
            "unreadable": self.unreadable,
            "labels": dict(self.labels.most_common()),
            "frames_per_s": None if self.rate is None else round(self.rate, 2),
            "latency_ms": {"p50": self.latency_ms(50), "p99": self.latency_ms(99)},
        }


class RateLine:
    """One line on stderr: rewritten every second on a terminal, a new one every minute elsewhere."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._period = 1.0 if self._terminal else 60.0
        self._due = time.monotonic() + self._period

    def show(self) -> None:
        """Print when it is time."""
        now = time.monotonic()
        if sys.stderr is None or now < self._due:
            return
        self._due = now + self._period
        tally = self._tally
        text = f"{tally.frames} frames, {tally.rate or 0:.1f}/s, latency p50 {tally.latency_ms(50)} ms"
        sys.stderr.write(f"\r{text}\x1b[K" if self._terminal else f"{text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the cursor on an empty line."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
