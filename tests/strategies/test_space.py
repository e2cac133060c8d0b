from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from lrsearch.interfaces import Strategy
from lrsearch.strategies import OptunaSearch, RandomSearch, ScheduleTemplate
from lrsearch.strategies.space import Dimension, Searched, dimensions, value_in
from lrsearch.trial import Choice, History, Proposal, Trial
from tests.strategies.contract import EMPTY, Outcome, StrategyContract, finished, hill, planned, search

SGD = Choice("sgd", {"momentum": 0.9, "weight_decay": 0.0, "nesterov": False})
ADAM = Choice("adam", {"betas": [0.9, 0.999], "weight_decay": 0.0})
START = replace(EMPTY, optimizer=SGD)
CYCLES = ScheduleTemplate.model_validate({"name": "triangular2", "cycles": 2})
NUMBERS: dict[str, Any] = {
    "momentum": {"low": 0.5, "high": 0.99},
    "weight_decay": {"low": 1e-5, "high": 1e-2, "log": True},
    "cycles": {"low": 1, "high": 4},
}
ALL = {**NUMBERS, "batch_size": {"choices": [16, 32, 64]}}


def make_search(kind: type[Strategy], *, search: dict[str, Any], **settings: Any) -> Strategy:
    values = {"trials": 8, "schedule": CYCLES.model_dump(), "search": search, **settings}
    return kind.model_validate(values)  # type: ignore[attr-defined, no-any-return]  # all are pydantic models


class SearchesMore(StrategyContract):
    """The contract starts from a history whose optimizer has no settings, so that momentum is the schedule's there."""


class TestRandom(SearchesMore):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(make_search, RandomSearch, search=ALL)


class TestTpe(SearchesMore):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(make_search, OptunaSearch, sampler="tpe", startup_trials=3, search=ALL)


class TestGp(SearchesMore):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(make_search, OptunaSearch, sampler="gp", startup_trials=3, search=ALL, trials=5)


class TestCmaes(SearchesMore):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(make_search, OptunaSearch, sampler="cmaes", search=NUMBERS, trials=10)


class TestQmc(SearchesMore):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(make_search, OptunaSearch, sampler="qmc", search=NUMBERS)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (RandomSearch, {}),
        (OptunaSearch, {"sampler": "tpe", "startup_trials": 4}),
        (OptunaSearch, {"sampler": "gp", "startup_trials": 4}),
    ],
    ids=["random", "tpe", "gp"],
)
def test_what_is_drawn_lies_in_its_bounds_and_arrives_where_it_belongs(
    kind: type[Strategy], settings: dict[str, Any]
) -> None:
    for trial in search(make_search(kind, search=ALL, **settings), history=START).trials:
        proposal = trial.proposal
        assert proposal.optimizer is not None
        assert proposal.optimizer.name == "sgd"
        assert proposal.optimizer.settings["nesterov"] is False
        assert 0.5 <= proposal.optimizer.settings["momentum"] <= 0.99
        assert 1e-5 <= proposal.optimizer.settings["weight_decay"] <= 1e-2
        assert proposal.schedule is not None
        assert proposal.schedule.settings["cycles"] in (1, 2, 3, 4)
        assert isinstance(proposal.schedule.settings["cycles"], int)
        assert proposal.batch_size in (16, 32, 64)


def test_momentum_is_beta_1_of_adam() -> None:
    way = make_search(RandomSearch, search={"momentum": NUMBERS["momentum"]})
    (proposal,) = way.propose(replace(EMPTY, optimizer=ADAM), 1)
    assert proposal.optimizer is not None
    beta_1, beta_2 = proposal.optimizer.settings["betas"]
    assert 0.5 <= beta_1 <= 0.99
    assert beta_2 == 0.999
    assert value_in(proposal, "momentum") == beta_1


def test_searching_more_leaves_the_rates_of_a_random_search_as_they_were() -> None:
    plain = [trial.proposal.learning_rate for trial in search(RandomSearch(trials=5)).trials]
    more = search(make_search(RandomSearch, search=ALL, trials=5), history=START).trials
    assert [trial.proposal.learning_rate for trial in more] == plain


