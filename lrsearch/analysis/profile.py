"""Ways over several workloads: how often a way is how far from the cheapest."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from lrsearch.errors import UsageError

RMAX = 4.0
"""docs/method.md, section 4: up to so many times the cheapest way's cost a profile is drawn and scored."""


@dataclass(frozen=True)
class Profile:
    """One way's performance profile."""

    ratios: Mapping[Hashable, float]
    """Per workload: its cost over the cheapest way's; infinite where it never reached the target."""
    score: float
    """Area under rho(tau) over 1 <= tau <= rmax, divided by rmax - 1: 1 is always the cheapest, 0 never in reach."""

    def rho(self, tau: float) -> float:
        """Return the share of workloads on which the way costs at most `tau` times what the cheapest does."""
        return sum(ratio <= tau for ratio in self.ratios.values()) / len(self.ratios)


def performance_profile(
    costs_by_way_and_workload: Mapping[str, Mapping[Hashable, float | None]], *, rmax: float = RMAX
) -> dict[str, Profile]:
    """Return the performance profile and its score of each way (Dolan & Moré 2002; the score is AlgoPerf's, Dahl et al.
    2023, 2306.07179, section 4.5).

    `costs_by_way_and_workload[way][workload]` is the cost to target; None, infinite or absent where the way never
    reached it. r = cost / the least cost of any way on that workload, rho(tau) = share of workloads with r <= tau. The
    score is exact, without a grid of tau: score = 1/(rmax-1) ∫_1^rmax rho = sum_w max(0, rmax - r_w) / ((rmax-1) W).
    AlgoPerf's own is the trapezoidal sum over 100 values of tau, which differs in the third decimal. A workload that
    nobody solves stays in W, and so counts against every way.

    >>> profiles = performance_profile({"a": {"x": 10, "y": 30}, "b": {"x": 20, "y": None}})
    >>> profiles["a"].score, round(profiles["b"].score, 4), profiles["b"].rho(2)
    (1.0, 0.3333, 0.5)
    """
    table = {way: dict(costs) for way, costs in costs_by_way_and_workload.items()}
    workloads = list(dict.fromkeys(workload for costs in table.values() for workload in costs))
    if not workloads:
        raise UsageError("A performance profile needs at least one way and one workload, got none.")
    if not rmax > 1:
        raise UsageError(f"rmax must be greater than 1, got {rmax}.")
    known = {way: {workload: _cost(costs.get(workload)) for workload in workloads} for way, costs in table.items()}
    least = {workload: min(costs[workload] for costs in known.values()) for workload in workloads}
    ratios = {
        way: {workload: _ratio(costs[workload], least[workload]) for workload in workloads}
        for way, costs in known.items()
    }
    return {
        way: Profile(found, sum(max(0.0, rmax - ratio) for ratio in found.values()) / ((rmax - 1) * len(workloads)))
        for way, found in ratios.items()
    }


def _cost(cost: float | None) -> float:
    if cost is None:
        return math.inf
    if not cost > 0:
        raise UsageError(f"Costs to target must be positive, got {cost}; None is never.")
    return float(cost)


def _ratio(cost: float, least: float) -> float:
    return cost / least if math.isfinite(cost) else math.inf
