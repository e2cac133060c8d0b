"""The range tests of the CLR run, with the bounds that were read off them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import plotly.graph_objects as go

from lrsearch.analysis import wording
from lrsearch.analysis.once import once_per_record
from lrsearch.analysis.searches import metric_name
from lrsearch.analysis.ways import CYCLICAL, clr_way
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import WayStyle, axis, cut_range, log_axis, new_figure, way_line, way_styles
from lrsearch.range_test import RangeTestVerdict, judge
from lrsearch.trial import RangeTestPlan, RangeTestPoint, StudyRecord, TrialRecord, WorkloadFacts

TOP = 0.83  # of the plots; the names of the bounds stand above
LINES = (("base", "base_lr"), ("onset", "onset_lr"), ("knee", "knee_lr"), ("max", "max_lr"))


@dataclass(frozen=True)
class RangeTest:
    """A range test that ended."""

    trial: TrialRecord
    plan: RangeTestPlan
    points: Sequence[RangeTestPoint]
    facts: WorkloadFacts
    optimizer: str

    @cached_property
    def verdict(self) -> RangeTestVerdict:
        """What it says: judged again, as its strategy judged it."""
        return judge(self.points, self.facts, self.plan, self.optimizer)

    def curve(self, signal: str) -> tuple[list[float], list[float]]:
        """Return rates and values of a signal of the points, such as "train_loss", where measured and finite."""
        measured = [(p.learning_rate, value) for p in self.points if (value := getattr(p, signal)) is not None]
        return [rate for rate, _ in measured], [value for _, value in measured]


def range_tests(record: StudyRecord, strategy: str | None = None) -> list[RangeTest]:
    """Return the study's range tests that left points."""
    return [test for test in _range_tests(record) if strategy is None or test.trial.strategy == strategy]


@once_per_record
def _range_tests(record: StudyRecord) -> list[RangeTest]:
    studys = str(record.config["training"]["optimizer"]["name"])
    return [
        RangeTest(
            trial, plan, result.range_test, record.facts, own.name if (own := trial.proposal.optimizer) else studys
        )
        for trial in record.trials
        if (plan := trial.proposal.range_test) and (result := trial.result) and result.range_test and record.facts
    ]


def numbers(record: StudyRecord) -> list[RangeTest]:
    """Return the range tests of the CLR run, one per seed."""
    clr = clr_way(record)
    return range_tests(record, clr.key) if clr else []


def draw(record: StudyRecord) -> go.Figure | None:
    """Draw validation metric (above) and training loss (below) over the rate; the first test bold, with its bounds."""
    tests, clr = numbers(record), clr_way(record)
    if not tests or clr is None:
        return None
    style, first = way_styles(record)[clr.key], tests[0]
    figure = new_figure(x="learning rate (log scale)", y="training loss", height=520, showlegend=False)
    above = {**axis(f"validation {metric_name(record)}"), "domain": [0.51, TOP], "anchor": "x"}
    figure.update_layout(yaxis={"domain": [0.0, 0.43]}, yaxis2=above)
    for test in reversed(tests):
        for signal, yaxis in (("validation_metric", "y2"), ("train_loss", "y")):
            figure.add_trace(_line(test, signal, yaxis, style, test is first))
    rates = [point.learning_rate for test in tests for point in test.points]
    figure.update_xaxes(**log_axis(min(rates), max(rates), pad=0.02))
    losses, metrics = ([test.curve(signal)[1] for test in tests] for signal in ("train_loss", "validation_metric"))
    figure.update_layout(yaxis={"range": cut_range(losses, rises=False)})
    figure.update_layout(yaxis2={"range": cut_range(metrics, rises=first.facts.higher_is_better)})
    _draw_bounds(figure, first.verdict, style)
    return figure


