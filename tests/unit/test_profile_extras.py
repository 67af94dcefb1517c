"""What `edgeda profile` measures beside latency: streams, memory, stages, execution; bad requests; its text."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from threading import Barrier

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from edgeda.errors import InputError, MachineError
from edgeda.models import Architecture, NetworkCard, build_network, save_network
from edgeda.profiling import Extras, Profile, find_subjects, profile_model
from edgeda.profiling.child import in_fresh_process, resident_mb
from edgeda.profiling.device import Cargo, job_request
from edgeda.profiling.executed import _read
from edgeda.profiling.latency import cpu_pressure, measure_latency, summarize
from edgeda.profiling.opening import PROVIDERS, Subject, model_files, subject_from, told_apart
from edgeda.profiling.session import profile
from edgeda.profiling.stages import STAGES, measure_stages
from edgeda.report.profiles import _samples, result_text
from edgeda.runtime.manifest import METADATA_KEY, RAW_NHWC, Manifest
from edgeda.runtime.preprocessing import Preprocessing
from tests.onnx_models import SMALL_MACS, small_classifier


def test_jitter_is_the_median_absolute_deviation() -> None:
    assert summarize([1.0, 2.0, 3.0, 4.0, 100.0]).jitter_mad_ms == 1.0
    assert summarize([2.0, 2.0, 2.0]).jitter_mad_ms == 0.0


def test_streams_really_run_at_once_and_their_rate_is_calls_over_wall_time() -> None:
    both = Barrier(2, timeout=20)
    warm = {"up": True}

    def call() -> None:
        if not warm["up"]:
            both.wait()  # passes only while the other stream is in its call too

    found = measure_latency(
        call, call, warmup_ms=0, budget_s=1e-6, min_runs=3, max_runs=3, began=lambda: warm.update(up=False)
    )  # fmt: skip
    assert found.n == 6
    assert found.images_per_s(batch=2) == pytest.approx(2 * 6 / found.wall_s)


def test_pressure_of_the_last_ten_seconds(tmp_path: Path) -> None:
    (tmp_path / "cpu").write_text("some avg10=5.72 avg60=11.28 avg300=22.50 total=173473420\n")
    assert cpu_pressure(tmp_path / "cpu") == pytest.approx(0.0572)
    (tmp_path / "cpu").write_text("some nonsense\n")
    assert cpu_pressure(tmp_path / "cpu") is None
    assert cpu_pressure(tmp_path / "gone") is None


def test_everything_of_an_onnx_file_at_once(tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "small.onnx")
    Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(30, 40, 3)).save(tmp_path / "photo.png")
    extras = Extras(streams=(2, 1), memory=True, end_to_end=True, image=tmp_path / "photo.png")
    result = profile(
        [str(path)], batch_sizes=(1, 8), engines=["onnxruntime"], threads=2, seconds=0.02, extras=extras, layers=True,
        estimate_for=["orin-nano"],
    )  # fmt: skip
    json.dumps(result, allow_nan=False)
    rows = {(row["streams"], row["batch"]): row for row in result["rows"]}
    assert list(rows) == [(1, 1), (1, 8), (2, 1), (2, 8)]
    single, query = rows[1, 1], rows[1, 8]
    assert (single["precision"], set(single["providers"])) == ("fp32", {"CPUExecutionProvider"})
    assert single["single_stream_p90_ms"] == single["p90_ms"]
    assert query["multi_stream_p99_ms"] == query["p99_ms"]
    assert (single["multi_stream_p99_ms"], rows[2, 1]["single_stream_p90_ms"]) == (None, None)
    assert (single["threads"], rows[2, 1]["threads"]) == (2, 1)
    assert rows[2, 1]["runs"] >= 2 * 20
    for row in (single, query):
        assert row["min_ms"] <= row["median_ms"] <= row["p90_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["peak_memory_mb"] > row["model_memory_mb"] > 0
        assert row["load_ms"] > 0
        assert row["finite"] is True
        assert round(row["gmacs"] * 1e9) == SMALL_MACS
    assert query["peak_memory_mb"] >= single["peak_memory_mb"]
    stages = single["stages"]
    assert (stages["image"], stages["image_width"], stages["image_height"]) == ("photo.png", 40, 30)
    assert all(stages[f"{name}_ms"] > 0 for name in STAGES)
    assert 0 < stages["compute_share"] < 1
    assert query["stages"] is None
    assert sum(layer["macs"] for layer in result["layers"]["small.onnx"]) == SMALL_MACS
    (estimated,) = result["estimates"]
    assert (estimated["device"], estimated["precision"]) == ("orin-nano", "fp32")
    (checked,) = result["check"]["rows"]
    assert checked["measured_ms"] == single["median_ms"]
    text = result_text(result, verbose=True)
    for words in ("SingleStream (p90)", "MultiStream (p99, 8 images a query)", "end to end on photo.png", "peak memory",
                  "lower bound, not a measurement", "x the bound", "where the cost is"):  # fmt: skip
        assert words in text


def test_a_subject_travels_to_another_process(tmp_path: Path) -> None:
    (subject, *_) = find_subjects(str(small_classifier(tmp_path / "small.onnx")))
    assert subject_from(json.loads(json.dumps(subject.to_dict()))) == subject
    gone = Subject("gone", "onnxruntime", str(tmp_path / "gone.onnx"))
    with pytest.raises(MachineError, match=r"no such model.*gone\.onnx"):
        in_fresh_process({"task": "memory", "subject": gone.to_dict(), "threads": 1, "batches": [1]})
    with pytest.raises(MachineError, match="without an answer"):
        in_fresh_process({"task": "dance", "threads": 1})


def test_resident_memory_of_a_status_file(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  250000 kB\nVmRSS:\t  125000 kB\n")
    assert (resident_mb("VmHWM", tmp_path / "status"), resident_mb("VmRSS", tmp_path / "status")) == (256, 128)
    assert resident_mb("VmHWM", tmp_path / "gone") is None


def test_the_type_that_took_most_time_is_what_was_executed() -> None:
    def node(name: str, operator: str, kind: str, microseconds: int, provider: str = "CPUExecutionProvider") -> dict:
        facts = {"op_name": operator, "provider": provider, "input_type_shape": [{kind: [1, 3]}, {"float": [3]}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": facts}

    events = [
        node("a", "QLinearConv", "uint8", 700), node("b", "Gemm", "float", 200), node("c", "Relu", "float", 9000),
        node("d", "Conv", "float16", 50, "CUDAExecutionProvider"), {"cat": "Session", "name": "model_run", "dur": 1},
    ]  # fmt: skip
    found = _read(events)
    assert found.precision == "int8"
    assert found.providers == {"CPUExecutionProvider": 3, "CUDAExecutionProvider": 1}
    assert _read([]).precision is None


def test_a_provider_that_only_claims_to_be_there_is_a_row_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime-gpu on a machine without a GPU lists CUDA, and falls back to the CPU without a word."""
    path = small_classifier(tmp_path / "small.onnx")
    claimed = [PROVIDERS["onnxruntime-cuda"], PROVIDERS["onnxruntime"]]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: claimed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = profile_model(str(path), threads=1, budget_s=0.01)
    assert [row.engine for row in rows] == ["onnxruntime", "onnxruntime-cuda", "openvino"]
    assert rows[0].runs > 0
    assert rows[1].runs == 0
    assert "fell back" in rows[1].note


