"""What a grid costs depends on the order of its points, and it has none: all orders, not only the one that ran."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lrsearch.analysis.target import meets
from lrsearch.errors import UsageError


@dataclass(frozen=True)
class GridOrder:
    """Cost until the target was reached, in several orders of the same trials; infinite where no trial reaches it."""

    as_executed: float
    expected: float
    """Over all orders, each as likely as any other."""
    best: float
    worst: float
    good: int
    """Trials that reach the target."""
    bad: int


def grid_order(
    costs: Sequence[float],
    hit_costs: Sequence[float | None],
    values: Sequence[float | None],
    target: float,
    *,
    lower_is_better: bool = False,
) -> GridOrder:
    """Return what reaching `target` costs as executed, on average over all orders, in the best and in the worst order.

    The trials stand in the order in which they ran: `costs` is what each costs whole, `values` its best validation
    value (None where it gave none), and `hit_costs` what a good trial has cost once it first meets the target: None,
    for a good one, stands for its whole cost; those of bad trials are not read. A trial is good if its value meets
    `target`. With G good trials, whose hit costs have the mean h, and F bad ones of mean cost f:
    E[T] = F/(G+1) f + h. For in a random order each bad trial comes before all G good ones with probability 1/(G+1),
    and each good one is the first of them with probability 1/G. Worst: all bad trials first, then the dearest hit.

    >>> grid_order([4, 6, 5], [None, None, 2], [0.1, 0.2, 0.9], target=0.8).expected
    7.0
    """
    if not len(costs) == len(hit_costs) == len(values):
        lengths = f"{len(costs)}, {len(hit_costs)} and {len(values)}"
        raise UsageError(f"costs, hit_costs and values need an entry per trial, got {lengths}.")
    good = [meets(value, target, lower_is_better=lower_is_better) for value in values]
    hits = [cost if hit is None else hit for cost, hit, is_good in zip(costs, hit_costs, good, strict=True) if is_good]
    bad = [cost for cost, is_good in zip(costs, good, strict=True) if not is_good]
    if not hits:
        return GridOrder(math.inf, math.inf, math.inf, math.inf, 0, len(bad))
    first = good.index(True)
    before = list(accumulate(costs, initial=0.0))[first]
    return GridOrder(
        as_executed=before + hits[0],
        expected=sum(bad) / (len(hits) + 1) + sum(hits) / len(hits),
        best=min(hits),
        worst=sum(bad) + max(hits),
        good=len(hits),
        bad=len(bad),
    )
