"""What a signal does to the command line itself."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from edgeda import cli
from edgeda.stopping import stopping
from tests.conftest import Edgeda


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_makes_an_error_of_is_still_a_signal(
    command: Edgeda, monkeypatch: pytest.MonkeyPatch, number: int
):
    """An extension module that is being imported turns KeyboardInterrupt into an ImportError of its own."""

    def interrupted(*arguments: object, **options: object) -> int:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "app", interrupted)
    ran = command("doctor")
    assert (ran.code, ran.error.startswith("error: interrupted")) == (2, True), ran.err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_falls_into_a_destructor_comes_again(
    command: Edgeda, monkeypatch: pytest.MonkeyPatch, number: int
):
    """Nothing that is raised leaves one: numba's objects have them, and training went on."""

    class Hole:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0)  # it is heard here

    def interrupted(*arguments: object, **options: object) -> int:
        Hole()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            time.sleep(0.01)
        return 0

    hook = sys.unraisablehook
    monkeypatch.setattr(cli, "app", interrupted)
    ran = command("doctor")
    assert (ran.code, ran.error.startswith("error: interrupted")) == (2, True), ran.err
    assert sys.unraisablehook is hook


def test_an_ignored_signal_stays_ignored(command: Edgeda, monkeypatch: pytest.MonkeyPatch):
    """As of a command in the background of a script, or under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(cli, "app", lambda *arguments, **options: os.kill(os.getpid(), signal.SIGINT))
        assert command("doctor").code == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_signal_stays_ignored_while_training():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    heard: list[int] = []
    try:
        with stopping(heard.append):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGTERM]
