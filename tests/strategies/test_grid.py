from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from pydantic import ValidationError

from lrsearch.errors import UsageError
from lrsearch.interfaces import Strategy
from lrsearch.strategies import Grid, ScheduleTemplate
from lrsearch.trial import Choice, Trial
from tests.strategies.contract import EMPTY, StrategyContract, rates, search


class TestGrid(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(Grid, points=7)


class TestGridOfListedRates(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(Grid, learning_rates=(0.1, 0.01, 3.0))


def test_the_points_are_those_of_numpys_geomspace() -> None:
    points = sorted(rates(search(Grid(points=8))))
    np.testing.assert_allclose(points, np.geomspace(1e-5, 10.0, 8), rtol=1e-12)
    assert (points[0], points[-1]) == (1e-5, 10.0)


def test_each_search_shuffles_its_grid_and_a_repeated_one_shuffles_it_the_same_way() -> None:
    orders = {tuple(rates(search(Grid(points=8), history=replace(EMPTY, seed=seed)))) for seed in range(5)}
    assert len(orders) == 5
    assert len({tuple(sorted(order)) for order in orders}) == 1
    assert rates(search(Grid(points=8))) == rates(search(Grid(points=8)))


def test_an_extended_grid_keeps_what_was_tried_and_tries_the_rest() -> None:
    done = search(Grid(learning_rates=(0.1, 0.01)))
    extended = search(Grid(learning_rates=(0.1, 1.0, 0.01)), history=done)
    assert extended.trials[:2] == done.trials
    assert rates(extended)[2:] == [1.0]


def test_a_rate_whose_last_bit_another_machine_computed_otherwise_counts_as_tried() -> None:
    done = search(Grid(points=4))
    elsewhere = [
        replace(t, proposal=replace(t.proposal, learning_rate=math.nextafter(t.proposal.learning_rate or 0.0, 20.0)))
        for t in done.trials
    ]
    assert Grid(points=4).propose(replace(done, trials=tuple(elsewhere)), 4) == []
    assert len(Grid(points=4).propose(replace(done, trials=tuple(elsewhere[1:])), 4)) == 1


def test_a_proposal_of_a_grid_of_20000_points_takes_no_time() -> None:
    grid = Grid(points=20_000)
    trials = tuple(Trial(i, proposal, "completed") for i, proposal in enumerate(grid.propose(EMPTY, 19_999)))
    began = time.process_time()
    assert len(grid.propose(replace(EMPTY, trials=trials), 5)) == 1
    assert time.process_time() - began < 0.5, "comparing each with each would take minutes"


def test_the_schedule_travels_with_its_settings() -> None:
    template = ScheduleTemplate.model_validate({"name": "triangular2", "cycles": 2})
    (proposal,) = Grid(points=2, schedule=template).propose(EMPTY, 1)
    assert proposal.schedule == Choice("triangular2", {"cycles": 2})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of 'points' and 'learning_rates', got neither"),
        ({"points": 3, "learning_rates": [0.1]}, "got both"),
        ({"points": 1}, "greater than or equal to 2"),
        ({"learning_rates": [0.1, -1.0]}, "greater than 0"),
        ({"learning_rates": [0.1, 0.1]}, "must differ from each other"),
        ({"learning_rates": []}, "at least 1 item"),
        ({"points": 3, "trials": 3}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_grid_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Grid.model_validate(settings)


def test_a_listed_rate_outside_the_range_is_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="study's range 1e-05 to 10, got 20"):
        Grid(learning_rates=(0.1, 20.0)).propose(EMPTY, 1)
