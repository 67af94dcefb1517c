"""KD-UDA's Table V measured here: ResNet-50, pruned by 12 % and 45 % of its multiply-accumulates, ResNet-34, ResNet-18.

    python benchmarks/table_v.py [--rounds 5] [--budget 1.0] [--threads N]

224 px, 1000 classes. Weights are random, so scores would be arbitrary; they are drawn at random instead, each
channel as likely to go as any other, and there is no accuracy to speak of. Latency and size do not depend
on weights. GMACs are what was asked for; how many parameters go with them depends on which layers the channels
are taken from, so that column compares with Table V only roughly.
int8 is U8S8, weights per channel, quantized by ONNX Runtime's own tool on random images: right for speed, of no use
for accuracy. Latency is the median of one image's calls in ONNX Runtime; each model is measured once a round, in turn,
and compared with the ResNet-50 of the same round and precision.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import statistics
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edgeda.channels import widths
from edgeda.console import set_up_logging
from edgeda.export.onnx import export_onnx
from edgeda.models import Architecture, Network, build_network
from edgeda.profiling.complexity import torch_complexity
from edgeda.profiling.machine import compute_threads, machine_line
from edgeda.profiling.subjects import Subject, file_subject, measure
from edgeda.pruning import MINIMUM, check_target, prunable, prune_to
from edgeda.report.tables import Column, markdown_table
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.preprocessing import Preprocessing

SIZE, CLASSES = 224, 1000
TABLE_V = {
    "r50": (4.1, 25.5), "r50 - 12 %": (3.6, 15.8), "r50 - 45 %": (2.2, 10.6), "r34": (3.6, 21.7), "r18": (1.8, 11.1),
}  # fmt: skip
"""GMACs and parameters (M) as printed, for Office-31."""
PRECISIONS = ("fp32", "int8")
COLUMNS = [
    Column("model", "model"),
    Column("gmacs", "GMACs", decimals=2), Column("paper_gmacs", "GMACs, Table V", decimals=1),
    Column("params_m", "params", "M", 1), Column("paper_params_m", "params, Table V", "M", 1),
    *(
        column for precision in PRECISIONS for column in (
            Column(f"{precision}_ms", precision, "ms", 1),
            Column(f"{precision}_ratio", f"{precision} / r50 {precision}", decimals=2),
        )
    ),
]  # fmt: skip


def pruned_resnet50(cut: float) -> Network:
    """A ResNet-50 without so large a share of its MACs; the channels are drawn at random."""
    network = build_network(Architecture("r50", CLASSES))[0].eval()
    generator = torch.Generator().manual_seed(0)
    scores = {
        name: torch.rand(width, generator=generator) for name, width in widths(network, prunable(network)).items()
    }
    prune_to(network, scores, check_target(network, cut, SIZE, MINIMUM), SIZE)
    return network


def subjects(name: str, network: Network, folder: Path) -> dict[str, Subject]:
    """The network as ONNX Runtime runs it, in fp32 and int8, from files in `folder`."""
    stem = folder / name.replace(" ", "")
    exported, quantized = stem.with_suffix(".onnx"), stem.with_suffix(".int8.onnx")
    classes = tuple(map(str, range(CLASSES)))
    export_onnx(
        network, Manifest(classes, Preprocessing(SIZE), network.architecture.backbone, "fp32", (1, None)), exported
    )
    quantize(exported, quantized)
    files = {"fp32": exported, "int8": quantized}
    return {precision: file_subject(name, path, "onnxruntime") for precision, path in files.items()}


class _Noise(CalibrationDataReader):
    """A few random images."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self._left = [{"images": generator.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)} for _ in range(4)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def quantize(source: Path, target: Path) -> None:
    """Unsigned activations, signed weights per channel: what ONNX Runtime has fast kernels for on x86."""
    logging.disable(logging.WARNING)  # the tool advises on pre-processing that the exporter has done
    quantize_static(
        source, target, _Noise(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    logging.disable(logging.NOTSET)


def main() -> None:
    """Build, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--budget", type=float, default=1.0, help="seconds of measuring a model, a precision and a round"
    )
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    set_up_logging()
    threads = arguments.threads or compute_threads()
    torch.set_num_threads(threads)
    networks = {name: build_network(Architecture(name, CLASSES))[0].eval() for name in ("r50", "r34", "r18")}
    for percent in (12, 45):
        networks[f"r50 - {percent} %"] = pruned_resnet50(percent / 100)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        measured = latencies(networks, Path(folder), threads, arguments.rounds, arguments.budget)
    for name, (paper_gmacs, paper_params) in TABLE_V.items():
        cost = torch_complexity(networks[name], SIZE)
        row = {"model": name, "gmacs": cost.gmacs, "params_m": cost.params_m, "paper_gmacs": paper_gmacs,
               "paper_params_m": paper_params}  # fmt: skip
        for precision in PRECISIONS:
            mine, dense = measured[precision][name], measured[precision]["r50"]
            row[f"{precision}_ms"] = statistics.median(mine)
            row[f"{precision}_ratio"] = statistics.median(a / b for a, b in zip(mine, dense, strict=True))
        rows.append(row)
    print(markdown_table(rows, COLUMNS))
    print(
        f"\n{datetime.date.today()}, {machine_line()}, {threads} threads; {SIZE} px, {CLASSES} classes, batch 1, "
        f"ONNX Runtime {onnxruntime.__version__}; "
        f"median of {arguments.rounds} rounds of {arguments.budget:g} s; ratios within a round. Random weights, "
        "channels drawn at random: parameters depend on which go. Table V counts 31 classes, except in its first row."
    )


def latencies(
    networks: dict[str, Network], folder: Path, threads: int, rounds: int, budget_s: float
) -> dict[str, dict[str, list[float]]]:
    """Median ms by precision and model, a value a round; models take turns, so that all see the same machine."""
    found: dict[str, dict[str, list[float]]] = {precision: {name: [] for name in networks} for precision in PRECISIONS}
    opened = {name: subjects(name, network, folder) for name, network in networks.items()}
    for _ in range(rounds):
        for precision in PRECISIONS:
            for name, by_precision in opened.items():
                (row, error), *_ = measure(by_precision[precision], [1], threads, budget_s)
                if error or row.median_ms is None:
                    raise SystemExit(f"{name} in {precision} could not be measured: {error}")
                found[precision][name].append(row.median_ms)
    return found


if __name__ == "__main__":
    main()
