"""Tables as a terminal shows them, and what a comparison concludes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeda.artifacts import RunDirectory
from edgeda.errors import InputError
from edgeda.models import Architecture, NetworkCard, build_network, save_network
from edgeda.profiling import Profile
from edgeda.report.compare import accuracy, compare_runs, compare_text, conclusion
from edgeda.report.profiles import PROFILE_COLUMNS, caveats, profile_text, shown_columns
from edgeda.report.summary import export_text
from edgeda.report.tables import Column, format_value, markdown_table, text_table
from edgeda.runtime.preprocessing import Preprocessing
from tests.onnx_models import small_classifier

# tables


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (False, "no"),
        (7, "7"),
        (12345, "12345"),
        (4.1115, "4.11"),
        (25.557, "25.6"),
        (123.456, "123"),
        (99.96, "100"),
        (1234.5, "1234"),
        (0.0123456, "0.0123"),
        (0.0, "0"),
        (-0.5, "-0.500"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        ([1, 8], "1, 8"),
        ([], "-"),
    ],
)
def test_values_get_sensible_digits(value: object, text: str) -> None:
    assert format_value(value) == text


def test_decimals_are_kept_where_asked_for() -> None:
    assert format_value(70.0, 1) == "70.0"
    assert format_value(8.349, 2) == "8.35"


COLUMNS = (Column("name", "model"), Column("ms", "median", "ms"), Column("share", "target", "%", 1))
ROWS = [{"name": "r18", "ms": 1.666, "share": 70.0}, {"name": "r50", "ms": 123.4, "share": None}]


def test_text_table_aligns_numbers_on_the_right_under_their_units() -> None:
    lines = text_table(ROWS, COLUMNS).split("\n")
    assert lines[0].split() == ["median", "target"]
    assert lines[1].split() == ["model", "ms", "%"]
    assert lines[3].split() == ["r18", "1.67", "70.0"]
    assert lines[4].split() == ["r50", "123", "-"]
    assert len({len(line) for line in (lines[0], lines[1], lines[3], lines[4])}) == 1


def test_markdown_table() -> None:
    assert markdown_table([{**ROWS[0], "name": "a|b"}], COLUMNS).split("\n") == [
        "| model | median (ms) | target (%) |",
        "| --- | ---: | ---: |",
        "| a\\|b | 1.67 | 70.0 |",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert "median" in text_table([], COLUMNS)
    assert markdown_table([], COLUMNS).count("\n") == 1


def test_square_brackets_are_text_not_style() -> None:
    assert "pip install 'edgeda[cpu]'" in text_table([{"a": "pip install 'edgeda[cpu]'"}], [Column("a", "a")])


def profile(**changed: Any) -> Profile:
    """A measured row."""
    measured: dict[str, Any] = {
        "model": "runs-of-a-long-name/int8/student.onnx",
        "engine": "onnxruntime",
        "batch": 1,
        "precision": "fp32",
        "input_size": 224,
        "gmacs": 4.1115,
        "gflops": 8.223,
        "params_m": 25.557,
        "size_mb": 102.3,
        "median_ms": 85.52,
        "p90_ms": 96.51,
        "p99_ms": 1036.4,
        "images_per_s": 11.59,
        "runs": 20,
        "threads": 2,
        "pressure": 0.01,
        "clean": True,
    }
    return Profile(**{**measured, **changed})


@pytest.mark.parametrize("width", [80, 100])
def test_a_profile_fits_its_width_with_every_number_whole(width: int) -> None:
    rows = [profile().to_dict(), profile(engine="openvino").to_dict()]
    table = text_table(rows, shown_columns(rows, PROFILE_COLUMNS), width)
    assert max(map(len, table.split("\n"))) <= width
    for whole in ("onnxruntime", "openvino", "4.11", "25.6", "102", "85.5", "96.5", "1036", "11.6"):
        assert whole in table.split()
    assert "runs-of-a-long-name/int8/student.onnx".startswith(table.split("\n")[3].split()[0])


def test_under_a_profile_are_what_is_missing_and_the_machine_and_the_rest_on_request() -> None:
    note = "needs openvino; pip install 'edgeda[openvino]'"
    rows = [
        *(profile(model=name, load_ms=12.0, single_stream_p90_ms=96.51, jitter_mad_ms=1.0) for name in "abc"),
        *(Profile(name, "openvino", 1, note=note) for name in "ab"),
    ]
    table, notes = profile_text(rows, 100).split("\n\n")
    assert len(table.split("\n")) == 3 + len(rows)
    missing, machine, more = notes.split("\n")
    assert missing == f"a, b in openvino: {note}"
    assert machine.startswith("20 calls a row with one 224 px image on 2 threads; machine: ")
    assert more.endswith(": --verbose")
    verbose = profile_text(rows, 100, verbose=True)
    for words in ("a: 4.11 GMACs = 8.22 GFLOPs per image at 224 px", "b in onnxruntime: loads in 12.0 ms",
                  "c in onnxruntime: in the manner of MLPerf", "jitter (MAD) up to 1.2% of the median"):  # fmt: skip
        assert words in verbose
        assert words not in notes
    assert "not clean" not in verbose


def test_where_a_table_has_no_room_the_memory_is_left_to_verbose() -> None:
    rows = [profile(batch=batch, peak_memory_mb=150.0) for batch in (1, 8)]
    narrow, wide = (profile_text(rows, width).split("\n\n")[0] for width in (80, 100))
    assert max(map(len, narrow.split("\n"))) <= 80
    assert ("memory" in narrow, "memory" in wide) == (False, True)


def test_a_column_that_says_the_same_in_every_row_is_left_out() -> None:
    def titles(*rows: Profile) -> list[str]:
        return [column.title for column in shown_columns([row.to_dict() for row in rows], PROFILE_COLUMNS)]

    assert not {"batch", "streams", "memory", "energy"} & set(titles(profile(), profile()))
    assert {"batch", "memory"} <= set(titles(profile(peak_memory_mb=150.0), profile(batch=8)))


def test_a_busy_machine_is_said_once_with_the_worst_share() -> None:
    rows = [profile(pressure=share, clean=share <= 0.05).to_dict() for share in (0.3, 0.01, 0.62)]
    (line,) = caveats(rows)
    assert line.startswith("not clean: in 2 of 3 rows")
    assert "62%" in line


@pytest.mark.parametrize(
    ("clean", "said"), [([None, None], False), ([True, None], False), ([True, False], True), ([None, False], True)]
)
def test_other_programs_are_only_blamed_for_a_latency_where_they_were_seen(
    clean: list[bool | None], said: bool
) -> None:
    manifest = {
        "size_mb": 1.0, "precision": "fp32", "opset": 20, "batch": [1, None], "layout": "float32 NCHW",
        "output": "logits", "quantization": None, "parity": {"images": 8, "images_from": "target images"},
    }  # fmt: skip
    table = [{"artifact": "onnx", "errors_of": "logits", "measure": "accuracy", "clean": known} for known in clean]
    made = [{"path": "p", "manifest": manifest}]
    text = export_text({"artifacts": made, "manifest": manifest, "path": "p", "table": table})
    assert ("latencies are not clean" in text) is said


# comparison


def rows_of(
    student: float | None, teacher: float | None, source_only: float | None, gmacs: tuple[float, float] = (1.8, 4.14)
) -> list[dict[str, Any]]:
    """Rows of a comparison: networks in torch, one export."""
    costs = {"student": (gmacs[0], 20.0), "teacher": (gmacs[1], 50.0), "source_only": (gmacs[0], 20.0)}
    target = {"student": student, "teacher": teacher, "source_only": source_only}
    rows = [
        {"role": role, "target_accuracy": target[role], **profile(model=role, engine="torch").to_dict()}
        | {"gmacs": costs[role][0], "median_ms": costs[role][1]}
        for role in costs
    ]
    return [*rows, {"role": "export", **profile(model="student.onnx", median_ms=5.0).to_dict()}]


def test_the_conclusion_is_derived_from_the_numbers() -> None:
    assert conclusion(rows_of(71.0, 72.2, 58.7)) == (
        "the adapted student is 12.3 points above the source-only student on the target and 1.2 points below the "
        "teacher; the student takes 2.30x fewer GMACs than the teacher; fastest here: student.onnx in "
        "onnxruntime, 5.00 ms an image, 10.0x faster than the teacher in torch."
    )


def test_a_student_that_lost_is_told_so() -> None:
    said = conclusion(rows_of(50.0, 50.02, 58.7, gmacs=(4.0, 2.0)))
    assert "8.7 points below the source-only student on the target (keep the source-only student)" in said
    assert "level with the teacher" in said
    assert "2.00x more GMACs" in said


def test_what_is_not_known_is_not_claimed() -> None:
    said = conclusion(rows_of(None, None, None))
    assert said.startswith("accuracy on the target is not known")
    assert "points" not in said
    assert "reaches 70.0 % on the target;" in conclusion(rows_of(70.0, None, None))
    assert conclusion([]) == "accuracy on the target is not known, as the run had no target labels."


def test_accuracies_of_a_summary() -> None:
    summary = {"accuracy": {"student": {"target": {"last": 1.0, "selected": 2, "oracle": 3.0}, "source": 4.0}}}
    assert accuracy(summary, "student", "target") == 2
    assert accuracy(summary, "student", "source") == 4
    assert accuracy(summary, "teacher", "target") is None
    assert accuracy({"accuracy": {"student": {"target": None, "source": None}}}, "student", "target") is None
    assert accuracy({}, "student", "target") is None


def finished_run(path: Path) -> RunDirectory:
    """A run of tiny networks without a teacher's weights and without target labels."""
    path.mkdir()
    known: dict[str, Any] = {"target": {"last": None, "selected": None, "oracle": None}, "source": 90.0}
    unknown = {**known, "source": None}
    accuracies = {"student": known, "source_only": {**known, "source": 91.5}, "teacher": unknown}
    (path / "summary.json").write_text(json.dumps({"accuracy": accuracies}))
    network, _ = build_network(Architecture("resnet10t", 3))
    for role in ("student", "source_only"):
        card = NetworkCard(network.architecture, ("a", "b", "c"), Preprocessing(32), role)
        save_network(path / f"{role}.safetensors", network.state_dict(), card)
    return RunDirectory(path)


