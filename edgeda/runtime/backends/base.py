"""What every engine is, and what they share: checking a batch, finding shapes, outputs and the manifest."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError, from_os_error
from edgeda.runtime.manifest import METADATA_KEY, Manifest
from edgeda.runtime.onnx_file import read_metadata


class Backend(Protocol):
    """A loaded model: float32 NCHW images in, float32 logits out."""

    name: str
    """What executes: `torch`, `onnxruntime`, `openvino`."""
    precision: str
    """The precision really executed, as far as the engine tells: `fp32`, `bf16`, `int8`, or `unknown`."""
    manifest: Manifest | None
    """None for a model that edgeda did not export."""
    input_shape: tuple[int, int, int]
    """Channels, height, width."""

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `(B, C)` of images `(B, 3, H, W)`."""
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

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `(B, C)` of images `(B, 3, H, W)`; InputError for any other shape or type.

        A model of fixed batch size k runs k images at a time and refuses a remainder.
        """
        check_batch(batch, self.input_shape)
        step = self.fixed_batch or len(batch)
        if len(batch) % step:
            raise InputError(
                f"{self.path} takes batches of exactly {step} images, got {len(batch)}; pad the batch, or export "
                "the model with a dynamic batch"
            )
        parts = [self._run(batch[start : start + step]) for start in range(0, len(batch), step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @abstractmethod
    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch of a size that the graph takes."""


def read_manifest(path: Path) -> Manifest | None:
    """The manifest inside an ONNX file, or `manifest.json` beside an OpenVINO `.xml`; None without one.

    Raises InputError for a file that is missing or no model, and for a manifest that cannot be read.
    """
    if path.suffix.lower() != ".xml":
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
        return None if text is None else Manifest.from_dict(json.loads(text))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: the model's manifest is not JSON: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def check_batch(batch: NDArray[np.float32], input_shape: tuple[int, int, int]) -> None:
    """InputError unless `batch` is float32 `(B, *input_shape)` with B at least 1."""
    expected = f"float32 (B, {', '.join(map(str, input_shape))})"
    if not isinstance(batch, np.ndarray):
        raise InputError(f"expected a numpy array {expected}, got {type(batch).__name__}")
    if batch.dtype != np.float32 or batch.shape[1:] != input_shape or batch.ndim != 4 or len(batch) == 0:
        raise InputError(f"expected images {expected}, got {batch.dtype} {batch.shape}")


def resolve_shape(
    path: Path, manifest: Manifest | None, dims: Sequence[int | None]
) -> tuple[int | None, tuple[int, int, int]]:
    """Fixed batch size or None, and channels, height, width, from the graph's input `(B, C, H, W)`."""
    if len(dims) != 4:
        raise InputError(f"{path} takes an input of {len(dims)} dimensions; edgeda runs models of images (B, C, H, W)")
    size = manifest.preprocessing.size if manifest else None
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
