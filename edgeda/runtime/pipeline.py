"""Decode, preprocess and classify at the same time: readers, workers and an ordered way out.

    reader (a thread for each source) -> Feed -> worker (decodes image files, preprocesses, infers) -> InOrder -> you

A worker is a thread with one frame or batch from start to end and, on a CPU, an engine of one thread: no
core waits for another, which is why this reaches what the cores allow. Memory is bounded everywhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Semaphore, Thread
from types import TracebackType
from typing import Any

import numpy as np

from edgeda.errors import EdgedaError, InputError
from edgeda.runtime.classifier import Classifier, Prediction
from edgeda.runtime.cores import usable_cores
from edgeda.runtime.pictures import decoded
from edgeda.runtime.preprocessing import Pixels
from edgeda.runtime.queues import Feed, Finished, InOrder
from edgeda.runtime.sources import Frame, Source

log = logging.getLogger(__name__)

FILE_BATCH = 4
"""Of files, whose frames never wait for a camera: the weights of the network are fetched once for so many frames."""
_POLL_S = 0.1
_JOIN_S = 8.0


@dataclass(eq=False)
class Result:
    """What came of one frame: a prediction, or why there is none."""

    frame: Frame
    prediction: Prediction | None
    error: str | None
    square: Pixels | None
    """What the network saw, before the central crop: uint8 RGB `(S, S, 3)`."""
    picture: Any
    """The decoded picture, where the pipeline was asked to keep it."""
    latency_ms: float
    """From the frame's arrival to this result leaving the pipeline."""


class Pipeline:
    """Results of several sources, in order within each source.

    >>> with Pipeline(classifier, [VideoFile(Path("a.mp4"))]) as results:
    ...     for result in results: ...

    Files give every frame; of live sources only the latest counts. Up to `batch_size` frames that are
    there at the same moment go through the network together; no frame waits for others. None: 4, and 1 where
    a source is live or pictures are kept, which take memory. An image that
    cannot be read gives a result with `error`. A source that fails ends by itself: see `failures`.
    """

    def __init__(
        self,
        classifier: Classifier,
        sources: Sequence[Source],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        keep_pictures: bool = False,
    ) -> None:
        if not sources or (batch_size is not None and batch_size < 1):
            raise InputError("a pipeline needs at least one source and a batch size of at least 1")
        self.sources = list(sources)
        self.failures: list[EdgedaError] = []
        """Why sources ended before their end."""
        self.finished = False
        """Every source came to its end and every result was given out."""
        self._classifier = classifier
        alone = keep_pictures or any(source.live for source in sources)
        self._batch_size = batch_size or (1 if alone else FILE_BATCH)
        self._keep_pictures = keep_pictures
        self._stopped = False
        count = workers or usable_cores()
        self._feed: Feed[Frame] = Feed(len(self.sources), capacity=max(2, self._batch_size * 2))
        self._files = Semaphore(count)
        """Files that are read at once: each holds a decoder and frames that wait."""
        self._results: InOrder[list[Result]] = InOrder(count, most_ahead=4 * count)
        self._threads = [Thread(target=self._read, args=(at,), daemon=True) for at in range(len(self.sources))]
        self._threads += [Thread(target=self._work, daemon=True) for _ in range(count)]

    @property
    def dropped(self) -> list[int]:
        """Frames of each live source that a newer one replaced before they were classified."""
        return self._feed.dropped

    def stop(self) -> None:
        """End soon, from any thread or signal handler; results that are ready are dropped."""
        self._stopped = True

    def __enter__(self) -> Pipeline:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._feed.stop()
        self._results.stop()
        ends = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def __iter__(self) -> Iterator[Result]:
        while not self._stopped:
            try:
                batch = self._results.get(_POLL_S)
            except Finished:
                self.finished = True
                return
            now = time.monotonic()
            for result in batch or ():
                result.latency_ms = (now - result.frame.arrived) * 1e3
                yield result

    def _read(self, at: int) -> None:
        source, held = self.sources[at], False
        try:
            while not source.live and not (held := self._files.acquire(timeout=_POLL_S)):
                if self._stopped:
                    return
            for frame in source.frames(lambda: self._stopped):
                if not self._feed.put(at, frame, source.live):
                    break
        except EdgedaError as error:
            self.failures.append(error)
            if len(self.sources) > 1:
                log.warning("%s; the other sources go on", error)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: a thread's end is raised where results are read
            self._results.fail(error)
        finally:
            if held:
                self._files.release()
            self._feed.end()

    def _work(self) -> None:
        try:
            while (taken := self._feed.take(self._batch_size)) is not None:
                number, frames = taken
                self._results.put(number, self._classified(frames))
        except BaseException as error:  # noqa: BLE001 - raised where results are read; else its batch is awaited for ever
            self._results.fail(error)
        finally:
            self._results.worker_done()

    def _classified(self, frames: list[Frame]) -> list[Result]:
        squares: list[Pixels] = []
        read: list[tuple[Frame, str | None, Pixels | None, Any]] = []
        for frame in frames:
            try:
                picture = decoded(frame.picture, frame.index, frame.source.channels)
                square = self._classifier.square(picture, frame.source.channels)
            except InputError as error:
                read.append((frame, str(error), None, None))
                continue
            squares.append(square)
            read.append((frame, None, square, picture if self._keep_pictures else None))
        predictions = iter(self._classifier.classify_squares(np.stack(squares)) if squares else ())
        return [
            Result(frame, None if error else next(predictions), error, square, picture, 0.0)
            for frame, error, square, picture in read
        ]