def test_comparing_a_run(tmp_path: Path) -> None:
    compared = compare_runs([finished_run(tmp_path / "run")], seconds=0.01, threads=1)
    assert [(row["role"], row["source_accuracy"]) for row in compared["rows"]] == [
        ("student", 90.0),
        ("source_only", 91.5),
    ]
    for row in compared["rows"]:
        assert row["target_accuracy"] is None
        assert row["median_ms"] > 0
    assert compared["conclusion"].startswith("accuracy on the target is not known")
    json.dumps(compared, allow_nan=False)
    text = compare_text(compared)
    assert "source-only" in text
    assert compared["conclusion"] in text
    assert max(map(len, text.split("\n\n")[0].split("\n")[1:])) <= 80, "the first line is a path of any length"


def judged(run: RunDirectory, **more: Any) -> RunDirectory:
    """The same run with more in its summary."""
    path = run.path / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return run


def test_a_source_only_student_that_runs_share_is_not_shipped_where_one_of_them_has_a_better_one(
    tmp_path: Path,
) -> None:
    kept = judged(finished_run(tmp_path / "kept"), verdict={"ship": "source-only"})
    adapted = judged(finished_run(tmp_path / "adapted"), verdict={"ship": "adapted"})
    shutil.copy(kept.weights("source_only"), adapted.weights("source_only"))
    compared = compare_runs([kept, adapted], budget_ms=1e6, seconds=0.005, threads=1)
    assert [row["model"] for row in compared["rows"]] == [
        "kept: student", "kept: source-only student", "adapted: student"
    ]  # fmt: skip
    assert compared["rows"][1]["also_of"] == [str(adapted.path)]
    assert compared["ship"]["row"] == 2
    assert compare_runs([kept], budget_ms=1e6, seconds=0.005, threads=1)["ship"]["row"] == 1


