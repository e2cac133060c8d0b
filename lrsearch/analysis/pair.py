"""Two ways of a study against each other, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from lrsearch.analysis import wording
from lrsearch.analysis.budget import equal_budget
from lrsearch.analysis.compare import Improvement, Ratio, mean_difference, speed_up
from lrsearch.analysis.details import Duel, duels, finished_searches
from lrsearch.analysis.searches import metric_range
from lrsearch.analysis.summary import StudySummary, summarise
from lrsearch.analysis.verdict import interval_text
from lrsearch.errors import UnknownNameError, UsageError
from lrsearch.trial import StudyRecord


def compare_ways(record: StudyRecord, one: str, other: str) -> list[tuple[str, str]]:
    """Return what is compared and how the way `one` fares against `other`, each number with its interval and n.

    Raises UnknownNameError for a way that the study does not have, UsageError for a way against itself.
    """
    for key in (one, other):
        if key not in record.strategies:
            raise UnknownNameError("way", key, record.strategies)
    if one == other:
        raise UsageError(f"Two different ways are compared, got {one!r} twice.")
    return list(_lines(record, summarise(record), one, other))


def _lines(record: StudyRecord, summary: StudySummary, one: str, other: str) -> Iterator[tuple[str, str]]:
    a, b = summary.way(one), summary.way(other)
    goal = "cost to target" if summary.target is not None else "cost of a search"
    if a.outcomes and b.outcomes:
        yield goal, f"{other} costs {_ratio(speed_up(b.outcomes, a.outcomes), one)}"
        whole = speed_up(b.charged_costs, a.charged_costs)
        yield "whole searches", f"{other} costs {_ratio(whole, one)}"
    else:
        yield goal, "not comparable: no finished searches on one kind of device"
    if a.tests and b.tests:
        difference = mean_difference(a.tests, b.tests, within=metric_range(record))
        interval = "no interval"
        if difference.low is not None and difference.high is not None:
            interval = f"95 % interval {wording.metric(difference.low)} to {wording.metric(difference.high)}"
        yield (
            f"test {summary.metric}",
            f"{wording.metric(a.test.value if a.test else 0)} − {wording.metric(b.test.value if b.test else 0)} = "
            f"{wording.metric(difference.value)} ({interval}, n = {difference.x_count} and {difference.y_count})",
        )
    duel = duels(record).get((one, other))
    if duel is not None:
        yield from _improvements(duel, one, summary.metric)
    yield from _budgets(record, one, other)


def _ratio(ratio: Ratio, one: str) -> str:
    counts = f"n = {ratio.slow_count} and {ratio.fast_count}"
    if ratio.method == "never_reached":
        return f"no finite multiple of {one}'s, as a way never reached the target ({counts})"
    return f"{wording.times(ratio.value)} as much as {one} ({interval_text(ratio)}, {counts})"


def _improvements(duel: Duel, one: str, metric: str) -> Iterator[tuple[str, str]]:
    for what, found in ((f"in test {metric}", duel.test), ("in cost", duel.cost)):
        if found is not None:
            yield f"P(improvement) {what}", f"{_probability(found)} that a search of {one} does better"


def _probability(found: Improvement) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.2f} (no interval)"
    return f"{found.value:.2f} (95 % interval {found.low:.2f} to {found.high:.2f})"


def _budgets(record: StudyRecord, one: str, other: str) -> Iterator[tuple[str, str]]:
    """How good each way is once it may spend what a whole search of either costs on average."""
    by_way = {key: finished_searches(record).get(key, []) for key in (one, other)}
    if not all(by_way.values()):
        return
    for key, found in by_way.items():
        cost = fmean(search.charged_device_seconds for search in found)
        values = []
        for way, theirs in by_way.items():
            [point] = equal_budget([search.curve for search in theirs], cost, (1.0,))
            value = "no model in all searches" if point.value is None else f"test {wording.metric(point.value)}"
            values.append(f"{way} {value} ({point.count}/{point.total} with a model)")
        yield f"for {wording.significant(cost)} s, a {key} search", "; ".join(values)
