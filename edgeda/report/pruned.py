"""Pruned versions of a run's teacher to compare its student with: at given cuts, at equal GMACs, at equal latency."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgeda.artifacts import CHECKPOINT, RECIPE, SUMMARY, RunDirectory
from edgeda.channels import widths
from edgeda.checkpoint import load_checkpoint, restoring
from edgeda.distributed.world import check_alone
from edgeda.errors import InputError
from edgeda.models import Network, NetworkCard, load_network, save_network
from edgeda.pretrained import short_digest
from edgeda.profiling.complexity import torch_complexity
from edgeda.pruning import largest_cut, prunable, prune_to
from edgeda.recipe_file import load_recipe
from edgeda.watching import Watcher

log = logging.getLogger(__name__)

TOLERANCE = 0.03
"""Two latencies this close, relative to each other, are called the same."""
SEARCH_STEPS = 7
UNTRAINED = "not trained"
COST_ONLY = (
    "not trained: cost only, with the channels of the smallest weights removed and no accuracy to speak of; "
    "--train-pruned trains them"
)


@dataclass(frozen=True)
class Cut:
    """A pruned version of the teacher: how much of its multiply-accumulates goes, and what the cut is for."""

    share: float
    purpose: str
    """What it has in common with the student, such as `its GMACs`; empty for a cut that was asked for."""

    @property
    def label(self) -> str:
        """What the row is called."""
        return f"teacher - {100 * self.share:.3g} %" + (f", {self.purpose}" if self.purpose else "")


class Pruner:
    """Prunes copies of a run's teacher, and looks for the trained ones beside the run."""

    def __init__(self, run: RunDirectory) -> None:
        if not run.weights("teacher").is_file():
            raise InputError(f"--pruned prunes a run's teacher, and {run.path} has none")
        self.run = run
        self._teacher, self.card = load_network(run.weights("teacher"))
        self.size = self.card.preprocessing.size
        self.gmacs = torch_complexity(self._teacher, self.size).gmacs
        prunable(self._teacher)  # says so where there is nothing to prune
        student, _ = load_network(run.weights("student"))
        self.student_gmacs = torch_complexity(student, self.size).gmacs

    def network(self, share: float) -> Network:
        """A copy without so large a share of its MACs, by weight magnitude; InputError where that is too much."""
        network = copy.deepcopy(self._teacher)
        if share <= 0:
            return network
        scores = {name: _magnitude(network.get_submodule(name)) for name in widths(network, prunable(network))}
        prune_to(network, scores, self.gmacs * (1 - share), self.size)
        return network

    def save(self, share: float, path: Path) -> None:
        """`network` as weights that can be measured like a run's own."""
        network = self.network(share)
        save_network(path, network.state_dict(), NetworkCard(network.architecture, self.card.classes,
                                                             self.card.preprocessing, "teacher"))  # fmt: skip

    def most(self) -> float:
        """The largest share that can go."""
        return largest_cut(self._teacher, self.size)

    def equal_gmacs(self) -> Cut | None:
        """The cut that leaves the student's GMACs; None, with a warning, where there is none."""
        share = 1 - self.student_gmacs / self.gmacs
        if share <= 0:
            log.warning("the teacher takes no more GMACs than the student: it need not be pruned to be as small")
            return None
        return Cut(share, "the student's GMACs")

    def equal_latency(self, target_ms: float, measure: Callable[[float], float]) -> tuple[Cut | None, str]:
        """The cut at which `measure(share)`, in ms, is `target_ms`, by halving; and what was found, in words."""
        if measure(0.0) <= target_ms * (1 + TOLERANCE):
            return None, "the teacher is as fast as the student here without pruning"
        most = self.most()
        best_ms = measure(most)
        if best_ms > target_ms * (1 + TOLERANCE):
            return None, (
                f"no cut makes the teacher as fast as the student here: pruned by all that can go ({most:.0%} of its "
                f"GMACs) it takes {best_ms:.3g} ms, the student {target_ms:.3g} ms"
            )
        low, high, best = 0.0, most, (abs(math.log(best_ms / target_ms)), most, best_ms)
        for _ in range(SEARCH_STEPS):
            middle = (low + high) / 2
            found = measure(middle)
            best = min(best, (abs(math.log(found / target_ms)), middle, found))
            if best[0] <= TOLERANCE:
                break
            low, high = (middle, high) if found > target_ms else (low, middle)
        said = f"pruned by {best[1]:.1%} the teacher takes {best[2]:.3g} ms, the student {target_ms:.3g} ms"
        return Cut(best[1], "the student's latency"), said

    def folder(self, share: float) -> Path:
        """Where a trained version lies: beside the run."""
        return self.run.path.with_name(f"{self.run.path.resolve().name}-pruned-{round(1000 * share):03d}")

    def trained(self, share: float) -> RunDirectory | None:
        """The finished run of a trained version, if there is one; a warning, and None, if it `is_stale`."""
        folder = self.folder(share)
        if not (folder / SUMMARY).is_file():
            return None
        if self.is_stale(folder):
            log.warning("%s was not pruned from the teacher that %s has now: it is not used; --train-pruned trains it "
                        "again", folder, self.run.path)  # fmt: skip
            return None
        return RunDirectory(folder)

    def is_stale(self, folder: Path) -> bool:
        """Whether a run, finished or not, began from other weights than the teacher's: its own run was made again.

        By the digest that a run keeps of what it began from; a summary without one is stale if the teacher is younger.
        """
        teacher, summary = self.run.weights("teacher"), folder / SUMMARY
        if summary.is_file():
            origins = RunDirectory(folder).summary().get("weights_from")
            if origins is None:
                return summary.stat().st_mtime < teacher.stat().st_mtime
        else:
            state = load_checkpoint(folder / CHECKPOINT)
            if state is None:  # nothing was trained yet
                return False
            with restoring(folder / CHECKPOINT):
                origins = dict(state["origins"])
        return short_digest(teacher) not in str(origins.get("student"))

    def may_replace(self, folder: Path) -> bool:
        """Whether a run is a pruned version of this run's teacher, by its recipe."""
        recipe = load_recipe(str(folder / RECIPE))
        of = Path(recipe.prune.run).resolve().name if recipe.prune.run else None
        return (recipe.method, recipe.prune.role, of) == ("tcp", "teacher", self.run.name)


