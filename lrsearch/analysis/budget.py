"""Ways at the same price, and prices at the same quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lrsearch.analysis.anytime import StepCurve, combine
from lrsearch.analysis.target import Ended, ReachSummary, cost_to_target, reach_summary
from lrsearch.errors import UsageError

MULTIPLES = (1.0, 2.0, 4.0, 8.0)
"""Of the CLR run's cost: docs/method.md, section 4."""


@dataclass(frozen=True)
class AtBudget:
    """What the searches of a way are worth once each has spent `budget`."""

    multiple: float
    budget: float
    value: float | None
    """Mean or median of A(budget); None unless every search has a model by then."""
    count: int
    """Searches that have one."""
    total: int
    finished: int
    """Searches that ended before: their value stays what it was."""


def equal_budget(
    curves: Sequence[StepCurve],
    cost: float,
    multiples: Sequence[float] = MULTIPLES,
    *,
    statistic: Literal["mean", "median"] = "mean",
) -> list[AtBudget]:
    """Return A(b) of a way's anytime `curves` at the given multiples of `cost`, the CLR run's.

    A mean over those that have a model already would favour ways that start late, so there is none until all have.
    """
    if not cost > 0:
        raise UsageError(f"The cost whose multiples are the budgets must be positive, got {cost}.")
    together = combine(curves, [multiple * cost for multiple in multiples], statistic)
    points = zip(multiples, together.costs, together.values, together.counts, strict=True)
    return [
        AtBudget(multiple, budget, value, count, together.total, sum(curve.end <= budget for curve in curves))
        for multiple, budget, value, count in points
    ]


@dataclass(frozen=True)
class AtTarget:
    """What a way's searches cost until they were this good."""

    target: float
    reach: ReachSummary


def equal_accuracy(
    evaluations: Sequence[Sequence[tuple[float, float | None]]],
    targets: Sequence[float],
    ended: Ended | Sequence[Ended] = "exhausted",
    *,
    spent: Sequence[float] | None = None,
    lower_is_better: bool = False,
) -> list[AtTarget]:
    """Return how the searches of a way fared against each of `targets`: a ladder, "never" kept in every rung.

    `evaluations` has one sequence of (cumulative cost, value) per search; `ended` says how a search stopped that does
    not reach a target, for all or for each; `spent` the whole costs, by default those of the last evaluations.
    """
    ends = [ended] * len(evaluations) if isinstance(ended, str) else list(ended)
    costs = [None] * len(evaluations) if spent is None else list(spent)
    return [
        AtTarget(
            target,
            reach_summary(
                [
                    cost_to_target(search, target, end, spent=cost, lower_is_better=lower_is_better)
                    for search, end, cost in zip(evaluations, ends, costs, strict=True)
                ]
            ),
        )
        for target in targets
    ]


@dataclass(frozen=True)
class Area:
    """Mean regret of an anytime curve between two costs: how far it lies from the best on average."""

    linear: float
    """Every second weighs the same."""
    log: float
    """Every doubling of the cost weighs the same."""


def area(
    curve: StepCurve,
    low: float,
    high: float,
    *,
    best: float,
    before: float | None = None,
    lower_is_better: bool = False,
) -> Area | None:
    """Return the mean of best - A(b) over `low` <= b <= `high`, over linear and over logarithmic cost.

    1/(high - low) ∫ (best - A(b)) db, and the same in d ln b over ln(high/low); exact, as A is a step function. `best`
    is a value that the reader names, such as the best that any search of the study reached: regrets to different bests
    do not compare. Before its first model a curve is worth `before` (such as the chance level); without one the answer
    is None when the first model comes after `low`. With `lower_is_better` the regret is A(b) - best.
    """
    if not 0 < low < high:
        raise UsageError(f"An area needs 0 < low < high, got {low} and {high}.")
    edges = [low, *(cost for cost in curve.costs if low < cost < high), high]
    values = [curve.at(edge) for edge in edges[:-1]]
    known = [before if value is None else value for value in values]
    regrets = [None if value is None else value - best if lower_is_better else best - value for value in known]
    linear = log = 0.0
    for start, end, regret in zip(edges, edges[1:], regrets, strict=False):
        if regret is None:
            return None
        linear += regret * (end - start)
        log += regret * math.log(end / start)
    return Area(linear / (high - low), log / math.log(high / low))
