"""The same bad images and bad folders given to edgeda, torchvision, timm and ultralytics: what each did, as tables.

    python benchmarks/hostile_peers.py
    python benchmarks/hostile_peers.py --peers edgeda torchvision timm ultralytics     where that is installed, too

torchvision: `ImageFolder(root)[i]` with its own loader; timm: `create_dataset("", root)[i]`; ultralytics: `YOLO(
"yolo11n-cls.yaml").predict(path)`, an untrained network. Each runs in a forked child that is ended after 10 s.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fuzz.cage import World, guarded, run_caged
from tests.fuzz.data_cases import hostile_tree, odd_images
from tests.fuzz.seeds import image_bytes

IMAGES = (
    "png-60000x60000.png", "png-2147483647x1.png", "bomb.png", "wide.png", "icc-bomb.png", "ztxt-bomb.png", "texts.png",
    "exif-huge.jpg", "jpeg-65500x65500.jpg", "jpeg-0x0.jpg", "tiff-loop.tiff", "tiff-huge.tiff", "gif-65535.gif",
    "ppm-0.ppm", "ppm-4.ppm", "eps.png", "eps.jpg", "pickle.png", "html.png", "psd.png", "empty.png", "truncated.jpg",
)  # fmt: skip
TREES = ("loop", "links", "special", "broken", "empty", "deep", "class:<script>", "class:caf\udce9", "file:\udcff.png")


def edgeda(root: Path) -> None:
    """What a run reads of a labelled folder."""

    def read() -> None:
        from edgeda.data import load_domains
        from edgeda.recipe import Recipe

        data = {"source": str(root), "target": str(root), "input_size": 32, "source_holdout": 0}
        loaded = load_domains(Recipe.model_validate({"data": data}).data)
        print(f"{len(loaded.source)} read, {len(loaded.source.skipped)} skipped")

    guarded(read)()


def torchvision(root: Path) -> None:
    """Every item of an ImageFolder."""
    from torchvision.datasets import ImageFolder

    found = ImageFolder(str(root))
    print(f"{len([found[at][0].size for at in range(len(found))])} read")


def timm(root: Path) -> None:
    """Every item of timm's folder data set."""
    from timm.data import create_dataset

    found = create_dataset("", str(root))
    print(f"{len([found[at][0].size for at in range(len(found))])} read")


def ultralytics(root: Path) -> None:
    """Predictions of a network without training."""
    from ultralytics import YOLO

    results = YOLO("yolo11n-cls.yaml").predict(str(root / "**" / "*.*"), verbose=False, imgsz=32)
    print(f"{len(results)} read")


PEERS: dict[str, Callable[[Path], None]] = {
    "edgeda": edgeda, "torchvision": torchvision, "timm": timm, "ultralytics": ultralytics,
}  # fmt: skip


def said(peer: str, place: Callable[[World], object], folder: Path) -> str:
    """What a peer did with the folder `tree` of a world, in a few words."""
    world = World.make(folder)
    place(world)
    began = time.monotonic()
    outcome = run_caged(lambda: PEERS[peer](world.inputs / "tree"), world)
    seconds = time.monotonic() - began
    lines = [line for line in outcome.out.splitlines() if line.strip()]
    started = sorted({text.split("'")[1] for text in outcome.problems if text.startswith("started")})
    if outcome.code is None:
        told = "hangs (over 10 s)"
    elif outcome.code == 0 and lines:
        told = lines[-1]
        replaced = outcome.err.count(
            "Skipped sample"
        )  # timm's warning: it gives the next image, and its label, instead
        told += f", of which {replaced} are others in its place" if replaced else ""
    elif outcome.code in (2, 3):
        told = "refused: " + outcome.err.splitlines()[-1].replace(str(world.root), "")[7:80]
    else:
        told = "stops: " + outcome.err.splitlines()[-1].replace(str(world.root), "").removeprefix("Traceback: ")[:60]
    shutil.rmtree(os.fsencode(folder), ignore_errors=True)
    told += f", starts {', '.join(started)}" if started else ""
    return f"{told} ({seconds:.1f} s)".replace("|", "/").replace("\n", " ")


def bad_image(world: World, name: str) -> None:
    """Two good classes of two images, and a bad one among them."""
    good = image_bytes("jpg")
    for label in "01":
        for number in range(2):
            path = world.inputs / "tree" / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(good)
    content = good[: len(good) // 2] if name == "truncated.jpg" else odd_images()[name]
    (world.inputs / "tree" / "0" / name).write_bytes(content)


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", default=["edgeda", "torchvision", "timm"], choices=PEERS)
    options = parser.parse_args()
    for name in options.peers:  # once, so that children do not each import
        __import__(name if name != "edgeda" else "edgeda.data")
    root = Path(tempfile.mkdtemp(prefix="peers-"))
    tables = {
        "bad image among four good ones": {name: lambda world, n=name: bad_image(world, n) for name in IMAGES},
        "bad folder": {kind: lambda world, k=kind: hostile_tree(world, k) for kind in TREES},
    }
    try:
        for title, rows in tables.items():
            print(f"| {title} | {' | '.join(options.peers)} |\n|---|{'---|' * len(options.peers)}")
            for name, place in rows.items():
                cells = [said(peer, place, root / "case") for peer in options.peers]
                print(f"| {name.encode('unicode_escape').decode()} | {' | '.join(cells)} |", flush=True)
            print()
    finally:
        shutil.rmtree(os.fsencode(root), ignore_errors=True)


if __name__ == "__main__":
    main()
