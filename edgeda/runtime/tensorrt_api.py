"""The part of TensorRT's Python API that edgeda uses, as types: what 8.6, 10, 11 and TensorRT for RTX have in common.

The bindings' own type stubs differ from version to version and do not pass a type checker. Enums are `Any`: their
members are looked up by name, after `hasattr` where a version lacks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Tensor(Protocol):
    """ITensor."""

    name: str
    shape: Sequence[int]
    dtype: Any


class Layer(Protocol):
    """ILayer."""

    type: Any
    num_outputs: int

    def get_input(self, index: int) -> Tensor | None: ...
    def get_output(self, index: int) -> Tensor: ...


class Network(Protocol):
    """INetworkDefinition."""

    num_inputs: int
    num_layers: int

    def get_input(self, index: int) -> Tensor: ...
    def get_layer(self, index: int) -> Layer: ...


class Profile(Protocol):
    """IOptimizationProfile."""

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None: ...


class TimingCache(Protocol):
    """ITimingCache."""

    def serialize(self) -> Any: ...


class Config(Protocol):
    """IBuilderConfig."""

    default_device_type: Any
    DLA_core: int

    def set_flag(self, flag: Any) -> None: ...
    def get_flag(self, flag: Any) -> bool: ...
    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None: ...
    def add_optimization_profile(self, profile: Profile) -> int: ...
    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache: ...
    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> TimingCache | None: ...


class Builder(Protocol):
    """IBuilder."""

    num_DLA_cores: int

    def create_network(self, flags: int) -> Network: ...
    def create_builder_config(self) -> Config: ...
    def create_optimization_profile(self) -> Profile: ...
    def build_serialized_network(self, network: Network, config: Config) -> Any: ...


class Parser(Protocol):
    """OnnxParser."""

    num_errors: int

    def parse_from_file(self, model: str) -> bool: ...
    def get_error(self, index: int) -> Any: ...


class Context(Protocol):
    """IExecutionContext."""

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class Engine(Protocol):
    """ICudaEngine."""

    num_io_tensors: int

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> Any: ...
    def get_tensor_dtype(self, name: str) -> Any: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]: ...
    def create_execution_context(self) -> Context | None: ...


class Runtime(Protocol):
    """IRuntime."""

    engine_host_code_allowed: bool
    num_DLA_cores: int
    DLA_core: int

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None: ...
