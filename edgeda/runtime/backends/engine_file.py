"""A TensorRT engine's sidecar, and whether the engine can be used here: engines fit one version and one kind of GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeda.errors import InputError, from_os_error, one_line
from edgeda.runtime.backends.cuda import Gpu
from edgeda.runtime.strict_json import parse_json

SUFFIX = ".engine"


@dataclass(frozen=True)
class BuiltBy:
    """What an engine was built by and for, as its sidecar says."""

    package: str
    version: str
    gpu: Gpu | None
    """None: built ahead of time, for any GPU that TensorRT for RTX supports."""
    onnx: str
    version_compatible: bool
    dla_core: int | None
    """None: on the GPU alone."""

    @property
    def remedy(self) -> str:
        """What to do when the engine does not fit."""
        option = "--trt-rtx" if self.package == "tensorrt_rtx" else "--trt"
        return f"build it again from {self.onnx} on this device, with build_engine.py or: edgeda export RUN {option}"


def sidecar_path(engine: Path) -> Path:
    """Where an engine's manifest is."""
    return engine.with_name(engine.name + ".json")


def read_sidecar(engine: Path) -> dict[str, Any] | None:
    """The JSON object beside an engine; None when there is none. InputError when it is damaged."""
    path = sidecar_path(engine)
    try:
        if not path.is_file():
            return None
        parsed = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise from_os_error(error, "reading the manifest") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {one_line(error)}") from error
    if not isinstance(parsed, dict):
        raise InputError(f"{path} is not a JSON object")
    return parsed


def built_by(engine: Path, sidecar: Mapping[str, Any]) -> BuiltBy:
    """The part of a sidecar that says what built the engine; InputError when it is missing or damaged."""
    try:
        said = sidecar["engine"]
        gpu, core = said["gpu"], said.get("dla_core")
        if core is not None and (type(core) is not int or core < 0):
            raise TypeError(f"dla_core is {core!r}")
        return BuiltBy(
            str(said["package"]),
            str(said["version"]),
            None if gpu is None else Gpu(str(gpu["name"]), str(gpu["compute_capability"])),
            str(said["onnx"]),
            bool(said["version_compatible"]),
            core,
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{sidecar_path(engine)} does not say what built the engine: {error!r:.200}") from error


def read_engine(engine: Path, sidecar: Mapping[str, Any] | None) -> bytes:
    """The engine's bytes; InputError when it is missing, empty, or not the one that its sidecar describes."""
    try:
        content = engine.read_bytes()
    except OSError as error:
        raise from_os_error(error, "reading the engine") from error
    if not content:
        raise InputError(f"{engine} is empty; build it again")
    wanted = (sidecar or {}).get("sha256")
    if wanted is not None and hashlib.sha256(content).hexdigest() != wanted:
        raise InputError(
            f"{engine} is not the engine that {sidecar_path(engine).name} describes; copy both again, or delete the "
            ".json if the engine was built anew by trtexec"
        )
    return content


def check_fits(engine: Path, built: BuiltBy, version: str, here: Gpu) -> None:
    """InputError unless an engine runs on this version and GPU; the line says what it was built by and for.

    An engine takes exactly its version, a version-compatible one any later version of the same major number.
    """
    then, now = _numbers(built.version), _numbers(version)
    same = then[:1] == now[:1] and then <= now if built.version_compatible else then == now
    target = f" for {built.gpu}" if built.gpu else ""
    if not same:
        raise InputError(
            f"{engine} was built by {_title(built.package)} {built.version}{target}, this machine has {version}; "
            f"{built.remedy}"
        )
    if built.gpu and built.gpu.compute_capability != here.compute_capability:
        raise InputError(
            f"{engine} was built by {_title(built.package)} {built.version}{target}, this machine has a {here}; "
            f"{built.remedy}"
        )


def _title(package: str) -> str:
    return "TensorRT for RTX" if package == "tensorrt_rtx" else "TensorRT"


def _numbers(version: str) -> tuple[int, ...]:
    """Major, minor, patch."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
