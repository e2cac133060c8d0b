"""How the chosen training runs learnt, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.analysis.searches import metric_name, target_value
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import (
    WayStyle,
    add_target,
    legend_entry,
    new_figure,
    of_way,
    padded,
    thinned,
    way_line,
    way_styles,
)
from lrsearch.figures.schedules import chosen_runs
from lrsearch.trial import StudyRecord, TrialRecord

Curve = list[tuple[float, float]]
MOST_POINTS = 60
"""Of a line: more cannot be told apart."""
MOST_WHOLE_TICKS = 10
"""With more epochs plotly's own ticks are whole."""


def numbers(record: StudyRecord) -> dict[str, list[Curve]]:
    """Return (epoch, validation value) of the run that each search chose."""
    return {key: [_curve(trial) for trial in trials] for key, trials in chosen_runs(record).items()}


def _curve(trial: TrialRecord) -> Curve:
    """Return the evaluations; those of a table of trials that does not tell their epoch have none (see exported.py)."""
    points = trial.result.curve if trial.result else ()
    measured = [point for point in points if point.validation_metric is not None and point.epoch]
    return [(point.epoch, point.validation_metric) for point in measured if point.validation_metric is not None]


@dataclass(frozen=True)
class Band:
    """Over the runs of a way, at the epochs that all of them have, thinned to MOST_POINTS."""

    epochs: list[float]
    median: list[float]
    low: list[float]
    """The lower quartile."""
    high: list[float]


def band_of(curves: list[Curve]) -> Band:
    """Return median and quartiles of runs."""
    tables = [dict(curve) for curve in curves]
    epochs = thinned(sorted(set.intersection(*(set(table) for table in tables))), MOST_POINTS)
    values = np.array([[table[epoch] for table in tables] for epoch in epochs]).reshape(len(epochs), len(tables))
    low, middle, high = (np.quantile(values, share, axis=1).tolist() if epochs else [] for share in (0.25, 0.5, 0.75))
    return Band(epochs, middle, low, high)


def draw(record: StudyRecord) -> go.Figure | None:
    """Draw the median in a band of quartiles per way."""
    by_way, styles, target = numbers(record), way_styles(record), target_value(record)
    if not by_way:
        return None
    figure = new_figure(x="epoch", y=f"validation {metric_name(record)}")
    for key, curves in by_way.items():
        figure.add_traces([legend_entry(key, styles[key]), *_band(key, band_of(curves), styles[key])])
    if target is not None:
        add_target(figure, target)
    figure.update_yaxes(range=_value_range(by_way, target))
    epochs = [epoch for curves in by_way.values() for curve in curves for epoch, _ in curve]
    if epochs and 2 <= max(epochs) - min(epochs) <= MOST_WHOLE_TICKS:
        figure.update_xaxes(dtick=1)  # plotly's own choice has ticks at half an epoch
    return figure


def _band(key: str, band: Band, style: WayStyle) -> list[go.Scatter]:
    edge: dict[str, Any] = {"x": band.epochs, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", **of_way(key)}
    hover = "median at epoch %{x:.4~g}: %{y:.4r}"
    mode = "lines" if len(band.epochs) > 1 else "markers"
    return [
        go.Scatter(y=band.low, **edge),
        go.Scatter(y=band.high, fill="tonexty", fillcolor=style.faint(0.15), **edge),
        go.Scatter(
            x=band.epochs,
            y=band.median,
            line=way_line(style),
            marker={"symbol": style.symbol, "color": style.color, "size": 9},
            hovertemplate=hover,
            mode=mode,
            **of_way(key),
        ),
    ]


def _value_range(by_way: dict[str, list[Curve]], target: float | None) -> tuple[float, float]:
    """Return the axis over the second half of all runs and the target: starts come in from outside."""
    late = [value for curves in by_way.values() for curve in curves for _, value in curve[len(curve) // 2 :]]
    return padded(late if target is None else [*late, target])


def caption(record: StudyRecord) -> str:
    searches = wording.each(list(map(len, numbers(record).values())), "search", "searches")
    return (
        f"Validation value of the run that each search chose: bold is the median of a way, the band its middle half "
        f"({searches}). Runs that get good late are not worse: a decaying or cyclical schedule is judged at its "
        "end. The vertical axis is cut to the later half of the runs."
    )


def table(record: StudyRecord) -> Table:
    rows = [
        (key, f"{round(epoch, 2):g}", *(wording.metric(value) for value in values), str(len(curves)))
        for key, curves in numbers(record).items()
        for band in [band_of(curves)]
        for epoch, *values in zip(band.epochs, band.median, band.low, band.high, strict=True)
    ]
    return Table(("Way", "Epoch", "Median validation value", "Lower quartile", "Upper quartile", "n"), rows)


LEARNING_CURVES = Drawing("Learning curves of the chosen runs", caption, draw, table)
