"""Seconds per training step of trials that are alike: was the machine equally fast for all of them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from lrsearch.analysis.once import once_per_record
from lrsearch.analysis.power import RATIO_WORTH_KNOWING
from lrsearch.trial import StudyRecord, TrialRecord

STEP_TIME_RATIO = 1.5  # assumed: trials differ in their rates alone, so that their steps should take equally long


@dataclass(frozen=True)
class Paces:
    """Of completed training runs of one optimizer and batch size."""

    alone: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    """What trials that trained together are charged for: what a step alone took before the study."""


def paces(record: StudyRecord) -> Mapping[tuple[str, int | None], Paces]:
    found: dict[tuple[str, int | None], Paces] = {}
    for trial in record.trials:
        result = trial.result
        if trial.stage == "train" and trial.status == "completed" and result and result.train_steps:
            own = found.setdefault(_kind(record, trial), Paces())
            seconds = result.phase_seconds.get("train", 0.0) / result.train_steps
            (own.together if result.gang_size > 1 else own.alone).append(seconds)
    return found


def _kind(record: StudyRecord, trial: TrialRecord) -> tuple[str, int | None]:
    own, size = trial.proposal.optimizer, trial.proposal.batch_size
    optimizer = own.name if own else record.config["training"]["optimizer"]["name"]
    return optimizer, size or (record.facts.batch_size if record.facts else None)


def held_up(record: StudyRecord) -> tuple[int, float]:
    """Return how many trials took more than STEP_TIME_RATIO times the median of their like, and the most times."""
    ratios = [
        seconds / middle
        for own in paces(record).values()
        if (middle := median([*own.alone, *own.together])) > 0
        for seconds in (*own.alone, *own.together)
    ]
    return sum(ratio > STEP_TIME_RATIO for ratio in ratios), max(ratios, default=1.0)


def distortion(record: StudyRecord, slow: str, fast: str) -> float | None:
    """Return how many times the cost of one way over another's would be what it is, were all trials charged alike.

    Trials that trained together are charged by what a step took before the study, those alone by what theirs took in
    it. Where the machine was slower or faster by then, only the latter show it. None where that makes no difference
    that is worth knowing.
    """
    inflated = _inflation(record)
    found = inflated[fast] / inflated[slow]
    return found if max(found, 1 / found) > RATIO_WORTH_KNOWING else None


@once_per_record
def _inflation(record: StudyRecord) -> Mapping[str, float]:
    """Return for each way what it is charged over what it would be, were its trials alone charged as those together."""
    ratios = {
        kind: median(own.alone) / median(own.together)
        for kind, own in paces(record).items()
        if own.alone and own.together and median(own.alone) > 0 and median(own.together) > 0
    }
    charged, alike = dict.fromkeys(record.strategies, 0.0), dict.fromkeys(record.strategies, 0.0)
    for trial in record.trials:
        is_alone = trial.result is not None and trial.result.gang_size == 1
        ratio = ratios.get(_kind(record, trial), 1.0) if is_alone else 1.0
        charged[trial.strategy] += trial.charged_device_seconds
        alike[trial.strategy] += trial.charged_device_seconds / ratio
    return {key: charged[key] / alike[key] if alike[key] else 1.0 for key in charged}
