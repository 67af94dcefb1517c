"""No command opens a connection unless it is asked to: seen from inside Python, and by the kernel.

All commands run in one process without a network (`unshare -n`, where this is root), under strace where it is there.
Python's own audit events tell of every socket that Python opens; strace tells of those that native libraries open.
Connections to a file of this machine (AF_UNIX) are not the network.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import TINY, Folders

CHILD = """
import json, socket, sys, traceback

tried = []

def caller():
    return [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()[-12:-2]]

def watch(event, arguments):
    if event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
        tried.append([event, repr(arguments[1]), caller()])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        tried.append([event, repr(arguments), caller()])

sys.addaudithook(watch)
from edgeda.cli import main

results = []
for command in json.loads(sys.argv[1]):
    before = len(tried)
    sys.argv = ["edgeda", *command]
    try:
        main()
    except SystemExit as ended:
        results.append({"command": command, "code": ended.code or 0, "tried": tried[before:]})
json.dump(results, open("results.json", "w"))
"""


@dataclass(frozen=True)
class Watched:
    results: list[dict]
    errors: str
    traced: bool
    connections: list[str] = field(default_factory=list)


def prefix(trace: Path) -> list[str]:
    """No network if root may take it away, and strace if it is there and may trace."""
    found: list[str] = []
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0:
        found += ["unshare", "-n"]
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(trace), "-e", "trace=connect,sendto"]
    if shutil.which("strace") and subprocess.run([*strace, "true"], capture_output=True).returncode == 0:
        found += strace
    return found


@pytest.fixture(scope="module")
def watched(folders: Folders, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Every command of a whole life, in the order of that life."""
    where = tmp_path_factory.mktemp("offline")
    run = "run"
    commands = [
        ["datasets", "list"],
        ["doctor"],
        ["adapt", *folders.arguments, *TINY, "--epochs", "1", "--out", run],
        ["evaluate", run, "--data", str(folders.target_test)],
        ["export", run, "--onnx"],
        ["export", run, "--openvino", "--precision", "int8", "--out", "openvino"],
        ["predict", run, "--source", str(folders.target_test)],
        ["profile", run, "--seconds", "0.01"],
        ["report", run, "--seconds", "0.01"],
        ["compare", run, "--seconds", "0.01"],
        ["bundle", run, "--for", "triton", "--out", "kit"],
    ]
    trace = where / "trace.txt"
    before = prefix(trace)
    quiet = {name: value for name, value in environment.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    quiet["HOME"] = str(where)  # nobody has declined telemetry here
    quiet["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*before, sys.executable, "-c", CHILD, json.dumps(commands)],
        cwd=where, env=quiet, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert (where / "results.json").is_file(), done.stderr
    calls = trace.read_text(errors="replace").splitlines() if trace.exists() else []
    internet = [line for line in calls if re.search(r"\bAF_INET6?\b", line)]
    return Watched(json.loads((where / "results.json").read_text()), done.stderr, trace.exists(), internet)


def test_every_command_works_without_a_network(watched: Watched):
    assert {tuple(result["command"][:2]): result["code"] for result in watched.results if result["code"]} == {}, (
        watched.errors
    )


def test_no_command_asks_python_for_a_connection(watched: Watched):
    assert {tuple(result["command"][:2]): result["tried"] for result in watched.results if result["tried"]} == {}


def test_no_command_asks_the_kernel_for_a_connection(watched: Watched):
    if not watched.traced:
        pytest.skip("strace is not installed, or may not trace here")
    assert watched.connections == []


def test_the_watch_would_see_a_connection(tmp_path: Path):
    """The same watch over a process that does try: otherwise the tests above could not fail."""
    trace = tmp_path / "trace.txt"
    code = "import socket\ns = socket.socket()\ns.settimeout(1)\ns.connect_ex(('127.0.0.1', 9))\n"
    child = CHILD.replace("from edgeda.cli import main", f"def main():\n    exec({code!r})\n    sys.exit(0)")
    subprocess.run(
        [*prefix(trace), sys.executable, "-c", child, json.dumps([["try"]])], cwd=tmp_path, check=True, timeout=60
    )
    ((event, *_),) = json.loads((tmp_path / "results.json").read_text())[0]["tried"]
    assert event == "socket.connect"
    assert not trace.exists() or "AF_INET" in trace.read_text()
