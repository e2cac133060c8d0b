"""Only the range test of a study file: run, judged and drawn; nothing is stored in a database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrsearch.analysis import wording
from lrsearch.config import StudyConfig
from lrsearch.errors import StudyFailedError, UsageError, did_you_mean
from lrsearch.figures import Table
from lrsearch.finder_figure import draw_range_test, headline
from lrsearch.page import plot, render_page
from lrsearch.page import write_page as write_whole
from lrsearch.range_test import RangeTestVerdict, combine_verdicts, judge
from lrsearch.strategies import RangeTested
from lrsearch.text_chart import text_chart
from lrsearch.trial import (
    CurvePoint,
    DeviceInfo,
    History,
    RangeTestPoint,
    TrainingPlan,
    TrialSpec,
    WorkloadFacts,
    charged_seconds,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class OneTest:
    """One run of the test."""

    seed: int
    points: tuple[RangeTestPoint, ...]
    verdict: RangeTestVerdict
    seconds: float
    """Charged device seconds."""
    metric: str
    higher_is_better: bool
    device: DeviceInfo

    def figure(self) -> go.Figure:
        title = f"Seed {self.seed}: {headline(self.verdict)}"
        return draw_range_test(self.points, self.verdict, title, self.metric, rises=self.higher_is_better)

    def chart(self, width: int) -> list[str]:
        """Return the curve that was judged as lines of text."""
        signal = self.verdict.signal
        curve = [(p.learning_rate, value) for p in self.points if (value := getattr(p, signal)) is not None]
        marks = {name: rate for name in ("base_lr", "max_lr") if (rate := getattr(self.verdict, name)) is not None}
        if not curve:
            return []
        rates, values = zip(*curve, strict=True)
        shown = [min(value, 2 * values[0] - min(values)) for value in values] if signal.endswith("loss") else values
        lines = text_chart(rates, shown, marks, width=width)
        return [f"{signal.replace('_', ' ')}, seed {self.seed}", *lines]


@dataclass(frozen=True)
class RangeTestRun:
    """The test of a study, repeated or not, and what it says."""

    study: str
    way: str | None
    """The strategy whose settings it has; None: those of range_tested."""
    tests: tuple[OneTest, ...]
    verdict: RangeTestVerdict
    """Of all tests together."""

    @property
    def seconds(self) -> float:
        return sum(test.seconds for test in self.tests)


def run_range_test(
    config: StudyConfig, *, way: str | None = None, repeats: int = 1, tell: Callable[[str], None] = lambda text: None
) -> RangeTestRun:
    """Run the range test of the strategy `way`, or of the first that has one, `repeats` times, and judge it.

    Seeds are the study's first and those that follow it. Raises UsageError when `way` has no range test,
    StudyFailedError when a test fails, DataError and WorkloadError before the first.
    """
    from lrsearch import training

    way, strategy = _strategy(config, way)
    plan = config.training_plan() if way is None else config.training_plan_of(way)
    seed = config.seeds[0]
    tell("Preparing workload and device ...")
    prepared = training.prepare(config.workload_choice(), plan, seed)
    plan, facts = replace(plan, precision=prepared.precision), prepared.facts
    tests = []
    for number in range(repeats):
        tests.append(_one_test(config, strategy, way or strategy.name, plan, seed + number, facts))
        tell(f"[{number + 1}/{repeats}] seed {seed + number}: {headline(tests[-1].verdict)}, {tests[-1].seconds:.2f} s")
    return RangeTestRun(config.name, way, tuple(tests), combine_verdicts([test.verdict for test in tests]))


def _strategy(config: StudyConfig, way: str | None) -> tuple[str | None, RangeTested]:
    tested = {key: strategy for key, strategy in config.strategies.items() if isinstance(strategy, RangeTested)}
    if way is None:
        return next(iter(tested.items()), (None, RangeTested()))
    if way not in tested:
        known = ", ".join(tested) or "none"
        raise UsageError(f"No way {way!r} with a range test; known: {known}.{did_you_mean(way, list(tested))}")
    return way, tested[way]


def _one_test(
    config: StudyConfig, strategy: RangeTested, key: str, plan: TrainingPlan, seed: int, facts: WorkloadFacts
) -> OneTest:
    from lrsearch.engine import run_trials

    history = History(
        config.name, key, seed, config.rates.low, config.rates.high, plan.optimizer, plan.epochs, facts, trials=()
    )
    [proposal] = strategy.propose(history, 1)
    spec = TrialSpec(f"{key}-{seed}", config.name, key, seed, 0, proposal, config.workload_choice(), plan)
    [result] = run_trials([spec], _Silent())
    if result.status == "failed":
        raise StudyFailedError(f"The range test with seed {seed} failed: {result.error}")
    assert proposal.range_test is not None, "the first proposal of range_tested"
    verdict = judge(result.range_test, result.facts or facts, proposal.range_test, plan.optimizer.name)
    seconds = charged_seconds(result.phase_seconds)
    return OneTest(seed, result.range_test, verdict, seconds, facts.metric, facts.higher_is_better, result.device)


class _Silent:
    """A channel for range tests, which send no curve points."""

    def report(self, uuid: str, point: CurvePoint) -> bool:
        return True


def write_page(run: RangeTestRun, path: Path) -> None:
    """Write an HTML page of the curves that needs no network. Raises StorageError when it cannot be written."""
    names = ("Learning rate", "Training loss", "Validation loss", "Validation metric")
    plots = [
        plot(
            f"seed-{test.seed}",
            f"Seed {test.seed}: {headline(test.verdict)}",
            f"The rate rises from step to step in one short run of {test.seconds:.3g} "
            f"{wording.seconds_noun(test.device.kind)}; a value is of the model after "
            "the step at its rate. Shaded is the range between base and max. Axes are cut where values became "
            "much worse than at the start.",
            test.figure().update_layout(title=None, margin={"t": 24}),
            Table(names, [_row(point) for point in test.points]),
        )
        for test in run.tests
    ]
    page = render_page("range_test.html", run=run, headline=headline(run.verdict), facts=list(_facts(run)), plots=plots)
    write_whole(page, path)


def _row(point: RangeTestPoint) -> tuple[str, ...]:
    values = (point.train_loss, point.validation_loss, point.validation_metric)
    return (wording.rate(point.learning_rate), *(wording.or_dash(one, wording.metric) for one in values))


def description(run: RangeTestRun, width: int) -> list[str]:
    """Return what came out as lines for a terminal: a chart for each test, then the verdict of all."""
    charts = [line for test in run.tests for line in [*test.chart(width), ""]]
    return [*charts, *(f"{name:<12} {text}" for name, text in _facts(run))]


def _facts(run: RangeTestRun) -> Iterator[tuple[str, str]]:
    found = run.verdict
    yield "verdict", found.status if found.reason is None else f"{found.status}, the curve ends by: {found.reason}"
    for name in ("base_lr", "max_lr", "constant_lr"):
        if (rate := getattr(found, name)) is not None:
            yield name, wording.rate(rate)
    if found.max_lr_interval is not None:
        kind = "10-90 % of a bootstrap" if len(run.tests) == 1 else "lowest to highest of the tests"
        low, high = map(wording.rate, found.max_lr_interval)
        yield "max_lr range", f"{low} to {high} ({kind})"
    yield "confidence", found.confidence + (f" ({', '.join(found.flags)})" if found.flags else "")
    yield "judged on", found.signal.replace("_", " ")
    device = run.tests[0].device
    yield "device time", f"{run.seconds:.2f} s on {device.name} ({device.kind})"
    yield "advice", found.advice


def as_document(run: RangeTestRun) -> dict[str, Any]:
    """Return the run as plain values: the verdict of all, and each test with its points."""
    return {"way": run.way, "seconds": run.seconds, **asdict(run)}
