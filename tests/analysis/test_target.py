"""Cost to target: three ways to end, and none of them forgotten."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import CensoredData, ecdf

from lrsearch.analysis import Outcome, cost_to_target, expected_cost, kaplan_meier, reach_summary
from lrsearch.analysis.target import Ended, OutcomeLike, as_outcome, wilson_interval
from lrsearch.errors import UsageError
from tests.analysis.test_compare import hit, miss


def test_the_first_evaluation_that_meets_the_target_counts_even_if_a_later_one_falls_back() -> None:
    outcome = cost_to_target([(1.0, 0.5), (2.0, 0.9), (3.0, 0.4)], 0.9)
    assert outcome == Outcome("reached", 2.0, 2.0)


def test_a_metric_that_should_be_low_is_reached_from_above() -> None:
    assert cost_to_target([(1.0, 0.5), (2.0, 0.2)], 0.3, lower_is_better=True).cost == 2.0


@pytest.mark.parametrize("ended", ["budget", "exhausted"])
def test_a_miss_costs_infinitely_much_and_keeps_what_it_spent(ended: Ended) -> None:
    outcome = cost_to_target([(1.0, 0.5), (2.0, None)], 0.9, ended, spent=7.0)
    assert (outcome.ended, outcome.cost, outcome.spent) == (ended, math.inf, 7.0)


def test_a_claim_to_have_reached_the_target_is_checked() -> None:
    with pytest.raises(UsageError, match="No evaluation reaches the target"):
        cost_to_target([(1.0, 0.5)], 0.9, "reached")


def test_expected_cost_is_the_mean_when_all_reach_it_and_charges_misses_when_not() -> None:
    assert expected_cost([hit(2.0), hit(4.0)]) == 3.0
    assert expected_cost([hit(2.0), hit(4.0), miss(10.0)]) == (2 + 4 + 10) / 2
    assert expected_cost([miss(10.0)]) == math.inf


def test_expected_cost_agrees_with_restarting_until_success_in_the_limit() -> None:
    """E[T] = E[failures] x cost of one + cost of the hit = (1-p)/p m + h, for p = 1/4."""
    outcomes = [hit(3.0), miss(10.0), miss(10.0), miss(10.0)]
    assert expected_cost(outcomes) == pytest.approx((1 - 0.25) / 0.25 * 10.0 + 3.0)


def test_the_median_takes_misses_as_infinite() -> None:
    assert reach_summary([hit(1.0), hit(2.0), miss(9.0)]).median_cost == 2.0
    assert reach_summary([hit(1.0), miss(9.0), miss(9.0)]).median_cost == math.inf


def test_a_budget_turns_later_hits_into_misses() -> None:
    summary = reach_summary([hit(1.0), hit(5.0)], budget=2.0)
    assert (summary.reached, summary.total, summary.expected_cost) == (1, 2, 3.0)


@pytest.mark.parametrize(("hits", "total"), [(1, 5), (4, 5), (7, 10)])
def test_wilsons_interval_solves_the_score_equation(hits: int, total: int) -> None:
    """Its ends are the shares p at which |hits/total - p| = z sqrt(p (1 - p) / total)."""
    share = hits / total

    def score(p: float) -> float:
        return (share - p) ** 2 - 1.959963984540054**2 * p * (1 - p) / total

    expected = brentq(score, 1e-9, share), brentq(score, share, 1 - 1e-9)
    assert wilson_interval(hits, total) == pytest.approx(expected, abs=1e-6)


outcome_pairs = st.lists(
    st.tuples(st.sampled_from([1.0, 2.0, 3.0, 5.0, 8.0]), st.sampled_from(["reached", "budget", "exhausted"])),
    min_size=1,
    max_size=12,
)


@given(outcome_pairs)
def test_the_curve_of_kaplan_and_meier_is_scipys_with_the_exhausted_at_risk_for_ever(
    drawn: list[tuple[float, Ended]],
) -> None:
    hits = [cost for cost, ended in drawn if ended == "reached"]
    censored = [cost if ended == "budget" else 1e9 for cost, ended in drawn if ended != "reached"]
    curve = kaplan_meier(drawn)
    if not hits:
        assert (curve.costs, curve.median) == ((), math.inf)
        return
    expected = ecdf(CensoredData(uncensored=hits, right=censored)).sf
    for cost in (0.5, 1.0, 2.5, 3.0, 8.0, 9.0):
        assert curve.at(cost) == pytest.approx(float(expected.evaluate(cost)))
    assert curve.at(1e12) >= sum(ended == "exhausted" for _, ended in drawn) / len(drawn) - 1e-12


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=10), st.floats(0.1, 12))
def test_without_misses_the_restricted_mean_is_the_mean_of_what_each_costs_up_to_the_horizon(
    costs: list[float], horizon: float
) -> None:
    assert kaplan_meier(costs).restricted_mean(horizon) == pytest.approx(
        np.mean([min(cost, horizon) for cost in costs])
    )
    summary = reach_summary(costs, horizon)
    assert summary.restricted_mean == pytest.approx(np.mean([min(cost, horizon) for cost in costs]))


def test_a_search_that_a_budget_stopped_counts_until_then_and_one_that_gave_up_for_ever() -> None:
    """Hits at 2 and 4, one search stopped at 3: S(4) = 2/3 x (1 - 1/1) = 0; had it given up: 2/3 x (1 - 1/2)."""
    assert kaplan_meier([2.0, (3.0, "budget"), 4.0]).shares == pytest.approx((2 / 3, 0.0))
    assert kaplan_meier([2.0, (3.0, "exhausted"), 4.0]).shares == pytest.approx((2 / 3, 1 / 3))
    assert kaplan_meier([3.0, (3.0, "budget")]).shares == (0.5,)  # at a tie the hit comes first


def test_half_of_the_searches_is_half_whatever_floats_make_of_it() -> None:
    """The product of 9/10, 7/9, 6/7 and 5/6, taken in floats, is 0.5000000000000001."""
    curve = kaplan_meier([1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    assert curve.median == 4.0
    assert 0.5 in curve.shares


def test_the_horizon_is_the_budget_or_the_most_that_was_spent() -> None:
    assert reach_summary([hit(1.0), miss(9.0)]).horizon == 9.0
    assert reach_summary([hit(1.0), miss(9.0)]).restricted_mean == pytest.approx((1.0 + 9.0) / 2)
    assert reach_summary([hit(1.0), miss(9.0)], 4.0).horizon == 4.0


def test_plain_values_stand_for_outcomes() -> None:
    assert as_outcome(2.0) == hit(2.0)
    assert as_outcome((7.0, "budget")) == Outcome("budget", math.inf, 7.0)
    assert as_outcome((7.0, "reached")) == hit(7.0)
    assert as_outcome(None) == as_outcome(math.inf) == miss(math.inf)
    summary = reach_summary([2.0, None, (9.0, "exhausted")])
    assert (summary.reached, summary.total, summary.median_cost) == (1, 3, math.inf)
    assert summary.expected_cost == math.inf  # what the second one spent is not known
    assert reach_summary([2.0, None], 10.0).expected_cost == 12.0  # with a budget it is


@pytest.mark.parametrize("value", [-1.0, math.nan, (1.0, "lost")])
def test_what_is_no_outcome_is_refused(value: OutcomeLike) -> None:
    with pytest.raises(UsageError, match="An outcome is"):
        as_outcome(value)
