"""A fleet of small cameras on Ray against separate `adapt` runs on the same cores; prints the ratio of wall times.

    python benchmarks/fleet.py [--cameras 12] [--cores 2] [--costs-to costs.json]

The cameras are built-in digits under different lights, blurs and rotations, written as folders. Separate runs are as
many processes of one thread at a time as there are cores, so that what is gained comes from what is shared, not from
idle cores. A second, half as large fleet on one worker checks what `fleet_growth.py` says from the costs of the first;
`--costs-to` keeps them.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from fleet_growth import Costs, wall_s

EMPTY = 300
"""Jobs without work, from which the driver's own time for each is taken."""
TINY = {
    "data.input_size": 32, "data.resize": "squash", "data.crop_pct": 1.0, "teacher.backbone": "resnet34",
    "student.backbone": "resnet18", "teacher.pretrained": "none", "student.pretrained": "none",
    "train.warmup_epochs": 4, "train.epochs": 2, "train.precision": "fp32", "train.batch_size": 16,
    "train.threads": 1, "train.device": "cpu",
}  # fmt: skip


def write_images(root: Path, cameras: int) -> None:
    """The source, and a folder of other digits for each camera."""
    import numpy as np
    from PIL import Image, ImageEnhance, ImageFilter
    from sklearn.datasets import load_digits

    digits = load_digits()

    def images(start: int, count: int) -> list[tuple[int, Image.Image]]:
        chosen = range(start, start + count)
        pixels = [(digits.images[at] * (255 / 16)).astype(np.uint8) for at in chosen]
        return [
            (int(digits.target[at]), Image.fromarray(array).resize((48, 48)).convert("RGB"))
            for at, array in zip(chosen, pixels, strict=True)
        ]

    def save(folder: Path, number: int, label: int, image: Image.Image) -> None:
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(folder / str(label) / f"{number}.png")

    for number, (label, image) in enumerate(images(0, 192)):
        save(root / "source", number, label, image)
    for camera in range(cameras):
        for number, (label, image) in enumerate(images(192 + 96 * camera, 96)):
            seen = image.rotate(-30 + 60 * camera / max(cameras - 1, 1))
            seen = seen.filter(ImageFilter.GaussianBlur(0.5 * (camera % 3)))
            save(root / f"camera-{camera}", number, label, ImageEnhance.Brightness(seen).enhance(0.4 + 0.1 * camera))


def run(arguments: list[str], cache: Path) -> float:
    """Seconds of `edgeda ARGUMENTS` in a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EDGEDA_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "edgeda", *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.monotonic() - began


def run_fleet(root: Path, name: str, cameras: int, workers: int) -> tuple[float, dict[str, Any]]:
    """Wall time of a fleet of the first `cameras`, and its fleet.json."""
    import yaml

    targets = {f"camera-{number}": str(root / f"camera-{number}") for number in range(cameras)}
    values = {"name": "lights", "set": TINY, "source": str(root / "source"), "cameras": targets}
    (root / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    options = ["--out", str(root / name), "--workers", str(workers)]
    seconds = run(["fleet", str(root / f"{name}.yaml"), *options], root / f"cache-{name}")
    return seconds, json.loads((root / name / "fleet.json").read_text())


def empty(work: dict[str, Any]) -> dict[str, Any]:
    """A job without work."""
    return {"status": "finished"}


def driver_ms(place: Path, work: dict[str, Any]) -> float:
    """The driver's milliseconds for each camera: handing it to Ray, taking its result, writing its state."""
    from edgeda.fleet.cluster import cluster
    from edgeda.fleet.scheduler import Job, run_jobs
    from edgeda.fleet.state import Storage

    storage = Storage(str(place))
    with cluster(workers=1) as ray:
        run_jobs(ray, [Job("first", work, empty)], lambda job, result: None)  # the worker has started then
        began = time.monotonic()
        jobs = [Job(str(number), work, empty) for number in range(EMPTY)]
        run_jobs(ray, jobs, lambda job, result: storage.write(job.name, result))
        return 1000 * (time.monotonic() - began) / EMPTY


def stored_mb(folder: Path) -> float:
    """Megabytes below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def measure(cameras: int, cores: int, keep: Path | None) -> None:
    """Both ways, exports included, the ratio, and the costs."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_images(root, cameras)
        together, result = run_fleet(root, "fleet", cameras, cores)
        pairs = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]

        def separate(camera: str) -> None:
            out = str(root / "separate" / camera)
            data = ["--source", str(root / "source"), "--target", str(root / camera)]
            run(["adapt", "--recipe", "default", *pairs, *data, "--out", out], root / "cache-separate")
            ship = json.loads((Path(out) / "summary.json").read_text())["verdict"]["ship"]
            role = "student" if ship == "adapted" else "source_only"
            run(["export", out, "--onnx", "--role", role, "--threads", "1"], root / "cache-separate")

        names = [row["camera"] for row in result["cameras"]]
        began = time.monotonic()
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(separate, names))
        apart = time.monotonic() - began
        same = all(
            (root / "fleet" / "cameras" / camera / "student.safetensors").read_bytes()
            == (root / "separate" / camera / "student.safetensors").read_bytes()
            for camera in names
        )
        print(f"{cameras} cameras on {cores} cores: fleet {together:.1f} s, separate runs {apart:.1f} s: "
              f"{100 * together / apart:.0f} % of their wall time")  # fmt: skip
        print(f"students equal bit for bit: {same}", flush=True)

        seconds = [row["seconds"] for row in result["cameras"]]
        each = sum(seconds[1:]) / max(1, len(seconds) - 1)
        work = {"recipe": TINY, "padding": "x" * 4000}
        states = 1000 * stored_mb(root / "fleet" / "state")
        known = Costs(
            start_s=0.0, shared_s=max(0.0, seconds[0] - each), each_s=each, driver_ms=driver_ms(root / "empty", work),
            state_ms=0.2, camera_mb=stored_mb(root / "fleet" / "cameras") / cameras,
            shared_mb=stored_mb(root / "fleet" / ".shared"), state_kb=states / cameras,
            message_kb=len(pickle.dumps(work)) / 1000,
        )  # fmt: skip
        known = known.starting_in(max(0.0, together - wall_s(known, cameras, cores)))
        print("costs:", json.dumps(known.__dict__))
        half = max(2, cameras // 2)
        alone, _ = run_fleet(root, "half", half, 1)
        said = wall_s(known, half, 1)
        print(f"growth on paper says {said:.1f} s of {half} cameras on 1 worker; measured {alone:.1f} s "
              f"({100 * (said / alone - 1):+.0f} %)")  # fmt: skip
        if keep:
            keep.write_text(json.dumps(known.__dict__, indent=1) + "\n")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=12)
    parser.add_argument("--cores", type=int, default=2, help="Workers, and separate runs at a time.")
    parser.add_argument("--warmup-epochs", type=int, default=TINY["train.warmup_epochs"])
    parser.add_argument("--epochs", type=int, default=TINY["train.epochs"])
    parser.add_argument("--costs-to", type=Path, metavar="FILE", help="Keep the costs for fleet_growth.py.")
    arguments = parser.parse_args()
    TINY.update({"train.warmup_epochs": arguments.warmup_epochs, "train.epochs": arguments.epochs})
    measure(arguments.cameras, arguments.cores, arguments.costs_to)


if __name__ == "__main__":
    main()
