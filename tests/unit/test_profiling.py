"""Latency on a clock that the test turns, what a machine tells of itself, rows that users read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeda.errors import InputError, MissingExtra
from edgeda.models import Architecture, NetworkCard, build_network, save_network
from edgeda.profiling import profile_model
from edgeda.profiling.latency import cpu_stall_us, measure_latency, summarize
from edgeda.profiling.machine import compute_threads, cpu_flags, machine, machine_line, usable_threads
from edgeda.profiling.subjects import noise
from edgeda.runtime.preprocessing import Preprocessing
from tests.onnx_models import SMALL_MACS, small_classifier


class Clock:
    """A clock that only moves when something is done."""

    def __init__(self) -> None:
        self.now = 0
        self.calls = 0

    def __call__(self) -> int:
        return self.now

    def work(self, *durations_ms: float) -> Callable[[], None]:
        """A call that takes these durations, one after the other, then again."""

        def run() -> None:
            self.now += int(durations_ms[self.calls % len(durations_ms)] * 1e6)
            self.calls += 1

        return run


# latency


def test_percentiles_of_1_to_100_ms_by_nearest_rank() -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(1.0, 101.0)).tolist()
    latency = summarize(shuffled)
    assert (latency.n, latency.min_ms, latency.mean_ms, latency.median_ms) == (100, 1, 50.5, 50.5)
    assert (latency.p90_ms, latency.p95_ms, latency.p99_ms) == (90, 95, 99)


def test_percentiles_of_few_durations_are_durations_that_occurred() -> None:
    latency = summarize([5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0])
    assert (latency.median_ms, latency.p90_ms, latency.p99_ms) == (4, 7, 7)  # ceil(0.9 * 7) = 7
    alone = summarize([3.0])
    assert (alone.median_ms, alone.p90_ms, alone.p99_ms) == (3, 3, 3)


def test_every_call_is_timed_by_itself_after_the_warm_up() -> None:
    clock = Clock()
    latency = measure_latency(clock.work(10, 30), warmup_ms=200, budget_s=1, clock_ns=clock, stall_us=lambda: None)
    assert clock.calls == 10 + 50  # 200 ms and 1 s of calls that take 20 ms on average
    assert (latency.n, latency.min_ms, latency.median_ms, latency.p90_ms) == (50, 10, 20, 30)
    assert latency.images_per_s(batch=4) == pytest.approx(200)
    assert latency.clean is None


def test_a_slow_model_is_still_called_min_runs_times_and_a_fast_one_max_runs() -> None:
    clock = Clock()
    slow = measure_latency(clock.work(500), warmup_ms=0, budget_s=1, clock_ns=clock, stall_us=lambda: None)
    assert (slow.n, clock.calls) == (20, 21)
    fast = measure_latency(clock.work(0.01), budget_s=1, max_runs=30, clock_ns=clock, stall_us=lambda: None)
    assert fast.n == 30


@pytest.mark.parametrize(("stalled_us", "pressure", "clean"), [(20_000, 0.02, True), (400_000, 0.4, False)])
def test_cpu_pressure_is_the_share_of_the_measurement(stalled_us: int, pressure: float, clean: bool) -> None:
    clock, totals = Clock(), iter([7, 7 + stalled_us])
    latency = measure_latency(clock.work(10), budget_s=1, clock_ns=clock, stall_us=lambda: next(totals))
    assert latency.pressure == pytest.approx(pressure)
    assert latency.clean is clean


def test_pressure_file(tmp_path: Path) -> None:
    file = tmp_path / "cpu"
    assert cpu_stall_us(file) is None
    file.write_text("some avg10=5.72 avg60=11.28 avg300=22.50 total=173473420\nfull avg10=0.00 total=1\n")
    assert cpu_stall_us(file) == 173473420


@pytest.mark.parametrize("budget_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_makes_no_sense_is_refused_before_anything_runs(budget_s: float) -> None:
    clock = Clock()
    with pytest.raises(InputError, match="budget"):
        measure_latency(clock.work(1), budget_s=budget_s, clock_ns=clock)
    assert clock.calls == 0


# machine


def fake_machine(root: Path) -> Path:
    """Two sockets of two cores, hyper-threaded: four cores, eight logical CPUs."""
    cpu = "processor\t: {}\nmodel name\t: Test CPU @ 2 GHz\nphysical id\t: {}\ncore id\t\t: {}\nflags\t\t: avx2 fma\n"
    described = "\n".join(cpu.format(i, i // 4, i % 2) for i in range(8))
    files = {
        "proc/cpuinfo": described,
        "proc/meminfo": "MemTotal:       7812500 kB\nMemFree: 1 kB\n",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\x00",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_a_machine_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = machine(fake_machine(tmp_path))
    assert (found["cpu"], found["cores"], found["memory_gb"]) == ("Test CPU @ 2 GHz", 4, 8.0)
    assert (found["jetson"], found["governor"]) == ("NVIDIA Jetson Orin Nano Developer Kit", "schedutil")
    assert found["gpus"] == []
    assert cpu_flags(tmp_path) == {"avx2", "fma"}
    assert 1 <= compute_threads(tmp_path) <= 4
    line = machine_line(found)
    assert line.startswith("NVIDIA Jetson Orin Nano")
    assert "8 GB" in line
    assert "schedutil" in line


def test_omp_num_threads_is_a_limit_not_a_wish(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert usable_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert usable_threads() == len(os.sched_getaffinity(0))


def test_a_machine_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = machine(tmp_path)
    assert (found["memory_gb"], found["governor"], found["jetson"]) == (None, None, None)
    assert found["cores"] >= 1
    assert cpu_flags(tmp_path) == frozenset()
    assert "None" not in machine_line(found)


def test_gpus_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA T4, 550.1, 15360 MiB'\necho 'NVIDIA T4, 550.1, 15360 MiB'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine()["gpus"] == [{"name": "NVIDIA T4", "driver": "550.1", "memory": "15360 MiB"}] * 2
    assert "2 x NVIDIA T4" in machine_line()
    command.write_text("#!/bin/sh\nexit 9\n")
    assert machine()["gpus"] == []


# profile_model


def test_an_onnx_file_in_both_engines(tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "small.onnx")
    rows = profile_model(str(path), batch_sizes=(1, 4), threads=1, budget_s=0.01)
    assert [(row.engine, row.batch) for row in rows] == [
        ("onnxruntime", 1),
        ("onnxruntime", 4),
        ("openvino", 1),
        ("openvino", 4),
    ]
    for row in rows:
        assert (row.model, row.input_size, row.threads) == ("small.onnx", 16, 1)
        assert row.gmacs is not None
        assert round(row.gmacs * 1e9) == SMALL_MACS
        assert row.size_mb == pytest.approx(path.stat().st_size / 1e6)
        assert row.runs >= 20
        assert row.median_ms is not None
        assert row.p90_ms is not None
        assert row.p99_ms is not None
        assert 0 < row.median_ms <= row.p90_ms <= row.p99_ms
        assert row.note == ""


def test_an_engine_that_is_not_there_is_named_unless_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(small_classifier(tmp_path / "small.onnx"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    first, second = profile_model(path, threads=1, budget_s=0.01)
    assert first.median_ms is not None
    assert (second.engine, second.median_ms, second.runs) == ("openvino", None, 0)
    assert "pip install 'edgeda[openvino]'" in second.note
    with pytest.raises(MissingExtra, match="openvino"):
        profile_model(path, engines=["onnxruntime", "openvino"], threads=1, budget_s=0.01)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match="onnxruntime"):
        profile_model(path, threads=1, budget_s=0.01)


def test_without_the_onnx_package_a_file_is_timed_but_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(small_classifier(tmp_path / "small.onnx"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    (row,) = profile_model(path, engines=["onnxruntime"], threads=1, budget_s=0.01)
    assert row.median_ms is not None
    assert row.gmacs is None
    assert "not known" in row.note


def test_a_device_without_torch_profiles_an_onnx_file(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'timm', 'fvcore', 'safetensors']))\n"
        "import edgeda.doctor, edgeda.report.compare\n"
        "from edgeda.profiling import profile_model\n"
        "from edgeda.errors import MissingExtra\n"
        "print(profile_model(sys.argv[1], engines=['onnxruntime'], threads=1, budget_s=0.01)[0].engine)\n"
        "try: profile_model('r18')\n"
        "except MissingExtra as error: print(error)\n"
    )
    path = small_classifier(tmp_path / "small.onnx")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    engine, missing = done.stdout.splitlines()
    assert engine == "onnxruntime"
    assert missing.endswith("pip install 'edgeda[train]'")


def test_outputs_that_are_not_finite_are_said(tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "small.onnx", bias=float("nan"))
    (row,) = profile_model(str(path), engines=["onnxruntime"], threads=1, budget_s=0.01)
    assert "not finite" in row.note


def test_a_run_is_its_student_and_its_exports(tmp_path: Path) -> None:
    run = tmp_path / "night"
    (run / "exports").mkdir(parents=True)
    (run / "recipe.yaml").write_text("{}")
    network, _ = build_network(Architecture("resnet10t", 5))
    card = NetworkCard(network.architecture, tuple("abcde"), Preprocessing(32))
    save_network(run / "student.safetensors", network.state_dict(), card)
    small_classifier(run / "exports" / "student.onnx")
    kit = run / "exports" / "python-kit"  # what `bundle` makes beside it holds a copy
    kit.mkdir()
    small_classifier(kit / "model.onnx")
    (kit / "bundle.json").write_text("{}")
    rows = profile_model(str(run), threads=1, budget_s=0.01)
    assert [(row.model, row.engine) for row in rows] == [
        ("night/student", "torch"),
        ("night/student.onnx", "onnxruntime"),
        ("night/student.onnx", "openvino"),
    ]
    student = rows[0]
    assert (student.input_size, student.precision) == (32, "fp32")
    assert student.params_m == pytest.approx(sum(p.numel() for p in network.parameters()) / 1e6)
    assert student.size_mb == pytest.approx((run / "student.safetensors").stat().st_size / 1e6)


def test_a_backbone_name_has_random_weights_and_runs_in_torch_only() -> None:
    (row,) = profile_model("resnet10t", classes=7, input_size=32, threads=1, budget_s=0.01)
    assert (row.model, row.engine, row.input_size) == ("resnet10t", "torch", 32)
    assert row.params_m is not None
    assert row.size_mb == pytest.approx(4 * row.params_m, rel=0.01)
    assert "random weights" in row.note
    with pytest.raises(InputError, match="runs in torch, not in openvino"):
        profile_model("r18", engines=["openvino"])


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("r17", {}, "did you mean 'r18'"),
        ("missing.onnx", {}, "no such model"),
        ("some/where", {}, "no such model"),
        ("r18", {"engines": ["onnxrt"]}, "did you mean 'onnxruntime'"),
        ("r18", {"batch_sizes": (0,)}, "batch sizes"),
        ("r18", {"batch_sizes": ()}, "batch sizes"),
        ("r18", {"input_size": 0}, "at least 1"),
        ("r18", {"engines": []}, "no engine"),
    ],
)
def test_requests_that_make_no_sense(model: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        profile_model(model, **options)  # type: ignore[arg-type]


def test_the_noise_is_normalized_images_and_the_same_every_time() -> None:
    images = noise(2, (3, 8, 8))
    assert (images.shape, images.dtype) == ((2, 3, 8, 8), np.float32)
    assert -2 <= images.min() < -1.8
    assert 1.8 < images.max() <= 2
    assert (images == noise(2, (3, 8, 8))).all()
