"""The numbers below a report's first table, each a function of the record; None or empty where a study has none.

Only finished searches count, and none where devices of several models ran the study: their seconds do not compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from lrsearch.analysis.budget import MULTIPLES, Area, AtBudget, AtTarget, area, equal_budget
from lrsearch.analysis.compare import Improvement, Mean, improvement, mean_of
from lrsearch.analysis.cost import device_models, price_of
from lrsearch.analysis.early_clue import SHARES, early_clue
from lrsearch.analysis.expected_best import expected_best
from lrsearch.analysis.grid_order import GridOrder, grid_order
from lrsearch.analysis.hindsight import Premium, hindsight_premium
from lrsearch.analysis.once import once_per_record
from lrsearch.analysis.searches import (
    Search,
    evaluations_of,
    higher_is_better,
    metric_range,
    searches,
    target_value,
)
from lrsearch.analysis.select import final_value
from lrsearch.analysis.summary import summarise
from lrsearch.analysis.target import meets, reach_summary
from lrsearch.analysis.way_summary import WaySummary
from lrsearch.analysis.ways import Way, clr_way, ways
from lrsearch.trial import FINISHED_STATUSES, CurvePoint, StudyRecord, TrialRecord

GAIN_SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Rungs of the ladder of targets: shares of the gain from chance to the best validation value of the study."""

ROUNDING = 1e-9  # of an epoch that was reached


@once_per_record
def finished_searches(record: StudyRecord) -> dict[str, list[Search]]:
    """Return the finished searches of each way that has any that cost something."""
    if len(device_models(record.trials)) > 1:
        return {}
    paid = {
        way.key: [one for one in searches(record, way.key) if one.done and one.charged_device_seconds > 0]
        for way in ways(record)
    }
    return {key: found for key, found in paid.items() if found}


@dataclass(frozen=True)
class Crossing:
    """What a rate from `origin` is worth in a schedule of this shape."""

    origin: str
    schedule: str
    ways: tuple[WaySummary, ...]


@once_per_record
def cross_table(record: StudyRecord) -> list[Crossing]:
    """Return where rates come from x what schedule they are put into, cells without a way left out."""
    cells: dict[tuple[str, str], list[WaySummary]] = {}
    for row in summarise(record).ways:
        if row.models:
            cells.setdefault((origin_of(row.way), row.way.schedule), []).append(row)
    return [Crossing(origin, schedule, tuple(rows)) for (origin, schedule), rows in cells.items()]


def origin_of(way: Way) -> str:
    """Return where the way's rate comes from, in words."""
    return "bounds from the file" if way.bounds_given else way.origin.replace("_", " ")


@once_per_record
def target_ladder(record: StudyRecord) -> dict[str, list[AtTarget]]:
    """Return cost to target of each way over a ladder of targets, the study's own among them."""
    targets = ladder_of(record)
    return {
        key: [AtTarget(target, reach_summary([search.outcome(target) for search in found])) for target in targets]
        for key, found in finished_searches(record).items()
        if targets
    }


def ladder_of(record: StudyRecord) -> list[float]:
    """Return the targets, the easiest first: shares of the gain over chance (or over the worst first evaluation)."""
    curves = [one.improvements for found in finished_searches(record).values() for one in found if one.improvements]
    if not curves:
        return []
    higher, target = higher_is_better(record), target_value(record)
    best = (max if higher else min)(curve[-1][1] for curve in curves)
    chance = record.facts.chance if record.facts else None
    start = (min if higher else max)(curve[0][1] for curve in curves) if chance is None else chance
    # The last one is the best itself, which rounding may miss.
    rungs = {best if share == 1 else start + share * (best - start) for share in GAIN_SHARES}
    return sorted(rungs | ({target} if target is not None else set()), reverse=not higher)


def chance_level(record: StudyRecord) -> float | None:
    """Return the value of a model that ignores its input; where it is not known, the worst value of the study."""
    if record.facts and record.facts.chance is not None:
        return record.facts.chance
    values = [value for trial in record.trials if (value := final_value(trial)) is not None]
    return (min if higher_is_better(record) else max)(values, default=None)


def trained(search: Search) -> list[TrialRecord]:
    """Return the training runs of a search that have ended, whatever became of them."""
    return [trial for trial in search.trials if trial.stage == "train" and trial.status in FINISHED_STATUSES]


