"""Every training trial: the validation value that its learning rate gave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.analysis.searches import metric_name, target_value
from lrsearch.analysis.select import final_value
from lrsearch.analysis.ways import CYCLICAL, clr_way
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import (
    INK,
    WayStyle,
    add_target,
    legend_entry,
    log_axis,
    new_figure,
    of_way,
    padded,
    reined,
    way_styles,
)
from lrsearch.figures.range_test import RangeTest, range_tests, shade_bounds
from lrsearch.range_test import suggestions_from_training_losses
from lrsearch.trial import FINISHED_STATUSES, StudyRecord, TrialRecord

MOST_POINTS = 2000
"""More are thinned: a page of 10,000 trials must stay small, and its marks lie on each other anyway."""
FEWEST_FOR_SUGGESTIONS = 20
WITHOUT_VALUE = {"diverged": "x-thin-open", "failed": "asterisk-open"}


def numbers(record: StudyRecord) -> dict[str, list[TrialRecord]]:
    """Return the ended training trials of each way that have a rate."""
    ended = [
        trial
        for trial in record.trials
        if trial.stage == "train" and trial.status in FINISHED_STATUSES and highest_rate(trial) is not None
    ]
    by_way = {key: [trial for trial in ended if trial.strategy == key] for key in record.strategies}
    return {key: trials for key, trials in by_way.items() if trials}


def highest_rate(trial: TrialRecord) -> float | None:
    """Return the highest rate of the trial's schedule: a cycle's upper bound, else the rate that was proposed."""
    proposal = trial.proposal
    cyclical = proposal.max_lr is not None and proposal.schedule is not None and proposal.schedule.name in CYCLICAL
    return proposal.max_lr if cyclical else proposal.learning_rate


def draw(record: StudyRecord) -> go.Figure | None:
    """Draw a symbol per trial, crosses for diverged and stars for failed ones along the bottom."""
    by_way, styles, target = thinned(numbers(record)), way_styles(record), target_value(record)
    values = [value for trials in by_way.values() for trial in trials if (value := final_value(trial)) is not None]
    if not values:
        return None
    own = reined(record, values)
    low, high = padded(own if target is None else [*own, target])
    bottom = low - 0.06 * (high - low)
    figure = new_figure(x="highest learning rate of the run (log scale)", y=f"validation {metric_name(record)}")
    for key, trials in by_way.items():
        figure.add_trace(legend_entry(key, styles[key], lines=False))
        figure.add_traces(
            [_models(key, trials, styles[key], low, high), *_without_value(key, trials, styles[key], bottom)]
        )
    planned = record.config["rates"]
    rates = [rate for trials in by_way.values() for trial in trials if (rate := highest_rate(trial))]
    figure.update_xaxes(**log_axis(min([planned["low"], *rates]), max([planned["high"], *rates])))
    figure.update_yaxes(range=(bottom - 0.05 * (high - low), high))
    if target is not None:
        add_target(figure, target)
    tests = range_tests(record, clr.key) if (clr := clr_way(record)) else []
    if tests:
        _draw_range_test(figure, tests[0], styles[tests[0].trial.strategy], low, high)
    return figure


def thinned(by_way: Mapping[str, Sequence[TrialRecord]]) -> dict[str, list[TrialRecord]]:
    """Return at most about `MOST_POINTS` trials, of each way every so many."""
    step = math.ceil(sum(map(len, by_way.values())) / MOST_POINTS) or 1
    return {key: list(trials[::step]) for key, trials in by_way.items()}


def _draw_range_test(figure: go.Figure, test: RangeTest, style: WayStyle, low: float, high: float) -> None:
    """Draw what the range test saw of the same rates, its bounds shaded, and fastai's suggestions above."""
    rates, values = test.curve("validation_metric")
    figure.add_trace(
        go.Scatter(
            x=rates,
            y=[min(max(value, low), high) for value in values],
            mode="lines",
            line={"color": style.faint(0.7), "width": 1.4},
            name="range test",
            showlegend=True,
            hovertemplate="range test at rate %{x:.3g}: %{y:.4r}",
        )
    )
    shade_bounds(figure, test.verdict, style)
    losses = test.curve("train_loss")
    enough = len(losses[1]) >= FEWEST_FOR_SUGGESTIONS
    found = suggestions_from_training_losses(*losses)._asdict() if enough else {}
    marks = [(name, rate) for name, rate in found.items() if rate is not None]
    figure.add_trace(
        go.Scatter(
            x=[rate for _, rate in marks],
            y=list(range(len(marks))),  # a row each: names never meet
            yaxis="y2",
            mode="markers+text",
            marker={"symbol": "triangle-down", "size": 8, "color": INK},
            text=[name for name, _ in marks],
            textposition="middle right",
            textfont={"size": 11},
            name="fastai's suggestions",
            showlegend=True,
            hovertemplate="fastai's %{text}: rate %{x:.3g}",
        )
    )
    if marks:
        above = {"domain": [0.86, 1.0], "range": [-0.7, 3.7], "anchor": "x", "visible": False}
        figure.update_layout(yaxis={"domain": [0.0, 0.85]}, yaxis2=above)


