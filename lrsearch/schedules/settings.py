"""What a study file may say of a schedule, read off the signature of its factory."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, create_model, model_validator

from lrsearch.errors import UsageError
from lrsearch.interfaces import MOST_EPOCHS, Epochs, Schedule, Settings
from lrsearch.registry import lookup

RATES = ("learning_rate", "base_lr", "max_lr")
LENGTHS = ("total_steps", "cycle_steps", "first_cycle_steps")
FILLED = (*RATES, *LENGTHS)
"""Arguments of a factory that lrsearch fills in. Which of the lengths it takes tells how its run is planned."""
DEFAULT_CYCLES = 2
MIRRORED = ("triangular", "triangular2", "exp_range", "cyclical", "one_cycle")
"""The schedules that a momentum can mirror, as in torch's CyclicLR and OneCycleLR."""


class ScheduleSettings(Settings):
    """Base of all templates: what can be said of any schedule."""

    name: str
    warmup_epochs: Annotated[float, Field(ge=0, le=MOST_EPOCHS)] = 0.0
    """Epochs of the run that are taken for a warm-up in front of the schedule."""


class WithBounds(ScheduleSettings):
    """Of a factory with `base_lr`."""

    base_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """base_lr / max_lr where nobody gives base_lr: docs/method.md, section 5, clips it to max/10 at most."""


class WithCycles(ScheduleSettings):
    """Of a factory with `cycle_steps`."""

    cycles: Annotated[int, Field(ge=1)] | None = None
    """Whole cycles in the run; 2 unless `stepsize_epochs` is given."""
    stepsize_epochs: Epochs | None = None
    """Half a cycle in epochs; 2 to 10 in Smith, https://arxiv.org/abs/1506.01186, section 3.2."""

    @model_validator(mode="after")
    def _check_one_of_them(self) -> WithCycles:
        if self.cycles is not None and self.stepsize_epochs is not None:
            raise ValueError("cycles and stepsize_epochs exclude each other; give one of them")
        return self


class WithRestarts(ScheduleSettings):
    """Of a factory with `first_cycle_steps`."""

    cycles: Annotated[int, Field(ge=1)] = DEFAULT_CYCLES
    cycle_mult: Annotated[float, Field(ge=1)] = 1.0


class WithMomentum(ScheduleSettings):
    """Of a schedule that momentum can mirror: see `MIRRORED`."""

    base_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The momentum (Adam: beta 1) where the rate is at its highest; given with `max_momentum`, or none is scheduled."""
    max_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _check_momentum(self) -> WithMomentum:
        if (self.base_momentum is None) != (self.max_momentum is None):
            raise ValueError("base_momentum and max_momentum belong together; give both")
        if self.base_momentum is not None and self.max_momentum is not None and self.base_momentum > self.max_momentum:
            raise ValueError(
                f"base_momentum must not exceed max_momentum, got {self.base_momentum:g} and {self.max_momentum:g}"
            )
        return self


def filled_arguments(factory: Callable[..., Schedule]) -> set[str]:
    """Return the arguments of a factory that lrsearch fills in."""
    return set(inspect.signature(factory).parameters) & set(FILLED)


def own_settings(factory: Callable[..., Schedule], settings: ScheduleSettings) -> dict[str, Any]:
    """Return the settings that the factory itself takes; the others say how long its cycles are."""
    return {key: getattr(settings, key) for key in inspect.signature(factory).parameters if key not in FILLED}


@cache
def schedule_settings(name: str) -> type[ScheduleSettings]:
    """Return the model of what a study file may say of the schedule `name`. Raises UnknownNameError.

    >>> sorted(schedule_settings("polynomial").model_fields)
    ['final_fraction', 'name', 'power', 'warmup_epochs']
    """
    factory = find_factory(name)
    hints = get_type_hints(factory, include_extras=True)
    fields: dict[str, Any] = {
        key: (hints[key], ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for key, parameter in inspect.signature(factory).parameters.items()
        if key not in FILLED
    }
    return create_model(
        f"{name.title().replace('_', '')}Template",
        __base__=_bases(name, filled_arguments(factory)),
        __doc__=inspect.getdoc(factory),
        **{"name": (Literal[name], name), **fields},
    )


def find_factory(name: str) -> Callable[..., Schedule]:
    """Return the factory that `name` stands for, ours or a plug-in's."""
    from lrsearch.schedules import SCHEDULES  # here: the registry imports this module

    factory = lookup("schedule", SCHEDULES, name)
    if not callable(factory) or not filled_arguments(factory) & set(RATES):
        raise UsageError(f"The schedule {name!r} must be a function with an argument of {', '.join(RATES)}.")
    return factory


def _bases(name: str, filled: set[str]) -> tuple[type[ScheduleSettings], ...]:
    bases: list[type[ScheduleSettings]] = []
    if name in MIRRORED:
        bases.append(WithMomentum)
    if "base_lr" in filled:
        bases.append(WithBounds)
    if "cycle_steps" in filled:
        bases.append(WithCycles)
    if "first_cycle_steps" in filled:
        bases.append(WithRestarts)
    return tuple(bases) or (ScheduleSettings,)
