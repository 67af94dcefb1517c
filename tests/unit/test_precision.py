"""Which precision `auto` takes on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeda import precision
from edgeda.models import Architecture
from edgeda.precision import resolve_precision

NETWORK = Architecture("test_resnet", 3)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The sizes that were timed, with bf16 twice as fast; an empty cache."""
    sizes: list[int] = []

    def seconds(architecture: Architecture, size: int) -> tuple[float, float]:
        sizes.append(size)
        return 2.0, 1.0

    monkeypatch.setenv("EDGEDA_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "_step_seconds", seconds)
    return sizes


@pytest.mark.parametrize(
    ("flags", "chosen", "times"),
    [
        ({"sse2", "avx2"}, "fp32", 0),  # bf16 would be emulated, a minute of waiting for a large network
        ({"fp", "asimd"}, "fp32", 0),
        ({"avx2", "avx512f"}, "bf16", 1),
        ({"asimd", "bf16"}, "bf16", 1),
        (set(), "bf16", 1),  # not told
    ],
)
def test_bf16_is_timed_where_the_cpu_may_be_fast_with_it(
    timed: list[int], monkeypatch: pytest.MonkeyPatch, flags: set[str], chosen: str, times: int
):
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))
    assert resolve_precision("auto", "cpu", NETWORK, 64) == chosen
    assert resolve_precision("auto", "cpu", NETWORK, 64) == chosen
    assert timed == [64] * times, "once, then remembered"