def parse_cuts(text: str) -> tuple[float, ...]:
    """`0.12,0.45` as shares; InputError unless each is between 0 and 1."""
    try:
        cuts = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        cuts = ()
    if not cuts or not all(0 < cut < 1 for cut in cuts):
        raise InputError(f"--pruned {text}: expected shares of the teacher's GMACs to remove, such as 0.12,0.45")
    return cuts


def _magnitude(module: nn.Module) -> torch.Tensor:
    """Mean absolute weight of each output channel `(C,)`, relative to the layer's largest."""
    assert isinstance(module, nn.Conv2d)
    means = module.weight.detach().abs().mean(dim=(1, 2, 3))
    return means / means.max().clamp_min(1e-12)


def unique(cuts: Sequence[Cut]) -> list[Cut]:
    """Cuts without those that come to the same tenth of a percent as an earlier one."""
    kept: dict[int, Cut] = {}
    for cut in cuts:
        kept.setdefault(round(1000 * cut.share), cut)
    return list(kept.values())


def train_pruned(pruner: Pruner, cut: Cut, watcher: Watcher) -> RunDirectory:
    """The teacher pruned and fine-tuned as `edgeda prune` does it, in a run beside its own.

    A finished one is taken, one that was stopped goes on, and a stale one begins again, with a warning. InputError for
    a folder that holds another run.
    """
    from edgeda.adapt import adapt
    from edgeda.methods.tcp import prune_recipe

    folder = pruner.folder(cut.share)
    stale = pruner.is_stale(folder)
    if stale and not pruner.may_replace(folder):
        raise InputError(f"{folder} is another run, where the teacher of {pruner.run.path} pruned would go; move it")
    if stale:
        log.warning("%s was not pruned from the teacher that %s has now: it begins again", folder, pruner.run.path)
    elif (folder / SUMMARY).is_file():
        return RunDirectory(folder)
    check_alone("training pruned teachers")
    log.info("training a pruned teacher in %s", folder)
    recipe = prune_recipe(pruner.run, "teacher", {"prune.macs_cut": cut.share}, [], folder)
    adapt(recipe, folder, watcher, resume=not stale and (folder / RECIPE).is_file(), overwrite=stale)
    return RunDirectory(folder)
