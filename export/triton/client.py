"""Ask Triton for the class of an image (or of a generated one) and print the three likeliest as JSON.

pip install 'tritonclient[http]' pillow numpy
python client.py --url localhost:8000 --image picture.jpg
"""

import argparse
import json

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
    wanted = triton.InferRequestedOutput("$output", class_count=min(3, CLASSES))
    answer = triton.InferenceServerClient(arguments.url).infer(MODEL, [given], outputs=[wanted]).as_numpy("$output")
    for line in answer.reshape(BATCH, -1)[0]:  # "probability:index:label"
        probability, index, label = line.decode("utf-8", "replace").split(":", 2)
        print(json.dumps({"label": label, "index": int(index), "probability": float(probability)}))


if __name__ == "__main__":
    main()
