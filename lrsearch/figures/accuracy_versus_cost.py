"""The hero: what accuracy each way has bought at any moment of its bill."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.analysis.anytime import common_grid
from lrsearch.analysis.cost import device_models
from lrsearch.analysis.searches import Search, higher_is_better, metric_name, searches, target_value
from lrsearch.analysis.ways import ways
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import (
    WayStyle,
    add_target,
    legend_entry,
    log_axis,
    new_figure,
    of_way,
    padded,
    reined,
    way_line,
    way_styles,
)
from lrsearch.trial import StudyRecord


@dataclass(frozen=True)
class Band:
    """Over the searches of a way, from where all of them have a model; a point wherever anything changes."""

    costs: list[float]
    median: list[float]
    low: list[float]
    """The lower quartile."""
    high: list[float]


@dataclass(frozen=True)
class Lines:
    """What is drawn of one way."""

    key: str
    searches: tuple[Search, ...]
    """Those that gave a model."""
    without_model: int

    @property
    def final_values(self) -> list[float]:
        return [search.curve.values[-1] for search in self.searches]

    def band(self) -> Band:
        """Return median and quartiles; empty when a search never gave a model, as then they have no end."""
        if self.without_model:
            return Band([], [], [], [])
        curves = [search.curve for search in self.searches]
        grid = [cost for cost in common_grid(curves) if all(curve.costs[0] <= cost for curve in curves)]
        values = np.array([[curve.at(cost) for curve in curves] for cost in grid], dtype=float)
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=1)
        table = np.column_stack([low, middle, high])
        steps = [0, *(i for i in range(1, len(grid)) if i == len(grid) - 1 or (table[i] != table[i - 1]).any())]
        return Band([grid[i] for i in steps], *(column[steps].tolist() for column in (middle, low, high)))


def numbers(record: StudyRecord) -> list[Lines]:
    """Return the searches of each way; empty when devices of several models ran them: seconds have no common axis."""
    if len(device_models(record.trials)) > 1:
        return []
    found = []
    for way in ways(record):
        begun = [search for search in searches(record, way.key) if search.trials]
        with_model = tuple(search for search in begun if search.curve.costs)
        found.append(Lines(way.key, with_model, len(begun) - len(with_model)))
    return [lines for lines in found if lines.searches]


def draw(record: StudyRecord) -> go.Figure | None:
    """Draw a step line of the median in a band of quartiles per way, over charged seconds on a logarithmic axis."""
    lines, styles, target = numbers(record), way_styles(record), target_value(record)
    if not lines:
        return None
    seconds = wording.seconds_noun(device_models(record.trials)[0].kind)
    figure = new_figure(
        x=f"charged {seconds} of the search (log scale)",
        y=f"test {metric_name(record)} of the model chosen so far",
        height=500,
    )
    ends = reined(record, [value for line in lines for value in line.final_values])
    limits = (min(ends), max(ends))
    for line in lines:
        style = styles[line.key]
        figure.add_traces([legend_entry(line.key, style), *_band(line, style), *_range_tests(line, style)])
        figure.add_trace(_ends(line, style, limits))
    shown = [search for line in lines for search in line.searches]
    low = min(_range_test_seconds(search) or search.curve.costs[0] for search in shown)
    high = max(search.curve.end for search in shown)
    edge = high * (high / low) ** 0.08
    figure.add_traces([_after_the_end(line, styles[line.key], high) for line in lines])
    missed = {line.key: found for line in lines if target is not None and (found := _missed(line, target))}
    for key, found in missed.items():
        figure.add_trace(_misses(key, found, styles[key], limits, edge))
    figure.update_xaxes(**log_axis(low, edge if missed else high, pad=0.05, last_tick=high))
    figure.update_yaxes(range=padded(ends if target is None else [*ends, target], 0.12))
    if target is not None:
        add_target(figure, target, "on validation")
    if missed:
        _mark_the_edge(figure, math.sqrt(high * edge))
    return figure


def _band(line: Lines, style: WayStyle) -> list[go.Scatter]:
    """The quartiles as a shaded band, and the median on it."""
    band = line.band()
    if not band.costs:
        return []
    edge: dict[str, Any] = {"mode": "lines", "line": {"width": 0, "shape": "hv"}, "hoverinfo": "skip"}
    return [
        go.Scatter(x=band.costs, y=band.low, **edge, **of_way(line.key)),
        go.Scatter(x=band.costs, y=band.high, fill="tonexty", fillcolor=style.faint(0.1), **edge, **of_way(line.key)),
        go.Scatter(
            x=band.costs,
            y=band.median,
            mode="lines",
            line={**way_line(style), "shape": "hv"},
            hovertemplate="median of the searches: %{y:.4r} at %{x:,.3r} s",
            **of_way(line.key),
        ),
    ]


def _after_the_end(line: Lines, style: WayStyle, high: float) -> go.Scatter:
    """What the way's median stays at once all of its searches are over."""
    band = line.band()
    return go.Scatter(
        x=[band.costs[-1], high] if band.costs else [],
        y=[band.median[-1]] * 2 if band.costs else [],
        mode="lines",
        line={"color": style.faint(0.6), "width": 1, "dash": "dash"},
        hoverinfo="skip",
        **of_way(line.key),
    )


