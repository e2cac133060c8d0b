"""Grid search over the learning rate."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lrsearch.errors import UsageError
from lrsearch.strategies._template import MOST_TRIALS, TrainingStrategy
from lrsearch.trial import History, Proposal


class Grid(TrainingStrategy):
    """Tries a list of rates, or `points` rates from end to end of the study's range, even in the logarithm.

    A grid has no order of its own, and any fixed one would favour or punish it: each search runs it in an order
    shuffled by (study, strategy, seed). A trial that failed or diverged counts as tried.
    """

    name: Literal["grid"] = "grid"
    points: Annotated[int, Field(ge=2, le=MOST_TRIALS)] | None = None
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

    @property
    def at_once(self) -> int:
        return self.planned_trials

    def propose(self, history: History, max_count: int) -> Sequence[Proposal]:
        """Return the next rates of the shuffled grid. Raises UsageError for a listed rate outside the study's range."""
        order = self._order(history)
        tried = {trial.proposal.learning_rate for trial in history.trials}
        # Almost equal ones are looked for only where there are any: a ladder's last bits may differ between machines.
        others = tried.difference(order)
        left = (rate for rate in order if rate not in tried and not any(_same(rate, other) for other in others))
        return [self.training(rate) for rate in islice(left, max_count)]

    def _order(self, history: History) -> Sequence[float]:
        seed = f"{history.study}/{history.strategy}/{history.seed}"
        if self.learning_rates is None:
            return _shuffled_ladder(history.low, history.high, self.points or 0, seed)
        return _shuffled(self._listed(history.low, history.high), seed)

    def _listed(self, low: float, high: float) -> Sequence[float]:
        assert self.learning_rates is not None
        for rate in self.learning_rates:
            if not low <= rate <= high:
                raise UsageError(
                    f"learning_rates of a grid must lie in the study's range {low:g} to {high:g}, got {rate:g}; "
                    "widen 'rates', which every search is given, or leave the rate out."
                )
        return self.learning_rates


@lru_cache(maxsize=8)
def _shuffled_ladder(low: float, high: float, points: int, seed: str) -> Sequence[float]:
    from lrsearch.range_test import ladder  # here: it brings numpy

    return _shuffled(ladder(low, high, points), seed)


def _shuffled(rates: Sequence[float], seed: str) -> Sequence[float]:
    shuffled = list(rates)
    random.Random(seed).shuffle(shuffled)  # noqa: S311  # no secret
    return tuple(shuffled)


def _same(rate: float, other: float | None) -> bool:
    return other is not None and math.isclose(rate, other, rel_tol=1e-9)
