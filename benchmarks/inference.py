"""Latency of the student beside its teacher and pruned networks, by engine and precision, in one run.

    python benchmarks/inference.py [--rounds 3] [--budget 0.5] [--threads 2] [--size 224]

ResNet-18 (the student), ResNet-50 (the teacher) and ResNet-50 pruned by 12 % and 45 % of its multiply-accumulates as
TCP prunes, channels drawn at random. Weights are random: latency does not depend on them, and there is no accuracy to
speak of. int8 is calibrated on random pixels. Latency is the median of one image's calls; each model is measured once a
round, in turn, and compared with ONNX Runtime fp32 of the same network in the same round.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from table_v import pruned_resnet50

from edgeda.console import set_up_logging
from edgeda.export import qdq
from edgeda.export.calibration import calibrate
from edgeda.export.graph import finish
from edgeda.export.onnx import to_model
from edgeda.export.openvino import write_openvino
from edgeda.models import Architecture, Network, build_network
from edgeda.profiling.latency import cpu_stall_us, measure_latency
from edgeda.profiling.machine import compute_threads, machine_line
from edgeda.report.tables import Column, markdown_table
from edgeda.runtime.backends import Backend, OnnxRuntimeBackend, OpenVinoBackend
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.preprocessing import Preprocessing

CLASSES = 1000
CALIBRATION = 16
WAYS = ("ORT fp32", "ORT int8", "OpenVINO fp32", "OpenVINO bf16", "OpenVINO int8", "OpenVINO int8 + bf16")
COLUMNS = [
    Column("model", "network"),
    *(
        column for way in WAYS for column in
        (Column(f"{way} ms", way, "ms", 2), *([Column(f"{way} x", "faster", "x", 2)] if way != WAYS[0] else []))
    ),
]  # fmt: skip


def openers(network: Network, size: int, folder: Path, threads: int) -> dict[str, Callable[[], Backend]]:
    """Write a network in every precision; by way, what opens it."""
    manifest = Manifest(
        tuple(map(str, range(CLASSES))), Preprocessing(size), network.architecture.backbone, "fp32", (1, None), opset=20
    )
    graph = to_model(network, manifest)
    inputs = np.random.default_rng(0).standard_normal((CALIBRATION, 3, size, size)).astype(np.float32)
    scheme = qdq.SCHEMES["x86"]
    quantized = qdq.quantize(graph, calibrate(graph, inputs, qdq.activations(graph, scheme), "minmax"), scheme)
    plain, int8, whole, few = (folder / name for name in ("fp32.onnx", "int8.onnx", "fp32.xml", "int8.xml"))
    folder.mkdir()
    plain.write_bytes(finish(graph, manifest))
    int8.write_bytes(finish(quantized, replace(manifest, precision="int8")))
    del graph.metadata_props[:]
    content = graph.SerializeToString()
    write_openvino(content, whole, "fp32")
    write_openvino(content, few, "int8", [inputs[at : at + 1] for at in range(CALIBRATION)])
    opened: list[Callable[[], Backend]] = [
        lambda: OnnxRuntimeBackend(plain, threads), lambda: OnnxRuntimeBackend(int8, threads),
        lambda: OpenVinoBackend(whole, threads, "fp32"), lambda: OpenVinoBackend(whole, threads, "bf16"),
        lambda: OpenVinoBackend(few, threads, "fp32"), lambda: OpenVinoBackend(few, threads, "bf16"),
    ]  # fmt: skip
    return dict(zip(WAYS, opened, strict=True))


def main() -> None:
    """Build, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.5, help="seconds of measuring a model, a way and a round")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    set_up_logging()
    threads = arguments.threads or compute_threads()
    torch.set_num_threads(threads)
    networks = {
        "r18 (student)": build_network(Architecture("r18", CLASSES))[0].eval(),
        "r50 (teacher)": build_network(Architecture("r50", CLASSES))[0].eval(),
        "r50, TCP - 12 %": pruned_resnet50(0.12),
        "r50, TCP - 45 %": pruned_resnet50(0.45),
    }
    rows, precisions = [], {}
    stalled = cpu_stall_us()
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, network) in enumerate(networks.items()):
            found: dict[str, list[float]] = {way: [] for way in WAYS}
            ready = openers(network, arguments.size, Path(folder) / str(number), threads)
            backends = {way: opened() for way, opened in ready.items()}
            precisions |= {way: backend.precision for way, backend in backends.items()}
            image = np.random.default_rng(1).standard_normal((1, 3, arguments.size, arguments.size)).astype(np.float32)
            for _ in range(arguments.rounds):
                for way, backend in backends.items():
                    latency = measure_latency(
                        partial(backend, image), warmup_ms=100, budget_s=arguments.budget, min_runs=5
                    )
                    found[way].append(latency.median_ms)
            row: dict[str, object] = {"model": name}
            for way, values in found.items():
                row[f"{way} ms"] = statistics.median(values)
                row[f"{way} x"] = statistics.median(a / b for a, b in zip(found[WAYS[0]], values, strict=True))
            rows.append(row)
    print(markdown_table(rows, COLUMNS))
    waited = (cpu_stall_us() or 0) - (stalled or 0)
    ran = ", ".join(f"{way}: {precision}" for way, precision in precisions.items())
    print(
        f"\n{datetime.date.today()}, {machine_line()}, {threads} threads; {arguments.size} px, {CLASSES} classes, "
        f"batch 1; median of {arguments.rounds} rounds of {arguments.budget:g} s; x: times as fast as ORT fp32 in the "
        "same round. "
        f"Executed: {ran}. Random weights. Tasks waited {waited / 1e6:.1f} s for a CPU meanwhile."
    )


if __name__ == "__main__":
    main()
