"""Where frames come from: image files, video files, live streams and cameras. One reader thread each."""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeda.errors import InputError, MachineError, require
from edgeda.runtime.pictures import Picture

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 5.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
TRIES_BEFORE_FIRST_FRAME = 3
_SHORT_BY = 0.02
"""Containers announce their number of frames only about; a video that is shorter by more is called truncated."""

Stopped = Callable[[], bool]


@dataclass(frozen=True)
class Frame:
    """One image on its way: still a path where an image file is decoded later, by whoever classifies it."""

    source: Source
    index: int
    picture: Picture
    arrived: float
    """time.monotonic() when it was there to be classified."""
    time_s: float | None = None
    """Position in the video, or seconds since the first frame of a live source."""


class Source(ABC):
    """An ordered series of images. `live`: only the latest counts; the others are never left out."""

    live = False
    channels = "rgb"
    rate: float | None = None
    """Frames per second, where there is such a thing; known once frames come."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = name
        """What tells it from every other source; only its name is shown."""
        self.reconnects = 0
        self.notes: list[str] = []
        """What the user should know of this source when it has ended."""

    @abstractmethod
    def frames(self, stopped: Stopped) -> Iterator[Frame]:
        """Every frame until the end or until `stopped()`; EdgedaError when it cannot go on."""

    def item(self, index: int) -> str:
        """What to call a frame in a message."""
        return f"{self.name} frame {index}"


class ImageFiles(Source):
    """Image files in the order given; decoding is left to whoever classifies, so that several go on at once."""

    def __init__(self, name: str, paths: Sequence[Path], root: Path | None = None) -> None:
        super().__init__(name)
        self.paths = paths
        self.root = root

    def frames(self, stopped: Stopped) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            if stopped():
                return
            yield Frame(self, index, path, time.monotonic())

    def item(self, index: int) -> str:
        return str(self.paths[index])


class VideoFile(Source):
    """Every frame of a video file, through OpenCV; `threads` decode it, 0: as many as OpenCV thinks best."""

    channels = "bgr"

    def __init__(self, path: Path, threads: int = 0) -> None:
        super().__init__(str(path))
        self.path = path
        self.threads = threads

    def frames(self, stopped: Stopped) -> Iterator[Frame]:
        cv2 = open_cv()
        if not self.path.is_file():
            raise InputError(f"no such video: {self.path}")
        capture = open_file(cv2, self.path, self.threads)
        try:
            announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
            rate = float(capture.get(cv2.CAP_PROP_FPS)) if capture.isOpened() else 0.0
            self.rate = rate if np.isfinite(rate) and 0 < rate <= 1000 else 25.0
            index = 0
            while not stopped():
                decoded, pixels = capture.read()
                if not decoded:
                    break
                at = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000  # its own time: the rate of a film may vary
                at = at if np.isfinite(at) and at > 0 else index / self.rate
                yield Frame(self, index, pixels, time.monotonic(), at)
                index += 1
            else:
                return
        finally:
            capture.release()
        if index == 0:
            raise InputError(f"no frames can be read from the video {self.path}: is it whole?")
        if index < announced * (1 - _SHORT_BY) - 1:
            self.notes.append(f"{self.path} ends after {index} of about {announced} frames: truncated?")


class Stream(Source):
    """A network stream (`rtsp://...`) or a camera (its index); comes back by itself after it was lost.

    Between tries it waits 0.5 s, doubled each time up to 10 s. `retries` is how many tries in a row may
    bring no frame before the source is given up; None: 3 until its first frame, without limit afterwards.
    Its `name` leaves out what may be secret in the address.
    """

    live = True
    channels = "bgr"

    def __init__(self, address: str, retries: int | None = None, timeout_s: float = OPEN_TIMEOUT_S) -> None:
        super().__init__(shown_address(address))
        self.address = address
        self.retries = retries
        self.timeout_s = timeout_s
        self.is_camera = address.isdigit()

    def frames(self, stopped: Stopped) -> Iterator[Frame]:
        cv2 = open_cv()
        index, failed, began = 0, 0, 0.0
        while not stopped():
            capture = self._open(cv2)
            got = 0
            announced = capture.get(cv2.CAP_PROP_FRAME_COUNT) if capture.isOpened() and not self.is_camera else 0
            try:
                while not stopped() and capture.isOpened():
                    decoded, pixels = capture.read()
                    if not decoded:
                        break
                    now = time.monotonic()
                    if got == 0:
                        self._connected(capture.get(cv2.CAP_PROP_FPS), again=index > 0)
                        began = began or now
                    yield Frame(self, index, pixels, now, now - began)
                    index, got = index + 1, got + 1
            finally:
                capture.release()
            if stopped():
                return
            if got and announced > 0:  # what is live has no length
                self.notes.append(
                    f"{self.name} is a file and has ended, {got} of about {announced:.0f} frames read, as fast as they "
                    "came: download it to have every frame classified"
                )
                return
            failed = 1 if got else failed + 1
            self._give_up_after(failed, started=index > 0)
            wait = min(FIRST_WAIT_S * 2 ** min(failed - 1, 10), LONGEST_WAIT_S)
            log.warning("%s: %s; next try in %.1f s", self.name, "lost" if got else "no frames", wait)
            ends = time.monotonic() + wait
            while time.monotonic() < ends and not stopped():
                time.sleep(0.05)

    def _open(self, cv2: Any) -> Any:
        if self.is_camera:
            return cv2.VideoCapture(int(self.address))
        limit = int(self.timeout_s * 1000)
        options = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit,
            cv2.CAP_PROP_N_THREADS, 1,  # several threads would hold back a frame each
        ]  # fmt: skip
        return cv2.VideoCapture(self.address, cv2.CAP_FFMPEG, options)

    def _connected(self, rate: float, again: bool) -> None:
        self.rate = rate if np.isfinite(rate) and 0 < rate <= 1000 else 25.0
        if again:
            self.reconnects += 1
            log.warning("%s: connected again", self.name)

    def _give_up_after(self, failed: int, started: bool) -> None:
        limit = self.retries if self.retries is not None else (None if started else TRIES_BEFORE_FIRST_FRAME)
        tries = failed - 1 if started else failed  # the first failure of a stream that ran is its loss, no try
        if limit is None or tries < limit:
            return
        said = f"{'no more' if started else 'no'} frames from {self.name} in {tries} tries"
        if self.is_camera and not started:
            raise MachineError(f"{said}; is there such a camera, and is it free?")
        raise InputError(f"{said}; check the address and that it is sending")


def shown_address(address: str) -> str:
    """An address without user, password and query, which is what may be shown of it: `rtsp://***@host/path?***`.

    A password may hold `@`, `/` and `?` though it should not; where its end cannot be told nothing is left.
    """
    scheme, is_address, rest = address.partition("://")
    if not is_address:
        return address
    login, at, place = rest.rpartition("@")
    if "?" in login:
        return f"{scheme}://***"
    place, query, _ = place.partition("?")
    return f"{scheme}://{'***@' if at else ''}{place}{'?***' if query else ''}"


def open_file(cv2: Any, path: Path, threads: int = 0) -> Any:
    """A video file through FFmpeg alone where OpenCV has it: its other readers print what they find on stderr.

    `threads` decode it, or as many as FFmpeg likes; other readers know no such setting.
    """
    registry = getattr(cv2, "videoio_registry", None)
    if registry is None or not registry.hasBackend(cv2.CAP_FFMPEG):
        return cv2.VideoCapture(str(path))
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads] if threads else [])


def open_cv() -> Any:
    """The module cv2, which says nothing on stderr by itself; MissingExtra without it."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    return require("cv2", "video", "reading videos, streams and cameras")
