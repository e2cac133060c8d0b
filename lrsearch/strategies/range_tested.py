"""A range test, then one training run between the bounds that it found: Smith's way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from lrsearch.errors import UsageError
from lrsearch.interfaces import Epochs, Settings
from lrsearch.strategies._template import ScheduleTemplate, TrainingStrategy
from lrsearch.trial import History, Ladder, Policy, Proposal, RangeTestPlan, Trial

if TYPE_CHECKING:
    from lrsearch.range_test import RangeTestVerdict


Positive = Annotated[float, Field(gt=0)]
OF_THE_TEST = ("range_epochs", "min_steps", "ladder", "policy", "low", "high", "repeats", "test")


class TestedWith(Settings):
    """What bounds from elsewhere were found with; what is left out is not compared with the study."""

    optimizer: str | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    momentum: Annotated[float, Field(ge=0)] | None = None
    """Adam's beta 1 counts as momentum."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None


class RangeTested(TrainingStrategy):
    """Runs a range test over the study's range, or over `low` to `high`, and trains once with what it shows.

    Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, https://arxiv.org/abs/1506.01186. Cyclical
    templates run between the verdict's bounds; constant and decaying ones take its constant-rate guess. A verdict
    without bounds ends the search without a model: the test was paid for and gave nothing, and no rate is made up.

    With `repeats` the test is run so often, each time with other weights and another data order, and the log-median of
    the bounds is taken; each is paid for. With `test: once_per_study` only the first seed's search tests, and those of
    the other seeds take its bounds: each has the whole cost of the test on its bill, as one search alone would, and the
    spread over seeds lacks that of the test. Seeds that are put before that one later go by its test as well.

    With `max_lr` given, and `base_lr` unless the schedule's own fraction of it will do, no test is run: cyclical
    templates run between these bounds, constant and decaying ones take `max_lr`. What finding them cost is on nobody's
    bill, so such a way is never the CLR run of a report.
    """

    name: Literal["range_tested"] = "range_tested"
    schedule: ScheduleTemplate = ScheduleTemplate(name="triangular2", cycles=2)
    range_epochs: Epochs = 2.0
    min_steps: Annotated[int, Field(ge=20)] = 100
    ladder: Ladder = "exponential"
    policy: Policy = "default"
    low: Positive | None = None
    high: Positive | None = None
    repeats: Annotated[int, Field(ge=1)] = 1
    test: Literal["per_seed", "once_per_study"] = "per_seed"
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
        return 1 if self.max_lr is not None else self.repeats + 1

    @property
    def at_once(self) -> int:
        """The repeats of the test need not wait for each other."""
        return 1 if self.max_lr is not None else self.repeats

    @property
    def tests_once(self) -> bool:
        """Whether the searches of all seeds but the first take that one's range tests over."""
        return self.test == "once_per_study" and self.max_lr is None

    def propose(self, history: History, max_count: int) -> Sequence[Proposal]:
        if max_count < 1 or any(trial.proposal.stage == "train" for trial in history.trials):
            return []
        if self.max_lr is not None:
            return [self.training(self.max_lr, base_lr=self.base_lr, max_lr=self.max_lr)]
        tests = _tests(history)
        if len(tests) < self.repeats:
            repeats = range(len(tests), min(self.repeats, len(tests) + max_count))
            return [self._range_test(history, repeat) for repeat in repeats]
        if history.running:
            return []
        verdict = verdict_of(history)
        if verdict is None or verdict.max_lr is None:
            return []
        return [self.training(verdict.constant_lr, base_lr=verdict.base_lr, max_lr=verdict.max_lr)]

    def _range_test(self, history: History, repeat: int) -> Proposal:
        plan = self._plan(history, repeat)
        return Proposal("range_test", range_test=plan, optimizer=self.own_optimizer)

    def _plan(self, history: History, repeat: int) -> RangeTestPlan:
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
            repeat=repeat,
        )


def verdict_of(history: History) -> RangeTestVerdict | None:
    """Return what the search's range tests show together; None while none has ended, when all failed, and without one.

    A range test that ended in divergence has done its work: it is judged like a completed one.
    """
    from lrsearch.range_test import combine_verdicts, judge  # here: it brings numpy

    assert history.facts is not None, "there are trials"
    verdicts = [
        # No bootstrap: intervals change no bound, and the device is held while this runs.
        judge(trial.range_test, history.facts, trial.proposal.range_test, history.optimizer.name, bootstrap=0)
        for trial in _tests(history)
        if trial.proposal.range_test is not None and trial.status in ("completed", "diverged")
    ]
    if len(verdicts) == 1:
        return verdicts[0]
    return combine_verdicts(verdicts) if verdicts else None


def _tests(history: History) -> list[Trial]:
    """Return the range tests that this search goes by: its own, or those of the seed that tests."""
    return [trial for trial in (*history.shared_tests, *history.trials) if trial.proposal.stage == "range_test"]
