"""Hours of adapt, export, predict and evaluate: does anything grow?

    python benchmarks/long_haul.py [--minutes 60] [--commands-every 6] [--out FILE]

Small networks on scikit-learn's digits, so that a cycle takes seconds and many fit into an hour. Most cycles are
library calls in this one process, whose resident memory, open file handles and threads are read after each; every sixth
cycle runs the same four steps as commands, whose peak memory is read. Both kinds share one temporary folder and one
cache folder, whose sizes are followed too. Prints a line for each cycle, then each figure's slope and
a verdict. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NETWORK = {"backbone": "resnet10t", "pretrained": "none"}
SETTLED = 1 / 3
"""Share of the cycles, the first ones, in which caches fill and the allocator finds its size: not judged."""
LIMITS = {
    "resident_mb": 3.0, "handles": 0.0, "threads": 0.0, "temporary_mb": 0.0, "cache_mb": 0.0, "peak_mb": 3.0,
    "left_over": 0.0,
}  # fmt: skip
"""Most that a figure may grow between the first and the last third of the judged cycles, in percent."""
PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print([os.waitstatus_to_exitcode(status), usage.ru_maxrss])
"""
"""A small process between: a child's peak is never less than what its parent held when it was started."""


class Silent:
    """A progress display that shows nothing."""

    def stage(self, name: str, epochs: int, steps_per_epoch: int, done: int) -> None:
        """Nothing."""

    def step(self, pairs: int) -> None:
        """Nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Nothing."""


def write_images(folder: Path) -> dict[str, Path]:
    """Class folders of digits for the source, inverted ones for target and target-test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    places = {name: folder / name for name in ("source", "target", "test")}
    for digit in range(4):
        members = np.flatnonzero(digits.target == digit)
        for name, chosen in (("source", members[:12]), ("target", members[12:24]), ("test", members[24:32])):
            place = places[name] / str(digit)
            place.mkdir(parents=True)
            for index in chosen:
                pixels = (digits.images[index] * (255 / 16)).astype(np.uint8)
                picture = pixels if name == "source" else 255 - pixels
                Image.fromarray(picture).resize((40, 40)).convert("RGB").save(place / f"{index}.png")
    return places


def library_cycle(images: dict[str, Path], folder: Path, seed: int) -> None:
    """Adapt, export, predict and evaluate by library calls."""
    from edgeda.adapt import adapt, adapt_recipe
    from edgeda.artifacts import find_run
    from edgeda.evaluate import evaluate
    from edgeda.export import export_run
    from edgeda.export.images import parity_images
    from edgeda.predict import predict

    options = {
        "data.source": str(images["source"]), "data.target": str(images["target"]),
        "data.target_test": str(images["test"]), "data.input_size": 32, "data.resize": "squash", "data.crop_pct": 1.0,
        "teacher": NETWORK, "student": NETWORK, "train.warmup_epochs": 1, "train.epochs": 1, "train.batch_size": 12,
        "train.precision": "fp32", "train.threads": 1, "train.seed": seed, "train.checkpoint_minutes": 0,
    }  # fmt: skip
    run = folder / "run"
    adapt(adapt_recipe(None, options, [], None, False), run, Silent())
    found = find_run(str(run))
    checked = parity_images(found, None)
    exported = export_run(
        found, checked.squares, images_from=checked.origin, labels=checked.labels, gmacs=checked.gmacs, threads=1
    )
    lines: list[dict[str, Any]] = []
    summary = predict(exported["path"], [str(images["target"])], emit=lines.append, save=folder / "saved", drift=True)
    evaluate(str(run), str(images["test"]))
    evaluate(exported["path"], str(images["test"]))
    assert summary["frames"] == 48, summary
    assert len(list((folder / "saved").rglob("*.jpg"))) == 48


def command_cycle(images: dict[str, Path], folder: Path, seed: int) -> float:
    """The same as commands; the largest resident memory of them, in MB."""
    run = folder / "run"
    settings = [
        "data.input_size=32", "data.resize=squash", "data.crop_pct=1.0", "teacher.backbone=resnet10t",
        "student.backbone=resnet10t", "teacher.pretrained=none", "student.pretrained=none", "train.warmup_epochs=1",
        "train.threads=1", f"train.seed={seed}",
    ]  # fmt: skip
    exported = run / "exports" / "student.onnx"
    commands: list[list[object]] = [
        ["adapt", "--source", images["source"], "--target", images["target"], "--target-test", images["test"],
         "--epochs", 1, "--batch-size", 12, "--precision", "fp32", "--out", run,
         *(word for setting in settings for word in ("--set", setting))],
        ["export", run, "--threads", 1],
        ["predict", exported, "--source", images["target"], "--save", folder / "saved", "--json"],
        ["evaluate", exported, "--data", images["test"]],
    ]  # fmt: skip
    return max(peak_of([sys.executable, "-m", "edgeda", *map(str, words)]) for words in commands)


def peak_of(command: list[str]) -> float:
    """Run a command to its end; the most memory it had resident, in MB. SystemExit when it fails."""
    done = subprocess.run([sys.executable, "-c", PEAK, *command], capture_output=True, text=True, check=False)
    code, peak = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{command[3]} ended with {code}: {done.stderr}")
    return float(peak) / 1024


def size_mb(folder: Path) -> float:
    """Bytes of the files below a folder, in MB."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if not path.is_dir() else 0
        except FileNotFoundError:  # removed meanwhile
            continue
    return total / 2**20


