"""Learning-rate schedules: pure functions of the step, and the registry of those that a study file can name.

To add one, write a factory and name it here. Its arguments are keyword-only. Those in `settings.FILLED` are filled in
by lrsearch; all others are settings that a study file may give, with their types, ranges and defaults.
"""

from __future__ import annotations

from collections.abc import Callable

from lrsearch.interfaces import Schedule
from lrsearch.schedules.constant import constant
from lrsearch.schedules.cosine import cosine, cosine_restarts
from lrsearch.schedules.cyclical import (
    custom_cyclical,
    cyclical,
    exp_range,
    exp_range_paper,
    triangular,
    triangular2,
)
from lrsearch.schedules.decay import decay
from lrsearch.schedules.exponential import exponential
from lrsearch.schedules.one_cycle import one_cycle, one_cycle_momentum
from lrsearch.schedules.plan import PlannedSchedule, plan_schedule
from lrsearch.schedules.polynomial import linear_to_zero, polynomial
from lrsearch.schedules.settings import schedule_settings
from lrsearch.schedules.staged import staged
from lrsearch.schedules.step_decay import step_decay
from lrsearch.schedules.warmup import with_warmup
from lrsearch.schedules.warmup_stable_decay import warmup_stable_decay

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "cyclical": custom_cyclical,
    "decay": decay,
    "exp_range": exp_range,
    "exp_range_paper": exp_range_paper,
    "exponential": exponential,
    "linear_to_zero": linear_to_zero,
    "one_cycle": one_cycle,
    "polynomial": polynomial,
    "staged": staged,
    "step_decay": step_decay,
    "triangular": triangular,
    "triangular2": triangular2,
    "warmup_stable_decay": warmup_stable_decay,
}

__all__ = [
    "SCHEDULES",
    "PlannedSchedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclical",
    "decay",
    "exp_range",
    "exp_range_paper",
    "exponential",
    "linear_to_zero",
    "one_cycle",
    "one_cycle_momentum",
    "plan_schedule",
    "polynomial",
    "schedule_settings",
    "staged",
    "step_decay",
    "triangular",
    "triangular2",
    "warmup_stable_decay",
    "with_warmup",
]
