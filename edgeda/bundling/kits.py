"""The kits: which files each has, and what goes into them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeda.bundling.graph import INPUT, OUTPUT, fold
from edgeda.bundling.labels import safe_labels
from edgeda.bundling.templates import plain, render
from edgeda.bundling.wheel import WHEEL, runtime_wheel
from edgeda.errors import InputError, from_os_error
from edgeda.runtime.manifest import Manifest

NETWORK_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
"""nvinfer's numbers."""
LARGEST_BATCH = 16
"""Of a model that takes any batch."""
FRAME = (1920, 1080)
"""The camera that a crop is worked out for."""


@dataclass(frozen=True)
class Subject:
    """What a kit is made of."""

    path: Path
    manifest: Manifest
    name: str

    @cached_property
    def model_files(self) -> dict[str, bytes]:
        """The model as it is, by its name in a kit: `model.onnx`, or the parts of an OpenVINO model."""
        try:
            if self.path.suffix.lower() == ".onnx":
                return {"model.onnx": self.path.read_bytes()}
            ir = self.path if self.path.is_file() else next(iter(sorted(self.path.glob("*.xml"))))
            parts = {
                "model.xml": ir,
                "model.bin": ir.with_suffix(".bin"),
                "manifest.json": ir.with_name("manifest.json"),
            }
            return {name: part.read_bytes() for name, part in parts.items()}
        except OSError as error:
            raise from_os_error(error, "reading the model") from error

    @property
    def content(self) -> bytes:
        """Every byte of the model, in order."""
        return b"".join(self.model_files.values())

    @property
    def onnx(self) -> Path:
        """The path of the ONNX file; InputError for a model of another kind."""
        if self.path.suffix.lower() != ".onnx":
            raise InputError(f"{self.path} is an OpenVINO model; this kit needs the .onnx that `edgeda export` writes")
        return self.path


@dataclass(frozen=True)
class Kit:
    """Files by relative path, and what to know of them."""

    files: dict[str, bytes]
    notes: tuple[str, ...] = ()
    parity: dict[str, Any] | None = field(default=None)


def deepstream(subject: Subject) -> Kit:
    """nvinfer as the primary classifier of whole frames, or the secondary one of a detector's boxes."""
    manifest = subject.manifest
    folded = fold(subject.onnx, manifest, for_tensorrt=True)
    if manifest.precision not in NETWORK_MODES:
        raise InputError(f"{subject.path} has precision {manifest.precision}; DeepStream runs fp32, fp16 and int8")
    pixels = manifest.preprocessing
    batch = folded.batch or LARGEST_BATCH
    values = {
        "name": subject.name, "size": pixels.size, "classes": len(manifest.classes), "input": INPUT, "output": OUTPUT,
        "network_mode": NETWORK_MODES[manifest.precision], "precision": manifest.precision, "opset": folded.opset,
        "primary_batch": folded.batch or 1, "secondary_batch": batch,
        "engine_flags": {"fp32": "", "fp16": " --fp16", "int8": " --int8 --fp16"}[manifest.precision],
        "shapes": "" if folded.batch else f" \\\n      {_shapes(pixels.size, 1, 1)}",
        "boxes": "" if folded.batch else f"with `{_shapes(pixels.size, 1, batch)}` ",
        "geometry": _nvinfer_geometry(subject), **_frame_crop(subject),
    }  # fmt: skip
    configs = {
        f"config_infer_{role}.txt": render(
            f"deepstream/config_infer_{role}.txt", {**values, "batch": values[f"{role}_batch"]}
        )
        for role in ("primary", "secondary")
    }
    notes = () if pixels.resize == "squash" else (
        "nvinfer stretches a whole frame or box to the network's size, this model was trained on central squares: "
        "the kit's README says how to crop frames; boxes of a detector should be near square",
    )  # fmt: skip
    files = {
        **configs,
        "model.onnx": folded.content,
        "labels.txt": (";".join(safe_labels(manifest.classes)) + "\n").encode(),
        "README.md": render("deepstream/README.md", values),
        "smoke.sh": render("deepstream/smoke.sh", values),
        "JETSON.md": plain("jetson/JETSON.md"),
        "Dockerfile": plain("jetson/deepstream.Dockerfile"),
    }
    return Kit(files, notes, folded.parity)


