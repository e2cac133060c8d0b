"""The learning rate over the course of the chosen training runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.analysis.searches import searches
from lrsearch.errors import UsageError
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import legend_entry, log_axis, new_figure, of_way, thinned, way_line, way_styles
from lrsearch.schedules import plan_schedule
from lrsearch.trial import StudyRecord, TrialRecord

MOST_THIN_LINES = 4
"""Searches of a way that are drawn beside its first one."""
MOST_POINTS = 200
"""Of a line."""
STRAIGHT = 1e-3
"""Of the axis: what deviates less from a straight line is not seen, and a page need not carry it."""
WIDEST_LINEAR = 10.0
"""The highest rates of runs lie up to so many times apart on a linear axis: a smaller one would lie on its foot."""
DEEPEST = 100.0
"""On a logarithmic axis, so many times below its highest rate a run that goes on falling leaves the figure."""


def chosen_runs(record: StudyRecord) -> dict[str, list[TrialRecord]]:
    """Return, per way, the run that each search would hand over, where it left curve points."""
    runs = {
        key: [one.trial for search in searches(record, key) if (one := search.incumbent) and _has_curve(one.trial)]
        for key in record.strategies
    }
    return {key: trials for key, trials in runs.items() if trials}


def _has_curve(trial: TrialRecord) -> bool:
    return trial.result is not None and len(trial.result.curve) > 0


def _rates(record: StudyRecord, trial: TrialRecord) -> list[tuple[float, float]]:
    """Return steps, at most MOST_POINTS, and the rate at each, up to where the run ended.

    They are computed anew from the proposal; where that cannot be done (a function of the user's is not to be had
    here), they are those of the curve points.
    """
    proposal = trial.proposal
    assert trial.result is not None, "chosen for its curve"
    assert proposal.schedule is not None, "a training run"
    last = trial.result.curve[-1]
    steps_per_epoch = round(last.step / last.epoch)
    epochs = proposal.epochs or record.config["training"]["epochs"]
    try:
        planned = plan_schedule(
            proposal.schedule,
            learning_rate=proposal.learning_rate,
            base_lr=proposal.base_lr,
            max_lr=proposal.max_lr,
            total_steps=max(1, round(epochs * steps_per_epoch)),
            steps_per_epoch=steps_per_epoch,
        )
    except UsageError:
        return [(float(p.step), p.learning_rate) for p in thinned(trial.result.curve, MOST_POINTS)]
    return [(float(step), planned.rate(step)) for step in thinned(range(last.step), MOST_POINTS)]


def straightened(line: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the x and y of the points that a line needs: the others lie on straight parts, but for STRAIGHT.

    Ramer 1972; Douglas and Peucker 1973, with vertical distances.

    >>> straightened([(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.2), (4, 0.1)])
    ([0, 2, 4], [0.1, 0.3, 0.1])
    """
    if not line:
        return [], []
    x, y = np.array(line, dtype=np.float64).T
    tolerance, kept, parts = STRAIGHT * np.abs(y).max(), {0, len(line) - 1}, [(0, len(line) - 1)]
    while parts:
        first, last = parts.pop()
        off = np.abs(y[first : last + 1] - np.interp(x[first : last + 1], x[[first, last]], y[[first, last]]))
        if off.max() > tolerance:
            middle = first + int(off.argmax())
            kept.add(middle)
            parts += [(first, middle), (middle, last)]
    shown = [line[i] for i in sorted(kept)]
    return [point[0] for point in shown], [point[1] for point in shown]


def draw(record: StudyRecord) -> go.Figure | None:
    """Draw the first seed's schedule of each way, the other seeds' thin."""
    runs, styles = chosen_runs(record), way_styles(record)
    if not runs:
        return None
    lines = {key: [_rates(record, trial) for trial in trials[: MOST_THIN_LINES + 1]] for key, trials in runs.items()}
    axis = _axis([[rate for _, rate in line] for drawn in lines.values() for line in drawn])
    figure = new_figure(x="optimiser step", y=f"learning rate{' (log scale)' if 'type' in axis else ''}")
    for key, (first, *others) in lines.items():
        figure.add_trace(legend_entry(key, styles[key]))
        for line in others:
            x, y = _drawn(line, axis)
            thin = way_line(styles[key], faint=True)
            figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=thin, hoverinfo="skip", **of_way(key)))
        x, y = _drawn(first, axis)
        hover = f"seed {runs[key][0].seed}, step %{{x}}: rate %{{y:.3g}}"
        figure.add_trace(
            go.Scatter(x=x, y=y, line=way_line(styles[key]), hovertemplate=hover, mode="lines", **of_way(key))
        )
    figure.update_yaxes(**axis)
    return figure


def _axis(runs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return a linear axis from 0, on which a cycle is a triangle; a logarithmic one where runs lie too far apart."""
    peaks = [peak for rates in runs if (peak := max(rates, default=0.0)) > 0]
    if not peaks or max(peaks) <= WIDEST_LINEAR * min(peaks):
        return {"rangemode": "tozero"}
    lowest = min(max(min(rates), max(rates) / DEEPEST) for rates in runs if max(rates, default=0.0) > 0)
    return log_axis(lowest, max(peaks))


def _drawn(line: Sequence[tuple[float, float]], axis: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return x and y of the points that a line needs on this axis; on a logarithmic one, 0 lies under its foot."""
    if "type" not in axis:
        return straightened(line)
    foot = axis["range"][0] - 1
    x, y = straightened([(step, max(foot, math.log10(rate) if rate > 0 else foot)) for step, rate in line])
    return x, [10**exponent for exponent in y]


def caption(record: StudyRecord) -> str:
    others = min(max(map(len, chosen_runs(record).values()), default=1) - 1, MOST_THIN_LINES)
    thin = f", thin {'the next' if others == 1 else f'up to {others} more'}" if others else ""
    return (
        f"The rate at every step of the run that each search chose; bold is the first seed with a model{thin}. Long "
        f"runs are drawn at {MOST_POINTS} steps."
    )


def table(record: StudyRecord) -> Table:
    rows = [
        (
            key,
            str(trial.seed),
            trial.proposal.schedule.name if trial.proposal.schedule else "–",
            *(
                wording.or_dash(rate, wording.rate)
                for rate in (trial.proposal.learning_rate, trial.proposal.base_lr, trial.proposal.max_lr)
            ),
        )
        for key, trials in chosen_runs(record).items()
        for trial in trials
    ]
    return Table(("Way", "Seed", "Schedule", "Proposed rate", "Base rate", "Max rate"), rows)


SCHEDULES = Drawing("Schedules of the chosen runs", caption, draw, table)