def _line(test: RangeTest, signal: str, yaxis: str, style: WayStyle, bold: bool) -> go.Scatter:
    x, y = test.curve(signal)
    return go.Scatter(
        x=x,
        y=y,
        yaxis=yaxis,
        mode="lines",
        line=way_line(style, faint=not bold, width=1.8 if bold else 1.0),
        hovertemplate=f"seed {test.trial.seed}: %{{y:.4r}} at rate %{{x:.3g}}<extra></extra>",
    )


def _draw_bounds(figure: go.Figure, verdict: RangeTestVerdict, style: WayStyle) -> None:
    """Shade from base to max rate, and name the lines above both plots, each in a row of its own."""
    height = {"yref": "paper", "y0": 0, "y1": TOP, "layer": "below"}
    shade_bounds(figure, verdict, style, top=TOP)
    found = [(rate, name) for name, field in LINES if (rate := getattr(verdict, field))]
    for row, (rate, name) in enumerate(sorted(found)):
        chosen = name in ("base", "max")
        line = {"width": 1.6 if chosen else 1, "dash": "solid" if chosen else "dot", "color": style.color}
        figure.add_shape(type="line", x0=rate, x1=rate, **height, line=line)
        figure.add_annotation(
            x=math.log10(rate),  # plotly places annotations of a log axis by exponent
            y=TOP + 0.042 * row,
            yref="paper",
            text=f"{name} {wording.rate(rate)}",
            showarrow=False,
            yanchor="bottom",
            font={"size": 12},
        )


def shade_bounds(figure: go.Figure, verdict: RangeTestVerdict, style: WayStyle, *, top: float = 1.0) -> None:
    """Shade the rates from base to max, up to `top` of the drawing."""
    if verdict.base_lr and verdict.max_lr:
        place = {"x0": verdict.base_lr, "x1": verdict.max_lr, "yref": "paper", "y0": 0, "y1": top, "layer": "below"}
        figure.add_shape(type="rect", **place, fillcolor=style.faint(0.12), line={"width": 0})


def caption(record: StudyRecord) -> str:
    tests = numbers(record)
    clr = clr_way(record)
    if not tests or clr is None:
        return ""
    first, repeated = tests[0], any(test.plan.repeat for test in tests)
    bold = f"Bold, with its bounds, is {'the first of ' if repeated else ''}seed {first.trial.seed}"
    thin = "; the others are thin" if len(tests) > 1 else ""
    shaded = ""
    if first.verdict.base_lr and first.verdict.max_lr:
        cycles = ", in which training cycles" if clr.schedule in CYCLICAL else ""
        trained = "; training goes by the medians of its search's tests" if repeated else cycles
        shaded = f" Shaded is the range between base and max{trained}."
    return (
        f"The rate rises from step to step in a short run of {clr.key} (n = {len(tests)}). {bold}{thin}.{shaded} "
        "Onset (learning begins) and knee (it flattens) are shown for orientation. Both axes are cut where the values "
        "have become worse than at the start by as much as they had become better."
    )


def table(record: StudyRecord) -> Table:
    columns = (
        "Way",
        "Seed",
        "Verdict",
        "Base",
        "Max",
        "Max, 10–90 %",
        "Ended by",
        "Onset",
        "Knee",
        "Confidence",
        "Judged on",
    )
    return Table(columns, [_row(test) for test in range_tests(record)])


def _row(test: RangeTest) -> tuple[str, ...]:
    verdict = test.verdict
    interval = verdict.max_lr_interval
    return (
        test.trial.strategy,
        str(test.trial.seed),
        verdict.status.replace("_", " "),
        wording.or_dash(verdict.base_lr, wording.rate),
        wording.or_dash(verdict.max_lr, wording.rate),
        f"{wording.rate(interval[0])} to {wording.rate(interval[1])}" if interval else "–",
        verdict.reason or "–",
        wording.or_dash(verdict.onset_lr, wording.rate),
        wording.or_dash(verdict.knee_lr, wording.rate),
        verdict.confidence,
        verdict.signal.replace("_", " "),
    )


RANGE_TEST = Drawing("The range test and its bounds", caption, draw, table)
