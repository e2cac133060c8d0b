"""Search with one of Optuna's samplers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lrsearch.interfaces import Settings
from lrsearch.strategies._template import CONSTANT, ScheduleTemplate
from lrsearch.trial import CurvePoint, History, Proposal, Trial

STARTUP_TRIALS = 10  # Optuna's own default for TPE and GP


class OptunaSearch(Settings):
    """Lets an Optuna sampler choose `trials` rates, uniform in the logarithm over the study's range at first.

    The sampler keeps nothing: it is rebuilt from the history for every proposal. `tpe` and `gp` draw their first
    `startup_trials` rates at random. `cmaes` proposes in generations of four and waits for the end of one before the
    next. `qmc` is a scrambled Sobol sequence; it learns nothing, and is best with 2, 4, 8, ... trials.
    With a pruner, trials that look bad at an epoch's end are stopped there.
    """

    name: Literal["optuna_search"] = "optuna_search"
    sampler: Literal["tpe", "gp", "cmaes", "qmc"] = "tpe"
    trials: Annotated[int, Field(ge=1)]
    pruner: Literal["none", "median", "hyperband"] = "none"
    startup_trials: Annotated[int, Field(ge=1)] | None = None
    schedule: ScheduleTemplate = CONSTANT

    @model_validator(mode="after")
    def _check_startup(self) -> OptunaSearch:
        if self.startup_trials is not None and self.sampler in ("cmaes", "qmc"):
            raise ValueError(f"startup_trials is for the samplers tpe and gp; {self.sampler} has none: remove it")
        return self

    @property
    def planned_trials(self) -> int:
        return self.trials

    def propose(self, history: History, max_count: int) -> Sequence[Proposal]:
        """Return the next proposals, each made as if those before it were already running."""
        proposals: list[Proposal] = []
        while len(proposals) < max_count and (proposal := self._next(history)) is not None:
            proposals.append(proposal)
            planned = Trial(len(history.trials), proposal, "planned")
            history = replace(history, trials=(*history.trials, planned))
        return proposals

    def _next(self, history: History) -> Proposal | None:
        if len(history.trials) >= self.trials:
            return None
        draw = self._draw(history)
        if draw is None:
            return None
        rate, model_guided = draw
        return Proposal("train", schedule=self.schedule.choice(), learning_rate=rate, model_guided=model_guided)

    def _draw(self, history: History) -> tuple[float, bool] | None:
        from lrsearch.strategies import _optuna  # here: it imports Optuna

        if self.sampler == "cmaes":
            return _optuna.draw_cmaes(history)
        if self.sampler == "qmc":
            return _optuna.draw_qmc(history)
        return _optuna.draw_model(history, self.sampler, self.startup_trials or STARTUP_TRIALS)

    def stopper(self, history: History) -> Callable[[Sequence[CurvePoint]], bool]:
        if self.pruner == "none" or history.facts is None:
            return _never
        from lrsearch.strategies._pruning import stopper

        return stopper(history, self.pruner)


def _never(points: Sequence[CurvePoint]) -> bool:
    return False
