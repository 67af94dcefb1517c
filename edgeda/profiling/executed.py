"""What ONNX Runtime really did: it notes, node by node, which kernel ran in which type on which provider."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, one_line, require
from edgeda.runtime.backends.onnx_runtime import session_options

_HEAVY = ("Conv", "Gemm", "MatMul")
_TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8"}


@dataclass(frozen=True)
class Executed:
    """Of one call: the type in which convolutions and products spent most of their time, and where nodes ran."""

    precision: str | None
    """None when the file holds no convolution and no product."""
    providers: Mapping[str, int]
    """Number of nodes by execution provider, the largest first."""


def onnxruntime_executed(path: Path, batch: NDArray[np.float32], providers: Sequence[str], threads: int) -> Executed:
    """Run an ONNX file twice in a session of its own with ONNX Runtime's profiler on, and read what it noted."""
    ort = require("onnxruntime", "cpu", "running a model on ONNX Runtime")
    with tempfile.TemporaryDirectory(prefix="edgeda-") as folder:
        options = session_options(ort)
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "nodes")
        try:
            session = ort.InferenceSession(str(path), options, providers=list(providers))
            for _ in range(2):
                session.run(None, {session.get_inputs()[0].name: batch})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except Exception as error:  # onnxruntime's errors share no parent but Exception
            raise InputError(f"ONNX Runtime's profiler tells nothing of {path}: {one_line(error)}") from error
    return _read(events)


def _read(events: Sequence[Mapping[str, Any]]) -> Executed:
    spent: Counter[str] = Counter()
    providers: dict[str, str] = {}
    for event in events:
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith("_kernel_time"):
            continue
        facts = event.get("args", {})
        providers[event["name"]] = str(facts.get("provider", ""))
        operator = str(facts.get("op_name", ""))
        if any(word in operator for word in _HEAVY):
            types = [name for shape in facts.get("input_type_shape") or [{}] for name in shape]
            spent[_TYPES.get(types[0], types[0]) if types else "unknown"] += int(event.get("dur", 0)) + 1
    counted = Counter(providers.values())
    if not spent:
        return Executed(None, dict(counted.most_common()))
    ((precision, _),) = spent.most_common(1)
    return Executed(precision, dict(counted.most_common()))
