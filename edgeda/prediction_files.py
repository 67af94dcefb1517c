"""What `predict` writes besides its lines: annotated images and videos, and frames collected for the next `adapt`."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeda.errors import InputError, from_os_error
from edgeda.runtime import ImageFiles, Result, Source
from edgeda.runtime.annotate import annotated
from edgeda.runtime.preprocessing import Pixels, to_rgb
from edgeda.runtime.sources import open_cv
from edgeda.whole_file import HeldFolder, check_writable


def check_folder(path: Path, option: str, overwrite: bool) -> None:
    """InputError for a folder of an option that cannot be written, or holds something and may not be added to."""
    try:
        if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not overwrite)):
            raise InputError(f"{option} {path} is not empty; choose another, or pass --overwrite to add to it")
    except OSError as error:
        raise from_os_error(error, f"looking into the folder of {option}") from error
    check_writable(path, option)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, "making a folder for results") from error
    return folder


class Saver:
    """Annotated results below a folder: a JPEG for each image, an MP4 for each video, stream or camera.

    An MP4 is `NAME.part.mp4` until `close`. Frames of another size than its first are resized to that.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = _made(folder)
        self._held = HeldFolder(folder, "saving predictions in")
        self._writers: dict[str, tuple[Any, Path, tuple[int, int]]] = {}
        self._taken: set[Path] = set()

    def save(self, result: Result) -> None:
        """Write one result; nothing for an image that could not be read."""
        if result.prediction is None:
            return
        text = f"{result.prediction.label} {100 * result.prediction.probability:.0f}%"
        source = result.frame.source
        try:
            if isinstance(source, ImageFiles):
                path = self._image_path(source, source.paths[result.frame.index])
                _save_jpeg(annotated(rgb_pixels(result), text), path, quality=90)
            else:
                self._write(source, annotated(rgb_pixels(result), text))
        except OSError as error:
            raise from_os_error(error, "saving annotated results") from error

    def close(self) -> None:
        """Finish the videos and give them their names, and let others have the folder."""
        writers, self._writers = self._writers, {}
        for writer, path, _ in writers.values():
            writer.release()
            path.replace(path.with_name(path.name.replace(".part.mp4", ".mp4")))
        self._held.release()

    def _image_path(self, source: ImageFiles, path: Path) -> Path:
        inside = path.relative_to(source.root) if source.root and path.is_relative_to(source.root) else Path(path.name)
        wanted = self._folder / inside.with_suffix(".jpg")
        number = 1
        while wanted in self._taken or wanted.exists():  # --overwrite adds to a folder, it replaces nothing
            number += 1
            wanted = self._folder / inside.with_name(f"{inside.stem}-{number}.jpg")
        self._taken.add(wanted)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        return wanted

    def _write(self, source: Source, frame: Pixels) -> None:
        cv2 = open_cv()
        if source.name not in self._writers:
            size = (frame.shape[1] // 2 * 2 or 2, frame.shape[0] // 2 * 2 or 2)
            path = self._folder / f"{_unique(file_name(source.name), self._folder)}.part.mp4"
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), source.rate or 25.0, size)
            if not writer.isOpened():
                raise InputError(f"OpenCV cannot write the video {path}; is the disk full, the frame {size} usable?")
            self._writers[source.name] = (writer, path, size)
        writer, _, size = self._writers[source.name]
        if frame.shape[1::-1] != size:
            frame = cv2.resize(frame, size)
        writer.write(np.ascontiguousarray(frame[..., ::-1]))


class Collector:
    """Up to `limit` frames as they came, JPEG of quality 95, for `edgeda adapt --target FOLDER`."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = _made(folder)
        self._held = HeldFolder(folder, "collecting frames in")
        self._limit = limit
        self.count = 0

    def add(self, result: Result) -> None:
        """Keep a frame, unless there are enough."""
        if self.count >= self._limit or result.prediction is None:
            return
        stem = file_name(result.frame.source.item(result.frame.index))
        path = self._folder / f"{_unique(stem, self._folder)}.jpg"
        try:
            _save_jpeg(rgb_pixels(result), path, quality=95)
        except OSError as error:
            raise from_os_error(error, "collecting frames") from error
        self.count += 1


def _save_jpeg(pixels: Pixels, path: Path, quality: int) -> None:
    """A whole file or none; a power cut may lose the last ones, since nobody waits for the disk at every frame."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        Image.fromarray(pixels).save(temporary, "JPEG", quality=quality)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def rgb_pixels(result: Result) -> Pixels:
    """The kept picture of a result as uint8 RGB `(H, W, 3)`."""
    picture = result.picture
    if isinstance(picture, Image.Image):
        return np.asarray(to_rgb(picture), np.uint8)
    turned: Pixels = picture[..., ::-1] if result.frame.source.channels == "bgr" else picture
    return turned


def file_name(name: str) -> str:
    """A source's name as a file name: no folders, no user and password of an address, nothing odd."""
    plain = re.sub(r"^(\w+://)[^/@]*@", r"\1", name)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(plain).stem if "://" not in plain else plain).strip("-.")[-100:] or "x"


def _unique(stem: str, folder: Path) -> str:
    name, number = stem, 1
    while any(folder.glob(f"{name}.*")):
        number += 1
        name = f"{stem}-{number}"
    return name
