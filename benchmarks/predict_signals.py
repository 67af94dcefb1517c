"""Real signals to real `edgeda predict` processes, at random moments after their first line.

    python benchmarks/pipeline.py prepare --work W      the models and a film, once
    python benchmarks/predict_signals.py --work W --count 60 --seed 0

SIGINT and SIGTERM in turn, against a film, a folder of images and an RTSP stream on loopback, in ONNX Runtime and
OpenVINO. Each process must write whole JSON lines in order and as many as it says, no traceback, and end by itself
with the documented exit code: 2 for files, 0 for a stream. The stream needs Debian's python3-gi and GstRtspServer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from pipeline import SERVER

IMAGES = 600
LATEST_S = 1.0
"""Signals come at most so long after the first line."""


def make_images(folder: Path) -> None:
    """Photograph-sized JPEG files, more than are classified before the signal."""
    folder.mkdir(exist_ok=True)
    random_numbers = np.random.default_rng(0)
    for number in range(IMAGES):
        small = random_numbers.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(small).resize((640, 480)).save(folder / f"{number:04}.jpg")


def problem(name: str, code: int, output: bytes, said: str) -> str | None:
    """What is wrong with how one process ended; None: nothing."""
    if code != (0 if name == "stream" else 2):
        return f"exit code {code}"
    if "Traceback" in said or "Exception" in said:
        return "a traceback"
    if not output.endswith(b"\n"):
        return "its last line is cut"
    try:
        frames = [json.loads(line)["frame"] for line in output.splitlines()]
    except (ValueError, KeyError) as error:
        return f"a line is no frame: {error}"
    if frames != (sorted(set(frames)) if name == "stream" else list(range(len(frames)))):
        return f"frames in the wrong order: {frames[-5:]}"
    counted = re.search(r"(\d+) frames, ", said)
    if counted is None or int(counted[1]) != len(frames):
        return f"{len(frames)} lines, but it said: {said[-200:]!r}"
    return None


def one(model: Path, source: str, engine: str, number: signal.Signals, after_s: float) -> tuple[int, bytes, str]:
    """Start, wait for the first line and `after_s` more, send the signal: exit code, stdout, stderr."""
    command = [sys.executable, "-m", "edgeda", "predict", str(model), "--source", source, "--engine", engine]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        os.set_blocking(child.stdout.fileno(), False)
        output, ends = [first], time.monotonic() + after_s
        while first and (left := ends - time.monotonic()) > 0:  # a full pipe would hold the process up
            output.append(child.stdout.read() or b"")
            time.sleep(min(left, 0.01))
        os.set_blocking(child.stdout.fileno(), True)
        child.send_signal(number)
        try:
            rest, said = child.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            child.kill()
            rest, said = child.communicate()
        return child.returncode, b"".join(output) + rest, said.decode(errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=8591)
    arguments = parser.parse_args()
    work: Path = arguments.work
    make_images(work / "images")
    script = work / "server.py"
    script.write_text(SERVER)
    server = subprocess.Popen(["/usr/bin/python3", str(script), str(arguments.port), str(work / "film.mp4")])
    sources = {
        "film": str(work / "film.mp4"),
        "folder": str(work / "images"),
        "stream": f"rtsp://127.0.0.1:{arguments.port}/camera",
    }
    moments = random.Random(arguments.seed)
    cases = itertools.product(sources, ("onnxruntime", "openvino"), (signal.SIGINT, signal.SIGTERM))
    ended: Counter[tuple[str, str, str, int]] = Counter()
    problems = 0
    try:
        time.sleep(1)  # the server opens its port
        for name, engine, number in itertools.islice(itertools.cycle(cases), arguments.count):
            after_s = moments.uniform(0, LATEST_S)
            code, output, said = one(work / "int8.onnx", sources[name], engine, number, after_s)
            ended[name, engine, number.name, code] += 1
            if wrong := problem(name, code, output, said):
                problems += 1
                print(f"{name} {engine} {number.name} after {after_s:.3f} s: {wrong}\n{said}", flush=True)
    finally:
        server.kill()
        server.wait()
    for (name, engine, text, code), count in sorted(ended.items()):
        print(f"{name:7} {engine:12} {text:8} exit code {code}: {count}")
    print(f"{ended.total()} signals, {problems} problems (seed {arguments.seed})")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
