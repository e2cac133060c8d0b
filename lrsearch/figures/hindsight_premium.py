"""What it would have been worth to know beforehand where good rates are."""

from __future__ import annotations

from lrsearch.analysis import wording
from lrsearch.analysis.details import premiums
from lrsearch.analysis.hindsight import Premium
from lrsearch.figures._drawing import Drawing, Table, no_figure
from lrsearch.trial import StudyRecord


def caption(record: StudyRecord) -> str:
    return (
        "Expected cost to target of a random search over a prior of one, three and six decades: the trials of all its "
        "searches are one pool, cut to a window of that width around the best rate, in hindsight. A search that is "
        "reported with a narrow range looks cheap because somebody had already paid for knowing that range. Times: "
        "over the narrowest."
    )


def table(record: StudyRecord) -> Table:
    rows = [_row(key, one) for key, found in premiums(record).items() for one in found]
    return Table(("Way", "Decades", "Rates", "Trials", "Good", "Expected to target", "Times"), rows)


def _row(key: str, one: Premium) -> tuple[str, ...]:
    return (
        key,
        f"{one.decades:g}",
        f"{wording.rate(one.low)} to {wording.rate(one.high)}",
        str(one.trials),
        str(one.good),
        wording.seconds_or_never(one.expected_cost),
        wording.or_dash(one.premium, wording.times),
    )


HINDSIGHT_PREMIUM = Drawing("Hindsight premium: what a narrower prior would have saved", caption, no_figure, table)
