"""What the k-th random trial buys."""

from __future__ import annotations

import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.analysis.compare import Mean
from lrsearch.analysis.details import random_best
from lrsearch.analysis.searches import metric_name
from lrsearch.analysis.summary import summarise
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import WayStyle, legend_entry, new_figure, of_way, padded, way_line, way_styles
from lrsearch.trial import StudyRecord


def draw(record: StudyRecord) -> go.Figure | None:
    """Draw U(k) with its interval over searches, and the CLR run's validation value as a line across."""
    curves, styles, summary = random_best(record), way_styles(record), summarise(record)
    if not curves:
        return None
    figure = new_figure(x="random trials k", y=f"expected best validation {metric_name(record)}", height=380)
    for key, means in curves.items():
        figure.add_traces(
            [legend_entry(key, styles[key]), _band(key, means, styles[key]), _line(key, means, styles[key])]
        )
    values = [mean.value for means in curves.values() for mean in means]
    if summary.clr is not None and (clr := summary.way(summary.clr).validation) is not None:
        longest = max(map(len, curves.values()))
        style = styles[summary.clr]
        figure.add_trace(legend_entry(summary.clr, style))
        across = {"x": [1, max(longest, 2)], "y": [clr.value] * 2, "mode": "lines", "line": way_line(style)}
        figure.add_trace(go.Scatter(**across, hovertemplate="one run: %{y:.4r}", **of_way(summary.clr)))
        values.append(clr.value)
    figure.update_yaxes(range=padded(values))
    return figure


def _line(key: str, means: list[Mean], style: WayStyle) -> go.Scatter:
    few = len(means) <= 40
    return go.Scatter(
        x=list(range(1, len(means) + 1)),
        y=[mean.value for mean in means],
        mode="lines+markers" if few else "lines",
        line=way_line(style),
        marker={"symbol": style.symbol, "size": 7},
        hovertemplate="best of %{x}: %{y:.4r}",
        **of_way(key),
    )


def _band(key: str, means: list[Mean], style: WayStyle) -> go.Scatter:
    """The t interval over searches, where there is one."""
    known = [(k, mean.low, mean.high) for k, mean in enumerate(means, start=1) if mean.low is not None]
    return go.Scatter(
        x=[k for k, _, _ in known] + [k for k, _, _ in reversed(known)],
        y=[low for _, low, _ in known] + [high for _, _, high in reversed(known)],
        fill="toself",
        fillcolor=style.faint(0.15),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        **of_way(key),
    )


_ACROSS = " The line across is the mean validation value of the CLR run, which trains once."


def caption(record: StudyRecord) -> str:
    unknown = record.facts is None or record.facts.chance is None
    across = "" if summarise(record).clr is None else _ACROSS
    return (
        "Expected best validation value of k trials of a random search: the mean over all subsets of k of its trials "
        "(unbiased, Tang et al. 2020), then over searches, with the 95 % t interval. Failed and diverged trials count "
        f"as {'the worst value of the study' if unknown else 'chance'}. Random search alone: trials of a sampler that "
        f"learns, or of a grid, are not interchangeable.{across} The winner of many trials carries the winner's curse: "
        "test values are in the first table."
    )


def table(record: StudyRecord) -> Table:
    rows = [
        (
            key,
            str(k),
            wording.metric(mean.value),
            *(wording.or_dash(end, wording.metric) for end in (mean.low, mean.high)),
            str(mean.count),
        )
        for key, means in random_best(record).items()
        for k, mean in enumerate(means, start=1)
        if k <= 20 or k == len(means) or k % 10 == 0
    ]
    return Table(("Way", "k", "Expected best", "95 % from", "95 % to", "n"), rows)


EXPECTED_BEST = Drawing("Expected best of k random trials", caption, draw, table)
