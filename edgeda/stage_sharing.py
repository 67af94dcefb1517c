"""A run that takes over stages which other runs have trained, and leaves its own to them."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

from edgeda.errors import InputError, MachineError
from edgeda.methods.base import Method
from edgeda.stage_cache import StageCache

if TYPE_CHECKING:
    from edgeda.train import Fit

log = logging.getLogger(__name__)


class StageSharing:
    """What the stages of `fit` have in common with other runs; without a cache it shares nothing."""

    def __init__(self, fit: Fit, cache: StageCache | None) -> None:
        self._fit, self._cache = fit, cache

    def adopt(self, index: int) -> bool:
        """Take a stage over that another run has finished; its time does not count as this run's.

        Raises MachineError when the first of several processes finds it and this one does not.
        """
        fit, cache = self._fit, self._cache
        if cache is None:
            return False
        if self._by_epoch(index):
            return self._adopt_epochs(cache, index)
        outcome = cache.load(fit.stages, index)
        if not fit.group.decide(lambda: outcome is not None):
            return False
        outcome = outcome or cache.load(fit.stages, index)  # it may have come while processes looked
        if outcome is None:
            raise MachineError(f"stage {fit.stages[index].name} is shared with other runs, but cannot be read here")
        for role, weights in outcome["networks"].items():
            fit.network(role).load_state_dict(weights)
        fit.best.update(outcome["best"])
        fit.history += [{**line, "shared": True} for line in outcome["history"]]
        self._taken(index)
        return True

    def leave(self, index: int, method: Method) -> None:
        """Leave a finished stage to runs that have it in common with this one, if it trained its networks alone."""
        fit, stage = self._fit, self._fit.stages[index]
        own = {id(parameter) for role in stage.trains for parameter in fit.network(role).parameters()}
        moved = {id(parameter) for learner in method.learners.values() for parameter in learner.parameters}
        if self._cache and moved <= own and fit.group.leads and not self._by_epoch(index):
            outcome = {
                "networks": {role: fit.network(role).state_dict() for role in stage.trains},
                "best": {role: fit.best[role] for role in stage.scores},
                "history": [line for line in fit.history if line["stage"] == stage.name],
            }
            self._cache.save(fit.stages, index, outcome)

    def leave_epoch(self, index: int, epoch: int) -> None:
        """Leave an epoch to runs with other targets, which score it for themselves."""
        if self._cache and self._by_epoch(index):
            fit = self._fit
            weights = {role: fit.network(role).state_dict() for role in fit.stages[index].trains}
            self._cache.save_epoch(fit.stages, index, epoch, {"networks": weights, "line": fit.history[-1]})

    def _by_epoch(self, index: int) -> bool:
        """Whether a stage is shared epoch by epoch rather than as it ended."""
        weights = [self._fit.network(role).state_dict() for role in self._fit.stages[index].trains]
        size = sum(value.nbytes for state in weights for value in state.values())
        return self._cache is not None and self._cache.by_epoch(self._fit.stages, index, size)

    def _adopt_epochs(self, cache: StageCache, index: int) -> bool:
        """Take over the epochs of a stage that a run with another target has trained; select among them anew."""
        fit, stage = self._fit, self._fit.stages[index]
        epochs = cache.load_epochs(fit.stages, index)
        if epochs is None:
            return False
        before = len(fit.history)
        first = {role: copy.deepcopy(fit.network(role).state_dict()) for role in stage.trains}
        try:
            for epoch, outcome in enumerate(epochs, 1):
                for role, weights in outcome["networks"].items():
                    fit.network(role).load_state_dict(weights)
                scored = {role: fit.score(role, stage, epoch) for role in stage.scores}
                fit.history.append({**outcome["line"], "networks": scored, "shared": True})
        except InputError as error:  # Diverged too: then this run says it of its own training
            log.warning("a stage shared with other cameras is trained again: %s", error)
            del fit.history[before:]
            for role, weights in first.items():
                fit.network(role).load_state_dict(weights)
            for role in stage.scores:
                fit.best.pop(role, None)
            return False
        self._taken(index)
        return True

    def _taken(self, index: int) -> None:
        self._fit.position = (index + 1, 0)
        self._fit.write_metrics()
