"""The data path against torchvision's: one run, ratios, no network.

    python benchmarks/data_path.py [--images 1000] [--paths 1000000] [--out FILE]

Makes JPEG files of 640 x 480 pixels out of scikit-learn's two photographs and reads them the usual way (ImageFolder,
DataLoader with a process for each core, ToTensor, Normalize) and through edgeda's cache, at 224 px, with augmentation
of the same kinds: crops of 256 px squares and flips; zoom (torchvision: random resized crop); rotation too. Trains for
some steps to see what share of the time is waited for data; and lists many paths in a process of its own. Needs
torchvision and scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE, BATCH = 224, 32
LISTING = """
import json, sys, time
from edgeda.data.opening import open_unlabelled
from edgeda.data.images import decode
from edgeda.memory import peak_memory_mb
from edgeda.recipe import VideoRecipe
from edgeda.runtime.preprocessing import Preprocessing
started = time.perf_counter()
domain = open_unlabelled(sys.argv[1], VideoRecipe())
images = decode(domain, Preprocessing(224), "target", ahead=0)
listed = time.perf_counter() - started
images.digest()
seconds = time.perf_counter() - started
print(json.dumps({"paths": len(images), "listed_s": listed, "seconds": seconds, "peak_mb": peak_memory_mb()}))
"""
FEW = 10
"""Paths of the list that shows what Python and its packages take."""


def make_images(folder: Path, count: int) -> None:
    """Cuts of two photographs, each of another place, size and brightness, in two class folders."""
    from sklearn.datasets import load_sample_image

    photographs = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    random = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % 2]
        width = int(random.integers(320, 640))
        height = width * 2 // 3
        left, top = random.integers(0, 640 - width + 1), random.integers(0, 427 - height + 1)
        cut = photograph.crop((left, top, left + width, top + height)).resize((640, 480), Image.Resampling.BICUBIC)
        path = folder / str(number % 2) / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        brightness = np.clip(np.arange(256) * random.uniform(0.7, 1.2), 0, 255).astype(int).tolist()
        cut.point(brightness * 3).save(path, quality=90)


def torchvision_rates(folder: Path) -> dict[str, tuple[float, float]]:
    """Images a second of ImageFolder and DataLoader in a second epoch, and of the first, workers' start included."""
    import torch
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    zoom = [transforms.RandomResizedCrop(SIZE, (0.5, 1.0))]
    geometry = {
        "crop, flip": [transforms.Resize((256, 256)), transforms.RandomCrop(SIZE)],
        "crop, flip, zoom": zoom,
        "crop, flip, zoom, turn": [*zoom, transforms.RandomRotation(10, transforms.InterpolationMode.BILINEAR)],
    }
    rest = [transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]  # fmt: skip
    found = {}
    for name, steps in geometry.items():
        data = ImageFolder(str(folder), transforms.Compose([*steps, *rest]))
        loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=len(os.sched_getaffinity(0)),
                                             persistent_workers=True, prefetch_factor=4)  # fmt: skip
        rates = []
        for _ in range(2):
            started = time.perf_counter()
            seen = sum(len(images) for images, _ in loader)
            rates.append(seen / (time.perf_counter() - started))
        found[name] = (rates[1], rates[0])
    return found


