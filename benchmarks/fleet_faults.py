"""What befalls a fleet, one case after the other, each compared with an undisturbed run; exits with 1 if one differs.

    python benchmarks/fleet_faults.py [CASE...] [--kills 30] [--seed 0]

Killed with -9 in mid-fleet: a worker, the raylet of a second node, the driver. Drivers and workers killed at random
moments, so many in all, three to six in each fleet. Ctrl-C to the whole process group. Then
what must end in one line: a target that one node does not see, a disk that is full on one node, a driver of another
edgeda or Python, a GPU that nobody has. Nodes are Ray's own on this machine (`ray.cluster_utils`); those that see less
than the driver have mounts and a host name of their own (`unshare`, as root). All data lie on a path that both see.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
CAMERAS = 3
WAIT_S = 400.0
NETWORK = {"backbone": "resnet10t", "pretrained": "none"}
RECIPE = {
    "data": {"source": "", "target": "", "input_size": 32, "resize": "squash", "crop_pct": 1.0},
    "teacher": NETWORK, "student": NETWORK,
    "train": {"epochs": 2, "warmup_epochs": 1, "batch_size": 16, "precision": "fp32", "checkpoint_minutes": 0.01},
}  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PLAIN = "from edgeda.cli import main; main()"


class Site:
    """A fleet's file and folders below a root."""

    def __init__(self, root: Path, kills: int, seed: int) -> None:
        from fleet import write_images

        self.root, self.kills, self.random = root, kills, random.Random(seed)
        self.seconds = 0.0
        """What the undisturbed fleet took."""
        ENVIRONMENT["EDGEDA_CACHE"] = str(root / "cache")
        write_images(root, CAMERAS)
        self.file = self.write("FLEET.yaml", {})

    def write(self, name: str, changes: dict[str, Any]) -> Path:
        """A FLEET.yaml."""
        import yaml

        (self.root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        cameras = {f"camera-{number}": str(self.root / f"camera-{number}") for number in range(CAMERAS)}
        values = {"recipe": str(self.root / "recipe.yaml"), "source": str(self.root / "source"), "cameras": cameras}
        (self.root / name).write_text(yaml.safe_dump({**values, **changes}))
        return self.root / name

    def start(self, out: str, *options: str, file: Path | None = None, program: str = PLAIN) -> subprocess.Popen[str]:
        """`edgeda fleet`, in a process group of its own."""
        command = [sys.executable, "-c", program, "fleet", str(file or self.file), "--out", str(self.root / out)]
        return subprocess.Popen(
            [*command, *options], env=ENVIRONMENT, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, out: str, *options: str, **how: Any) -> tuple[int, str]:
        """Exit code and stderr of `edgeda fleet`, to its end."""
        return ended(self.start(out, *options, **how))

    def state(self, out: str, number: int) -> dict[str, Any]:
        """What is known of a camera."""
        path = self.root / out / "state" / "cameras" / f"camera-{number}.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def busy(
        self,
        out: str,
        process: subprocess.Popen[str],
        fits: Callable[[int], bool] = lambda pid: True,
        finished: int = 1,
    ) -> int:
        """The process of a camera that is adapting and has saved its state, when so many have finished."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until and process.poll() is None:
            states = [self.state(out, number) for number in range(CAMERAS)]
            enough = sum(state.get("status") == "finished" for state in states) >= finished
            for number, state in enumerate(states):
                saved = (self.root / out / "cameras" / f"camera-{number}" / "checkpoint").is_dir()
                adapting = state.get("stage") == "joint" and state["status"] == "running" and saved
                if enough and adapting and fits(state["pid"]):
                    return int(state["pid"])
            time.sleep(0.02)
        raise SystemExit(f"no camera was adapting: {ended(process)}")

    def processes(self, beginning: str = "") -> list[Any]:
        """Ray's processes of this site's fleets, by how their command begins."""
        import psutil

        found = []
        for process in psutil.process_iter():
            try:
                command = " ".join(process.cmdline())
                ours = process.environ().get("EDGEDA_CACHE") == ENVIRONMENT["EDGEDA_CACHE"]
            except psutil.Error:
                continue
            if ours and ("/ray/" in command or "ray::" in command) and command.startswith(beginning):
                found.append(process)
        return found

    def written(self, out: str) -> dict[str, int]:
        """When the weights of finished cameras were written."""
        done = [number for number in range(CAMERAS) if self.state(out, number).get("status") == "finished"]
        folders = [self.root / out / "cameras" / f"camera-{number}" for number in done]
        return {folder.name: (folder / "student.safetensors").stat().st_mtime_ns for folder in folders}

    def weights(self, out: str) -> list[bytes]:
        """The students and source-only students of all cameras."""
        folders = [self.root / out / "cameras" / f"camera-{number}" for number in range(CAMERAS)]
        return [
            (folder / f"{role}.safetensors").read_bytes() for folder in folders for role in ("student", "source_only")
        ]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr."""
    _, err = process.communicate(timeout=WAIT_S)
    return process.returncode, err


