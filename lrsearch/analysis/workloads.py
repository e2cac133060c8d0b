"""Ways over several studies, each of which is one workload with one target."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lrsearch.analysis.profile import Profile, performance_profile
from lrsearch.analysis.summary import StudySummary
from lrsearch.analysis.target import expected_cost
from lrsearch.analysis.way_summary import WaySummary
from lrsearch.errors import UsageError

FEWEST_FOR_PROFILE = 5
"""docs/method.md, section 4: under five workloads a profile and its score say nothing."""


@dataclass(frozen=True)
class OverWorkloads:
    """How one way compares with the CLR run over studies; ways are matched by their names."""

    key: str
    ratios: Mapping[str, float]
    """Per study that has the way: its cost over the CLR run's; infinite where it alone never reached the target, 0
    where the CLR run alone never did, NaN where neither did."""

    @property
    def finite(self) -> list[float]:
        return [ratio for ratio in self.ratios.values() if math.isfinite(ratio) and ratio > 0]

    @property
    def geometric_mean(self) -> float | None:
        """exp(mean(log ratio)) over the studies in which both reached the target; None without any."""
        return math.exp(fmean(map(math.log, self.finite))) if self.finite else None


def study_names(summaries: Sequence[StudySummary]) -> list[str]:
    """Return a name for each study, its version with it where the name is taken twice."""
    count = Counter(one.name for one in summaries)
    return [one.name if count[one.name] == 1 else f"{one.name} v{one.version}" for one in summaries]


def over_workloads(summaries: Sequence[StudySummary]) -> list[OverWorkloads]:
    """Return a row per way that is in any study beside the CLR run, in the order of appearance."""
    ratios: dict[str, dict[str, float]] = {}
    for name, summary in zip(study_names(summaries), summaries, strict=True):
        for way in summary.ways:
            if way.speed_up is not None:
                ratios.setdefault(way.key, {})[name] = way.speed_up.value
    return [OverWorkloads(key, found) for key, found in ratios.items()]


def cost_of(way: WaySummary) -> float:
    """Return the expected cost to the target; infinite where no search reached it."""
    return expected_cost(way.outcomes) if way.outcomes else math.inf


def profiles(summaries: Sequence[StudySummary]) -> dict[str, Profile]:
    """Return the performance profile of every way that all studies have; empty under FEWEST_FOR_PROFILE studies."""
    if len(summaries) < FEWEST_FOR_PROFILE:
        return {}
    shared = [key for key in (way.key for way in summaries[0].ways) if all(key in _keys(one) for one in summaries)]
    names = study_names(summaries)
    costs: dict[str, dict[Hashable, float | None]] = {
        key: {name: cost_of(one.way(key)) for name, one in zip(names, summaries, strict=True)} for key in shared
    }
    return performance_profile(costs) if costs else {}


def _keys(summary: StudySummary) -> set[str]:
    return {way.key for way in summary.ways}


def check_comparable(summaries: Sequence[StudySummary]) -> None:
    """Raise UsageError for a study without a target or on several devices: it has no cost to target."""
    for summary in summaries:
        if summary.target is None:
            raise UsageError(f"Study {summary.name!r} has no target, so that it has no cost to one; leave it out.")
        if len(summary.devices) > 1:
            raise UsageError(f"Study {summary.name!r} ran on several kinds of device, whose seconds do not compare.")
