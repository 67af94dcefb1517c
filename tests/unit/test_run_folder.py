"""Who may write a run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeda.errors import InputError
from edgeda.recipe_file import load_recipe
from edgeda.run_folder import claim, is_training, locked


@pytest.mark.parametrize(("resume", "overwrite"), [(True, False), (False, True), (False, False)])
def test_a_run_in_training_is_refused_before_anything_is_read(tmp_path: Path, resume: bool, overwrite: bool):
    recipe, run = load_recipe("digits"), tmp_path / "run"
    run.mkdir()
    with locked(run):
        assert is_training(run)
        with pytest.raises(InputError, match=r"another process is training in .*run; choose another --out or wait"):
            claim(run, recipe, resume, overwrite)
        with pytest.raises(InputError, match="another process is training"), locked(run):
            pass
    assert not is_training(run)
    assert claim(run, recipe, resume, overwrite) == run


def test_a_new_run_takes_the_first_free_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("digits")
    assert claim(None, recipe, False, False) == Path("runs/digits-1")
    Path("runs/digits-1").mkdir(parents=True)
    assert claim(None, recipe, False, False) == Path("runs/digits-2")
