"""How fast `edgeda predict` is against what two cores allow, and how it lives on a stream that breaks.

    python benchmarks/pipeline.py prepare --work W          a 224 px ResNet-18 as fp32 and int8 ONNX, a 720p film
    python benchmarks/pipeline.py file --work W             rate against the summed CPU time and a plain loop
    python benchmarks/pipeline.py stream --work W --minutes 2   RTSP on loopback, its server killed three times

`prepare` needs the extras train, cpu and video, and ffmpeg; `stream` Debian's python3-gi and GstRtspServer.
The weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeda.predict import json_line, predict
from edgeda.runtime import Classifier, Pipeline
from edgeda.runtime.cores import usable_cores
from edgeda.runtime.pipeline import FILE_BATCH
from edgeda.runtime.preprocessing import Preprocessing, network_input, square_pixels

PREPROCESSING = Preprocessing(224)
SERVER = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer.new()
server.set_address("127.0.0.1"); server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory.new()
factory.set_launch(
    "( filesrc location=%s ! qtdemux ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=1 )" % sys.argv[2]
)
factory.set_shared(True)
server.get_mount_points().add_factory("/camera", factory)
server.attach(None)
GLib.MainLoop().run()
"""


def prepare(work: Path, seconds: int) -> None:
    """The two models and a film of `seconds` at 30 frames a second."""
    import onnx
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    from edgeda.export.onnx import export_onnx
    from edgeda.models import Architecture, build_network
    from edgeda.runtime.manifest import Manifest

    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = build_network(Architecture("resnet18", 10))[0].eval()
    manifest = Manifest(tuple("0123456789"), PREPROCESSING, "resnet18", "fp32", (1, None))
    export_onnx(network, manifest, work / "fp32.onnx")

    class Noise(CalibrationDataReader):
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            squares = random.integers(0, 256, (16, 256, 256, 3), dtype=np.uint8)
            self._batches = iter([{"images": network_input(one[None], PREPROCESSING)} for one in squares])

        def get_next(self) -> Any:
            return next(self._batches, None)

    quantize_static(
        work / "fp32.onnx", work / "int8.onnx", Noise(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    model = onnx.load(work / "int8.onnx")
    del model.metadata_props[:]
    said = Manifest(manifest.classes, PREPROCESSING, "resnet18", "int8", (1, None)).embedded()
    model.metadata_props.add(key="edgeda", value=said)
    onnx.save(model, work / "int8.onnx")
    subprocess.run(
        ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", f"testsrc2=size=1280x720:rate=30:duration={seconds}",
         "-c:v", "libx264", "-preset", "veryfast", "-b:v", "4M", "-g", "30", "-pix_fmt", "yuv420p",
         str(work / "film.mp4")], check=True,
    )  # fmt: skip


def cpu_ms(work: Any, count: int) -> float:
    """CPU milliseconds, of all threads, of each of `count` calls."""
    began = time.process_time()
    for at in range(count):
        work(at)
    return (time.process_time() - began) / count * 1e3


class Others:
    """Cores that other processes took, on average, while this block ran: a measurement wants 0."""

    def __enter__(self) -> Others:
        self.cores = 0.0
        self._began, self._busy = time.perf_counter(), self._ticks()
        return self

    def __exit__(self, *_: object) -> None:
        self.cores = round((self._ticks() - self._busy) / (time.perf_counter() - self._began), 2)

    @staticmethod
    def _ticks() -> float:
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - time.process_time()


def from_file(work: Path) -> dict[str, Any]:
    """The table of the file source, milliseconds of CPU per frame and frames per second.

    Each stage is measured alone: decoding as predict does it, one frame at a time through a one-threaded engine.
    """
    import cv2
    import onnxruntime

    film, int8 = work / "film.mp4", work / "int8.onnx"
    capture = cv2.VideoCapture(str(film))
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    frames = []

    def decode(_: int) -> None:
        frame = capture.read()[1]
        if len(frames) < 40:
            frames.append(frame)

    with Others() as others:
        decode_ms = cpu_ms(decode, total)
        classifier = Classifier(int8, threads=1)
        squares = [square_pixels(frame, PREPROCESSING, "bgr")[None] for frame in frames]
        prepare_ms = cpu_ms(
            lambda at: network_input(square_pixels(frames[at % 40], PREPROCESSING, "bgr")[None], PREPROCESSING), 200
        )
        batch = network_input(squares[0], PREPROCESSING)
        classifier.backend(batch)
        infer_ms = cpu_ms(lambda _: classifier.backend(batch), 200)
        four = np.repeat(batch, FILE_BATCH, axis=0)
        classifier.backend(four)
        infer_batch_ms = cpu_ms(lambda _: classifier.backend(four), 50) / FILE_BATCH
    allowed = usable_cores() * 1000 / (decode_ms + prepare_ms + infer_ms)
    busy = {"stages": others.cores}

    def predicted(name: str) -> dict[str, Any]:
        with open(os.devnull, "w") as sink, Others() as others:
            found = predict(
                str(work / f"{name}.onnx"), [str(film)], emit=lambda line: print(json_line(line), file=sink)
            )
        busy[name] = max(busy.get(name, 0.0), others.cores)
        return found

    rates = {name: [predicted(name) for _ in range(3)] for name in ("int8", "fp32")}
    session = onnxruntime.InferenceSession(str(work / "fp32.onnx"), providers=["CPUExecutionProvider"])

    def plain_loop(frames: int) -> float:
        capture, began = cv2.VideoCapture(str(film)), time.perf_counter()
        for _ in range(frames):
            square = square_pixels(cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB), PREPROCESSING)
            session.run(None, {"images": network_input(square[None], PREPROCESSING)})
        return frames / (time.perf_counter() - began)

    plain_loop(20)
    with Others() as others:
        loops = [plain_loop(200) for _ in range(3)]
    busy["plain"] = others.cores
    int8, fp32 = (statistics.median(one["frames_per_s"] for one in rates[name]) for name in ("int8", "fp32"))
    plain = statistics.median(loops)
    return {
        "cores": usable_cores(), "frames": total, "engine": rates["int8"][0]["engine"],
        "cpu_ms": {"decode": round(decode_ms, 2), "preprocess": round(prepare_ms, 2), "infer": round(infer_ms, 2),
                   f"infer_in_batches_of_{FILE_BATCH}": round(infer_batch_ms, 2)},
        "allowed_per_s": round(allowed, 1),
        "predict_int8_per_s": [one["frames_per_s"] for one in rates["int8"]],
        "predict_fp32_per_s": [one["frames_per_s"] for one in rates["fp32"]],
        "plain_loop_fp32_per_s": [round(one, 1) for one in loops],
        "of_allowed_percent": round(100 * int8 / allowed, 1),
        "times_plain_loop": round(int8 / plain, 2),
        "times_plain_loop_fp32": round(fp32 / plain, 2),
        "latency_ms": rates["int8"][0]["latency_ms"],
        "cores_taken_by_others": busy,
    }  # fmt: skip


