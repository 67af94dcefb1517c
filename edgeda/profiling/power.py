"""Power and energy: a Jetson's INA3221 sensors, read during the measurement; tegrastats where they cannot be read."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeda.errors import MachineError
from edgeda.profiling.jetson import read_number, read_text

INTERVAL_S = 0.05
"""Between two readings of the sensors: they average over some milliseconds themselves."""
TOTALS = ("VDD_IN", "VIN", "POM_5V_IN")
"""Rails that carry the whole module's power, where there is one; otherwise all rails are added."""
_NO_RAILS = ("NC", "sum of shunt voltages")

Watts = Mapping[str, float]
"""Power by rail, in watts."""
Sample = tuple[float, Watts]
"""Seconds of a monotonic clock, and the power then."""


@dataclass(frozen=True)
class Rail:
    """One channel of an INA3221: its name, and the files with its millivolts and milliamperes."""

    name: str
    millivolts: Path
    milliamperes: Path

    def watts(self) -> float | None:
        """Power now; None when the sensor does not answer."""
        voltage, current = read_number(self.millivolts), read_number(self.milliamperes)
        return None if voltage is None or current is None else voltage * current / 1e6


def find_rails(root: Path) -> list[Rail]:
    """The power rails of the INA3221 sensors under `root`/sys/class/hwmon that can be read."""
    rails = []
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if read_text(chip / "name") != "ina3221":
            continue
        for label in sorted(chip.glob("in*_label")):
            number = label.name[2 : -len("_label")]
            rail = Rail(read_text(label), chip / f"in{number}_input", chip / f"curr{number}_input")
            if rail.name and rail.name not in _NO_RAILS and rail.watts() is not None:
                rails.append(rail)
    return rails


def total_watts(watts: Watts) -> float:
    """Power of the whole module from its rails."""
    return next((watts[name] for name in TOTALS if name in watts), sum(watts.values()))


def summarize_power(samples: Sequence[Sample], images: int, wall_s: float, source: str) -> dict[str, Any]:
    """Mean and peak power in W, by rail too, and energy in J, of a measurement of `wall_s` seconds.

    Energy is mean power times time, and `energy_mj_per_image` that over `images`. The mean is
    weighted by time (trapezoids), so that a late reading does not count too much. With no reading,
    everything is None.
    """
    totals = [(at, total_watts(watts)) for at, watts in samples]
    mean = _mean(totals)
    energy = None if mean is None else mean * wall_s
    names = list(dict.fromkeys(name for _, watts in samples for name in watts))
    return {
        "source": source,
        "samples": len(samples),
        "mean_w": mean,
        "max_w": max((value for _, value in totals), default=None),
        "rails_w": {name: _mean([(at, watts[name]) for at, watts in samples if name in watts]) for name in names},
        "energy_j": energy,
        "energy_mj_per_image": None if energy is None else 1e3 * energy / images,
    }


def _mean(values: Sequence[tuple[float, float]]) -> float | None:
    if not values:
        return None
    pairs = itertools.pairwise(values)
    span = values[-1][0] - values[0][0]
    if span <= 0:
        return sum(value for _, value in values) / len(values)
    return sum((later - at) * (before + after) / 2 for (at, before), (later, after) in pairs) / span


def parse_tegrastats(line: str) -> dict[str, float]:
    """Power by rail in W from a line of tegrastats: `VDD_IN 4056mW/4012mW`, or without units, now and on average."""
    found = re.findall(r"\b((?:V|POM_)[A-Z0-9_]+) (\d+)(?:mW)?/\d+(?:mW)?", line)
    return {name: int(milliwatts) / 1e3 for name, milliwatts in found}


class PowerMeter:
    """Reads power in a thread of its own for as long as it is open: `with PowerMeter(root) as meter: ...`.

    Raises MachineError where there are neither INA3221 sensors nor tegrastats. What ended the thread before its time
    is raised where power is asked for.
    """

    def __init__(self, root: Path, interval_s: float = INTERVAL_S) -> None:
        rails = find_rails(root)
        tegrastats = shutil.which("tegrastats")
        self._samples: list[Sample] = []
        self._ended = threading.Event()
        self._interval_s = interval_s
        self._process: subprocess.Popen[str] | None = None
        self._failure: BaseException | None = None
        self._follow: Callable[[], None]
        if rails:
            self.source, self._follow = "INA3221", lambda: self._read_rails(rails)
        elif tegrastats:
            self.source, self._follow = "tegrastats", lambda: self._read_tegrastats(tegrastats)
        else:
            raise MachineError(
                "no power sensor here: neither INA3221 files under /sys/class/hwmon (a Jetson has them) nor "
                "tegrastats; leave --power out"
            )
        self._thread = threading.Thread(target=self._followed, name="power", daemon=True)

    def __enter__(self) -> PowerMeter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join(timeout=5)

    def restart(self) -> None:
        """Forget what was read so far: what counts begins now."""
        self._samples.clear()

    def summary(self, images: int, wall_s: float) -> dict[str, Any]:
        """`summarize_power` of what was read since the last restart."""
        if self._failure is not None:
            raise self._failure
        return summarize_power(list(self._samples), images, wall_s, self.source)

    def _followed(self) -> None:
        try:
            self._follow()
        except BaseException as error:  # noqa: BLE001 - raised where power is asked for
            self._failure = error

    def _read_rails(self, rails: Sequence[Rail]) -> None:
        while True:
            read = {rail.name: rail.watts() for rail in rails}
            watts = {name: value for name, value in read.items() if value is not None}
            if watts:
                self._samples.append((time.monotonic(), watts))
            if self._ended.wait(self._interval_s):
                return

    def _read_tegrastats(self, command: str) -> None:
        for line in self._lines([command, "--interval", str(round(1e3 * self._interval_s))]):
            watts = parse_tegrastats(line)
            if watts:
                self._samples.append((time.monotonic(), watts))
            if self._ended.is_set():
                return

    def _lines(self, command: Sequence[str]) -> Iterator[str]:
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if self._process is not None and self._process.stdout is not None:
            with self._process:
                yield from self._process.stdout
