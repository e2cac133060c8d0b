"""What each grid search would have cost in other orders of its points."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.analysis.cost import device_models
from lrsearch.analysis.details import grid_orders
from lrsearch.analysis.grid_order import GridOrder
from lrsearch.analysis.summary import summarise
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import INK, WayStyle, label, legend_entry, new_figure, of_way, way_styles
from lrsearch.trial import StudyRecord

MOST_ROWS = 30


def draw(record: StudyRecord) -> go.Figure | None:
    """Draw a bar from best to worst per search, a bar mark at the expectation and the way's symbol as executed."""
    styles = way_styles(record)
    rows = [(key, seed, order) for key, orders in grid_orders(record).items() for seed, order in orders if order.good][
        :MOST_ROWS
    ]
    if not rows:
        return None
    seconds = wording.seconds_noun(device_models(record.trials)[0].kind)
    figure = new_figure(x=f"{seconds} to target", y="", height=140 + 26 * len(rows))
    for key in dict.fromkeys(key for key, _, _ in rows):
        figure.add_trace(legend_entry(key, styles[key], lines=False))
        figure.add_traces([_ranges(key, rows, styles[key]), *_marks(key, rows, styles[key])])
    longest = max(order.worst for _, _, order in rows)
    rightmost = max(_add_clr(figure, record, longest), longest)
    figure.update_xaxes(range=(0, 1.04 * rightmost))
    names = [f"{label(key)}, seed {seed}" for key, seed, _ in rows]
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=names)
    figure.update_yaxes(range=(len(rows) - 0.1, -0.6), ticks="", showgrid=False)
    return figure


Row = tuple[str, int, GridOrder]


def _ranges(key: str, rows: list[Row], style: WayStyle) -> go.Scatter:
    own = [(place, order) for place, (way, _, order) in enumerate(rows) if way == key]
    return go.Scatter(
        x=[x for _, order in own for x in (order.best, order.worst, None)],
        y=[place for place, _ in own for _ in range(3)],
        mode="lines",
        line={"color": style.faint(0.4), "width": 6},
        hoverinfo="skip",
        **of_way(key),
    )


def _marks(key: str, rows: list[Row], style: WayStyle) -> list[go.Scatter]:
    own = [(place, order) for place, (way, _, order) in enumerate(rows) if way == key]
    looks = {
        "expected": {"symbol": "line-ns-open", "size": 16, "color": style.color, "line": {"width": 2.5}},
        "as_executed": {"symbol": style.symbol, "size": 10, "color": style.color},
    }
    return [
        go.Scatter(
            x=[getattr(order, which) for _, order in own],
            y=[place for place, _ in own],
            mode="markers",
            marker=marker,
            customdata=[[order.good, order.good + order.bad] for _, order in own],
            hovertemplate=f"{which.replace('_', ' ')}: %{{x:,.3r}} s (%{{customdata[0]}} of %{{customdata[1]}} good)",
            **of_way(key),
        )
        for which, marker in looks.items()
    ]


def _add_clr(figure: go.Figure, record: StudyRecord, longest: float) -> float:
    """Draw the CLR run's expected cost as a line down and return it; 0 without one. Bars run to `longest`."""
    summary = summarise(record)
    reach = summary.way(summary.clr).reach if summary.clr else None
    if reach is None or summary.clr is None or math.isinf(reach.expected_cost):
        return 0.0
    figure.add_vline(x=reach.expected_cost, line={"dash": "dash", "width": 1.2, "color": INK}, layer="below")
    text = {"text": f"{label(summary.clr)}, expected", "showarrow": False, "yref": "paper", "y": 0}
    beside: dict[str, Any] = {"xanchor": "left", "xshift": 4}
    if reach.expected_cost > longest / 2:  # to the right its name would be cut where the figure ends
        beside = {"xanchor": "right", "xshift": -4}
    figure.add_annotation(x=reach.expected_cost, yanchor="bottom", font={"size": 12}, **text, **beside)
    return reach.expected_cost


def caption(record: StudyRecord) -> str:
    return (
        "A grid has no order of its own, so what it costs to reach the target is partly luck. Each bar runs from the "
        "best to the worst order of the points that a search tried; the symbol is the order that ran, the upright mark "
        "the mean over all orders: F/(G+1) f + h for G points that reach the target, after h seconds in the trial on "
        "average, and F that do not, of f seconds each. Searches without any good point are in the table alone"
        f"{_cut(record)}."
    )


def _cut(record: StudyRecord) -> str:
    drawable = sum(order.good > 0 for orders in grid_orders(record).values() for _, order in orders)
    return f"; the first {MOST_ROWS} of {drawable} searches are drawn" if drawable > MOST_ROWS else ""


def table(record: StudyRecord) -> Table:
    rows = [
        (
            key,
            str(seed),
            f"{order.good} of {order.good + order.bad}",
            *(wording.seconds_or_never(cost) for cost in (order.as_executed, order.expected, order.best, order.worst)),
        )
        for key, orders in grid_orders(record).items()
        for seed, order in orders
    ]
    return Table(("Way", "Seed", "Good points", "As executed", "Expected", "Best order", "Worst order"), rows)


GRID_ORDERS = Drawing("Grid search in other orders", caption, draw, table)
