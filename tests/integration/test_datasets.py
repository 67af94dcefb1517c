"""`edgeda datasets` and data sets by name in other commands, as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmark_trees import class_tree, shrink, usps_gz
from tests.conftest import TINY, Edgeda


@pytest.fixture(autouse=True)
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEDA_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "120")


def test_list(command: Edgeda):
    ran = command("datasets", "list")
    assert ran.code == 0
    rows = [line.split() for line in ran.out.splitlines()[2:9]]
    assert [row[0] for row in rows] == [
        "office31", "officehome", "imageclef", "visda2017", "mnist-full", "usps", "svhn",
    ]  # fmt: skip
    assert " ".join(rows[0]) == "office31 amazon 2817, dslr 498, webcam 795 31 4110 no"
    assert "office31: Saenko et al., ECCV 2010, https://" in ran.out, "where to get it"
    assert "looked for in the folder data." in ran.out
    assert "Always there (extra `data`): mnist, mnist-test, " in ran.out
    class_tree(Path("data/office31/dslr"), ("mug", "pen"))
    assert "in part" in command("datasets", "list").out
    ran = command("datasets", "list", "--json")
    office = ran.json["data_sets"][0]
    assert [domain["here"] for domain in office["domains"]] == [False, True, False]
    assert office["images"] == 4110


def test_check(command: Edgeda):
    ran = command("datasets", "check")
    assert ran.code == 2
    assert "no data set is in the folder data; `edgeda datasets list`" in ran.error
    class_tree(Path("elsewhere/office31/dslr"), ("mug", "pen"))
    ran = command("datasets", "check", "office31", "--root", "elsewhere")
    assert ran.code == 2
    assert "error: office31:amazon is not there; and " in ran.error
    (row,) = [line for line in ran.out.splitlines() if line.startswith("office31:dslr")]
    assert row.split()[1:6] == ["2", "498", "2", "of", "31"]
    ran = command("datasets", "check", "--root", "elsewhere", "--json")
    assert ran.code == 2
    assert "office31:dslr has 2 images, 498 are published" in ran.json["problems"]
    assert len(ran.json["domains"][1]["empty_classes"]) == 29
    assert command("datasets", "check", "office32").error.endswith("did you mean 'office31'?")


def test_prepare_then_check_then_use(command: Edgeda, monkeypatch: pytest.MonkeyPatch):
    shrink(monkeypatch, "usps", 20)
    for name in ("zip.train.gz", "zip.test.gz"):
        usps_gz(Path("download") / name, [*range(10)] * 2, np.zeros((20, 256)))
    ran = command("datasets", "prepare", "usps", "--from", "download", "--root", "sets", "--json")
    assert ran.code == 0, ran.err
    assert [part["images"] for part in ran.json["domains"]] == [20, 20]
    assert sorted(path.name for path in Path("sets/usps").iterdir()) == ["zip.test.gz", "zip.train.gz"]
    assert command("datasets", "prepare", "usps", "--from", "download", "--root", "sets").error == (
        "error: sets/usps/zip.train.gz exists already; --overwrite replaces it"
    )  # fmt: skip
    monkeypatch.setenv("EDGEDA_DATA", "sets")
    ran = command("datasets", "check")
    assert ran.code == 0, ran.err
    assert ran.out.count("as published") == 2
    assert ran.err == ""


def test_adapt_on_domains_by_name(edgeda: Edgeda, tmp_path: Path):
    for domain in ("amazon", "webcam"):
        class_tree(tmp_path / "data" / "office31" / domain / "images", ("bike", "mug", "pen"), each=3)
    arguments = ["--source", "office31:amazon", "--target", "office31:webcam", "--target-test", "office31:webcam"]
    alone = ["--method", "source-only", "--epochs", 1, "--set", "data.source_holdout=0"]
    ran = edgeda("adapt", *arguments, *TINY, *alone, "--out", "run", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert ran.json["source"] == "office31:amazon"
    assert ran.json["classes"] == ["bike", "mug", "pen"]
    said = [line for line in ran.err.splitlines() if "are published" in line]
    assert [line.split(" images,")[0] for line in said] == [
        "warning: office31:amazon has 9", "warning: office31:webcam has 9",
    ], "one line for each domain, though webcam is opened twice"  # fmt: skip


def test_adapt_on_a_data_set_that_is_not_here(command: Edgeda):
    ran = command("adapt", "--source", "officehome:Art", "--target", "officehome:Clipart", "--out", "run")
    assert ran.code == 2
    assert "officehome:Art is not there" in ran.error
    assert "hemanthdv" in ran.error
    assert not Path("run").exists()


def test_the_commands_need_no_torch():
    code = (
        "import sys, edgeda.cli_datasets, edgeda.data.checks, edgeda.data.prepare, edgeda.report.datasets\n"
        "print(*sorted({'torch', 'sklearn', 'scipy', 'mlxtend', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
