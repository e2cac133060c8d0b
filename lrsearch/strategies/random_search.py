"""Random search over the learning rate."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from lrsearch.interfaces import Settings
from lrsearch.strategies._template import CONSTANT, ScheduleTemplate
from lrsearch.trial import History, Proposal


class RandomSearch(Settings):
    """Draws `trials` rates, uniform in the logarithm over the study's range."""

    name: Literal["random_search"] = "random_search"
    trials: Annotated[int, Field(ge=1)]
    schedule: ScheduleTemplate = CONSTANT

    @property
    def planned_trials(self) -> int:
        return self.trials

    def propose(self, history: History, max_count: int) -> Sequence[Proposal]:
        """Return the next draws; each depends on (study, strategy, seed, trial number) and the range alone."""
        start = len(history.trials)
        template = self.schedule.choice()
        return [
            Proposal("train", schedule=template, learning_rate=_draw(history, number))
            for number in range(start, min(start + max_count, self.trials))
        ]


def _draw(history: History, number: int) -> float:
    generator = random.Random(f"{history.study}/{history.strategy}/{history.seed}/{number}")  # noqa: S311  # no secret
    rate = math.exp(generator.uniform(math.log(history.low), math.log(history.high)))
    return min(max(rate, history.low), history.high)
