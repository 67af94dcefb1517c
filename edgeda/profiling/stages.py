"""From an image file to a class name, stage by stage: what surrounds the network often costs more than it does."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeda.errors import InputError
from edgeda.profiling.latency import Latency, measure_latency
from edgeda.runtime.backends import Backend
from edgeda.runtime.classifier import softmax
from edgeda.runtime.manifest import FLOAT_NCHW
from edgeda.runtime.preprocessing import Preprocessing, model_input, open_image, square_pixels

STAGES = {
    "decode": "the file to pixels",
    "preprocess": "resizing, cropping, normalizing",
    "copy": "into the network's input memory",
    "infer": "the network (an engine on a GPU copies to and fro inside it)",
    "postprocess": "softmax, the likeliest class",
}
"""What is timed, in order."""


def sample_image() -> Path | None:
    """A photograph that comes with scikit-learn (640 x 427, JPEG); None where it is not installed."""
    found = importlib.util.find_spec("sklearn")
    path = Path(found.origin).parent / "datasets/images/china.jpg" if found and found.origin else None
    return path if path is not None and path.is_file() else None


def measure_stages(
    backend: Backend,
    preprocessing: Preprocessing,
    image: Path,
    budget_s: float,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Any]:
    """Time each of `STAGES` on one image file over and over: medians in ms, the whole with p90 and p99.

    A model of a fixed batch gets the image first and zeros behind it. The whole is measured call by call, so its median
    may differ a little from the sum of the medians.
    Raises InputError when the image cannot be read.
    """
    layout = backend.manifest.layout if backend.manifest else FLOAT_NCHW
    times: dict[str, list[float]] = {name: [] for name in STAGES}
    first = open_image(image)
    size = first.size
    pixels = model_input(square_pixels(first, preprocessing)[None], preprocessing, layout)
    least = backend.manifest.batch[0] if backend.manifest else 1
    buffer = np.zeros((getattr(backend, "fixed_batch", None) or least, *pixels.shape[1:]), pixels.dtype)

    def forget() -> None:
        for kept in times.values():
            kept.clear()

    def once() -> None:
        marks = [clock_ns()]
        picture = open_image(image)
        marks.append(clock_ns())
        pixels = model_input(square_pixels(picture, preprocessing)[None], preprocessing, layout)
        marks.append(clock_ns())
        np.copyto(buffer[:1], pixels)
        marks.append(clock_ns())
        logits = backend(buffer)
        marks.append(clock_ns())
        int(softmax(logits)[0].argmax())
        marks.append(clock_ns())
        for name, before, after in zip(STAGES, marks, marks[1:], strict=False):
            times[name].append((after - before) / 1e6)

    whole: Latency = measure_latency(once, budget_s=budget_s, clock_ns=clock_ns, began=forget)
    stages = {f"{name}_ms": statistics.median(kept) for name, kept in times.items()}
    return {
        "image": image.name,
        "image_width": size[0],
        "image_height": size[1],
        **stages,
        "total_median_ms": whole.median_ms,
        "total_p90_ms": whole.p90_ms,
        "total_p99_ms": whole.p99_ms,
        "compute_share": stages["infer_ms"] / sum(stages.values()),
        "runs": whole.n,
        "pressure": whole.pressure,
    }


def image_for(asked: Path | None) -> Path:
    """The image to time on; InputError when none was given and none comes with an installed package."""
    image = asked or sample_image()
    if image is None:
        raise InputError("end-to-end times need a real image; give one: --image photo.jpg")
    open_image(image)
    return image
