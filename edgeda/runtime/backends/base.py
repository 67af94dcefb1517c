"""What every engine is, and what they share: checking a batch, finding shapes, outputs and the manifest."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, from_os_error
from edgeda.runtime.backends.engine_file import SUFFIX as ENGINE_SUFFIX
from edgeda.runtime.backends.engine_file import read_sidecar
from edgeda.runtime.manifest import FLOAT_NCHW, METADATA_KEY, PROBABILITIES, Manifest
from edgeda.runtime.onnx_file import read_metadata


class Backend(Protocol):
    """A loaded model: images in as its manifest's `layout` says (float32 NCHW without one), float32 logits out.

    Of a model whose output is probabilities, the logits are their logarithms: the softmax gives them back.
    """

    name: str
    """What executes: `torch`, `onnxruntime`, `openvino`, `tensorrt`."""
    precision: str
    """The precision really executed, as far as the engine tells: `fp32`, `bf16`, `int8`, or `unknown`."""
    manifest: Manifest | None
    """None for a model that edgeda did not export."""
    input_shape: tuple[int, int, int]
    """Channels, height, width."""

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Logits `(B, C)` of images `(B, 3, H, W)`, or `(B, H, W, 3)` where the layout is NHWC."""
        ...


class FileBackend(ABC):
    """What the engines share: checking a batch, and splitting it for a model of a fixed batch size."""

    name: str
    precision: str
    concurrent: bool = False
    """Several threads may call it at once."""

    def __init__(self, path: Path, manifest: Manifest | None, input_dims: Sequence[int | None]) -> None:
        self.path = path
        self.manifest = manifest
        self.fixed_batch: int | None
        """The only batch size the graph takes; None when it takes any."""
        self.fixed_batch, self.input_shape = resolve_shape(path, manifest, input_dims)
        self._layout = manifest.layout if manifest else FLOAT_NCHW

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Logits `(B, C)` of images in the model's layout; InputError for any other shape or type.

        A model of fixed batch size k runs k images at a time and refuses a remainder; one whose manifest
        names a largest batch gets no larger one.
        """
        check_batch(batch, self.input_shape, self._layout)
        largest = self.manifest.batch[1] if self.manifest else None
        step = self.fixed_batch or min(len(batch), largest or len(batch))
        if self.fixed_batch and len(batch) % step:
            raise InputError(
                f"{self.path} takes batches of exactly {step} images, got {len(batch)}; pad the batch, or export "
                "the model with a dynamic batch"
            )
        parts = [self._run(batch[start : start + step]) for start in range(0, len(batch), step)]
        outputs = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.manifest is not None and self.manifest.output == PROBABILITIES:
            return np.log(np.maximum(outputs, np.finfo(np.float32).tiny))
        return outputs

    @abstractmethod
    def _run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """What the graph answers to a batch of a size that it takes."""


def read_manifest(path: Path) -> Manifest | None:
    """The manifest inside an ONNX file, `manifest.json` beside an OpenVINO `.xml`, or ENGINE.json beside an engine.

    None without one. An engine that trtexec built has none beside it: then that of the ONNX file of its name counts.

    Raises InputError for a file that is missing or no model, and for a manifest that cannot be read.
    """
    text: str | None
    if path.suffix.lower() == ENGINE_SUFFIX:
        sidecar, onnx = read_sidecar(path), path.with_suffix(".onnx")
        if sidecar is None:
            return read_manifest(onnx) if onnx.is_file() else None
        text = json.dumps(sidecar)
    elif path.suffix.lower() != ".xml":
        text = read_metadata(path).get(METADATA_KEY)
    elif not path.is_file():
        raise InputError(f"no such model: {path}")
    else:
        beside = path.with_name("manifest.json")
        try:
            text = beside.read_text(encoding="utf-8") if beside.is_file() else None
        except UnicodeDecodeError as error:
            raise InputError(f"{beside} is not UTF-8 text") from error
        except OSError as error:
            raise from_os_error(error, "reading the manifest") from error
    try:
        return None if text is None else Manifest.from_json(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def check_batch(batch: NDArray[Any], input_shape: tuple[int, int, int], layout: str = FLOAT_NCHW) -> None:
    """InputError unless `batch` has the layout's type and is `(B, *input_shape)`, channels last for NHWC, B >= 1."""
    kind, order = layout.split()[:2]
    shape = input_shape if order == "NCHW" else (*input_shape[1:], input_shape[0])
    expected = f"{kind} (B, {', '.join(map(str, shape))})"
    if not isinstance(batch, np.ndarray):
        raise InputError(f"expected a numpy array {expected}, got {type(batch).__name__}")
    if batch.dtype != np.dtype(kind) or batch.shape[1:] != shape or batch.ndim != 4 or len(batch) == 0:
        raise InputError(f"expected images {expected}, got {batch.dtype} {batch.shape}")


def resolve_shape(
    path: Path, manifest: Manifest | None, dims: Sequence[int | None]
) -> tuple[int | None, tuple[int, int, int]]:
    """Fixed batch size or None, and channels, height, width, from the graph's input `(B, C, H, W)` or its layout's."""
    if len(dims) != 4:
        raise InputError(f"{path} takes an input of {len(dims)} dimensions; edgeda runs models of images (B, C, H, W)")
    size = manifest.preprocessing.size if manifest else None
    if manifest and manifest.layout.split()[1] == "NHWC":
        dims = (dims[0], dims[3], dims[1], dims[2])
    batch, channels, height, width = (
        known if known is not None else said for known, said in zip(dims, (None, 3, size, size), strict=True)
    )
    if channels is None or height is None or width is None:
        raise InputError(
            f"{path} leaves the size of its input open and has no edgeda manifest; export it at a fixed size"
        )
    if size is not None and (height, width) != (size, size):
        raise InputError(
            f"{path} takes {height}x{width} images, but its own manifest says {size}x{size}; export it again"
        )
    return batch, (channels, height, width)


def choose_output(path: Path, manifest: Manifest | None, ranks: dict[str, int]) -> str:
    """The output that holds the logits `(B, C)`: the one the manifest names, or the first."""
    name = manifest.output_name if manifest else next(iter(ranks), "")
    if ranks.get(name) != 2:
        found = ", ".join(f"{key} of {rank} dimensions" for key, rank in ranks.items())
        raise InputError(f"{path} has no output of logits (B, C), only {found or 'none'}; edgeda runs classifiers")
    return name


def checked_threads(threads: int | None) -> int | None:
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    return threads
