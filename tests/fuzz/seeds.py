"""Good files of every kind that edgeda reads, as small as they come: what mutations start from."""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm", "jp2")
CLASSES = ("0", "1", "2", "3")


def picture(side: int = 24, seed: int = 0) -> Image.Image:
    """Noise in colour."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def image_bytes(suffix: str, side: int = 24, **options: object) -> bytes:
    """A picture in a format."""
    kind = {"jpg": "JPEG", "tiff": "TIFF", "jp2": "JPEG2000"}.get(suffix, suffix.upper())
    written = io.BytesIO()
    picture(side).save(written, kind, **options)
    return written.getvalue()


def png(width: int, height: int, *more: bytes, pixels: bytes | None = None, colour: int = 2, depth: int = 8) -> bytes:
    """A PNG file whose header may say anything; `more` are whole chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, colour, 0, 0, 0)
    body = zlib.compress(b"\0" * 100) if pixels is None else pixels
    return b"".join((b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *more, chunk(b"IDAT", body), chunk(b"IEND", b"")))


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def flat_png(width: int, height: int) -> bytes:
    """A PNG of one colour: its pixels need a thousandth of their size, which is a bomb when there are many."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + width * 3)
    content = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return png(width, height, pixels=content)


def png_boundaries(data: bytes) -> tuple[int, ...]:
    """Where the chunks of a PNG file begin and end."""
    at, found = 8, [8]
    while at + 8 <= len(data):
        at += 12 + struct.unpack(">I", data[at : at + 4])[0]
        found.append(at)
    return tuple(found)


def safetensors(header: object, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file whose header, and the length it says of it, may be anything."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", (len(text) if length is None else length) % 2**64) + text + content


def zip_bytes(entries: dict[str, bytes], modes: dict[str, int] | None = None) -> bytes:
    """A .zip; `modes` are Unix file types of some entries."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name.replace("\0", "?"))
            entry.external_attr = (modes or {}).get(name, 0o100644) << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def tar_bytes(entries: dict[str, bytes], kinds: dict[str, bytes] | None = None, link: str = "/etc/passwd") -> bytes:
    """A .tar.gz; `kinds` are the types of entries that are no files, `link` is where links lead."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.type = (kinds or {}).get(name, tarfile.REGTYPE)
            entry.size = len(content) if entry.type == tarfile.REGTYPE else 0
            entry.linkname = link if entry.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(entry, io.BytesIO(content))
    return written.getvalue()


def idx(shape: tuple[int, ...], content: bytes, magic: int | None = None) -> bytes:
    """An idx file of MNIST, gzipped."""
    numbers = (0x0800 + len(shape) if magic is None else magic, *shape)
    return gzip.compress(struct.pack(f">{len(numbers)}I", *numbers) + content)


def manifest(classes: tuple[str, ...] | list[str] = CLASSES, size: int = 16) -> dict[str, object]:
    """What an exported model says of itself."""
    from edgeda.runtime import DriftReference
    from edgeda.runtime.drift import STATISTICS
    from edgeda.runtime.manifest import Manifest
    from edgeda.runtime.preprocessing import Preprocessing

    drift = DriftReference.of(np.random.default_rng(0).random((30, len(STATISTICS))))
    made = Manifest(
        tuple(classes),
        Preprocessing(size, "squash", 1.0),
        "resnet10t",
        "fp32",
        (1, None),
        opset=17,
        source_run="demo-1",
        gmacs=0.1,
        params_m=0.2,
        drift=drift.to_dict(),
        tools={"torch": "2"},
    )
    return json.loads(made.embedded())


def onnx_bytes(metadata: dict[str, str] | None = None, classes: int = 4, size: int = 16) -> bytes:
    """A classifier of a few hundred parameters; `metadata` as `metadata_props`."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)

    def weights(name: str, *shape: int):
        return numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["images", "w1", "b1"], ["maps"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "w2", "b2"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "seed",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [weights("w1", 8, 3, 3, 3), weights("b1", 8), weights("w2", classes, 8), weights("b2", classes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, value in ({"edgeda": json.dumps(manifest())} if metadata is None else metadata).items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


@dataclass(frozen=True)
class Seeds:
    """Good files that many cases share; they lie outside every case's own folders and are never written to."""

    model: Path
    """An ONNX classifier of four classes."""
    image: Path
    tree: Path
    """Class folders of four classes."""
    run: Path
    """A finished run, with its exports."""

    @classmethod
    def make(cls, root: Path, run: Path | None = None, trained: bool = True) -> Seeds:
        """Write them below `root`; without a `run`, train one of a tiny backbone on the tree, or make one up."""
        root.mkdir(parents=True, exist_ok=True)
        (root / "model.onnx").write_bytes(onnx_bytes())
        (root / "image.png").write_bytes(image_bytes("png"))
        for number in range(16):
            place = root / "tree" / CLASSES[number % 4] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            picture(24, number).save(place)
        found = run or root / "run"
        if run is None:
            (train if trained else make_up)(root / "tree", found)
        return cls(root / "model.onnx", root / "image.png", root / "tree", found)


def train(tree: Path, out: Path) -> None:
    """A run of a few seconds by the command line: two tiny networks, one epoch, exported as ONNX and OpenVINO."""
    tiny = {
        "teacher.backbone": "test_resnet",
        "student.backbone": "test_resnet",
        "teacher.pretrained": "none",
        "student.pretrained": "none",
        "data.input_size": 32,
        "data.resize": "squash",
        "data.crop_pct": 1.0,
        "data.cache_gb": 0,
        "train.epochs": 1,
        "train.batch_size": 4,
        "train.precision": "fp32",
    }
    changes = [word for key, value in tiny.items() for word in ("--set", f"{key}={value}")]
    data = ["--source", tree, "--target", tree, "--target-test", tree]
    for arguments in (["adapt", *data, *changes, "--out", out], ["export", out, "--onnx", "--openvino"]):
        command = [sys.executable, "-m", "edgeda", *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, text=True)


def make_up(tree: Path, out: Path) -> None:
    """A run directory as a finished run leaves it, of networks that have learnt nothing; a second instead of many."""
    from edgeda.checkpoint import save_checkpoint
    from edgeda.models import Architecture, NetworkCard, build_network, save_network
    from edgeda.recipe_file import load_recipe
    from edgeda.runtime.preprocessing import Preprocessing

    data = {f"data.{key}": str(tree) for key in ("source", "target", "target_test")}
    backbones = {f"{role}.backbone": "test_resnet" for role in ("teacher", "student")}
    recipe = load_recipe("default", {**data, **backbones, "data.input_size": 32, "data.resize": "squash"})
    out.mkdir(parents=True)
    (out / "recipe.yaml").write_text(recipe.to_yaml())
    network, _ = build_network(Architecture("test_resnet", len(CLASSES)))
    card = NetworkCard(network.architecture, CLASSES, Preprocessing(32, "squash", 1.0))
    percent = {"target": {"last": 25.0, "selected": 25.0, "oracle": 25.0}, "source": 25.0}
    roles = ("student", "teacher", "source_only")
    for role in roles:
        save_network(out / f"{role}.safetensors", network.state_dict(), card)
    summary = {
        "edgeda": "0.1.0",
        "method": "kd-uda",
        "alignment": ["mmd"],
        "teacher": "test_resnet",
        "student": "test_resnet",
        "source": str(tree),
        "target": str(tree),
        "classes": list(CLASSES),
        "seed": 0,
        "epochs": 1,
        "skipped": {},
        "images": {"source": 16, "target": 16, "target_test": 16},
        "selection": {"rule": "im", "epoch": 1},
        "accuracy": dict.fromkeys(roles, percent),
        "verdict": {"ship": "adapted", "reason": "it says more"},
        "complexity": {role: {"gmacs": 0.1, "gflops": 0.2, "params_m": 0.3} for role in roles},
        "wall_s": 1.0,
        "machine": {"cpu": "a", "threads": 1, "memory_gb": 1.0, "os": "b", "python": "3", "gpus": []},
    }
    (out / "summary.json").write_text(json.dumps(summary))
    scores = {"role": "student", "target_accuracy": 25.0, "source_accuracy": 25.0, "scores": {"im": 0.1}}
    epoch = {"stage": "joint", "epoch": 1, "epochs": 1, "losses": {"total": 1.5}, "networks": {"student": scores}}
    (out / "metrics.jsonl").write_text((json.dumps(epoch) + "\n") * 2)
    save_checkpoint(out / "checkpoint", {"fingerprint": "x", "position": [0, 1], "networks": network.state_dict()})
