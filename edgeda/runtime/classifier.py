"""Classify images with an exported model: the file, numpy and an engine are all it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgeda.errors import InputError
from edgeda.runtime.backends import open_backend
from edgeda.runtime.preprocessing import Pixels, model_input, open_image, square_pixels

Picture = Pixels | Image.Image | str | Path
"""One image: uint8 RGB `(H, W, 3)` of any size, a Pillow image, or the path of an image file."""

CHUNK = 32
"""Images that go through the network at once, so that memory does not grow with a long list."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of one image."""

    label: str
    """The likeliest class."""
    probability: float
    """Its probability."""
    probabilities: NDArray[np.float64]
    """Of every class, `(C,)`, in the order of `Classifier.classes`."""


class Classifier:
    """A model that edgeda exported, with its own preprocessing and class names.

    >>> classifier = Classifier("runs/x/exports/student.onnx")
    >>> classifier("mug.jpg")[0].label

    Raises InputError for a file that is no model or carries no manifest.
    """

    def __init__(self, path: str | Path, engine: str | None = None, threads: int | None = None) -> None:
        self.backend = open_backend(Path(path), engine, threads)
        if self.backend.manifest is None:
            raise InputError(
                f"{path} carries no edgeda manifest, so its classes and preprocessing are unknown; "
                "export it with: edgeda export"
            )
        self.manifest = self.backend.manifest
        self.classes = self.manifest.classes
        self.preprocessing = self.manifest.preprocessing

    def __call__(self, images: Picture | Sequence[Picture]) -> list[Prediction]:
        """One prediction an image, in order; InputError names the image that cannot be used."""
        pictures = list(images) if isinstance(images, (list, tuple)) else [images]
        predictions: list[Prediction] = []
        for start in range(0, len(pictures), CHUNK):
            part = pictures[start : start + CHUNK]
            squares = [
                square_pixels(_decoded(picture, start + at), self.preprocessing) for at, picture in enumerate(part)
            ]
            predictions += [self._prediction(row) for row in softmax(self.logits(np.stack(squares)))]
        return predictions

    def logits(self, squares: Pixels) -> NDArray[np.float32]:
        """Logits `(B, C)` of stored squares uint8 `(B, S, S, 3)`, S = `preprocessing.stored_size`."""
        side = self.preprocessing.stored_size
        if squares.dtype != np.uint8 or squares.ndim != 4 or squares.shape[1:] != (side, side, 3):
            raise InputError(f"expected squares uint8 (B, {side}, {side}, 3), got {squares.dtype} {squares.shape}")
        logits = self.backend(model_input(squares, self.preprocessing, self.manifest.layout))
        if logits.shape[1] != len(self.classes):
            raise InputError(f"the model tells {logits.shape[1]} classes apart, its manifest names {len(self.classes)}")
        if not np.isfinite(logits).all():
            raise InputError("the model gives values that are not finite; export it again")
        return logits

    def _prediction(self, probabilities: NDArray[np.float64]) -> Prediction:
        best = int(probabilities.argmax())
        return Prediction(self.classes[best], float(probabilities[best]), probabilities)


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities `(B, C)` in float64; the largest logit is subtracted first, so nothing overflows."""
    wide = np.asarray(logits, np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _decoded(picture: object, index: int) -> Image.Image | Pixels:
    if isinstance(picture, (str, Path)):
        return open_image(Path(picture))
    if isinstance(picture, Image.Image):
        return ImageOps.exif_transpose(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size:
            return picture
        raise InputError(
            f"image {index} must be uint8 RGB (H, W, 3), got {picture.dtype} {picture.shape}; give several as a list"
        )
    raise InputError(f"image {index} is a {type(picture).__name__}; give a numpy array, a Pillow image or a path")
