"""Seconds per training step of trials that are alike: was the machine equally fast for all of them?"""

from __future__ import annotations

from statistics import median

from lrsearch.trial import StudyRecord, TrialRecord

STEP_TIME_RATIO = 1.5  # assumed: trials differ in their rates alone, so that their steps should take equally long


def held_up(record: StudyRecord) -> tuple[int, float]:
    """Return how many trials took more than STEP_TIME_RATIO times the median of their like, and the most times.

    Of those that trained together nobody knows what each took.
    """
    paces: dict[tuple[str, int | None], list[float]] = {}
    for trial in _alone(record):
        assert trial.result is not None, "it has completed"
        paces.setdefault(_kind(record, trial), []).append(_train_seconds(trial) / trial.result.train_steps)
    ratios = [pace / middle for own in paces.values() if (middle := median(own)) > 0 for pace in own]
    return sum(ratio > STEP_TIME_RATIO for ratio in ratios), max(ratios, default=1.0)


def beside_what_is_charged(record: StudyRecord) -> float | None:
    """Return how many times what they are charged trials alone took for their steps, the median over them.

    None where none is charged by what was timed before the study: where no trials train together.
    """
    ratios = [
        _train_seconds(trial) / charged
        for trial in _alone(record)
        if trial.attempts[-1].billed_phase_seconds and (charged := trial.phase_seconds["train"]) > 0
    ]
    return median(ratios) if ratios else None


def _alone(record: StudyRecord) -> list[TrialRecord]:
    """Return the training runs that completed alone and in one go."""
    return [
        trial
        for trial in record.trials
        if (trial.stage, trial.status, len(trial.attempts), trial.gang_size) == ("train", "completed", 1, 1)
        and trial.result
        and trial.result.train_steps
    ]


def _train_seconds(trial: TrialRecord) -> float:
    [attempt] = trial.attempts
    return (attempt.billed_phase_seconds or attempt.phase_seconds).get("train", 0.0)


def _kind(record: StudyRecord, trial: TrialRecord) -> tuple[str, int | None]:
    own, size = trial.proposal.optimizer, trial.proposal.batch_size
    optimizer = own.name if own else record.config["training"]["optimizer"]["name"]
    return optimizer, size or (record.facts.batch_size if record.facts else None)
