"""Running an engine: the calls to TensorRT and the CUDA driver, and which engines are refused by name."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeda.artifacts import find_model
from edgeda.errors import InputError, MachineError, MissingExtra
from edgeda.export.engine_builder import build
from edgeda.export.engine_source import read_source
from edgeda.export.tensorrt import EngineOptions, _request
from edgeda.profiling import on_device, profile_model
from edgeda.runtime import Classifier
from edgeda.runtime.backends import TensorRtBackend, cuda, open_backend, read_manifest
from tests.conftest import Edgeda
from tests.fake_tensorrt import VERSIONS, Fake, FakeDriver
from tests.tensorrt_files import CLASSES, SIZE, write_onnx

IMAGES = np.random.default_rng(0).normal(size=(11, 3, SIZE, SIZE)).astype(np.float32)


class Device:
    """A fake GPU with a fake TensorRT, and engines built on it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch
        self.driver = FakeDriver()
        monkeypatch.setattr(cuda, "load_driver", lambda: self.driver)

    def install(self, version: str, dla_cores: int = 0) -> Fake:
        self.fake = Fake(version, dla_cores)
        self._monkeypatch.setitem(sys.modules, self.fake.module.__name__, self.fake.module)
        return self.fake

    def engine(
        self,
        version: str = "10.3.0",
        batch: tuple[int, int, int] | None = (1, 1, 4),
        fixed: int | None = None,
        dla_cores: int = 0,
        **options: object,
    ) -> Path:
        self.install(version, dla_cores)
        gpu = {"name": self.driver.name, "compute_capability": "{}.{}".format(*self.driver.capability)}
        self._monkeypatch.setattr("edgeda.export.engine_builder.gpu", lambda: gpu)
        onnx = write_onnx(self.folder / "student.onnx", "int8", fixed)
        package = "tensorrt_rtx" if version.startswith("rtx") else "tensorrt"
        request = _request(read_source(onnx), "student.engine", EngineOptions(batch=batch, **options), package)
        build(request, self.folder)
        return self.folder / "student.engine"


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(tmp_path, monkeypatch)


