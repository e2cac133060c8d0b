"""Seconds per training step of trials that are alike: was the machine equally fast for all of them?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median

from lrsearch.analysis.once import once_per_record
from lrsearch.analysis.power import RATIO_WORTH_KNOWING
from lrsearch.trial import AttemptRecord, Stage, StudyRecord, TrialRecord, as_billed, charged_seconds

STEP_TIME_RATIO = 1.5  # assumed: trials differ in their rates alone, so that their steps should take equally long


def held_up(record: StudyRecord) -> tuple[int, float]:
    """Return how many training runs took more than STEP_TIME_RATIO times the median of their like for their steps, and
    the most times. Of those that trained together nobody knows what each took.
    """
    paces: dict[tuple[str, int | None], list[float]] = {}
    for trial, attempt in _alone(record):
        if trial.stage == "train" and trial.result and trial.result.train_steps:
            taken = attempt.billed_phase_seconds or attempt.phase_seconds
            paces.setdefault(_kind(record, trial), []).append(taken.get("train", 0.0) / trial.result.train_steps)
    ratios = [pace / middle for own in paces.values() if (middle := median(own)) > 0 for pace in own]
    return sum(ratio > STEP_TIME_RATIO for ratio in ratios), max(ratios, default=1.0)


@once_per_record
def beside_what_is_charged(record: StudyRecord) -> dict[Stage, float]:
    """Return how many times what they are charged trials alone took, by stage the median over them.

    Empty where none is charged by what was timed before the study: where no trials train together.
    """
    ratios: dict[Stage, list[float]] = {}
    for trial, attempt in _alone(record):
        charged = working_seconds(attempt.phase_seconds)
        if attempt.billed_phase_seconds and charged > 0:
            ratios.setdefault(trial.stage, []).append(working_seconds(attempt.billed_phase_seconds) / charged)
    return {stage: median(own) for stage, own in ratios.items()}


def range_test_price(record: StudyRecord) -> float:
    """Return how many times as much of what they are charged range tests alone took as training runs alone.

    1 where it is not known, and where it is nothing to speak of.
    """
    taken = beside_what_is_charged(record)
    tests, runs = taken.get("range_test", 0.0), taken.get("train", 0.0)
    return tests / runs if min(tests, runs) > 0 and is_far_off(tests / runs) else 1.0


def is_far_off(ratio: float) -> bool:
    """Return whether a ratio is so far from 1 that it would change what a practitioner does."""
    return not 1 / RATIO_WORTH_KNOWING <= ratio <= RATIO_WORTH_KNOWING


def working_seconds(phase_seconds: Mapping[str, float]) -> float:
    """Return the charged seconds that both bills tell apart."""
    return charged_seconds(as_billed(phase_seconds))


def _alone(record: StudyRecord) -> Iterator[tuple[TrialRecord, AttemptRecord]]:
    """Yield the trials that completed alone and in one go."""
    for trial in record.trials:
        if (trial.status, trial.gang_size, len(trial.attempts)) == ("completed", 1, 1):
            yield trial, trial.attempts[0]


def _kind(record: StudyRecord, trial: TrialRecord) -> tuple[str, int | None]:
    own, size = trial.proposal.optimizer, trial.proposal.batch_size
    optimizer = own.name if own else record.config["training"]["optimizer"]["name"]
    return optimizer, size or (record.facts.batch_size if record.facts else None)