def _ends(line: Lines, style: WayStyle, limits: tuple[float, float]) -> go.Scatter:
    """A symbol where each search that is over ended; within `limits`, where it is far worse than most."""
    ended = [search for search in line.searches if search.done]
    return go.Scatter(
        x=[search.curve.end for search in ended],
        y=[_within(limits, search) for search in ended],
        mode="markers",
        marker={"symbol": style.symbol, "size": 10, "color": style.faint(0.85)},
        customdata=[[search.seed, search.curve.values[-1]] for search in ended],
        hovertemplate="seed %{customdata[0]} ended: %{customdata[1]:.4r} for %{x:,.3r} s",
        **of_way(line.key),
    )


def _range_tests(line: Lines, style: WayStyle) -> list[go.Scatter]:
    """Before each point of a range-tested way: a tick where its range test was done, dotted to the training's end."""
    return [
        go.Scatter(
            x=[tested, search.curve.costs[0]],
            y=[search.curve.values[0]] * 2,
            mode="lines+markers",
            line={"color": style.faint(0.6), "width": 1, "dash": "dot"},
            marker={"symbol": "line-ns-open", "size": [11, 0], "color": style.color, "line": {"width": 1.5}},
            hovertemplate="range test done after %{x:,.3r} s",
            **of_way(line.key),
        )
        for search in line.searches
        if (tested := _range_test_seconds(search))
    ]


def _range_test_seconds(search: Search) -> float:
    return sum(trial.charged_device_seconds for trial in search.billed if trial.stage == "range_test")


def _missed(line: Lines, target: float) -> list[Search]:
    return [search for search in line.searches if search.done and not search.outcome(target).reached]


def _within(limits: tuple[float, float], search: Search) -> float:
    return min(max(search.curve.values[-1], limits[0]), limits[1])


def _misses(
    key: str, missed: Sequence[Search], style: WayStyle, limits: tuple[float, float], edge: float
) -> go.Scatter:
    """A hollow symbol on the right edge for every search that never reached the target."""
    return go.Scatter(
        x=[edge] * len(missed),
        y=[_within(limits, search) for search in missed],
        mode="markers",
        marker={"symbol": f"{style.symbol}-open", "size": 10, "color": style.color, "line": {"width": 1.5}},
        customdata=[[search.seed, search.curve.values[-1]] for search in missed],
        hovertemplate="seed %{customdata[0]} never reached the target; it ended at %{customdata[1]:.4r}",
        **of_way(key),
    )


def _mark_the_edge(figure: go.Figure, begin: float) -> None:
    """Set the column of the misses apart from the axis of seconds."""
    place = {"xref": "x", "yref": "paper", "x0": begin, "x1": begin * 1e6, "y0": 0, "y1": 1}
    figure.add_shape(type="rect", **place, line={"width": 0}, fillcolor="rgba(128,128,128,0.12)", layer="below")
    text = {"text": "never<br>reached", "showarrow": False, "xanchor": "right", "yanchor": "top", "font": {"size": 11}}
    figure.add_annotation(x=0.998, xref="paper", y=0.99, yref="paper", **text)


def caption(record: StudyRecord) -> str:
    counts = [len(line.searches) + line.without_model for line in numbers(record)]
    better = "up" if higher_is_better(record) else "down"
    misses, target = "", ""
    if target_value(record) is not None:
        misses = " Hollow symbols on the right edge are searches that never reached the target on validation."
        target = " and the target"
    return (
        f"Further left is cheaper, further {better} is better. Bold is the median of a way's searches "
        f"({wording.each(counts, 'search', 'searches')}), the band around it their middle half, from where "
        "every search has a model; thin and dashed, what stays once they are over. A symbol marks the end of a "
        "search. Shown is the test value of the model with the best validation value so far, so a line can fall. On "
        "range-tested ways a tick marks where the range test was done, dotted to the end of the training."
        f"{misses} The vertical axis is cut to what the searches ended with{target}; what is far worse than the best "
        "stands at its edge."
    )


def table(record: StudyRecord) -> Table:
    target = target_value(record)
    rows = [
        (
            line.key,
            str(search.seed),
            wording.significant(search.curve.costs[0]),
            wording.significant(search.curve.end),
            wording.metric(search.curve.values[-1]),
            "–" if target is None else _cost_text(search, target),
        )
        for line in numbers(record)
        for search in line.searches
    ]
    return Table(("Way", "Seed", "First model after, s", "Search, s", "Final test value", "To target, s"), rows)


def _cost_text(search: Search, target: float) -> str:
    outcome = search.outcome(target)
    return wording.significant(outcome.cost) if outcome.reached else wording.NEVER if search.done else "not yet"


ACCURACY_VERSUS_COST = Drawing("What was bought for what it cost", caption, draw, table)
