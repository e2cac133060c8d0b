"""Where rates come from, crossed with the shape of the schedule they are put into: two questions told apart."""

from __future__ import annotations

from lrsearch.analysis import wording
from lrsearch.analysis.details import Crossing, cross_table
from lrsearch.analysis.way_summary import WaySummary
from lrsearch.figures._drawing import Drawing, Table, no_figure
from lrsearch.trial import StudyRecord


def caption(record: StudyRecord) -> str:
    return (
        "Reading along a row changes the schedule alone, reading down a column changes only where the rate comes from: "
        "a decaying schedule is often worth much by itself (over 82 settings: Chen et al. 2021, 2107.04197). Each "
        "cell: mean test value of the chosen model ± standard deviation over n searches, and the expected cost to the "
        "target, or of a whole search without one; its ways follow in brackets."
    )


def table(record: StudyRecord) -> Table:
    cells = {(cell.origin, cell.schedule): cell for cell in cross_table(record)}
    origins = list(dict.fromkeys(origin for origin, _ in cells))
    schedules = list(dict.fromkeys(schedule for _, schedule in cells))
    if len(cells) < 2:
        return Table(("Rate from",), ())
    rows = [(origin, *(_text(cells.get((origin, schedule))) for schedule in schedules)) for origin in origins]
    return Table(("Rate from", *(schedule.replace("_", " ") for schedule in schedules)), rows)


def _text(cell: Crossing | None) -> str:
    return "–" if cell is None else "; ".join(_way(row) for row in cell.ways)


def _way(row: WaySummary) -> str:
    value = "–"
    if row.test is not None:
        spread = "" if row.test.sd is None else f" ± {wording.metric(row.test.sd)}"
        value = f"{wording.metric(row.test.value)}{spread} (n {row.test.count})"
    return f"{value}, {_cost(row)} [{row.key}]"


def _cost(row: WaySummary) -> str:
    if row.reach is not None:
        return wording.seconds_or_never(row.reach.expected_cost)
    return "–" if row.charged is None else wording.seconds_or_never(row.charged.value)


CROSS_TABLE = Drawing("Where the rate comes from × schedule", caption, no_figure, table)
