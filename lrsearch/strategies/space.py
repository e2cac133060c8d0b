"""What a search draws: the rate, and what the study file adds of optimizer, schedule and batch size."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from lrsearch.interfaces import Settings
from lrsearch.trial import Choice, History, Proposal

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RATE = "learning_rate"
BATCH_SIZE = "batch_size"
Number = int | float


class Searched(Settings):
    """`low` and `high`, even in the logarithm with `log`, or `choices`.

    Whole ends search whole numbers, except for settings of the optimizer: none of those that are searched is one.
    """

    low: Number | None = None
    high: Number | None = None
    log: bool = False
    choices: Annotated[tuple[Number, ...], Field(min_length=2)] | None = None

    @model_validator(mode="after")
    def _check_form(self) -> Searched:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices stand alone; remove low, high and log")
            if len(set(self.choices)) < len(self.choices):
                raise ValueError(f"choices must differ from each other, got {list(self.choices)}")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low must be smaller than high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, got {self.low:g}")
        return self

    @property
    def extremes(self) -> tuple[Number, ...]:
        """The values that stand for all others when a study file is checked."""
        return self.choices or tuple(end for end in (self.low, self.high) if end is not None)


@dataclass(frozen=True)
class Dimension:
    """One number that a search draws: from `low` to `high`, or one of `choices`."""

    name: str
    low: Number = 0.0
    high: Number = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Number, ...] = ()

    def clip(self, value: Number) -> Number:
        """Return `value` without what rounding put outside of the ends."""
        return value if self.choices else min(max(value, self.low), self.high)

    def distribution(self) -> BaseDistribution:
        """Return it as Optuna's."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def draw(self, generator: random.Random) -> Number:
        if self.choices:
            return generator.choice(self.choices)
        if self.whole and not self.log:
            return generator.randint(int(self.low), int(self.high))
        if not self.log:
            return generator.uniform(self.low, self.high)
        # Whole numbers share the logarithm from low - 1/2 to high + 1/2, as Optuna's do.
        half = 0.5 if self.whole else 0.0
        value = math.exp(generator.uniform(math.log(self.low - half), math.log(self.high + half)))
        return self.clip(round(value) if self.whole else value)


def dimensions(history: History, search: Mapping[str, Searched]) -> list[Dimension]:
    """Return what is drawn, the rate first."""
    rate = Dimension(RATE, history.low, history.high, log=True)
    return [rate, *(dimension(history.optimizer, name, searched) for name, searched in search.items())]


def dimension(optimizer: Choice, name: str, searched: Searched) -> Dimension:
    """Return what `searched` says of `name` as a number to draw."""
    if searched.choices is not None:
        return Dimension(name, choices=searched.choices)
    assert searched.low is not None, "Searched checks it"
    assert searched.high is not None, "Searched checks it"
    whole = isinstance(searched.low, int) and isinstance(searched.high, int)
    if is_of_optimizer(optimizer.settings, name):
        return Dimension(name, float(searched.low), float(searched.high), searched.log)
    return Dimension(name, searched.low, searched.high, searched.log, whole)


def is_of_optimizer(settings: Mapping[str, object], name: str) -> bool:
    """Return whether an optimizer with these settings has that one; beta 1 counts as momentum."""
    return name in settings or (name == "momentum" and "betas" in settings)


def with_setting(settings: Mapping[str, object], name: str, value: Number) -> dict[str, object]:
    """Return the settings of an optimizer with one changed; momentum is beta 1 where there are betas."""
    betas = settings.get("betas")
    if name == "momentum" and isinstance(betas, Sequence):
        return {**settings, "betas": (value, *betas[1:])}
    return {**settings, name: value}


def with_values(training: Proposal, history: History, values: Mapping[str, Number]) -> Proposal:
    """Return `training` with what was drawn put where it belongs."""
    proposal = training
    for name, value in values.items():
        if name == RATE:
            proposal = replace(proposal, learning_rate=float(value))
        elif name == BATCH_SIZE:
            proposal = replace(proposal, batch_size=int(value))
        elif is_of_optimizer(history.optimizer.settings, name):
            optimizer = proposal.optimizer or history.optimizer
            proposal = replace(
                proposal, optimizer=Choice(optimizer.name, with_setting(optimizer.settings, name, value))
            )
        else:
            assert proposal.schedule is not None, "a training run has a schedule"
            settings = {**proposal.schedule.settings, name: value}
            proposal = replace(proposal, schedule=Choice(proposal.schedule.name, settings))
    return proposal


def value_in(proposal: Proposal, name: str) -> Number | None:
    """Return what was drawn for `name` when `proposal` was made."""
    if name == RATE:
        return proposal.learning_rate
    if name == BATCH_SIZE:
        return proposal.batch_size
    settings = proposal.optimizer.settings if proposal.optimizer else {}
    if name == "momentum" and "betas" in settings:
        return float(settings["betas"][0])
    value = settings.get(name, proposal.schedule.settings.get(name) if proposal.schedule else None)
    return value if isinstance(value, int | float) else None
