"""Classify an image, a video file, a stream or a camera: a line of JSON for each frame.

python classify.py --source picture.jpg
python classify.py --source rtsp://camera/stream --every 5
python classify.py                                          # a generated frame: does everything work?
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from edgeda.errors import EdgedaError
from edgeda.runtime import Classifier

MODEL = Path(__file__).with_name("$model")


IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".jp2")


def frames(source: "str | None"):
    """An image file, or RGB frames, uint8 (H, W, 3)."""
    if source is None:
        yield np.broadcast_to(np.linspace(0, 255, 320, dtype=np.uint8)[None, :, None], (240, 320, 3)).copy()
        return
    if source.lower().endswith(IMAGES) and "://" not in source:
        yield Path(source)  # opened as in training: upright, transparency on black, 16 bits scaled
        return
    import cv2

    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not capture.isOpened():
        sys.exit(f"error: cannot open {source}; give an image, a video, a stream or the number of a camera")
    try:
        while True:
            read, frame = capture.read()
            if not read:
                return
            yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV's BGR turned into RGB
    finally:
        capture.release()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="an image, a video file, a stream or the number of a camera")
    parser.add_argument("--every", type=int, default=1, help="classify every n-th frame")
    parser.add_argument("--limit", type=int, help="stop after so many frames")
    arguments = parser.parse_args()
    if arguments.every < 1:
        sys.exit("error: --every must be at least 1")
    classify = Classifier(MODEL)
    seen = 0
    for number, frame in enumerate(frames(arguments.source)):
        if arguments.limit is not None and number >= arguments.limit:
            break
        if number % arguments.every:
            continue
        started = time.perf_counter()
        try:
            best = classify(frame)[0]
        except EdgedaError as error:
            sys.exit(f"error: {error}")
        took = (time.perf_counter() - started) * 1000
        seen += 1
        line = {"frame": number, "label": best.label, "probability": round(best.probability, 4), "ms": round(took, 2)}
        print(json.dumps(line), flush=True)
    if not seen:
        sys.exit(f"error: {arguments.source} gave no frame")


if __name__ == "__main__":
    main()