def test_exports_are_shipped_by_what_is_known_of_them(tmp_path: Path) -> None:
    known = {"target": {"last": 60.0, "selected": 60.0, "oracle": 60.0}, "source": 90.0}
    run = finished_run(tmp_path / "run")
    run.exports.mkdir()
    path = small_classifier(run.exports / "student.onnx")
    judged(run, method="source-only", verdict={"ship": "source-only"})
    compared = compare_runs([run], budget_ms=1e6, seconds=0.005, threads=1)
    shipped = compared["rows"][compared["ship"]["row"]]
    assert shipped["model"] == "student.onnx", "the only student of such a run, and faster than in torch"
    judged(run, method="uda", accuracy={"student": known, "source_only": known}, target_test="camera")
    compared = compare_runs([run], budget_ms=1e6, seconds=0.005, threads=1)
    assert compared["rows"][compared["ship"]["row"]]["engine"] == "torch"
    assert f"(edgeda evaluate {path} --data camera tells)" in compare_text(compared)


def test_weights_that_are_gone_do_not_hide_the_rest(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    run.weights("source_only").unlink()
    compared = compare_runs([run], seconds=0.01, threads=1)
    gone = compared["rows"][1]
    assert (gone["source_accuracy"], gone["median_ms"]) == (91.5, None)
    assert "no such file" in gone["note"]
    run.weights("student").unlink()
    with pytest.raises(InputError, match="no such file"):
        compare_runs([run], seconds=0.01)


def test_a_run_that_is_not_finished_or_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not finished"):
        compare_runs([RunDirectory(tmp_path)])
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="nothing to compare"):
        compare_runs([RunDirectory(tmp_path)])
