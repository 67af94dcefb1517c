"""Drift between the built-in domains: frames until the alarm, and false alarms in 20,000 frames of the same domain.

    python benchmarks/drift.py [--model student.onnx]

Without --model, a small network (resnet10t, 32 px) is adapted from mnist to mnist-m first (extra train), about half
a minute. The reference is `mnist-m` as exported; "the same camera" is frames drawn at random, with replacement, from
`mnist-m-test`, whose images the reference has never seen; "another camera" is each other built-in domain.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeda.data.builtin import BUILTIN
from edgeda.data.images import decode
from edgeda.runtime import Classifier, DriftMonitor, DriftReference
from edgeda.runtime.drift import FALSE_ALARMS_PER_FRAME, describe

FRAMES = 20_000
OTHERS = ("mnist-test", "optdigits-test")
REPEATS = 200


def small_model(folder: Path) -> Path:
    """A student adapted to mnist-m, exported with its drift reference."""
    edgeda = [sys.executable, "-m", "edgeda"]
    sets = [
        "data.input_size=32", "data.resize=squash", "data.crop_pct=1.0", "teacher.backbone=resnet10t",
        "student.backbone=resnet10t", "teacher.pretrained=none", "student.pretrained=none", "train.warmup_epochs=1",
    ]  # fmt: skip
    run = folder / "run"
    subprocess.run(
        [*edgeda, "adapt", "--source", "mnist", "--target", "mnist-m", "--epochs", "2", "--precision", "fp32",
         "--out", str(run), *(word for one in sets for word in ("--set", one))], check=True, stdout=sys.stderr,
    )  # fmt: skip
    subprocess.run([*edgeda, "export", str(run)], check=True, stdout=sys.stderr)
    return run / "exports" / "student.onnx"


def described(classifier: Classifier, name: str) -> NDArray[np.float64]:
    """The statistics of every image of a built-in domain."""
    squares = decode(BUILTIN[name](""), classifier.preprocessing, name).squares
    probabilities = np.stack([one.probabilities for one in classifier.classify_squares(squares)])
    return describe(squares, probabilities)


def measure(model: Path, seed: int) -> dict[str, object]:
    """False alarms in the same domain, and frames until the alarm in each other one."""
    classifier = Classifier(model)
    reference = DriftReference.from_dict(classifier.manifest.drift)
    random = np.random.default_rng(seed)
    same = described(classifier, "mnist-m-test")
    monitor = DriftMonitor(reference)
    nearest = 0.0
    for _ in range(FRAMES // monitor.window):
        monitor.update_described(same[random.integers(len(same), size=monitor.window)])
        assert monitor.last is not None
        nearest = max(nearest, monitor.last.distance)
    found: dict[str, object] = {
        "reference_images": reference.count, "stated_rate_per_frame": FALSE_ALARMS_PER_FRAME,
        "threshold": round(monitor.threshold, 3),
        "same_domain": {"frames": FRAMES, "images": len(same), "false_alarms": monitor.alarms,
                        "largest_distance": round(nearest, 3)},
    }  # fmt: skip
    for name in OTHERS:
        rows = described(classifier, name)
        took, statistics = [], set()
        for _ in range(REPEATS):
            monitor = DriftMonitor(reference)
            before = int(random.integers(monitor.window))  # the change falls anywhere inside a window
            monitor.update_described(same[random.integers(len(same), size=before)])
            frames = 0
            while not monitor.drifted and frames < 1000:
                monitor.update_described(rows[random.integers(len(rows), size=1)])
                frames += 1
            took.append(frames if monitor.drifted else None)
            statistics.add(monitor.last.statistic if monitor.last else "")
        detected = [one for one in took if one is not None]
        found[name] = {
            "repeats": REPEATS, "detected": len(detected), "frames_median": float(np.median(detected)),
            "frames_most": max(detected), "statistics": sorted(statistics),
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an exported student whose target is mnist-m")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or small_model(Path(folder))
        print(json.dumps(measure(model, given.seed), indent=2))


if __name__ == "__main__":
    main()
