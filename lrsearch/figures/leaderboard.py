"""Time and money to target, in the manner of DAWNBench."""

from __future__ import annotations

from lrsearch.analysis import wording
from lrsearch.analysis.details import Entry, leaderboard
from lrsearch.analysis.searches import metric_name, target_value
from lrsearch.figures._drawing import Drawing, Table, no_figure
from lrsearch.trial import StudyRecord


def caption(record: StudyRecord) -> str:
    target = target_value(record)
    goal = "" if target is None else f" {metric_name(record)} {target:g} on validation"
    return (
        f"Time and cost until{goal} (Coleman et al., DAWNBench, 2017), ranked by expected cost. DAWNBench lists the "
        "fastest run that anybody had; a way is not its luckiest seed, so the expected cost, with every second "
        "spent in vain, stands first."
    )


def table(record: StudyRecord) -> Table:
    heads = ("Way", "Rank", "Expected time", "Fastest search", "Expected cost, USD", "Cheapest search, USD", "Reached")
    return Table(heads, [_row(rank, entry) for rank, entry in enumerate(leaderboard(record), start=1)])


def _row(rank: int, entry: Entry) -> tuple[str, ...]:
    usd = [wording.or_dash(value, wording.usd) for value in (entry.expected_usd, entry.fastest_usd)]
    times = [wording.seconds_or_never(value) for value in (entry.expected, entry.fastest)]
    return (entry.way, str(rank), *times, *usd, f"{entry.reached}/{entry.total}")


LEADERBOARD = Drawing("Leaderboard: time and cost to target", caption, no_figure, table)