def _models(key: str, trials: Sequence[TrialRecord], style: WayStyle, low: float, high: float) -> go.Scatter:
    shown = [(trial, value) for trial in trials if (value := final_value(trial)) is not None]
    return go.Scatter(
        x=[highest_rate(trial) for trial, _ in shown],
        y=[min(max(value, low), high) for _, value in shown],
        customdata=[[trial.seed, trial.number, trial.status, value] for trial, value in shown],
        hovertemplate="seed %{customdata[0]}, trial %{customdata[1]}: rate %{x:.3g}, "
        "%{customdata[3]:.4r} (%{customdata[2]})",
        mode="markers",
        marker={"symbol": style.symbol, "size": 8, "color": style.faint(0.8)},
        **of_way(key),
    )


def _without_value(key: str, trials: Sequence[TrialRecord], style: WayStyle, y: float) -> list[go.Scatter]:
    drawn = []
    for status, symbol in WITHOUT_VALUE.items():
        shown = [trial for trial in trials if trial.status == status]
        if not shown:
            continue
        drawn.append(
            go.Scatter(
                x=[highest_rate(trial) for trial in shown],
                y=[y] * len(shown),
                mode="markers",
                marker={
                    "symbol": symbol,
                    "size": 9,
                    "color": style.color,
                    "line": {"width": 1.8, "color": style.color},
                },
                customdata=[[trial.seed, trial.number] for trial in shown],
                hovertemplate=f"seed %{{customdata[0]}}, trial %{{customdata[1]}}: rate %{{x:.3g}}, {status}",
                **of_way(key),
            )
        )
    return drawn


def caption(record: StudyRecord) -> str:
    trials = [trial for group in numbers(record).values() for trial in group]
    shown = sum(map(len, thinned(numbers(record)).values()))
    which = f"All {len(trials)}" if shown == len(trials) else f"{shown} of {len(trials)}, evenly taken,"
    diverged, failed = (sum(trial.status == status for trial in trials) for status in WITHOUT_VALUE)
    test = _caption_of_test(record)
    return (
        f"{which} training trials that have ended. Crosses along the bottom diverged ({diverged}), stars "
        f"failed ({failed}): they have no value, and were paid for. A cyclical run stands at its upper bound. "
        f"Values far worse than the best stand at the edge of the axis.{test}"
    )


def _caption_of_test(record: StudyRecord) -> str:
    clr = clr_way(record)
    if clr is None or not range_tests(record, clr.key):
        return ""
    return (
        f" The thin line is the validation value along the first range test of {clr.key}, one short run over all "
        "rates; shaded are the bounds that were read off it. Triangles above are the four suggestions that fastai "
        "would give for that test's losses: shown, not used."
    )


def table(record: StudyRecord) -> Table:
    rows = [
        (
            key,
            str(trial.seed),
            str(trial.number),
            wording.rate(highest_rate(trial) or 0.0),
            trial.status,
            wording.or_dash(final_value(trial), wording.metric),
            wording.significant(trial.charged_device_seconds),
        )
        for key, trials in thinned(numbers(record)).items()
        for trial in trials
    ]
    return Table(("Way", "Seed", "Trial", "Highest rate", "Status", "Validation value", "Charged, s"), rows)


VALUE_VERSUS_RATE = Drawing("What each learning rate gave", caption, draw, table)
