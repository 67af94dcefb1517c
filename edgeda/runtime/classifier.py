"""Classify images with an exported model: the file, numpy and an engine are all it needs."""

from __future__ import annotations

import contextlib
import copy
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from edgeda.errors import InputError
from edgeda.runtime.backends import Backend, open_backend
from edgeda.runtime.crops import cut
from edgeda.runtime.engine_choice import CPU_ENGINES, open_fastest
from edgeda.runtime.pictures import Picture, decoded
from edgeda.runtime.preprocessing import Pixels, checked_channels, model_input, square_pixels

CHUNK = 32
"""Images that go through the network at once, so that memory does not grow with a long list."""

Detections = TypeVar("Detections")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of one image."""

    label: str
    """The likeliest class."""
    probability: float
    """Its probability."""
    probabilities: NDArray[np.float64]
    """Of every class, `(C,)`, in the order of `classes`."""
    classes: tuple[str, ...] = ()

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes with their probabilities, the likeliest first."""
        if count < 1:
            raise InputError(f"top needs at least 1 class, got {count}")
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[index], float(self.probabilities[index])) for index in order]


class Classifier:
    """A model that edgeda exported, with its own preprocessing and class names.

    >>> classifier = Classifier("runs/x/exports/student.onnx")
    >>> classifier("mug.jpg")[0].label

    `engine` None takes the only engine that can run the file; of two, the one that a short measurement
    here finds faster. Both compute in fp32 unless the file itself is of lower precision, so their
    probabilities agree to about 1e-5. `threads` is for each call. Any number of threads may call one
    Classifier; `concurrency` is how many of these calls run in a CPU engine at the same time (a GPU's
    runs one), the others wait. Files are read here and never again: replacing them later changes nothing.

    Raises InputError for a file that is no model or carries no manifest.
    """

    def __init__(
        self, path: str | Path, engine: str | None = None, threads: int | None = None, *, concurrency: int = 1
    ) -> None:
        if concurrency < 1:
            raise InputError(f"concurrency must be at least 1, got {concurrency}")
        path = Path(path)
        self.backend = open_backend(path, engine, threads) if engine else open_fastest(path, threads)
        if self.backend.manifest is None:
            raise InputError(
                f"{path} carries no edgeda manifest, so its classes and preprocessing are unknown; "
                "export it with: edgeda export"
            )
        self.manifest = self.backend.manifest
        self.classes = self.manifest.classes
        self.preprocessing = self.manifest.preprocessing
        self._fixed_batch: int | None = getattr(self.backend, "fixed_batch", None)
        self._least: int = self._fixed_batch or getattr(self.backend, "batch_range", (1,))[0]
        self._most = self._fixed_batch or min(CHUNK, self.manifest.batch[1] or CHUNK)
        self._free: queue.LifoQueue[Backend] = queue.LifoQueue()
        self._free.put(self.backend)
        shared = getattr(self.backend, "concurrent", False)
        for _ in range(concurrency - 1 if self.backend.name in CPU_ENGINES else 0):
            self._free.put(self.backend if shared else open_backend(path, self.backend.name, threads))

    @overload
    def __call__(self, images: Picture | Sequence[Picture], *, channels: str = "rgb") -> list[Prediction]: ...

    @overload
    def __call__(self, images: Picture, boxes: Any, *, channels: str = "rgb") -> list[Prediction | None]: ...

    def __call__(
        self, images: Picture | Sequence[Picture], boxes: Any = None, *, channels: str = "rgb"
    ) -> list[Prediction] | list[Prediction | None]:
        """One prediction an image, in order; with `boxes`, one for each box of the one image.

        An image is a path, a Pillow image, or an array: uint8 `(H, W, 3)` with colours in the order
        `channels` (`rgb` or `bgr`), `(H, W, 4)` with alpha (laid on black), grey `(H, W)`. A float32 array
        `(B, 3, size, size)` is a batch that is preprocessed already. `boxes`: see `classify_crops`.
        InputError names the image that cannot be used.
        """
        if boxes is not None:
            return self.classify_crops(images, boxes, channels=channels)  # type: ignore[arg-type]
        if isinstance(images, np.ndarray) and images.dtype == np.float32 and images.ndim == 4:
            return self._predictions(self._outputs(images))
        pictures: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        predictions: list[Prediction] = []
        for start in range(0, len(pictures), CHUNK):
            part = pictures[start : start + CHUNK]
            squares = [self.square(picture, channels, start + at) for at, picture in enumerate(part)]
            predictions += self.classify_squares(np.stack(squares))
        return predictions

    def classify_crops(self, frame: Picture, boxes: Any, *, channels: str = "rgb") -> list[Prediction | None]:
        """One prediction for each box `(x1, y1, x2, y2)` in pixels, `(N, 4)`, of a detector.

        Boxes are widened to whole pixels and clipped to the frame. A box that then holds no pixel, or
        whose sides are the wrong way round, has None in its place. InputError names, by its index, a
        box that is not finite.
        """
        crops = cut(decoded(frame, 0, channels), boxes)
        found = iter(self([crop for crop in crops if crop is not None], channels=channels))
        return [None if crop is None else next(found) for crop in crops]

    def detections(self, frame: Picture, detections: Detections, *, channels: str) -> Detections:
        """A copy of a `supervision.Detections` (anything with `xyxy` and a dict `data`) that says what each box shows.

        Adds `label` (text), `label_id` (-1: no pixels) and `label_probability` to `data`, each `(N,)`; an
        empty box has the label "". The detector's own class_id and confidence stay.
        """
        given: Any = detections
        if not hasattr(given, "xyxy") or not isinstance(getattr(given, "data", None), dict):
            raise InputError(f"expected detections with xyxy and data, got {type(detections).__name__}")
        found = self.classify_crops(frame, given.xyxy, channels=channels)
        labelled = copy.copy(given)
        labelled.data = {
            **given.data,
            "label": np.array(["" if one is None else one.label for one in found], dtype=np.str_),
            "label_id": np.array([-1 if one is None else int(one.probabilities.argmax()) for one in found], np.int64),
            "label_probability": np.array([np.nan if one is None else one.probability for one in found], np.float64),
        }
        return labelled  # type: ignore[no-any-return]

    def square(self, picture: Picture, channels: str = "rgb", index: int = 0) -> Pixels:
        """The stored square uint8 RGB `(S, S, 3)` of a picture; InputError names picture `index`."""
        return square_pixels(decoded(picture, index, channels), self.preprocessing, checked_channels(channels))

    def classify_squares(self, squares: Pixels) -> list[Prediction]:
        """A prediction for each stored square, uint8 `(B, S, S, 3)`."""
        return self._predictions(self.logits(squares))

    def logits(self, squares: Pixels) -> NDArray[np.float32]:
        """Logits `(B, C)` of stored squares uint8 `(B, S, S, 3)`, S = `preprocessing.stored_size`."""
        side = self.preprocessing.stored_size
        if squares.dtype != np.uint8 or squares.ndim != 4 or squares.shape[1:] != (side, side, 3):
            raise InputError(f"expected squares uint8 (B, {side}, {side}, 3), got {squares.dtype} {squares.shape}")
        return self._outputs(model_input(squares, self.preprocessing, self.manifest.layout))

    def _outputs(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """What the engine gives for a batch of any length, as logits, checked."""
        parts = []
        for start in range(0, len(batch), self._most):
            part = batch[start : start + self._most]
            count = len(part)
            if count < self._least:
                part = np.concatenate([part, np.repeat(part[-1:], self._least - count, axis=0)])
            with self._engine() as backend:
                parts.append(backend(part)[:count])
        if not parts:
            raise InputError(f"the batch has no images: {batch.dtype} {batch.shape}")
        logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if logits.shape[1] != len(self.classes):
            raise InputError(f"the model tells {logits.shape[1]} classes apart, its manifest names {len(self.classes)}")
        if not np.isfinite(logits).all():
            raise InputError("the model gives values that are not finite; export it again")
        return logits

    @contextlib.contextmanager
    def _engine(self) -> Iterator[Backend]:
        backend = self._free.get()
        try:
            yield backend
        finally:
            self._free.put(backend)

    def _predictions(self, logits: NDArray[np.float32]) -> list[Prediction]:
        probabilities = softmax(logits)
        best = probabilities.argmax(axis=1)
        return [
            Prediction(self.classes[index], float(row[index]), row, self.classes)
            for index, row in zip(best, probabilities, strict=True)
        ]


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities `(B, C)` in float64; the largest logit is subtracted first, so nothing overflows."""
    wide = np.asarray(logits, np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
