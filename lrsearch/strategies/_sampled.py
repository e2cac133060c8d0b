"""Base of the searches that draw their trials one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from lrsearch.strategies._template import MOST_TRIALS, TrainingStrategy
from lrsearch.strategies.space import Number, Searched, with_values
from lrsearch.trial import History, Proposal, Trial


class SampledSearch(TrainingStrategy):
    """Draws `trials` rates over the study's range, and with each a value for everything in `search`.

    `search` may name any number among the settings of the way's optimizer (`momentum` is Adam's beta 1 too) and of its
    schedule, and `batch_size`.
    """

    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)]
    search: dict[str, Searched] = Field(default_factory=dict)

    @property
    def planned_trials(self) -> int:
        return self.trials

    def import_all(self, history: History) -> None:
        """Import what draws need, by a first one."""
        self._draw(history)

    def propose(self, history: History, max_count: int) -> Sequence[Proposal]:
        """Return the next proposals, each made as if those before it were already running."""
        proposals: list[Proposal] = []
        while len(proposals) < max_count and len(history.trials) < self.trials:
            drawn = self._draw(history)
            if drawn is None:
                break
            values, model_guided = drawn
            training = self.training(None, model_guided=model_guided)
            proposals.append(with_values(training, history, values))
            planned = Trial(len(history.trials), proposals[-1], "planned")
            history = replace(history, trials=(*history.trials, planned))
        return proposals

    def _draw(self, history: History) -> tuple[Mapping[str, Number], bool | None] | None:
        """Return the next trial's numbers and whether a model made them; None to wait for running trials."""
        raise NotImplementedError
