"""How many seeds would tell two ways apart: against simulation, scipy's noncentral t and the textbook formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, nct, ttest_ind
from scipy.stats import t as student_t

from lrsearch.analysis import power_of_costs, speed_up
from lrsearch.analysis.power import (
    MOST_REACH_SEARCHES,
    MOST_SEARCHES,
    POWER,
    detectable_difference,
    power_of_reach,
    reach_power,
    relative_variance,
    searches_needed,
    welch_power,
)
from lrsearch.analysis.target import Outcome, OutcomeLike, as_outcome, expected_cost
from lrsearch.errors import UsageError


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("size", [0.0, 0.5, 2.0, 4.0])
def test_with_one_spread_alone_the_power_is_that_of_scipys_noncentral_t(n: int, size: float) -> None:
    edge = student_t.ppf(0.975, n - 1)
    expected = nct.sf(edge, n - 1, size) + nct.cdf(-edge, n - 1, size)
    assert welch_power(size * math.sqrt(1 / n), 1.0, 1e-9, n) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize(("a", "b", "n"), [(1.0, 1.0, 2), (1.0, 0.1, 2), (1.0, 1.0, 3), (0.2, 0.9, 4), (1.0, 1.0, 6)])
@pytest.mark.parametrize("size", [0.0, 2.0, 4.0])
def test_the_power_is_that_of_simulated_tests(a: float, b: float, n: int, size: float) -> None:
    """100,000 simulations have a standard error of 0.16 points at most."""
    generator = np.random.default_rng(5)
    x = generator.normal(size * math.sqrt((a + b) / n), math.sqrt(a), (100_000, n))
    y = generator.normal(0.0, math.sqrt(b), (100_000, n))
    found = np.mean(ttest_ind(x, y, axis=1, equal_var=False).pvalue < 0.05)
    assert welch_power(size * math.sqrt((a + b) / n), a, b, n) == pytest.approx(found, abs=0.006)


@pytest.mark.parametrize("spread", [0.05, 0.09, 0.3, 0.6])
def test_the_number_is_the_least_that_suffices(spread: float) -> None:
    needed = searches_needed(math.log(1.3), spread**2, spread**2)
    assert welch_power(math.log(1.3), spread**2, spread**2, needed) >= POWER
    assert welch_power(math.log(1.3), spread**2, spread**2, needed - 1) < POWER


def test_for_many_seeds_it_is_the_formula_of_textbooks() -> None:
    """n = (z_0.975 + z_0.8)^2 (cv_x^2 + cv_y^2) / ln(r)^2, and t's tails ask for one or two more."""
    textbook = (1.959964 + 0.841621) ** 2 * 2 * 0.6**2 / math.log(1.3) ** 2
    assert textbook < searches_needed(math.log(1.3), 0.36, 0.36) <= textbook + 2


def test_what_can_be_detected_is_what_the_number_was_asked_for() -> None:
    difference = detectable_difference(0.04, 0.09, 7)
    assert searches_needed(difference * 1.0001, 0.04, 0.09) == 7
    assert searches_needed(difference * 0.9, 0.04, 0.09) > 7


def test_costs_far_apart_in_spread_need_more_seeds_and_equal_ones_none() -> None:
    wide, narrow = [5.0, 10.0, 15.0], [10.0, 10.1, 9.9]
    assert power_of_costs(narrow, narrow).more == 0
    assert power_of_costs(wide, wide).more > power_of_costs(wide, narrow).more > 10
    constant = power_of_costs([4.0, 4.0], [4.0, 4.0])
    assert (constant.more, constant.detectable) == (0, 1.0)
    assert power_of_costs([1.0, 1e6], [1.0, 1e6], 1.0001).searches_needed == MOST_SEARCHES


def test_one_search_has_no_spread() -> None:
    with pytest.raises(UsageError, match="at least two"):
        power_of_costs([1.0], [1.0, 2.0])


def searches_with_misses(generator: np.random.Generator, count: int, scale: float = 1.0) -> list[OutcomeLike]:
    """Seven of ten reach the target at a cost of about 1, the others spend about 1.5 in vain."""
    hits = generator.random(count) < 0.7
    spent = scale * np.where(hits, generator.gamma(20, 1 / 20, count), generator.gamma(40, 1.5 / 40, count))
    return [(cost, "reached" if hit else "exhausted") for cost, hit in zip(spent.tolist(), hits.tolist(), strict=True)]


def test_without_misses_the_relative_variance_is_the_squared_coefficient_of_variation() -> None:
    costs = [3.0, 5.0, 4.0, 8.0]
    assert relative_variance(costs) == pytest.approx((np.std(costs, ddof=1) / np.mean(costs)) ** 2)


