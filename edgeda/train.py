"""The only training loop: stages of steps, evaluation after each epoch, checkpoints, resume, a clean stop."""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from edgeda.artifacts import CHECKPOINT, METRICS
from edgeda.checkpoint import load_checkpoint, restoring, save_checkpoint
from edgeda.data import Domains
from edgeda.data.prefetch import Prefetched
from edgeda.distributed.batchnorm import batchnorm_layers
from edgeda.errors import Diverged, InputError, Interrupted
from edgeda.health import check_weights, explained, finite_step
from edgeda.methods.base import Method, Stage, Workshop, plain_network
from edgeda.models import Network
from edgeda.scoring import score
from edgeda.selection import is_better
from edgeda.stage_cache import StageCache
from edgeda.stage_sharing import StageSharing
from edgeda.stopping import stopping
from edgeda.tracking import Trackers
from edgeda.watching import Record, Watcher
from edgeda.whole_file import write_text

log = logging.getLogger(__name__)


class Fit:
    """A run of stages over one workshop. `run()` trains; the rest is its state, saved and restored whole."""

    def __init__(
        self, workshop: Workshop, stages: list[Stage], batches: Prefetched, data: Domains, folder: Path,
        watcher: Watcher, fingerprint: str, origins: dict[str, str], cache: StageCache | None = None,
        trackers: Trackers | None = None,
    ) -> None:  # fmt: skip
        self.workshop, self.stages, self.batches, self.data = workshop, stages, batches, data
        self.group = workshop.group
        self.folder, self.watcher, self.fingerprint = folder, watcher, fingerprint
        self.shared = StageSharing(self, cache)
        self.trackers = trackers or Trackers(())
        self.origins = origins
        """Where each network's first weights came from: kept for a resumed run."""
        self.position = (0, 0)
        """Stage, and steps of it that are done."""
        self.best: dict[str, Record] = {}
        """By role: the selected epoch's record, its weights as shipped, and its BatchNorm statistics as trained."""
        self.history: list[Record] = []
        self._pairs, self._seconds = 0, 0.0
        """Of the epoch so far."""
        self._sums: dict[str, float] = {}
        self._waited_before = 0.0
        self._saved = self._started = time.monotonic()
        self._begun, self._wall_before = time.monotonic(), 0.0
        self._saved_at: tuple[int, int] | None = None
        self._stop = False

    @property
    def wall_s(self) -> float:
        """Seconds of training and evaluation, those before an interruption included."""
        return self._wall_before + time.monotonic() - self._begun

    @property
    def pairs_per_s(self) -> float:
        """Source and target pairs a second while adapting; source images a second where nothing adapts."""
        adapting = {stage.name for stage in self.stages if stage.adapts} or {stage.name for stage in self.stages}
        epochs = [line for line in self.history if line["stage"] in adapting]
        seconds = sum(line["seconds"] for line in epochs)
        return float(sum(line["pairs_per_s"] * line["seconds"] for line in epochs) / max(seconds, 1e-9))

    @property
    def wait_share(self) -> float:
        """Share of the time of training that it waited for batches, over the epochs trained here."""
        epochs = [line for line in self.history if not line.get("shared")]
        seconds = sum(line["seconds"] for line in epochs)
        return float(sum(line["wait_share"] * line["seconds"] for line in epochs) / max(seconds, 1e-9))

    def run(self, resume: bool) -> None:
        """Train every stage to its end. Raises Interrupted (state saved) and Diverged (last good state kept)."""
        state = load_checkpoint(self.folder / CHECKPOINT) if resume else None
        with restoring(self.folder / CHECKPOINT):
            first = self._restore(state) if state else 0
            if resume and self.group.leads:
                log.info("going on from %s", self._reached() if state else "the beginning: no state was saved before")
        self.write_metrics()
        with stopping(self._asked_to_stop):
            for index in range(first, len(self.stages)):
                stage = self.stages[index]
                if state and index == first:
                    method = stage.build(self.workshop)
                    with restoring(self.folder / CHECKPOINT):
                        method.load_state(state["method"])
                        torch.set_rng_state(state["rng"])
                        if state["cuda_rng"]:  # all processes draw the same numbers
                            torch.cuda.set_rng_state(state["cuda_rng"][0], self.workshop.fabric.device)
                        self.workshop.fabric.strategy.precision.load_state_dict(state["precision"])
                    state = None  # as large as all networks and optimizers
                elif not self.shared.adopt(index):
                    for role, origin in stage.starts_from.items():
                        if isinstance(origin, Path):  # it was built from that file
                            continue
                        self.network(role).load_state_dict(self._selected(origin))
                    torch.manual_seed(self.workshop.recipe.train.seed + zlib.crc32(stage.name.encode()))
                    method = stage.build(self.workshop)
                else:
                    continue
                self._stage(index, method)
                self.shared.leave(index, method)

    def _asked_to_stop(self, number: int) -> None:
        self._stop = True

    def network(self, role: str) -> Network:
        """The network of a role, without Fabric's wrapper."""
        return plain_network(self.workshop.networks[role])

    def _selected(self, role: str) -> dict[str, Tensor]:
        """Weights of a role's selected epoch, or the present ones where none was scored yet."""
        best = self.best.get(role)
        # with the statistics it was trained with: those of the target alone are for shipping
        return {**best["weights"], **best["trained"]} if best else self.network(role).state_dict()

    def _stage(self, index: int, method: Method) -> None:
        stage, per_epoch = self.stages[index], self.batches.steps_per_epoch
        total = stage.epochs * per_epoch
        done = self.position[1] if self.position[0] == index else 0
        self.position = (index, done)
        if not total:
            self._epoch(stage, 0)
            return
        if done < total:
            self.watcher.stage(stage.name, stage.epochs, per_epoch, done)
        self._resume_clock()
        for step in range(done, total):
            if step == done or step % per_epoch == 0:  # an evaluation has changed it
                self._train_mode(stage)
            batch = self.batches.get(zlib.crc32(stage.name.encode()), step, total)
            with self._explained(stage, step):
                terms = finite_step(method, batch, step / total)
            stop = self._add(terms)
            self.position = (index, step + 1)
            self._pairs += len(batch.source_labels)
            self.watcher.step(len(batch.source_labels))
            if (step + 1) % per_epoch == 0:
                self._stop_clock()
                with self._explained(stage, step):
                    self._epoch(stage, (step + 1) // per_epoch)
                self.shared.leave_epoch(index, (step + 1) // per_epoch)
                self._resume_clock()
            if (
                stop
                or step + 1 == total
                or time.monotonic() - self._saved >= 60 * self.workshop.recipe.train.checkpoint_minutes
            ):
                with self._explained(stage, step):
                    check_weights({role: self.network(role) for role in self.workshop.networks})
                with self.group.together():  # one that leaves ends the run, and the first may still be writing
                    self._save(method)
            if stop:
                raise Interrupted(f"stopped; go on with: edgeda adapt --out {self.folder} --resume")

    def _explained(self, stage: Stage, step: int) -> AbstractContextManager[None]:
        return explained(
            f"stage {stage.name}, epoch {step // self.batches.steps_per_epoch + 1}, "
            f"batch {step % self.batches.steps_per_epoch + 1}",
            lambda: self.batches.names(zlib.crc32(stage.name.encode()), step),
            self._kept,
        )

    def _kept(self) -> str:
        """What is on the disk to go on from."""
        if self._saved_at is None:
            return "no state was saved before"
        name, done = self.stages[self._saved_at[0]].name, self._saved_at[1]
        return f"the state of stage {name} after {done} batches is kept in {self.folder / CHECKPOINT}"

    def _reached(self) -> str:
        """Where in the run its position is, in words."""
        index, done = self.position
        stage, per_epoch = self.stages[index], self.batches.steps_per_epoch
        epoch, batches = divmod(done, per_epoch)
        if done == stage.epochs * per_epoch:
            return f"the end of stage {stage.name} ({index + 1} of {len(self.stages)})"
        return (
            f"stage {stage.name} ({index + 1} of {len(self.stages)}), epoch {epoch + 1} of {stage.epochs}, "
            f"after {batches} of its {per_epoch} batches"
        )

    def _train_mode(self, stage: Stage) -> None:
        for role, network in self.workshop.networks.items():
            network.train(role in stage.trains)
            if stage.adapts and self.workshop.recipe.adapt.batchnorm == "frozen":
                for layer in batchnorm_layers(network):
                    layer.eval()

    def _add(self, terms: Mapping[str, Tensor]) -> bool:
        """Count the terms of a step, their means over processes; returns whether one of these is asked to stop."""
        asked = torch.tensor(float(self._stop), device=self.workshop.fabric.device)
        found = torch.stack([*(value.float() for value in terms.values()), asked])
        *means, stop = self.group.mean(found).tolist()
        for name, value in zip(terms, means, strict=True):
            self._sums[name] = self._sums.get(name, 0.0) + value
        return bool(stop)

    def _epoch(self, stage: Stage, epoch: int) -> None:
        """Evaluate the stage's networks, let them compete for selection and write the line of metrics."""
        steps = self.batches.steps_per_epoch
        seconds, pairs = self._seconds, self._pairs
        waited = self.batches.waited_s - self._waited_before
        self._waited_before = self.batches.waited_s
        record: Record = {
            "stage": stage.name, "epoch": epoch, "epochs": stage.epochs,
            "losses": {name: round(value / steps, 6) for name, value in self._sums.items()},
            "seconds": round(seconds, 2), "pairs_per_s": round(pairs / max(seconds, 1e-9), 2),
            "wait_share": round(min(1.0, waited / max(seconds, 1e-9)), 4), "networks": {},
        }  # fmt: skip
        for role in stage.scores:
            record["networks"][role] = self.score(role, stage, epoch)
        self._sums, self._seconds, self._pairs = {}, 0.0, 0
        self.history.append(record)
        self.write_metrics()
        self.watcher.epoch(record)

    def score(self, role: str, stage: Stage, epoch: int) -> Record:
        """Evaluate a network as it is after an epoch, and let it compete for selection; Diverged when it cannot be."""
        # the plain network, in fp32: what is scored is what is shipped
        network, recipe = self.network(role), self.workshop.recipe
        trained = {name: value.detach().cpu().clone() for name, value in network.named_buffers()}
        own_statistics = stage.adapts and recipe.adapt.target_statistics
        result = score(network, self.data, recipe.data.preprocessing, self.group, own_statistics)
        if result is None:
            raise Diverged(f"the {role}'s predictions are not finite after epoch {epoch} of stage {stage.name}")
        mine = {**result, "role": role, "stage": stage.name, "epoch": epoch}
        best = self.best.get(role)
        same_stage = best is not None and best["record"]["stage"] == stage.name
        if is_better(recipe.select.rule, mine, best["record"] if best and same_stage else None):
            weights = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
            kept = {name: value for name, value in trained.items() if name in weights}
            self.best[role] = {"record": mine, "weights": weights, "trained": kept}
        for name, value in network.named_buffers():
            value.copy_(trained[name])
        return result

    def write_metrics(self) -> None:
        """Write the lines of all epochs so far."""
        if not self.group.leads:
            return
        write_text(self.folder / METRICS, "".join(json.dumps(record) + "\n" for record in self.history))
        self.trackers.follow(self.history)

    def _resume_clock(self) -> None:
        self._started = time.monotonic()

    def _stop_clock(self) -> None:
        """Count the time since the clock was started, and start it again."""
        now = time.monotonic()
        self._seconds += now - self._started
        self._started = now

    def _save(self, method: Method) -> None:
        if not self.group.leads:
            self._saved, self._saved_at = time.monotonic(), self.position
            return
        self._stop_clock()
        device = self.workshop.fabric.device
        state = {
            "fingerprint": self.fingerprint,
            "origins": self.origins,
            "position": list(self.position),
            "networks": {role: self.network(role).state_dict() for role in self.workshop.networks},
            "architectures": {role: self.network(role).architecture.to_dict() for role in self.workshop.networks},
            "modules": self.workshop.module_states(),
            "method": method.state(),
            "best": self.best,
            "history": self.history,
            "progress": {
                "pairs": self._pairs,
                "seconds": self._seconds,
                "wall": self.wall_s,
                "sums": self._sums,
            },
            "rng": torch.get_rng_state(),
            "cuda_rng": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
            "precision": self.workshop.fabric.strategy.precision.state_dict(),
        }
        save_checkpoint(self.folder / CHECKPOINT, state)
        self._saved, self._saved_at = time.monotonic(), self.position
        self._resume_clock()

    def _restore(self, state: Record) -> int:
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                f"the checkpoint in {self.folder} belongs to another recipe or other images; "
                "resume with the run's own recipe and data, or start again with --overwrite"
            )
        for role in self.workshop.networks:
            self.network(role).load_state_dict(state["networks"][role])
        self.workshop.saved_modules.update(state["modules"])
        self.best, self.history = state["best"], state["history"]
        progress = state["progress"]
        self._pairs, self._seconds, self._sums = progress["pairs"], progress["seconds"], progress["sums"]
        self._wall_before = progress["wall"]
        self.position = self._saved_at = (int(state["position"][0]), int(state["position"][1]))
        return self.position[0]