@once_per_record
def random_best(record: StudyRecord) -> dict[str, list[Mean]]:
    """Return the expected best validation value of k trials of each random search: the mean over searches of U(k)."""
    chance = chance_level(record)
    found: dict[str, list[Mean]] = {}
    for way in ways(record):
        if way.origin != "random_search" or chance is None:
            continue
        curves = [
            expected_best(
                [final_value(trial) for trial in trained(search)],
                chance=chance,
                lower_is_better=not search.higher_is_better,
            )
            for search in searches(record, way.key)
            if search.done
        ]
        means = [mean_of(values, within=metric_range(record)) for values in zip(*curves, strict=False)]
        found[way.key] = [mean for mean in means if mean is not None]
    return {key: means for key, means in found.items() if means}


@dataclass(frozen=True)
class Pool:
    """Training runs and how each fared against a target."""

    rates: list[float | None]
    costs: list[float]
    hit_costs: list[float | None]
    """Charged seconds of the run until its first evaluation that met the target."""
    values: list[float | None]
    """The best validation value of the run."""


def pool_of(trials: Sequence[TrialRecord], target: float, *, lower_is_better: bool) -> Pool:
    """Return the runs in plain values."""
    hit_costs: list[float | None] = []
    values: list[float | None] = []
    for trial in trials:
        measured = [
            (cost, value) for cost, point in evaluations_of(trial) if (value := point.validation_metric) is not None
        ]
        hits = [cost for cost, value in measured if meets(value, target, lower_is_better=lower_is_better)]
        hit_costs.append(hits[0] if hits else None)
        values.append((min if lower_is_better else max)((value for _, value in measured), default=None))
    rates = [trial.proposal.learning_rate for trial in trials]
    return Pool(rates, [trial.charged_device_seconds for trial in trials], hit_costs, values)


@once_per_record
def grid_orders(record: StudyRecord) -> dict[str, list[tuple[int, GridOrder]]]:
    """Return (seed, cost to target over the orders of the points) of every finished grid search."""
    target, lower = target_value(record), not higher_is_better(record)
    grids = [way.key for way in ways(record) if way.origin == "grid"]
    if target is None:
        return {}
    return {
        key: [(search.seed, _order(search, target, lower)) for search in found]
        for key, found in finished_searches(record).items()
        if key in grids
    }


def _order(search: Search, target: float, lower_is_better: bool) -> GridOrder:
    pool = pool_of(trained(search), target, lower_is_better=lower_is_better)
    return grid_order(pool.costs, pool.hit_costs, pool.values, target, lower_is_better=lower_is_better)


@dataclass(frozen=True)
class Budgets:
    """What a way's searches are worth at multiples of the CLR run's cost."""

    points: list[AtBudget]
    regret: Area | None
    """Mean over searches of the regret to the best test value of any search, from once to `MULTIPLES[-1]` times that
    cost, before the first model at chance level; None where that level is not known."""


@once_per_record
def budgets(record: StudyRecord) -> dict[str, Budgets]:
    """Return A(b) at multiples of the cost of the CLR run, its dearest search's, and the areas; empty without one."""
    by_way, clr = finished_searches(record), clr_way(record)
    cost = max(one.charged_device_seconds for one in by_way[clr.key]) if clr and clr.key in by_way else None
    best = best_test_value(record)
    if cost is None or best is None:
        return {}
    return {
        key: Budgets(equal_budget([search.curve for search in found], cost), _regret(record, found, cost, best))
        for key, found in by_way.items()
    }


def best_test_value(record: StudyRecord) -> float | None:
    """Return the best test value that any finished search would hand over."""
    tests = [
        value for found in finished_searches(record).values() for one in found if (value := one.test_value) is not None
    ]
    return (max if higher_is_better(record) else min)(tests, default=None)


def _regret(record: StudyRecord, found: Sequence[Search], cost: float, best: float) -> Area | None:
    chance = record.facts.chance if record.facts else None
    areas = [
        area(one.curve, cost, cost * MULTIPLES[-1], best=best, before=chance, lower_is_better=not one.higher_is_better)
        for one in found
    ]
    known = [one for one in areas if one is not None]
    if len(known) < len(areas):
        return None
    return Area(fmean(one.linear for one in known), fmean(one.log for one in known))


@dataclass(frozen=True)
class Clue:
    """How well the order of a search's trials early on tells their order at the end."""

    share: float
    """Of the epochs."""
    correlation: Mean | None
    """Mean over searches of Spearman's rank correlation; None where no search has one."""


@once_per_record
def early_clues(record: StudyRecord) -> dict[str, list[Clue]]:
    """Return the rank correlation of early and final validation values of each way that tries several rates."""
    found: dict[str, list[Clue]] = {}
    for way in ways(record):
        each = [_clue(record, search) for search in searches(record, way.key) if way.is_search and search.done]
        columns = [[value for value in column if value is not None] for column in zip(*each, strict=True)]
        if any(columns):
            found[way.key] = [Clue(share, mean_of(column)) for share, column in zip(SHARES, columns, strict=True)]
    return found


