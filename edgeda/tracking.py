"""Training curves in TensorBoard and MLflow, of the same records as metrics.jsonl. Nothing leaves the run's folder."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from edgeda.errors import require
from edgeda.recipe import dotted

Record = Mapping[str, Any]
FOLDERS = {"tensorboard": "tensorboard", "mlflow": "mlruns"}
"""Where each tracker writes, inside the run directory."""


class Tracker(Protocol):
    """One place that curves go to."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """The numbers of one epoch; `step` counts epochs over all stages, from 1."""

    def close(self, finished: bool) -> None:
        """Write what is still held back; `finished` is whether the run came to its end."""


class Trackers:
    """The trackers a recipe asks for (`train.track`), fed from a run's history.

    What an earlier attempt at the run has written is replaced: the history of a resumed run is whole, so no
    epoch stands there twice. Raises MissingExtra, before anything is written, when a package is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._modules = {name: _import(name) for name in dict.fromkeys(names)}
        self._open: list[Tracker] = []
        self._logged = 0

    def begin(self, folder: Path, name: str, parameters: Mapping[str, Any]) -> None:
        """Start anew in the run's `folder`; `parameters` is the resolved recipe."""
        flat = {key: str(value) for key, value in dotted(parameters)}
        for tracker, module in self._modules.items():
            place = folder / FOLDERS[tracker]
            shutil.rmtree(place, ignore_errors=True)
            self._open.append(_TRACKERS[tracker](module, place, name, flat))

    def follow(self, history: Sequence[Record]) -> None:
        """Log the records that came since the last call."""
        for step, record in enumerate(history[self._logged :], self._logged + 1):
            values = curves(record)
            for tracker in self._open:
                tracker.log(values, step)
        self._logged = len(history)

    def close(self, finished: bool) -> None:
        """End every tracker."""
        while self._open:
            self._open.pop().close(finished)


def curves(record: Record) -> dict[str, float]:
    """The numbers of an epoch's record by name: `loss/STAGE/TERM`, `ROLE/target_accuracy`, `ROLE/im`, `pairs_per_s`."""
    stage = str(record["stage"]).replace(" ", "-")
    found = {f"loss/{stage}/{term}": float(value) for term, value in record["losses"].items()}
    for role, scored in record["networks"].items():
        numbers = {**scored["scores"], **{key: scored[key] for key in ("source_accuracy", "target_accuracy")}}
        found |= {f"{role}/{key}": float(value) for key, value in numbers.items() if value is not None}
    return {**found, "pairs_per_s": float(record["pairs_per_s"])}


class _TensorBoard:
    def __init__(self, module: ModuleType, place: Path, name: str, parameters: Mapping[str, str]) -> None:
        self._writer = module.SummaryWriter(str(place))
        lines = "\n".join(f"    {key}: {value}" for key, value in parameters.items())
        self._writer.add_text("recipe", lines)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        self._writer.close()


class _MlFlow:
    def __init__(self, module: ModuleType, place: Path, name: str, parameters: Mapping[str, str]) -> None:
        (place / ".trash").mkdir(parents=True)  # its store of this folder may be one that saw it go
        self._client = module.MlflowClient(place.absolute().as_uri())
        experiment = self._client.create_experiment("edgeda")
        self._run = self._client.create_run(experiment, run_name=name).info.run_id
        for key, value in parameters.items():
            self._client.log_param(self._run, key, value[:500] or "-")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            allowed = re.sub(r"[^\w.\- :/]", "-", key)  # cdan+e is an alignment
            self._client.log_metric(self._run, allowed, value, step=step)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


_TRACKERS: dict[str, Callable[[ModuleType, Path, str, Mapping[str, str]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MlFlow,
}
_MODULES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow.tracking"}


def _import(name: str) -> ModuleType:
    # MLflow refuses a store of plain files unless it is told otherwise
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside TensorBoard and MLflow, of no use to our user
        require(name, "track", f"train.track: {name}")
        return require(_MODULES[name], "track", f"train.track: {name}")
