"""Two ways against each other: ratios and differences with an interval, never without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from statistics import fmean, stdev, variance
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lrsearch.analysis.target import UNBOUNDED, Interval, Outcome, OutcomeLike, as_outcome, expected_cost
from lrsearch.errors import UsageError

Method = Literal["welch", "bootstrap", "permutation", "never_reached", "too_few"]
FEWEST_TO_BE_BETTER = 4
Z_95 = 1.959963984540054
FEWEST_FOR_BOOTSTRAP = 10
"""Below, the percentile bootstrap covers 73-86 % instead of 95 %, Welch's t 93-95 % (simulated)."""
BOOTSTRAP_DRAWS = 10_000
PERMUTATIONS = 10_000
"""At most: up to seven searches of each way have no more deals than that."""
FARTHEST_POWER = 5
"""An end more than 2^5 standard errors away is open."""
HALVINGS = 12
"""Of the step in which an end was found: it is then exact to 1 / 2^12 of that step."""
ROUNDING = 1e-9


@dataclass(frozen=True)
class Mean:
    """A mean over searches with what a reader needs to judge it."""

    value: float
    sd: float | None
    """None for a single value."""
    count: int
    low: float | None = None
    """The 95 % t interval of the mean; None for a single value."""
    high: float | None = None


def mean_of(
    values: Sequence[float], confidence: float = 0.95, *, within: tuple[float, float] = UNBOUNDED
) -> Mean | None:
    """Return mean, sample standard deviation and the t interval mean ± t sd / sqrt n; None for no values.

    `within` are the ends between which a value can lie, such as 0 and 1 for an accuracy: the interval is cut there. The
    true mean lies between them too, so that the cut interval holds it exactly as often (Mandelkern 2002, "Setting
    confidence intervals for bounded parameters", Statistical Science 17).
    """
    if not values:
        return None
    mean, count = fmean(values), len(values)
    if count < 2:
        return Mean(mean, None, count)
    sd = stdev(values)
    half = t_quantile(confidence, count - 1) * sd / math.sqrt(count)
    return Mean(mean, sd, count, *cut(mean - half, mean + half, within))


def cut(low: float, high: float, within: tuple[float, float]) -> Interval:
    """Return the part of an interval that lies within these ends.

    >>> cut(0.93, 1.02, (0.0, 1.0))
    Interval(low=0.93, high=1.0)
    """
    return Interval(max(low, within[0]), min(high, within[1]))


def is_flat(low: float | None, high: float | None) -> bool:
    """Return whether an interval is a point: searches that all gave the same tell nothing of what others would give."""
    if low is None or high is None or math.isinf(high):
        return False
    return high - low <= ROUNDING * max(abs(low), abs(high))


@dataclass(frozen=True)
class Ratio:
    """How many times the slow way's cost is the fast way's, with an interval."""

    value: float
    """Infinite when the slow way never got there, 0 when the fast one never did, NaN when neither did."""
    low: float | None
    high: float | None
    """None: no interval can be given. 0 and infinity: the interval is open on that side."""
    method: Method
    slow_count: int
    fast_count: int


