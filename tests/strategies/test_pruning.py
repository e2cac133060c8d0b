from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

import optuna
import pytest

from lrsearch.interfaces import StopsEarly
from lrsearch.strategies import Grid, OptunaSearch
from lrsearch.trial import CurvePoint, History, Proposal, Trial
from tests.strategies.contract import EMPTY, EPOCHS, FACTS, curve, rising

Pruner: TypeAlias = Literal["median", "hyperband"]


def history_of(*levels: float, epochs: float = EPOCHS) -> History:
    """Return completed trials that end at `levels`, rising by the epoch."""
    trials = tuple(
        Trial(number, Proposal("train", learning_rate=0.1), "completed", validation_metric=level, curve=rising(level))
        for number, level in enumerate(levels)
    )
    return replace(EMPTY, trials=trials, epochs=epochs)


def stops_at(strategy: StopsEarly, history: History, points: Sequence[CurvePoint]) -> int | None:
    """Return the number of points after which the next trial is stopped, as the training loop would ask."""
    stop = strategy.stopper(history)
    return next((count for count in range(1, len(points) + 1) if stop(points[:count])), None)


def median_search() -> OptunaSearch:
    return OptunaSearch(trials=20, pruner="median")


def test_the_median_pruner_stops_a_bad_curve_and_not_the_best() -> None:
    history = history_of(0.5, 0.6, 0.7, 0.8, 0.9)
    assert stops_at(median_search(), history, rising(0.3)) == 1
    assert stops_at(median_search(), history, rising(0.95)) is None


def test_a_curve_that_falls_behind_later_is_stopped_there() -> None:
    history = history_of(0.5, 0.6, 0.7, 0.8, 0.9)
    plateau = curve([0.5] * EPOCHS)  # the median curve is 0.35, 0.525, ...
    assert stops_at(median_search(), history, plateau) == 2


def test_a_metric_that_should_be_low_is_judged_the_other_way_round() -> None:
    low_is_better = replace(FACTS, metric="error", higher_is_better=False, chance=None)
    history = replace(history_of(0.5, 0.6, 0.7, 0.8, 0.9), facts=low_is_better)
    assert stops_at(median_search(), history, rising(0.95)) == 1
    assert stops_at(median_search(), history, rising(0.3)) is None


def test_the_median_pruner_lets_the_first_five_trials_through() -> None:
    assert stops_at(median_search(), history_of(0.5, 0.6, 0.7, 0.8), rising(0.1)) is None


@pytest.mark.parametrize("pruner", get_args(Pruner))
def test_a_run_is_never_stopped_at_its_end(pruner: Pruner) -> None:
    history = history_of(*[0.9] * 12, epochs=1)
    stop = OptunaSearch(trials=20, pruner=pruner).stopper(history)
    assert not stop(rising(0.1)[:1])


@pytest.mark.parametrize("pruner", get_args(Pruner))
def test_the_judge_answers_the_same_when_asked_again(pruner: Pruner) -> None:
    points = rising(0.2)
    stopped = 0
    for count in range(6, 12):  # several, as Hyperband's bracket hangs on the trial's number
        stop = OptunaSearch(trials=20, pruner=pruner).stopper(history_of(*[0.8] * count))
        answers = [stop(points[:length]) for length in range(1, EPOCHS)]
        assert answers == [stop(points[:length]) for length in range(1, EPOCHS)]
        stopped += any(answers)
    assert stopped


def test_points_without_a_value_are_passed_over() -> None:
    history = history_of(0.5, 0.6, 0.7, 0.8, 0.9)
    assert stops_at(median_search(), history, curve([None, math.nan, 0.1, 0.1])) == 3


def test_nothing_is_stopped_without_a_pruner() -> None:
    history = history_of(0.5, 0.6, 0.7, 0.8, 0.9)
    assert stops_at(OptunaSearch(trials=20), history, rising(0.1)) is None


def test_only_searches_that_can_prune_stop_early() -> None:
    assert isinstance(median_search(), StopsEarly)
    assert not isinstance(Grid(points=3), StopsEarly)


LEVELS = tuple(0.1 + 0.8 * ((7 * index) % 16) / 16 for index in range(30))


def stops_of_one_uninterrupted_study(pruner: optuna.pruners.BasePruner) -> list[int | None]:
    """Return where Optuna stops each trial when one study lives from beginning to end, as its manual shows."""
    study = optuna.create_study(study_name="made-up/way/3", direction="maximize", pruner=pruner)
    stops: list[int | None] = []
    for level in LEVELS:
        trial = study.ask()
        stops.append(None)
        for epoch, point in enumerate(rising(level), start=1):
            trial.report(point.validation_metric or 0.0, epoch)
            if trial.should_prune() and epoch < EPOCHS:
                stops[-1] = epoch
                break
        if stops[-1] is None:
            study.tell(trial, level)
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return stops


def stops_of_a_rebuilt_study(strategy: OptunaSearch) -> list[int | None]:
    history, stops = EMPTY, list[int | None]()
    for level in LEVELS:
        end = stops_at(strategy, history, rising(level))
        stops.append(end)
        proposal = Proposal("train", learning_rate=0.1)
        trial = Trial(len(history.trials), proposal, "pruned", curve=rising(level)[:end])
        if end is None:
            trial = replace(trial, status="completed", validation_metric=level)
        history = replace(history, trials=(*history.trials, trial))
    return stops


@pytest.mark.parametrize(
    ("pruner", "optunas"),
    [
        ("median", optuna.pruners.MedianPruner()),
        ("hyperband", optuna.pruners.HyperbandPruner(max_resource=EPOCHS)),
    ],
)
def test_a_rebuilt_study_prunes_like_one_that_was_never_interrupted(
    pruner: Pruner, optunas: optuna.pruners.BasePruner
) -> None:
    expected = stops_of_one_uninterrupted_study(optunas)
    assert any(expected)
    assert not all(expected)
    assert stops_of_a_rebuilt_study(OptunaSearch(trials=30, pruner=pruner)) == expected
