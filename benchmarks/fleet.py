"""A fleet of small cameras on Ray against separate `adapt` runs on the same two cores; prints the ratio of wall times.

    python benchmarks/fleet.py [--cameras 12] [--grow]

The cameras are built-in digits under different lights, blurs and rotations, written as folders. Separate runs are two
processes of one thread at a time, so that what is gained comes from what is shared, not from idle cores. `--grow`
prints instead how wall time, driver and storage grow with the fleet, from costs that `--costs` names.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CORES = 2
TINY = {
    "data.input_size": 32, "data.resize": "squash", "data.crop_pct": 1.0, "teacher.backbone": "resnet34",
    "student.backbone": "resnet18", "teacher.pretrained": "none", "student.pretrained": "none",
    "train.warmup_epochs": 6, "train.epochs": 1, "train.precision": "fp32", "train.batch_size": 16,
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


def run(arguments: list[str], cache: Path) -> None:
    """`edgeda ARGUMENTS` in a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EDGEDA_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "edgeda", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def measure(cameras: int) -> None:
    """Both ways, exports included, and the ratio."""
    import yaml

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_images(root, cameras)
        targets = {f"camera-{number}": str(root / f"camera-{number}") for number in range(cameras)}
        values = {"name": "lights", "set": TINY, "source": str(root / "source"), "cameras": targets}
        (root / "FLEET.yaml").write_text(yaml.safe_dump(values))
        pairs = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]

        began = time.monotonic()
        fleet = ["fleet", str(root / "FLEET.yaml"), "--out", str(root / "fleet"), "--workers", str(CORES)]
        run(fleet, root / "cache-fleet")
        together = time.monotonic() - began

        def separate(camera: str) -> None:
            out = str(root / "separate" / camera)
            data = ["--source", values["source"], "--target", targets[camera]]
            run(["adapt", "--recipe", "default", *pairs, *data, "--out", out], root / "cache-separate")
            ship = json.loads((Path(out) / "summary.json").read_text())["verdict"]["ship"]
            role = "student" if ship == "adapted" else "source_only"
            run(["export", out, "--onnx", "--role", role, "--threads", "1"], root / "cache-separate")

        began = time.monotonic()
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(separate, targets))
        apart = time.monotonic() - began
        same = all(
            (root / "fleet" / "cameras" / camera / "student.safetensors").read_bytes()
            == (root / "separate" / camera / "student.safetensors").read_bytes()
            for camera in targets
        )
        rows = json.loads((root / "fleet" / "fleet.json").read_text())["cameras"]
        each = sum(row["seconds"] for row in rows[1:]) / max(1, len(rows) - 1)
        stored = sum(path.stat().st_size for path in (root / "fleet").rglob("*") if path.is_file()) / 1e6 / cameras
        print(f"{cameras} cameras on {CORES} cores: fleet {together:.1f} s, separate runs {apart:.1f} s: "
              f"{100 * together / apart:.0f} % of their wall time; students equal bit for bit: {same}")  # fmt: skip
        print(
            f"costs: first camera {rows[0]['seconds']:.1f} s, each other {each:.1f} s, stored {stored:.1f} MB a camera"
        )


def grow(first_s: float, each_s: float, stored_mb: float, state_ms: float) -> None:
    """Wall time and limits for fleets of 10 to 100,000 cameras: a greedy schedule, one core a camera.

    The driver reads each camera's state once when it begins and writes it twice (`state_ms` each), and reads all of it
    once for the report.
    """
    print("| cameras | cores | wall time, h | driver, s | driver's share | stored, GB |")
    print("|---:|---:|---:|---:|---:|---:|")
    for cameras in (10, 100, 1_000, 10_000, 100_000):
        for cores in (2, 64, 1024):
            rounds = math.ceil((cameras - 1) / cores)
            wall = first_s + rounds * each_s
            driver = 4 * cameras * state_ms / 1000
            wall = max(wall, driver)
            print(f"| {cameras:,} | {cores:,} | {wall / 3600:.2f} | {driver:.1f} | {100 * driver / wall:.1f} % | "
                  f"{cameras * stored_mb / 1000:,.1f} |")  # fmt: skip


def main() -> None:
    """One of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=12)
    parser.add_argument("--grow", action="store_true")
    parser.add_argument("--costs", type=float, nargs=4, metavar=("FIRST_S", "EACH_S", "STORED_MB", "STATE_MS"),
                        help="as the other table prints them; STATE_MS of one read or write of a state")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.grow and not arguments.costs:
        parser.error("--grow needs --costs: measure them first")
    grow(*arguments.costs) if arguments.grow else measure(arguments.cameras)


if __name__ == "__main__":
    main()
