"""The hindsight premium of pools whose answer can be counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.analysis import grid_order, hindsight_premium
from lrsearch.errors import UsageError

LOG_RATES = [-5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0]
RATES = [10**log for log in LOG_RATES]


def test_the_windows_are_counted_by_hand() -> None:
    """One trial per decade, the best at 0.1; a decade around it holds it alone, three hold 0.01 to 1."""
    values = [0.1, 0.1, 0.2, 0.85, 0.9, 0.3, None]
    one, three, six = hindsight_premium(RATES, values, [2.0] * 7, 0.8)
    assert [(cell.trials, cell.good) for cell in (one, three, six)] == [(1, 1), (3, 2), (7, 2)]
    assert [cell.expected_cost for cell in (one, three, six)] == pytest.approx([2.0, 1 * 2 / 3 + 2, 5 * 2 / 3 + 2])
    assert [cell.premium for cell in (one, three, six)] == pytest.approx([1.0, (2 / 3 + 2) / 2, (10 / 3 + 2) / 2])


def test_a_window_that_would_stick_out_is_shifted() -> None:
    [cell] = hindsight_premium(RATES, [0.1] * 6 + [0.9], [1.0] * 7, 0.8, 2)
    assert (cell.low, cell.high) == pytest.approx((0.1, 10.0))
    assert cell.trials == 3


def test_a_target_that_no_trial_meets_is_never_reached_at_any_width() -> None:
    cells = hindsight_premium(RATES, [0.1] * 7, [1.0] * 7, 0.8)
    assert {cell.expected_cost for cell in cells} == {math.inf}
    assert {cell.premium for cell in cells} == {None}


def test_a_prior_that_costs_nothing_has_no_multiple() -> None:
    cells = hindsight_premium(RATES, [0.1] * 6 + [0.9], [0.0] * 7, 0.8)
    assert {cell.expected_cost for cell in cells} == {0.0}
    assert {cell.premium for cell in cells} == {None}


@given(st.lists(st.tuples(st.floats(-5, 1), st.floats(0, 1), st.floats(0.5, 5)), min_size=1, max_size=20))
def test_the_widest_prior_is_the_whole_pool(drawn: list[tuple[float, float, float]]) -> None:
    logs, values, costs = (list(column) for column in zip(*drawn, strict=True))
    cells = hindsight_premium([10**log for log in logs], values, costs, 0.5)
    whole = grid_order(costs, [None] * len(costs), values, 0.5)
    assert cells[-1].trials == len(costs)
    assert cells[-1].expected_cost == whole.expected
    assert [cell.trials for cell in cells] == sorted(cell.trials for cell in cells)


def test_the_expectation_agrees_with_random_orders_drawn() -> None:
    generator = np.random.default_rng(0)
    logs = generator.uniform(-5, 1, 40)
    values = np.exp(-((logs + 1) ** 2))
    costs = generator.uniform(1, 3, 40)
    totals = []
    for _ in range(4000):
        order = generator.permutation(40)
        hit = int(np.argmax(values[order] >= 0.8))
        totals.append(costs[order][: hit + 1].sum())
    cells = hindsight_premium((10**logs).tolist(), values.tolist(), costs.tolist(), 0.8)
    error = np.std(totals) / math.sqrt(len(totals))
    assert cells[-1].expected_cost == pytest.approx(np.mean(totals), abs=4 * error)


def test_a_metric_that_should_be_low_and_hit_costs_within_a_trial() -> None:
    cells = hindsight_premium([0.1, 1.0], [0.1, 0.9], [4.0, 4.0], 0.2, [6], hit_costs=[1.0, None], lower_is_better=True)
    assert cells[0].expected_cost == 4.0 / 2 + 1.0


@pytest.mark.parametrize(
    ("rates", "decades"), [([], [1.0]), ([0.0, 1.0], [1.0]), ([0.1, 1.0], [0.0]), ([0.1, 1.0], [])]
)
def test_what_has_no_decades_is_refused(rates: list[float], decades: list[float]) -> None:
    with pytest.raises(UsageError):
        hindsight_premium(rates, [0.5] * len(rates), [1.0] * len(rates), 0.4, decades)
