"""What every strategy keeps to, and a search over a made-up objective to try it on."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from pydantic import BaseModel

from lrsearch.interfaces import Strategy
from lrsearch.trial import (
    Choice,
    CurvePoint,
    History,
    Proposal,
    RangeTestPlan,
    RangeTestPoint,
    ResultStatus,
    Trial,
    WorkloadFacts,
)

EPOCHS = 9
FACTS = WorkloadFacts(
    metric="accuracy",
    higher_is_better=True,
    chance=0.1,
    train_count=1000,
    validation_count=200,
    test_count=200,
    range_test_count=200,
    steps_per_epoch=30,
    batch_size=32,
    parameter_count=100,
    input_shape=(1, 8, 8),
    class_count=10,
    description="made up",
)
EMPTY = History("made-up", "way", 3, low=1e-5, high=10.0, optimizer=Choice("sgd"), epochs=EPOCHS, facts=FACTS)
BEST_RATE = 0.1
DIVERGES_ABOVE = 1.0


@dataclass(frozen=True)
class Outcome:
    status: ResultStatus
    validation_metric: float | None = None
    curve: tuple[CurvePoint, ...] = ()
    range_test: tuple[RangeTestPoint, ...] = ()


def rising(level: float) -> tuple[CurvePoint, ...]:
    """Return the curve of a trial that comes nearer to `level` by the epoch."""
    return curve(level * (1 - 0.5**epoch) for epoch in range(1, EPOCHS + 1))


Objective = Callable[[Proposal], Outcome]


def hill(proposal: Proposal) -> Outcome:
    """Accuracy falls by 0.1 per squared decade away from 0.1, and rates above 1 diverge; curves rise by the epoch."""
    if proposal.range_test is not None:
        return Outcome("completed", range_test=range_test_points(proposal.range_test))
    rate = proposal.learning_rate or 0.0
    if rate > DIVERGES_ABOVE:
        return Outcome("diverged")
    accuracy = max(0.1, 0.95 - 0.1 * math.log10(rate / BEST_RATE) ** 2)
    return Outcome("completed", accuracy, rising(accuracy))


def always(status: ResultStatus) -> Objective:
    """Return an objective that gives nothing but `status`, with one point on the curve of a pruned trial."""
    points = curve([0.2]) if status == "pruned" else ()
    return lambda proposal: Outcome(status, curve=points)


def curve(metrics: Iterable[float | None]) -> tuple[CurvePoint, ...]:
    """Return a curve with one point per epoch."""
    return tuple(
        CurvePoint(30 * epoch, float(epoch), 0.1, 1.0, 1.0, metric, float(epoch))
        for epoch, metric in enumerate(metrics, start=1)
    )


def range_test_points(plan: RangeTestPlan, count: int = 100) -> tuple[RangeTestPoint, ...]:
    """Return the curve of a model that learns from 1e-3 on, is at its best at 0.1 and falls apart above 1."""
    noise = random.Random(0)
    points = []
    for step in range(count):
        rate = plan.low * (plan.high / plan.low) ** (step / (count - 1))
        gain = min(1.0, max(0.0, math.log10(rate / 1e-3) / 2)) - max(0.0, 2 * math.log10(rate / DIVERGES_ABOVE))
        metric = min(1.0, max(0.1, 0.1 + 0.7 * gain + noise.gauss(0, 0.01)))
        points.append(RangeTestPoint(step, rate, 2.4 - 2 * metric, 2.4 - 2 * metric, metric))
    return tuple(points)


def planned(history: History, proposals: Sequence[Proposal]) -> History:
    """Return the history with `proposals` planned."""
    start = len(history.trials)
    trials = tuple(Trial(start + index, proposal, "planned") for index, proposal in enumerate(proposals))
    return replace(history, trials=history.trials + trials)


def finished(history: History, objective: Objective) -> History:
    """Return the history with its planned trials run."""
    return replace(history, trials=tuple(_run(trial, objective) for trial in history.trials))


def _run(trial: Trial, objective: Objective) -> Trial:
    if trial.status != "planned":
        return trial
    outcome = objective(trial.proposal)
    return Trial(
        trial.number,
        trial.proposal,
        outcome.status,
        validation_metric=outcome.validation_metric,
        curve=outcome.curve,
        range_test=outcome.range_test,
    )


def rounds(
    strategy: Strategy, objective: Objective = hill, *, slots: int = 1, history: History = EMPTY
) -> list[History]:
    """Return the history before each round of a whole search in synchronous rounds, and the final one."""
    histories = [history]
    while proposals := strategy.propose(histories[-1], slots):
        assert len(histories) < 1000, "the search does not end"
        histories.append(finished(planned(histories[-1], proposals), objective))
    return histories


def search(strategy: Strategy, objective: Objective = hill, *, slots: int = 1, history: History = EMPTY) -> History:
    """Return the history of a whole search."""
    return rounds(strategy, objective, slots=slots, history=history)[-1]


def rates(history: History) -> list[float]:
    """Return the learning rates of the training runs in order."""
    return [trial.proposal.learning_rate or 0.0 for trial in history.trials if trial.proposal.stage == "train"]


class StrategyContract:
    """Inherit it and give a fixture `make` that returns a new strategy, the same one every time."""

    trials_when_nothing_works: int | None = None
    """Length of a search whose trials all fail; None: as planned."""

    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        raise NotImplementedError

    @pytest.mark.parametrize("slots", [1, 3])
    def test_a_search_ends_after_the_planned_trials(self, make: Callable[[], Strategy], slots: int) -> None:
        assert len(search(make(), slots=slots).trials) == make().planned_trials

    @pytest.mark.parametrize("status", ["failed", "diverged", "pruned"])
    def test_trials_without_a_model_count_as_tried(self, make: Callable[[], Strategy], status: ResultStatus) -> None:
        expected = self.trials_when_nothing_works or make().planned_trials
        assert len(search(make(), always(status)).trials) == expected

    @pytest.mark.parametrize("slots", [1, 3])
    def test_a_restart_at_any_round_goes_on_the_same_way(self, make: Callable[[], Strategy], slots: int) -> None:
        histories = rounds(make(), slots=slots)
        for before, after in itertools.pairwise(histories):
            new = [trial.proposal for trial in after.trials[len(before.trials) :]]
            assert list(make().propose(before, slots)) == new

    def test_several_at_once_are_those_that_come_one_by_one(self, make: Callable[[], Strategy]) -> None:
        for history in rounds(make(), slots=3):
            at_once = make().propose(history, 3)
            for count in range(len(at_once)):
                assert make().propose(planned(history, at_once[:count]), 1)[:1] == at_once[count : count + 1]

    def test_no_more_than_asked_for_are_proposed(self, make: Callable[[], Strategy]) -> None:
        for count in range(4):
            assert len(make().propose(EMPTY, count)) <= count

    def test_a_search_with_all_trials_planned_proposes_nothing(self, make: Callable[[], Strategy]) -> None:
        history = search(make())
        waiting = replace(history, trials=tuple(Trial(t.number, t.proposal, "running") for t in history.trials))
        assert not make().propose(waiting, 3)

    def test_the_trained_rates_lie_in_the_range(self, make: Callable[[], Strategy]) -> None:
        assert all(EMPTY.low <= rate <= EMPTY.high for rate in rates(search(make())))

    def test_every_training_run_has_a_schedule_and_a_rate(self, make: Callable[[], Strategy]) -> None:
        trained = [t.proposal for t in search(make()).trials if t.proposal.stage == "train"]
        assert trained
        assert all(proposal.schedule is not None and proposal.learning_rate for proposal in trained)

    def test_global_generators_are_left_alone(self, make: Callable[[], Strategy]) -> None:
        before = random.getstate(), str(np.random.get_state(legacy=False))
        search(make())
        assert (random.getstate(), str(np.random.get_state(legacy=False))) == before

    def test_a_strategy_survives_the_way_through_the_database(self, make: Callable[[], Strategy]) -> None:
        strategy = make()
        assert isinstance(strategy, BaseModel)
        assert type(strategy).model_validate_json(strategy.model_dump_json()) == strategy
