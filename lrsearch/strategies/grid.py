"""Grid search over the learning rate."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lrsearch.errors import UsageError
from lrsearch.strategies._template import TrainingStrategy
from lrsearch.trial import History, Proposal


class Grid(TrainingStrategy):
    """Tries a list of rates, or `points` rates from end to end of the study's range, even in the logarithm.

    A grid has no order of its own, and any fixed one would favour or punish it: each search runs it in an order
    shuffled by (study, strategy, seed). A trial that failed or diverged counts as tried.
    """

    name: Literal["grid"] = "grid"
    looks_ahead: ClassVar[bool] = True
    points: Annotated[int, Field(ge=2)] | None = None
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check_rates(self) -> Grid:
        if (self.points is None) == (self.learning_rates is None):
            given = "neither" if self.points is None else "both"
            raise ValueError(f"a grid needs exactly one of 'points' and 'learning_rates', got {given}")
        if self.learning_rates and len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError(f"learning_rates must differ from each other, got {list(self.learning_rates)}")
        return self

    @property
    def planned_trials(self) -> int:
        return self.points or len(self.learning_rates or ())

    def propose(self, history: History, max_count: int) -> Sequence[Proposal]:
        """Return the next rates of the shuffled grid. Raises UsageError for a listed rate outside the study's range."""
        tried = [trial.proposal.learning_rate for trial in history.trials]
        left = [rate for rate in self._order(history) if not any(_same(rate, other) for other in tried)]
        return [self.training(rate) for rate in left[:max_count]]

    def _order(self, history: History) -> list[float]:
        rates = self._rates(history.low, history.high)
        random.Random(f"{history.study}/{history.strategy}/{history.seed}").shuffle(rates)  # noqa: S311  # no secret
        return rates

    def _rates(self, low: float, high: float) -> list[float]:
        if self.learning_rates is None:
            from lrsearch.range_test import ladder  # here: it brings numpy

            return ladder(low, high, self.points or 0)
        for rate in self.learning_rates:
            if not low <= rate <= high:
                raise UsageError(
                    f"learning_rates of a grid must lie in the study's range {low:g} to {high:g}, got {rate:g}; "
                    "widen 'rates', which every search is given, or leave the rate out."
                )
        return list(self.learning_rates)


def _same(rate: float, other: float | None) -> bool:
    return other is not None and math.isclose(rate, other, rel_tol=1e-9)
