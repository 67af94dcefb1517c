"""Keep a thread's stack for signal handlers: OpenVINO puts its own in that place and frees it later."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

_DISABLED = 2


class _Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give this thread its alternate signal stack back when the block ends.

    OpenVINO's CPU plugin installs one in the thread that loads it, and frees it in whichever thread drops
    the last model: then the next signal, a Ctrl-C, runs on memory that is gone and the process crashes.
    Where the old stack is too small for this CPU's registers there is none afterwards, which is safe:
    handlers run on the thread's own.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    change = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    known = change(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known and change(ctypes.byref(before), None) != 0:
            change(ctypes.byref(_Stack(None, _DISABLED, 0)), None)
