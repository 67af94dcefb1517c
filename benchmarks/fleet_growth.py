"""How wall time, object-store memory and storage of a fleet grow from 10 to 100,000 cameras, simulated from costs.

    python benchmarks/fleet.py --costs-to costs.json
    python benchmarks/fleet_growth.py costs.json [--state-ms 20] [--each-s 1800] [--shared-s 3600]

Costs are those of the measured fleet; the options put others in their place, such as an object store's latency or the
time of a real camera. One core a camera, equal cameras, no failures. It follows the scheduler: one camera trains what
all share, then every core takes the next camera, and the driver hands out and notes one after another.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

AT_ONCE = 32
"""State objects that the driver reads at once (edgeda.fleet.state.AT_ONCE)."""
QUEUED = 2
"""Jobs that Ray holds for each core (edgeda.fleet.scheduler.QUEUED)."""


@dataclass(frozen=True)
class Costs:
    """What a fleet's parts take."""

    start_s: float
    """Ray's start, imports of the first workers, the report."""
    shared_s: float
    """Training what no target decides, once."""
    each_s: float
    """A camera after that: adaptation, export."""
    driver_ms: float
    """The driver's own time for a camera, its state written to a local disk."""
    state_ms: float
    """One read or write of a state object."""
    camera_mb: float
    """A camera's run and export on the shared disk."""
    shared_mb: float
    state_kb: float
    message_kb: float
    """A camera's work on its way to a worker, in the object store or beside it."""

    def starting_in(self, seconds: float) -> Costs:
        """The same with another start."""
        return replace(self, start_s=seconds)


def wall_s(costs: Costs, cameras: int, cores: int) -> float:
    """Seconds from the command to the report, by events: cores are free at times, the driver is one server."""
    reading = math.ceil(cameras / AT_ONCE) * costs.state_ms / 1000
    began = costs.start_s + reading
    release = began + costs.shared_s
    first = release + costs.each_s
    free = [release] * (cores - 1) + [first]
    heapq.heapify(free)
    driver = 0.0
    last = first
    for _ in range(cameras - 1):
        driver = max(driver, began) + (costs.driver_ms + costs.state_ms) / 1000
        start = max(heapq.heappop(free), driver)
        last = max(last, start + costs.each_s)
        heapq.heappush(free, start + costs.each_s)
    return last + reading


def table(costs: Costs) -> None:
    """Markdown, a row for each size."""
    print("| cameras | cores | wall time, h | driver's share | in flight, MB | runs, GB | state, MB |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for cameras in (10, 100, 1_000, 10_000, 100_000):
        for cores in (2, 64, 1024):
            if cores > 8 * cameras:
                continue
            wall = wall_s(costs, cameras, cores)
            busy = cameras * (costs.driver_ms + costs.state_ms) / 1000 + 2 * math.ceil(cameras / AT_ONCE) * (
                costs.state_ms / 1000
            )
            flying = min(cameras, QUEUED * cores) * costs.message_kb / 1000
            stored = (cameras * costs.camera_mb + costs.shared_mb) / 1000
            print(f"| {cameras:,} | {cores:,} | {wall / 3600:.2f} | {100 * busy / wall:.1f} % | {flying:.2f} | "
                  f"{stored:,.1f} | {cameras * costs.state_kb / 1000:,.1f} |")  # fmt: skip


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("costs", type=Path)
    parser.add_argument("--state-ms", type=float)
    parser.add_argument("--each-s", type=float)
    parser.add_argument("--shared-s", type=float)
    arguments = parser.parse_args()
    costs = Costs(**json.loads(arguments.costs.read_text()))
    given = {key: value for key, value in vars(arguments).items() if key != "costs" and value is not None}
    table(replace(costs, **given))


if __name__ == "__main__":
    main()