@contextmanager
def two_nodes(head: int = 1, second: int = 1) -> Iterator[Any]:
    """A cluster of Ray on this machine: its address, and its second node where it has CPUs."""
    from ray.cluster_utils import Cluster

    memory = 80 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head, "object_store_memory": memory})
    try:
        node = cluster.add_node(num_cpus=second, object_store_memory=memory) if second else None
        yield cluster, node
    finally:
        cluster.shutdown()


@contextmanager
def odd_node(address: str, mounts: str) -> Iterator[None]:
    """A node `node-b` with one CPU that sees other disks than the driver does."""
    start = f"{sys.executable} -c 'from ray.scripts.scripts import main; main()' start --address={address} --num-cpus=1"
    script = f"hostname node-b; {mounts}; exec {start} --object-store-memory={80 * 2**20} --block"
    process = subprocess.Popen(
        ["unshare", "-mu", "sh", "-c", script], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        time.sleep(12)  # `ray start` has no sign of its own that a node is there but what it prints
        yield
    finally:
        process.terminate()
        process.wait(60)


def finishes_equally(site: Site, out: str, process: subprocess.Popen[str] | None, *again: str) -> str:
    """Let a disturbed fleet go on, or start it again; what is wrong, or nothing."""
    before = site.written(out)
    code, err = ended(process) if process is not None else site.run(out, *again)
    after = site.written(out)
    if code or "Traceback" in err:
        return f"exit code {code}: {err}"
    if {name: after[name] for name in before} != before:
        return "a finished camera was made again"
    if site.weights(out) != site.weights("undisturbed"):
        return "the students differ"
    attempts = [site.state(out, number)["attempt"] for number in range(CAMERAS)]
    print(f"    {len(before)} of {CAMERAS} cameras had finished; attempts {attempts}")
    return ""


def killed_worker(site: Site) -> str:
    """A worker is killed with -9; the fleet goes on by itself."""
    process = site.start("worker", "--workers", "2")
    os.kill(site.busy("worker", process), signal.SIGKILL)
    return finishes_equally(site, "worker", process)


def killed_driver(site: Site) -> str:
    """The driver is killed with -9; the same command goes on."""
    process = site.start("driver", "--workers", "2")
    site.busy("driver", process)
    process.kill()
    process.communicate()
    return finishes_equally(site, "driver", None, "--workers", "2")


def killed_at_random(site: Site) -> str:
    """Drivers and workers are killed with -9 at random moments; the fleet or the same command goes on."""
    killed: Counter[str] = Counter()
    fleets = left = 0
    file = site.write("patient.yaml", {"retries": 9})
    while killed.total() < site.kills:
        out, process = f"random-{fleets}", None
        fleets += 1
        for _ in range(site.random.randint(3, 6)):
            process = process or site.start(out, "--workers", "2", file=file)
            try:
                process.wait(site.random.uniform(0.0, 0.6 * site.seconds))
                break
            except subprocess.TimeoutExpired:
                workers = site.processes("ray::")
            if workers and site.random.random() < 0.5:
                site.random.choice(workers).kill()
                killed["workers"] += 1
                continue
            process.kill()
            process.communicate()
            killed["drivers"] += 1
            process = None
            left += bool(still_there(site))
        wrong = finishes_equally(site, out, process or site.start(out, "--workers", "2", file=file))
        if parts := [
            path.name for path in (site.root / out).rglob("*") if ".part" in path.name or "/.tmp" in str(path)
        ]:
            wrong = f"{wrong} left over: {parts}".strip()
        if wrong or left:
            return wrong or "processes of Ray outlived their driver"
        shutil.rmtree(site.root / out)
        print(f"    {killed['drivers']} drivers and {killed['workers']} workers killed in {fleets} fleets", flush=True)
    return ""


def still_there(site: Site, wait_s: float = 30.0) -> list[Any]:
    """Ray's processes that have not ended with their driver after a while; they are ended."""
    until = time.monotonic() + wait_s
    while (found := site.processes()) and time.monotonic() < until:
        time.sleep(0.2)
    for process in found:
        with suppress(Exception):
            process.kill()
    return found


def killed_node(site: Site) -> str:
    """The raylet of a second node is killed with -9; the fleet goes on by itself on the first."""
    import psutil

    with two_nodes() as (cluster, node):
        process = site.start("node", "--address", cluster.address)
        raylet = node.all_processes["raylet"][0].process.pid
        site.busy("node", process, lambda pid: psutil.pid_exists(pid) and psutil.Process(pid).ppid() == raylet, 0)
        cluster.remove_node(node, allow_graceful=False)
        return finishes_equally(site, "node", process)


def ctrl_c(site: Site) -> str:
    """SIGINT to the whole process group, as a terminal sends it; the same command goes on."""
    process = site.start("signal", "--workers", "2")
    site.busy("signal", process)
    os.killpg(process.pid, signal.SIGINT)
    code, err = ended(process)
    lines = [line for line in err.splitlines() if "the same command goes on" in line]
    if code != 2 or len(lines) != 1 or "Traceback" in err:
        return f"exit code {code}: {err}"
    return finishes_equally(site, "signal", None, "--workers", "2")


def one_line(ran: tuple[int, str], code: int, *said: str) -> str:
    """What is wrong with how a command ended, or nothing."""
    errors = [line for line in ran[1].splitlines() if line.startswith("error: ")]
    if ran[0] != code or len(errors) != 1 or "Traceback" in ran[1] or any(part not in errors[0] for part in said):
        return f"exit code {ran[0]}: {ran[1]}"
    print(f"    {errors[0]}")
    return ""


def unseen_target(site: Site) -> str:
    """One node does not see a target; the others are adapted."""
    hidden = site.root / "hidden" / "camera-2"
    shutil.copytree(site.root / "camera-2", hidden)
    cameras = {f"camera-{number}": str(site.root / f"camera-{number}") for number in range(CAMERAS)}
    file = site.write("hidden.yaml", {"cameras": {**cameras, "camera-2": str(hidden)}})
    with two_nodes(0, 0) as (cluster, _), odd_node(cluster.address, f"mount -t tmpfs none {hidden.parent}"):
        ran = site.run("hidden-runs", "--address", cluster.address, file=file)
    said = ("1 of 3 cameras failed: camera-2", f"no such folder or file on node node-b: {hidden}")
    return one_line(ran, 2, *said)


def full_disk(site: Site) -> str:
    """The disk of the runs is full on one node; after it has room, the same command finishes."""
    runs = site.root / "full" / "cameras"
    runs.mkdir(parents=True)
    with two_nodes(0, 0) as (cluster, _), odd_node(cluster.address, f"mount -t tmpfs -o size=1m none {runs}"):
        ran = site.run("full", "--address", cluster.address)
    wrong = one_line(ran, 2, "3 of 3 cameras failed", "on node node-b", "the disk is full")
    return wrong or finishes_equally(site, "full", None, "--workers", "2")


def other_edgeda(site: Site) -> str:
    """The driver has another edgeda than the cluster."""
    with two_nodes(1, 0) as (cluster, _):
        program = f"import edgeda; edgeda.__version__ = '9.9'; {PLAIN}"
        return one_line(site.run("edgeda", "--address", cluster.address, program=program), 3, "has edgeda", "9.9")


def other_python(site: Site) -> str:
    """The driver has another Python than the cluster."""
    with two_nodes(1, 0) as (cluster, _):
        odd = (
            "import ray._private.utils as utils; utils.compute_version_info = lambda: (utils.ray.__version__, '3.9.1')"
        )
        program = f"{odd}; {PLAIN}"
        return one_line(site.run("python", "--address", cluster.address, program=program), 3, "3.9.1", "cannot be used")


def no_gpu(site: Site) -> str:
    """The recipe asks for a GPU."""
    file = site.write("gpu.yaml", {"set": {"train.device": "cuda"}})
    return one_line(site.run("gpu", "--workers", "1", file=file), 3, "asks for 1 CPUs and 1 GPUs")


CASES = (
    killed_worker, killed_driver, killed_at_random, killed_node, ctrl_c, unseen_target, full_disk, other_edgeda,
    other_python, no_gpu,
)  # fmt: skip


def main() -> None:
    """Every case, or those named."""
    sys.path.insert(0, str(Path(__file__).parent))
    names = [case.__name__ for case in CASES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(names))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.cases) - set(names):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        site = Site(Path(name), options.kills, options.seed)
        began = time.monotonic()
        code, err = site.run("undisturbed", "--workers", "2")
        site.seconds = time.monotonic() - began
        print(f"undisturbed: exit code {code}, {site.seconds:.0f} s {err if code else ''}", flush=True)
        for case in CASES:
            if not options.cases or case.__name__ in options.cases:
                print(f"{case.__name__}: {case.__doc__}", flush=True)
                began = time.monotonic()
                found = case(site)
                if left := still_there(site):
                    found = f"{found} {len(left)} processes of Ray are left".strip()
                wrong += bool(found)
                print(f"    {found or 'as it should be'} ({time.monotonic() - began:.0f} s)", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
