"""What training says while it goes on."""

from __future__ import annotations

import pytest

from edgeda import console
from edgeda.console import TrainingDisplay


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(console, "time", found)
    return found


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_long_epoch_is_told_how_long_all_will_take(clock: Clock, capsys: pytest.CaptureFixture[str]):
    """From its first steps but the very first, which compiles; once."""
    display = TrainingDisplay()
    display.stage("joint", 10, 60, 100)
    assert lines(capsys) == ["joint: 10 epochs of 60 batches"]
    clock.now += 50
    display.step(16)
    for _ in range(3):
        assert lines(capsys) == []
        clock.now += 8
        display.step(16)
    assert lines(capsys) == ["  2 pairs/s so far, about 1:06:08 left in this stage"]
    clock.now += 100
    display.step(16)
    assert lines(capsys) == []


def test_short_epochs_speak_for_themselves(clock: Clock, capsys: pytest.CaptureFixture[str]):
    display = TrainingDisplay()
    display.stage("joint", 1, 1, 0)
    assert lines(capsys) == ["joint: 1 epoch of 1 batch"]
    display.step(16)
    display.epoch({"epoch": 1, "epochs": 1, "networks": {}, "losses": {}, "seconds": 5.0, "pairs_per_s": 3.2})
    clock.now += 60
    display.step(16)
    assert [line for line in lines(capsys) if "so far" in line] == []
