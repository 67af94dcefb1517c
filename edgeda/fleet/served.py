"""What a finished student says of a camera: whether it can serve it, and whether the camera has drifted since."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeda.artifacts import RECIPE, RunDirectory
from edgeda.data import load_target, load_test, spread
from edgeda.errors import InputError, one_line
from edgeda.export import export_run
from edgeda.export.images import LIMIT, CheckImages
from edgeda.fleet.look import LOOKED
from edgeda.inference import predict_logits
from edgeda.models import Network, NetworkCard, load_network
from edgeda.recipe import DataRecipe
from edgeda.recipe_file import load_recipe
from edgeda.report.summary import cautioned
from edgeda.runtime.classifier import softmax
from edgeda.runtime.drift import DriftMonitor, DriftReference
from edgeda.runtime.preprocessing import Pixels
from edgeda.selection import accuracy, judge

Record = dict[str, Any]

FALSE_ALARMS = 1e-3
"""Probability at most that one check says of an unchanged camera that it has drifted."""


@dataclass(frozen=True)
class Shipped:
    """A network that a run's verdict ships."""

    run: RunDirectory
    role: str
    network: Network
    card: NetworkCard

    @classmethod
    def of(cls, run: RunDirectory) -> Shipped:
        """Of a finished run."""
        role = "student" if run.summary()["verdict"]["ship"] == "adapted" else "source_only"
        return cls(run, role, *load_network(run.weights(role)))

    def logits(self, squares: Pixels) -> torch.Tensor:
        """Float32 `(N, C)` of stored squares."""
        return predict_logits(self.network, squares, self.card.preprocessing)


def confidence(logits: torch.Tensor) -> float:
    """Mean of the largest probability, in percent."""
    return 100.0 * float(logits.softmax(dim=1).amax(dim=1).mean())


def try_serving(data: DataRecipe, run: RunDirectory, most: float) -> tuple[Record, Shipped | None]:
    """Whether what `run` ships may serve a camera with `data`, at a cost of at most `most` points; decided label-free.

    The proxy of the cost in accuracy is the difference of confidences (Guillory et al., ICCV 2021): mean confidence on
    the run's own target less that on the camera's images. An adapted student must also be judged better than the
    source-only one on the camera's images, as it was on its own. Returns `cost`, `verdict`, `why`, `caveat`; and the
    network, or None where it may not.
    """
    shipped = Shipped.of(run)
    own = load_target(load_recipe(str(run.path / RECIPE)).data, LOOKED).squares[:]
    mine = load_target(data, LOOKED).squares[:]
    said = shipped.logits(mine)
    cost = max(0.0, round(confidence(shipped.logits(own)) - confidence(said), 2))
    verdict, reason, caveat = "source-only", run.summary()["verdict"]["reason"], cautioned(run.summary())
    if shipped.role == "student":
        source_only, _ = load_network(run.weights("source_only"))
        on_source = run.summary()["accuracy"]
        judged = judge(
            said, predict_logits(source_only, mine, shipped.card.preprocessing), None,
            on_source["student"]["source"], on_source["source_only"]["source"],
        )  # fmt: skip
        verdict, reason = judged.ship, judged.reason
        caveat = f"the {verdict} student is {judged.caveat}" if judged.caveat else None
    fits = cost <= most and (verdict == "adapted") == (shipped.role == "student")
    return {"cost": cost, "verdict": verdict, "why": reason, "caveat": caveat}, shipped if fits else None


def export_shipped(shipped: Shipped, checked: CheckImages, out: Path | None = None) -> str:
    """Write what is shipped as ONNX, below its run or in `out`; the path of the file."""
    result = export_run(
        shipped.run, checked.squares, images_from=checked.origin, role=shipped.role, labels=checked.labels, out=out,
        gmacs=checked.gmacs, threads=1,
    )  # fmt: skip
    return str(result["path"])


def serve(data: DataRecipe, shipped: Shipped, out: Path | None) -> Record:
    """Export what is shipped, with the camera's own drift reference, into `out`; accuracy where labels are given."""
    costs = shipped.run.summary().get("complexity") or {}
    gmacs = (costs.get(shipped.role) or {}).get("gmacs")
    found: Record = {"student": None, "source_only": None}
    if data.target_test:
        test = load_test(data.target_test, shipped.card.classes, shipped.card.preprocessing)
        kept = test.take(spread(len(test), LIMIT))
        checked = CheckImages(kept.squares[:], f"target-test images ({test.name})", kept.labels, gmacs)
        for role in ("student", "source_only"):
            network, card = load_network(shipped.run.weights(role))
            logits = predict_logits(network, test.squares, card.preprocessing)
            found[role] = round(accuracy(logits, torch.from_numpy(test.labels)), 2)
    else:
        target = load_target(data, LIMIT)
        checked = CheckImages(target.squares[:], f"target images ({target.name})", None, gmacs)
    return {"model": export_shipped(shipped, checked, out) if out else None, "accuracy": found}


def drift_since(data: DataRecipe, shipped: Shipped, model: str) -> Record:
    """How far a camera's images are today from those its model was exported with, by the monitor's own test.

    Raises InputError for a model without a reference, or too few images.
    """
    manifest = Path(model).parent / "manifest.json"
    try:
        stored = json.loads(manifest.read_text(encoding="utf-8")).get("drift")
    except (OSError, ValueError) as error:
        raise InputError(f"the manifest {manifest} cannot be read: {one_line(error)}") from error
    squares = load_target(data, LOOKED).squares[:]
    count = len(squares)
    monitor = DriftMonitor(DriftReference.from_dict(stored), max(2, count), FALSE_ALARMS / max(2, count))
    monitor.update(squares, softmax(shipped.logits(squares).numpy()))
    if monitor.last is None:
        raise InputError(f"{count} image says nothing of drift")
    return {**monitor.last.to_dict(), "when": time.strftime("%Y-%m-%d")}
