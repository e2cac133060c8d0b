"""Every training trial: the validation value that its learning rate gave."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.analysis.searches import higher_is_better, metric_name, target_value
from lrsearch.analysis.ways import CYCLICAL
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import WayStyle, add_target, legend_entry, log_axis, new_figure, of_way, padded, way_styles
from lrsearch.trial import FINISHED_STATUSES, StudyRecord, TrialRecord

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
    by_way, styles, target = numbers(record), way_styles(record), target_value(record)
    values = [value for trials in by_way.values() for trial in trials if (value := _value(trial)) is not None]
    if not values:
        return None
    low, high = padded(_on_the_axis(record, values if target is None else [*values, target]))
    bottom = low - 0.06 * (high - low)
    figure = new_figure(x="highest learning rate of the run (log scale)", y=f"validation {metric_name(record)}")
    for key, trials in by_way.items():
        figure.add_trace(legend_entry(key, styles[key], lines=False))
        figure.add_traces(
            [_models(key, trials, styles[key], low, high), *_without_value(key, trials, styles[key], bottom)]
        )
    rates = record.config["rates"]
    figure.update_xaxes(**log_axis(rates["low"], rates["high"]))
    figure.update_yaxes(range=(bottom - 0.05 * (high - low), high))
    if target is not None:
        add_target(figure, target)
    return figure


def _on_the_axis(record: StudyRecord, values: Sequence[float]) -> list[float]:
    """Return the values, those far worse than chance cut off: an R2 or a perplexity near divergence knows no bound."""
    chance = record.facts.chance if record.facts else None
    if chance is None:
        return list(values)
    if higher_is_better(record):
        return [max(value, 2 * chance - max(values)) for value in values]
    return [min(value, 2 * chance - min(values)) for value in values]


def _models(key: str, trials: Sequence[TrialRecord], style: WayStyle, low: float, high: float) -> go.Scatter:
    shown = [(trial, value) for trial in trials if (value := _value(trial)) is not None]
    return go.Scatter(
        x=[highest_rate(trial) for trial, _ in shown],
        y=[min(max(value, low), high) for _, value in shown],
        customdata=[[trial.seed, trial.number, trial.status, value] for trial, value in shown],
        hovertemplate="seed %{customdata[0]}, trial %{customdata[1]}: rate %{x:.3g}, "
        "%{customdata[3]:.4f} (%{customdata[2]})",
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


def _value(trial: TrialRecord) -> float | None:
    return trial.result.validation_metric if trial.result and trial.status in ("completed", "pruned") else None


def caption(record: StudyRecord) -> str:
    trials = [trial for group in numbers(record).values() for trial in group]
    diverged, failed = (sum(trial.status == status for trial in trials) for status in WITHOUT_VALUE)
    return (
        f"All {len(trials)} training trials that have ended. Crosses along the bottom diverged ({diverged}), stars "
        f"failed ({failed}): they have no value, and were paid for. A cyclical run stands at its upper bound. "
        "Values far worse than chance stand at the edge of the axis; the table has them all."
    )


def table(record: StudyRecord) -> Table:
    rows = [
        (
            key,
            str(trial.seed),
            str(trial.number),
            wording.rate(highest_rate(trial) or 0.0),
            trial.status,
            "–" if _value(trial) is None else wording.metric(_value(trial) or 0.0),
            wording.significant(trial.charged_device_seconds),
        )
        for key, trials in numbers(record).items()
        for trial in trials
    ]
    return Table(("Way", "Seed", "Trial", "Highest rate", "Status", "Validation value", "Charged, s"), rows)


VALUE_VERSUS_RATE = Drawing("What each learning rate gave", caption, draw, table)
