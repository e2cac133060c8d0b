"""A study's trials regrouped into searches: the replicates that every statistic counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from lrsearch.analysis.anytime import StepCurve, anytime_curve, improving
from lrsearch.analysis.once import once_per_record
from lrsearch.analysis.select import MODEL_STATUSES, Incumbent, incumbent
from lrsearch.analysis.target import UNBOUNDED, Interval, Outcome, cost_to_target
from lrsearch.trial import CurvePoint, StudyRecord, TrialRecord


@dataclass(frozen=True)
class Search:
    """One complete execution of a way with its own seed, as the ledger knows it."""

    strategy: str
    seed: int
    trials: tuple[TrialRecord, ...]
    done: bool
    """Whether the way has nothing more to try with this seed."""
    higher_is_better: bool = True
    shared: tuple[TrialRecord, ...] = ()
    """Range tests of another seed that this search went by: on its bill, though they ran once."""

    @cached_property
    def charged_device_seconds(self) -> float:
        """All phases of all attempts of all trials, whatever became of them."""
        return self.curve.end

    @property
    def billed(self) -> tuple[TrialRecord, ...]:
        """The trials that the search pays for, in the order in which it needed them."""
        return self.shared + self.trials

    @cached_property
    def incumbent(self) -> Incumbent | None:
        return incumbent(self.trials, lower_is_better=not self.higher_is_better)

    @property
    def test_value(self) -> float | None:
        """The test value of the model that validation chose; None without a model."""
        chosen = self.incumbent
        return None if chosen is None or chosen.trial.result is None else chosen.trial.result.test_metric

    @cached_property
    def curve(self) -> StepCurve:
        """The anytime curve: a step at the end of each trial."""
        models = [trial.result if trial.status in MODEL_STATUSES else None for trial in self.billed]
        return anytime_curve(
            [trial.charged_device_seconds for trial in self.billed],
            [model.validation_metric if model else None for model in models],
            [model.test_metric if model else None for model in models],
            lower_is_better=not self.higher_is_better,
        )

    def evaluations(self) -> list[tuple[float, float | None]]:
        """Return (charged seconds of the search so far, validation value) of every evaluation that is on the bill.

        Every way is charged for an evaluation at the end of each epoch, so each of them may be the one that reaches a
        target.
        """
        before = accumulate((trial.charged_device_seconds for trial in self.billed), initial=0.0)
        return [
            (spent + seconds, point.validation_metric)
            for spent, trial in zip(before, self.billed, strict=False)
            for seconds, point in evaluations_of(trial)
        ]

    @cached_property
    def improvements(self) -> list[tuple[float, float]]:
        """The evaluations that are better than all before: the first that meets a target is always one of them."""
        return list(improving(self.evaluations(), lower_is_better=not self.higher_is_better))

    def outcome(self, target: float) -> Outcome:
        """Return what it cost to reach `target` on validation, or how the search ended without reaching it."""
        return cost_to_target(
            self.improvements,
            target,
            "exhausted" if self.done else "budget",
            spent=self.charged_device_seconds,
            lower_is_better=not self.higher_is_better,
        )


def evaluations_of(trial: TrialRecord) -> list[tuple[float, CurvePoint]]:
    """Return the trial's evaluations with its charged seconds so far, earlier attempts at it included.

    The points are those of its last attempt: its earlier ones have been paid for before them.
    """
    before = sum(attempt.charged_device_seconds for attempt in trial.attempts[:-1])
    return [(before + point.charged_device_seconds, point) for point in (trial.result.curve if trial.result else ())]


@once_per_record
def searches(record: StudyRecord, strategy: str) -> list[Search]:
    """Return the searches of a way, one per seed in the order of the file; those not begun have no trials.

    They keep what they have computed.
    """
    by_seed: dict[int, list[TrialRecord]] = {seed: [] for seed in record.seeds}
    for trial in record.trials:
        if trial.strategy == strategy:
            by_seed.setdefault(trial.seed, []).append(trial)
    higher = higher_is_better(record)
    tests = {seed: tuple(trial for trial in trials if trial.stage == "range_test") for seed, trials in by_seed.items()}
    once = tests_once(record.config["strategies"].get(strategy, {}))
    shared = next(filter(None, tests.values()), ()) if once else ()
    noted = _noted_done(record, strategy)
    return [
        Search(
            strategy,
            seed,
            tuple(trials),
            (record.finished and bool(trials or shared)) or seed in noted,  # a table may lack some of them
            higher,
            shared=() if tests[seed] else shared,
        )
        for seed, trials in by_seed.items()
    ]


def tests_once(settings: Mapping[str, Any]) -> bool:
    """Return whether all searches of a way of these settings go by the range tests of one of them."""
    return settings.get("test") == "once_per_study" and settings.get("max_lr") is None


def _noted_done(record: StudyRecord, strategy: str) -> set[int]:
    """Return with which seeds the study loop has noted the way to be done; notes before an extension no longer hold."""
    kinds = [event.kind for event in record.events]
    since = record.events[len(kinds) - kinds[::-1].index("extended") if "extended" in kinds else 0 :]
    notes = [event.data for event in since if event.kind == "search_done"]
    return {note["seed"] for note in notes if note["strategy"] == strategy}


def higher_is_better(record: StudyRecord) -> bool:
    return record.facts is None or record.facts.higher_is_better


def target_value(record: StudyRecord) -> float | None:
    """Return the validation value that the study file calls good enough, or None."""
    target: Mapping[str, Any] | None = record.config.get("target")
    return None if target is None else float(target["value"])


KNOWN_RANGES: Mapping[str, Interval] = {
    "accuracy": Interval(0.0, 1.0),
    "micro_f1": Interval(0.0, 1.0),
    "r2": Interval(-math.inf, 1.0),
    "perplexity": Interval(1.0, math.inf),
}
"""Between which values a metric can lie; of a metric of the user's own nobody knows."""


@once_per_record
def metric_range(record: StudyRecord) -> Interval:
    """Return between which values the study's metric can lie; a user's own accuracy may well be in percent."""
    known = KNOWN_RANGES.get(metric_name(record), UNBOUNDED)
    results = [trial.result for trial in (*record.trials, *record.confirmations) if trial.result]
    values = [value for one in results for value in (one.validation_metric, one.test_metric) if value is not None]
    return known if all(known.low <= value <= known.high for value in values) else UNBOUNDED


def metric_name(record: StudyRecord) -> str:
    target: Mapping[str, Any] | None = record.config.get("target")
    return record.facts.metric if record.facts else str(target["metric"]) if target else "metric"
