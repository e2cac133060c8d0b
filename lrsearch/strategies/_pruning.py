"""Optuna's pruners as functions of a history."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import optuna

from lrsearch.strategies._optuna import intermediate_values, new_study, told_value, worst_value
from lrsearch.trial import FINISHED_STATUSES, CurvePoint, History, Trial


def stopper(history: History, pruner: optuna.pruners.BasePruner) -> Callable[[Sequence[CurvePoint]], bool]:
    """Return the judge of the trial after `history`. It knows the curves of the finished trials and its own points.

    It never stops a run at its end: nothing would be saved. One evaluation is one unit of a pruner's resource.
    """
    study = new_study(history, pruner=pruner)
    worst = worst_value(history, history.trials)
    for trial in history.trials:
        _replay(study, trial, worst)
    own = study.ask()
    verdicts: list[bool] = []

    def stop(points: Sequence[CurvePoint]) -> bool:
        values = intermediate_values(points)
        for count in range(len(verdicts) + 1, len(points) + 1):
            verdicts.append(count in values and _judge(own, values[count], count))
        at_end = bool(points) and points[-1].epoch >= history.epochs - 1e-9
        return not at_end and any(verdicts[: len(points)])

    return stop


def median() -> optuna.pruners.BasePruner:
    return optuna.pruners.MedianPruner()


def successive_halving(min_epochs: int, reduction_factor: int) -> optuna.pruners.BasePruner:
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=min_epochs, reduction_factor=reduction_factor)


def hyperband(epochs: float, min_epochs: int = 1, reduction_factor: int = 3) -> optuna.pruners.BasePruner:
    """Return Hyperband's pruner; 1 and 3 are Optuna's own defaults."""
    longest = max(min_epochs, math.ceil(epochs))
    return optuna.pruners.HyperbandPruner(
        min_resource=min_epochs, max_resource=longest, reduction_factor=reduction_factor
    )


def _replay(study: optuna.Study, trial: Trial, worst: float) -> None:
    """Add a trial as if it ran now: successive halving notes in it which rungs it reached."""
    theirs = study.ask()
    if trial.status not in FINISHED_STATUSES:
        return
    for count, value in intermediate_values(trial.curve).items():
        _judge(theirs, value, count)
    if trial.status == "pruned":
        study.tell(theirs, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(theirs, told_value(trial, worst))


def _judge(trial: optuna.trial.Trial, value: float, count: int) -> bool:
    trial.report(value, count)
    return trial.should_prune()
