"""Profiling on another machine over ssh: a zip file goes there with the light package and the models, JSON comes back.

Nothing is installed there: the zip is run as it is (`python3 job.zip`) in a folder of its own that is removed again.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import edgeda
from edgeda.artifacts import RunDirectory, export_command, find_model
from edgeda.errors import EdgedaError, InputError, MachineError, from_os_error
from edgeda.profiling import Extras
from edgeda.profiling.opening import engines_for, model_files, told_apart
from edgeda.profiling.stages import image_for
from edgeda.runtime.backends import read_manifest

JOB = "job.zip"
LIGHT = ("__init__.py", "errors.py", "artifacts.py", "profiling", "runtime")
"""What of the package is needed on a device."""
_CANNOT_EXECUTE, _NOT_FOUND = 126, 127

# Runs in any Python 3, old ones included, so that an old one is told in words.
_MAIN = """import json, os, sys
# Engines leave files in the temporary folder and in the user's cache: they go with the rest.
for place in ("TMPDIR", "XDG_CACHE_HOME"):
    os.environ[place] = os.path.dirname(os.path.abspath(sys.argv[0]))
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
def stop(text):
    print(json.dumps({"error": text, "exit_code": 3}))
    sys.exit(0)
if sys.version_info < (3, 10):
    stop("Python %d.%d is too old there; edgeda needs 3.10 or later: install one, and name it with --remote-python"
         % sys.version_info[:2])
missing = []
for module, package in (("numpy", "numpy"), ("PIL", "pillow")):
    try:
        __import__(module)
    except ImportError:
        missing.append(package)
if missing:
    stop("the Python there (%s) lacks %s; install it there with: %s -m pip install %s"
         % (sys.executable, " and ".join(missing), sys.executable, " ".join(missing)))
from edgeda.profiling.on_device import main
main()
"""


@dataclass(frozen=True)
class Cargo:
    """A model on its way: what its rows are called, and its files, the one to open first."""

    label: str
    files: tuple[Path, ...]

    def names(self, number: int) -> list[str]:
        """Where its files lie in the job, in the order of `files`."""
        return [f"models/{number}/{file.name}" for file in self.files]


def cargo(models: Sequence[str | None]) -> list[Cargo]:
    """The exported models that MODEL arguments stand for; InputError for one that needs torch, or cannot be read."""
    found: list[Cargo] = []
    for model in models:
        known = find_model(model)
        if isinstance(known, RunDirectory):
            paths = known.exported_models()
            if not paths:
                raise InputError(f"the run {known.path} has no exports, and a device has no torch; run: "
                                 f"{export_command(known)}")  # fmt: skip
            labels = [f"{known.name}/{path.relative_to(known.exports)}" for path in paths]
        else:
            paths, labels = [_file(known)], [known.name]
        for path, label in zip(paths, labels, strict=True):
            engines_for(path)
            if path.suffix.lower() != ".engine":
                read_manifest(path)
            found.append(Cargo(label, tuple(model_files(path))))
    labels = told_apart([(load.label, str(load.files[0])) for load in found])
    return [replace(load, label=label) for load, label in zip(found, labels, strict=True)]


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    models = sorted(path.glob("*.xml"))
    if len(models) != 1:
        raise InputError(f"{path} holds {len(models)} OpenVINO models (.xml), expected one; name the file itself")
    return models[0]


def profile_on(
    url: str,
    loads: Sequence[Cargo],
    *,
    batch_sizes: Sequence[int] = (1,),
    engines: Sequence[str] | None = None,
    threads: int | None = None,
    budget_s: float = 1.0,
    extras: Extras = Extras(),  # noqa: B008 - frozen
    python: str = "python3",
    timeout_s: float = 900.0,
) -> dict[str, Any]:
    """`rows`, `machine`, `pressure_before` and `pressure_after` as `python` on the device at `url` measured them.

    `timeout_s` is for the measurement alone. Raises InputError for a bad request or URL, MachineError when the
    device cannot be reached, has no space, no Python, no engine, or does not answer in time.
    """
    from edgeda.remote import Remote

    image = image_for(extras.image) if extras.end_to_end else None
    request = job_request(
        loads, batch_sizes=batch_sizes, engines=engines, threads=threads, budget_s=budget_s, extras=extras
    )
    with tempfile.TemporaryDirectory(prefix="edgeda-") as folder:
        job = Path(folder) / JOB
        try:
            write_job(job, loads, request, image)
        except OSError as error:
            raise from_os_error(error, "packing the job") from error
        with Remote.open(url) as remote:
            where = str(remote.address)
            remote.put(job, JOB)
            done = remote.run([python, JOB], timeout_s)
    return _answer(done, where, python)


def job_request(
    loads: Sequence[Cargo],
    *,
    batch_sizes: Sequence[int] = (1,),
    engines: Sequence[str] | None = None,
    threads: int | None = None,
    budget_s: float = 1.0,
    extras: Extras = Extras(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """What `on_device.run` is asked for, as plain JSON values."""
    image = image_for(extras.image) if extras.end_to_end else None
    return {
        "models": [{"label": load.label, "path": load.names(at)[0]} for at, load in enumerate(loads)],
        "engines": None if engines is None else list(engines), "batch_sizes": list(batch_sizes), "threads": threads,
        "budget_s": budget_s, "streams": list(extras.streams), "memory": extras.memory, "power": extras.power,
        "end_to_end": extras.end_to_end, "image": f"models/{image.name}" if image else None,
    }  # fmt: skip


def write_job(path: Path, loads: Sequence[Cargo], request: Mapping[str, Any], image: Path | None) -> None:
    """A zip file that Python runs: the light package, the models, the request."""
    package = Path(edgeda.__file__).parent
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__main__.py", _MAIN)
        archive.writestr("request.json", json.dumps(request))
        for part in LIGHT:
            for source in sorted((package / part).rglob("*.py")) if (package / part).is_dir() else [package / part]:
                archive.write(source, f"edgeda/{source.relative_to(package)}", zipfile.ZIP_DEFLATED)
        for at, load in enumerate(loads):
            for file, name in zip(load.files, load.names(at), strict=True):
                archive.write(file, name)
        if image is not None:
            archive.write(image, f"models/{image.name}")


def _answer(done: CompletedProcess[str], where: str, python: str) -> dict[str, Any]:
    if done.returncode in (_NOT_FOUND, _CANNOT_EXECUTE):
        raise MachineError(
            f"{where}: there is no {python}; install Python 3.10 or later with numpy and pillow there (Debian, Ubuntu: "
            "apt install python3 python3-numpy python3-pil), or name another with --remote-python"
        )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise MachineError(f"{where}: measuring ended with code {done.returncode} there: {last[:200]}") from None
    if missing := answer.get("missing"):
        packages = " or ".join(missing)
        raise MachineError(
            f"{where}: no engine there runs this model; install one there with: {answer['python']} -m pip install "
            f"{missing[0]} (any of: {packages}; on a Jetson, NVIDIA's own onnxruntime-gpu wheel or TensorRT)"
        )
    if "error" in answer:
        kind: type[EdgedaError] = InputError if answer.get("exit_code") == InputError.exit_code else MachineError
        raise kind(f"{where}: {answer['error']}")
    return dict(answer)
