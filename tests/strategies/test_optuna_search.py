from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, TypeAlias, get_args

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from pydantic import ValidationError

from lrsearch.errors import UsageError
from lrsearch.interfaces import Strategy
from lrsearch.strategies import OptunaSearch
from lrsearch.strategies._optuna import stable_seed, told_value, worst_value
from lrsearch.strategies.optuna_search import generation_size
from lrsearch.trial import History, Proposal, ResultStatus, Trial, TrialStatus
from tests.strategies.contract import (
    BEST_RATE,
    EMPTY,
    FACTS,
    Outcome,
    StrategyContract,
    always,
    curve,
    finished,
    hill,
    planned,
    rates,
    search,
)

Sampler: TypeAlias = Literal["tpe", "gp", "cmaes", "qmc"]
SPACE: dict[str, BaseDistribution] = {"learning_rate": FloatDistribution(EMPTY.low, EMPTY.high, log=True)}


class TestTpe(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(OptunaSearch, sampler="tpe", trials=9, startup_trials=3)


class TestTpeWithPruner(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(OptunaSearch, sampler="tpe", trials=9, startup_trials=3, pruner="median")


class TestGp(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(OptunaSearch, sampler="gp", trials=6, startup_trials=3)


class TestTpeInRounds(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(OptunaSearch, sampler="tpe", trials=9, startup_trials=3, round_size=4)


class TestGpInRounds(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(OptunaSearch, sampler="gp", trials=6, startup_trials=3, round_size=2)


class TestCmaes(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(OptunaSearch, sampler="cmaes", trials=10)


class TestQmc(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(OptunaSearch, sampler="qmc", trials=8)


def decades_off(found: list[float]) -> float:
    """Return the mean distance from the best rate, in powers of ten."""
    return float(np.mean([abs(math.log10(rate / BEST_RATE)) for rate in found]))


def over_seeds(strategy: Strategy, count: int) -> list[History]:
    return [search(strategy, history=replace(EMPTY, seed=seed)) for seed in range(count)]


def edge(proposal: Proposal) -> Outcome:
    """Accuracy rises with the rate up to 0.01, and every rate above diverges: half of the range."""
    rate = proposal.learning_rate or 0.0
    return Outcome("diverged") if rate > 0.01 else Outcome("completed", max(0.1, 0.95 + 0.1 * math.log10(rate / 0.01)))


def rates_when_divergence_is_told_as_failure(seed: int, trials: int) -> list[float]:
    """Return what TPE proposes on `edge` when Optuna is told FAIL, as its manual shows for runs without a value."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(trials):
        trial = study.ask(SPACE)
        outcome = edge(Proposal("train", learning_rate=trial.params["learning_rate"]))
        failed = outcome.status == "diverged"
        study.tell(trial, outcome.validation_metric, optuna.trial.TrialState.FAIL if failed else None)
    return [trial.params["learning_rate"] for trial in study.trials]


def test_tpe_learns_from_divergence_because_it_is_told_as_the_worst_value() -> None:
    """The README's law 1, with ten seeds; counted are the diverging rates among the last 20 of 30.

    Tolerance: three standard errors of the difference of the two means, from the counts themselves. Measured: a mean of
    7.2 against 15.7.
    """
    strategy = OptunaSearch(sampler="tpe", trials=30)
    ours = [rates(search(strategy, edge, history=replace(EMPTY, seed=seed))) for seed in range(10)]
    theirs = [rates_when_divergence_is_told_as_failure(seed, 30) for seed in range(10)]
    few, many = (np.array([sum(rate > 0.01 for rate in found[-20:]) for found in each]) for each in (ours, theirs))
    standard_error = math.sqrt((few.var(ddof=1) + many.var(ddof=1)) / 10)
    assert many.mean() - few.mean() > 3 * standard_error


def trial(number: int, status: TrialStatus, metric: float | None = None, *, last: float | None = None) -> Trial:
    points = () if last is None else curve([0.5, last])
    return Trial(number, Proposal("train", learning_rate=0.1), status, validation_metric=metric, curve=points)


@pytest.mark.parametrize(
    ("chance", "higher_is_better", "metrics", "worst"),
    [
        (0.1, True, [0.9, 0.4], 0.1),
        (0.1, True, [0.9, 0.05], 0.05),  # below chance: a failed trial is never better than a finished one
        (None, True, [0.9, 0.4], 0.4),
        (None, False, [0.9, 0.4], 0.9),
        (2.5, False, [0.9, 0.4], 2.5),
        (None, True, [], 0.0),
        (None, True, [math.nan, 0.4], 0.4),
    ],
)
def test_the_worst_value_is_chance_or_the_worst_seen(
    chance: float | None, higher_is_better: bool, metrics: list[float], worst: float
) -> None:
    facts = replace(FACTS, chance=chance, higher_is_better=higher_is_better)
    trials = [trial(number, "completed", metric) for number, metric in enumerate(metrics)]
    assert worst_value(replace(EMPTY, facts=facts), [*trials, trial(9, "failed")]) == worst


def test_a_pruned_trial_is_worth_its_last_evaluation() -> None:
    assert told_value(trial(0, "pruned", last=0.3), worst=0.1) == 0.3
    assert told_value(trial(0, "pruned"), worst=0.1) == 0.1


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "qmc"])
def test_a_metric_that_should_be_low_is_minimised(sampler: Sampler) -> None:
    """The mirrored hill gives the very same search, whatever the sampler."""

    def valley(proposal: Proposal) -> Outcome:
        outcome = hill(proposal)
        return replace(outcome, validation_metric=outcome.validation_metric and -outcome.validation_metric)

    strategy = OptunaSearch(sampler=sampler, trials=14, startup_trials=None if sampler in ("cmaes", "qmc") else 6)
    low_is_better = replace(EMPTY, facts=replace(FACTS, higher_is_better=False, chance=-0.1))
    found = rates(search(strategy, valley, history=low_is_better))
    assert found == pytest.approx(rates(search(strategy)), rel=1e-6)


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 24), ("gp", 14), ("cmaes", 24)])
def test_guided_proposals_gather_at_the_optimum(sampler: Sampler, trials: int) -> None:
    """A random draw is (4^2 + 2^2) / (2 x 6) = 1.67 decades off on average.

    Its mean over 3 seeds x the last 4 proposals has a standard error of 1.1 / sqrt(12) = 0.32 (1.1: the spread of the
    distance of one draw), so that half of 1.67 is 2.6 of them away. Measured: 0.2 to 0.5 decades.
    """
    histories = over_seeds(OptunaSearch(sampler=sampler, trials=trials), 3)
    assert decades_off([rate for history in histories for rate in rates(history)[-4:]]) < 1.67 / 2


@pytest.mark.parametrize(
    ("strategy", "guided_from"),
    [
        (OptunaSearch(sampler="tpe", trials=12), 10),
        (OptunaSearch(sampler="tpe", trials=6, startup_trials=4), 4),
        (OptunaSearch(sampler="gp", trials=6, startup_trials=4), 4),
        (OptunaSearch(sampler="cmaes", trials=6), generation_size(1)),
        (OptunaSearch(sampler="qmc", trials=6), 6),
    ],
)
def test_proposals_say_whether_a_model_made_them(strategy: OptunaSearch, guided_from: int) -> None:
    guided = [trial.proposal.model_guided for trial in search(strategy).trials]
    assert guided == [number >= guided_from for number in range(strategy.trials)]


@pytest.mark.parametrize("status", ["pruned", "diverged", "failed"])
def test_startup_ends_whatever_became_of_the_trials(status: ResultStatus) -> None:
    samplers: tuple[Sampler, ...] = ("tpe", "gp")
    for sampler in samplers:
        strategy = OptunaSearch(sampler=sampler, trials=5, startup_trials=3)
        history = search(strategy, always(status))
        assert [trial.proposal.model_guided for trial in history.trials] == [False] * 3 + [True] * 2
        random = search(OptunaSearch(sampler=sampler, trials=5, startup_trials=5), always(status))
        assert rates(history)[:3] == rates(random)[:3]
        assert rates(history)[3] != rates(random)[3]


def test_cmaes_is_optunas_own_sampler_run_without_interruption() -> None:
    """The reference asks and tells one study by the generation, to the end; ours is rebuilt before every proposal."""
    sampler = optuna.samplers.CmaEsSampler(seed=stable_seed(EMPTY, 0), popsize=generation_size(1))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trial(optuna.trial.create_trial(value=0.0, params={"learning_rate": 1e-5}, distributions=SPACE))
    for _ in range(5):
        for asked in [study.ask(SPACE) for _ in range(generation_size(1))]:
            outcome = hill(Proposal("train", learning_rate=asked.params["learning_rate"]))
            study.tell(asked, outcome.validation_metric or 0.1)
    reference = [trial.params["learning_rate"] for trial in study.trials[1:]]
    ours = rates(search(OptunaSearch(sampler="cmaes", trials=5 * generation_size(1))))
    assert ours == pytest.approx(reference, rel=1e-12)


def test_cmaes_gives_the_same_search_for_every_number_of_slots() -> None:
    strategy = OptunaSearch(sampler="cmaes", trials=14)
    alone = rates(search(strategy))
    assert [rates(search(strategy, slots=slots)) for slots in (2, 3, 8)] == [alone] * 3


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_rounds_give_the_same_search_for_every_number_of_slots(sampler: Sampler) -> None:
    strategy = OptunaSearch(sampler=sampler, trials=10, startup_trials=4, round_size=4)
    alone = rates(search(strategy))
    assert len(set(alone)) == 10
    assert [rates(search(strategy, slots=slots)) for slots in (2, 3, 8)] == [alone] * 3


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_round_waits_for_the_end_of_the_one_before_and_then_goes_by_it(sampler: Sampler) -> None:
    strategy = OptunaSearch(sampler=sampler, trials=12, startup_trials=4, round_size=4)
    assert strategy.at_once == 4
    first = planned(EMPTY, strategy.propose(EMPTY, 8))
    assert len(first.trials) == 4
    half = replace(first, trials=(*finished(first, hill).trials[:3], first.trials[3]))
    assert strategy.propose(half, 8) == []
    high = strategy.propose(finished(first, lambda proposal: Outcome("completed", proposal.learning_rate)), 8)
    low = strategy.propose(finished(first, lambda proposal: Outcome("completed", -(proposal.learning_rate or 0))), 8)
    assert [proposal.model_guided for proposal in (*high, *low)] == [True] * 8
    assert [proposal.learning_rate for proposal in high] != [proposal.learning_rate for proposal in low]


def test_a_round_of_one_is_a_search_without_rounds() -> None:
    plain = OptunaSearch(trials=12, startup_trials=3)
    assert rates(search(OptunaSearch(trials=12, startup_trials=3, round_size=1))) == rates(search(plain))
    assert plain.at_once == 1


def test_cmaes_waits_for_the_end_of_a_generation() -> None:
    strategy = OptunaSearch(sampler="cmaes", trials=14)
    started = planned(EMPTY, strategy.propose(EMPTY, 8))
    assert len(started.trials) == generation_size(1)
    assert strategy.propose(started, 8) == []
    assert len(strategy.propose(finished(started, hill), 8)) == generation_size(1)


def test_cmaes_replays_even_when_a_later_trial_is_the_worst_so_far() -> None:
    """Without a chance level a failed trial is told as the worst value *of its time*: replay must not revise it."""
    outcomes = iter(
        [
            Outcome("failed"),
            *(Outcome("completed", metric) for metric in (0.5, 0.9, 0.8)),
            *[Outcome("completed", 0.3)] * 8,
        ]
    )
    history = replace(EMPTY, facts=replace(FACTS, chance=None))
    strategy = OptunaSearch(sampler="cmaes", trials=12)
    assert len(search(strategy, lambda proposal: next(outcomes), history=history).trials) == 12


def test_qmc_puts_one_of_sixteen_rates_into_each_sixteenth_of_the_range() -> None:
    for history in over_seeds(OptunaSearch(sampler="qmc", trials=16), 3):
        cells = [int((math.log10(rate) + 5) / 6 * 16) for rate in rates(history)]
        assert sorted(cells) == list(range(16))


def test_replay_refuses_a_history_that_its_sampler_did_not_make() -> None:
    strategy = OptunaSearch(sampler="qmc", trials=8)
    history = search(strategy, history=EMPTY)
    foreign = replace(history, seed=4, trials=history.trials[:3])
    with pytest.raises(UsageError, match=r"Trial 0 of made-up/way/4 has the learning rate .* start the study anew"):
        strategy.propose(foreign, 1)


def test_gp_keeps_away_from_what_is_running() -> None:
    """GP has one favourite spot, which another seed finds as well; the second proposal of a round goes elsewhere."""
    for history in over_seeds(OptunaSearch(sampler="gp", trials=14), 3):
        more = OptunaSearch(sampler="gp", trials=16)
        first, second = rates(planned(history, more.propose(history, 2)))[-2:]
        (other_seed,) = rates(planned(history, more.propose(replace(history, strategy="other"), 1)))[-1:]
        assert abs(math.log10(other_seed / first)) < 0.01
        assert abs(math.log10(second / first)) > 0.02


def test_a_fresh_process_proposes_the_same() -> None:
    """Nothing may hang on Python's hash(), which differs from process to process."""
    program = (
        "from tests.strategies.contract import *; from lrsearch.strategies import OptunaSearch; "
        "print(rates(search(OptunaSearch(sampler='tpe', trials=6, startup_trials=3))))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == str(rates(search(OptunaSearch(sampler="tpe", trials=6, startup_trials=3))))


@pytest.mark.parametrize(
    "way",
    [*(f"OptunaSearch(sampler={sampler!r}, trials=12)" for sampler in get_args(Sampler)), "Hyperband(trials=12)"],
)
def test_nothing_is_imported_on_a_trials_bill(way: str) -> None:
    """For a Gaussian process torch was, by the study's own process, in which it took 1.9 s of a trial of 0.1."""
    program = (
        "import sys; from tests.strategies.contract import *; from lrsearch.strategies import Hyperband, OptunaSearch; "
        f"way = {way}; way.import_all(EMPTY); known = set(sys.modules); search(way); print(set(sys.modules) - known)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def test_optunas_lines_are_kept_back_and_its_verbosity_is_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    verbosity = optuna.logging.get_verbosity()
    for sampler in get_args(Sampler):
        search(OptunaSearch(sampler=sampler, trials=2))
    assert capfd.readouterr().err == ""
    assert optuna.logging.get_verbosity() == verbosity


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "greater than or equal to 1"),
        ({"trials": 4, "sampler": "random"}, "Input should be 'tpe', 'gp', 'cmaes' or 'qmc'"),
        ({"trials": 4, "pruner": "medium"}, "Input should be 'none', 'median' or 'hyperband'"),
        (
            {"trials": 4, "sampler": "qmc", "startup_trials": 3},
            "startup_trials is for the samplers tpe and gp; qmc has",
        ),
        ({"trials": 4, "sampler": "cmaes", "round_size": 2}, "round_size is for .* cmaes has generations of its own"),
        ({"trials": 4, "pruner": "median", "round_size": 2}, "round_size does not go with a pruner"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptunaSearch.model_validate(settings)
