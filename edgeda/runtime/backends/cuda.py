"""The few calls of the CUDA driver that running an engine takes, through ctypes: the driver is all that is needed.

Every function used has had the same binary interface since CUDA 4.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import MachineError

_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """The first GPU of this machine."""

    name: str
    compute_capability: str
    """Such as `8.7`."""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


def load_driver() -> Any:
    """The CUDA driver's library; MachineError when there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        raise MachineError(
            "no NVIDIA driver here (no libcuda); a TensorRT engine runs on an NVIDIA GPU only"
        ) from error


class Cuda:
    """The first GPU: its primary context, which TensorRT uses too, one stream, and the memory asked for here.

    Raises MachineError when the driver is missing, sees no GPU, or runs out of memory.
    """

    def __init__(self) -> None:
        self._driver = load_driver()
        self._memory: list[tuple[str, ctypes.c_void_p]] = []
        self._device = ctypes.c_int()
        self._context = ctypes.c_void_p()
        self._stream = ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self.gpu = self._describe()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.use()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 0)

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return int(self._stream.value or 0)

    def use(self) -> None:
        """Make the GPU the calling thread's; each thread has to, before anything else."""
        self._call("cuCtxSetCurrent", self._context)

    def device_memory(self, size: int) -> int:
        """The address of `size` bytes on the GPU."""
        address = ctypes.c_void_p()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._memory.append(("cuMemFree_v2", address))
        return int(address.value or 0)

    def host_array(self, shape: tuple[int, ...], kind: type[np.float32] | type[np.uint8]) -> NDArray[Any]:
        """An array in page-locked memory, which is copied while the CPU does something else."""
        address = ctypes.c_void_p()
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        self._call("cuMemAllocHost_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._memory.append(("cuMemFreeHost", address))
        content = (ctypes.c_uint8 * size).from_address(int(address.value or 0))
        array: NDArray[Any] = np.frombuffer(memoryview(content), np.dtype(kind)).reshape(shape)
        return array

    def copy_in(self, device: int, host: NDArray[Any]) -> None:
        """Start copying a contiguous array to the GPU, in the stream."""
        source = ctypes.c_void_p(host.ctypes.data)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_void_p(device), source, ctypes.c_size_t(host.nbytes), self._stream)

    def copy_out(self, host: NDArray[Any], device: int) -> None:
        """Start copying from the GPU into a contiguous array, in the stream."""
        target = ctypes.c_void_p(host.ctypes.data)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_void_p(device), ctypes.c_size_t(host.nbytes), self._stream)

    def wait(self) -> None:
        """Until everything in the stream is done."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give everything back; arrays from `host_array` must not be used afterwards. Never raises."""
        if not self._context.value:
            return
        self._driver.cuCtxSetCurrent(self._context)
        for free, address in self._memory:
            getattr(self._driver, free)(address)
        self._memory.clear()
        if self._stream.value:
            self._driver.cuStreamDestroy_v2(self._stream)
        self._driver.cuDevicePrimaryCtxRelease_v2(self._device)
        self._context = ctypes.c_void_p()

    def _describe(self) -> Gpu:
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, 256, self._device)
        numbers = []
        for attribute in (_COMPUTE_MAJOR, _COMPUTE_MINOR):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device)
            numbers.append(str(value.value))
        return Gpu(name.value.decode(errors="replace"), ".".join(numbers))

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            known = self._driver.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text)) == 0 and text.value
            reason = text.value.decode(errors="replace") if known and text.value else f"error {code}"
            raise MachineError(f"the NVIDIA driver refuses {function}: {reason}")
