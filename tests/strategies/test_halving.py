from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest

from lrsearch.interfaces import StopsEarly, Strategy
from lrsearch.strategies import Hyperband, SuccessiveHalving
from lrsearch.trial import CurvePoint, History, Trial, TrialStatus
from tests.strategies.contract import EMPTY, EPOCHS, StrategyContract, rising


class TestSuccessiveHalving(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(SuccessiveHalving, trials=6)


class TestHyperband(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(Hyperband, trials=6)


class TestHyperbandWithTpe(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(Hyperband, trials=12, sampler="tpe")


def length(strategy: StopsEarly, history: History, points: Sequence[CurvePoint]) -> int:
    """Return the number of evaluations after which the next trial ends, as the training loop would ask."""
    stop = strategy.stopper(history)
    return next((count for count in range(1, len(points) + 1) if stop(points[:count])), len(points))


def run(strategy: Strategy, levels: Sequence[float]) -> list[int]:
    """Return how many evaluations each of the trials that end at `levels` was given."""
    assert isinstance(strategy, StopsEarly)
    history, lengths = EMPTY, []
    for level in levels:
        (proposal,) = strategy.propose(history, 1)
        points = rising(level)
        count = length(strategy, history, points)
        status: TrialStatus = "completed" if count == len(points) else "pruned"
        metric = points[count - 1].validation_metric
        trial = Trial(len(history.trials), proposal, status, validation_metric=metric, curve=points[:count])
        history = replace(history, trials=(*history.trials, trial))
        lengths.append(count)
    return lengths


def test_trials_end_at_rungs_and_the_best_goes_on() -> None:
    """Rungs lie at 1, 3 and 9 evaluations; one in three goes past each, as they arrive."""
    lengths = run(SuccessiveHalving(trials=9), [0.5, 0.4, 0.3, 0.2, 0.9, 0.1, 0.15, 0.12, 0.95])
    assert set(lengths) <= {1, 3, 9}
    assert lengths[4] == lengths[8] == 9
    assert lengths[5] == lengths[6] == lengths[7] == 1


def test_the_first_rung_and_the_factor_are_the_users() -> None:
    levels = [0.5, 0.4, 0.3, 0.2, 0.1, 0.35, 0.25]
    assert min(run(SuccessiveHalving(trials=7, min_epochs=2), levels)) == 2
    few = sum(count > 1 for count in run(SuccessiveHalving(trials=7, reduction_factor=4), levels))
    many = sum(count > 1 for count in run(SuccessiveHalving(trials=7, reduction_factor=2), levels))
    assert few < many


def test_hyperband_has_brackets_that_do_not_stop_early() -> None:
    """Some of many equally bad trials fall into the bracket that lets all run to the end."""
    levels = [0.9, *(0.3 - 0.01 * number for number in range(20))]
    halved, dealt = run(SuccessiveHalving(trials=21), levels), run(Hyperband(trials=21), levels)
    assert sum(count == EPOCHS for count in halved) < sum(count == EPOCHS for count in dealt) < len(dealt)