def resident_mb() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def own_state() -> dict[str, float]:
    """What this process holds."""
    gc.collect()
    return {
        "resident_mb": resident_mb(),
        "handles": len(os.listdir("/proc/self/fd")) - 1,
        "threads": len(os.listdir("/proc/self/task")),
    }


def slope(values: list[float]) -> float:
    """Growth of a figure in each cycle: the median of the slopes of all pairs (Theil and Sen)."""
    pairs = [
        (values[late] - values[early]) / (late - early)
        for early in range(len(values))
        for late in range(early + 1, len(values))
    ]
    return statistics.median(pairs) if pairs else 0.0


def judged(name: str, every: list[float]) -> dict[str, Any]:
    """First and last value, slope and growth over the cycles after the settling, and whether that is flat."""
    values = every[int(len(every) * SETTLED) :]
    third = max(1, len(values) // 3)
    early, late = statistics.median(values[:third]), statistics.median(values[-third:])
    growth = 100 * (late - early) / early if early else (0.0 if late <= early else float("inf"))
    return {
        "figure": name, "cycles": len(values), "first": every[0], "early": early, "late": late, "most": max(every),
        "slope": slope(values[:: max(1, len(values) // 400)]), "growth": growth, "flat": growth <= LIMITS[name],
    }  # fmt: skip


def repeat(minutes: float, commands_every: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Cycles until the time is over; the figures of each."""
    figures: dict[str, list[float]] = {name: [] for name in LIMITS}
    with tempfile.TemporaryDirectory(prefix="long-haul-") as whole:
        root = Path(whole)
        temporary, cache = root / "tmp", root / "cache"
        temporary.mkdir()
        os.environ.update(TMPDIR=str(temporary), EDGEDA_CACHE=str(cache), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
        tempfile.tempdir = str(temporary)
        images = write_images(root / "images")
        ends, cycle = time.monotonic() + 60 * minutes, 0
        while time.monotonic() < ends:
            cycle += 1
            work = root / "work"
            work.mkdir()
            started = time.monotonic()
            as_commands = cycle % commands_every == 0
            if as_commands:
                figures["peak_mb"].append(command_cycle(images, work, seed=cycle))
            else:
                library_cycle(images, work, seed=cycle)
            hidden = [path for path in work.rglob("*") if path.name.endswith(".part") or path.name.startswith(".exp")]
            figures["left_over"].append(len(hidden))
            shutil.rmtree(work)
            state = own_state()
            if not as_commands:
                for name, value in state.items():
                    figures[name].append(value)
            figures["temporary_mb"].append(size_mb(temporary))
            figures["cache_mb"].append(size_mb(cache))
            say(json.dumps({
                "cycle": cycle, "kind": "commands" if as_commands else "library",
                "seconds": round(time.monotonic() - started, 2),
                **{name: round(value, 2) for name, value in state.items()},
                "temporary_mb": round(figures["temporary_mb"][-1], 3), "cache_mb": round(figures["cache_mb"][-1], 3),
                **({"peak_mb": round(figures["peak_mb"][-1], 1)} if as_commands else {}),
                "left_over": len(hidden), "python_threads": threading.active_count(),
            }))  # fmt: skip
    return figures


def main() -> None:
    """Repeat, then print the table and the verdict; exit code 1 when something grows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--commands-every", type=int, default=6)
    parser.add_argument("--out", type=Path, help="also write the table here")
    options = parser.parse_args()
    logging.getLogger("edgeda").setLevel(logging.ERROR)
    started = time.monotonic()
    figures = repeat(options.minutes, options.commands_every, lambda line: print(line, flush=True))
    rows = [judged(name, values) for name, values in figures.items() if values]
    cycles = len(figures["left_over"])
    lines = [
        f"{cycles} cycles in {(time.monotonic() - started) / 60:.1f} minutes, {len(figures['peak_mb'])} of them as "
        f"commands; judged after the first {100 * SETTLED:.0f} %.", "",
        "| figure | cycles judged | first of all | early third | last third | most | slope, per cycle | growth | |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
        *(
            f"| {row['figure']} | {row['cycles']} | {row['first']:.2f} | {row['early']:.2f} | {row['late']:.2f} | "
            f"{row['most']:.2f} | {row['slope']:+.4f} | {row['growth']:+.2f} % | {'flat' if row['flat'] else 'GROWS'} |"
            for row in rows
        ),
        "", "verdict: " + ("flat" if all(row["flat"] for row in rows) else "something grows"),
    ]  # fmt: skip
    table = "\n".join(lines)
    print(table, flush=True)
    if options.out:
        options.out.write_text(table + "\n", encoding="utf-8")
    sys.exit(0 if all(row["flat"] for row in rows) else 1)


if __name__ == "__main__":
    main()
