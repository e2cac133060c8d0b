"""What every schedule of the registry must keep."""

from __future__ import annotations

from collections.abc import Callable

from lrsearch.interfaces import Schedule
from lrsearch.schedules import SCHEDULES
from lrsearch.schedules.settings import filled_arguments

FILLING: dict[str, float] = {
    "learning_rate": 0.5,
    "base_lr": 0.01,
    "max_lr": 0.5,
    "total_steps": 100,
    "cycle_steps": 20,
    "first_cycle_steps": 20,
}


def made(name: str) -> Schedule:
    """Return the schedule of that name with its default settings and the rates and lengths of `FILLING`."""
    factory: Callable[..., Schedule] = SCHEDULES[name]
    return factory(**{key: FILLING[key] for key in filled_arguments(factory)})
