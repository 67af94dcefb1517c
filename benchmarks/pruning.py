"""ResNet-50 pruned by 12 % and 45 % of its multiply-accumulates, beside KD-UDA's Table V and the smaller ResNets.

    python benchmarks/pruning.py [--rounds 5] [--budget 1.0] [--threads N]

224 px, 1000 classes. Weights are random, so scores would be arbitrary; they are drawn at random instead, each
channel as likely to go as any other, and there is no accuracy to speak of. Latency and size do not depend
on weights. GMACs are what was asked for; how many parameters go with them depends on which layers the channels
are taken from, so that column compares with Table V only roughly.
Latency is the median of one image's calls; each model is measured once a round, in turn, and compared with
the ResNet-50 of the same round.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
from pathlib import Path

import torch

from edgeda.channels import widths
from edgeda.console import set_up_logging
from edgeda.export.onnx import export_onnx
from edgeda.models import Architecture, Network, NetworkCard, build_network, save_network
from edgeda.profiling.complexity import torch_complexity
from edgeda.profiling.machine import compute_threads, machine_line
from edgeda.profiling.subjects import Subject, file_subject, measure, weights_subject
from edgeda.pruning import MINIMUM, check_target, prunable, prune_to
from edgeda.report.tables import Column, markdown_table
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.preprocessing import Preprocessing

SIZE, CLASSES = 224, 1000
TABLE_V = {
    "r50": (4.1, 25.5), "r50 - 12 %": (3.6, 15.8), "r50 - 45 %": (2.2, 10.6), "r34": (3.6, 21.7), "r18": (1.8, 11.1),
}  # fmt: skip
"""GMACs and parameters (M) as printed, for Office-31."""
ENGINES = ("torch", "onnxruntime")
COLUMNS = [
    Column("model", "model"),
    Column("gmacs", "GMACs", decimals=2), Column("paper_gmacs", "GMACs, Table V", decimals=1),
    Column("params_m", "params", "M", 1), Column("paper_params_m", "params, Table V", "M", 1),
    *(
        column for engine in ENGINES for column in (
            Column(f"{engine}_ms", engine, "ms", 1), Column(f"{engine}_ratio", f"{engine} / r50", decimals=2),
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
    """The network as torch and ONNX Runtime run it, from files in `folder`."""
    preprocessing, classes = Preprocessing(SIZE), tuple(map(str, range(CLASSES)))
    stem = folder / name.replace(" ", "")
    weights, exported = stem.with_suffix(".safetensors"), stem.with_suffix(".onnx")
    save_network(weights, network.state_dict(), NetworkCard(network.architecture, classes, preprocessing))
    manifest = Manifest(classes, preprocessing, network.architecture.backbone, "fp32", (1, None))
    export_onnx(network, manifest, exported)
    return {"torch": weights_subject(name, weights), "onnxruntime": file_subject(name, exported, "onnxruntime")}


def main() -> None:
    """Build, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of measuring a model, an engine and a round")
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
        for engine in ENGINES:
            mine, dense = measured[engine][name], measured[engine]["r50"]
            row[f"{engine}_ms"] = statistics.median(mine)
            row[f"{engine}_ratio"] = statistics.median(a / b for a, b in zip(mine, dense, strict=True))
        rows.append(row)
    print(markdown_table(rows, COLUMNS))
    print(
        f"\n{datetime.date.today()}, {machine_line()}, {threads} threads; {SIZE} px, {CLASSES} classes, batch 1; "
        f"median of {arguments.rounds} rounds of {arguments.budget:g} s; ratios within a round. Random weights, "
        "channels drawn at random: parameters depend on which go. Table V counts 31 classes, except in its first row."
    )


def latencies(
    networks: dict[str, Network], folder: Path, threads: int, rounds: int, budget_s: float
) -> dict[str, dict[str, list[float]]]:
    """Median ms by engine and model, a value a round; models take turns, so that all see the same machine."""
    found: dict[str, dict[str, list[float]]] = {engine: {name: [] for name in networks} for engine in ENGINES}
    opened = {name: subjects(name, network, folder) for name, network in networks.items()}
    for _ in range(rounds):
        for engine in ENGINES:
            for name, by_engine in opened.items():
                (row, error), *_ = measure(by_engine[engine], [1], threads, budget_s)
                if error or row.median_ms is None:
                    raise SystemExit(f"{name} in {engine} could not be measured: {error}")
                found[engine][name].append(row.median_ms)
    return found


if __name__ == "__main__":
    main()
