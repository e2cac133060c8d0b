"""How the chosen training runs learnt, epoch by epoch."""

from __future__ import annotations

from statistics import median

import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.analysis.searches import metric_name, target_value
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import add_target, legend_entry, new_figure, of_way, padded, way_line, way_styles
from lrsearch.figures.schedules import chosen_runs
from lrsearch.trial import StudyRecord, TrialRecord

Curve = list[tuple[float, float]]


def numbers(record: StudyRecord) -> dict[str, list[Curve]]:
    """Return (epoch, validation value) of the run that each search chose."""
    return {key: [_curve(trial) for trial in trials] for key, trials in chosen_runs(record).items()}


def _curve(trial: TrialRecord) -> Curve:
    points = trial.result.curve if trial.result else ()
    return [(point.epoch, point.validation_metric) for point in points if point.validation_metric is not None]


def median_curve(curves: list[Curve]) -> Curve:
    """Return the median over runs at the epochs that all of them have."""
    tables = [dict(curve) for curve in curves]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    return [(epoch, median(table[epoch] for table in tables)) for epoch in common]


def draw(record: StudyRecord) -> go.Figure | None:
    """Draw a thin line per search and a bold median per way."""
    by_way, styles, target = numbers(record), way_styles(record), target_value(record)
    if not by_way:
        return None
    figure = new_figure(x="epoch", y=f"validation {metric_name(record)}")
    for key, curves in by_way.items():
        figure.add_trace(legend_entry(key, styles[key]))
        for curve in curves:
            x, y = [epoch for epoch, _ in curve], [value for _, value in curve]
            line = way_line(styles[key], faint=True)
            figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", **of_way(key)))
        middle = median_curve(curves)
        figure.add_trace(
            go.Scatter(
                x=[epoch for epoch, _ in middle],
                y=[value for _, value in middle],
                line=way_line(styles[key]),
                hovertemplate="median at epoch %{x}: %{y:.4f}",
                mode="lines",
                **of_way(key),
            )
        )
    if target is not None:
        add_target(figure, target)
    figure.update_yaxes(range=_value_range(by_way, target))
    return figure


def _value_range(by_way: dict[str, list[Curve]], target: float | None) -> tuple[float, float]:
    """Return the axis over the second half of all runs and the target: starts come in from outside."""
    late = [value for curves in by_way.values() for curve in curves for _, value in curve[len(curve) // 2 :]]
    return padded(late if target is None else [*late, target])


def caption(record: StudyRecord) -> str:
    return (
        "Validation value of the run that each search chose; thin lines are searches, bold is their median "
        f"({wording.counted(len(record.seeds), 'search', 'searches')} each). Runs that rise late are not worse: a "
        "decaying or cyclical schedule is judged at its end. The vertical axis is cut to the later half of the runs."
    )


def table(record: StudyRecord) -> Table:
    rows = [
        (key, f"{epoch:g}", wording.metric(value), str(len(curves)))
        for key, curves in numbers(record).items()
        for epoch, value in median_curve(curves)
    ]
    return Table(("Way", "Epoch", "Median validation value", "n"), rows)


LEARNING_CURVES = Drawing("Learning curves of the chosen runs", caption, draw, table)
