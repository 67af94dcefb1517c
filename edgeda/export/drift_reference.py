"""What the target looks like at export, for the drift monitor on the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeda.data import spread
from edgeda.models import Network
from edgeda.runtime.classifier import softmax
from edgeda.runtime.drift import FEWEST, DriftReference, describe
from edgeda.runtime.manifest import Manifest
from edgeda.runtime.preprocessing import Pixels, network_input
from edgeda.torch_backend import TorchBackend

LIMIT, CHUNK = 256, 32


def drift_reference(
    network: Network, manifest: Manifest, squares: Pixels, threads: int | None = None
) -> dict[str, Any] | None:
    """The manifest's field `drift` from stored squares uint8 `(N, S, S, 3)`; None for too few to say anything."""
    if len(squares) < FEWEST:
        return None
    chosen = squares[spread(len(squares), LIMIT)]
    backend = TorchBackend(network, manifest, threads)
    parts = [chosen[at : at + CHUNK] for at in range(0, len(chosen), CHUNK)]
    rows = [describe(part, softmax(backend(network_input(part, manifest.preprocessing)))) for part in parts]
    return DriftReference.of(np.concatenate(rows)).to_dict()