def with_manifest(path: Path, values: dict) -> Path:
    """An .onnx file whose manifest is `values`."""
    model = onnx.load(small_classifier(path))
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(values)
    path.write_bytes(model.SerializeToString())
    return path


def test_models_of_a_later_format(tmp_path: Path) -> None:
    path = with_manifest(tmp_path / "later.onnx", {"format": 99})
    with pytest.raises(InputError, match="format 99; this edgeda reads up to"):
        profile_model(str(path), budget_s=0.01)
    model = onnx.load(small_classifier(tmp_path / "opset.onnx"))
    model.ir_version = 9999
    path = tmp_path / "opset.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"cannot load .*opset\.onnx"):
        profile_model(str(path), engines=["onnxruntime"], budget_s=0.01)


def test_a_run_that_is_half_finished_is_what_is_there(tmp_path: Path) -> None:
    run = tmp_path / "night"
    run.mkdir()
    (run / "recipe.yaml").write_text("{}")
    with pytest.raises(InputError, match="finish it with: edgeda adapt --out"):
        find_subjects(str(run))
    network, _ = build_network(Architecture("resnet10t", 5))
    card = NetworkCard(network.architecture, tuple("abcde"), Preprocessing(32), "teacher")
    save_network(run / "teacher.safetensors", network.state_dict(), card)
    assert [subject.model for subject in find_subjects(str(run))] == ["night/teacher"]
    (run / "exports").mkdir()
    small_classifier(run / "exports" / "student.onnx")
    assert [subject.engine for subject in find_subjects(str(run))] == ["torch", "onnxruntime", "openvino"]


