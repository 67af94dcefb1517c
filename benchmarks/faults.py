"""Faults on purpose: kills, full disks, read-only folders, signals, clocks and torn files, and what is left after them.

    python benchmarks/faults.py [--kills 100] [--only adapt-kill,torn,...] [--part K/N] [--seed 0]
        [--out FILE]

Prints a Markdown row for each fault: times tried, and what came of it. A try that ends otherwise than it should is
listed below the table, and the exit code is then 1. Real full disks and read-only folders need root (tmpfs mounts).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fault_disks import clocks, disk_full, real_disk, torn
from fault_kills import adapt_each, adapt_kill, export_kill, predict_kill, signals
from fault_trials import Trials

FAULTS: dict[str, Callable[[Trials], None]] = {
    "torn": torn, "predict-kill": predict_kill, "clocks": clocks, "adapt-kill": adapt_kill, "signals": signals,
    "real-disk": real_disk, "export-kill": export_kill, "disk-full": disk_full, "adapt-each": adapt_each,
}  # fmt: skip


def _part(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return part, parts


def main() -> None:
    """Try the faults one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="K/N", help="the K-th of N parts of a sweep")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        trials = Trials(Path(work), options.seed, options.kills, options.part)
        print("| fault | times tried | outcome |\n|---|---:|---|", flush=True)
        try:
            for name in options.only.split(","):
                FAULTS[name](trials)
        finally:
            trials.driver.close()
    table = ["| fault | times tried | outcome |", "|---|---:|---|",
             *(f"| {fault} | {tried} | {came} |" for fault, tried, came in trials.rows), "",
             f"{sum(tried for _, tried, _ in trials.rows)} tries in {(time.monotonic() - started) / 60:.1f} minutes, "
             f"seed {options.seed}; {len(trials.wrong)} ended otherwise than they should.", *trials.wrong]  # fmt: skip
    print("\n".join(table[-1 - len(trials.wrong) :]))
    if options.out:
        options.out.write_text("\n".join(table) + "\n", encoding="utf-8")
    sys.exit(bool(trials.wrong))


if __name__ == "__main__":
    main()
