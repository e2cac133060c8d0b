"""What each way is worth once it has spent as much as the CLR run, and more."""

from __future__ import annotations

from lrsearch.analysis import wording
from lrsearch.analysis.budget import AtBudget
from lrsearch.analysis.details import Budgets, best_test_value, budgets
from lrsearch.figures._drawing import Drawing, Table, no_figure
from lrsearch.trial import StudyRecord


def caption(record: StudyRecord) -> str:
    best = best_test_value(record)
    return (
        "Mean test value of the model that a search would hand over once it has spent this multiple of what the CLR "
        "run costs (its dearest search); in brackets how many searches have a model by then (no mean until all have), "
        "■ where all have finished. Mean regret: how far the value lies from the best test value that any search of "
        f"this study handed over ({wording.or_dash(best, wording.metric)}), averaged from once to eight times "
        "that cost, over seconds and over their logarithm; before its first model a search is worth chance."
    )


def table(record: StudyRecord) -> Table:
    found = budgets(record)
    points = next(iter(found.values())).points if found else []
    heads = [f"{wording.times(one.multiple)} ({wording.seconds_or_never(one.budget)})" for one in points]
    return Table(("Way", *heads, "Mean regret", "Mean regret, log"), [_row(key, one) for key, one in found.items()])


def _row(key: str, budgets: Budgets) -> tuple[str, ...]:
    regret = budgets.regret
    regrets = ("–", "–") if regret is None else (wording.metric(regret.linear), wording.metric(regret.log))
    return (key, *(_cell(point) for point in budgets.points), *regrets)


def _cell(point: AtBudget) -> str:
    value = wording.or_dash(point.value, wording.metric)
    return f"{value} ({point.count}/{point.total}){' ■' if point.finished == point.total else ''}"


EQUAL_BUDGET = Drawing("At the same price", caption, no_figure, table)
