"""What it costs until a search is good enough, with the searches that never get there kept in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple

from scipy.stats import binomtest

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
    """Cost until it reached the target or ended."""

    @property
    def reached(self) -> bool:
        return self.ended == "reached"


def cost_to_target(
    evaluations: Sequence[tuple[float, float | None]],
    target: float,
    ended: Ended = "exhausted",
    *,
    spent: float | None = None,
    higher_is_better: bool = True,
) -> Outcome:
    """Return the cost of the first evaluation whose validation value meets `target`.

    `evaluations` are (cumulative cost, value) in the order made; `ended` says how a search that did not reach the
    target stopped; `spent` its whole cost, by default that of the last evaluation. Raises UsageError when `ended`
    claims that the target was reached and no evaluation shows it.
    """
    for cost, value in evaluations:
        if value is not None and (value >= target if higher_is_better else value <= target):
            return Outcome("reached", cost, cost)
    if ended == "reached":
        raise UsageError(f"No evaluation reaches the target {target:g}; say 'budget' or 'exhausted'.")
    last = evaluations[-1][0] if evaluations else 0.0
    return Outcome(ended, math.inf, last if spent is None else spent)


class Interval(NamedTuple):
    low: float
    high: float


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


def reach_summary(outcomes: Sequence[Outcome], budget: float | None = None) -> ReachSummary:
    """Return reach rate, median and expected cost of `outcomes`; with `budget`, as if each had been stopped there."""
    if not outcomes:
        raise UsageError("A reach summary needs at least one search, got none.")
    if budget is not None:
        outcomes = [_stopped_at(outcome, budget) for outcome in outcomes]
    hits = sum(outcome.reached for outcome in outcomes)
    return ReachSummary(
        hits,
        len(outcomes),
        wilson_interval(hits, len(outcomes)),
        median(outcome.cost for outcome in outcomes),
        expected_cost(outcomes),
    )


def expected_cost(outcomes: Sequence[Outcome]) -> float:
    """Return the total spend until hit or stop over the number of hits; infinite without a hit.

    The expected cost of restarting the way until it succeeds: ERT of COCO (Hansen et al., 2016, 1605.03560). It equals
    the mean cost when every search reached the target; averaging the successes alone would reward giving up.
    """
    hits = sum(outcome.reached for outcome in outcomes)
    return sum(outcome.spent for outcome in outcomes) / hits if hits else math.inf


def wilson_interval(hits: int, total: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a share (Wilson 1927).

    >>> low, high = wilson_interval(5, 5); round(low, 4), round(high, 4)
    (0.5655, 1.0)
    """
    interval = binomtest(hits, total).proportion_ci(confidence, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def _stopped_at(outcome: Outcome, budget: float) -> Outcome:
    return outcome if outcome.spent <= budget else Outcome("budget", math.inf, budget)
