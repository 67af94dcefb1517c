"""The part that runs on a device: measures what a job file brought and prints one line of JSON.

It lies in the job's zip file beside the models (see `device.py`), runs from there, and needs Python 3.10, numpy,
Pillow and an engine.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeda.errors import EdgedaError, from_os_error
from edgeda.profiling import profile_subjects
from edgeda.profiling.latency import cpu_pressure
from edgeda.profiling.machine import machine
from edgeda.profiling.opening import PROVIDERS, engines_for, file_subject, not_run
from edgeda.profiling.subjects import Extras
from edgeda.runtime.backends.tensorrt import engine_package


def main() -> None:
    """Measure, print the answer, or the error, as the last line of stdout."""
    job = Path(sys.argv[0])
    try:
        with zipfile.ZipFile(job) as archive:
            request = json.loads(archive.read("request.json"))
            archive.extractall(job.parent, [name for name in archive.namelist() if name.startswith("models/")])
        answer = run(request, job.parent)
    except EdgedaError as error:
        answer = {"error": str(error), "exit_code": error.exit_code}
    except OSError as error:
        failed = from_os_error(error, "unpacking the model")
        answer = {"error": str(failed), "exit_code": failed.exit_code}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def run(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Rows of every model in the engines that are installed, and the machine; `missing` where there is none."""
    asked = request["engines"]
    subjects = []
    wanted: set[str] = set()
    usable: list[str] = []
    for model in request["models"]:
        path = folder / model["path"]
        for engine in engines_for(path):
            usable.append(engine)
            if asked is None or engine in asked:
                package = _package(engine, path)
                wanted.add(package)
                if _installed(package):
                    subjects.append(file_subject(model["label"], path, engine))
    if not wanted:
        raise not_run(", ".join(model["label"] for model in request["models"]), usable, asked)
    if not subjects:
        return {"missing": sorted(wanted), "python": sys.executable}
    image = request["image"]
    extras = Extras(
        streams=tuple(request["streams"]), memory=request["memory"], end_to_end=request["end_to_end"],
        image=folder / image if image else None, power=request["power"],
    )  # fmt: skip
    before = cpu_pressure()
    rows = profile_subjects(
        subjects, request["batch_sizes"], False, request["threads"], request["budget_s"], extras,
    )  # fmt: skip
    return {
        "rows": [row.to_dict() for row in rows],
        "machine": machine(),
        "pressure_before": before,
        "pressure_after": cpu_pressure(),
    }


def _package(engine: str, path: Path) -> str:
    """What an engine is imported as; for TensorRT, the model says which of two."""
    return engine_package(path) if engine == "tensorrt" else "onnxruntime" if engine in PROVIDERS else engine


def _installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