def edgeda_rates(folder: Path, cache: Path) -> dict[str, float]:
    """Seconds of decoding, of opening the cache, and images a second of batches out of it."""
    from edgeda.data.batches import PairedBatches
    from edgeda.data.cache import SquareCache
    from edgeda.data.image_files import class_folders
    from edgeda.data.images import decode
    from edgeda.data.prefetch import Prefetched
    from edgeda.memory import keep_freed_memory
    from edgeda.recipe import AugmentRecipe
    from edgeda.runtime.preprocessing import Preprocessing

    keep_freed_memory()  # as every run does
    preprocessing, found = Preprocessing(SIZE), {}
    for name in ("cold", "warm"):
        started = time.perf_counter()
        images = decode(class_folders(folder), preprocessing, "source", cache=SquareCache(10**10, cache))
        found[f"{name}_s"] = time.perf_counter() - started
    found["cold_rate"] = len(images) / found["cold_s"]
    for name, augment in (
        ("crop, flip", AugmentRecipe(crop="random", flip=True)),
        ("crop, flip, zoom", AugmentRecipe(crop="random", flip=True, scale=(0.9, 1.3))),
        ("crop, flip, zoom, turn", AugmentRecipe(crop="random", flip=True, scale=(0.9, 1.3), rotate=10)),
    ):
        feed = Prefetched(PairedBatches(images, images, preprocessing, augment, BATCH, 0), 0)
        steps = 2 * feed.steps_per_epoch
        rates = []
        for turn in range(2):
            started = time.perf_counter()
            seen = sum(
                2 * len(feed.get(turn, step).source_images) for step in range(steps // (4 if "turn" in name else 1))
            )
            rates.append(seen / (time.perf_counter() - started))
        found[name] = rates[1]
    return found


def training(folder: Path, out: Path, prefetch: int) -> dict[str, Any]:
    """A short run at 224 px as a user starts it: pairs a second, and the share of time waited for data."""
    from edgeda.recipe_file import load_recipe  # noqa: F401  (fails here, not in the child, when edgeda is missing)

    command = [sys.executable, "-m", "edgeda", "adapt", "--source", str(folder), "--target", str(folder), "--student",
               "r18", "--teacher", "r34", "--epochs", "1", "--batch-size", "16", "--json",
               "--out", str(out)]  # fmt: skip
    for pair in ("train.warmup_epochs=0", "teacher.pretrained=none", "student.pretrained=none",
                 "method=kd-uda", f"train.prefetch={prefetch}"):  # fmt: skip
        command += ["--set", pair]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    summary = json.loads(done.stdout)
    return {key: summary[key] for key in ("wait_share", "pairs_per_s", "peak_memory_mb", "precision")}


def listing(folder: Path, count: int) -> dict[str, float]:
    """Seconds and peak memory of a target list of so many paths, of which no file exists, in a process of its own."""
    path = folder / f"list-{count}.txt"
    with path.open("w") as file:
        file.writelines(f"cameras/{number % 1000:04}/2026-01-01/frame-{number:09}.jpg\n" for number in range(count))
    done = subprocess.run([sys.executable, "-c", LISTING, str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--train-images", type=int, default=96)
    parser.add_argument("--paths", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeda-data-path-") as name:
        root = Path(name)
        os.environ["EDGEDA_CACHE"] = str(root / "cache")
        make_images(root / "images", options.images)
        make_images(root / "few", options.train_images)
        theirs = torchvision_rates(root / "images")
        ours = edgeda_rates(root / "images", root / "squares")
        runs = {prefetch: training(root / "few", root / f"run{prefetch}", prefetch) for prefetch in (2, 0)}
        few, many = (listing(root, count) for count in (FEW, options.paths))
    print(f"{options.images} JPEG files of 640 x 480 at {SIZE} px, {len(os.sched_getaffinity(0))} cores\n")
    print("| augmentation | ImageFolder + DataLoader, images/s | edgeda from its cache | times |\n|---|---:|---:|---:|")
    for name, (base, _) in theirs.items():
        print(f"| {name} | {base:,.0f} | {ours[name]:,.0f} | {ours[name] / base:.1f} |")
    first = theirs["crop, flip"][1]
    times = ours["cold_rate"] / first
    print(f"\nfirst epoch: {first:,.0f} images/s; edgeda decodes {ours['cold_rate']:,.0f} ({times:.1f} times)")
    print(f"opening the cache: {ours['warm_s']:.2f} s; decoding: {ours['cold_s']:.1f} s")
    for prefetch, run in runs.items():
        waited = f"{100 * run['wait_share']:.2f} % of the time waited for data"
        what = f"training r34 -> r18, {run['precision']}, train.prefetch={prefetch}"
        print(f"{what}: {waited}, {run['pairs_per_s']:.2f} pairs/s")
    print(
        f"a list of {many['paths']:,} paths: {many['listed_s']:.1f} s to list, {many['seconds']:.1f} s with a digest, "
        f"peak {many['peak_mb']:.0f} MB, {many['peak_mb'] - few['peak_mb']:.0f} MB more than a list of {few['paths']}"
    )
    if options.out:
        options.out.write_text(
            json.dumps({"torchvision": theirs, **ours, "runs": runs, "listing": many, "few": few}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
