from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from scipy import stats

from lrsearch.interfaces import Strategy
from lrsearch.strategies import RandomSearch
from tests.strategies.contract import EMPTY, StrategyContract, rates, search


class TestRandomSearch(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return partial(RandomSearch, trials=7)


def test_draws_are_uniform_in_the_logarithm() -> None:
    # Kolmogorov-Smirnov on fixed draws: a right sampler falls below p = 0.001 for one seed in a thousand.
    drawn = [proposal.learning_rate or 0.0 for proposal in RandomSearch(trials=500).propose(EMPTY, 500)]
    decades = [math.log10(rate) for rate in drawn]
    assert stats.kstest(decades, stats.uniform(loc=-5, scale=6).cdf).pvalue > 0.001


def test_draws_do_not_depend_on_the_number_of_trials() -> None:
    assert rates(search(RandomSearch(trials=4))) == rates(search(RandomSearch(trials=9)))[:4]


def test_every_search_has_draws_of_its_own() -> None:
    histories = [EMPTY, replace(EMPTY, seed=4), replace(EMPTY, strategy="other"), replace(EMPTY, study="other")]
    firsts = {rates(search(RandomSearch(trials=1), history=history))[0] for history in histories}
    assert len(firsts) == 4
