"""One range test, then one training run between the bounds that it found: Smith's way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from lrsearch.errors import UsageError
from lrsearch.interfaces import Settings
from lrsearch.strategies._template import ScheduleTemplate
from lrsearch.trial import History, Proposal, RangeTestPlan

if TYPE_CHECKING:
    from lrsearch.range_test import RangeTestVerdict


Positive = Annotated[float, Field(gt=0)]
OF_THE_TEST = ("range_epochs", "min_steps", "ladder", "policy", "low", "high")


class TestedWith(Settings):
    """What bounds from elsewhere were found with; what is left out is not compared with the study."""

    batch_size: Annotated[int, Field(ge=1)] | None = None
    momentum: Annotated[float, Field(ge=0)] | None = None
    """Adam's beta 1 counts as momentum."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None


class RangeTested(Settings):
    """Runs a range test over the study's range, or over `low` to `high`, and trains once with what it shows.

    Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, https://arxiv.org/abs/1506.01186. Cyclical
    templates run between the verdict's bounds; constant and decaying ones take its constant-rate guess. A verdict
    without bounds ends the search without a model: the test was paid for and gave nothing, and no rate is made up.

    With `max_lr` given, and `base_lr` unless the schedule's own fraction of it will do, no test is run: cyclical
    templates run between these bounds, constant and decaying ones take `max_lr`. What finding them cost is on nobody's
    bill, so such a way is never the CLR run of a report.
    """

    name: Literal["range_tested"] = "range_tested"
    schedule: ScheduleTemplate = ScheduleTemplate(name="triangular2", cycles=2)
    range_epochs: Positive = 2.0
    min_steps: Annotated[int, Field(ge=20)] = 100
    ladder: Literal["exponential", "linear"] = "exponential"
    policy: Literal["default", "smith2015"] = "default"
    low: Positive | None = None
    high: Positive | None = None
    base_lr: Positive | None = None
    max_lr: Positive | None = None
    tested_with: TestedWith | None = None

    @model_validator(mode="after")
    def _check_range(self) -> RangeTested:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low must be smaller than high, got {self.low:g} and {self.high:g}")
        return self

    @model_validator(mode="after")
    def _check_bounds(self) -> RangeTested:
        if self.max_lr is None:
            if self.base_lr is not None or self.tested_with is not None:
                raise ValueError("base_lr and tested_with belong to bounds that are given; add max_lr")
            return self
        if self.base_lr is not None and self.base_lr >= self.max_lr:
            raise ValueError(f"base_lr must be smaller than max_lr, got {self.base_lr:g} and {self.max_lr:g}")
        unused = [key for key in OF_THE_TEST if getattr(self, key) != RangeTested.model_fields[key].default]
        if unused:
            raise ValueError(f"no range test is run when max_lr is given; remove {', '.join(unused)}")
        return self

    @property
    def planned_trials(self) -> int:
        return 2 if self.max_lr is None else 1

    def propose(self, history: History, max_count: int) -> Sequence[Proposal]:
        if max_count < 1 or len(history.trials) >= self.planned_trials:
            return []
        if self.max_lr is not None:
            return [self._training(self.max_lr, self.base_lr, self.max_lr)]
        if not history.trials:
            return [Proposal("range_test", range_test=self._plan(history))]
        verdict = verdict_of(history)
        if verdict is None or verdict.max_lr is None:
            return []
        return [self._training(verdict.constant_lr, verdict.base_lr, verdict.max_lr)]

    def _plan(self, history: History) -> RangeTestPlan:
        low = history.low if self.low is None else self.low
        high = history.high if self.high is None else self.high
        if low >= high:
            raise UsageError(
                f"The range test of {history.strategy!r} would run from {low:g} to {high:g}: low must be smaller than "
                "high. What the strategy does not give comes from the study's rates."
            )
        return RangeTestPlan(
            low=low,
            high=high,
            ladder=self.ladder,
            epochs=self.range_epochs,
            min_steps=self.min_steps,
            policy=self.policy,
        )

    def _training(self, learning_rate: float | None, base_lr: float | None, max_lr: float) -> Proposal:
        return Proposal("train", self.schedule.choice(), learning_rate, base_lr, max_lr)


def verdict_of(history: History) -> RangeTestVerdict | None:
    """Return what the search's range test shows; None while it has not ended, when it failed, and without one.

    A range test that ended in divergence has done its work: it is judged like a completed one.
    """
    from lrsearch.range_test import judge  # here: it brings numpy

    for trial in history.trials:
        plan = trial.proposal.range_test
        if plan is not None and history.facts is not None and trial.status in ("completed", "diverged"):
            # No bootstrap: intervals change no bound, and the device is held while this runs.
            return judge(trial.range_test, history.facts, plan, history.optimizer.name, bootstrap=0)
    return None
