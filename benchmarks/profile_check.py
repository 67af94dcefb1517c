"""Does `edgeda profile` agree with a plain loop around ONNX Runtime, as onnxruntime_perf_test times it?

    python benchmarks/profile_check.py [MODEL.onnx] [--rounds 5] [--budget 1.0] [--threads N]

Both take turns on the same file in one process, and a round's ratio is taken of neighbours, so that a machine that
slows down does so for both. Prints the ratio of medians and of p99 for each round. Exits with 1 when the median of the
ratios is more than 10 % from 1. Without a model: a ResNet-18 with random weights at 224 px (needs the extra `train`).
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from edgeda.profiling.latency import cpu_pressure, nearest_rank
from edgeda.profiling.machine import compute_threads, machine_line
from edgeda.profiling.subjects import file_subject, measure

LIMIT = 0.10


def plain_loop(path: Path, threads: int, budget_s: float) -> tuple[float, float]:
    """Median and p99 in ms of single `session.run` calls after 200 ms of warm-up: nothing of edgeda in it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in taken.shape]
    feed = {taken.name: np.random.default_rng(0).uniform(-2, 2, shape).astype(np.float32)}
    until = time.perf_counter() + 0.2
    while time.perf_counter() < until:
        session.run(None, feed)
    durations = []
    until = time.perf_counter() + budget_s
    while time.perf_counter() < until or len(durations) < 20:
        began = time.perf_counter()
        session.run(None, feed)
        durations.append((time.perf_counter() - began) * 1e3)
    durations.sort()
    return statistics.median(durations), nearest_rank(durations, 99)


def export_resnet18(folder: Path) -> Path:
    """A ResNet-18 of 1000 classes with random weights, as edgeda exports it."""
    from edgeda.export.onnx import export_onnx
    from edgeda.models import Architecture, build_network
    from edgeda.runtime.manifest import Manifest
    from edgeda.runtime.preprocessing import Preprocessing

    network, _ = build_network(Architecture("r18", 1000))
    manifest = Manifest(tuple(map(str, range(1000))), Preprocessing(224), "resnet18", "fp32", (1, None))
    export_onnx(network.eval(), manifest, folder / "r18.onnx")
    return folder / "r18.onnx"


def main() -> int:
    """Measure in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of measuring on each side of a round")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    threads = arguments.threads or compute_threads()
    medians, tails = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model or export_resnet18(Path(folder))
        print("round  edgeda ms  loop ms  ratio  p99 ratio  pressure")
        for number in range(1, arguments.rounds + 1):
            ((row, error),) = measure(file_subject(path.name, path, "onnxruntime"), [1], threads, arguments.budget)
            if error or row.median_ms is None or row.p99_ms is None:
                raise SystemExit(f"edgeda could not measure {path}: {error}")
            median, tail = plain_loop(path, threads, arguments.budget)
            medians.append(row.median_ms / median)
            tails.append(row.p99_ms / tail)
            pressure = "-" if row.pressure is None else f"{row.pressure:.0%}"
            print(
                f"{number:5}  {row.median_ms:9.3f}  {median:7.3f}  {medians[-1]:5.3f}  {tails[-1]:9.3f}  {pressure:>8}"
            )
    ratio = statistics.median(medians)
    print(
        f"median ratio {ratio:.3f} (limit {1 - LIMIT:.2f} to {1 + LIMIT:.2f}), of p99 {statistics.median(tails):.3f}; "
        f"{path.name}, batch 1, {threads} threads, {arguments.rounds} rounds of {arguments.budget:g} s; "
        f"{datetime.date.today()}, {machine_line()}, CPU pressure now {cpu_pressure() or 0:.0%}"
    )
    return 0 if abs(ratio - 1) <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
