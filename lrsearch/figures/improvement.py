"""How probably a search of one way does better than one of another."""

from __future__ import annotations

from lrsearch.analysis.compare import Improvement
from lrsearch.analysis.details import duels
from lrsearch.figures._drawing import Drawing, Table, no_figure
from lrsearch.trial import StudyRecord


def caption(record: StudyRecord) -> str:
    goal = "to the target, never against never a tie" if record.config.get("target") else "of the whole search"
    return (
        "Probability that one search of the row's way does better than one of the column's, ties one half, with the "
        f"95 % interval of Newcombe (2006) over searches: in test value, and in cost ({goal}). ✓ marks better by the "
        "rule of Bouthillier et al. (2021): above 0.75, and the interval above 0.5; never with fewer than four "
        "searches. Nothing here allows for how many pairs there are: read it beside the verdict."
    )


def table(record: StudyRecord) -> Table:
    found = duels(record)
    keys = list(dict.fromkeys(way for way, _ in found))
    rows = [
        (way, on, *("" if way == other else _cell(getattr(found[way, other], on)) for other in keys))
        for way in keys
        for on in ("test", "cost")
    ]
    return Table(("Way", "In", *(f"over {key}" for key in keys)), rows)


def _cell(one: Improvement | None) -> str:
    if one is None:
        return "–"
    interval = "" if one.low is None or one.high is None else f" ({one.low:.2f} to {one.high:.2f})"
    return f"{one.value:.2f}{interval}{' ✓' if one.is_better else ''}"


IMPROVEMENT = Drawing("Probability of improvement", caption, no_figure, table)
