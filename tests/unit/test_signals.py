"""Signals in a process that has OpenVINO: each case in a process of its own, since a failure is a crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_runtime import write_model

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signal stacks are Linux's")

DROPPED_ELSEWHERE = """
import gc, os, signal, sys, threading
from edgeda.runtime import Classifier

came = []
signal.signal(signal.SIGUSR1, lambda *_: came.append(1))
kept = [Classifier(sys.argv[1], "openvino", 1, concurrency=int(sys.argv[2]))]

def drop():
    kept.clear()
    gc.collect()

thread = threading.Thread(target=drop)
thread.start()
thread.join()
for _ in range(3):
    os.kill(os.getpid(), signal.SIGUSR1)
print(len(came))
"""

STACKS = """
import ctypes, sys
from edgeda.runtime import Classifier
from edgeda.runtime.backends.signal_stack import _Stack

def now():
    stack = _Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.start, stack.flags, stack.size

memory = ctypes.create_string_buffer(200_000)
own = _Stack(ctypes.addressof(memory), 0, 200_000)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(own), None) == 0
before = now()
one = Classifier(sys.argv[1], "openvino", 1)
print(now() == before, one.backend.name)
"""


def output_of(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_signal_after_the_model_was_dropped_in_another_thread(tmp_path: Path, concurrency: int) -> None:
    assert output_of(DROPPED_ELSEWHERE, write_model(tmp_path / "model.onnx"), concurrency) == "3"


def test_the_users_own_signal_stack_stays(tmp_path: Path) -> None:
    assert output_of(STACKS, write_model(tmp_path / "model.onnx")) == "True openvino"
