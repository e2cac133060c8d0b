"""From a template and the rates that a strategy found to the schedule of one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from pydantic import ValidationError

from lrsearch.errors import UsageError
from lrsearch.interfaces import Schedule
from lrsearch.schedules.cosine import cycle_start
from lrsearch.schedules.one_cycle import one_cycle_momentum
from lrsearch.schedules.settings import (
    DEFAULT_CYCLES,
    ScheduleSettings,
    WithBounds,
    WithCycles,
    WithMomentum,
    WithRestarts,
    filled_arguments,
    find_factory,
    own_settings,
    schedule_settings,
)
from lrsearch.schedules.staged import Stage, planned_stages
from lrsearch.schedules.warmup import with_warmup
from lrsearch.trial import Choice


@dataclass(frozen=True)
class PlannedSchedule:
    """The schedule of one run and how long it is to last."""

    rate: Schedule
    train_steps: int
    """At most the steps that were asked for; cyclical schedules stop at the end of a whole cycle."""
    cycle_ends: tuple[int, ...]
    """The numbers of steps after which a cycle has just ended, where the model may be judged; the last is
    `train_steps`. A decaying run is one such fall; a constant rate has none."""
    momentum: Schedule | None = None
    """Momentum (Adam: beta 1) by step; None leaves the optimizer's alone."""


@dataclass(frozen=True)
class _Length:
    """How many steps a run has; the argument that tells a factory so."""

    argument: Mapping[str, int]
    train_steps: int
    cycle_ends: tuple[int, ...]


def plan_schedule(
    choice: Choice,
    *,
    learning_rate: float | None,
    base_lr: float | None,
    max_lr: float | None,
    total_steps: int,
    steps_per_epoch: int,
) -> PlannedSchedule:
    """Return the schedule that `choice` stands for, with these rates, within `total_steps` steps.

    Schedules that hold a rate or decay start from `learning_rate`. Those between bounds take `max_lr`, or else
    `learning_rate`, and `base_lr`, or else a fraction of the upper bound. Raises UsageError when a rate is missing or
    the run is too short.
    """
    settings = _checked_settings(choice)
    factory = find_factory(choice.name)
    needed = filled_arguments(factory)
    rates = _rates(choice.name, needed, settings, learning_rate, base_lr, max_lr)
    warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
    length = _length(choice.name, needed, settings, total_steps - warmup_steps, steps_per_epoch)
    own = own_settings(factory, settings)
    if "stages" in own:
        length = _stages(rates, length.train_steps, own["stages"])
    rate = factory(**rates, **length.argument, **own)
    momentum = _momentum(choice.name, settings, {**length.argument, **own})
    return PlannedSchedule(
        with_warmup(rate, warmup_steps) if warmup_steps else rate,
        warmup_steps + length.train_steps,
        tuple(warmup_steps + end for end in length.cycle_ends),
        (lambda step: momentum(max(0, step - warmup_steps))) if momentum else None,
    )


def _stages(rates: Mapping[str, float], total_steps: int, stages: Sequence[Stage]) -> _Length:
    """Return the length of a run of stages, each of which stops at the end of a whole cycle."""
    parts = planned_stages(rates["base_lr"], rates["max_lr"], total_steps, stages)
    ends = [0, *accumulate(part.train_steps for part in parts)]
    cycle_ends = tuple(end + start for start, part in zip(ends, parts, strict=False) for end in part.cycle_ends)
    return _Length({"total_steps": total_steps}, ends[-1], cycle_ends)


def _momentum(name: str, settings: ScheduleSettings, arguments: Mapping[str, Any]) -> Schedule | None:
    """Return the momentum that mirrors the schedule: highest where the rate is lowest; None where it is not asked for.

    As in torch's CyclicLR the height shrinks with the rate's; of `one_cycle` it is that of OneCycleLR.
    """
    if not isinstance(settings, WithMomentum) or settings.base_momentum is None or settings.max_momentum is None:
        return None
    if name == "one_cycle":
        shape = {key: arguments[key] for key in ("total_steps", "pct_start", "anneal", "three_phase")}
        return one_cycle_momentum(base_momentum=settings.base_momentum, max_momentum=settings.max_momentum, **shape)
    return find_factory(name)(base_lr=settings.max_momentum, max_lr=settings.base_momentum, **arguments)


def _checked_settings(choice: Choice) -> ScheduleSettings:
    model = schedule_settings(choice.name)
    try:
        return model(**choice.settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("schedule", choice.name, *first["loc"]))
        raise UsageError(f"{place}: {first['msg']}, got {first['input']!r}.") from error


