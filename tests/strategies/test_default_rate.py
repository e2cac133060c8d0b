from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lrsearch.errors import UsageError
from lrsearch.interfaces import Strategy
from lrsearch.strategies import DefaultRate
from lrsearch.strategies.default_rate import USUAL_RATES
from lrsearch.trial import Choice
from tests.strategies.contract import EMPTY, StrategyContract


class TestDefaultRate(StrategyContract):
    @pytest.fixture
    def make(self) -> Callable[[], Strategy]:
        return DefaultRate


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta"])
def test_the_usual_rates_are_torchs_defaults(name: str) -> None:
    default = inspect.signature(getattr(torch.optim, name)).parameters["lr"].default
    assert USUAL_RATES[name.lower()] == default


def test_a_given_rate_comes_before_the_usual_one() -> None:
    (proposal,) = DefaultRate(learning_rate=0.3).propose(EMPTY, 1)
    assert proposal.learning_rate == 0.3


def test_an_optimizer_without_a_custom_is_refused_with_a_way_out() -> None:
    history = replace(EMPTY, optimizer=Choice("lion"))
    with pytest.raises(UsageError, match=r"no usual learning rate for optimizer 'lion'; known: .*sgd.*'learning_rate'"):
        DefaultRate().propose(history, 1)
    assert DefaultRate(learning_rate=1e-4).propose(history, 1)[0].learning_rate == 1e-4
