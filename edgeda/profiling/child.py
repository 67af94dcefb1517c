"""A fresh process that measures what a used one cannot: `python -m edgeda.profiling.child`, JSON in, JSON out.

A request is `{"task": "memory", "subject": {...}, "threads": 2, "batches": [1, 8]}` or
`{"task": "peaks", "threads": 2}`; the answer is the last line of stdout.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import edgeda
from edgeda.errors import EdgedaError, MachineError, one_line

Answer = dict[str, Any]


def in_fresh_process(request: Mapping[str, Any], timeout_s: float = 300.0) -> Answer:
    """Send a request to a new Python; MachineError with its reason when it fails, EdgedaErrors as MachineError too."""
    package = str(Path(edgeda.__file__).parents[1])
    known = os.environ.get("PYTHONPATH")
    threads = str(request["threads"])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, *([known] if known else [])]),
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads),
    }
    command = [sys.executable, "-m", "edgeda.profiling.child"]
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=timeout_s, env=environment,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MachineError(f"measuring in a fresh process took longer than {timeout_s:.0f} s") from None
    except OSError as error:
        raise MachineError(f"no fresh process could be started: {one_line(error)}") from error
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MachineError(f"a fresh process ended without an answer: {last[:200]}") from None
    if "error" in answer:
        raise MachineError(str(answer["error"]))
    return dict(answer)


def resident_mb(which: str = "VmRSS", status: Path = Path("/proc/self/status")) -> float | None:
    """Resident memory of this process in 10^6 bytes, now (`VmRSS`) or at most (`VmHWM`); None where Linux is not."""
    try:
        found = re.search(rf"^{which}:\s*(\d+) kB", status.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 / 1e6 if found else None


def memory(request: Mapping[str, Any]) -> Answer:
    """Peak resident memory after one call at each batch size, ascending, and what was resident before opening."""
    from edgeda.profiling.opening import subject_from
    from edgeda.profiling.subjects import input_for

    subject = subject_from(request["subject"])
    subject.prepare()
    before = resident_mb()
    opened = subject.open(int(request["threads"]), count=False)
    peaks = {}
    for batch in sorted(request["batches"]):
        opened.backend(input_for(opened.backend, batch))
        peaks[str(batch)] = resident_mb("VmHWM")
    return {"before_mb": before, "peak_mb": peaks, "load_ms": opened.load_ms}


def peaks(request: Mapping[str, Any]) -> Answer:
    """Measured peaks of this machine's CPU."""
    from edgeda.profiling.peaks import measure_peaks

    return measure_peaks(int(request["threads"]))


TASKS: dict[str, Callable[[Mapping[str, Any]], Answer]] = {"memory": memory, "peaks": peaks}


def main() -> None:
    """Answer the request on stdin."""
    request = json.load(sys.stdin)
    try:
        answer = TASKS[request["task"]](request)
    except EdgedaError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "not enough memory"}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
