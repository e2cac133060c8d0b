"""Search with one of Optuna's samplers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lrsearch.strategies._sampled import SampledSearch
from lrsearch.strategies.space import Number, dimensions
from lrsearch.trial import CurvePoint, History, Trial

STARTUP_TRIALS = 10  # Optuna's own default for TPE and GP


class OptunaSearch(SampledSearch):
    """Lets an Optuna sampler choose `trials` rates, uniform in the logarithm over the study's range at first.

    The sampler keeps nothing: it is rebuilt from the history for every proposal. `tpe` and `gp` draw their first
    `startup_trials` rates at random. `cmaes` proposes in generations and waits for the end of one before the next.
    `qmc` is a scrambled Sobol sequence; it learns nothing, and is best with 2, 4, 8, ... trials.
    With a `round_size`, `tpe` and `gp` propose in rounds of so many, each of which waits for the end of the one before:
    those of a round may run at once, and know of each other only where the others are.
    With a pruner, trials that look bad at an epoch's end are stopped there. `search` adds settings of the optimizer, of
    the schedule, and the batch size to what is drawn.
    """

    name: Literal["optuna_search"] = "optuna_search"
    sampler: Literal["tpe", "gp", "cmaes", "qmc"] = "tpe"
    pruner: Literal["none", "median", "hyperband"] = "none"
    startup_trials: Annotated[int, Field(ge=1)] | None = None
    round_size: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _check_rounds(self) -> OptunaSearch:
        if self.round_size > 1 and self.sampler in ("cmaes", "qmc"):
            has = "generations of its own" if self.sampler == "cmaes" else "no rounds, as it learns nothing"
            raise ValueError(f"round_size is for the samplers tpe and gp; {self.sampler} has {has}: remove it")
        if self.round_size > 1 and self.pruner != "none":
            raise ValueError(
                "round_size does not go with a pruner, which judges each trial by those before; remove one"
            )
        return self

    @model_validator(mode="after")
    def _check_startup(self) -> OptunaSearch:
        if self.startup_trials is not None and self.sampler in ("cmaes", "qmc"):
            raise ValueError(f"startup_trials is for the samplers tpe and gp; {self.sampler} has none: remove it")
        return self

    @model_validator(mode="after")
    def _check_choices(self) -> OptunaSearch:
        unordered = [name for name, searched in self.search.items() if searched.choices is not None]
        if unordered and self.sampler in ("cmaes", "qmc"):
            raise ValueError(
                f"{self.sampler} cannot search choices, as {', '.join(unordered)} has them; give low and high, or take "
                "the sampler tpe or gp"
            )
        return self

    @property
    def at_once(self) -> int:
        """Return the size of a round or generation; QMC learns nothing, and a pruner goes by all that has ended."""
        if self.pruner != "none":
            return 1
        if self.sampler == "qmc":
            return self.trials
        own = generation_size(1 + len(self.search)) if self.sampler == "cmaes" else self.round_size
        return min(own, self.trials)

    def import_all(self, history: History) -> None:
        """Import what draws need, with and without a model: for a Gaussian process that is torch."""
        super().import_all(history)
        startup_trials = self.startup_trials or STARTUP_TRIALS
        if self.sampler in ("tpe", "gp") and self.trials > startup_trials:
            [proposal] = self.propose(history, 1)
            made_up = Trial(0, proposal, "completed", validation_metric=0.0)
            with_model = self.model_copy(update={"startup_trials": 1})
            with_model._draw(replace(history, trials=(made_up,)))

    def _draw(self, history: History) -> tuple[Mapping[str, Number], bool] | None:
        from lrsearch.strategies import _optuna  # here: it imports Optuna

        space = dimensions(history, self.search)
        if self.sampler == "cmaes":
            return _optuna.draw_cmaes(history, space)
        if self.sampler == "qmc":
            return _optuna.draw_qmc(history, space)
        return _optuna.draw_model(history, space, self.sampler, self.startup_trials or STARTUP_TRIALS, self.round_size)

    def stopper(self, history: History) -> Callable[[Sequence[CurvePoint]], bool]:
        if self.pruner == "none":
            return never
        from lrsearch.strategies import _pruning

        pruner = _pruning.median() if self.pruner == "median" else _pruning.hyperband(history.epochs)
        return _pruning.stopper(history, pruner)


def generation_size(dimensions: int) -> int:
    """Return Hansen's population size of CMA-ES, https://arxiv.org/abs/1604.00772, equation 48.

    >>> generation_size(1), generation_size(3)
    (4, 7)
    """
    return 4 + math.floor(3 * math.log(dimensions))


def never(points: Sequence[CurvePoint]) -> bool:
    return False
