"""Ratios and differences against scipy, closed forms and their own coverage."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lrsearch.analysis import Outcome, improvement, mean_difference, mean_of, probability_of_improvement, speed_up
from lrsearch.analysis.compare import expected_cost_interval
from lrsearch.errors import UsageError
from tests.records import some


def hit(cost: float) -> Outcome:
    return Outcome("reached", cost, cost)


def miss(spent: float) -> Outcome:
    return Outcome("exhausted", math.inf, spent)


def test_the_mean_carries_scipys_t_interval() -> None:
    values = [0.91, 0.93, 0.97, 0.90]
    mean = mean_of(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert mean is not None
    assert (mean.low, mean.high) == pytest.approx(expected)
    assert (mean.value, mean.sd, mean.count) == pytest.approx((np.mean(values), np.std(values, ddof=1), 4))


def test_an_interval_does_not_pass_the_ends_of_its_metric_and_is_else_the_same() -> None:
    values = [0.961, 0.925]
    low, high = stats.t.interval(0.95, 1, loc=np.mean(values), scale=stats.sem(values))
    assert high > 1
    mean = some(mean_of(values, within=(0.0, 1.0)))
    assert mean.low == pytest.approx(low)
    assert mean.high == 1.0
    apart = mean_difference([0.9, 0.1], [0.2, 0.7], within=(0.0, 1.0))
    assert (apart.low, apart.high) == (-1.0, 1.0)
    inside = [0.5, 0.51, 0.52]
    assert mean_of(inside, within=(0.0, 1.0)) == mean_of(inside)


def test_cut_intervals_hold_the_true_accuracy_exactly_as_often() -> None:
    generator = np.random.default_rng(5)
    held = [
        (some(cut.low) <= 0.985 <= some(cut.high), some(whole.low) <= 0.985 <= some(whole.high))
        for values in np.minimum(generator.normal(0.985, 0.004, (500, 3)), 1.0).tolist()
        for cut, whole in [(some(mean_of(values, within=(0.0, 1.0))), some(mean_of(values)))]
    ]
    assert all(cut == whole for cut, whole in held)


def test_a_single_value_has_no_spread_and_no_value_has_no_mean() -> None:
    one = mean_of([0.9])
    assert one is not None
    assert (one.value, one.sd, one.count, one.low, one.high) == (0.9, None, 1, None, None)
    assert mean_of([]) is None


def test_the_interval_of_a_difference_is_that_of_scipys_welch_test() -> None:
    x, y = [0.95, 0.96, 0.94, 0.97], [0.93, 0.95, 0.90]
    difference = mean_difference(x, y, confidence=0.9)
    expected = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.9)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))


def test_the_ratio_under_ten_searches_is_methods_formula_written_out() -> None:
    slow, fast = [10.0, 12.0, 11.0, 9.5], [3.0, 3.3, 2.8]
    ratio = speed_up(slow, fast)
    a = stats.sem(slow) ** 2 / np.mean(slow) ** 2
    b = stats.sem(fast) ** 2 / np.mean(fast) ** 2
    freedom = (a + b) ** 2 / (a**2 / 3 + b**2 / 2)
    low, high = np.exp(stats.t.interval(0.95, freedom, loc=np.log(np.mean(slow) / np.mean(fast)), scale=np.sqrt(a + b)))
    assert ratio.method == "welch"
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((np.mean(slow) / np.mean(fast), low, high))


def test_welchs_interval_covers_the_true_ratio_of_equal_ways_about_as_often_as_it_says() -> None:
    """Simulated coverage 93-95 %. 2000 simulations of n = 5 have a standard error of 0.5 points."""
    generator = np.random.default_rng(1)
    draws = generator.normal(10, 0.9, size=(2000, 2, 5))
    covered = [ratio.low <= 1 <= ratio.high for x, y in draws.tolist() if (ratio := speed_up(x, y)).low and ratio.high]
    assert len(covered) == 2000
    assert 0.93 <= np.mean(covered) <= 0.97


def test_from_ten_searches_on_it_is_scipys_percentile_bootstrap_of_the_ratio_of_means() -> None:
    generator = np.random.default_rng(2)
    slow, fast = generator.gamma(9, 1, 12), generator.gamma(9, 0.4, 11)
    ratio = speed_up(slow.tolist(), fast.tolist())
    expected = stats.bootstrap(
        (slow, fast),
        lambda x, y, axis: np.mean(x, axis=axis) / np.mean(y, axis=axis),
        method="percentile",
        rng=np.random.default_rng(3),
        vectorized=True,
    ).confidence_interval
    assert ratio.method == "bootstrap"
    assert ratio.low is not None
    assert ratio.high is not None
    assert (ratio.low, ratio.high) == pytest.approx((expected.low, expected.high), rel=0.03)  # Monte Carlo error


def test_misses_are_bootstrapped_as_expected_costs_which_all_samples_enumerated_confirm() -> None:
    """Two searches each: 4 x 4 equally likely samples, so the quantiles are those of 16 ratios."""
    slow, fast = [hit(10.0), miss(30.0)], [hit(2.0), hit(4.0)]

    def ert(sample: tuple[Outcome, ...]) -> float:
        hits = sum(one.reached for one in sample)
        return sum(one.spent for one in sample) / hits if hits else math.inf

    ratios = [ert(s) / ert(f) for s in product(slow, repeat=2) for f in product(fast, repeat=2)]
    ratio = speed_up(slow, fast, "bootstrap")
    assert ratio.method == "bootstrap"
    assert ratio.value == pytest.approx(40 / 3)
    assert ratio.low == pytest.approx(min(ratios))  # a sixteenth of the draws is more than 2.5 %
    assert ratio.high == math.inf  # a quarter of the draws has no success: one-sided


def with_misses(generator: np.random.Generator, n: int) -> list[Outcome]:
    """A fifth of the searches misses and spends twice what a hit does."""
    return [
        hit(cost) if place > 0.2 else miss(2 * cost)
        for cost, place in zip(generator.lognormal(0.0, 0.2, n), generator.random(n), strict=True)
    ]


@pytest.mark.parametrize(("n", "studies"), [(3, 100), (5, 100)])
def test_after_misses_ways_that_are_alike_are_seldom_told_apart(n: int, studies: int) -> None:
    """The percentile bootstrap tells 19 and 11 % of these studies apart; the wish is 5."""
    generator, told = np.random.default_rng(0), list[bool]()
    while len(told) < studies:
        slow, fast = with_misses(generator, n), with_misses(generator, n)
        ratio = speed_up(slow, fast)
        if ratio.method == "permutation":
            told.append(not some(ratio.low) <= 1 <= some(ratio.high))
    assert np.mean(told) <= 0.05


def test_the_interval_after_misses_ends_where_all_deals_enumerated_confirm() -> None:
    """Four searches each: 70 deals, so that one alone is less than 2.5 % and two are more."""
    slow = [(9.0, 1), (30.0, 0), (11.0, 1), (10.0, 1)]
    fast = [(2.0, 1), (4.0, 1), (3.0, 1), (2.5, 1)]

    def statistic(x: list[tuple[float, int]], y: list[tuple[float, int]]) -> float:
        logs, errors = [], []
        for way in (x, y):
            cost = sum(spent for spent, _ in way) / sum(reached for _, reached in way)
            residuals = [spent - cost * reached for spent, reached in way]
            logs.append(math.log(cost))
            errors.append(np.var(residuals, ddof=1) / len(way) / np.mean([spent for spent, _ in way]) ** 2)
        return float((logs[0] - logs[1]) / math.sqrt(sum(errors)))

    def shares(ratio: float) -> tuple[float, float]:
        pooled = [(spent / ratio, reached) for spent, reached in slow] + fast
        deals = [
            statistic([pooled[i] for i in mine], [pooled[i] for i in range(8) if i not in mine])
            for mine in combinations(range(8), 4)
        ]
        return float(np.mean(np.array(deals) >= deals[0] - 1e-9)), float(np.mean(np.array(deals) <= deals[0] + 1e-9))

    ratio = speed_up([hit(spent) if reached else miss(spent) for spent, reached in slow], [hit(s) for s, _ in fast])
    assert ratio.method == "permutation"
    assert ratio.value == pytest.approx(20 / 2.875)
    low, high = some(ratio.low), some(ratio.high)
    assert shares(low / 1.01)[0] <= 0.025 < shares(low * 1.01)[0]
    assert shares(high * 1.01)[1] <= 0.025 < shares(high / 1.01)[1]


def test_after_misses_in_few_searches_their_order_does_not_matter() -> None:
    generator = np.random.default_rng(3)
    slow, fast = [*with_misses(generator, 4), miss(3.0)], with_misses(generator, 5)
    ratio, turned = speed_up(slow, fast), speed_up(slow[::-1], fast[::-1])
    assert (ratio.method, turned.low, turned.high) == ("permutation", *map(pytest.approx, (ratio.low, ratio.high)))


def test_a_miss_alone_tells_no_ways_apart_that_spend_the_same() -> None:
    """With 1 as the ratio half of the deals are as great; with any below it that of the study alone is."""
    ratio = speed_up([*map(hit, [1.0] * 4), miss(1.0)], [hit(1.0)] * 5)
    assert (ratio.value, ratio.method) == (1.25, "permutation")
    assert 0.99 < some(ratio.low) <= 1 < some(ratio.high)


def test_after_misses_swapping_the_ways_inverts_the_interval_and_units_do_not_matter() -> None:
    generator = np.random.default_rng(2)
    slow, fast = with_misses(generator, 9), [*with_misses(generator, 5), miss(3.0)]
    ratio, inverse = speed_up(slow, fast), speed_up(fast, slow)
    assert (ratio.low, ratio.high) == pytest.approx((1 / some(inverse.high), 1 / some(inverse.low)))
    in_minutes = [[Outcome(one.ended, one.cost / 60, one.spent / 60) for one in way] for way in (slow, fast)]
    scaled = speed_up(in_minutes[0], in_minutes[1])
    assert (scaled.low, scaled.high) == pytest.approx((ratio.low, ratio.high))


def test_a_way_that_never_got_there_has_no_interval() -> None:
    never = speed_up([miss(5.0), miss(6.0)], [hit(1.0), hit(1.1)])
    assert (never.value, never.low, never.high, never.method) == (math.inf, None, None, "never_reached")
    assert math.isnan(speed_up([miss(5.0)] * 2, [miss(5.0)] * 2).value)
    assert speed_up([hit(5.0)] * 2, [miss(5.0)] * 2).value == 0


def test_one_search_each_has_a_ratio_and_no_interval() -> None:
    ratio = speed_up([6.0], [2.0])
    assert (ratio.value, ratio.low, ratio.high, ratio.method) == (3.0, None, None, "too_few")


def test_the_same_costs_give_a_ratio_of_one_inside_its_interval() -> None:
    ratio = speed_up([3.0, 4.0, 5.0], [3.0, 4.0, 5.0])
    assert ratio.value == 1
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < 1 < ratio.high


def test_constant_costs_are_no_reason_to_fail() -> None:
    ratio = speed_up([4.0, 4.0], [2.0, 2.0])
    assert (ratio.low, ratio.high) == pytest.approx((2.0, 2.0))


def test_the_draws_are_seeded() -> None:
    slow, fast = [hit(4.0), miss(9.0), hit(5.0)], [hit(1.0), hit(2.0), hit(1.5)]
    assert speed_up(slow, fast) == speed_up(slow, fast)


@pytest.mark.parametrize("costs", [[], [0.0, 1.0], [math.nan, 1.0], [-1.0, 2.0]])
def test_costs_that_are_none_are_refused(costs: list[float]) -> None:
    with pytest.raises(UsageError):
        speed_up(costs, [1.0, 2.0])


def test_welch_is_refused_where_a_search_missed() -> None:
    with pytest.raises(UsageError, match="bootstrap"):
        speed_up([hit(1.0), miss(2.0)], [1.0, 2.0], method="welch")


values = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=8)


@given(values, values)
def test_probability_of_improvement_is_mann_whitneys_u(x: list[float], y: list[float]) -> None:
    u = stats.mannwhitneyu(x, y).statistic
    assert probability_of_improvement(x, y) == pytest.approx(u / (len(x) * len(y)))
    assert probability_of_improvement(x, y, lower_is_better=True) == pytest.approx(1 - u / (len(x) * len(y)))


def test_never_against_never_is_a_tie_and_worse_than_anything_else() -> None:
    assert probability_of_improvement([None, None], [None], lower_is_better=True) == 0.5
    assert probability_of_improvement([5.0], [None], lower_is_better=True) == 1.0
    assert probability_of_improvement([None], [5.0]) == 0.0


def test_misses_of_unknown_cost_give_a_bound_on_one_side_alone() -> None:
    slow, fast = [5.0, None, 6.0, 5.5, 7.0, 6.5], [1.0, 1.2, 1.1]
    ratio = speed_up(slow, fast)
    free = speed_up([5.0, (1e-9, "exhausted"), 6.0, 5.5, 7.0, 6.5], fast)
    assert (ratio.value, ratio.high) == (math.inf, math.inf)
    assert ratio.low == pytest.approx(free.low)
    other = speed_up(fast, slow)
    assert (other.value, other.low) == (0.0, 0.0)
    assert other.high is not None
    assert free.low is not None
    assert 1 / other.high == pytest.approx(free.low, rel=0.05)  # other draws


@given(st.lists(st.floats(0.5, 50), min_size=2, max_size=12), st.lists(st.floats(0.5, 50), min_size=2, max_size=12))
def test_swapping_the_ways_inverts_the_ratio_and_units_do_not_matter(x: list[float], y: list[float]) -> None:
    ratio, inverse = speed_up(x, y), speed_up(y, x)
    assert ratio.value == pytest.approx(1 / inverse.value)
    scaled = speed_up([3600 * cost for cost in x], [3600 * cost for cost in y])
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx((ratio.value, ratio.low, ratio.high))
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low <= ratio.value * (1 + 1e-9)
    assert ratio.high >= ratio.value * (1 - 1e-9)


@given(values, values)
def test_the_interval_of_an_improvement_ends_where_newcombes_equation_holds(x: list[float], y: list[float]) -> None:
    """The ends solve |value - p| = 1.96 sqrt(variance(p)), the variance with Hanley and McNeil's Q1 and Q2."""
    found = improvement(x, y)
    if min(len(x), len(y)) < 2:
        assert (found.low, found.high) == (None, None)
        return
    assert 0 <= some(found.low) <= found.value <= some(found.high) <= 1
    half = (len(x) + len(y)) / 2 - 1
    for p in {some(found.low), some(found.high)} - {found.value}:
        q1, q2 = p / (2 - p), 2 * p**2 / (1 + p)
        variance = (p * (1 - p) + half * (q1 - p**2) + half * (q2 - p**2)) / (len(x) * len(y))
        assert abs(found.value - p) == pytest.approx(1.959963984540054 * math.sqrt(variance), abs=1e-6)


