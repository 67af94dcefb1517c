"""Malformed inputs for every reader of edgeda: what each did with them, as a Markdown table.

    python benchmarks/hostile_inputs.py             all of them, some minutes on one core
    python benchmarks/hostile_inputs.py --reader image --keep DIR    one reader; what went wrong is kept in DIR
    python benchmarks/hostile_inputs.py --strace    a sample under strace: what C code writes, too

Each input is read by the real command, or by the library's function behind the command line's error handling, in a
forked child. What must hold: exit code 0, 2 or 3; at most one line `error:`, no traceback; under 10 s; no byte written
outside the output folder (temporary files are gone at the end); no other program started, no connection, no pickle.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", COLUMNS="100")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fuzz.cage import World, run_caged
from tests.fuzz.readers import Case, all_makers
from tests.fuzz.seeds import Seeds

COUNTS = {
    "recipe": 130,
    "--set": 60,
    "FLEET.yaml": 110,
    "image list": 90,
    "image": 180,
    "folder": 70,
    "archive": 120,
    "digits": 90,
    "video": 30,
    "ONNX file": 130,
    "manifest in ONNX": 120,
    "manifest beside a model": 70,
    "weights of a run": 100,
    "pretrained weights": 50,
    "summary.json": 80,
    "metrics.jsonl": 30,
    "recipe of a run": 40,
    "checkpoint": 50,
    "kit listing, fleet state": 40,
}
SEED = 20261124


def cases(reader: str, seeds: Seeds, count: int, seen: set[str]) -> Iterator[Case]:
    """`count` inputs of a reader, no two alike."""
    made = 0
    for round_ in range(5):
        chance = random.Random(f"{SEED} {reader} {round_}")
        for case in all_makers()[reader](seeds, chance, count):
            if case.digest not in seen:
                seen.add(case.digest)
                made += 1
                yield case
            if made == count:
                return


def main() -> None:
    """Run all cases and print the table; exit code 1 when something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append", help="only these readers")
    parser.add_argument("--only", help="only cases whose name contains this")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many inputs")
    parser.add_argument("--keep", type=Path, help="folder that takes the inputs of cases that went wrong")
    parser.add_argument("--seeds", type=Path, help="folder of seeds to use again")
    parser.add_argument("--strace", action="store_true", help="a sample under strace instead")
    options = parser.parse_args()
    if not options.strace:
        load_everything()
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        place = options.seeds or root / "seeds"
        seeds = Seeds.make(place, place / "run" if (place / "run" / "summary.json").is_file() else None)
        if options.strace:
            from tests.fuzz.traced import trace

            sys.exit(
                trace(
                    seeds,
                    root,
                    {name: list(cases(name, seeds, COUNTS[name], set())) for name in options.reader or COUNTS},
                )
            )
        sys.exit(run_all(options, seeds, root))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run_all(options: argparse.Namespace, seeds: Seeds, root: Path) -> int:
    """The table on stdout, each problem on stderr."""
    print("| reader | inputs | refused (2, 3) | accepted (0) | slowest, s | its CPU, s | problems |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    total, bad, began = [0, 0, 0, 0.0, 0.0, 0], 0, time.monotonic()
    seen: set[str] = set()
    for reader in options.reader or COUNTS:
        row = [0, 0, 0, 0.0, 0.0, 0]
        for case in cases(reader, seeds, round(COUNTS[reader] * options.scale), seen):
            if options.only and options.only not in case.name:
                continue
            folder = root / "case"
            world = World.make(folder)
            case.place(world)
            outcome = run_caged(case.act(world), world)
            row[0] += 1
            row[1] += outcome.refused
            row[2] += outcome.code == 0
            row[3:5] = max(row[3:5], [outcome.seconds, outcome.cpu_s])
            row[5] += bool(outcome.problems)
            if outcome.problems or options.only:
                bad += 1
                print(
                    f"{reader}: {case.name!r}: {'; '.join(outcome.problems[:4])!r}\n    {outcome.err[-400:]!r}",
                    file=sys.stderr,
                )
                if options.keep:
                    target = options.keep / f"{bad:03d}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.rename(world.inputs, target)
            remove(folder)
        print(line(reader, row), flush=True)
        total = [*(total[at] + row[at] for at in range(3)), *max(total[3:5], row[3:5]), total[5] + row[5]]
    print(line("**all**", total))
    print(f"\n{total[0]} distinct inputs in {time.monotonic() - began:.0f} s.")
    return 1 if total[5] else 0


def line(name: str, row: list) -> str:
    """A row of the table."""
    return f"| {name} | {row[0]} | {row[1]} | {row[2]} | {row[3]:.1f} | {row[4]:.1f} | {row[5]} |"


def remove(folder: Path) -> None:
    """Take a case's folder away, however deep and however its names are spelled."""
    shutil.rmtree(os.fsencode(folder), ignore_errors=True)
    if folder.exists():
        os.system(f"rm -rf '{folder}'")


def load_everything() -> None:
    """Import once what children would each import; nothing here starts a thread."""
    import cv2
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import openvino  # noqa: F401
    import scipy.io  # noqa: F401
    import timm  # noqa: F401
    import torch

    import edgeda.adapt
    import edgeda.bundling
    import edgeda.cli
    import edgeda.data.prepare
    import edgeda.evaluate
    import edgeda.export
    import edgeda.export.consumers
    import edgeda.fleet.recipe
    import edgeda.predict
    import edgeda.profiling.session
    import edgeda.report.compare
    import edgeda.report.profiles
    import edgeda.report.report  # noqa: F401

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


if __name__ == "__main__":
    main()
