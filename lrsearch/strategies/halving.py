"""Early stopping as a way of its own: many short trials, few long ones, and all of them on the bill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lrsearch.strategies._sampled import SampledSearch
from lrsearch.strategies.optuna_search import STARTUP_TRIALS
from lrsearch.strategies.random_search import random_values
from lrsearch.strategies.space import Number, dimensions
from lrsearch.trial import CurvePoint, History

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


class HalvingSearch(SampledSearch):
    """Base: rates at random (or from TPE), and Optuna's judgement at every rung whether a trial goes on.

    A rung lies at `min_epochs`, `min_epochs` x `reduction_factor`, ... evaluations, one of which ends every epoch;
    about one in `reduction_factor` trials goes past it. Trials run one after another and are judged as they arrive
    (asynchronously), against those that were there before: the first ones are hardly ever stopped.
    """

    sampler: Literal["random", "tpe"] = "random"
    min_epochs: Annotated[int, Field(ge=1)] = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 3

    def import_all(self, history: History) -> None:
        """Import what draws and judgements need."""
        super().import_all(history)
        self._pruner(history.epochs)

    def _draw(self, history: History) -> tuple[Mapping[str, Number], bool | None] | None:
        if self.sampler == "random":
            return random_values(history, self.search), None
        from lrsearch.strategies import _optuna

        return _optuna.draw_model(history, dimensions(history, self.search), "tpe", STARTUP_TRIALS)

    def stopper(self, history: History) -> Callable[[Sequence[CurvePoint]], bool]:
        from lrsearch.strategies import _pruning

        return _pruning.stopper(history, self._pruner(history.epochs))

    def _pruner(self, epochs: float) -> BasePruner:
        raise NotImplementedError


class SuccessiveHalving(HalvingSearch):
    """Asynchronous successive halving, as Optuna does it: one bracket that stops as early as it can.

    Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2018, https://arxiv.org/abs/1810.05934.
    """

    name: Literal["successive_halving"] = "successive_halving"

    def _pruner(self, epochs: float) -> BasePruner:
        from lrsearch.strategies import _pruning

        return _pruning.successive_halving(self.min_epochs, self.reduction_factor)


class Hyperband(HalvingSearch):
    """Hyperband, as Optuna does it: brackets of successive halving that stop early or late, trials dealt out to them.

    Li et al., "Hyperband", 2017, https://arxiv.org/abs/1603.06560.
    """

    name: Literal["hyperband"] = "hyperband"

    def _pruner(self, epochs: float) -> BasePruner:
        from lrsearch.strategies import _pruning

        return _pruning.hyperband(epochs, self.min_epochs, self.reduction_factor)
