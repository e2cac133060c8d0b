"""Cost to target: three ways to end, and none of them forgotten."""

import math

import pytest
from scipy.optimize import brentq

from lrsearch.analysis import Outcome, cost_to_target, expected_cost, reach_summary
from lrsearch.analysis.target import Ended, wilson_interval
from lrsearch.errors import UsageError


def hit(cost: float) -> Outcome:
    return Outcome("reached", cost, cost)


def miss(spent: float) -> Outcome:
    return Outcome("exhausted", math.inf, spent)


def test_the_first_evaluation_that_meets_the_target_counts_even_if_a_later_one_falls_back() -> None:
    outcome = cost_to_target([(1.0, 0.5), (2.0, 0.9), (3.0, 0.4)], 0.9)
    assert outcome == Outcome("reached", 2.0, 2.0)


def test_a_metric_that_should_be_low_is_reached_from_above() -> None:
    assert cost_to_target([(1.0, 0.5), (2.0, 0.2)], 0.3, higher_is_better=False).cost == 2.0


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