def test_with_misses_it_is_the_variance_of_the_simulated_cost_with_restarts() -> None:
    """2,000 studies of 400 searches: the variance of a variance is 2/2000 of its square, 3 sigma of it are 10 %; what
    the logarithm bends at 400 searches adds 1 %."""
    generator = np.random.default_rng(1)
    logs = [math.log(expected_cost(map(as_outcome, searches_with_misses(generator, 400)))) for _ in range(2000)]
    assert 400 * np.var(logs) == pytest.approx(relative_variance(searches_with_misses(generator, 100_000)), rel=0.11)


def test_one_hit_and_one_miss_by_hand() -> None:
    """Spent 1 and 5, one hit: R = 6, residuals -5 and 5, variance 50, mean spent 3."""
    assert relative_variance([1.0, (5.0, "exhausted")]) == pytest.approx(50 / 9)


@pytest.mark.parametrize("costs", [[(1.0, "exhausted"), (2.0, "budget")], [1.0, None]])
def test_a_spread_after_misses_needs_a_hit_and_what_all_spent(costs: list[OutcomeLike]) -> None:
    with pytest.raises(UsageError, match="reached the target, and what all spent"):
        power_of_costs(costs, [1.0, 2.0])


def test_after_misses_three_seeds_detect_nothing_however_little_costs_scatter() -> None:
    costs: list[OutcomeLike] = [1.0, 1.001, (0.999, "exhausted")]
    assert power_of_costs(costs, costs, ratio=100.0).more == 1
    assert power_of_costs([1.0, 1.001, 0.999], [1.0, 1.001, 0.999], ratio=100.0).more == 0


@pytest.mark.slow
def test_after_misses_so_many_seeds_tell_the_ways_apart_four_times_in_five() -> None:
    """300 simulations have a standard error of 2.3 points."""
    generator = np.random.default_rng(4)
    v = relative_variance(searches_with_misses(generator, 100_000))
    n = searches_needed(math.log(1.3), v, v)
    ratios = [
        speed_up(searches_with_misses(generator, n, 1.3), searches_with_misses(generator, n), seed=i)
        for i in range(300)
    ]
    assert np.mean([ratio.low is not None and ratio.low > 1 for ratio in ratios]) == pytest.approx(POWER, abs=0.07)


@pytest.mark.parametrize(("x_rate", "y_rate", "n"), [(1.0, 0.0, 4), (0.8, 0.0, 7), (0.5, 0.0, 17), (0.9, 0.3, 9)])
def test_the_power_of_reach_rates_is_that_of_counting_all_pairs(x_rate: float, y_rate: float, n: int) -> None:
    """Wilson's ends again as the roots p of n (share - p)^2 = z^2 p (1 - p)."""

    def ends(hits: int) -> tuple[float, float]:
        z2, share = 1.959963984540054**2, hits / n
        low, high = sorted(np.roots([n + z2, -2 * n * share - z2, n * share**2]).real)
        return float(low), float(high)

    apart = 0.0
    for x in range(n + 1):
        for y in range(n + 1):
            (x_low, x_high), (y_low, y_high) = ends(x), ends(y)
            if x_low > y_high or y_low > x_high:
                apart += float(binom.pmf(x, n, x_rate) * binom.pmf(y, n, y_rate))
    assert reach_power(x_rate, y_rate, n) == pytest.approx(apart)


def test_the_number_for_reach_rates_is_the_least_that_suffices() -> None:
    seen: list[Outcome] = [as_outcome(1.0)] * 4 + [as_outcome((1.0, "exhausted"))]
    never = [as_outcome((1.0, "exhausted"))] * 5
    needed = power_of_reach(seen, never)
    assert reach_power(0.8, 0.0, needed) >= POWER > reach_power(0.8, 0.0, needed - 1)
    assert power_of_reach(never, never) == MOST_REACH_SEARCHES


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.09, 0.2])
def test_so_many_simulated_seeds_do_tell_the_ways_apart_four_times_in_five(spread: float) -> None:
    """4000 simulations have a standard error of 0.6 points; 3 points leave room for that and for what the formula
    neglects: the log of a mean of normal costs is only nearly normal."""
    n = searches_needed(math.log(1.3), spread**2, spread**2)
    generator = np.random.default_rng(3)
    slow = generator.normal(1.3, 1.3 * spread, (4000, n)).tolist()
    fast = generator.normal(1.0, spread, (4000, n)).tolist()
    ratios = [speed_up(x, y, "welch") for x, y in zip(slow, fast, strict=True)]
    found = [ratio.low is not None and ratio.low > 1 for ratio in ratios]
    assert np.mean(found) == pytest.approx(welch_power(math.log(1.3), spread**2, spread**2, n), abs=0.03)
    assert np.mean(found) > 0.78
