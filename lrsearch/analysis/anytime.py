"""What a search is worth at any moment: the test value of the model that it would hand over then."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, median
from typing import Literal, TypeVar

import numpy as np

from lrsearch.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class StepCurve:
    """A right-continuous step function of the charged cost: `values[i]` holds from `costs[i]` on.

    There is no value before `costs[0]`; after `end` the search is over and its last value stays.
    """

    costs: tuple[float, ...]
    values: tuple[float, ...]
    end: float
    """The whole cost of the search, trials after the last step included."""

    def at(self, cost: float) -> float | None:
        """Return the value once `cost` is spent; None before the first model.

        >>> StepCurve((1.0, 3.0), (0.5, 0.7), 4.0).at(3.0)
        0.7
        """
        index = bisect_right(self.costs, cost)
        return self.values[index - 1] if index else None


def anytime_curve(
    costs: Sequence[float],
    values: Sequence[float | None],
    tests: Sequence[float | None],
    *,
    lower_is_better: bool = False,
) -> StepCurve:
    """Return A(b): the test value of the incumbent after the last trial i with C_i = c_1 + ... + c_i <= b.

    docs/method.md, section 4. `costs` are those of the trials in the order run; `values` their validation values, None
    (or NaN) where a trial gave no model (it still costs); `tests` their test values. The incumbent has the best
    validation value so far, the earliest on ties, so the curve may fall. An incumbent without a test value gives no
    step. Raises UsageError where the three differ in length, and for a cost below 0.
    """
    if not len(costs) == len(values) == len(tests):
        raise UsageError(
            f"costs, values and tests need an entry per trial, got {len(costs)}, {len(values)} and {len(tests)}."
        )
    if not all(cost >= 0 for cost in costs):
        raise UsageError(f"Costs must be from 0 up, got {min(costs)}.")
    totals = [0.0, *accumulate(costs)]
    trials = zip(zip(totals[1:], tests, strict=True), values, strict=True)
    incumbents = (trial for trial, _ in improving(trials, lower_is_better=lower_is_better))
    steps = [(total, test) for total, test in incumbents if test is not None]
    # Not sum(costs): from Python 3.12 on it rounds differently, and the end may come to lie before the last step.
    return StepCurve(tuple(cost for cost, _ in steps), tuple(value for _, value in steps), float(totals[-1]))


def improving(evaluations: Iterable[tuple[T, float | None]], *, lower_is_better: bool) -> Iterator[tuple[T, float]]:
    """Yield those that are better than all before, each with its value."""
    best = math.inf if lower_is_better else -math.inf
    for evaluation, value in evaluations:
        if value is not None and (value < best if lower_is_better else value > best):
            best = value
            yield evaluation, value


@dataclass(frozen=True)
class CombinedCurve:
    """Several curves on one grid of costs."""

    costs: tuple[float, ...]
    values: tuple[float | None, ...]
    """The statistic where every curve has a value, else None."""
    counts: tuple[int, ...]
    """How many curves have a value."""
    total: int


def combine(
    curves: Sequence[StepCurve], grid: Sequence[float], statistic: Literal["mean", "median"] = "mean"
) -> CombinedCurve:
    """Return the mean or median of `curves` at every cost of `grid` where all are defined, and how many are elsewhere.

    Averaging over those that have a model already would let the curve fall as late starters join.
    """
    take = fmean if statistic == "mean" else median
    columns = [[value for curve in curves if (value := curve.at(cost)) is not None] for cost in grid]
    values = tuple(take(column) if column and len(column) == len(curves) else None for column in columns)
    return CombinedCurve(tuple(grid), values, tuple(len(column) for column in columns), len(curves))


def common_grid(curves: Sequence[StepCurve], points: int = 100) -> list[float]:
    """Return log-spaced costs from the first to the last event of `curves`, with every event among them."""
    events = sorted({cost for curve in curves for cost in (*curve.costs, curve.end) if cost > 0})
    if not events:
        return []
    spaced = np.geomspace(events[0], events[-1], points)[1:-1].tolist()
    return sorted({*events, *spaced})
