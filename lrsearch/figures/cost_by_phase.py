"""What the bill of each way is made of."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.analysis.compare import Mean, mean_of
from lrsearch.analysis.cost import device_models
from lrsearch.analysis.searches import Search, searches
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import label, new_figure
from lrsearch.trial import CHARGED_PHASES, PHASES, StudyRecord

PHASE_STYLES = {
    "train": ("#4f7cac", ""),
    "evaluate": ("#9dbbd8", ""),
    "range_test": ("#d55e00", "/"),
    "setup": ("#8d8d8d", ""),
    "warmup": ("#b9b09f", ""),
    "idle": ("#c9c9c9", "."),
    "lost": ("#8c3b4a", "x"),
}
"""Colour and pattern; the order is that of the bars."""


@dataclass(frozen=True)
class WayCost:
    """Mean charged seconds per search of one way."""

    key: str
    phase_seconds: dict[str, float]
    """Mean per search, phases shown apart included."""
    charged: Mean


def numbers(record: StudyRecord) -> list[WayCost]:
    """Return the ways with finished searches; empty when devices of several models ran the study."""
    if len(device_models(record.trials)) > 1:
        return []
    by_way = {
        key: [search for search in searches(record, key) if search.done and search.trials] for key in record.strategies
    }
    return [_way_cost(key, done) for key, done in by_way.items() if done]


def _way_cost(key: str, done: list[Search]) -> WayCost:
    charged = mean_of([search.charged_device_seconds for search in done])
    assert charged is not None, "there are searches"
    phases = {
        phase: sum(trial.phase_seconds[phase] for search in done for trial in search.trials) / len(done)
        for phase in PHASES
    }
    return WayCost(key, phases, charged)


def draw(record: StudyRecord) -> go.Figure | None:
    """Draw a stacked bar per way with its total and standard deviation behind it."""
    costs = numbers(record)
    if not costs:
        return None
    seconds = wording.seconds_noun(device_models(record.trials)[0].kind)
    figure = new_figure(x=f"charged {seconds} per search, mean", y="", height=130 + 38 * len(costs))
    names = [label(cost.key) for cost in costs]
    for phase, (color, pattern) in PHASE_STYLES.items():
        x = [cost.phase_seconds[phase] for cost in costs]
        if any(x):
            figure.add_trace(
                go.Bar(
                    x=x,
                    y=names,
                    orientation="h",
                    name=phase.replace("_", " "),
                    marker={
                        "color": color,
                        "pattern": {"shape": pattern, "bgcolor": color, "fgcolor": "rgba(255,255,255,0.75)", "size": 6},
                    },
                    hovertemplate="%{x:.3g} s",
                )
            )
    for name, cost in zip(names, costs, strict=True):
        figure.add_annotation(
            x=cost.charged.value,
            y=name,
            text=_total(cost.charged),
            showarrow=False,
            xanchor="left",
            xshift=6,
            font_size=12,
        )
    figure.update_layout(barmode="stack", bargap=0.35, legend_traceorder="normal")
    figure.update_xaxes(range=(0, max(cost.charged.value for cost in costs) * 1.28))
    figure.update_yaxes(autorange="reversed", ticks="", showgrid=False)
    return figure


def _total(charged: Mean) -> str:
    spread = "" if charged.sd is None else f" ± {wording.significant(charged.sd, 2)}"
    return f"{wording.significant(charged.value)}{spread} (n {charged.count})"


def caption(record: StudyRecord) -> str:
    return (
        "Mean charged seconds of a whole search, every trial in it whatever became of it; ± is the standard deviation "
        "over searches. Idle: the device was held while the sampler thought and results were written. Lost: an attempt "
        "that was killed and had to be repeated. Reading data and the test evaluation are apart: on no way's bill."
    )


def table(record: StudyRecord) -> Table:
    shown = (*PHASE_STYLES, *(phase for phase in PHASES if phase not in CHARGED_PHASES))
    rows = [
        (
            cost.key,
            str(cost.charged.count),
            wording.significant(cost.charged.value),
            "–" if cost.charged.sd is None else wording.significant(cost.charged.sd, 2),
            *(wording.significant(cost.phase_seconds[phase]) for phase in shown),
        )
        for cost in numbers(record)
    ]
    names = [f"{phase.replace('_', ' ')}{'' if phase in CHARGED_PHASES else ' (apart)'}" for phase in shown]
    return Table(("Way", "n", "Charged, s", "sd", *names), rows)


COST_BY_PHASE = Drawing("Cost by phase", caption, draw, table)
