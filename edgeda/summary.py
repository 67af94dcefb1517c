"""The end of a run: selected weights are saved and judged without target labels, and summary.json is written."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from edgeda import __version__
from edgeda.artifacts import CHECKPOINT, ROLES, SUMMARY, RunDirectory
from edgeda.checkpoint import PREVIOUS
from edgeda.data import Domains
from edgeda.inference import predict_logits
from edgeda.memory import peak_memory_mb
from edgeda.models import Network, NetworkCard, save_network
from edgeda.profiling.complexity import torch_complexity
from edgeda.profiling.machine import machine
from edgeda.recipe import Recipe
from edgeda.selection import judge
from edgeda.train import Fit
from edgeda.watching import Record
from edgeda.whole_file import write_text


def finish(
    recipe: Recipe, run: RunDirectory, data: Domains, networks: dict[str, Network], fit: Fit, origins: dict[str, str]
) -> Record:
    """Save the selected weights, judge them without target labels and write the summary."""
    if "student" not in fit.best:
        fit.best["student"], networks["student"] = fit.best["source_only"], networks["source_only"]
    logits: dict[str, Tensor] = {}
    for role, best in fit.best.items():
        network = networks[role]
        card = NetworkCard(network.architecture, data.classes, recipe.data.preprocessing, role)
        save_network(run.weights(role), best["weights"], card)
        network.load_state_dict(best["weights"])
        logits[role] = predict_logits(network, data.target_judged.squares, recipe.data.preprocessing)
    selected = {role: best["record"] for role, best in fit.best.items()}
    verdict = judge(
        logits["student"], logits["source_only"], logits.get("teacher"),
        selected["student"]["source_accuracy"], selected["source_only"]["source_accuracy"],
        "source-only" if recipe.start_from is None else "the earlier student",
    )  # fmt: skip
    summary: Record = {
        "edgeda": __version__,
        "method": recipe.method,
        "alignment": list(recipe.adapt.alignment) if any(stage.aligns for stage in fit.stages) else None,
        "teacher": recipe.teacher.backbone if "teacher" in fit.best else None,
        "student": recipe.student.backbone,
        "source_only": networks["source_only"].architecture.backbone,
        "weights_from": origins,
        "started_from": None if recipe.start_from is None else RunDirectory(Path(recipe.start_from)).name,
        "source": recipe.data.source,
        "target": recipe.data.target,
        "target_test": recipe.data.target_test,
        "classes": list(data.classes),
        "images": {
            "source": len(data.source),
            "target": len(data.target),
            "target_test": len(data.target_test) if data.target_test else 0,
        },
        "skipped": data.skipped,
        "seed": recipe.train.seed,
        "epochs": recipe.train.epochs,
        "precision": recipe.train.precision,
        "machine": machine(),
        "devices": recipe.train.devices,
        "wall_s": round(fit.wall_s, 1),
        "pairs_per_s": round(fit.pairs_per_s, 2),
        "wait_share": round(fit.wait_share, 4),
        "peak_memory_mb": peak_memory_mb(),
        "selection": {"rule": recipe.select.rule, "epoch": selected["student"]["epoch"]},
        "accuracy": {role: _accuracies(role, fit) for role in ROLES},
        "accuracy_source_images": "held out" if data.held_out else "training images",
        "verdict": verdict.to_dict(),
        "complexity": {role: _complexity(networks[role], recipe) for role in ROLES if role in networks},
    }
    write_text(run.path / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    (run.path / CHECKPOINT / PREVIOUS).unlink(missing_ok=True)  # half of what a run needs on the disk
    return {"run": str(run.path), **summary}


def _accuracies(role: str, fit: Fit) -> Record:
    """`last`, `selected` and `oracle` on target-test, in percent; null without labels. Source of the selected epoch."""
    if role not in fit.best:
        return {"target": {"last": None, "selected": None, "oracle": None}, "source": None}
    chosen = fit.best[role]["record"]
    trained_as = chosen["role"]
    epochs = [line["networks"][trained_as] for line in fit.history if line["stage"] == chosen["stage"]]
    on_target = [epoch["target_accuracy"] for epoch in epochs]
    known = None not in on_target
    return {
        "target": {
            "last": round(on_target[-1], 2) if known else None,
            "selected": round(chosen["target_accuracy"], 2) if known else None,
            "oracle": round(max(on_target), 2) if known else None,
        },
        "source": round(chosen["source_accuracy"], 2),
    }


def _complexity(network: Network, recipe: Recipe) -> Record:
    found = torch_complexity(network, recipe.data.input_size)
    return {"gmacs": round(found.gmacs, 4), "gflops": round(found.gflops, 4), "params_m": round(found.params_m, 3)}
