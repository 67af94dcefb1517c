"""What this machine's CPU can do at best: multiply-accumulates and memory traffic, measured in about two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from edgeda.errors import EdgedaError, require

_SIDE = 1024
_BLOCK_MB = 64
_BUDGET_S = 0.5


def measure_peaks(threads: int, budget_s: float = _BUDGET_S) -> dict[str, Any]:
    """GFLOP/s of an fp32 matrix product, GOP/s of an int8 one in ONNX Runtime, GB/s of copying, on `threads` threads.

    The best of several rounds each: a peak, not a mean. `int8_gops` is None without onnx and onnxruntime.
    numpy's own threads are set by the environment before it is imported (OMP_NUM_THREADS).
    """
    left = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)
    made = np.empty_like(left)
    operations = 2 * _SIDE**3
    product_s = _best(lambda: np.matmul(left, left, out=made), budget_s)
    return {
        "threads": threads,
        "fp32_gflops": operations / product_s / 1e9,
        "int8_gops": _int8_gops(threads, budget_s),
        "bandwidth_gb_s": _bandwidth(threads, budget_s),
    }


def _best(run: Callable[[], object], budget_s: float) -> float:
    run()
    durations: list[float] = []
    until = time.perf_counter() + budget_s
    while len(durations) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        durations.append(time.perf_counter() - started)
    return min(durations)


def _bandwidth(threads: int, budget_s: float) -> float:
    """Bytes read and written by copies of blocks larger than the caches, all threads at once."""
    count = _BLOCK_MB * 10**6 // 4
    blocks = [(np.ones(count, np.float32), np.zeros(count, np.float32)) for _ in range(threads)]

    def copy(pair: tuple[Any, Any]) -> None:
        np.copyto(pair[1], pair[0])

    with ThreadPoolExecutor(threads) as pool:
        seconds = _best(lambda: list(pool.map(copy, blocks)), budget_s)
    return 2 * 4 * count * threads / seconds / 1e9


def _int8_gops(threads: int, budget_s: float) -> float | None:
    """Of MatMulInteger with uint8 and int8, which is what int8 models run on a CPU."""
    try:
        helper = require("onnx.helper", "train", "measuring int8 arithmetic")
        onnx = require("onnx", "train", "measuring int8 arithmetic")
        ort = require("onnxruntime", "cpu", "measuring int8 arithmetic")
    except EdgedaError:
        return None
    types = onnx.TensorProto
    weights = np.random.default_rng(0).integers(-100, 100, (_SIDE, _SIDE), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "peak",
        [helper.make_tensor_value_info("a", types.UINT8, [_SIDE, _SIDE])],
        [helper.make_tensor_value_info("c", types.INT32, [_SIDE, _SIDE])],
        [onnx.numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = {"a": np.abs(weights).astype(np.uint8)}
    return 2 * _SIDE**3 / _best(lambda: session.run(None, taken), budget_s) / 1e9