def _clue(record: StudyRecord, search: Search) -> list[float | None]:
    """Pruned trials have no final value: they take no part."""
    trials = [trial for trial in trained(search) if trial.status != "pruned"]
    if not trials:
        return [None] * len(SHARES)
    early = [[point.validation_metric if point else None for point in early_points(record, trial)] for trial in trials]
    return early_clue(early, [final_value(trial) for trial in trials], lower_is_better=not search.higher_is_better)


def early_points(record: StudyRecord, trial: TrialRecord) -> list[CurvePoint | None]:
    """Return the first evaluation at or after each share of the planned epochs; None where the trial ended before."""
    epochs = trial.proposal.epochs or float(record.config["training"]["epochs"])
    points = iter(trial.result.curve if trial.result else ())
    found: list[CurvePoint | None] = []
    point = next(points, None)
    for share in SHARES:
        while point is not None and point.epoch < share * epochs * (1 - ROUNDING):
            point = next(points, None)
        found.append(point)
    return found


@once_per_record
def premiums(record: StudyRecord) -> dict[str, list[Premium]]:
    """Return what a narrower prior would have saved each random search; its searches' trials are one pool."""
    target, lower = target_value(record), not higher_is_better(record)
    by_way = finished_searches(record)
    found: dict[str, list[Premium]] = {}
    for key in (way.key for way in ways(record) if way.origin == "random_search" and way.key in by_way):
        trials = [trial for search in by_way[key] for trial in trained(search) if trial.proposal.learning_rate]
        if target is None or not trials:
            continue
        pool = pool_of(trials, target, lower_is_better=lower)
        rates = [rate for rate in pool.rates if rate is not None]
        found[key] = hindsight_premium(
            rates, pool.values, pool.costs, target, hit_costs=pool.hit_costs, lower_is_better=lower
        )
    return found


@dataclass(frozen=True)
class Duel:
    """How probably a search of the one way does better than one of the other."""

    test: Improvement | None
    """On the test value of what validation chose."""
    cost: Improvement | None
    """On the cost to target, never against never a tie; without a target on the cost of the whole search."""


@once_per_record
def duels(record: StudyRecord) -> dict[tuple[str, str], Duel]:
    """Return every ordered pair of ways with finished searches."""
    rows = [row for row in summarise(record).ways if row.searches_done]
    found: dict[tuple[str, str], Duel] = {}
    for row, other in combinations(rows, 2):
        found[row.key, other.key] = duel = _duel(record, row, other)
        found[other.key, row.key] = Duel(_mirrored(duel.test), _mirrored(duel.cost))
    return found


def _duel(record: StudyRecord, row: WaySummary, other: WaySummary) -> Duel:
    costs = [[outcome.cost if outcome.reached else None for outcome in way.outcomes] for way in (row, other)]
    lower = not higher_is_better(record)
    return Duel(
        improvement(row.tests, other.tests, lower_is_better=lower) if row.tests and other.tests else None,
        improvement(*costs, lower_is_better=True) if all(costs) else None,
    )


def _mirrored(one: Improvement | None) -> Improvement | None:
    if one is None:
        return None
    low, high = (None if end is None else 1 - end for end in (one.high, one.low))
    return Improvement(1 - one.value, low, high, one.fewest)


@dataclass(frozen=True)
class Entry:
    """A line of the leaderboard: time and money to target in the manner of DAWNBench."""

    way: str
    fastest: float
    """Of the way's searches; infinite where none reached the target."""
    expected: float
    """With restarts."""
    fastest_usd: float | None
    expected_usd: float | None
    """None without a price, and where the target was never reached."""
    reached: int
    total: int


@once_per_record
def leaderboard(record: StudyRecord) -> list[Entry]:
    """Return the ways from the least expected cost to target to the most; empty without a target."""
    price = price_of(record)

    def usd(seconds: float) -> float | None:
        return None if price is None or math.isinf(seconds) else seconds / 3600 * price

    entries = [
        Entry(row.key, fastest, expected, usd(fastest), usd(expected), row.reach.reached, row.reach.total)
        for row in summarise(record).ways
        if row.reach is not None
        for fastest, expected in [(min(one.cost for one in row.outcomes), row.reach.expected_cost)]
    ]
    return sorted(entries, key=lambda entry: (entry.expected, entry.fastest))
