"""How fast a device could be at best: a roofline over the layers. A lower bound of latency, never a measurement.

A layer takes at least `max(2 x MACs / peak, bytes / bandwidth)`; a network the sum of its layers. Bytes are its
weights once, what it takes, and what it makes, at its precision; normalization, activation functions, pooling and
launching cost nothing here, and every unit is always busy. Real devices need more, small networks many times more.
Two things could undercut it: Winograd convolutions (fewer multiplications), and caches that keep activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeda.errors import InputError, did_you_mean
from edgeda.profiling.layers import Layer

LABEL = "lower bound, not a measurement"
PRECISIONS = ("fp32", "fp16", "int8")
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_DENSE = (
    "dense int8 is half of the published sparse int8, fp16 a quarter, fp32 an eighth (TF32 on tensor cores, "
    "TensorRT's default)"
)


@dataclass(frozen=True)
class Device:
    """Peaks of a device, dense, at its highest published clocks: operations are twice the multiply-accumulates."""

    name: str
    title: str
    tera_ops: Mapping[str, float]
    """10^12 operations a second by precision."""
    bandwidth_gb_s: float
    source: str


def _jetson(name: str, title: str, sparse_int8: float, bandwidth: float, source: str) -> Device:
    shares = {"int8": 2, "fp16": 4, "bf16": 4, "fp32": 8}
    peaks = {precision: sparse_int8 / share for precision, share in shares.items()}
    told = f"NVIDIA's module data, GPU alone: {source}; {_DENSE}"
    return Device(name, title, peaks, bandwidth, told)


DEVICES = {
    device.name: device
    for device in (
        _jetson("orin-nano", "Jetson Orin Nano 8GB", 40, 68, "40 sparse int8 TOPS, 68 GB/s"),
        _jetson("orin-nano-super", "Jetson Orin Nano 8GB, Super mode", 67, 102, "67 sparse int8 TOPS, 102 GB/s"),
        _jetson("orin-nx", "Jetson Orin NX 16GB", 60, 102.4,
                "60 sparse int8 TOPS (100 published, of which 40 are the two DLAs'), 102.4 GB/s"),
        _jetson("agx-orin", "Jetson AGX Orin 64GB, MAXN", 171, 204.8,
                "171 sparse int8 TOPS in MAXN (109 at 50 W, 41 at 30 W, 14 at 15 W; 275 published, of which 105 are "
                "the two DLAs'), 204.8 GB/s"),
        _jetson("thor", "Jetson T5000 (AGX Thor), MAXN", 1035, 273,
                "1035 sparse fp8 TFLOPS, half of the published 2070 in sparse fp4; int8 is not published and taken "
                "for as fast as fp8, 273 GB/s"),
    )
}  # fmt: skip


def find_devices(names: Sequence[str]) -> list[Device]:
    """Devices by name; InputError with the nearest known name."""
    for name in names:
        if name not in DEVICES:
            raise InputError(f"no published peaks of '{name}'{did_you_mean(name, DEVICES)}")
    if not names:
        raise InputError(f"no device to estimate for; known: {', '.join(DEVICES)}")
    return [DEVICES[name] for name in dict.fromkeys(names)]


def this_machine(peaks: Mapping[str, Any]) -> Device:
    """A device made of the peaks that `measure_peaks` found; int8 only where it was measured."""
    tera = {"fp32": peaks["fp32_gflops"] / 1e3}
    if peaks["int8_gops"] is not None:
        tera["int8"] = peaks["int8_gops"] / 1e3
    source = f"measured: matrix products and copies on {peaks['threads']} threads"
    return Device("this-machine", "this machine's CPU", tera, peaks["bandwidth_gb_s"], source)


def estimate(model: str, layers: Sequence[Layer], device: Device, precision: str | None = None) -> dict[str, Any]:
    """The lower bound in ms for one image, the rate that goes with it, and each layer's part.

    `precision` holds for every layer; None takes each layer's own. Raises InputError when the device has
    no peak for it, and when there are no layers.
    """
    counted = [layer for layer in layers if not layer.fused]
    if not counted:
        raise InputError(f"{model} has no layer to estimate")
    parts = [_layer(layer, device, precision or layer.precision) for layer in counted]
    total = sum(part["ms"] for part in parts)
    bound = sum(part["ms"] for part in parts if part["bound"] == "memory")
    return {
        "model": model,
        "device": device.name,
        "title": device.title,
        "precision": precision or "/".join(dict.fromkeys(layer.precision for layer in counted)),
        "lower_bound_ms": total,
        "images_per_s_at_most": 1e3 / total,
        "memory_bound_share": bound / total,
        "label": LABEL,
        "source": device.source,
        "layers": parts,
    }


def _layer(layer: Layer, device: Device, precision: str) -> dict[str, Any]:
    if precision not in device.tera_ops:
        known = ", ".join(device.tera_ops)
        raise InputError(f"{device.title}: no peak is known for {precision}, only for {known}")
    compute = 2 * layer.macs / (device.tera_ops[precision] * 1e12) * 1e3
    moved = (layer.params + layer.inputs + layer.activations) * _BYTES[precision]
    memory = moved / (device.bandwidth_gb_s * 1e9) * 1e3
    return {
        "name": layer.name,
        "ms": max(compute, memory),
        "compute_ms": compute,
        "memory_ms": memory,
        "bound": "memory" if memory > compute else "compute",
    }


def against(measured_ms: float, estimated: Mapping[str, Any]) -> dict[str, Any]:
    """An estimate beside what was measured: `ratio` measured over estimated, `error` of the estimate in percent."""
    bound = estimated["lower_bound_ms"]
    return {
        **{key: value for key, value in estimated.items() if key != "layers"},
        "measured_ms": measured_ms,
        "ratio": measured_ms / bound,
        "error_percent": 100 * (bound - measured_ms) / measured_ms,
    }
