"""The cost of a grid over its orders, against running every permutation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import permutations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.analysis import grid_order
from lrsearch.errors import UsageError

TARGET = 0.8
Point = tuple[float, float, float]


@st.composite
def points(draw: st.DrawFn) -> list[Point]:
    """(cost, hit cost, value) of up to six trials; a hit costs at most the whole trial."""
    costs = draw(st.lists(st.floats(0.5, 20), min_size=1, max_size=6))
    return [(cost, cost * draw(st.floats(0.1, 1)), draw(st.sampled_from([0.1, 0.7, 0.8, 0.9]))) for cost in costs]


def run(order: Iterable[Point]) -> float:
    spent = 0.0
    for cost, hit, value in order:
        if value >= TARGET:
            return spent + hit
        spent += cost
    return math.inf


@given(points())
def test_expected_best_and_worst_are_those_of_all_permutations(drawn: list[Point]) -> None:
    order = grid_order(*(list(column) for column in zip(*drawn, strict=True)), target=TARGET)  # type: ignore[arg-type,misc]  # three columns
    totals = [run(permuted) for permuted in permutations(drawn)]
    assert order.as_executed == pytest.approx(run(drawn))
    assert order.expected == pytest.approx(fmean(totals))
    assert (order.best, order.worst) == pytest.approx((min(totals), max(totals)))
    assert (order.good + order.bad) == len(drawn)


def test_a_good_trial_without_a_hit_cost_is_paid_whole() -> None:
    order = grid_order([4.0, 6.0], [None, None], [0.9, 0.1], TARGET)
    assert (order.as_executed, order.expected, order.best, order.worst) == (4.0, 7.0, 4.0, 10.0)


def test_without_a_good_trial_every_order_costs_infinitely_much() -> None:
    order = grid_order([1.0, 2.0], [None, None], [0.1, None], TARGET)
    assert {order.as_executed, order.expected, order.best, order.worst} == {math.inf}
    assert (order.good, order.bad) == (0, 2)


def test_a_metric_that_should_be_low_is_met_from_above() -> None:
    assert grid_order([1.0, 2.0], [None, None], [0.5, 0.1], 0.2, lower_is_better=True).as_executed == 3.0


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="2, 1 and 2"):
        grid_order([1.0, 2.0], [None], [0.1, 0.9], TARGET)
