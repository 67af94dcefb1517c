"""What a device needs to build the engine itself: the builder, its request, and the same as a trtexec command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeda.errors import InputError, from_os_error
from edgeda.export import engine_builder
from edgeda.export.engine_source import EngineSource

KIT_SCRIPT, KIT_SHELL = "build_engine.py", "build_engine.sh"
_MARK = "edgeda"
"""Somewhere near the top of each of our files: what has none is the user's."""
_SHELL = r"""#!/bin/sh
# Written by edgeda: builds @ENGINE@ with trtexec, TensorRT 8.5 to 11. build_engine.py does the same with
# TensorRT's Python package, checks the precision, and writes @ENGINE@.json too.
set -eu
cd "$(dirname "$0")"
trtexec=${TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}
[ -x "$trtexec" ] || { echo "error: no trtexec at $trtexec; name it: TRTEXEC=/path/to/trtexec sh $0" >&2; exit 3; }
help=$("$trtexec" --help 2>&1 || true)
# 8601 is 8.6.1, 100300 is 10.3.0
version=$(printf '%s\n' "$help" | sed -n 's/.*\[TensorRT v\([0-9]*\)\].*/\1/p' | head -n 1)
[ -n "$version" ] || { echo "error: $trtexec does not tell its version" >&2; exit 3; }
knows() { printf '%s\n' "$help" | grep -q -e "$1"; }
set -- --onnx=@ONNX@ --saveEngine=@ENGINE@.part@ARGUMENTS@
if [ "$version" -ge 101200 ] || ! knows --fp16; then
    if knows --stronglyTyped; then set -- "$@" --stronglyTyped; fi
else
    : precision @PRECISION@@WEAK@
fi
"$trtexec" "$@"
mv @ENGINE@.part @ENGINE@
rm -f @ENGINE@.json
echo "built @ENGINE@ with TensorRT $version"
"""


def write_kit(folder: Path, request: Mapping[str, Any], source: EngineSource, overwrite: bool) -> list[Path]:
    """Write build_engine.py, build_engine.json and build_engine.sh; returns the paths, the two a device needs first.

    InputError when something of that name lies there that edgeda did not write (unless `overwrite`).
    """
    texts = {
        folder / KIT_SCRIPT: Path(engine_builder.__file__).read_text(encoding="utf-8"),
        folder / engine_builder.REQUEST_NAME: json.dumps({"made_by": _MARK, **request}, indent=2) + "\n",
        folder / KIT_SHELL: shell_script(request, source),
    }
    for path in texts:
        if not overwrite and path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace")[:1000]:
            raise InputError(f"{path} is not edgeda's and is not overwritten; pass --overwrite, or another --out")
    try:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
            if path.name == KIT_SHELL:
                path.chmod(0o755)
    except OSError as error:
        raise from_os_error(error, "writing what builds the engine") from error
    return list(texts)[:2]


def shell_script(request: Mapping[str, Any], source: EngineSource) -> str:
    """The trtexec command as a POSIX shell script, with the rules of `engine_builder`."""
    arguments = []
    if source.input_dims[0] is None:
        for option, size in zip(("minShapes", "optShapes", "maxShapes"), request["batch"], strict=True):
            dims = "x".join(str(dim) for dim in (size, *source.input_dims[1:]))
            arguments.append(f"--{option}={source.input_name}:{dims}")
    if request["workspace_mb"] is not None:
        arguments.append(f"--memPoolSize=workspace:{request['workspace_mb']}")
    if request["timing_cache"]:
        arguments.append(f"--timingCacheFile={request['timing_cache']}")
    if request["dla_core"] is not None:
        arguments += [f"--useDLACore={request['dla_core']}", "--allowGPUFallback"]
    if request["version_compatible"]:
        arguments.append("--versionCompatible")
    weak = " ".join(["--fp16"] * request["half"] + ["--int8"] * (request["precision"] == "int8"))
    values = {
        "@ARGUMENTS@": "".join(f" {shlex.quote(argument)}" for argument in arguments),
        "@WEAK@": f'\n    set -- "$@" {weak}' if weak else "",
        "@PRECISION@": request["precision"],
        "@ONNX@": shlex.quote(request["onnx"]),
        "@ENGINE@": shlex.quote(request["engine"]),
    }
    text = _SHELL
    for mark, value in values.items():
        text = text.replace(mark, value)
    return text
