"""The figure of one range test, for notebooks and scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.figures._style import CLR_COLOR, INK, WayStyle, axis, cut_range, log_axis, new_figure, padded, plain
from lrsearch.range_test import RangeTestVerdict
from lrsearch.trial import RangeTestPoint

STYLE = WayStyle(CLR_COLOR, "diamond", "solid")
LOWER, UPPER = (0.0, 0.5), (0.56, 1.0)
EDGE = 0.15
"""A label stands beside its line on the outer side, but not in this share of the axis: there it would be cut off."""


def headline(verdict: RangeTestVerdict) -> str:
    """Return "base_lr 0.003, max_lr 0.05", or why there is neither."""
    if verdict.base_lr is None or verdict.max_lr is None:
        return verdict.status.replace("_", " ")
    return f"base_lr {wording.rate(verdict.base_lr)}, max_lr {wording.rate(verdict.max_lr)}"


def draw_range_test(
    points: Sequence[RangeTestPoint],
    verdict: RangeTestVerdict,
    title: str,
    metric: str = "metric",
    *,
    rises: bool = True,
) -> go.Figure:
    """Draw the loss over the rate, above it the metric if there is one, and shade the band from base to max.

    A metric that `rises` is the better the higher it is.
    """
    has_metric = any(point.validation_metric is not None for point in points)
    has_both = any(point.validation_loss is not None for point in points)
    loss = "loss" if has_both else "training loss"
    figure = new_figure(
        x="learning rate (log scale)",
        y=loss,
        height=480 if has_metric else 360,
        showlegend=has_both,
        title=plain(title),
    )
    figure.update_layout(
        margin={"t": 84}, legend={"y": LOWER[1] if has_metric else 1.0, "yanchor": "top", "bgcolor": "rgba(0,0,0,0)"}
    )
    for signal, color in (("validation_loss", INK), ("train_loss", CLR_COLOR)):
        figure.add_trace(_line(points, signal, color, yaxis="y"))
    if has_metric:
        figure.add_trace(_line(points, "validation_metric", CLR_COLOR, yaxis="y2"))
        metrics = [point.validation_metric for point in points if point.validation_metric is not None]
        upper = {**axis(f"validation {metric}"), "domain": UPPER, "anchor": "x"}
        upper["range"] = cut_range([metrics], rises=rises)
        figure.update_layout(yaxis={"domain": LOWER}, yaxis2=upper)
    if losses := [point.train_loss for point in points if point.train_loss is not None]:
        figure.layout.yaxis.range = _loss_range(losses)
    figure.update_xaxes(**log_axis(points[0].learning_rate, points[-1].learning_rate, pad=0.02))
    _draw_bounds(figure, verdict)
    return figure


def _line(points: Sequence[RangeTestPoint], signal: str, color: str, yaxis: str) -> go.Scatter:
    measured = [(point.learning_rate, value) for point in points if (value := getattr(point, signal)) is not None]
    name = signal.replace("_", " ").replace("train ", "training ")
    return go.Scatter(
        x=[rate for rate, _ in measured],
        y=[value for _, value in measured],
        yaxis=yaxis,
        mode="lines",
        name=name,
        showlegend=yaxis == "y",
        line={"color": color, "width": 1.8},
        hovertemplate=f"{name} %{{y:.4r}} at rate %{{x:.3g}}<extra></extra>",
    )


def _loss_range(losses: Sequence[float]) -> tuple[float, float]:
    """Return an axis that ends as far above the start as the loss has fallen below it: what blows up has no bound."""
    return padded([min(losses), 2 * losses[0] - min(losses)])


def _draw_bounds(figure: go.Figure, verdict: RangeTestVerdict) -> None:
    if verdict.base_lr is None or verdict.max_lr is None:
        return
    through = {"xref": "x", "yref": "paper", "y0": 0.0, "y1": 1.0}  # all panels
    band = {"fillcolor": STYLE.faint(0.13), "line": {"width": 0}, "layer": "below"}
    figure.add_shape(type="rect", x0=verdict.base_lr, x1=verdict.max_lr, **through, **band)
    low, high = figure.layout.xaxis.range
    for name, rate, side in (("base", verdict.base_lr, "right"), ("max", verdict.max_lr, "left")):
        place = (math.log10(rate) - low) / (high - low)
        figure.add_shape(type="line", x0=rate, x1=rate, **through, line={"width": 1.5, "color": CLR_COLOR})
        figure.add_annotation(
            x=math.log10(rate),  # plotly places annotations of a log axis by exponent
            y=1.0,
            yref="paper",
            text=f"{name} {wording.rate(rate)}",
            showarrow=False,
            xanchor="left" if place < EDGE else "right" if place > 1 - EDGE else side,
            yanchor="bottom",
        )
