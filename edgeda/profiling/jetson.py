"""What a Jetson tells of itself: its software, its power mode, its clocks, how warm it is. Files only, no root."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = {
    "jetpack": ("nvidia-jetpack",),
    "tensorrt": ("tensorrt", "libnvinfer10", "libnvinfer8", "libnvinfer-bin"),
}
"""Which Debian packages tell a version, the surest first."""


def jetson_model(root: Path) -> str | None:
    """The module's name in the device tree; None on a machine that is no Jetson."""
    model = read_text(root / "proc/device-tree/model")
    return model if "Jetson" in model or "NVIDIA" in model else None


def jetson_state(root: Path) -> dict[str, Any] | None:
    """L4T, JetPack, TensorRT, power mode, clocks in MHz and temperatures in degrees C; None on another machine.

    What cannot be read is None or empty. `clocks` has for `cpu` and `gpu` the frequency now and the
    limits; `pinned` says that all are held at their upper limit, as jetson_clocks does.
    """
    if jetson_model(root) is None:
        return None
    versions = _package_versions(root, {name for names in PACKAGES.values() for name in names})
    clocks = _clocks(root)
    return {
        "l4t": _l4t(root),
        **{key: next((versions[name] for name in names if name in versions), None) for key, names in PACKAGES.items()},
        "power_mode": _power_mode(root),
        "clocks": clocks,
        "pinned": all(clock["min_mhz"] == clock["max_mhz"] for clock in clocks.values()) if clocks else None,
        "temperature_c": dict(_temperatures(root)),
    }


def jetson_line(state: dict[str, Any]) -> str:
    """`jetson_state()` in one short line."""
    mode, pinned = state["power_mode"], state["pinned"]
    parts = [f"{title} {state[key]}" for key, title in _TITLES if state[key]]
    if mode:
        parts.append(f"power mode {mode['name'] or mode['id']}")
    if pinned is not None:
        parts.append("clocks pinned" if pinned else "clocks not pinned (jetson_clocks)")
    if state["temperature_c"]:
        parts.append(f"{max(state['temperature_c'].values()):.0f} degrees C")
    return ", ".join(parts)


_TITLES = (("jetpack", "JetPack"), ("l4t", "L4T"), ("tensorrt", "TensorRT"))


def read_text(path: Path) -> str:
    """A small file of /proc, /sys or /etc without its trailing zero byte or newline; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\x00 \n")
    except OSError:
        return ""


def read_number(path: Path) -> float | None:
    """The number that a file of /sys holds; None where there is none."""
    try:
        return float(read_text(path))
    except ValueError:
        return None


def _l4t(root: Path) -> str | None:
    """`# R36 (release), REVISION: 4.3, ...` is 36.4.3."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", read_text(root / "etc/nv_tegra_release"))
    return f"{found.group(1)}.{found.group(2)}" if found else None


def _package_versions(root: Path, names: set[str]) -> dict[str, str]:
    """Versions of installed Debian packages, without epoch and build: `10.3.0.30-1+cuda12.5` is 10.3.0.30."""
    found: dict[str, str] = {}
    for paragraph in read_text(root / "var/lib/dpkg/status").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Package") in names and fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = re.sub(r"^\d+:|[-+].*$", "", fields.get("Version", ""))
    return found


def _power_mode(root: Path) -> dict[str, Any] | None:
    """The mode that nvpmodel set, with its name from nvpmodel.conf."""
    found = re.search(r"pmode:\s*(\d+)", read_text(root / "var/lib/nvpmodel/status"))
    if found is None:
        return None
    number = int(found.group(1))
    named = re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", read_text(root / "etc/nvpmodel.conf"))
    return {"id": number, "name": {int(known): name for known, name in named}.get(number)}


def _clocks(root: Path) -> dict[str, dict[str, float | None]]:
    files = {"cpu": (root / "sys/devices/system/cpu/cpu0/cpufreq", "scaling_{}_freq", 1e3)}
    for gpu in _folders(root / "sys/class/devfreq"):
        if gpu.name.endswith((".gpu", ".ga10b", ".gv11b", "-gpc-0", "gpu-gpc-0")):
            files["gpu"] = (gpu, "{}_freq", 1e6)
    clocks = {
        name: {f"{key}_mhz": _scaled(folder / pattern.format(key), unit) for key in ("cur", "min", "max")}
        for name, (folder, pattern, unit) in files.items()
    }
    return {name: clock for name, clock in clocks.items() if clock["max_mhz"] is not None}


def _scaled(path: Path, unit: float) -> float | None:
    value = read_number(path)
    return None if value is None else value / unit


def _temperatures(root: Path) -> Iterator[tuple[str, float]]:
    for zone in _folders(root / "sys/class/thermal"):
        name, value = read_text(zone / "type"), _scaled(zone / "temp", 1e3)
        if zone.name.startswith("thermal_zone") and name and value is not None:
            yield name, value


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []
