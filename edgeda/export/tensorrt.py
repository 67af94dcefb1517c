"""A TensorRT engine from an exported ONNX file: built here, built on a device over ssh, or everything to build it with.

All three ways run the same builder, `engine_builder`, on the same request.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeda.artifacts import sha256
from edgeda.errors import EdgedaError, InputError, MachineError, from_os_error
from edgeda.export.consumers import CONSUMERS
from edgeda.export.engine_builder import REQUEST_NAME, BuildError, build, gpu
from edgeda.export.engine_kit import KIT_SCRIPT, write_kit
from edgeda.export.engine_source import EngineSource, read_source
from edgeda.remote import Address, Remote

log = logging.getLogger(__name__)

BUILD_S = 3600.0
"""Longest time a device may take for one engine."""
DEFAULT_MOST = 8
"""Largest batch of an engine whose ONNX file takes any."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built; None leaves it to TensorRT."""

    batch: tuple[int, int, int] | None = None
    """Least, usual and most images in a call; None: 1, 1 and 8, within what the file takes."""
    workspace_mb: int | None = None
    timing_cache: Path | None = None
    """Measurements that later builds on the same device reuse; made when it is not there."""
    dla_core: int | None = None
    version_compatible: bool = False


def export_engine(
    onnx: Path,
    options: EngineOptions | None = None,
    *,
    rtx: bool = False,
    device: str | None = None,
    overwrite: bool = False,
    timeout_s: float = BUILD_S,
) -> dict[str, Any]:
    """Build an engine beside `onnx`, an ONNX file of edgeda's, and ENGINE.json with what was built.

    With `rtx`, for desktop RTX GPUs, ahead of time on any machine with the package tensorrt-rtx. With `device`
    (`ssh://user@host[:port]`), there, with its own python3 and TensorRT. Else with this machine's GPU.
    Returns `path`, `manifest_path` and `manifest`. Raises InputError for a file or a request that TensorRT cannot
    take, MachineError where it cannot be built: then build_engine.py, build_engine.sh and build_engine.json for the
    device lie beside `onnx`.
    """
    options = options or EngineOptions()
    check_request(options, trt=not rtx, rtx=rtx, device=device)
    source = read_source(onnx)
    engine = onnx.with_suffix(".rtx.engine" if rtx else ".engine")
    sidecar = engine.with_name(engine.name + ".json")
    if engine.exists() and not sidecar.exists() and not overwrite:
        raise InputError(f"{engine} is not an engine of edgeda's and is not overwritten; pass --overwrite")
    request = _request(source, engine.name, options, "tensorrt_rtx" if rtx else "tensorrt")
    if device is not None:
        kit = write_kit(onnx.parent, request, source, overwrite)
        _build_there(device, onnx, kit, request, options.timing_cache, timeout_s)
    elif rtx:
        _build_here(request, onnx.parent, options.timing_cache)
    else:
        _build_here_or_prepare(request, source, options.timing_cache, overwrite)
    return {"path": str(engine), "manifest_path": str(sidecar), "manifest": json.loads(sidecar.read_text("utf-8"))}


def check_request(
    options: EngineOptions, *, trt: bool, rtx: bool, device: str | None, batch: tuple[int, int | None] | None = None
) -> None:
    """InputError for options that make no sense together; the cheap check, before anything is exported.

    `batch` is the range of the files that are going to be exported.
    """
    if options.workspace_mb is not None and options.workspace_mb < 1:
        raise InputError(f"--workspace-mb must be at least 1, got {options.workspace_mb}")
    if options.dla_core is not None and options.dla_core < 0:
        raise InputError(f"--dla is the number of a core from 0, got {options.dla_core}")
    if options.timing_cache is not None and not options.timing_cache.parent.is_dir():
        raise InputError(f"--timing-cache: no such folder: {options.timing_cache.parent}")
    if trt and rtx:
        raise InputError("--trt and --trt-rtx build for different GPUs; give one of them")
    if device is not None:
        Address.parse(device)
        cache = options.timing_cache
        if cache is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", cache.name):
            raise InputError(f"--timing-cache {cache.name}: with --device, a name of letters, digits, . _ and -")
    for name, given in (
        ("--device", device),
        ("--dla", options.dla_core),
        ("--timing-cache", options.timing_cache),
        ("--version-compatible", options.version_compatible or None),
        ("--workspace-mb", None if rtx else options.workspace_mb),
    ):
        if given is not None and not trt:
            raise InputError(f"{name} is for --trt; " + ("TensorRT for RTX has none" if rtx else "add that"))
    if batch is not None:
        _check_dla(options.dla_core, *batch)


def _check_dla(core: int | None, least: int, most: int | None) -> None:
    if core is not None and least != most:
        raise InputError("--dla: a DLA takes one batch size only; add --batch 1")


def build_engines(
    result: Mapping[str, Any], options: EngineOptions, *, rtx: bool, device: str | None, overwrite: bool
) -> tuple[list[dict[str, Any]], list[EdgedaError]]:
    """`export_engine` for each artifact of `export_run`'s result that was made for TensorRT; InputError without one.

    Where one cannot be built, the others are tried; the errors are the second list.
    """
    made = [
        Path(artifact["path"])
        for artifact in result["artifacts"]
        if CONSUMERS[artifact["manifest"].get("consumer") or "any"].scheme == "trt"
    ]
    if not made:
        raise InputError("no ONNX for TensorRT was asked for; leave --for out, or name trt or a JetPack")
    engines: list[dict[str, Any]] = []
    failures: list[EdgedaError] = []
    for path in made:
        try:
            engines.append(export_engine(path, options, rtx=rtx, device=device, overwrite=overwrite))
        except EdgedaError as error:
            failures.append(error)
    return engines, failures


