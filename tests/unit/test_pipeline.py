"""The pipeline with sources that tests control, and real small videos: order, bounds, reconnects, clean ends."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeda.errors import InputError, MachineError
from edgeda.runtime import Classifier, Frame, ImageFiles, Pipeline, Source, Stream, VideoFile
from edgeda.runtime.queues import Feed, InOrder
from edgeda.runtime.sources import Stopped
from tests.unit.test_runtime import plain, write_model

cv2 = pytest.importorskip("cv2", reason="opencv is not installed (extra video)")


@pytest.fixture
def classifier(tmp_path: Path) -> Classifier:
    return Classifier(write_model(tmp_path / "model.onnx"), "onnxruntime", 1, concurrency=2)


class Made(Source):
    """`count` red frames, then an error where there is one."""

    def __init__(self, name: str, count: int, error: BaseException | None = None, live: bool = False) -> None:
        super().__init__(name)
        self.count, self.error, self.live = count, error, live
        self.given = 0

    def frames(self, stopped: Stopped) -> Iterator[Frame]:
        for index in range(self.count):
            if stopped():
                return
            self.given += 1
            yield Frame(self, index, plain(index % 256, 0, 0), time.monotonic())
        if self.error:
            raise self.error


def film(path: Path, frames: int, size: tuple[int, int] = (64, 48), kind: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*kind), 10.0, size)
    for index in range(frames):
        writer.write(np.full((size[1], size[0], 3), (0, 0, 10 * index), np.uint8))
    writer.release()
    return path


def test_every_frame_of_files_in_order_from_several_sources(classifier: Classifier) -> None:
    sources = [Made("a", 57), Made("b", 5), Made("c", 0)]
    with Pipeline(classifier, sources, batch_size=4, workers=3) as results:
        found = list(results)
    assert results.finished
    for source in sources:
        mine = [one for one in found if one.frame.source is source]
        assert [one.frame.index for one in mine] == list(range(source.count))
        reds = np.array([one.prediction.probabilities[0] for one in mine if one.prediction])
        np.testing.assert_allclose(reds, 1 / (1 + np.exp(-2 * np.arange(source.count) / 255)), atol=1e-6)
    assert all(one.latency_ms > 0 for one in found)
    assert results.dropped == [0, 0, 0]


def test_a_slow_reader_of_results_holds_files_back_and_live_sources_drop(classifier: Classifier) -> None:
    file, live = Made("file", 10_000), Made("live", 3_000, live=True)
    with Pipeline(classifier, [file, live], workers=2) as results:
        waiting = iter(results)
        next(waiting)
        deadline = time.monotonic() + 120
        while live.given < 3_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        # at most: waiting in the feed, in the workers' hands, ready, and the one the reader holds
        assert file.given <= 2 + 2 + 8 + 2
        assert results.dropped[1] > 2_900
        results.stop()
        assert list(waiting) == []
    assert not results.finished
    assert not any(thread.is_alive() for thread in results._threads)


def test_a_source_that_fails_does_not_end_the_others(classifier: Classifier, caplog) -> None:
    with Pipeline(classifier, [Made("bad", 2, InputError("bad: gone")), Made("good", 30)]) as results:
        found = list(results)
    assert len(found) == 32
    assert [str(failure) for failure in results.failures] == ["bad: gone"]
    assert caplog.messages == ["bad: gone; the other sources go on"]
    with pytest.raises(ZeroDivisionError), Pipeline(classifier, [Made("bug", 2, ZeroDivisionError())]) as results:
        list(results)


@pytest.mark.parametrize("where", ["source", "worker"])
def test_a_thread_that_exits_does_not_leave_its_reader_waiting(classifier: Classifier, monkeypatch, where: str) -> None:
    """SystemExit ends a thread in silence; the one frame of its batch would be awaited for ever."""
    pipeline = Pipeline(classifier, [Made("a", 50, SystemExit(7) if where == "source" else None)], workers=2)
    if where == "worker":
        whole = classifier.classify_squares

        def once(squares):
            monkeypatch.setattr(classifier, "classify_squares", whole)
            raise SystemExit(7)

        monkeypatch.setattr(classifier, "classify_squares", once)
    ended: list[object] = []

    def read() -> None:
        try:
            with pipeline as results:
                list(results)
        except SystemExit as error:
            ended.append(error.code)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(20)
    pipeline.stop()
    assert ended == [7]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # the runtime's own filter
def test_an_unreadable_image_keeps_its_place(classifier: Classifier, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(plain(9, 0, 0, 1, 1)).save(tmp_path / "dot.png")
    Image.new("RGB", (20_000, 5_000)).save(tmp_path / "huge.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "dot.png").read_bytes()[:40])
    paths = [tmp_path / name for name in ("dot.png", "huge.png", "half.png", "gone.png", "dot.png")]
    with Pipeline(classifier, [ImageFiles("x", paths)], batch_size=5) as results:
        errors = [one.error for one in results]
    assert errors[0] is None
    assert errors[4] is None
    assert "20000 x 5000 pixels are too many" in str(errors[1])
    assert "cannot read image" in str(errors[2])
    assert "no such image" in str(errors[3])


def test_a_video_gives_every_frame_with_its_time(classifier: Classifier, tmp_path: Path) -> None:
    with Pipeline(classifier, [VideoFile(film(tmp_path / "film.avi", 12))], keep_pictures=True) as results:
        found = list(results)
    assert [one.frame.time_s for one in found] == pytest.approx([index / 10 for index in range(12)])
    assert found[0].picture.shape == (48, 64, 3)
    reds = [one.prediction.probabilities[0] for one in found if one.prediction]
    assert reds == sorted(reds)  # BGR frames were read as BGR: more and more red
    assert reds[-1] > 0.6


def test_a_truncated_video_says_so(classifier: Classifier, tmp_path: Path) -> None:
    whole = film(tmp_path / "film.avi", 40)
    source = VideoFile(tmp_path / "half.avi")
    source.path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with Pipeline(classifier, [source]) as results:
        count = len(list(results))
    assert 5 < count < 35
    assert source.notes == [f"{source.path} ends after {count} of about 40 frames: truncated?"]
    (tmp_path / "text.mp4").write_text("not a video")
    for path, words in (("text.mp4", "no frames can be read"), ("gone.mp4", "no such video")):
        with Pipeline(classifier, [VideoFile(tmp_path / path)]) as results:
            assert list(results) == []
        assert words in str(results.failures[0])


class Camera:
    """cv2.VideoCapture of a stream that follows a script: a list of frames for each time it is opened."""

    script: list[list[np.ndarray]]

    def __init__(self, *_: object) -> None:
        self.frames = Camera.script.pop(0) if Camera.script else []

    def isOpened(self) -> bool:
        return bool(self.frames)

    def read(self):
        return (True, self.frames.pop(0)) if self.frames else (False, None)

    def get(self, _: int) -> float:
        return float("nan")

    def release(self) -> None:
        pass


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> type[Camera]:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr("edgeda.runtime.sources.FIRST_WAIT_S", 0.001)
    return Camera


def test_a_lost_stream_comes_back_and_frames_may_change_size(classifier: Classifier, camera: type[Camera]) -> None:
    camera.script = [[], [plain(1, 0, 0), plain(2, 0, 0, 30, 50)], [], [], [], [], [plain(3, 0, 0, 9, 9)], []]
    stream = Stream("rtsp://user:secret@camera/1", retries=5)
    frames = list(stream.frames(lambda: not camera.script))
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.picture.shape for frame in frames] == [(8, 8, 3), (30, 50, 3), (9, 9, 3)]
    assert stream.reconnects == 1
    assert stream.name == "rtsp://***@camera/1"
    assert [one.label for one in classifier([frame.picture for frame in frames], channels="bgr")] == ["blue"] * 3


def test_streams_and_cameras_that_never_start_are_given_up(camera: type[Camera]) -> None:
    camera.script = []
    with pytest.raises(InputError, match="no frames from rtsp://camera/1 in 3 tries; check the address"):
        list(Stream("rtsp://camera/1").frames(lambda: False))
    with pytest.raises(MachineError, match="no frames from 7 in 1 tries; is there such a camera"):
        list(Stream("7", retries=1).frames(lambda: False))
    camera.script = [[plain(1, 0, 0)]]
    with pytest.raises(InputError, match="no more frames from rtsp://camera/1 in 2 tries"):
        list(Stream("rtsp://camera/1", retries=2).frames(lambda: False))


def test_results_come_in_order_and_the_worker_that_is_due_never_waits() -> None:
    results: InOrder[int] = InOrder(workers=1, most_ahead=2)
    threads = [threading.Thread(target=results.put, args=(number, number)) for number in (3, 2, 1)]
    for thread in threads:
        thread.start()
    assert results.get(0.01) is None
    results.put(0, 0)
    assert [results.get(5) for _ in range(4)] == [0, 1, 2, 3]
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_sources_take_turns() -> None:
    feed: Feed[str] = Feed(3, capacity=5)
    for item in ("a0", "a1", "a2"):
        feed.put(0, item, live=False)
    feed.put(2, "c0", live=True)
    feed.put(2, "c1", live=True)
    assert feed.take(3) == (0, ["a0", "c1", "a1"])
    assert feed.take(3) == (1, ["a2"])
    assert feed.dropped == [0, 0, 1]
    for _ in range(3):
        feed.end()
    assert feed.take(1) is None


def test_a_file_behind_an_address_ends(classifier: Classifier, camera: type[Camera], monkeypatch) -> None:
    """What is live has no number of frames; a file would be opened again, from its beginning, for ever."""
    camera.script = [[plain(1, 0, 0), plain(2, 0, 0)], [plain(1, 0, 0)]]
    monkeypatch.setattr(camera, "get", lambda self, what: 3.0 if what == cv2.CAP_PROP_FRAME_COUNT else float("nan"))
    stream = Stream("http://shop/film.mp4")
    assert [frame.index for frame in stream.frames(lambda: False)] == [0, 1]
    assert len(camera.script) == 1
    assert stream.notes == [
        "http://shop/film.mp4 is a file and has ended, 2 of about 3 frames read, as fast as they came: download it to "
        "have every frame classified"
    ]


def test_many_files_are_read_a_few_at_once(classifier: Classifier) -> None:
    """Each holds a decoder and frames that wait: a folder of films filled the memory."""
    open_now, most, turn = 0, 0, threading.Lock()

    class Counted(Made):
        def frames(self, stopped: Stopped) -> Iterator[Frame]:
            nonlocal open_now, most
            with turn:
                open_now += 1
                most = max(most, open_now)
            try:
                yield from super().frames(stopped)
            finally:
                with turn:
                    open_now -= 1

    sources = [Counted(str(number), 20) for number in range(12)]
    with Pipeline(classifier, [*sources, Made("live", 3, live=True)], workers=2) as results:
        found = list(results)
    assert most == 2
    assert results.finished
    assert sum(not one.frame.source.live for one in found) == 12 * 20


def test_a_pipeline_that_ends_early_leaves_no_file_waiting(classifier: Classifier) -> None:
    before = threading.active_count()
    with Pipeline(classifier, [Made(str(number), 10_000) for number in range(6)], workers=1) as results:
        next(iter(results))
    assert threading.active_count() == before


def test_a_film_of_varying_rate_has_its_own_times(tmp_path: Path) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed")
    path = tmp_path / "film.mkv"
    slower = "setpts='if(lt(N,20),N/20,1+(N-20))/TB'"  # twenty frames in a second, then one a second
    made = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=20", "-vf", slower, "-vsync", "vfr", "-frames:v", "24"]
    subprocess.run(["ffmpeg", "-loglevel", "error", *made, str(path)], check=True)
    times = [frame.time_s for frame in VideoFile(path).frames(lambda: False)]
    assert times == pytest.approx([*(index / 20 for index in range(20)), 1.0, 2.0, 3.0, 4.0], abs=0.01)
