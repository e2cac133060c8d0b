"""What it is worth to know beforehand where good rates are: random search with a narrower prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lrsearch.analysis.grid_order import grid_order
from lrsearch.analysis.select import first_best
from lrsearch.errors import UsageError

ROUNDING = 1e-9  # decades: a rate at the end of a window is inside


@dataclass(frozen=True)
class Premium:
    """A random search whose prior spans so many decades."""

    decades: float
    low: float
    high: float
    """The rates between which the trials lie."""
    trials: int
    good: int
    """Trials that reach the target."""
    expected_cost: float
    """Until the target is reached, over all orders of the trials; infinite without a good one."""
    premium: float | None
    """How many times what the narrowest of the priors costs; None where that one never gets there, or costs nothing."""


def hindsight_premium(
    rates: Sequence[float],
    values: Sequence[float | None],
    costs: Sequence[float],
    target: float,
    decades: float | Sequence[float] = (1.0, 3.0, 6.0),
    *,
    hit_costs: Sequence[float | None] | None = None,
    lower_is_better: bool = False,
) -> list[Premium]:
    """Return E[T] of random search from the pool of trials cut to each width of prior, in the order given.

    A search over one decade around the optimum looks cheap because somebody has already paid for knowing that decade.
    The pool are trials of a random search, log-uniform over a wide range: their `rates`, best validation `values` (None
    where they gave none), whole `costs`, and, where known, `hit_costs` until they first met the target. A prior of d
    decades is the window of that width around the best rate of the pool, in hindsight; it is shifted, not cut, where it
    would stick out of the pool's range, and is the whole pool once it is as wide. E[T] is the exact expectation over
    orders, F/(G+1) f + h: see `grid_order`.
    """
    if not len(rates) == len(values) == len(costs):
        raise UsageError(f"Every trial needs rate, value and cost, got {len(rates)}, {len(values)} and {len(costs)}.")
    widths = [float(decades)] if isinstance(decades, int | float) else [float(width) for width in decades]
    if not rates or min(rates) <= 0 or not widths or min(widths) <= 0:
        raise UsageError("A hindsight premium needs trials with positive rates, and positive widths in decades.")
    logs = [math.log10(rate) for rate in rates]
    best = logs[first_best(values, lower_is_better=lower_is_better)]
    hits = [None] * len(rates) if hit_costs is None else list(hit_costs)
    cells = []
    for width in widths:
        low, high = _window(best, width, min(logs), max(logs))
        inside = [i for i, log in enumerate(logs) if low - ROUNDING <= log <= high + ROUNDING]
        order = grid_order(
            [costs[i] for i in inside],
            [hits[i] for i in inside],
            [values[i] for i in inside],
            target,
            lower_is_better=lower_is_better,
        )
        cells.append((width, low, high, order))
    narrowest = min(cells, key=lambda cell: cell[0])[3].expected
    return [
        Premium(
            width,
            10**low,
            10**high,
            order.good + order.bad,
            order.good,
            order.expected,
            order.expected / narrowest if 0 < narrowest < math.inf else None,
        )
        for width, low, high, order in cells
    ]


def _window(center: float, width: float, low: float, high: float) -> tuple[float, float]:
    if width >= high - low:
        return low, high
    start = min(max(center - width / 2, low), high - width)
    return start, start + width
