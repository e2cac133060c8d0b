"""What it costs until a search is good enough, with the searches that never get there kept in."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import NormalDist, median
from typing import Literal, NamedTuple, get_args

from lrsearch.errors import UsageError

Ended = Literal["reached", "budget", "exhausted"]
"""`budget`: stopped before it had tried everything (right-censored); `exhausted`: it tried everything in vain."""


@dataclass(frozen=True)
class Outcome:
    """How one search fared against a target."""

    ended: Ended
    cost: float
    """Cost of the first evaluation at or beyond the target; infinite without one."""
    spent: float
    """Cost until it reached the target or ended; infinite where a miss does not say what it spent."""

    @property
    def reached(self) -> bool:
        return self.ended == "reached"


OutcomeLike = Outcome | float | tuple[float, Ended] | None
"""A search's outcome in plain values: its cost to the target, or (what it spent, how it ended). None and infinity are
searches that never got there, at a cost that is not known."""


def as_outcome(value: OutcomeLike) -> Outcome:
    """Return `value` as an Outcome. Raises UsageError for a cost that is negative or not a number."""
    if isinstance(value, Outcome):
        return value
    pair: tuple[float | None, Ended] = value if isinstance(value, tuple) else (value, "reached")
    spent, ended = math.inf if pair[0] is None else float(pair[0]), pair[1]
    if math.isnan(spent) or spent < 0 or ended not in get_args(Ended):
        raise UsageError(
            f"An outcome is a cost from 0 up, None, or (spent, {' | '.join(get_args(Ended))}), got {value!r}."
        )
    if ended != "reached" or math.isinf(spent):
        return Outcome("exhausted" if ended == "reached" else ended, math.inf, spent)
    return Outcome("reached", spent, spent)


def cost_to_target(
    evaluations: Sequence[tuple[float, float | None]],
    target: float,
    ended: Ended = "exhausted",
    *,
    spent: float | None = None,
    lower_is_better: bool = False,
) -> Outcome:
    """Return the cost of the first evaluation whose validation value meets `target`: docs/method.md, section 4.

    `evaluations` are (cumulative cost, value or None) in the order made; `ended` says how a search that did not reach
    the target stopped; `spent` its whole cost, by default that of the last evaluation. Raises UsageError when `ended`
    claims that the target was reached and no evaluation shows it.
    """
    for cost, value in evaluations:
        if meets(value, target, lower_is_better=lower_is_better):
            return Outcome("reached", cost, cost)
    if ended == "reached":
        raise UsageError(f"No evaluation reaches the target {target:g}; say 'budget' or 'exhausted'.")
    last = evaluations[-1][0] if evaluations else 0.0
    return Outcome(ended, math.inf, last if spent is None else spent)


def meets(value: float | None, target: float | None, *, lower_is_better: bool = False) -> bool:
    """Return whether a validation value is at or beyond the target; None and NaN are not, nor is any without target."""
    return value is not None and target is not None and (value <= target if lower_is_better else value >= target)


class Interval(NamedTuple):
    low: float
    high: float


UNBOUNDED = Interval(-math.inf, math.inf)


@dataclass(frozen=True)
class KaplanMeier:
    """The share of searches that have not reached the target yet: it falls to `shares[i]` at `costs[i]`."""

    costs: tuple[float, ...]
    shares: tuple[float, ...]

    def at(self, cost: float) -> float:
        """Return the share that has not reached the target once `cost` is spent."""
        index = bisect_right(self.costs, cost)
        return self.shares[index - 1] if index else 1.0

    @property
    def median(self) -> float:
        """The cost at which half of the searches have reached the target; infinite where the curve stays above."""
        return next((cost for cost, share in zip(self.costs, self.shares, strict=True) if share <= 0.5), math.inf)

    def restricted_mean(self, horizon: float) -> float:
        """Return the mean of min(T, horizon): the area under the curve up to `horizon` (Royston & Parmar 2013)."""
        edges = [0.0, *(cost for cost in self.costs if cost < horizon), horizon]
        return sum((end - start) * self.at(start) for start, end in pairwise(edges))


def kaplan_meier(outcomes: Iterable[OutcomeLike]) -> KaplanMeier:
    """Return S(c) = prod_{c_i <= c} (1 - hits at c_i / searches at risk just before c_i) (Kaplan & Meier 1958).

    A search that a budget stopped is at risk up to what it had spent (right-censored), at that cost included: where a
    hit and a stop tie, the hit comes first. A search that has exhausted all it had to try will never reach the target:
    it stays at risk for ever, so that the curve does not fall below the share of such searches.
    """
    known = [as_outcome(outcome) for outcome in outcomes]
    hits = sorted(outcome.cost for outcome in known if outcome.reached)
    until = [math.inf if outcome.ended == "exhausted" else outcome.spent for outcome in known]
    costs, shares = sorted(set(hits)), list[float]()
    share = Fraction(1)  # in floats half of the searches may be 0.5000000000000001
    for cost in costs:
        share *= 1 - Fraction(hits.count(cost), sum(end >= cost for end in until))
        shares.append(float(share))
    return KaplanMeier(tuple(costs), tuple(shares))


@dataclass(frozen=True)
class ReachSummary:
    """How the searches of one way fared against a target."""

    reached: int
    total: int
    share: Interval
    """Wilson's 95 % interval of the probability that a search reaches the target."""
    median_cost: float
    """Over all searches, misses as infinite."""
    expected_cost: float
    """Cost with restarts, see `expected_cost`."""
    kaplan_meier: KaplanMeier
    """The share that has not reached the target yet, over cost."""
    restricted_mean: float
    """Mean of min(cost to target, `horizon`) under `kaplan_meier`."""
    horizon: float
    """The budget; without one the most that any search spent."""


