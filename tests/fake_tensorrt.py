"""TensorRT as its recorded surface has it: an attribute that the real bindings of a version lack raises here too.

`tests/data/tensorrt_api.json` lists the classes' attributes and the enums' members, taken from the real bindings of
each version. What lies behind them here reads ONNX files and runs "engines" that answer the mean of each colour.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx

RECORDED = json.loads((Path(__file__).parent / "data" / "tensorrt_api.json").read_text())
VERSIONS = tuple(RECORDED)
_LAYERS = {"Conv": "CONVOLUTION", "Gemm": "MATRIX_MULTIPLY", "QuantizeLinear": "QUANTIZE",
           "DequantizeLinear": "DEQUANTIZE", "Cast": "CAST"}  # fmt: skip


class Surface:
    """`behaviour` behind exactly the attributes recorded for a class of a version; `used` collects their names."""

    def __init__(self, fake: Fake, name: str, behaviour: Any) -> None:
        self.__dict__.update(_fake=fake, _name=name, _behaviour=behaviour)

    def _check(self, attribute: str) -> None:
        if attribute not in self._fake.recorded["classes"][self._name]:
            raise AttributeError(f"{self._name} of TensorRT {self._fake.version} has no '{attribute}'")
        self._fake.used.add(f"{self._name}.{attribute}")

    def __getattr__(self, attribute: str) -> Any:
        self._check(attribute)
        return getattr(self._behaviour, attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        self._check(attribute)
        setattr(self._behaviour, attribute, value)


class Fake:
    """One version: `module` to import, and what was done with it."""

    def __init__(self, version: str, dla_cores: int = 0, driver: bool = True) -> None:
        self.recorded = RECORDED[version]
        self.version = version.removeprefix("rtx-")
        self.dla_cores, self.driver = dla_cores, driver
        self.used: set[str] = set()
        self.calls: list[tuple[Any, ...]] = []
        self.engine: Any = None
        self.module = types.ModuleType("tensorrt_rtx" if version.startswith("rtx") else "tensorrt")
        self.module.__spec__ = importlib.machinery.ModuleSpec(self.module.__name__, None, origin="a fake")
        self.enums = {name: enum.IntEnum(name, members, start=0) for name, members in self.recorded["enums"].items()}
        vars(self.module).update(
            __version__=self.version, ILogger=_logger(), Builder=self._builder, OnnxParser=self._parser,
            Runtime=self._runtime, **self.enums,
        )  # fmt: skip

    def surface(self, name: str, behaviour: Any) -> Surface:
        return Surface(self, name, behaviour)

    def _builder(self, log: Any) -> Surface:
        if not self.driver:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return self.surface("Builder", _Builder(self))

    def _parser(self, network: Surface, log: Any) -> Surface:
        return self.surface("OnnxParser", _Parser(self, network._behaviour))

    def _runtime(self, log: Any) -> Surface:
        return self.surface("Runtime", _Runtime(self, log))


def _logger() -> type:
    class ILogger:
        Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    return ILogger


class _Builder:
    def __init__(self, fake: Fake) -> None:
        self._fake = fake
        self.num_DLA_cores = fake.dla_cores
        self.failure: str | None = None

    def create_network(self, flags: int) -> Surface:
        known = self._fake.enums["NetworkDefinitionCreationFlag"]
        self.network = types.SimpleNamespace(flags={flag.name for flag in known if flags & (1 << flag)}, layers=[])
        network = self.network
        network.get_layer = lambda index: network.layers[index]
        network.get_input = lambda index: network.inputs[index]
        return self._fake.surface("INetworkDefinition", network)

    def create_builder_config(self) -> Surface:
        return self._fake.surface("IBuilderConfig", _Config(self._fake))

    def create_optimization_profile(self) -> Surface:
        shapes: dict[str, Any] = {}
        profile = types.SimpleNamespace(shapes=shapes)
        profile.set_shape = lambda name, least, usual, most: shapes.update({name: (least, usual, most)})
        return self._fake.surface("IOptimizationProfile", profile)

    def build_serialized_network(self, network: Surface, config: Surface) -> bytes:
        made = config._behaviour
        said = {
            "version": self._fake.version,
            "network": sorted(network._behaviour.flags),
            "flags": sorted(made.set),
            "profiles": made.profiles,
            "input": network._behaviour.inputs[0].shape,
            "pools": made.pools,
            "dla": [made.default_device_type.name, made.DLA_core] if made.default_device_type is not None else None,
        }
        return b"fake engine " + json.dumps(said).encode()


class _Config:
    def __init__(self, fake: Fake) -> None:
        self._fake = fake
        self.set = {"TF32"}
        self.pools: dict[str, int] = {}
        self.profiles: list[Any] = []
        self.default_device_type: Any = None
        self.DLA_core = -1
        self.cache: Any = None

    def set_flag(self, flag: Any) -> None:
        self.set.add(flag.name)

    def get_flag(self, flag: Any) -> bool:
        return flag.name in self.set

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.pools[pool.name] = pool_size

    def add_optimization_profile(self, profile: Surface) -> int:
        self.profiles.append(profile._behaviour.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Surface:
        held = types.SimpleNamespace(content=serialized_timing_cache)
        held.serialize = lambda: held.content + b"+"
        return self._fake.surface("ITimingCache", held)

    def set_timing_cache(self, cache: Surface, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return not cache._behaviour.content.startswith(b"other GPU")

    def get_timing_cache(self) -> Surface | None:
        return self.cache


class _Parser:
    def __init__(self, fake: Fake, network: Any) -> None:
        self._fake, self._network = fake, network
        self.num_errors = 0

    def parse_from_file(self, model: str) -> bool:
        network = self._network
        try:
            graph = onnx.shape_inference.infer_shapes(onnx.load(model)).graph
        except ValueError:
            self.num_errors = 1
            return False
        kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
        typed = "STRONGLY_TYPED" in network.flags or not hasattr(self._fake.enums["BuilderFlag"], "FP16")
        for node in graph.node:
            network.layers.append(self._layer(node, kinds[node.output[0]], typed))
        network.num_layers, network.num_inputs = len(network.layers), len(graph.input)
        network.inputs = [
            self._tensor(value.name, tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim))
            for value in graph.input
        ]
        return True

    def get_error(self, index: int) -> Any:
        return types.SimpleNamespace(desc=lambda: "Failed to parse the\nmodel")

    def _tensor(self, name: str, shape: tuple[int, ...] = (), dtype: Any = None) -> Surface:
        return self._fake.surface("ITensor", types.SimpleNamespace(name=name, shape=shape, dtype=dtype))

    def _layer(self, node: Any, kind: int, typed: bool) -> Surface:
        """With weak typing, half precision is the builder's choice and not in the network's types."""
        name = {onnx.TensorProto.INT8: "INT8", onnx.TensorProto.FLOAT16: "HALF" if typed else "FLOAT"}.get(
            kind, "FLOAT"
        )
        output = self._tensor(node.output[0], dtype=self._fake.enums["DataType"][name])
        kinds = self._fake.enums["LayerType"]
        wanted = _LAYERS.get(node.op_type, "ACTIVATION")
        layer = types.SimpleNamespace(
            type=kinds[wanted], num_outputs=1,
            get_input=lambda index: self._tensor(node.input[index]), get_output=lambda index: output,
        )  # fmt: skip
        return self._fake.surface("ILayer", layer)


class _Runtime:
    """Takes only engines of its own version, as the real one does."""

    def __init__(self, fake: Fake, log: Any) -> None:
        self._fake, self._log = fake, log
        self.engine_host_code_allowed = False
        self.num_DLA_cores, self.DLA_core = fake.dla_cores, -1

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Surface | None:
        severity = self._fake.module.ILogger.Severity.ERROR
        self._fake.calls.append(("deserialize_cuda_engine", self.DLA_core))
        try:
            said = json.loads(serialized_engine.removeprefix(b"fake engine "))
        except ValueError:
            self._log.log(severity, "Error Code 1: Serialization\n(magic tag does not match)")
            return None
        if said["version"] != self._fake.version and not self.engine_host_code_allowed:
            self._log.log(severity, f"The engine plan file is of version {said['version']}")
            return None
        self._fake.engine = _Engine(self._fake, said["input"], [profile["images"] for profile in said["profiles"]])
        return self._fake.surface("ICudaEngine", self._fake.engine)


class _Engine:
    num_io_tensors = 2
    classes = 4

    def __init__(self, fake: Fake, shape: list[int], profiles: list[list[list[int]]]) -> None:
        self._fake, self._shape, self._profiles = fake, shape, profiles
        self.profile = profiles[0] if profiles else [shape] * 3

    def get_tensor_name(self, index: int) -> str:
        return ("images", "logits")[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._fake.enums["TensorIOMode"]["INPUT" if name == "images" else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._fake.enums["DataType"]["FLOAT"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._shape) if name == "images" else (self._shape[0], self.classes)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return self._profiles[profile_index]

    def create_execution_context(self) -> Surface:
        return self._fake.surface("IExecutionContext", _Context(self._fake, self))


class _Context:
    def __init__(self, fake: Fake, engine: _Engine) -> None:
        self._fake, self._engine = fake, engine
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.profile
        self._shape = shape
        self._fake.calls.append(("set_input_shape", name, shape))
        return least[0] <= shape[0] <= most[0]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        self._fake.calls.append(("set_tensor_address", name))
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._fake.calls.append(("execute_async_v3", stream_handle))
        images = _floats(self._addresses["images"], self._shape)
        logits = _floats(self._addresses["logits"], (self._shape[0], self._engine.classes))
        logits[:, :3] = images.mean((2, 3))
        logits[:, 3] = self._shape[0]
        return True


def _floats(address: int, shape: tuple[int, ...]) -> np.ndarray:
    content = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.frombuffer(content, np.float32).reshape(shape)


class FakeDriver:
    """The CUDA driver's functions on ordinary memory; counts what is taken and given back."""

    def __init__(self, name: str = "Orin", capability: tuple[int, int] = (8, 7), memory: int = 1 << 30) -> None:
        self.name, self.capability, self.memory = name, capability, memory
        self.held: dict[int, Any] = {}
        self.calls: list[str] = []

    def __getattr__(self, function: str) -> Any:
        if not function.startswith("cu"):
            raise AttributeError(function)
        return lambda *arguments: self._call(function, *arguments)

    def _call(self, function: str, *arguments: Any) -> int:
        self.calls.append(function)
        handle = getattr(self, f"_{function}", None)
        return 0 if handle is None else int(handle(*arguments) or 0)

    def _cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:
        name.value = self.name.encode()

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:
        value._obj.value = self.capability[attribute - 75]

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:
        context._obj.value = 0xC0

    def _cuStreamCreate(self, stream: Any, flags: int) -> None:
        stream._obj.value = 0x57

    def _cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        if size.value > self.memory:
            return 2
        buffer = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(buffer)
        self.held[ctypes.addressof(buffer)] = buffer
        return 0

    _cuMemAllocHost_v2 = _cuMemAlloc_v2

    def _cuMemFree_v2(self, address: Any) -> None:
        del self.held[address.value]

    _cuMemFreeHost = _cuMemFree_v2

    def _cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> None:
        ctypes.memmove(target.value, source.value, size.value)

    _cuMemcpyDtoHAsync_v2 = _cuMemcpyHtoDAsync_v2

    def _cuGetErrorString(self, code: Any, text: Any) -> None:
        text._obj.value = {2: b"out of memory"}.get(code.value, b"unknown error")