def test_tpe_finds_the_momentum_too() -> None:
    """Accuracy depends on momentum as well; guided draws must lie nearer to the best one than the random start."""

    def objective(proposal: Proposal) -> Outcome:
        outcome = hill(replace(proposal, learning_rate=0.1))
        momentum = value_in(proposal, "momentum")
        assert momentum is not None
        return Outcome("completed", (outcome.validation_metric or 0.0) - 2 * abs(momentum - 0.6))

    way = make_search(OptunaSearch, search={"momentum": NUMBERS["momentum"]}, startup_trials=10, trials=40)
    momenta = [float(value_in(t.proposal, "momentum") or 0) for t in search(way, objective, history=START).trials]
    off = [abs(momentum - 0.6) for momentum in momenta]
    assert sum(off[-15:]) / 15 < 0.5 * sum(off[:10]) / 10


def test_a_restart_with_other_values_than_were_stored_is_refused() -> None:
    from lrsearch.errors import UsageError

    way = make_search(OptunaSearch, sampler="qmc", search=NUMBERS)
    begun = finished(planned(START, way.propose(START, 1)), hill)
    [trial] = begun.trials
    optimizer = Choice("sgd", {**SGD.settings, "momentum": 0.51, "weight_decay": 1e-3})
    changed = replace(begun, trials=(replace(trial, proposal=replace(trial.proposal, optimizer=optimizer)),))
    with pytest.raises(UsageError, match=r"Trial 0 of .* has the momentum 0\.51, but asking its sampler again gives"):
        way.propose(changed, 1)


@given(
    low=st.integers(1, 50),
    width=st.integers(1, 50),
    log=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_whole_numbers_are_whole_and_in_bounds(low: int, width: int, log: bool, seed: int) -> None:
    drawn = Dimension("cycles", low, low + width, log, whole=True).draw(random.Random(seed))
    assert isinstance(drawn, int)
    assert low <= drawn <= low + width


def test_draws_are_even_and_even_in_the_logarithm() -> None:
    generator = random.Random(0)
    even = [Dimension("momentum", 0.5, 1.0).draw(generator) for _ in range(500)]
    assert stats.kstest(even, stats.uniform(loc=0.5, scale=0.5).cdf).pvalue > 0.001
    spread = [Dimension("weight_decay", 1e-5, 1e-1, log=True).draw(generator) for _ in range(500)]
    assert stats.kstest(spread, stats.loguniform(1e-5, 1e-1).cdf).pvalue > 0.001
    whole = [Dimension("cycles", 1, 4, whole=True).draw(generator) for _ in range(400)]
    assert stats.chisquare([whole.count(value) for value in (1, 2, 3, 4)]).pvalue > 0.001


def test_whole_ends_of_an_optimizers_setting_search_all_between() -> None:
    _, decay = dimensions(START, {"weight_decay": Searched(low=0, high=1)})
    assert not decay.whole
    assert 0 < decay.draw(random.Random(0)) < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs low and high, or choices"),
        ({"low": 1}, "needs low and high, or choices"),
        ({"low": 2, "high": 1}, "low must be smaller than high, got 2 and 1"),
        ({"low": 0, "high": 1, "log": True}, "log needs a low above 0, got 0"),
        ({"choices": [1, 2], "low": 1}, "choices stand alone; remove low, high and log"),
        ({"choices": [1, 1]}, "choices must differ from each other"),
        ({"choices": [1]}, "at least 2 items"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Searched.model_validate(settings)


def test_waiting_trials_do_not_disturb_a_generation() -> None:
    """CMA-ES waits for the end of a generation of 4 + floor(3 ln 4) = 8 in four dimensions."""
    way = make_search(OptunaSearch, sampler="cmaes", search=NUMBERS, trials=20)
    first = planned(START, way.propose(START, 20))
    assert len(first.trials) == 8
    running: History = replace(
        first, trials=tuple(Trial(trial.number, trial.proposal, "running") for trial in first.trials)
    )
    assert way.propose(running, 5) == []