def test_files_of_a_model(tmp_path: Path) -> None:
    for name in ("m.onnx", "m.onnx.data", "m.xml", "m.bin", "manifest.json", "other.txt"):
        (tmp_path / name).write_bytes(b"12")
    assert [file.name for file in model_files(tmp_path / "m.onnx")] == ["m.onnx", "m.onnx.data"]
    assert [file.name for file in model_files(tmp_path / "m.xml")] == ["m.xml", "m.bin", "manifest.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--batch-size", "0"), 2, "batch sizes"),
        (("--streams", "0,1"), 2, "streams"),
        (("--streams", "two"), 2, "--streams two"),
        (("--image", "gone.jpg"), 2, "no such image: gone.jpg"),
        (("--estimate", "orin-nanu"), 2, "did you mean 'orin-nano'"),
        (("--estimate", ""), 2, "known: orin-nano"),
        (("--engine", "onnxruntime-cud"), 2, "did you mean 'onnxruntime-cuda'"),
        (("--engine", "onnxruntime-coreml"), 3, "has no CoreMLExecutionProvider"),
        (("--engine", "tensorrt"), 2, "not in tensorrt"),
        (("--device", "orin"), 2, "ssh://user@host"),
        (("--device", "ssh://u@h;id"), 2, "is no device"),
        (("--power",), 3, "no power sensor"),
    ],
)
def test_bad_requests_are_one_line(command, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    path = small_classifier(tmp_path / "small.onnx")
    ran = command("profile", path, "--seconds", 0.01, "--no-memory", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.error


def test_json_of_the_command_carries_everything_and_non_finite_outputs_are_said(command, tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "small.onnx", bias=float("inf"))
    asked = ("--engine", "onnxruntime", "--seconds", 0.01, "--no-memory", "--threads", 1)
    ran = command("profile", path, *asked, "--layers", "--json")
    assert ran.code == 0, ran.err
    assert set(ran.json) == {"rows", "machine", "device", "state", "layers"}
    (row,) = ran.json["rows"]
    assert row["finite"] is False
    assert row["jitter_mad_ms"] >= 0
    assert ran.json["device"] is None
    assert set(ran.json["state"]) == {"pressure_before", "pressure_after", "clean"}
    assert "its outputs are not finite" in command("profile", path, *asked).out


def test_stages_feed_a_model_what_it_takes(tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 40, 3), 9, np.uint8)).save(tmp_path / "photo.png")
    manifest = Manifest(("a", "b"), Preprocessing(16), "tiny", "fp32", (4, 4), layout=RAW_NHWC)
    seen: list[tuple[tuple[int, ...], str]] = []

    class Raw:
        name, precision, input_shape, fixed_batch = "raw", "fp32", (3, 16, 16), 4

        def __init__(self) -> None:
            self.manifest = manifest

        def __call__(self, batch: np.ndarray) -> np.ndarray:
            seen.append((batch.shape, str(batch.dtype)))
            assert (batch[0] == 9).all()
            return np.zeros((len(batch), 2), np.float32)

    assert measure_stages(Raw(), manifest.preprocessing, tmp_path / "photo.png", 0.01)["runs"] > 0
    assert set(seen) == {((4, 16, 16, 3), "uint8")}


def test_rows_that_were_measured_stay_whole_when_a_later_number_of_streams_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, original = [], Subject.open

    def failing(self: Subject, threads: int, count: bool = True) -> object:
        opened.append(threads)
        if len(opened) > 1:
            raise MachineError("no memory")
        return original(self, threads, count)

    monkeypatch.setattr(Subject, "open", failing)
    path = small_classifier(tmp_path / "small.onnx")
    extras = Extras(streams=(1, 2), memory=True)
    rows = profile_model(str(path), engines=["onnxruntime"], threads=2, budget_s=0.01, extras=extras, batch_sizes=(1,))
    assert (rows[0].peak_memory_mb is not None, rows[1].note) == (True, "no memory")


def test_what_was_measured_is_kept_when_the_machines_peaks_are_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(request: object) -> dict:
        raise MachineError("no fresh process could be started: fork")

    monkeypatch.setattr("edgeda.profiling.session.in_fresh_process", gone)
    path = str(small_classifier(tmp_path / "small.onnx"))
    found = profile([path], engines=["onnxruntime"], threads=1, seconds=0.01, estimate_for=["orin-nano"])
    assert (found["rows"][0]["runs"] > 0, len(found["estimates"]), "check" in found) == (True, 1, False)
    assert "peaks are not known: no fresh process" in caplog.text


