"""The trials that gave no model, each with what happened."""

from __future__ import annotations

from dataclasses import dataclass

from lrsearch.trial import StudyRecord, TrialRecord, TrialStatus


@dataclass(frozen=True)
class Problem:
    """A trial that diverged or failed."""

    way: str
    seed: int
    trial: int
    stage: str
    status: TrialStatus
    learning_rate: float | None
    charged_device_seconds: float
    what_happened: str


def problems(record: StudyRecord) -> list[Problem]:
    """Return the trials that diverged or failed, in the order of the record."""
    return [_problem(trial) for trial in record.trials if trial.status in ("diverged", "failed")]


def _problem(trial: TrialRecord) -> Problem:
    return Problem(
        trial.strategy,
        trial.seed,
        trial.number,
        trial.stage,
        trial.status,
        trial.proposal.learning_rate,
        trial.charged_device_seconds,
        _what_happened(trial),
    )


def _what_happened(trial: TrialRecord) -> str:
    result = trial.result
    error = "" if result is None or result.error is None else result.error
    if trial.status == "diverged":
        at = "" if result is None or result.diverged_step is None else f" at step {result.diverged_step}"
        return f"the loss became non-finite{at}{error and f': {error}'}"
    return error or "no reason known"