def test_ways_that_are_wholly_apart_are_not_certainly_so() -> None:
    found = improvement([3.0, 4.0, 5.0, 6.0, 7.0], [0.0, 1.0, 2.0, 2.5, 2.7])
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.6427, abs=1e-4)
    assert found.is_better
    assert not improvement([3.0, 4.0, 5.0], [0.0, 1.0, 2.0]).is_better  # chance does that in one of ten studies
    assert improvement([3.0], [1.0]).low is None


@pytest.mark.parametrize("apart", [0.0, 2.0])
def test_the_interval_of_an_improvement_covers_about_as_often_as_it_says(apart: float) -> None:
    """Normal values of five searches each; 500 simulations have a standard error of 1 point."""
    generator = np.random.default_rng(6)
    true = stats.norm.cdf(apart / math.sqrt(2))
    found = [
        improvement(generator.normal(apart, 1, 5).tolist(), generator.normal(0, 1, 5).tolist()) for _ in range(500)
    ]
    assert np.mean([some(one.low) <= true <= some(one.high) for one in found]) > 0.91


def test_the_interval_of_one_ways_cost_is_that_of_its_ratio_to_a_cost_of_one() -> None:
    """A way that always costs 1 adds no variance, so that the ratio's own interval is that of the cost."""
    costs = [3.0, 4.5, 3.8, 5.1]
    ratio, interval = speed_up(costs, [1.0, 1.0]), expected_cost_interval(costs)
    assert interval == pytest.approx((ratio.low, ratio.high))
    missed = [*map(hit, costs), miss(6.0)]
    ratio, interval = speed_up(missed, [hit(1.0)] * 5, "bootstrap"), expected_cost_interval(missed)
    assert interval == pytest.approx((ratio.low, ratio.high), rel=0.02)  # other draws of the same
    assert expected_cost_interval([miss(1.0), miss(1.0)]) is None
    assert expected_cost_interval([2.0]) is None