def two_of_a_name(folder: Path) -> tuple[str, str, list[str]]:
    """Two runs called `night` with an export each, of 16 and 32 px: the runs, and the paths of the exports."""
    exports = [folder / place / "night" / "exports" / "student.onnx" for place in ("a", "b")]
    for export, size in zip(exports, (16, 32), strict=True):
        export.parent.mkdir(parents=True)
        (export.parents[1] / "recipe.yaml").write_text("")
        small_classifier(export, ["batch", 3, size, size])
    first, second = (str(export.parents[1]) for export in exports)
    return first, second, [str(export) for export in exports]


@pytest.mark.parametrize("of_runs", [False, True])
def test_models_of_one_name_keep_layers_and_estimates_of_their_own(
    of_runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {"threads": 1, "fp32_gflops": 10.0, "int8_gops": None, "bandwidth_gb_s": 10.0}
    monkeypatch.setattr("edgeda.profiling.session.in_fresh_process", lambda request: peaks)
    *runs, exports = two_of_a_name(tmp_path)
    found = profile(
        runs if of_runs else exports, engines=["onnxruntime"], threads=1, seconds=0.01, layers=True,
        estimate_for=["orin-nano"],
    )  # fmt: skip
    assert [row["model"] for row in found["rows"]] == exports
    counted = {model: sum(layer["macs"] for layer in layers) for model, layers in found["layers"].items()}
    assert counted == {exports[0]: SMALL_MACS, exports[1]: 4 * (SMALL_MACS - 40) + 40}
    assert [row["model"] for row in found["estimates"]] == exports
    small, large = (row["lower_bound_ms"] for row in found["check"]["rows"])
    assert large > small


def test_models_of_one_name_keep_arithmetic_of_their_own_on_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(url: str, loads: list[Cargo], **asked: object) -> dict:
        request = job_request(loads)
        rows = [Profile(model["label"], "onnxruntime", 1, runs=20, input_size=size).to_dict()
                for model, size in zip(request["models"], (16, 32), strict=True)]  # fmt: skip
        return {"rows": rows, "machine": {}, "pressure_before": None, "pressure_after": None}

    monkeypatch.setattr("edgeda.profiling.session.profile_on", measured)
    *runs, exports = two_of_a_name(tmp_path)
    for models in (runs, exports):
        rows = profile(models, device="ssh://device")["rows"]
        assert [round(row["gmacs"] * 1e9) for row in rows] == [SMALL_MACS, 4 * (SMALL_MACS - 40) + 40]


def test_only_models_that_share_a_name_are_called_by_their_place(tmp_path: Path) -> None:
    twice = [("student.onnx", "x/student.onnx"), ("student.onnx", "x/student.onnx"), ("r18", "r18")]
    assert told_apart(twice) == ["student.onnx", "student.onnx", "r18"]
    shared = [("student.onnx", "a/student.onnx"), ("student.onnx", "b/student.onnx"),
              ("a/student.onnx", "runs/a/exports/student.onnx"), ("r18", "r18")]  # fmt: skip
    assert told_apart(shared) == [place for _, place in shared]


def test_layers_that_cannot_be_counted_are_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[object] = []
    monkeypatch.setattr("edgeda.profiling.session.profile_subjects", lambda *given: measured.append(given))
    (tmp_path / "student.engine").write_bytes(b"engine")
    with pytest.raises(InputError, match=r"name the \.onnx file"):
        profile([str(tmp_path / "student.engine")], threads=1, seconds=0.01, layers=True)
    assert measured == []


def test_an_engines_package_is_imported_before_its_loading_is_timed(tmp_path: Path) -> None:
    (tmp_path / "student.engine").write_bytes(b"engine")
    said = {"package": "nowhere", "version": "1", "gpu": None, "onnx": "x.onnx", "version_compatible": False}
    (tmp_path / "student.engine.json").write_text(json.dumps({"engine": said}))
    with pytest.raises(InputError, match="an engine built by 'nowhere'"):
        Subject("s", "tensorrt", str(tmp_path / "student.engine")).prepare()


def test_threads_of_rows_that_share_them_are_said_as_a_range() -> None:
    row = {"runs": 5, "threads": 2, "batch": 1, "input_size": 32}
    assert _samples([row, {**row, "threads": 1}]) == ["5 calls a row with one 32 px image on 1 to 2 threads"]
    assert _samples([row, {**row, "batch": 8}]) == ["5 calls a row with 32 px images on 2 threads"]