def resident_mb() -> float:
    """Memory of this process now."""
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith("VmRSS"):
            return int(text.split()[1]) / 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def from_stream(work: Path, minutes: float, port: int) -> dict[str, Any]:
    """Memory, reconnects and latency on an RTSP stream whose server is killed and restarted three times."""
    script = work / "server.py"
    script.write_text(SERVER)
    seconds = minutes * 60

    def serve() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["/usr/bin/python3", str(script), str(port), str((work / "film.mp4").resolve())],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    memory: list[float] = []
    servers = [serve()]
    time.sleep(1)
    over = threading.Event()

    def director(pipeline: Pipeline) -> None:
        began = time.monotonic()
        kills = [seconds * part for part in (0.25, 0.5, 0.75)]
        while not over.wait(1.0):
            now = time.monotonic() - began
            if now > min(30.0, seconds * 0.2):
                memory.append(resident_mb())
            if kills and now > kills[0]:
                kills.pop(0)
                servers[-1].kill()
                servers[-1].wait()
                over.wait(1.0)
                servers.append(serve())
            if now > seconds:
                pipeline.stop()
                return

    def start(pipeline: Pipeline) -> None:
        threading.Thread(target=director, args=(pipeline,), daemon=True).start()

    try:
        summary = predict(
            str(work / "int8.onnx"), [f"rtsp://127.0.0.1:{port}/camera"], emit=lambda line: None, on_start=start
        )
    finally:
        over.set()
        servers[-1].kill()
        servers[-1].wait()
    return {
        "minutes": minutes, "frames": summary["frames"], "dropped": summary["sources"][0]["dropped"],
        "server_restarts": len(servers) - 1, "reconnects": summary["sources"][0]["reconnects"],
        "memory_mb": {"after_warm_up": round(memory[0], 1), "highest": round(max(memory), 1),
                      "growth": round(max(memory) - memory[0], 1)},
        "latency_ms": summary["latency_ms"], "engine": summary["engine"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "file", "stream"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the models and the film")
    parser.add_argument("--seconds", type=int, default=40, help="length of the film that prepare makes")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--port", type=int, default=8554)
    given = parser.parse_args()
    if given.what == "prepare":
        prepare(given.work, given.seconds)
    elif given.what == "file":
        print(json.dumps(from_file(given.work), indent=2))
    else:
        print(json.dumps(from_stream(given.work, given.minutes, given.port), indent=2))


if __name__ == "__main__":
    sys.exit(main())
