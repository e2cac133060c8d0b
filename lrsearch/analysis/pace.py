"""Seconds per training step of trials that are alike: was the machine equally fast for all of them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from lrsearch.trial import StudyRecord

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
        result, proposal = trial.result, trial.proposal
        if trial.stage == "train" and trial.status == "completed" and result and result.train_steps:
            optimizer = (
                proposal.optimizer.name if proposal.optimizer else record.config["training"]["optimizer"]["name"]
            )
            size = proposal.batch_size or (record.facts.batch_size if record.facts else None)
            own = found.setdefault((optimizer, size), Paces())
            seconds = result.phase_seconds.get("train", 0.0) / result.train_steps
            (own.together if result.gang_size > 1 else own.alone).append(seconds)
    return found


def held_up(record: StudyRecord) -> tuple[int, float]:
    """Return how many trials took more than STEP_TIME_RATIO times the median of their like, and the most times."""
    ratios = [
        seconds / middle
        for own in paces(record).values()
        if (middle := median([*own.alone, *own.together])) > 0
        for seconds in (*own.alone, *own.together)
    ]
    return sum(ratio > STEP_TIME_RATIO for ratio in ratios), max(ratios, default=1.0)


def unlike_reference(record: StudyRecord) -> float | None:
    """Return how many times what trials together are charged for a step those alone took, where that is far from once.

    Then the machine was faster or slower while the study ran than just before, and only those alone show it.
    """
    ratios = [
        median(own.alone) / median(own.together)
        for own in paces(record).values()
        if own.alone and own.together and median(own.together) > 0
    ]
    furthest = max(ratios, key=lambda ratio: max(ratio, 1 / ratio) if ratio else 0.0, default=1.0)
    return furthest if furthest > STEP_TIME_RATIO or 0 < furthest < 1 / STEP_TIME_RATIO else None