def engine_text(result: Mapping[str, Any]) -> str:
    """What is said of the engines of an export, after what is said of its other files; empty without any."""
    return "".join(_engine_line(engine) for engine in result.get("engines", ()))


def _engine_line(engine: Mapping[str, Any]) -> str:
    manifest = engine["manifest"]
    built = manifest["engine"]
    layers = ", ".join(f"{count} layers in {name}" for name, count in sorted(built["compute_layers"].items()))
    target = built["gpu"]["name"] if built["gpu"] else "RTX GPUs"
    least, usual, most = built["batch"]
    return (
        f"\nwrote {engine['path']}: {manifest['size_mb']:.1f} MB by {built['package']} {built['version']} "
        f"for {target}, {layers} ({built['typing']} typing), batch {least} to {most} (tuned for {usual}), "
        f"built in {built['build_s']:.1f} s; it was not run"
    )


def _request(source: EngineSource, engine: str, options: EngineOptions, package: str) -> dict[str, Any]:
    """What the builder is told; see `engine_builder.build`. Parity and accuracy were measured on the ONNX file."""
    batch = choose_batch(source, options.batch)
    _check_dla(options.dla_core, batch[0], batch[2])
    manifest = replace(
        source.manifest, sha256=None, size_mb=None, parity=None, accuracy=None, quantization=None, checks=None
    )
    return {
        "onnx": source.path.name,
        "onnx_sha256": sha256(source.path),
        "engine": engine,
        "package": package,
        "precision": source.precision,
        "half": source.half,
        "batch": list(batch),
        "workspace_mb": options.workspace_mb,
        "timing_cache": None if options.timing_cache is None else options.timing_cache.name,
        "dla_core": options.dla_core,
        "version_compatible": options.version_compatible,
        "manifest": manifest.to_dict(),
    }


def choose_batch(source: EngineSource, wanted: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Least, usual and most images in a call, within what the file takes; InputError when it cannot hold them."""
    least, most = source.batch
    if wanted is None:
        upper = max(least, DEFAULT_MOST) if most is None else most
        return least, least, upper
    if not 1 <= wanted[0] <= wanted[1] <= wanted[2]:
        raise InputError(f"batch {_said(wanted)}: three rising numbers from 1: least, usual, most")
    if wanted[0] < least or (most is not None and wanted[2] > most):
        takes = f"from {least}" + ("" if most is None else f" to {most}")
        raise InputError(f"batch {_said(wanted)}: {source.path.name} takes batches {takes}")
    return wanted


def _said(batch: tuple[int, int, int]) -> str:
    return ",".join(map(str, batch))


def _build_here_or_prepare(
    request: dict[str, Any], source: EngineSource, timing_cache: Path | None, overwrite: bool
) -> None:
    folder = source.path.parent

    def prepared(reason: str) -> MachineError:
        write_kit(folder, request, source, overwrite)
        return MachineError(
            f"{reason}, so no engine was built; build it on the device: --device ssh://user@host, or copy {folder} "
            f"there and run: python3 {KIT_SCRIPT}"
        )

    if gpu() is None:
        raise prepared("no NVIDIA GPU here")
    try:
        _build_here(request, folder, timing_cache)
    except MachineError as error:
        raise prepared(str(error)) from error


def _build_here(request: dict[str, Any], folder: Path, timing_cache: Path | None) -> None:
    _building(lambda: build({**request, "timing_cache": timing_cache and str(timing_cache.resolve())}, folder))


def _building(work: Callable[[], object]) -> None:
    try:
        work()
    except BuildError as error:
        hint = "; install it with: pip install 'edgeda[rtx]'" if "tensorrt_rtx cannot be imported" in str(error) else ""
        raise _as_ours(error.exit_code, f"{error}{hint}") from error
    except OSError as error:
        raise from_os_error(error, "building the engine") from error


def _as_ours(exit_code: int, message: str) -> EdgedaError:
    return MachineError(message) if exit_code == MachineError.exit_code else InputError(message)


def _build_there(
    device: str, onnx: Path, kit: list[Path], request: dict[str, Any], timing_cache: Path | None, timeout_s: float
) -> None:
    with Remote.open(device) as remote:
        for path in (onnx, *kit):
            remote.put(path, path.name)
        if timing_cache is not None and timing_cache.is_file():
            remote.put(timing_cache, timing_cache.name)
        log.info("building %s on %s; this takes minutes on a small device", request["engine"], remote.address)
        done = remote.run(["python3", KIT_SCRIPT, REQUEST_NAME], timeout_s)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it gives no reason"]
            said = next((line for line in lines if line.startswith("error: ")), lines[-1]).removeprefix("error: ")
            raise _as_ours(InputError.exit_code if done.returncode == 2 else 3, f"{remote.address}: {said[:300]}")
        engine = onnx.with_name(request["engine"])
        remote.get(engine.name, engine)
        remote.get(engine.name + ".json", engine.with_name(engine.name + ".json"))
        if timing_cache is not None:
            try:
                remote.get(timing_cache.name, timing_cache)
            except MachineError as error:
                log.warning("the engine is here, its timing cache is not: %s", error)
