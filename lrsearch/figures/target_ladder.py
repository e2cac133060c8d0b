"""What it costs to be how good: cost to target over a ladder of targets, not one alone."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.analysis.budget import AtTarget
from lrsearch.analysis.cost import device_models
from lrsearch.analysis.details import GAIN_SHARES, target_ladder
from lrsearch.analysis.searches import metric_name, target_value
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import INK, WayStyle, legend_entry, log_axis, new_figure, of_way, way_line, way_styles
from lrsearch.trial import StudyRecord


def draw(record: StudyRecord) -> go.Figure | None:
    """Draw expected cost over the rungs, hollow where some search missed; no point where all did."""
    ladder, styles = target_ladder(record), way_styles(record)
    costs = [rung.reach.expected_cost for rungs in ladder.values() for rung in rungs]
    reached = [cost for cost in costs if math.isfinite(cost)]
    if not reached:
        return None
    seconds = wording.seconds_noun(device_models(record.trials)[0].kind)
    figure = new_figure(x=f"target: {metric_name(record)} on validation", y=f"expected {seconds} (log scale)")
    for key, rungs in ladder.items():
        figure.add_traces([legend_entry(key, styles[key]), _line(key, rungs, styles[key])])
    targets = [rung.target for rung in next(iter(ladder.values()))]
    figure.update_xaxes(tickvals=list(range(len(targets))), ticktext=[f"{target:.4g}" for target in targets])
    figure.update_yaxes(**log_axis(min(reached), max(reached)))
    target = target_value(record)
    if target in targets:
        place = targets.index(target)
        figure.add_vline(x=place, line={"dash": "dash", "width": 1.2, "color": INK}, layer="below")
        text = {"text": "the study's target", "showarrow": False, "yref": "paper", "y": 1, "yanchor": "top"}
        figure.add_annotation(x=place, xanchor="right", xshift=-4, font={"size": 12}, **text)
    return figure


def _line(key: str, rungs: list[AtTarget], style: WayStyle) -> go.Scatter:
    shown = [rung.reach if rung.reach.reached else None for rung in rungs]
    missed = [reach is not None and reach.reached < reach.total for reach in shown]
    return go.Scatter(
        x=list(range(len(rungs))),
        y=[None if reach is None else reach.expected_cost for reach in shown],
        mode="lines+markers",
        line=way_line(style),
        marker={"symbol": [f"{style.symbol}-open" if one else style.symbol for one in missed], "size": 8},
        customdata=[[rung.target, rung.reach.reached, rung.reach.total] for rung in rungs],
        hovertemplate="%{customdata[0]:.4g}: %{y:,.3r} s, reached by %{customdata[1]} of %{customdata[2]}",
        **of_way(key),
    )


def caption(record: StudyRecord) -> str:
    shares = ", ".join(f"{100 * share:.0f}" for share in GAIN_SHARES)
    chance = record.facts.chance if record.facts else None
    start = "the worst first evaluation of a search" if chance is None else "chance"
    own = "" if target_value(record) is None else ", and the study's own target"
    return (
        "Expected cost with restarts until a search is this good on validation, all seconds spent in vain included. "
        "Hollow: some searches never got there; where none did, the line ends. The rungs, at equal distances, are "
        f"{shares} % of the gain from {start} to the best validation value of the study{own}."
    )


def table(record: StudyRecord) -> Table:
    ladder = target_ladder(record)
    rungs = next(iter(ladder.values()), [])
    rows = [(key, *(_cell(rung) for rung in found)) for key, found in ladder.items()]
    return Table(("Way", *(f"{rung.target:.4g}" for rung in rungs)), rows)


def _cell(rung: AtTarget) -> str:
    reach = rung.reach
    return f"{wording.seconds_or_never(reach.expected_cost)} ({reach.reached}/{reach.total})"


TARGET_LADDER = Drawing("What it costs to be how good", caption, draw, table)
