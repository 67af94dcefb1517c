"""Ask Triton for the class of an image (or of a generated one) and print the three likeliest as JSON.

pip install 'tritonclient[http]' pillow numpy
python client.py --url localhost:8000 --image picture.jpg
"""

import argparse
import json
from pathlib import Path

import numpy as np

MODEL, SIZE, STORED, CROP = "$name", int("$size"), int("$stored"), "$resize" == "crop"
BATCH, CLASSES = int("$batch"), int("$classes")


def pixels(path: "str | None") -> np.ndarray:
    """RGB from 0 to 255, float32 (3, SIZE, SIZE), with the geometry of training."""
    if path is None:
        ramp = np.linspace(0, 255, SIZE, dtype=np.float32)
        return np.broadcast_to(ramp, (3, SIZE, SIZE)).copy()
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    width, height = picture.size
    short = min(width, height)
    box = ((width - short) / 2, (height - short) / 2, (width + short) / 2, (height + short) / 2) if CROP else None
    square = np.asarray(picture.resize((STORED, STORED), Image.BILINEAR, box=box), np.float32)
    start = (STORED - SIZE) // 2
    return np.ascontiguousarray(square[start : start + SIZE, start : start + SIZE].transpose(2, 0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="localhost:8000")
    parser.add_argument("--image", help="an image file; without it, a generated one")
    arguments = parser.parse_args()
    import tritonclient.http as triton

    batch = np.repeat(pixels(arguments.image)[None], BATCH, axis=0)
    given = triton.InferInput("$input", list(batch.shape), "FP32")
    given.set_data_from_numpy(batch)
    answer = triton.InferenceServerClient(arguments.url).infer(MODEL, [given]).as_numpy("$output")
    probabilities = answer.reshape(BATCH, CLASSES)[0]
    listed = Path(__file__).with_name("model_repository") / MODEL / "labels.txt"
    labels = listed.read_text(encoding="utf-8").split("\n") if listed.is_file() else [""] * CLASSES
    for index in np.argsort(-probabilities, kind="stable")[:3].tolist():
        print(json.dumps({"label": labels[index], "index": index, "probability": float(probabilities[index])}))


if __name__ == "__main__":
    main()
