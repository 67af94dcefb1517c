"""Frames of a live stream as a folder of images, which a run can then be repeated on."""

from __future__ import annotations

import os
import platform
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image

from edgeda.errors import InputError
from edgeda.recipe import VideoRecipe
from edgeda.runtime.sources import Stream

FEWEST = 2
"""Frames that a camera needs."""
QUALITY = 95
"""Of the JPEG files."""


def sample(address: str, minutes: float, video: VideoRecipe, folder: Path) -> Path:
    """Watch a stream for `minutes` from its first frame and keep one every `video.every_s` in `folder`, whole or not.

    At most `video.max_frames`, evenly spaced. A folder that is there is taken as it is. Raises InputError for a stream
    that does not come or brings too little.
    """
    if folder.is_dir():
        return folder
    part = folder.with_name(f".{folder.name}.{platform.node()}-{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    stream = Stream(address)
    seconds = 60.0 * minutes
    step = max(video.every_s, seconds / video.max_frames)
    first: list[float] = []

    def over() -> bool:
        return bool(first) and time.monotonic() - first[0] >= seconds

    try:
        kept, due = 0, 0.0
        for frame in stream.frames(over):
            first = first or [frame.arrived]
            at = frame.arrived - first[0]
            if at >= due and isinstance(frame.picture, np.ndarray):
                Image.fromarray(frame.picture[..., ::-1]).save(part / f"{round(1000 * at):09d}.jpg", quality=QUALITY)
                kept, due = kept + 1, max(due + step, at)
        if kept < FEWEST:
            raise InputError(
                f"{stream.name} brought {kept} frames in {minutes:g} minutes; raise sample_minutes, or lower "
                "data.video.every_s"
            )
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # else a process that was thought dead has sampled it
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder
