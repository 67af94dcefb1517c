"""Engines that run an exported model: ONNX Runtime and OpenVINO behind one small protocol."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeda.runtime.manifest import Manifest


class Backend(Protocol):
    """A loaded model: float32 NCHW images in, float32 logits out."""

    name: str
    """What executes: `torch`, `onnxruntime`, `openvino`."""
    precision: str
    """The precision really executed, as far as the engine tells: `fp32`, `bf16`, `int8`."""
    manifest: Manifest | None
    """None for a model that edgeda did not export."""
    input_shape: tuple[int, int, int]
    """Channels, height, width."""

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `(B, C)` of images `(B, 3, H, W)`."""
        ...
