"""Order, retries and Ctrl-C of the queue, with a stand-in for Ray that runs a job when it is waited for."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from edgeda import __version__
from edgeda.errors import Interrupted, MachineError
from edgeda.fleet.cluster import _check_versions, cluster
from edgeda.fleet.scheduler import Job, run_jobs

Record = dict[str, Any]


class RayError(Exception):
    """Ray's own."""


class Killed(BaseException):
    """What a job raises whose process is to die."""


class FakeRay:
    """One node; jobs are run in the order in which they were handed over, the newest of those at work last."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, cpus: float = 1, gpus: float = 0) -> None:
        self.resources = {"CPU": cpus, "GPU": gpus}
        self.most, self.begun, self.cancelled = 0, 0, 0
        self.results: dict[int, Any] = {}
        self.calls: dict[int, Callable[[], Any]] = {}

    def nodes(self) -> list[Record]:
        return [{"Alive": True, "NodeID": "ab" * 28, "Resources": self.resources}]

    def cluster_resources(self) -> Record:
        return self.resources

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        def wrapped(function: Callable[..., Any]) -> Any:
            def start(*arguments: Any) -> int:
                self.begun += 1
                self.calls[self.begun] = lambda: function(*arguments)
                self.most = max(self.most, len(self.calls))
                return self.begun

            handle = SimpleNamespace(remote=start)
            handle.options = lambda **more: handle
            return handle

        return wrapped

    def wait(self, references: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        ready = references[:num_returns]
        for reference in ready:
            try:
                self.results[reference] = self.calls.pop(reference)()
            except Killed:
                self.results[reference] = RayError("the worker died")
        return ready, references[num_returns:]

    def get(self, reference: int) -> Any:
        result = self.results[reference]
        if isinstance(result, RayError):
            raise result
        return result

    def cancel(self, reference: int, force: bool) -> None:
        assert not force
        self.cancelled += 1
        self.calls[reference] = lambda: {"status": "stopped"}


def run(ray: FakeRay, jobs: list[Job], **options: Any) -> list[tuple[str, str]]:
    """Name and status of each job in the order in which they ended."""
    seen: list[tuple[str, str]] = []
    run_jobs(ray, jobs, lambda job, result: seen.append((job.name, result["status"])), **options)
    return seen


def done(work: Record) -> Record:
    return {"status": "finished"}


def wrong(work: Record) -> Record:
    raise ZeroDivisionError


def test_those_that_share_wait_for_the_first_and_those_that_come_after_for_theirs():
    jobs = [
        Job("c", {}, done, shares="s", after="look"), Job("a", {}, done, shares="s"), Job("b", {}, done, shares="s"),
        Job("look", {}, done),
    ]  # fmt: skip
    ray = FakeRay(cpus=8)
    # `a` leads; `b` is handed over when it has ended
    assert [name for name, _ in run(ray, jobs)] == ["a", "look", "b", "c"]
    assert ray.most == 2


def test_after_a_leader_that_failed_another_one_leads():
    jobs = [Job("a", {}, wrong, shares="s"), Job("b", {}, done, shares="s"), Job("c", {}, done, shares="s")]
    ray = FakeRay(cpus=8)
    assert run(ray, jobs) == [("a", "failed"), ("b", "finished"), ("c", "finished")]
    assert ray.most == 1  # never two at once before somebody has done what they share


def test_a_leader_that_has_done_what_is_shared_lets_the_others_begin():
    jobs = [Job(name, {}, done, shares="s") for name in "abc"]
    ray = FakeRay(cpus=8)
    run(ray, jobs, released=lambda job: ray.begun > 0)
    assert ray.most >= 2


def test_ray_holds_two_jobs_for_each_cpu_however_many_there_are():
    ray = FakeRay(cpus=2)
    assert len(run(ray, [Job(str(number), {}, done) for number in range(50)])) == 50
    assert ray.most == 4
    light = FakeRay(cpus=2)
    run(light, [Job(str(number), {}, done, cpus=0.1) for number in range(50)])
    assert light.most >= 40


def test_a_process_that_dies_is_tried_again_and_no_more_than_asked_for():
    deaths = []

    def dies(work: Record) -> Record:
        raise Killed

    jobs = [Job("a", {}, dies), Job("b", {}, done, after="a")]
    seen = run(FakeRay(), jobs, retries=2, crashed=lambda job, attempt: deaths.append(attempt))
    assert seen == [("a", "failed"), ("b", "finished")]
    assert deaths == [1, 2]


def test_a_worker_that_is_stopped_alone_is_tried_again():
    """As by `ray stop` on its node; the others go on."""
    stops = []

    def stopped_once(work: Record) -> Record:
        if not stops:
            raise Interrupted("stopped; go on with: ...")
        return done(work)

    def stopped_always(work: Record) -> Record:
        raise KeyboardInterrupt

    jobs = [Job("a", {}, stopped_once, shares="s"), Job("b", {}, done, shares="s"), Job("c", {}, stopped_always)]
    results: list[tuple[str, Record]] = []
    run_jobs(
        FakeRay(), jobs, lambda job, result: results.append((job.name, result)), retries=1,
        crashed=lambda job, attempt: stops.append((job.name, attempt)),
    )  # fmt: skip
    assert stops == [("a", 1), ("c", 1)]
    found = dict(results)
    assert [name for name, result in results if result["status"] == "finished"] == ["a", "b"], "a leads: it goes on"
    assert found["c"] == {"status": "failed", "reason": "its process was stopped, 2 times in all"}


def test_on_ctrl_c_runs_are_cancelled_and_what_finished_is_noted():
    def interrupted(work: Record) -> Record:
        return done(work)

    ray = FakeRay(cpus=4)
    plain = ray.wait
    ray.wait = lambda *arguments, **options: stop(ray, plain)  # type: ignore[method-assign]

    def stop(ray: FakeRay, plain: Any) -> Any:
        ray.wait = plain  # type: ignore[method-assign]
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="the same command goes on"):
        run(ray, [Job(name, {}, interrupted) for name in "abc"])
    assert ray.cancelled == 3


def test_a_node_with_another_edgeda_is_named_before_work_is_sent(monkeypatch: pytest.MonkeyPatch):
    ray_itself = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    assert ray_itself is not None
    _check_versions(FakeRay())
    monkeypatch.setattr("edgeda.fleet.cluster.__version__", "9.9")
    with pytest.raises(MachineError, match=rf"node .* has edgeda {__version__}, this machine 9\.9; install one"):
        _check_versions(FakeRay())


@pytest.mark.parametrize(
    "message",
    [
        "Version mismatch: The cluster was started with:\n    Ray: 2.0\n    Python: 3.10.1\nThis process: 3.11",
        "Failed to connect to GCS at 10.0.0.5:6379",
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch, message: str):
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

    def init(**options: Any) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(MachineError) as caught, cluster(address="10.0.0.5:6379"):
        pass
    assert str(caught.value).startswith("the Ray cluster at 10.0.0.5:6379 cannot be used: ")
    assert "\n" not in str(caught.value)


def test_without_an_address_a_ray_of_our_own_is_started_even_beside_another(monkeypatch: pytest.MonkeyPatch):
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    asked: Record = {}
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster(workers=3):
        pass
    assert (asked["address"], asked["num_cpus"]) == ("local", 3)
