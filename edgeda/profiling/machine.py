"""What machine this is: the words that every measured number carries."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from edgeda.profiling.jetson import jetson_line, jetson_model, jetson_state, read_number, read_text
from edgeda.runtime.cores import usable_cores

ROOT = Path("/")


def machine(root: Path = ROOT) -> dict[str, Any]:
    """CPU, cores, threads, memory, system, Python, and what else the machine tells of itself.

    `cores` are physical, `threads` those this process may use, `memory_gb` is 10^9 bytes. `governor`,
    `power_mode` (nvpmodel's on a Jetson, the platform profile elsewhere), `jetson` (the module's name)
    and `jetson_state` are None and `gpus` empty where there is nothing to read. `root` is the file
    system that holds /proc, /sys, /etc and /var.
    """
    information = read_text(root / "proc/cpuinfo")
    state = jetson_state(root)
    return {
        "cpu": _cpu_model(information),
        "cores": _physical_cores(information),
        "threads": usable_threads(),
        "memory_gb": _memory_gb(root),
        "os": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "python": platform.python_version(),
        "governor": read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "frequency_mhz": _frequency_mhz(root, information),
        "power_mode": _power_mode(root, state),
        "jetson": jetson_model(root),
        "jetson_state": state,
        "gpus": nvidia_gpus(),
    }


def machine_line(described: dict[str, Any] | None = None) -> str:
    """`machine()` in one short line, for under a table."""
    facts = machine() if described is None else described
    threads = facts.get("threads")
    parts = [str(facts.get("jetson") or facts.get("cpu")), f"{threads} thread{'' if threads == 1 else 's'}"]
    if facts.get("memory_gb"):
        parts.append(f"{facts['memory_gb']:.0f} GB")
    gpus = facts.get("gpus") or []
    parts += [gpu["name"] for gpu in gpus[:1]]
    if len(gpus) > 1:
        parts[-1] = f"{len(gpus)} x {parts[-1]}"
    if facts.get("governor"):
        parts.append(f"governor {facts['governor']}")
    if facts.get("jetson_state"):
        parts.append(jetson_line(facts["jetson_state"]))
    elif facts.get("power_mode"):
        parts.append(f"power mode {facts['power_mode']}")
    return ", ".join([*parts, str(facts.get("os")), f"Python {facts.get('python')}"])


def usable_threads() -> int:
    """Logical CPUs this process may run on, or OMP_NUM_THREADS where that is set to fewer."""
    count, asked = usable_cores(), os.environ.get("OMP_NUM_THREADS", "")
    return min(count, int(asked)) if asked.isdecimal() and int(asked) else count


def compute_threads(root: Path = ROOT) -> int:
    """Threads worth computing on: one per physical core this process may use."""
    return min(_physical_cores(read_text(root / "proc/cpuinfo")), usable_threads())


def cpu_flags(root: Path = ROOT) -> frozenset[str]:
    """Instruction-set flags of the first CPU (`flags` on x86, `Features` on Arm); empty when not told."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", read_text(root / "proc/cpuinfo"), re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def nvidia_gpus(timeout_s: float = 5.0) -> list[dict[str, str]]:
    """`name`, `driver` and `memory` of each NVIDIA GPU that nvidia-smi lists; empty without a driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=timeout_s, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [{"name": row[0], "driver": row[1], "memory": row[2]} for row in rows if len(row) == 3]


def _field(information: str, name: str) -> list[str]:
    return re.findall(rf"^{name}\s*:\s*(.*?)\s*$", information, re.MULTILINE)


def _cpu_model(information: str) -> str:
    models = _field(information, "model name")
    return models[0] if models else platform.processor() or platform.machine() or "unknown CPU"


def _physical_cores(information: str) -> int:
    cores = set(zip(_field(information, "physical id"), _field(information, "core id"), strict=False))
    return len(cores) or len(_field(information, "processor")) or os.cpu_count() or 1


def _frequency_mhz(root: Path, information: str) -> float | None:
    """Of the first CPU, now."""
    kilohertz = read_number(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if kilohertz is not None:
        return kilohertz / 1e3
    told = _field(information, "cpu MHz")
    return float(told[0]) if told and re.fullmatch(r"[\d.]+", told[0]) else None


def _power_mode(root: Path, jetson: dict[str, Any] | None) -> str | None:
    if jetson is not None:
        mode = jetson["power_mode"]
        return None if mode is None else mode["name"] or str(mode["id"])
    return read_text(root / "sys/firmware/acpi/platform_profile") or None


def _memory_gb(root: Path) -> float | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", read_text(root / "proc/meminfo"), re.MULTILINE)
    return round(int(found.group(1)) * 1024 / 1e9, 1) if found else None
