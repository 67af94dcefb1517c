"""TensorRT engines, on the API that 8.5 to 11 and TensorRT for RTX have in common."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, MachineError, MissingExtra, one_line, require
from edgeda.runtime.backends.base import FileBackend, checked_threads, choose_output, read_manifest
from edgeda.runtime.backends.cuda import Cuda, Gpu
from edgeda.runtime.backends.engine_file import BuiltBy, built_by, check_fits, read_engine, read_sidecar

if TYPE_CHECKING:
    from edgeda.runtime.tensorrt_api import Context, Engine, Runtime

_KINDS: dict[str, type[np.float32] | type[np.uint8]] = {"FLOAT": np.float32, "UINT8": np.uint8}


@dataclass
class _Loaded:
    """TensorRT's objects, held nowhere else: they have to go before the GPU's context does, in this order."""

    context: Context | None = None
    engine: Engine | None = None
    runtime: Runtime | None = None

    def close(self, cuda: Cuda) -> None:
        self.context = None
        self.engine = None
        self.runtime = None
        cuda.close()


class TensorRtBackend(FileBackend):
    """An `.engine` file on the first NVIDIA GPU; calls from several threads wait for each other.

    Memory for the engine's largest batch is taken once; a larger one goes through in parts. `threads` says
    nothing here. Raises InputError for an engine that is damaged, of another version or for another GPU
    (the line says which, and how to build it again), MissingExtra without TensorRT, MachineError without a
    driver or a GPU.
    """

    name = "tensorrt"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        checked_threads(threads)
        if not path.is_file():
            raise InputError(f"no such model: {path}")
        sidecar = read_sidecar(path)
        built = built_by(path, sidecar) if sidecar else None
        content = read_engine(path, sidecar)
        manifest = read_manifest(path)
        trt = _import(built.package if built else "tensorrt")
        cuda = Cuda()
        self._cuda, self._loaded = cuda, _Loaded()
        self._release = weakref.finalize(self, self._loaded.close, cuda)
        try:
            if built:
                check_fits(path, built, trt.__version__, cuda.gpu)
            self._log, self._loaded.runtime = _runtime(trt, bool(built and built.version_compatible))
            if built and built.dla_core is not None:
                _choose_dla(self._loaded.runtime, path, built, built.dla_core, cuda.gpu)
            self._loaded.engine = self._loaded.runtime.deserialize_cuda_engine(content)
            if self._loaded.engine is None:
                raise InputError(
                    f"TensorRT {trt.__version__} on {cuda.gpu} cannot load {path}: {self._log.last()}; build it again "
                    "on this device"
                )
            self.precision = manifest.precision if manifest and built else "unknown"
            dims = self._take_tensors(trt, path, self._loaded.engine)
            self._output = choose_output(path, manifest, {name: len(shape) for name, shape in self._outputs.items()})
            super().__init__(path, manifest, dims)
            self._prepare()
        except BaseException:
            self._release()
            raise
        self._lock = threading.Lock()

    def _take_tensors(self, trt: Any, path: Path, engine: Engine) -> list[int | None]:
        """Names, shapes and the batch range of what goes in and comes out; returns the shape of the input."""
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1:
            raise InputError(f"{path} has {len(inputs)} inputs; edgeda runs engines with one batch of images")
        self._input = inputs[0]
        types = {name: str(engine.get_tensor_dtype(name).name) for name in names}
        if types[self._input] not in _KINDS or any(types[name] != "FLOAT" for name in names if name != self._input):
            found = ", ".join(f"{name}: {kind}" for name, kind in types.items())
            raise InputError(f"{path} must take float32 or uint8 and give float32, it has {found}; build it with --trt")
        self._kind = _KINDS[types[self._input]]
        self._outputs = {name: tuple(engine.get_tensor_shape(name)) for name in names if name != self._input}
        self._input_shape = tuple(int(size) for size in engine.get_tensor_shape(self._input))
        least, most = self._input_shape, self._input_shape
        if self._input_shape[0] < 0:
            least, _, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(self._input, 0))
        self.batch_range = (int(least[0]), int(most[0]))
        """Least and most images that the engine takes in one call."""
        return [None if size < 0 else size for size in self._input_shape]

    def _prepare(self) -> None:
        """A context, and memory for the largest batch."""
        if self._loaded.engine is not None:
            self._loaded.context = self._loaded.engine.create_execution_context()
        if self._loaded.context is None:
            raise MachineError(f"TensorRT has no memory to run {self.path}: {self._log.last()}")
        most = self.batch_range[1]
        self._host_input = self._cuda.host_array((most, *self._input_shape[1:]), self._kind)
        self._device_input = self._cuda.device_memory(self._host_input.nbytes)
        self._loaded.context.set_tensor_address(self._input, self._device_input)
        for name, shape in self._outputs.items():
            sizes = [most if axis == 0 else size for axis, size in enumerate(shape)]
            if min(sizes) < 1:
                raise InputError(f"{self.path}: the output {name} has no fixed size; build the engine again")
            address = self._cuda.device_memory(4 * int(np.prod(sizes)))
            self._loaded.context.set_tensor_address(name, address)
            if name == self._output:
                self._device_output = address
                self._host_output = self._cuda.host_array(tuple(sizes), np.float32)

    def _run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        least, most = self.batch_range
        parts = [batch[start : start + most] for start in range(0, len(batch), most)]
        if len(parts[-1]) < least:
            raise InputError(f"{self.path} takes {least} to {most} images at a time, got {len(batch)}; pad the batch")
        with self._lock:
            self._cuda.use()
            answers = [self._once(part) for part in parts]
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def _once(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Copy in, run, copy out, all in one stream; wait once."""
        count = len(images)
        staged, logits = self._host_input[:count], self._host_output[:count]
        staged[...] = images
        self._cuda.copy_in(self._device_input, staged)
        context = self._loaded.context
        ready = context is not None and context.set_input_shape(self._input, tuple(staged.shape))
        if context is None or not ready or not context.execute_async_v3(self._cuda.stream):
            raise InputError(f"TensorRT cannot run {self.path} on {count} images: {self._log.last()}")
        self._cuda.copy_out(logits, self._device_output)
        self._cuda.wait()
        return np.array(logits, np.float32)


def engine_package(path: Path) -> str:
    """What runs an engine, as its sidecar says: `tensorrt` or `tensorrt_rtx`; InputError for anything else."""
    sidecar = read_sidecar(path)
    return _known(built_by(path, sidecar).package if sidecar else "tensorrt")


def engine_module(path: Path) -> Any:
    """The package that runs an engine, imported; MissingExtra where it is not installed."""
    return _import(engine_package(path))


def _known(package: str) -> str:
    if package not in ("tensorrt", "tensorrt_rtx"):
        raise InputError(f"an engine built by '{package}' is not one edgeda runs")
    return package


def _import(package: str) -> Any:
    extra = "rtx" if _known(package) == "tensorrt_rtx" else "gpu"
    try:
        return require(package, extra, "running a TensorRT engine")
    except MissingExtra:
        raise
    except Exception as error:  # without its libraries, or with another CUDA, it raises what it likes
        raise MachineError(f"{package} is installed but does not import: {one_line(error)}") from error


def _choose_dla(runtime: Runtime, path: Path, built: BuiltBy, core: int, here: Gpu) -> None:
    """The core that an engine is loaded onto: the plan does not hold it. MachineError where there is none."""
    if core >= runtime.num_DLA_cores:  # TensorRT would ignore it
        raise MachineError(f"{path} is for DLA core {core}, this {here} has {runtime.num_DLA_cores}; {built.remedy}")
    runtime.DLA_core = core


def _runtime(trt: Any, with_host_code: bool) -> tuple[Any, Runtime]:
    """A runtime, and the log that keeps its errors for the one line that is shown."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(msg.split()))

        def last(self) -> str:
            return str(self.errors[-1])[:200] if self.errors else "it gives no reason"

    log = Log()
    try:
        runtime: Runtime = trt.Runtime(log)
    except TypeError as error:  # "factory function returned nullptr"
        raise MachineError(f"TensorRT {trt.__version__} cannot start here: is the driver new enough?") from error
    if with_host_code:  # a version-compatible engine carries a small runtime of its own
        runtime.engine_host_code_allowed = True
    return log, runtime