def triton(subject: Subject) -> Kit:
    """A model repository for Triton's ONNX Runtime backend, and a client."""
    manifest = subject.manifest
    folded = fold(subject.onnx, manifest)
    size, classes = manifest.preprocessing.size, len(manifest.classes)
    lead = "" if folded.batch is None else f"{folded.batch}, "
    values = {
        "name": subject.name, "size": size, "classes": classes, "input": INPUT, "output": OUTPUT,
        "max_batch": LARGEST_BATCH if folded.batch is None else 0,
        "input_dims": f"{lead}3, {size}, {size}", "output_dims": f"{lead}{classes}",
        "batching": "dynamic_batching { max_queue_delay_microseconds: 2000 }\n" if folded.batch is None else "",
        "batch": folded.batch or 1, "resize": manifest.preprocessing.resize,
        "stored": manifest.preprocessing.stored_size,
    }  # fmt: skip
    repository = f"model_repository/{subject.name}"
    files = {
        f"{repository}/config.pbtxt": render("triton/config.pbtxt", values),
        f"{repository}/1/model.onnx": folded.content,
        f"{repository}/labels.txt": ("\n".join(safe_labels(manifest.classes)) + "\n").encode(),
        "client.py": render("triton/client.py", values),
        "README.md": render("triton/README.md", values),
    }
    return Kit(files, parity=folded.parity)


def gstreamer(subject: Subject) -> Kit:
    """A pipeline that ends in an appsink, classified by edgeda.runtime."""
    subject.onnx  # noqa: B018 - OpenVINO and GStreamer do not share a process well
    return _scripted(subject, "gstreamer", "pipeline.py")


def python(subject: Subject) -> Kit:
    """A script for cameras and files with OpenCV, classified by edgeda.runtime."""
    return _scripted(subject, "python", "classify.py")


def _scripted(subject: Subject, kit: str, script: str) -> Kit:
    """A script, the model as it is, and the runtime that both need."""
    onnx = subject.path.suffix.lower() == ".onnx"
    engine = "onnxruntime>=1.17,<2" if onnx else "openvino>=2024.4"
    values = {
        "name": subject.name, "model": "model.onnx" if onnx else "model.xml", "engine": engine, "wheel": WHEEL,
        "classes": len(subject.manifest.classes), "size": subject.manifest.preprocessing.size,
    }  # fmt: skip
    files = {
        **subject.model_files,
        WHEEL: runtime_wheel(),
        script: render(f"{kit}/{script}", values),
        "requirements.txt": render(f"{kit}/requirements.txt", values),
        "README.md": render(f"{kit}/README.md", values),
        "JETSON.md": plain("jetson/JETSON.md"),
        "Dockerfile": plain(f"jetson/{kit}.Dockerfile"),
    }
    return Kit(files)


def _frame_crop(subject: Subject) -> dict[str, str]:
    """The part of a frame of FRAME that the network was trained to see, as `src-crop` and in words."""
    width, height = FRAME
    pixels = subject.manifest.preprocessing
    if pixels.resize == "squash":
        return {"src_crop": f"0:0:{width}:{height}"}
    side = round(min(width, height) * pixels.size / pixels.stored_size)
    return {"src_crop": f"{(width - side) // 2}:{(height - side) // 2}:{side}:{side}"}


def _shapes(size: int, least: int, most: int) -> str:
    """trtexec's range of batches, which it refuses for a model of one batch size."""
    return " ".join(
        f"--{option}Shapes={INPUT}:{batch}x3x{size}x{size}"
        for option, batch in (("min", least), ("opt", most), ("max", most))
    )


def _nvinfer_geometry(subject: Subject) -> str:
    pixels, (width, height) = subject.manifest.preprocessing, FRAME
    if pixels.resize == "squash":
        return (
            "The model was trained on whole images stretched to a square, which is what nvinfer does: nothing to set."
        )
    return (
        f"The model was trained on central squares (the shorter side at {pixels.stored_size} pixels, then the central "
        f"{pixels.size}); nvinfer stretches the whole frame instead. Crop before it: for frames of {width} x {height}, "
        f"`nvvideoconvert src-crop={_frame_crop(subject)['src_crop']}`. Boxes of a detector are stretched, too: make "
        "them near square, or train with `data.resize=squash`."
    )


KITS: dict[str, Callable[[Subject], Kit]] = {
    "deepstream": deepstream, "triton": triton, "gstreamer": gstreamer, "python": python,
}  # fmt: skip
