"""The first table of a report, cell by cell: the same words for a page and for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lrsearch.analysis import wording
from lrsearch.analysis.compare import Mean, Ratio, expected_cost_interval, is_flat
from lrsearch.analysis.summary import StudySummary
from lrsearch.analysis.way_summary import WaySummary


@dataclass(frozen=True)
class Cell:
    """A number, and beside or below it what it needs to be believed: its spread and n."""

    text: str
    notes: tuple[str, ...] = ()
    """Lines."""


NOTHING = Cell("–")
NARROW_SPACE = "\u202f"  # no-break


@dataclass(frozen=True)
class Column:
    """A column: what stands in its head, what it means, and how a row fills it."""

    title: str
    meaning: str
    cell: Callable[[WaySummary], Cell]


def columns(summary: StudySummary) -> list[Column]:
    """Return every column that this study has numbers for: no target, energy, confirmation, no column."""
    return [*first_columns(summary), *further_columns(summary)]


def first_columns(summary: StudySummary) -> list[Column]:
    """Return the columns that the verdict hangs on: reach, cost, money, accuracy."""
    seconds = summary.seconds
    found: list[Column] = []
    if summary.target is not None:
        goal = f"{summary.metric} {summary.target:g} on validation"
        to_target = "expected cost with restarts: all seconds spent until the target or in vain / searches that hit"
        found += [
            Column("Reached target", f"searches that reached {goal}; below: Wilson's 95 % interval", _reached),
            Column(f"{seconds.capitalize()} to target", f"{to_target}; below: 95 % interval", _to_target),
        ]
    else:
        found.append(_whole_searches(summary))
    goal = "to target" if summary.target is not None else "of a whole search"
    found.append(
        Column("Times CLR's cost", f"cost {goal} over that of the CLR run; below: 95 % interval, n of both", _speed_up)
    )
    price = summary.usd_per_device_hour
    money = (
        "no price in the study file" if price is None else f"charged seconds at ${price:g} per device hour; mean ± sd"
    )
    found.append(Column("Money per search", money, _usd))
    if any(row.energy for row in summary.ways):
        energy = "by the device's own counter; unknown where an attempt was killed; mean ± sd"
        found.append(Column("Energy per search", energy, _energy))
    return [*found, _confirmed_values(summary) if _is_confirmed(summary) else _test_values(summary)]


def further_columns(summary: StudySummary) -> list[Column]:
    """Return the columns for those who want to know more."""
    found = [Column("Searches", "searches done of those planned; below: trials and how they ended", _searches)]
    if summary.target is not None:
        spread = "and a search that missed never gets there"
        found += [
            Column(
                "Median to target", f"{summary.seconds}; below: from the cheapest to the dearest, {spread}", _spread
            ),
            _whole_searches(summary),
        ]
    if any(row.billed for row in summary.ways):
        together = (
            "what trials took, those that trained together each its share, where charged is what each takes alone"
        )
        found.append(Column("Really billed", f"{together}; mean ± sd", _billed))
    found += [
        Column("Overhead", "charged / the chosen training run alone; mean ± sd", _overhead),
        Column(f"Validation {summary.metric}", "of the chosen model; mean ± sd over searches", _validation),
    ]
    return [*found, _test_values(summary)] if _is_confirmed(summary) else found


def _is_confirmed(summary: StudySummary) -> bool:
    return any(row.confirmed for row in summary.ways)


def _whole_searches(summary: StudySummary) -> Column:
    title = f"{summary.seconds.capitalize()} per search"
    return Column(title, "charged, every trial in it; mean ± sd over searches", _charged)


def _test_values(summary: StudySummary) -> Column:
    meaning = "of the model that validation chose, trained once; mean over searches, below: 95 % t interval"
    return Column(f"Test {summary.metric}", meaning, _test)


def _confirmed_values(summary: StudySummary) -> Column:
    meaning = (
        "the chosen settings trained again with fresh seeds, on nobody's bill; what several searches chose, once; "
        "mean, below: 95 % interval"
    )
    return Column(f"Confirmed test {summary.metric}", meaning, _confirmed)


def row_cells(columns: Sequence[Column], row: WaySummary) -> list[Cell]:
    return [column.cell(row) for column in columns]


def _searches(row: WaySummary) -> Cell:
    ended = {status: count for status, count in row.trials.items() if count and status != "completed"}
    trials = wording.counted(sum(row.trials.values()), "trial")
    details = [f"{count} {status}" for status, count in ended.items()]
    if row.lost_attempts:
        details.append(wording.counted(row.lost_attempts, "lost attempt"))
    if row.models < row.searches_done:
        details.append(f"{row.searches_done - row.models} without a model")
    return Cell(f"{row.searches_done}/{row.searches_planned}", (trials, *details))


def _reached(row: WaySummary) -> Cell:
    if row.reach is None:
        return NOTHING
    low, high = (round(100 * share) for share in row.reach.share)
    return Cell(f"{row.reach.reached}/{row.reach.total}", (f"{low}–{high} %",))


def _to_target(row: WaySummary) -> Cell:
    if row.reach is None:
        return NOTHING
    count = _n(len(row.outcomes))
    if not row.reach.reached:
        return Cell(wording.NEVER, (count,))
    interval = expected_cost_interval(row.outcomes)
    shown = "no interval" if interval is None else f"{_seconds(interval.low)} to {_seconds(interval.high)}"
    return Cell(_seconds(row.reach.expected_cost), (f"{shown}, {count}",))


def _spread(row: WaySummary) -> Cell:
    if row.reach is None:
        return NOTHING
    costs = [outcome.cost for outcome in row.outcomes]
    if not row.reach.reached:
        return Cell(wording.NEVER, (_n(len(costs)),))
    return Cell(
        _seconds(row.reach.median_cost), (f"{_seconds(min(costs))} to {_seconds(max(costs))}, {_n(len(costs))}",)
    )


def _seconds(value: float) -> str:
    return wording.significant(value) if math.isfinite(value) else wording.NEVER


def _speed_up(row: WaySummary) -> Cell:
    ratio = row.speed_up
    if ratio is None:
        return NOTHING
    if ratio.method == "never_reached":
        return Cell("–", ("neither reached it" if math.isnan(ratio.value) else "one never reached it",))
    return Cell(wording.times(ratio.value), (f"{_interval(ratio)}, {_n(ratio.slow_count, ratio.fast_count)}",))


def _interval(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None or (ratio.low == 0 and math.isinf(ratio.high)):
        return "no interval"
    if is_flat(ratio.low, ratio.high):
        return "no spread"
    low, high = wording.end(ratio.low), wording.end(ratio.high)
    if math.isinf(ratio.high):
        return f"at least {low}"
    return f"{low} to {high}" if ratio.low else f"at most {high}"


def _two_digits(sd: float) -> str:
    return wording.significant(sd, 2)


def _charged(row: WaySummary) -> Cell:
    return _with_sd(row.charged, wording.significant)


def _billed(row: WaySummary) -> Cell:
    return _with_sd(row.billed or row.charged, wording.significant)


def _overhead(row: WaySummary) -> Cell:
    return _with_sd(row.overhead, wording.times)


def _usd(row: WaySummary) -> Cell:
    return _with_sd(row.usd, wording.usd, lambda sd: f"${_two_digits(sd)}") if row.usd else Cell("–", ("no price",))


def _energy(row: WaySummary) -> Cell:
    return _with_sd(row.energy, wording.energy, wording.energy) if row.energy else Cell("–", ("unknown",))


def _validation(row: WaySummary) -> Cell:
    return _with_sd(row.validation, wording.metric, wording.metric)


def _test(row: WaySummary) -> Cell:
    mean = row.test
    if mean is None or mean.low is None or mean.high is None:
        return _with_sd(mean, wording.metric, wording.metric)
    interval = f"{wording.metric(mean.low)} to {wording.metric(mean.high)}"
    return Cell(wording.metric(mean.value), (f"{interval}, {_n(mean.count)}",))


def _confirmed(row: WaySummary) -> Cell:
    one = row.confirmed
    if one is None:
        return NOTHING
    counts = f"{_n(one.searches)} × {wording.counted(one.seeds, 'seed')}"
    if one.runs < one.searches * one.seeds:
        counts += f", {wording.counted(one.runs, 'run')}"
    if one.low is None or one.high is None:
        return Cell(wording.metric(one.value), ("no interval", counts))
    return Cell(wording.metric(one.value), (f"{wording.metric(one.low)} to {wording.metric(one.high)}", counts))


def _with_sd(
    mean: Mean | None, text: Callable[[float], str], spread_text: Callable[[float], str] = _two_digits
) -> Cell:
    if mean is None:
        return NOTHING
    spread = "no spread" if mean.sd is None else f"±{NARROW_SPACE}{spread_text(mean.sd)}"
    return Cell(text(mean.value), (f"{spread}, {_n(mean.count)}",))


def _n(*counts: int) -> str:
    return f"n{NARROW_SPACE}{', '.join(map(str, counts))}"
