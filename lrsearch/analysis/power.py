"""How many more searches would tell two ways apart that this study could not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

import numpy as np
from scipy.special import chdtri, ndtr, stdtrit

from lrsearch.errors import UsageError

POWER = 0.8
RATIO_WORTH_KNOWING = 1.3  # assumed: a difference in cost that would change what a practitioner does
MOST_SEARCHES = 10_000
LARGEST_SIZE = 100.0  # in standard errors: the power there is more than 0.8 for any number of searches
QUANTILES = (np.arange(1000) + 0.5) / 1000
"""At which the chi distribution of the standard error is read: scipy's noncentral t gives NaN for large sizes."""


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


def power_of_costs(x: Sequence[float], y: Sequence[float], ratio: float = RATIO_WORTH_KNOWING) -> Power:
    """Return how many searches per way would detect `ratio` with 80 % power, two-sided at the 5 % level.

    The test is that of `speed_up` under ten searches: Welch's t on the log ratio of the mean costs, whose squared
    standard error with n searches each is (cv_x^2 + cv_y^2) / n, cv the coefficients of variation seen. Its power to
    find a true ratio r is that of a noncentral t with noncentrality ln(r) / standard error and Satterthwaite's degrees
    of freedom (Cohen 1988, chapter 2, with unequal variances); the least n with power >= 0.8 is returned. For large n
    that is (1.96 + 0.84)^2 (cv_x^2 + cv_y^2) / ln(r)^2. The spread itself is a guess from few searches: "about".
    """
    if min(len(x), len(y)) < 2:
        raise UsageError(f"A spread needs at least two searches of each way, got {len(x)} and {len(y)}.")
    a, b = (variance(costs) / fmean(costs) ** 2 for costs in (x, y))
    present = min(len(x), len(y))
    needed = searches_needed(math.log(ratio), a, b)
    return Power(ratio, needed, max(0, needed - present), math.exp(detectable_difference(a, b, present)))


def searches_needed(difference: float, a: float, b: float) -> int:
    """Return the least n per way with which Welch's test detects `difference`; `a`, `b` are variances of one search."""
    low, high = 1, 2
    while high < MOST_SEARCHES and welch_power(difference, a, b, high) < POWER:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if welch_power(difference, a, b, middle) >= POWER else (middle, high)
    return min(high, MOST_SEARCHES)


def detectable_difference(a: float, b: float, n: int) -> float:
    """Return the least true difference of means that Welch's test with `n` searches per way detects with 80 % power."""
    if a + b == 0:
        return 0.0
    from scipy.optimize import brentq  # here: it takes a quarter of a second to import

    error = math.sqrt((a + b) / n)
    return error * float(brentq(lambda size: welch_power(size * error, a, b, n) - POWER, 0.0, LARGEST_SIZE))


def welch_power(difference: float, a: float, b: float, n: int) -> float:
    """Return the probability that Welch's two-sided 5 % test with `n` searches per way finds a true `difference`."""
    if a + b == 0:
        return 1.0
    freedom = (a + b) ** 2 * (n - 1) / (a**2 + b**2)
    size = abs(difference) / math.sqrt((a + b) / n)
    scale = float(stdtrit(freedom, 0.975)) * np.sqrt(chdtri(freedom, 1 - QUANTILES) / freedom)
    return float(np.mean(ndtr(size - scale) + ndtr(-size - scale)))
