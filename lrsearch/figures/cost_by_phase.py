"""What the bill of each way is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.analysis.compare import Mean, mean_of
from lrsearch.analysis.cost import WASTED_STATUSES, device_models
from lrsearch.analysis.details import finished_searches
from lrsearch.analysis.searches import Search
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import INK, label, new_figure
from lrsearch.trial import CHARGED_PHASES, PHASES, StudyRecord, TrialRecord

PHASE_COLORS = {
    "train": "#4f7cac",
    "evaluate": "#9dbbd8",
    "range_test": "#d55e00",
    "setup": "#8d8d8d",
    "warmup": "#b9b09f",
    "idle": "#c9c9c9",
    "lost": "#8c3b4a",
}
"""In the order of the bars."""
LEGEND_LINE = 18
"""Pixels: on a telephone each name of the legend has a line of its own."""
WASTE = "in vain: diverged, failed, pruned or lost"


@dataclass(frozen=True)
class WayCost:
    """Mean charged seconds per search of one way."""

    key: str
    phase_seconds: dict[str, float]
    """Mean per search, phases shown apart included."""
    wasted_seconds: dict[str, float]
    """The part of them that gave no finished model, mean per search."""
    charged: Mean

    @property
    def wasted_share(self) -> float:
        return sum(self.wasted_seconds.values()) / self.charged.value


def numbers(record: StudyRecord) -> list[WayCost]:
    """Return the ways with finished searches; empty when devices of several models ran the study."""
    return [_way_cost(key, done) for key, done in finished_searches(record).items()]


def _way_cost(key: str, done: list[Search]) -> WayCost:
    charged = mean_of([search.charged_device_seconds for search in done])
    assert charged is not None, "there are searches"
    trials = [trial for search in done for trial in search.billed]
    phases = _mean_phases([trial.phase_seconds for trial in trials], len(done))
    wasted = _mean_phases([_in_vain(trial) for trial in trials], len(done))
    return WayCost(key, phases, {phase: wasted[phase] for phase in CHARGED_PHASES}, charged)


def _mean_phases(seconds: Sequence[Mapping[str, float]], count: int) -> dict[str, float]:
    return {phase: sum(one.get(phase, 0.0) for one in seconds) / count for phase in PHASES}


def _in_vain(trial: TrialRecord) -> Mapping[str, float]:
    """Return the seconds that gave no finished model; what a checkpoint kept of a killed attempt did."""
    return trial.phase_seconds if trial.status in WASTED_STATUSES else {"lost": trial.phase_seconds["lost"]}


def draw(record: StudyRecord) -> go.Figure | None:
    """Draw a stacked bar per way with its total and standard deviation behind it."""
    costs = numbers(record)
    if not costs:
        return None
    seconds = wording.seconds_noun(device_models(record.trials)[0].kind)
    figure = new_figure(x=f"charged {seconds} per search, mean", y="", height=130 + 38 * len(costs))
    rows = range(len(costs))  # and not labels, as those of two ways may be the same
    for phase, color in PHASE_COLORS.items():
        useful = [cost.phase_seconds[phase] - cost.wasted_seconds[phase] for cost in costs]
        if any(cost.phase_seconds[phase] for cost in costs):
            figure.add_trace(_bars(useful, rows, phase, {"color": color}, showlegend=True))
    for phase, color in PHASE_COLORS.items():
        if any(wasted := [cost.wasted_seconds[phase] for cost in costs]):
            hatched = {"shape": "/", "bgcolor": color, "fgcolor": "#ffffff", "size": 7, "solidity": 0.35}
            figure.add_trace(_bars(wasted, rows, phase, {"color": color, "pattern": hatched}, addition=" in vain"))
    if any(any(cost.wasted_seconds.values()) for cost in costs):
        hatch = {"shape": "/", "bgcolor": INK, "fgcolor": "#ffffff", "size": 7, "solidity": 0.35}
        figure.add_trace(go.Bar(x=[None], y=[None], name=WASTE, marker={"color": INK, "pattern": hatch}))
    for row, cost in enumerate(costs):
        figure.add_annotation(
            x=cost.charged.value,
            y=row,
            text=_total(cost.charged),
            showarrow=False,
            xanchor="left",
            xshift=6,
            font_size=12,
        )
    entries = sum(trace.showlegend is not False for trace in figure.data)
    narrow = {"narrow_room": 1.35, "narrow_height": LEGEND_LINE * entries}
    figure.update_layout(barmode="stack", bargap=0.35, legend_traceorder="normal", meta=narrow)
    figure.update_xaxes(range=(0, max(cost.charged.value for cost in costs) * 1.28))
    figure.update_yaxes(range=(len(costs) - 0.5, -0.5), ticks="", showgrid=False)
    figure.update_yaxes(tickvals=list(rows), ticktext=[label(cost.key) for cost in costs])
    return figure


def _bars(
    x: Sequence[float], rows: Sequence[int], phase: str, marker: dict[str, Any], *, addition: str = "", **layout: Any
) -> go.Bar:
    layout = {"showlegend": False, **layout}
    name = phase.replace("_", " ")
    hover = f"{name}{addition}: %{{x:,.3r}} s<extra></extra>"
    return go.Bar(
        x=x, y=list(rows), orientation="h", name=name, marker=marker, legendgroup=phase, hovertemplate=hover, **layout
    )


def _total(charged: Mean) -> str:
    spread = "" if charged.sd is None else f" ± {wording.significant(charged.sd, 2)}"
    return f"{wording.significant(charged.value)}{spread} (n {charged.count})"


def caption(record: StudyRecord) -> str:
    return (
        "Mean charged seconds of a whole search, every trial in it whatever became of it; ± is the standard deviation "
        "over searches. Hatched is what gave no finished model: trials that diverged, failed or were pruned, and "
        "what was lost. Idle: the device was held while the sampler thought and results were written. Lost: what had "
        "to be repeated of an attempt that was killed. Reading data and the test evaluation are apart: on "
        "nobody's bill."
    )


def table(record: StudyRecord) -> Table:
    shown = (*PHASE_COLORS, *(phase for phase in PHASES if phase not in CHARGED_PHASES))
    rows = [
        (
            cost.key,
            str(cost.charged.count),
            wording.significant(cost.charged.value),
            "–" if cost.charged.sd is None else wording.significant(cost.charged.sd, 2),
            f"{100 * cost.wasted_share:.0f} %",
            *(wording.significant(cost.phase_seconds[phase]) for phase in shown),
        )
        for cost in numbers(record)
    ]
    names = [f"{phase.replace('_', ' ')}{'' if phase in CHARGED_PHASES else ' (apart)'}" for phase in shown]
    return Table(("Way", "n", "Charged, s", "sd", "In vain", *names), rows)


COST_BY_PHASE = Drawing("Cost by phase", caption, draw, table)
