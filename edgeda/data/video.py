"""Frames of a video file as an unlabelled domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeda.data.domains import Domain, file_stamp
from edgeda.data.images import spread
from edgeda.errors import InputError, require
from edgeda.recipe import VideoRecipe
from edgeda.runtime.sources import open_file


class VideoDomain(Domain):
    """Every `every_s` seconds a frame, at most `max_frames` of them spread over the film, read in order."""

    sequential = True

    def __init__(self, path: Path, recipe: VideoRecipe) -> None:
        super().__init__(path.name)
        self._cv2: Any = require("cv2", "video", "a video as the target")
        self._path = path
        capture = open_file(self._cv2, path)
        try:
            frames = int(capture.get(self._cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
            rate = float(capture.get(self._cv2.CAP_PROP_FPS)) or 25.0
            if frames <= 0 and capture.isOpened():  # a recording that was piped or cut off does not say
                frames = 0
                while capture.grab():
                    frames += 1
        finally:
            capture.release()
        if frames <= 0:
            raise InputError(f"no frames can be read from the video {path}")
        step = max(1, round(recipe.every_s * rate))
        sampled = range(0, frames, step)
        self._frames = [sampled[index] for index in spread(len(sampled), recipe.max_frames)]
        self._capture: Any = None
        self._at = 0

    def __len__(self) -> int:
        return len(self._frames)

    def item(self, index: int) -> str:
        return f"{self._path} frame {self._frames[index]}"

    def read(self, index: int) -> Image.Image:
        wanted = self._frames[index]
        if self._capture is None or wanted < self._at:
            self.close()
            self._capture = open_file(self._cv2, self._path)
        while self._at < wanted and self._capture.grab():
            self._at += 1
        decoded, frame = self._capture.read()
        if not decoded:
            raise InputError(f"cannot decode {self.item(index)}")
        self._at = wanted + 1
        if index == len(self) - 1:
            self.close()
        return Image.fromarray(self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB))

    def stamp(self, indices: NDArray[np.int64]) -> str | None:
        frames = [self._frames[index] for index in indices.tolist()]
        return f"{self._path.resolve()} {file_stamp(self._path)} {frames} OpenCV {self._cv2.__version__}"

    def close(self) -> None:
        """Let go of the file; reading again opens it anew."""
        if self._capture is not None:
            self._capture.release()
        self._capture, self._at = None, 0
