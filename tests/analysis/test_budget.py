"""Equal budgets, equal targets and areas, against readings of their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from lrsearch.analysis import StepCurve, anytime_curve, area, cost_to_target, equal_accuracy, equal_budget
from lrsearch.errors import UsageError


def test_budgets_are_multiples_of_the_cost_that_is_given() -> None:
    early = StepCurve((1.0, 5.0), (0.6, 0.9), 6.0)
    late = StepCurve((3.0,), (0.8,), 20.0)
    cells = equal_budget([early, late], 2.0)
    assert [cell.budget for cell in cells] == [2.0, 4.0, 8.0, 16.0]
    assert [cell.value for cell in cells] == [None, pytest.approx(0.7), pytest.approx(0.85), pytest.approx(0.85)]
    assert [(cell.count, cell.total, cell.finished) for cell in cells] == [(1, 2, 0), (2, 2, 0), (2, 2, 1), (2, 2, 1)]
    assert equal_budget([early, early, late], 4.0, [1], statistic="median")[0].value == 0.6


def test_a_budget_needs_a_cost() -> None:
    with pytest.raises(UsageError, match="positive"):
        equal_budget([], 0.0)


searches = st.lists(
    st.lists(st.tuples(st.floats(0.1, 5), st.sampled_from([None, 0.1, 0.5, 0.9])), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
)


@given(searches)
def test_every_rung_of_the_ladder_counts_every_search(drawn: list[list[tuple[float, float | None]]]) -> None:
    ladder = [0.05, 0.5, 0.9, 0.95]
    rungs = equal_accuracy(drawn, ladder)
    for rung in rungs:
        reached = [search for search in drawn if any(v is not None and v >= rung.target for _, v in search)]
        assert (rung.reach.reached, rung.reach.total) == (len(reached), len(drawn))
    costs = [rung.reach.expected_cost for rung in rungs]
    assert costs[-1] == math.inf
    assert all(
        a <= b for a, b in zip([r.reach.reached for r in rungs][1:], [r.reach.reached for r in rungs], strict=False)
    )


def test_each_search_may_end_in_its_own_way() -> None:
    rungs = equal_accuracy([[(1.0, 0.5)], [(2.0, 0.5)]], [0.9], ["budget", "exhausted"], spent=[10.0, 20.0])
    alone = cost_to_target([(1.0, 0.5)], 0.9, "budget", spent=10.0)
    assert (alone.ended, rungs[0].reach.horizon) == ("budget", 20.0)


trials = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8)


@given(trials, st.booleans())
def test_the_area_is_the_integral_that_scipy_finds(drawn: list[tuple[float, float, float]], lower: bool) -> None:
    costs, values, tests = (list(column) for column in zip(*drawn, strict=True))
    curve = anytime_curve(costs, values, tests, lower_is_better=lower)
    low, high, sign = 0.05, curve.end + 1.0, -1 if lower else 1

    def regret(cost: float) -> float:
        value = curve.at(cost)
        return sign * (0.95 - (0.2 if value is None else value))

    inside = [cost for cost in curve.costs if low < cost < high]
    linear = quad(regret, low, high, points=inside, limit=200)[0] / (high - low)
    logs = [math.log(cost) for cost in inside]
    log = quad(lambda x: regret(math.exp(x)), math.log(low), math.log(high), points=logs, limit=200)[0]
    found = area(curve, low, high, best=0.95, before=0.2, lower_is_better=lower)
    assert found is not None
    assert (found.linear, found.log) == pytest.approx((linear, log / math.log(high / low)), abs=1e-6)


def test_without_a_model_from_the_start_there_is_no_area() -> None:
    curve = StepCurve((2.0,), (0.5,), 4.0)
    assert area(curve, 1.0, 4.0, best=1.0) is None
    found = area(curve, 2.0, 4.0, best=1.0)
    assert found is not None
    assert (found.linear, found.log) == (0.5, 0.5)
    with pytest.raises(UsageError, match="0 < low < high"):
        area(curve, 0.0, 4.0, best=1.0)


def test_log_cost_weighs_the_early_part_more() -> None:
    late = area(StepCurve((1.0, 10.0), (0.0, 1.0), 100.0), 1.0, 100.0, best=1.0)
    assert late is not None
    assert (late.linear, late.log) == pytest.approx((9 / 99, 0.5))
    assert np.isclose(late.log, math.log(10) / math.log(100))