def expected(images: np.ndarray, most: int) -> np.ndarray:
    """What the fake engine answers: the mean of each colour, and the size of the batch that it saw."""
    sizes = [min(most, len(images) - most * (index // most)) for index in range(len(images))]
    return np.concatenate([images.mean((2, 3)), np.array(sizes, np.float32)[:, None]], 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_batches_go_through_in_parts_of_the_engine_s_largest(version: str, device: Device) -> None:
    backend = open_backend(device.engine(version))
    np.testing.assert_allclose(backend(IMAGES), expected(IMAGES, 4), rtol=1e-6)
    np.testing.assert_allclose(backend(IMAGES[:1]), expected(IMAGES[:1], 4), rtol=1e-6)
    assert (backend.name, backend.precision, backend.input_shape) == ("tensorrt", "int8", (3, SIZE, SIZE))
    shapes = [call[2][0] for call in device.fake.calls if call[0] == "set_input_shape"]
    assert shapes == [4, 4, 3, 1]


def test_an_engine_of_fixed_batch_takes_whole_batches_only(device: Device) -> None:
    backend = open_backend(device.engine(batch=None, fixed=3))
    np.testing.assert_allclose(backend(IMAGES[:6]), expected(IMAGES[:6], 3), rtol=1e-6)
    with pytest.raises(InputError, match="takes batches of exactly 3 images, got 4"):
        backend(IMAGES[:4])


def test_memory_is_taken_once_and_given_back(device: Device) -> None:
    backend = open_backend(device.engine())
    taken = len(device.driver.held)
    assert taken == 4  # input and output, on the GPU and page-locked
    backend(IMAGES)
    assert len(device.driver.held) == taken
    addresses = [call for call in device.fake.calls if call[0] == "set_tensor_address"]
    assert addresses == [("set_tensor_address", "images"), ("set_tensor_address", "logits")]
    del backend
    assert device.driver.held == {}
    assert device.driver.calls[-1] == "cuDevicePrimaryCtxRelease_v2"


def test_a_call_copies_in_runs_copies_out_in_one_stream_and_waits_once(device: Device) -> None:
    backend = open_backend(device.engine())
    device.driver.calls.clear()
    backend(IMAGES[:2])
    assert device.driver.calls == [
        "cuCtxSetCurrent", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize",
    ]  # fmt: skip
    assert device.fake.calls[-1] == ("execute_async_v3", 0x57)


def test_threads_do_not_disturb_each_other(device: Device) -> None:
    backend = open_backend(device.engine())
    answers: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda at=at: answers.update({at: backend(IMAGES[at : at + 1])})) for at in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, answer in answers.items():
        np.testing.assert_allclose(answer, expected(IMAGES[at : at + 1], 4), rtol=1e-6)
    assert len(answers) == 8


def test_a_classifier_needs_the_engine_and_its_sidecar_only(device: Device) -> None:
    engine = device.engine()
    (device.folder / "student.onnx").unlink()
    classify = Classifier(engine)
    assert classify.classes == CLASSES
    red = np.zeros((SIZE, SIZE, 3), np.uint8)
    red[..., 0] = 255
    # logits are the mean of the normalized colours, and the size of the batch, 1: red is the largest
    assert classify(red)[0].label == CLASSES[0]


def other_version(device: Device) -> str:
    device.install("10.16.1.11")
    return (
        r"was built by TensorRT 10.3.0 for Orin \(compute capability 8.7\), this machine has 10.16.1.11; build it "
        r"again from student.onnx on this device, with build_engine.py or: edgeda export RUN --trt"
    )


def other_gpu(device: Device) -> str:
    device.driver.name, device.driver.capability = "Thor", (11, 0)
    return (
        r"was built by TensorRT 10.3.0 for Orin \(compute capability 8.7\), this machine has a Thor \(compute "
        r"capability 11.0\); build it again from student.onnx"
    )


def other_file(device: Device) -> str:
    (device.folder / "student.engine").write_bytes(b"fake engine {}")
    return "is not the engine that student.engine.json describes"


def empty(device: Device) -> str:
    (device.folder / "student.engine").write_bytes(b"")
    return "is empty; build it again"


def damaged_sidecar(device: Device) -> str:
    (device.folder / "student.engine.json").write_text("{")
    return "student.engine.json is not JSON"


def silent_sidecar(device: Device) -> str:
    path = device.folder / "student.engine.json"
    values = json.loads(path.read_text())
    del values["engine"]
    path.write_text(json.dumps(values))
    return "does not say what built the engine"


def trtexec_by_another_version(device: Device) -> str:
    (device.folder / "student.engine.json").unlink()
    device.install("11.4.0.106")
    return r"TensorRT 11.4.0.106 on Orin .* cannot load .*The engine plan file is of version 10.3.0; build it again"


def no_engine_at_all(device: Device) -> str:
    (device.folder / "student.engine.json").unlink()
    (device.folder / "student.engine").write_bytes(b"something else")
    return r"cannot load .*: Error Code 1: Serialization \(magic tag does not match\); build it again"


@pytest.mark.parametrize(
    "spoil",
    [other_version, other_gpu, other_file, empty, damaged_sidecar, silent_sidecar, trtexec_by_another_version,
     no_engine_at_all],
)  # fmt: skip
def test_an_engine_that_does_not_fit_is_refused_by_name(device: Device, spoil: Callable[[Device], str]) -> None:
    engine = device.engine()
    message = spoil(device)
    with pytest.raises(InputError, match=message) as caught:
        open_backend(engine)
    assert "\n" not in str(caught.value)
    assert device.driver.held == {}


def test_a_version_compatible_engine_runs_on_later_versions_of_its_major_number(device: Device) -> None:
    engine = device.engine("10.3.0", version_compatible=True)
    device.install("10.16.1.11")
    np.testing.assert_allclose(open_backend(engine)(IMAGES[:2]), expected(IMAGES[:2], 4), rtol=1e-6)
    device.install("11.1.0.106")
    with pytest.raises(InputError, match=r"was built by TensorRT 10.3.0 .* this machine has 11.1.0.106"):
        open_backend(engine)


def test_an_engine_for_a_dla_is_loaded_onto_its_core(device: Device) -> None:
    engine = device.engine("11.4.0.106", (4, 4, 4), dla_cores=2, dla_core=1)
    np.testing.assert_allclose(open_backend(engine)(IMAGES[:4]), expected(IMAGES[:4], 4), rtol=1e-6)
    assert device.fake.calls[0] == ("deserialize_cuda_engine", 1)
    device.install("11.4.0.106", dla_cores=1)
    with pytest.raises(MachineError, match=r"student.engine is for DLA core 1, this Orin .* has 1; build it again"):
        open_backend(engine)
    assert device.driver.held == {}
    for core in (-1, True, "1"):
        sidecar = json.loads((device.folder / "student.engine.json").read_text())
        sidecar["engine"]["dla_core"] = core
        (device.folder / "student.engine.json").write_text(json.dumps(sidecar))
        with pytest.raises(InputError, match=r"engine.json does not say what built the engine: .*dla_core"):
            open_backend(engine)
    open_backend(device.engine())
    assert device.fake.calls[0] == ("deserialize_cuda_engine", -1)


def test_a_device_measures_an_engine_in_the_package_that_built_it(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = device.engine("rtx-1.7.1.116")
    request = {"engines": None, "models": [{"label": "student", "path": engine.name}], "image": None, "streams": [1],
               "memory": False, "end_to_end": False, "power": False, "batch_sizes": [1], "threads": 1,
               "budget_s": 0.01}  # fmt: skip
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (row,) = on_device.run(request, device.folder)["rows"]
    assert (row["engine"], row["precision"]) == ("tensorrt", "int8")
    sidecar = device.folder / "student.engine.json"
    sidecar.write_text(sidecar.read_text().replace('"package": "tensorrt_rtx"', '"package": "json"'))
    with pytest.raises(InputError, match="an engine built by 'json' is not one edgeda runs"):
        on_device.run(request, device.folder)
    sidecar.unlink()
    assert on_device.run(request, device.folder)["missing"] == ["tensorrt"]


def test_an_engine_of_trtexec_takes_the_manifest_of_its_onnx_file(device: Device) -> None:
    engine = device.engine()
    (device.folder / "student.engine.json").unlink()
    found = read_manifest(engine)
    assert found is not None
    assert found.classes == CLASSES
    assert open_backend(engine).precision == "unknown"
    (device.folder / "student.onnx").unlink()
    assert read_manifest(engine) is None
    assert open_backend(engine)(IMAGES[:2]).shape == (2, 4)
    with pytest.raises(InputError, match="carries no edgeda manifest"):
        Classifier(engine)


def test_fewer_images_than_the_engine_takes(device: Device) -> None:
    backend = open_backend(device.engine(batch=(2, 2, 4)))
    with pytest.raises(InputError, match="takes 2 to 4 images at a time, got 1; pad the batch"):
        backend(IMAGES[:1])


def test_a_gpu_without_memory(device: Device) -> None:
    engine = device.engine()
    device.driver.memory = 16
    with pytest.raises(MachineError, match="the NVIDIA driver refuses cuMemAllocHost_v2: out of memory"):
        open_backend(engine)
    assert device.driver.held == {}


def test_an_engine_without_a_driver(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = device.engine()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tensorrt", device.fake.module)
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    with pytest.raises(MachineError, match="no NVIDIA driver here"):
        open_backend(engine)


def test_an_engine_without_tensorrt(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = device.engine()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtra, match=r"running a TensorRT engine needs the package tensorrt .*edgeda\[gpu\]"):
        open_backend(engine)


def test_engines_are_models_everywhere(device: Device, command: Edgeda) -> None:
    engine = device.engine()
    assert find_model(str(engine)) == engine
    (row,) = profile_model(str(engine), budget_s=0.01)
    assert (row.engine, row.precision, row.input_size) == ("tensorrt", "int8", SIZE)
    with pytest.raises(InputError, match="is a TensorRT engine, which onnxruntime cannot run"):
        open_backend(engine, "onnxruntime")
    with pytest.raises(InputError, match="is no TensorRT engine"):
        open_backend(device.folder / "student.onnx", "tensorrt")
    device.driver.capability = (12, 0)
    ran = command("profile", engine)
    assert ran.code == 2
    assert "was built by TensorRT 10.3.0 for Orin" in ran.error


def test_the_backend_is_exported() -> None:
    assert TensorRtBackend.name == "tensorrt"
