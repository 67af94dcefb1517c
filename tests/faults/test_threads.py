"""An error in a thread ends the command as it would on the main thread: it is said, and nobody waits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import Site

ENDS = {
    "OSError": (2, "error: Input/output error while "),
    "MemoryError": (2, "error: not enough memory for what was asked; ask for less"),
    "SystemExit": (7, ""),
    "RuntimeError": (1, "error: internal error: RuntimeError: broken (a bug; --debug shows the traceback)"),
}
PLACES = {
    "main thread": ("edgeda.data.batches:PairedBatches.get", 3, ["train.prefetch=0"]),
    "batches": ("edgeda.data.batches:PairedBatches.get", 3, ["train.prefetch=2"]),
    "decoding": ("edgeda.data.images:square_pixels", 9, ["data.cache_gb=0"]),
    "decoding into the cache": ("edgeda.data.images:square_pixels", 9, ["data.input_size=40"]),
    "decoding as used": ("edgeda.data.squares:square_pixels", 200, ["train.prefetch=2", "data.decode_ahead=1"]),
}


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.parametrize("place", PLACES)
def test_an_error_in_a_thread_of_adapt(site: Site, tmp_path: Path, place: str, error: str):
    function, at, settings = PLACES[place]
    words = [word for setting in settings for word in ("--set", setting)]
    ended = site.driver.run(*site.adapt(tmp_path / "run"), *words, breaks=(function, at, error))
    code, said = ENDS[error]
    assert ended.code == code, ended.err
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert [line[: len(said)] for line in errors] == [said] * bool(said), ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("error", ENDS)
def test_an_error_in_a_thread_of_predict(site: Site, tmp_path: Path, error: str):
    ended = site.driver.run(*site.predict(tmp_path / "saved"), breaks=("edgeda.runtime.pipeline:decoded", 5, error))
    code, said = ENDS[error]
    assert (ended.code, ended.line[: len(said)], "Traceback" in ended.err) == (code, said, False), ended.err
