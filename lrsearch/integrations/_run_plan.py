"""What the schedule callbacks of all libraries are told, and the schedule of one run that follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from lrsearch.errors import UsageError
from lrsearch.finder import RangeTest
from lrsearch.interfaces import Schedule
from lrsearch.schedules import PlannedSchedule, plan_schedule
from lrsearch.trial import Choice

ScheduleLike: TypeAlias = "Schedule | str | Mapping[str, Any]"
"""A function from step to rate; or, with bounds, the name of a schedule or what a study file says of one, such as
{"name": "triangular2", "stepsize_epochs": 2}."""


class HasResult(Protocol):
    """A callback that will have run a range test by the time that training starts."""

    @property
    def result(self) -> RangeTest | None: ...


Bounds: TypeAlias = "tuple[float, float] | RangeTest | HasResult"
"""(base_lr, max_lr), a range test, or the callback that runs it."""


def check_schedule(schedule: ScheduleLike, bounds: Bounds | None, momentum: Schedule | None = None) -> None:
    """Raise UsageError unless these make a schedule; before anything is trained."""
    if callable(schedule):
        if bounds is not None:
            raise UsageError("A schedule that is a function has its rates in it; give bounds to a schedule's name.")
        return
    if bounds is None:
        raise UsageError(f"The schedule {schedule!r} needs bounds=: (base_lr, max_lr), or a range test.")
    if momentum is not None:
        raise UsageError("momentum= goes with a function; in a named schedule say base_momentum and max_momentum.")


def plan_run(
    schedule: ScheduleLike,
    bounds: Bounds | None,
    momentum: Schedule | None,
    *,
    total_steps: float | None,
    epoch_steps: float | None,
) -> PlannedSchedule:
    """Return the schedule of a run of `total_steps`; named cyclical ones end it with a whole cycle.

    Raises UsageError when the range test found no bounds, or when the length of the run is not known and needed.
    """
    if callable(schedule):
        return PlannedSchedule(schedule, _whole(total_steps) or 0, (), momentum)
    total, epoch = _whole(total_steps), _whole(epoch_steps)
    if total is None or epoch is None:
        raise UsageError("A named schedule needs a run of known length: say how many epochs, and steps per epoch.")
    named = {"name": schedule} if isinstance(schedule, str) else schedule
    choice = Choice(named["name"], {key: value for key, value in named.items() if key != "name"})
    return plan_schedule(choice, **_rates(bounds), total_steps=total, steps_per_epoch=epoch)


def stops_at(planned: PlannedSchedule, schedule: ScheduleLike) -> float:
    """Return the step after which to stop: a function says nothing about that."""
    return math.inf if callable(schedule) else planned.train_steps


def _whole(steps: float | None) -> int | None:
    return None if steps is None or not 0 < steps < math.inf else math.ceil(steps)


def _rates(bounds: Bounds | None) -> dict[str, float | None]:
    """Return the rates for cyclical schedules, and the one for those that hold a rate or let it decay."""
    if isinstance(bounds, tuple):
        base_lr, max_lr = bounds
        return {"learning_rate": max_lr, "base_lr": base_lr, "max_lr": max_lr}
    found = bounds if isinstance(bounds, RangeTest) else getattr(bounds, "result", None)
    if found is None:
        raise UsageError("The range test of bounds= has not run: put its callback in front of this one.")
    verdict = found.verdict
    if verdict.max_lr is None:
        raise UsageError(f"The range test found no bounds ({verdict.status}). {verdict.advice}")
    return {"learning_rate": verdict.constant_lr, "base_lr": verdict.base_lr, "max_lr": verdict.max_lr}
