"""Search with one of Optuna's samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lrsearch.strategies._sampled import SampledSearch
from lrsearch.strategies.space import Number, dimensions
from lrsearch.trial import CurvePoint, History

STARTUP_TRIALS = 10  # Optuna's own default for TPE and GP


class OptunaSearch(SampledSearch):
    """Lets an Optuna sampler choose `trials` rates, uniform in the logarithm over the study's range at first.

    The sampler keeps nothing: it is rebuilt from the history for every proposal. `tpe` and `gp` draw their first
    `startup_trials` rates at random. `cmaes` proposes in generations and waits for the end of one before the next.
    `qmc` is a scrambled Sobol sequence; it learns nothing, and is best with 2, 4, 8, ... trials.
    With a pruner, trials that look bad at an epoch's end are stopped there. `search` adds settings of the optimizer, of
    the schedule, and the batch size to what is drawn.
    """

    name: Literal["optuna_search"] = "optuna_search"
    sampler: Literal["tpe", "gp", "cmaes", "qmc"] = "tpe"
    pruner: Literal["none", "median", "hyperband"] = "none"
    startup_trials: Annotated[int, Field(ge=1)] | None = None

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
    def looks_ahead(self) -> bool:
        """CMA-ES waits for whole generations, QMC learns nothing; TPE, GP and pruners go by all that has ended."""
        return self.sampler in ("cmaes", "qmc") and self.pruner == "none"

    def _draw(self, history: History) -> tuple[Mapping[str, Number], bool] | None:
        from lrsearch.strategies import _optuna  # here: it imports Optuna

        space = dimensions(history, self.search)
        if self.sampler == "cmaes":
            return _optuna.draw_cmaes(history, space)
        if self.sampler == "qmc":
            return _optuna.draw_qmc(history, space)
        return _optuna.draw_model(history, space, self.sampler, self.startup_trials or STARTUP_TRIALS)

    def stopper(self, history: History) -> Callable[[Sequence[CurvePoint]], bool]:
        if self.pruner == "none" or history.facts is None:
            return never
        from lrsearch.strategies import _pruning

        pruner = _pruning.median() if self.pruner == "median" else _pruning.hyperband(history.epochs)
        return _pruning.stopper(history, pruner)


def never(points: Sequence[CurvePoint]) -> bool:
    return False
