from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError

from lrsearch.interfaces import Strategy
from lrsearch.range_test import combine_verdicts, judge
from lrsearch.schedules import SCHEDULES, plan_schedule
from lrsearch.strategies import RangeTested, ScheduleTemplate, verdict_of
from lrsearch.trial import Choice, Proposal, RangeTestPlan, RangeTestPoint, Trial
from tests.strategies.contract import (
    DIVERGES_ABOVE,
    EMPTY,
    FACTS,
    Outcome,
    StrategyContract,
    always,
    hill,
    planned,
    range_test_points,
    search,
)


class TestRangeTested(StrategyContract):
    trials_when_nothing_works = 1

    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return RangeTested


class TestRepeats(StrategyContract):
    trials_when_nothing_works = 3

    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(RangeTested, repeats=3)


class TestGivenBounds(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(RangeTested, base_lr=0.01, max_lr=0.1)


def test_repeats_are_tests_of_their_own_and_the_log_median_of_their_bounds_is_trained() -> None:
    history = search(RangeTested(repeats=3))
    tests = [trial.proposal.range_test for trial in history.trials[:3]]
    assert [test.repeat for test in tests if test is not None] == [0, 1, 2]
    verdicts = [verdict_of(replace(history, trials=(trial,))) for trial in history.trials[:3]]
    combined = combine_verdicts([verdict for verdict in verdicts if verdict is not None])
    trained = history.trials[3].proposal
    assert (trained.base_lr, trained.max_lr) == (combined.base_lr, combined.max_lr)


def test_a_repeat_that_failed_leaves_the_bounds_to_the_others() -> None:
    def second_fails(proposal: Proposal) -> Outcome:
        test = proposal.range_test
        return Outcome("failed") if test is not None and test.repeat == 1 else hill(proposal)

    assert [trial.proposal.stage for trial in search(RangeTested(repeats=3), second_fails).trials][-1] == "train"


def test_a_search_with_shared_tests_only_trains() -> None:
    first = search(RangeTested(test="once_per_study"))
    shared = tuple(trial for trial in first.trials if trial.proposal.stage == "range_test")
    other = search(RangeTested(test="once_per_study"), history=replace(EMPTY, seed=9, shared_tests=shared))
    assert [trial.proposal for trial in other.trials] == [first.trials[1].proposal]


def test_an_optimizer_and_epochs_of_its_own_travel_with_the_proposals() -> None:
    way = RangeTested.model_validate({"optimizer": {"name": "adam", "eps": 1e-7}, "epochs": 4})
    test, training = (trial.proposal for trial in search(way).trials)
    assert test.optimizer == training.optimizer == Choice("adam", {"eps": 1e-7})
    assert training.epochs == 4


def test_given_bounds_are_trained_between_without_a_test() -> None:
    way = RangeTested(base_lr=0.01, max_lr=0.06, schedule=ScheduleTemplate(name="decay"))
    assert way.planned_trials == 1
    assert [trial.proposal for trial in search(way).trials] == [
        Proposal("train", Choice("decay"), learning_rate=0.06, base_lr=0.01, max_lr=0.06)
    ]


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_starts_from_given_bounds_or_from_max_lr_alone(name: str) -> None:
    for way in (RangeTested(base_lr=0.01, max_lr=0.1), RangeTested(max_lr=0.1)):
        (proposal,) = way.propose(EMPTY, 1)
        planned = plan_schedule(
            Choice(name),
            learning_rate=proposal.learning_rate,
            base_lr=proposal.base_lr,
            max_lr=proposal.max_lr,
            total_steps=200,
            steps_per_epoch=20,
        )
        peak = max(planned.rate(step) for step in range(planned.train_steps))
        assert peak == pytest.approx(0.1, rel=0.02)
        assert peak <= 0.1 * (1 + 1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_lr": 0.1}, "base_lr and tested_with belong to bounds that are given; add max_lr"),
        ({"tested_with": {"momentum": 0.9}}, "add max_lr"),
        ({"base_lr": 0.1, "max_lr": 0.1}, r"base_lr must be smaller than max_lr, got 0\.1 and 0\.1"),
        (
            {"max_lr": 0.1, "min_steps": 200, "low": 1e-3},
            "no range test is run when max_lr is given; remove min_steps, low",
        ),
        ({"max_lr": 0}, "greater than 0"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RangeTested.model_validate(settings)


def test_the_range_test_covers_the_studys_range_with_methods_defaults() -> None:
    (proposal,) = RangeTested().propose(EMPTY, 2)
    assert proposal == Proposal("range_test", range_test=RangeTestPlan(1e-5, 10.0, "exponential", 2.0, 100, "default"))


def test_a_range_of_its_own_comes_before_the_studys() -> None:
    (proposal,) = RangeTested(low=1e-4, ladder="linear", policy="smith2015").propose(EMPTY, 1)
    assert proposal.range_test == RangeTestPlan(1e-4, 10.0, "linear", 2.0, 100, "smith2015")


def test_one_training_run_follows_with_the_verdicts_rates() -> None:
    history = search(RangeTested())
    plan = RangeTestPlan(1e-5, 10.0)
    verdict = judge(range_test_points(plan), FACTS, plan, "sgd")
    training = history.trials[1].proposal
    assert training.stage == "train"
    assert (training.base_lr, training.max_lr) == (verdict.base_lr, verdict.max_lr)
    assert training.learning_rate == verdict.constant_lr
    assert training.schedule == Choice("triangular2", {"cycles": 2})


def test_the_rates_make_sense_on_a_curve_that_falls_apart_above_one() -> None:
    """docs/method.md, section 5: base_lr between max/30 and max/10, and max/2 as the constant rate of SGD."""
    training = search(RangeTested()).trials[1].proposal
    base_lr, max_lr = training.base_lr or 0.0, training.max_lr or 0.0
    assert DIVERGES_ABOVE / 2 < max_lr < DIVERGES_ABOVE * 2
    assert max_lr / 30 * 0.999 <= base_lr <= max_lr / 10 * 1.001
    assert training.learning_rate == pytest.approx(max_lr / 2)


def test_adam_gets_a_fifth_of_max_lr_as_its_constant_rate() -> None:
    training = search(RangeTested(), history=replace(EMPTY, optimizer=Choice("adam"))).trials[1].proposal
    assert training.max_lr
    assert training.learning_rate == pytest.approx(training.max_lr / 5)


def test_a_range_test_that_diverged_is_judged_like_a_completed_one() -> None:
    def diverging(proposal: Proposal) -> Outcome:
        return replace(hill(proposal), status="diverged")

    assert search(RangeTested(), diverging).trials[1].proposal == search(RangeTested()).trials[1].proposal


def flat(proposal: Proposal) -> Outcome:
    points = tuple(RangeTestPoint(i, 1e-5 * 10 ** (6 * i / 99), 2.3, 2.3, 0.1) for i in range(100))
    return Outcome("completed", range_test=points)


@pytest.mark.parametrize(
    "objective", [flat, always("completed"), always("failed")], ids=["learns nothing", "no point", "error"]
)
def test_a_range_test_without_bounds_ends_the_search_without_a_model(objective: Callable[[Proposal], Outcome]) -> None:
    assert [trial.proposal.stage for trial in search(RangeTested(), objective).trials] == ["range_test"]


def test_the_verdict_tells_why_there_is_no_model() -> None:
    verdict = verdict_of(search(RangeTested(), flat))
    assert verdict is not None
    assert (verdict.status, verdict.max_lr) == ("never_learns", None)
    assert verdict.advice


def test_there_is_no_verdict_before_the_range_test_has_ended() -> None:
    waiting = planned(EMPTY, RangeTested().propose(EMPTY, 1))
    assert verdict_of(EMPTY) is None
    assert verdict_of(waiting) is None
    assert RangeTested().propose(waiting, 1) == []


def test_a_failed_range_test_has_no_verdict_even_with_a_curve() -> None:
    (proposal,) = RangeTested().propose(EMPTY, 1)
    assert proposal.range_test is not None
    failed = Trial(0, proposal, "failed", range_test=range_test_points(proposal.range_test))
    assert verdict_of(replace(EMPTY, trials=(failed,))) is None


def test_an_upside_down_range_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"low must be smaller than high, got 1 and 0\.1"):
        RangeTested(low=1.0, high=0.1)
