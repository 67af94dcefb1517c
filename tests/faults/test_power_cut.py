"""What the system is asked for, and in which order: after a power cut there is the old file or the new one, whole."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Folders
from tests.faults.conftest import SHORT
from tests.faults.driver import ROOT, adapt_arguments
from tests.fuzz.traced import calls

STRACE = ["strace", "-f", "-q", "-y", "--seccomp-bpf", "-s", "0", "-e", "signal=none"]
WRITES, SYNCS, RENAMES = ("write", "pwrite64", "writev"), ("fsync", "fdatasync"), ("rename", "renameat", "renameat2")
TRACED = f"trace={','.join((*WRITES, *SYNCS, '?rename', '?renameat', 'renameat2', '?mkdir', 'mkdirat'))}"
CHILD = """
import json, sys
from edgeda.cli import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["edgeda", *command]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""
Event = tuple[str, str, str]
"""write, sync, rename or mkdir; the path; the new name."""


def events(trace: str, root: Path) -> Iterator[Event]:
    """What was done below a folder, in order."""
    for name, words, result in calls(trace):
        paths = (
            re.findall(r'"([^"]+)"', words) if name.startswith(("rename", "mkdir")) else re.findall("<(.+?)>", words)
        )
        if result < 0 or not paths or not paths[0].startswith(str(root)):
            continue
        kind = "write" if name in WRITES else "sync" if name in SYNCS else "rename" if name in RENAMES else "mkdir"
        yield kind, paths[0], paths[-1]


def problems(happened: list[Event]) -> list[str]:
    """What a power cut could make of it: a name whose content is not on the disk, or one that is not there itself."""
    found: list[str] = []
    loose: set[str] = set()
    """Files with content that is not on the disk."""
    nameless: dict[str, str] = {}
    """Folders in which a name was given that is not on the disk."""
    for kind, path, new in happened:
        if kind == "write":
            found += [f"{path} is written before {name} is on the disk" for name in nameless.values()]
            if not path.endswith(".part") and "/.export-" not in path:
                found.append(f"{path} is written under its own name")
            loose.add(path)
        elif kind == "sync":
            loose.discard(path)
            nameless.pop(path, None)
        elif "/.export-" not in new:
            nameless[str(Path(new).parent)] = new
            if path in loose:
                found.append(f"{new} takes its name before its content is on the disk")
    return found + [f"{name} is never on the disk" for name in nameless.values()]


@pytest.fixture(scope="module")
def happened(folders: Folders, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """A run and its export under strace."""
    if shutil.which("strace") is None or subprocess.run([*STRACE, "true"], capture_output=True).returncode:
        pytest.skip("strace is not installed, or may not trace here")
    where = tmp_path_factory.mktemp("power")
    run = where / "runs" / "run"
    adapt = [*adapt_arguments(folders.source, folders.target, run), *SHORT]
    commands = [[str(word) for word in command] for command in (adapt, ["export", run, "--threads", 1])]
    subprocess.run(
        [*STRACE, "-o", str(where / "trace"), "-e", TRACED, sys.executable, "-c", CHILD, json.dumps(commands)],
        cwd=where, env={**environment, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return list(events((where / "trace").read_text("utf-8", "surrogateescape"), where))


def test_content_then_name_then_folder(happened: list[Event]):
    assert problems(happened) == []
    renamed = {Path(new).name for kind, _, new in happened if kind == "rename"}
    weights = {"student.safetensors", "teacher.safetensors", "source_only.safetensors"}
    checkpoints, exported = {"state.safetensors", "previous.safetensors"}, {"student.onnx", "manifest.json"}
    assert renamed == {"recipe.yaml", "metrics.jsonl", "summary.json", *weights, *checkpoints, *exported}
    written = {Path(path).name.removesuffix(".part") for kind, path, _ in happened if kind == "write"}
    assert written == renamed - {"previous.safetensors"}


@pytest.mark.parametrize("kind", ["sync file", "sync folder", "rename"])
def test_the_order_would_be_missed(kind: str):
    """The same judge over what is wrong: otherwise the test above could not fail."""
    whole = {
        "write": ("write", "/run/a.part", "/run/a.part"), "sync file": ("sync", "/run/a.part", "/run/a.part"),
        "rename": ("rename", "/run/a.part", "/run/a"), "sync folder": ("sync", "/run", "/run"),
    }  # fmt: skip
    assert problems(list(whole.values())) == []
    if kind == "rename":
        whole = {"write": ("write", "/run/a", "/run/a"), "sync": ("sync", "/run/a", "/run/a")}
    assert len(problems([event for name, event in whole.items() if name != kind])) == 1