def speed_up(
    slow_costs: Sequence[OutcomeLike],
    fast_costs: Sequence[OutcomeLike],
    method: Literal["auto", "welch", "bootstrap", "permutation"] = "auto",
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Ratio:
    """Return the ratio of the mean costs (of the expected costs with restarts when a search missed).

    Costs are positive. A search that missed is an Outcome or a pair (spent, "budget" | "exhausted"), which say what it
    spent in vain; None and infinity are misses that do not, so that only a bound can be given: at the low end of the
    interval the slow way's count as free, at the high end as infinitely dear, the fast way's the other way round.

    `auto` takes Welch's t on the log ratio under 10 searches per way, var = s_x^2/(n_x m_x^2) + s_y^2/(n_y m_y^2), and
    the percentile bootstrap (10,000 draws of whole searches within each way, own generator) from 10 on. Where a search
    missed, it takes all ratios that a permutation test does not refuse (`_permuted_ratio`): of ways that are alike, 5
    to 50 % of searches missing, it tells none apart in studies of three searches, and about 5 % in those of 5 to 20;
    the bootstrap does 6 to 25 %, and 5 to 18 % (simulated, 800 studies each). Draws without a success are infinite, so
    the interval opens to that side once more than 2.5 % of them are: what is left is a one-sided bound. Without any
    success there is no interval at all: the draws would know nothing of what was never seen.
    """
    slow, fast = _outcomes(slow_costs), _outcomes(fast_costs)
    counts = (len(slow), len(fast))
    hits = [sum(outcome.reached for outcome in way) for way in (slow, fast)]
    missed = hits != list(counts)
    value = _ratio(expected_cost(slow), expected_cost(fast))
    if 0 in hits:
        return Ratio(value, None, None, "never_reached", *counts)
    if min(counts) < 2:
        return Ratio(value, None, None, "too_few", *counts)
    if method == "welch" and missed:
        raise UsageError(
            "Welch's interval needs every search to reach the target, got a miss; use 'permutation' or 'bootstrap'."
        )
    if method == "auto":
        method = "permutation" if missed else "bootstrap" if min(counts) >= FEWEST_FOR_BOOTSTRAP else "welch"
    if method == "welch":
        low, high = _welch_log_ratio([one.cost for one in slow], [one.cost for one in fast], confidence)
    elif method == "permutation":
        low, high = _permuted_ratio(slow, fast, confidence, seed)
    else:
        low, high = _bootstrap_ratio(slow, fast, confidence, seed)
    return Ratio(value, low, high, method, *counts)


def expected_cost_interval(costs: Sequence[OutcomeLike], *, confidence: float = 0.95, seed: int = 0) -> Interval | None:
    """Return the interval of one way's expected cost with restarts.

    Under 10 searches that all hit: exp(log m ± t_{n-1} s / (m sqrt n)). Else the percentiles of 10,000 draws of whole
    searches, after misses too, as there is no other way to deal any to; open above once more than 2.5 % of the draws
    have no success. None for one search or without any success.
    """
    outcomes = _outcomes(costs)
    hits = sum(outcome.reached for outcome in outcomes)
    if len(outcomes) < 2 or not hits:
        return None
    if hits == len(outcomes) < FEWEST_FOR_BOOTSTRAP:
        spent = [outcome.cost for outcome in outcomes]
        mean, freedom = fmean(spent), len(spent) - 1
        half = t_quantile(confidence, freedom) * stdev(spent) / (mean * math.sqrt(len(spent)))
        return Interval(mean * math.exp(-half), mean * math.exp(half))
    draws, tail = _bootstrap_ert(outcomes, np.random.default_rng(seed)), (1 - confidence) / 2
    low, high = np.quantile(draws, tail, method="lower"), np.quantile(draws, 1 - tail, method="higher")
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class Difference:
    """A difference of two means with its Welch t interval; None where a way has fewer than two searches."""

    value: float
    low: float | None
    high: float | None
    x_count: int
    y_count: int


def mean_difference(
    x: Sequence[float], y: Sequence[float], *, confidence: float = 0.95, within: tuple[float, float] = UNBOUNDED
) -> Difference:
    """Return mean(x) - mean(y) with the interval of Welch's t test (Welch 1947).

    Where values lie `within` two ends, it is cut at the differences that two means can have, see `mean_of`.
    """
    if not x or not y:
        raise UsageError(f"A difference of means needs values on both sides, got {len(x)} and {len(y)}.")
    value = fmean(x) - fmean(y)
    if min(len(x), len(y)) < 2:
        return Difference(value, None, None, len(x), len(y))
    half = _welch_half_width(variance(x) / len(x), variance(y) / len(y), len(x), len(y), confidence)
    most = within[1] - within[0]
    return Difference(value, *cut(value - half, value + half, (-most, most)), len(x), len(y))


def probability_of_improvement(
    x: Sequence[float | None], y: Sequence[float | None], *, lower_is_better: bool = False
) -> float:
    """Return P(a search of X does better than one of Y) = U / (n_x n_y), ties one half (Mann & Whitney 1947).

    None is "never": worse than any number, and never against never is a tie.

    >>> probability_of_improvement([1, 2], [2, None], lower_is_better=True)
    0.875
    """
    if not x or not y:
        raise UsageError(f"A probability of improvement needs values on both sides, got {len(x)} and {len(y)}.")
    scores_x, scores_y = _scores(x, lower_is_better), _scores(y, lower_is_better)
    better = (scores_x[:, None] > scores_y[None, :]).mean()
    return float(better + (scores_x[:, None] == scores_y[None, :]).mean() / 2)


@dataclass(frozen=True)
class Improvement:
    """How probably one way does better than another."""

    value: float
    """See `probability_of_improvement`."""
    low: float | None
    """The 95 % interval; None where a way has fewer than two searches."""
    high: float | None
    fewest: int
    """Searches of the way that has fewer."""

    @property
    def is_better(self) -> bool:
        """Whether the first way is better: above 0.75, the interval above 0.5, at least four searches.

        The rule is that of Bouthillier et al. (2021, 2103.03098). That all of three searches are better than all of
        three others happens by chance alone in one study of ten, 2/C(6, 3); with four, in one of 35 (Mann & Whitney
        1947).
        """
        return self.fewest >= FEWEST_TO_BE_BETTER and self.value > 0.75 and self.low is not None and self.low > 0.5


def improvement(x: Sequence[float | None], y: Sequence[float | None], *, lower_is_better: bool = False) -> Improvement:
    """Return the probability of improvement P with Newcombe's 95 % interval over searches of both ways.

    All P that are at most 1.96 standard errors from the one seen, the variance being P (1 - P) [1 + ((m + n) / 2 - 1)
    ((1 - P) / (2 - P) + P / (1 + P))] / (m n): method 5 of Newcombe 2006, "Confidence intervals for an effect size
    measure based on the Mann-Whitney statistic", part 2, Statistics in Medicine 25. Where every search of one way beats
    every one of the other, draws with replacement would have no spread at all: on simulated normal values of 3 to 10
    searches, of ways 0 to 3 standard deviations apart, it covers 90-98 %, the percentile bootstrap 10-95 %.
    """
    value, m, n = probability_of_improvement(x, y, lower_is_better=lower_is_better), len(x), len(y)
    if min(m, n) < 2:
        return Improvement(value, None, None, min(m, n))

    def end(outside: float, inside: float) -> float:
        for _ in range(50):
            p = (outside + inside) / 2
            spread = p * (1 - p) * (1 + ((m + n) / 2 - 1) * ((1 - p) / (2 - p) + p / (1 + p))) / (m * n)
            outside, inside = (p, inside) if (value - p) ** 2 > Z_95**2 * spread else (outside, p)
        return inside

    return Improvement(value, end(0.0, value), end(1.0, value), min(m, n))


def _scores(values: Sequence[float | None], lower_is_better: bool) -> NDArray[np.float64]:
    sign = -1.0 if lower_is_better else 1.0
    return np.array([-math.inf if value is None else sign * value for value in values])


def _outcomes(costs: Sequence[OutcomeLike]) -> list[Outcome]:
    outcomes = [as_outcome(cost) for cost in costs]
    for outcome in outcomes:
        if not outcome.spent > 0:
            raise UsageError(f"Costs must be positive, got {outcome.spent}; leave out what was never tried.")
    if not outcomes:
        raise UsageError("A speed-up needs at least one search of each way, got none.")
    return outcomes


def _ratio(slow: float, fast: float) -> float:
    return slow / fast if math.isfinite(slow) or math.isfinite(fast) else math.nan


def _welch_log_ratio(slow: Sequence[float], fast: Sequence[float], confidence: float) -> tuple[float, float]:
    a, b = (variance(costs) / (len(costs) * fmean(costs) ** 2) for costs in (slow, fast))
    half = _welch_half_width(a, b, len(slow), len(fast), confidence)
    log_ratio = math.log(fmean(slow) / fmean(fast))
    return math.exp(log_ratio - half), math.exp(log_ratio + half)


def _welch_half_width(a: float, b: float, count_a: int, count_b: int, confidence: float) -> float:
    """`a` and `b` are the squared standard errors; degrees of freedom after Welch and Satterthwaite."""
    if a + b == 0:
        return 0.0
    freedom = (a + b) ** 2 / (a**2 / (count_a - 1) + b**2 / (count_b - 1))
    return t_quantile(confidence, freedom) * math.sqrt(a + b)


def t_quantile(confidence: float, freedom: float) -> float:
    """Return the half width, in standard errors, of the interval of Student's t with these degrees of freedom."""
    from scipy.special import stdtrit  # here: it takes a quarter of a second to import, and training does without

    return float(stdtrit(freedom, (1 + confidence) / 2))


def _permuted_ratio(
    slow: Sequence[Outcome], fast: Sequence[Outcome], confidence: float, seed: int
) -> tuple[float, float]:
    """Return the least and the greatest ratio that the studentised permutation test does not refuse.

    If the slow way's searches spend r times what the fast way's do, then with their spending over r all might as well
    be dealt out again: few of all deals, or of 10,000 where there are more, have so great a log ratio of expected
    costs, in its standard errors, as the ways as they are. The test is exact where ways differ by r alone, and in large
    samples where just their expected costs do (Chung & Romano 2013, "Exact and asymptotically robust permutation
    tests", Annals of Statistics 41).
    """
    tail = (1 - confidence) / 2
    low = _permuted_low(_table(slow, 0.0), _table(fast, math.inf), tail, seed)
    inverse = _permuted_low(_table(fast, 0.0), _table(slow, math.inf), tail, seed)
    return low, 1 / inverse if inverse else math.inf


def _table(outcomes: Sequence[Outcome], unknown: float) -> NDArray[np.float64]:
    """Return (spent, reached) of each search; misses that do not say what they spent have spent `unknown`."""
    return np.array([[one.spent if math.isfinite(one.spent) else unknown, one.reached] for one in outcomes])


def _permuted_low(slow: NDArray[np.float64], fast: NDArray[np.float64], tail: float, seed: int) -> float:
    """Return the least ratio under which more than the share `tail` of deals give as great a one; 0 without an end."""
    if math.isinf(fast.sum()):
        return 0.0
    slow_rows, fast_rows, sizes = _moments(slow), _moments(fast), (len(slow), len(fast))
    deals = _deals(*sizes, seed)
    slow_sums, fast_sums = slow_rows @ deals[: len(slow)], fast_rows @ deals[len(slow) :]

    def is_refused(log_ratio: float) -> bool:
        scale = math.exp(-log_ratio)
        scales = np.array([[scale], [1.0], [scale**2], [scale]])
        sums, rows = slow_sums * scales + fast_sums, (slow_rows * scales, fast_rows)
        total = sum(way.sum(axis=1, keepdims=True) for way in rows)
        ratios = _in_errors(sums, total - sums, sizes)
        return bool(np.mean(ratios >= ratios[0] - ROUNDING) <= tail)

    (log_slow, a), (log_fast, b) = (_log_cost(rows.sum(axis=1), rows.shape[1]) for rows in (slow_rows, fast_rows))
    inside, error = float(log_slow - log_fast), math.sqrt(a + b)
    if error == 0:
        return math.exp(inside)
    steps = (inside - error * 2.0**power for power in range(FARTHEST_POWER + 1))
    outside = next(filter(is_refused, steps), None)
    if outside is None:
        return 0.0
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if is_refused(middle) else (middle, outside)
    return math.exp(outside)  # no ratio that is not refused is left out, such as 1 where all spend the same


@lru_cache(maxsize=8)
def _deals(slow_count: int, fast_count: int, seed: int) -> NDArray[np.float64]:
    """Return which searches are dealt to the slow way, a column per deal; the first leaves them where they are."""
    count = slow_count + fast_count
    if math.comb(count, slow_count) <= PERMUTATIONS:
        dealt = np.array(list(combinations(range(count), slow_count)))
        return np.array([(dealt == search).any(axis=1) for search in range(count)]).astype(np.float64)
    as_they_are = np.arange(count) < slow_count
    deals = np.random.default_rng(seed).permuted(np.tile(as_they_are[:, None], PERMUTATIONS), axis=0)
    deals[:, 0] = as_they_are
    return deals.astype(np.float64)


def _moments(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what `_log_cost` needs the sums of, a column per search."""
    spent, reached = table.T
    return np.stack([spent, reached, spent**2, spent * reached])


def _log_cost(sums: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the logarithm of the expected cost with restarts and its squared error, `relative_variance` / n."""
    spent, hits, squares, spent_by_hits = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = spent / hits
        rest = np.maximum(squares - 2 * cost * spent_by_hits + cost**2 * hits, 0.0)
        return np.log(cost), rest / spent**2 * count / (count - 1)


def _in_errors(x: NDArray[np.float64], y: NDArray[np.float64], sizes: tuple[int, int]) -> NDArray[np.float64]:
    """Return the log ratios of the expected costs in their standard errors; infinite where one way has no hit."""
    (log_x, a), (log_y, b) = _log_cost(x, sizes[0]), _log_cost(y, sizes[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num((log_x - log_y) / np.sqrt(a + b), nan=0.0, posinf=math.inf, neginf=-math.inf)
    return np.where(x[1] < 0.5, math.inf, np.where(y[1] < 0.5, -math.inf, ratios))


def _bootstrap_ratio(
    slow: Sequence[Outcome], fast: Sequence[Outcome], confidence: float, seed: int
) -> tuple[float, float]:
    """Draws in which neither way succeeds say nothing: they count as 0 for the low end and as infinite for the high."""
    drawn = np.random.default_rng(seed)
    lows = _ratios(_bootstrap_ert(slow, drawn, unknown=0.0), _bootstrap_ert(fast, drawn))
    drawn = np.random.default_rng(seed)  # the same draws
    highs = _ratios(_bootstrap_ert(slow, drawn), _bootstrap_ert(fast, drawn, unknown=0.0))
    tail = (1 - confidence) / 2
    low = np.quantile(np.nan_to_num(lows, nan=0.0, posinf=math.inf), tail, method="lower")
    high = np.quantile(np.nan_to_num(highs, nan=math.inf, posinf=math.inf), 1 - tail, method="higher")
    return float(low), float(high)


def _ratios(slow: NDArray[np.float64], fast: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.asarray(slow / fast)


def _bootstrap_ert(
    outcomes: Sequence[Outcome], generator: np.random.Generator, *, unknown: float = math.inf
) -> NDArray[np.float64]:
    """Return the expected costs of the draws; misses that do not say what they spent have spent `unknown`."""
    spent = np.array([outcome.spent if math.isfinite(outcome.spent) else unknown for outcome in outcomes])
    reached = np.array([outcome.reached for outcome in outcomes])
    draws = generator.integers(len(outcomes), size=(BOOTSTRAP_DRAWS, len(outcomes)))
    with np.errstate(divide="ignore", invalid="ignore"):
        costs = spent[draws].sum(axis=1) / reached[draws].sum(axis=1)
    costs[np.isnan(costs)] = math.inf  # 0 / 0: nothing known was spent, and nothing was reached
    return np.asarray(costs)