def _rates(
    name: str,
    needed: set[str],
    settings: ScheduleSettings,
    learning_rate: float | None,
    base_lr: float | None,
    max_lr: float | None,
) -> dict[str, float]:
    """Return the rates that the factory takes."""
    rates: dict[str, float] = {}
    if "learning_rate" in needed:
        rates["learning_rate"] = _given(name, "learning_rate", learning_rate)
    if "max_lr" in needed:
        rates["max_lr"] = _given(name, "max_lr or learning_rate", learning_rate if max_lr is None else max_lr)
    if "base_lr" in needed:
        assert isinstance(settings, WithBounds), "the template of a factory with base_lr"
        rates["base_lr"] = (
            rates["max_lr"] * settings.base_fraction if base_lr is None else _given(name, "base_lr", base_lr)
        )
        if not rates["base_lr"] < rates["max_lr"]:
            raise UsageError(
                f"The schedule {name!r} needs base_lr below max_lr, got {rates['base_lr']:g} and {rates['max_lr']:g}."
            )
    return rates


def _given(name: str, what: str, rate: float | None) -> float:
    if rate is None:
        raise UsageError(f"The schedule {name!r} needs {what}, and the strategy gave none.")
    if not (0 < rate < math.inf):
        raise UsageError(f"The schedule {name!r} needs a positive {what}, got {rate}.")
    return rate


def _length(name: str, needed: set[str], settings: ScheduleSettings, total_steps: int, steps_per_epoch: int) -> _Length:
    """Return the length of the run; `needed` tells which kind it is."""
    if total_steps < 1:
        raise UsageError(f"The schedule {name!r} has {total_steps} steps left after its warm-up; train longer.")
    if "cycle_steps" in needed:
        return _cycles(name, settings, total_steps, steps_per_epoch)
    if "first_cycle_steps" in needed:
        return _restarts(name, settings, total_steps)
    if "total_steps" in needed:
        return _Length({"total_steps": total_steps}, total_steps, (total_steps,))
    return _Length({}, total_steps, ())


def _cycles(name: str, settings: ScheduleSettings, total_steps: int, steps_per_epoch: int) -> _Length:
    """Return as many whole cycles of an even number of steps as fit.

    >>> _cycles("triangular", schedule_settings("triangular")(name="triangular", cycles=3), 100, 10)
    _Length(argument={'cycle_steps': 32}, train_steps=96, cycle_ends=(32, 64, 96))
    """
    assert isinstance(settings, WithCycles), "the template of a factory with cycle_steps"
    if settings.stepsize_epochs is None:
        count = settings.cycles or DEFAULT_CYCLES
        cycle_steps = total_steps // count // 2 * 2
    else:
        cycle_steps = 2 * max(1, round(settings.stepsize_epochs * steps_per_epoch))
        count = total_steps // cycle_steps
    if cycle_steps < 2 or count < 1:
        wanted = f"{count} cycles" if settings.stepsize_epochs is None else f"one cycle of {cycle_steps} steps"
        raise UsageError(
            f"The schedule {name!r} does not fit: {wanted} in {total_steps} steps; train longer or ask less."
        )
    ends = tuple(cycle_steps * number for number in range(1, count + 1))
    return _Length({"cycle_steps": cycle_steps}, ends[-1], ends)


def _restarts(name: str, settings: ScheduleSettings, total_steps: int) -> _Length:
    """Return the longest first cycle with which all cycles fit.

    >>> model = schedule_settings("cosine_restarts")
    >>> _restarts("cosine_restarts", model(name="cosine_restarts", cycles=3, cycle_mult=2), 100)
    _Length(argument={'first_cycle_steps': 14}, train_steps=98, cycle_ends=(14, 42, 98))
    """
    assert isinstance(settings, WithRestarts), "the template of a factory with first_cycle_steps"
    count, mult = settings.cycles, settings.cycle_mult
    try:
        first = int(total_steps / cycle_start(count, 1, mult))
    except OverflowError:  # the last cycle would be longer than any number
        first = 0
    if first < 1:
        raise UsageError(f"The schedule {name!r} does not fit: {count} cycles in {total_steps} steps; train longer.")
    ends = tuple(math.ceil(cycle_start(number, first, mult)) for number in range(1, count + 1))
    return _Length({"first_cycle_steps": first}, ends[-1], ends)