def reach_summary(outcomes: Sequence[OutcomeLike], budget: float | None = None) -> ReachSummary:
    """Return how the searches of a way fared against a target; with `budget`, as if each had been stopped there.

    Reach rate with Wilson's interval, median with infinities, expected cost with restarts, Kaplan-Meier curve and its
    restricted mean (docs/method.md, section 4). `outcomes` are Outcomes or plain values, see `OutcomeLike`.
    """
    if not outcomes:
        raise UsageError("A reach summary needs at least one search, got none.")
    known = [as_outcome(outcome) for outcome in outcomes]
    if budget is not None:
        known = [_stopped_at(outcome, budget) for outcome in known]
    hits = sum(outcome.reached for outcome in known)
    curve = kaplan_meier(known)
    spent = max((outcome.spent for outcome in known if math.isfinite(outcome.spent)), default=0.0)
    horizon = spent if budget is None else budget
    return ReachSummary(
        hits,
        len(known),
        wilson_interval(hits, len(known)),
        median(outcome.cost for outcome in known),
        expected_cost(known),
        curve,
        curve.restricted_mean(horizon),
        horizon,
    )


def expected_cost(outcomes: Iterable[OutcomeLike]) -> float:
    """Return the total spend until hit or stop over the number of hits; infinite without a hit.

    The expected cost of restarting the way until it succeeds: ERT of COCO (Hansen et al., 2016, 1605.03560). It equals
    the mean cost when every search reached the target; averaging the successes alone would reward giving up.
    """
    known = [as_outcome(outcome) for outcome in outcomes]
    hits = sum(outcome.reached for outcome in known)
    return sum(outcome.spent for outcome in known) / hits if hits else math.inf


def wilson_interval(hits: int, total: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a share (Wilson 1927).

    >>> low, high = wilson_interval(5, 5); round(low, 4), round(high, 4)
    (0.5655, 1.0)
    """
    share, z = hits / total, NormalDist().inv_cdf((1 + confidence) / 2)
    middle, scale = share + z**2 / (2 * total), 1 + z**2 / total
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return Interval(max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def _stopped_at(outcome: Outcome, budget: float) -> Outcome:
    return outcome if outcome.spent <= budget else Outcome("budget", math.inf, budget)
