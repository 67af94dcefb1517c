"""Kernels: Python functions that numba compiles when they are first used, run by the threads that torch has already.

A kernel takes one table of integers: sizes, and addresses of tensors. Its work is cut into chunks that threads take one
after another, so that the outcome does not depend on how many threads there are.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from types import SimpleNamespace

log = logging.getLogger(__name__)

FIRST = 2
"""Where a kernel's own integers begin in its table, after the next chunk and the number of chunks."""
_lock = threading.Lock()


@functools.cache
def available() -> bool:
    """Whether kernels can be compiled here: whether numba is installed and can be imported."""
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        importlib.import_module("numba")
    except Exception as error:  # noqa: BLE001  (numba checks NumPy's version, and its own binaries, when it is imported)
        log.warning("numba cannot be imported, training goes on without its kernels: %s", error)
        return False
    return True


class Kernel:
    """A function of a table of integers and the number of a chunk, compiled when it is first called."""

    def __init__(self, function: Callable[[Any, Any], None]) -> None:
        self._function = function
        self._compiled: Any = None

    def __call__(self, chunks: int, *values: int | Tensor, threads: int = 0) -> None:
        """Run with a table of `values`, tensors as their addresses; `threads` 0: as many as torch has.

        The interpreter's lock is free meanwhile. Tensors must stay alive for the call, and be laid out as the kernel
        expects: nothing is checked.
        """
        if self._compiled is None:
            self._compile()
        numbers = [value.data_ptr() if isinstance(value, Tensor) else value for value in values]
        table = (ctypes.c_int64 * (FIRST + len(numbers)))(0, chunks, *numbers)
        count = min(threads or torch.get_num_threads(), chunks)
        if count <= 1:
            self._compiled.ctypes(table)
        else:
            _team()(self._compiled, table, count)

    def _compile(self) -> None:
        import numba

        with _lock:
            if self._compiled is None:
                fast = {"contract", "nsz"}
                take, work = language().take, numba.njit(fastmath=fast)(self._function)

                def share(table: Any) -> None:
                    chunk = take(table)
                    while chunk < table[1]:
                        work(table, chunk)
                        chunk = take(table)

                signature = numba.types.void(numba.types.CPointer(numba.types.int64))
                self._compiled = numba.cfunc(signature, fastmath=fast)(share)


@functools.cache
def _team() -> Callable[[Any, Any, int], None]:
    """Runs a kernel in several threads at once: torch's own, where they are GNU's; others would fight for the cores."""
    library = _gnu_openmp()
    if library is not None:
        parallel = ctypes.CDLL(library).GOMP_parallel
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return lambda kernel, table, count: parallel(kernel.address, ctypes.addressof(table), count, 0)
    pool = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="edgeda-kernel")

    def share_out(kernel: Any, table: Any, count: int) -> None:
        others = [pool.submit(kernel.ctypes, table) for _ in range(count - 1)]
        kernel.ctypes(table)
        wait(others)

    return share_out


def _gnu_openmp() -> str | None:
    """The file of GNU's OpenMP that this process has loaded, torch's copy first; None where there is none."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    files = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "libgomp" in line}
    return min(files, key=lambda file: ("torch" not in file, file), default=None)


@functools.cache
def language() -> SimpleNamespace:
    """What kernels are written with, beside Python and `numba.carray`.

    `take(table)` is the number of the next chunk. `pointer[t](address)`, `load[t](stored)` and `store[t](float)` are
    for t in "float32" and "bfloat16", whose bits are held as uint16; `pointer` for "uint8", "uint32", "int64", too.
    `word(address)`: the four bytes there, at any address, as uint32.
    """
    from types import SimpleNamespace

    from llvmlite import ir
    from numba import njit, types
    from numba.extending import intrinsic

    def pointer(kind: Any) -> Any:
        def at(context: Any, address: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

            return types.CPointer(kind)(types.int64), generate

        return intrinsic(at)

    def bits(context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], ir.IntType(32))

        return types.uint32(types.float32), generate

    def from_bits(context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], ir.FloatType())

        return types.float32(types.uint32), generate

    def take(context: Any, table: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.atomic_rmw("add", arguments[0], ir.Constant(ir.IntType(64), 1), "monotonic")

        return types.int64(types.CPointer(types.int64)), generate

    def word(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            loaded = builder.load(builder.inttoptr(arguments[0], ir.IntType(32).as_pointer()))
            loaded.align = 1
            return loaded

        return types.uint32(types.int64), generate

    bits_of, of_bits = intrinsic(bits), intrinsic(from_bits)
    u16, u32, f32 = types.uint16, types.uint32, types.float32

    def load_bfloat16(stored: Any) -> Any:
        return of_bits(u32(stored) << u32(16))

    def store_bfloat16(value: Any) -> Any:  # to the nearest, ties to even
        as_bits = bits_of(f32(value))
        return u16((as_bits + u32(0x7FFF) + ((as_bits >> u32(16)) & u32(1))) >> u32(16))

    def same(value: Any) -> Any:
        return f32(value)

    inline = njit(inline="always")
    return SimpleNamespace(
        take=intrinsic(take),
        word=intrinsic(word),
        load={"float32": inline(same), "bfloat16": inline(load_bfloat16)},
        store={"float32": inline(same), "bfloat16": inline(store_bfloat16)},
        pointer={"bfloat16": pointer(u16)}
        | {str(kind): pointer(kind) for kind in (f32, types.uint8, u32, types.int64)},
    )
