"""How many seeds would tell two ways apart: against scipy's noncentral t, the textbook formula and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import nct
from scipy.stats import t as student_t

from lrsearch.analysis import power_of_costs, speed_up
from lrsearch.analysis.power import MOST_SEARCHES, POWER, detectable_difference, searches_needed, welch_power
from lrsearch.errors import UsageError


@pytest.mark.parametrize(("a", "b", "n"), [(1.0, 1.0, 3), (1.0, 1e-9, 5), (0.2, 0.9, 4)])
@pytest.mark.parametrize("size", [0.5, 2.0, 4.0])
def test_the_power_is_that_of_scipys_noncentral_t(a: float, b: float, n: int, size: float) -> None:
    freedom = (a + b) ** 2 * (n - 1) / (a**2 + b**2)
    edge = student_t.ppf(0.975, freedom)
    expected = nct.sf(edge, freedom, size) + nct.cdf(-edge, freedom, size)
    assert welch_power(size * math.sqrt((a + b) / n), a, b, n) == pytest.approx(expected, abs=1e-4)


def test_without_a_difference_the_power_is_the_level() -> None:
    assert welch_power(0.0, 1.0, 1.0, 6) == pytest.approx(0.05, abs=1e-4)


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


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.09, 0.2])
def test_so_many_simulated_seeds_do_tell_the_ways_apart_four_times_in_five(spread: float) -> None:
    """4000 simulations have a standard error of 0.6 points; 3 points leave room for that and for what the formula
    neglects: degrees of freedom are estimated too, and the log of a mean of normal costs is only nearly normal."""
    n = searches_needed(math.log(1.3), spread**2, spread**2)
    generator = np.random.default_rng(3)
    slow = generator.normal(1.3, 1.3 * spread, (4000, n)).tolist()
    fast = generator.normal(1.0, spread, (4000, n)).tolist()
    ratios = [speed_up(x, y, "welch") for x, y in zip(slow, fast, strict=True)]
    found = [ratio.low is not None and ratio.low > 1 for ratio in ratios]
    assert np.mean(found) == pytest.approx(welch_power(math.log(1.3), spread**2, spread**2, n), abs=0.03)
    assert np.mean(found) > 0.78
