"""A network in PyTorch behind the runtime's Backend protocol: the reference that exports are held against."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray

from edgeda.errors import InputError
from edgeda.models import LogitsOnly, Network
from edgeda.runtime.backends import check_batch
from edgeda.runtime.manifest import Manifest


class TorchBackend:
    """A copy of a network on the CPU: fp32, eval mode, channels last, no gradients.

    `input_size` is needed where there is no manifest to tell it. `threads` holds for the whole
    process, as torch has it. Raises InputError when the input size is not known.
    """

    name = "torch"
    precision = "fp32"

    def __init__(
        self, network: Network, manifest: Manifest | None, threads: int | None = None, input_size: int | None = None
    ) -> None:
        size = manifest.preprocessing.size if manifest else input_size
        if size is None:
            raise InputError("a network without a manifest does not tell its input size; give one")
        if threads is not None:
            torch.set_num_threads(threads)
        self.manifest = manifest
        self.input_shape = (3, size, size)
        module = LogitsOnly(copy.deepcopy(network)).to("cpu", torch.float32).eval()
        self._module = module.to(memory_format=torch.channels_last)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `(B, C)` of images `(B, 3, H, W)`; InputError for any other shape or type."""
        check_batch(batch, self.input_shape)
        with torch.inference_mode():
            images = torch.tensor(np.ascontiguousarray(batch)).contiguous(memory_format=torch.channels_last)
            logits: NDArray[np.float32] = self._module(images).numpy()
        return logits
