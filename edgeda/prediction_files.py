"""What `predict` writes besides its lines: annotated images and videos, and frames collected for the next `adapt`."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeda.errors import InputError, from_os_error
from edgeda.runtime import ImageFiles, Result, Source
from edgeda.runtime.annotate import annotated
from edgeda.runtime.preprocessing import Pixels, to_rgb
from edgeda.runtime.sources import open_cv, open_file
from edgeda.whole_file import HeldFolder, check_writable, sync


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


@dataclass
class _Video:
    """A video on its way: `path` is its name until it is whole."""

    writer: Any
    path: Path
    size: tuple[int, int]
    frames: int = 0

    def finish(self) -> bool:
        """Give it its name, or remove it where not every frame arrived: OpenCV says nothing of a full disk."""
        self.writer.release()
        try:
            sync(self.path)
            whole = _frames_of(self.path) >= self.frames
        except OSError:
            whole = False
        if whole:
            self.path.replace(self.name)
        else:
            self.path.unlink(missing_ok=True)
        return whole

    @property
    def name(self) -> Path:
        return self.path.with_name(self.path.name.replace(".part.mp4", ".mp4"))


def _frames_of(path: Path) -> int:
    cv2 = open_cv()
    capture = open_file(cv2, path)
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()


class Saver:
    """Annotated results below a folder: a JPEG for each image, an MP4 for each video, stream or camera.

    An MP4 is `NAME.part.mp4` until `close`. Frames of another size than its first are resized to that.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = _made(folder)
        self._held = HeldFolder(folder, "saving predictions in")
        self._videos: dict[str, _Video] = {}
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
        """Finish the videos and give them their names, and let others have the folder.

        InputError when a video could not be written to its end; it is removed, the others are there.
        """
        videos, self._videos = self._videos, {}
        try:
            torn = [video.name for video in videos.values() if not video.finish()]
        except OSError as error:
            raise from_os_error(error, "saving annotated results") from error
        finally:
            self._held.release()
        if torn:
            raise InputError(f"{torn[0]} could not be written to its end and was removed; is the disk full?")

    def _image_path(self, source: ImageFiles, path: Path) -> Path:
        inside = path.relative_to(source.root) if source.root and path.is_relative_to(source.root) else Path(path.name)
        if ".." in inside.parts:  # a list may name what lies beside its folder
            inside = Path(path.name)
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
        if source.name not in self._videos:
            size = (frame.shape[1] // 2 * 2 or 2, frame.shape[0] // 2 * 2 or 2)
            path = self._folder / f"{_unique(file_name(source.name), self._folder)}.part.mp4"
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), source.rate or 25.0, size)
            if not writer.isOpened():
                raise InputError(f"OpenCV cannot write the video {path}; is the disk full, the frame {size} usable?")
            self._videos[source.name] = _Video(writer, path, size)
        video = self._videos[source.name]
        if frame.shape[1::-1] != video.size:
            frame = cv2.resize(frame, video.size)
        video.writer.write(np.ascontiguousarray(frame[..., ::-1]))
        video.frames += 1


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
    """A source's name, which holds no password, as a file name: no folders, nothing odd."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).stem if "://" not in name else name).strip("-.")[-100:] or "x"


def _unique(stem: str, folder: Path) -> str:
    name, number = stem, 1
    while any(folder.glob(f"{name}.*")):
        number += 1
        name = f"{stem}-{number}"
    return name
