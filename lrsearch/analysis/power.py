"""How many more searches would tell two ways apart that this study could not."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, variance

import numpy as np
from numpy.typing import NDArray

from lrsearch.analysis.target import Outcome, OutcomeLike, as_outcome, expected_cost, wilson_interval
from lrsearch.errors import UsageError

POWER = 0.8
RATIO_WORTH_KNOWING = 1.3  # assumed: a difference in cost that would change what a practitioner does
MOST_SEARCHES = 10_000
MOST_REACH_SEARCHES = 100
FEWEST_TO_PERMUTE = 4
"""Per way: of the 20 deals of six searches the greatest is still 5 %, of the 70 of eight it is 1.4 %."""
LARGEST_SIZE = 100.0  # in standard errors: the power there is more than 0.8 for any number of searches
QUANTILES = (np.arange(100) + 0.5) / 100
"""At which the distribution of each way's variance is read: the power is then within 0.2 points."""


@dataclass(frozen=True)
class Power:
    """What it takes to tell the costs of two ways apart, judged by the spread seen."""

    ratio: float
    """The ratio of costs that is to be detected."""
    searches_needed: int
    """Per way; MOST_SEARCHES stands for so many or more."""
    more: int
    """Beyond those that the way with the fewer searches has."""
    detectable: float
    """The least ratio that the present number detects."""


def power_of_costs(x: Sequence[OutcomeLike], y: Sequence[OutcomeLike], ratio: float = RATIO_WORTH_KNOWING) -> Power:
    """Return how many searches per way would detect `ratio` with 80 % power, two-sided at the 5 % level.

    The test is that of `speed_up` under ten searches: Welch's t on the log ratio of the costs, whose squared standard
    error with n searches each is (v_x + v_y) / n, v the relative variances seen (`relative_variance`). The least n with
    power >= 0.8 (`welch_power`) to find a true ratio r is returned; for large n that is
    (1.96 + 0.84)^2 (v_x + v_y) / ln(r)^2. Where searches missed, `speed_up` takes a permutation test instead, of which
    this is the large-sample approximation, and which tells nothing apart under FEWEST_TO_PERMUTE searches. The spread
    itself is a guess from few searches: "about".
    """
    if min(len(x), len(y)) < 2:
        raise UsageError(f"A spread needs at least two searches of each way, got {len(x)} and {len(y)}.")
    a, b = relative_variance(x), relative_variance(y)
    present = min(len(x), len(y))
    needed = searches_needed(math.log(ratio), a, b)
    if not all(as_outcome(cost).reached for cost in (*x, *y)):
        needed = max(needed, FEWEST_TO_PERMUTE)
    return Power(ratio, needed, max(0, needed - present), math.exp(detectable_difference(a, b, present)))


def relative_variance(costs: Sequence[OutcomeLike]) -> float:
    """Return n times the squared standard error of the logarithm of the expected cost with restarts of n searches.

    That cost R = sum of what was spent / hits is a ratio of two means, so that v = var(spent - R hit) / mean(spent)^2
    (Cochran 1977, Sampling Techniques, section 2.11), hit being 1 or 0. Without misses v is the squared coefficient of
    variation of the costs. Raises UsageError without a hit, and where a miss does not say what it spent.
    """
    outcomes = [as_outcome(cost) for cost in costs]
    ratio = expected_cost(outcomes)
    if not math.isfinite(ratio):
        raise UsageError(
            "The spread of a cost with restarts needs a search that reached the target, and what all spent."
        )
    return variance(one.spent - ratio * one.reached for one in outcomes) / fmean(one.spent for one in outcomes) ** 2


def power_of_reach(x: Sequence[Outcome], y: Sequence[Outcome]) -> int:
    """Return the least number of searches per way that would tell the reach rates apart with 80 % power.

    It takes the rates seen for the true ones, and "apart" as the verdict does: Wilson's 95 % intervals that do not
    overlap. The power is exact, the sum of the binomial probabilities of all pairs of hits that are apart (Fleiss,
    Levin & Paik 2003, Statistical Methods for Rates and Proportions, chapter 4, has the approximations).
    MOST_REACH_SEARCHES stands for so many or more.
    """
    a, b = (sum(one.reached for one in way) / len(way) for way in (x, y))
    return next((n for n in range(2, MOST_REACH_SEARCHES) if reach_power(a, b, n) >= POWER), MOST_REACH_SEARCHES)


def reach_power(x_rate: float, y_rate: float, n: int) -> float:
    """Return the probability that Wilson's intervals of `n` searches per way do not overlap."""
    from scipy.special import binom  # here: it takes a quarter of a second to import

    hits = np.arange(n + 1)
    low, high = np.array([wilson_interval(k, n) for k in range(n + 1)]).T
    apart = (low[:, None] > high[None, :]) | (high[:, None] < low[None, :])
    x, y = (binom(n, hits) * rate**hits * (1 - rate) ** (n - hits) for rate in (x_rate, y_rate))
    return float(x @ apart @ y)


def searches_needed(difference: float, a: float, b: float) -> int:
    """Return the least n per way with which Welch's test detects `difference`; `a`, `b` are variances of one search."""
    numbers = range(2, MOST_SEARCHES)
    return 2 + bisect_left(numbers, POWER, key=lambda n: welch_power(difference, a, b, n))


def detectable_difference(a: float, b: float, n: int) -> float:
    """Return the least true difference of means that Welch's test with `n` searches per way detects with 80 % power."""
    if a + b == 0:
        return 0.0
    from scipy.optimize import brentq  # here, too

    error = math.sqrt((a + b) / n)
    return error * float(brentq(lambda size: welch_power(size * error, a, b, n) - POWER, 0.0, LARGEST_SIZE))


def welch_power(difference: float, a: float, b: float, n: int) -> float:
    """Return the probability that Welch's two-sided 5 % test with `n` searches per way finds a true `difference`.

    The mean over the variances that n normal values may show, a chi2 / (n - 1) and b chi2 / (n - 1): the test takes
    its degrees of freedom from them. The noncentral t (Cohen 1988, chapter 2) takes them for known, and promises 80 %
    where two searches per way give 48 and three 70.
    """
    if a + b == 0:
        return 1.0
    from scipy.special import ndtr  # as in `reach_power`

    size, edges = abs(difference) / math.sqrt((a + b) / n), _edges(a, b, n)
    return float(np.mean(ndtr(size - edges) + ndtr(-size - edges)))


@lru_cache(maxsize=32)
def _edges(a: float, b: float, n: int) -> NDArray[np.float64]:
    """Return how many true standard errors a difference must have to be found, for each pair of variances seen."""
    from scipy.special import chdtri, stdtrit

    shown = chdtri(n - 1, 1 - QUANTILES) / (n - 1)
    x, y = a * shown[:, None], b * shown[None, :]
    freedom = (x + y) ** 2 * (n - 1) / (x**2 + y**2)
    return np.asarray(stdtrit(freedom, 0.975) * np.sqrt((x + y) / (a + b)))
