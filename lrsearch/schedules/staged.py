"""Several schedules one after another in one run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, field_validator

from lrsearch.errors import UnknownNameError
from lrsearch.interfaces import Schedule, Settings
from lrsearch.schedules._run import Positive, check_steps, within

if TYPE_CHECKING:
    from lrsearch.schedules.plan import PlannedSchedule


class Stage(Settings):
    """A part of a run: `share` of its steps, in proportion to the other parts', at `rate_factor` times the rates."""

    schedule: dict[str, Any]
    share: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    rate_factor: Positive = 1.0

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, values: dict[str, Any]) -> dict[str, Any]:
        from lrsearch.schedules.settings import schedule_settings  # here: the registry imports this module

        if not isinstance(values.get("name"), str):
            raise ValueError("needs a name")
        if {"stepsize_epochs", "warmup_epochs"} & values.keys() or values["name"] == "staged":
            raise ValueError("a stage has whole cycles, no warm-up and no stages: give cycles instead")
        if {"base_momentum", "max_momentum"} & values.keys():
            raise ValueError("the momentum of stages is that of the optimizer: remove base_momentum and max_momentum")
        try:
            schedule_settings(values["name"]).model_validate(values)
        except UnknownNameError as error:
            raise ValueError(str(error)) from error
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        return values


TABLE_2 = tuple(
    # Unchecked: while this is imported the registry of schedules is not yet there.
    Stage.model_construct(schedule={"name": "triangular2", "cycles": cycles}, share=share, rate_factor=factor)
    for cycles, share, factor in ((4, 16.0, 1.0), (3, 6.0, 0.1), (3, 3.0, 0.01))
)
"""Smith, https://arxiv.org/abs/1506.01186, table 2: 16,000, 6,000 and 3,000 iterations."""


def staged(
    *,
    base_lr: float,
    max_lr: float,
    total_steps: int,
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = TABLE_2,
) -> Schedule:
    """Follow one schedule after another, each with its share of the run and its factor on the rates.

    Schedules that hold a rate or decay start from `max_lr`. The default is table 2 of Smith's paper,
    https://arxiv.org/abs/1506.01186: its bounds are 0.001 and 0.005.

    >>> schedule = staged(base_lr=0.001, max_lr=0.005, total_steps=25000)
    >>> [round(schedule(step), 9) for step in (0, 2000, 6000, 16000, 17000, 22000, 22500)]
    [0.001, 0.005, 0.003, 0.0001, 0.0005, 1e-05, 5e-05]
    """
    parts = planned_stages(base_lr, max_lr, total_steps, stages)
    ends = list(accumulate(part.train_steps for part in parts))

    def schedule(step: int) -> float:
        at = within(step, ends[-1])
        index = bisect_right(ends, at)
        return parts[index].rate(at - ends[index] + parts[index].train_steps)

    return schedule


def planned_stages(base_lr: float, max_lr: float, total_steps: int, stages: Sequence[Stage]) -> list[PlannedSchedule]:
    """Return the plan of each stage. Raises UsageError when one does not fit."""
    from lrsearch.schedules.plan import plan_schedule  # here: the registry imports this module
    from lrsearch.trial import Choice

    check_steps(total_steps=total_steps)
    whole = sum(stage.share for stage in stages)
    ends = [round(total_steps * share / whole) for share in accumulate(stage.share for stage in stages)]
    return [
        plan_schedule(
            Choice(stage.schedule["name"], stage.schedule),
            learning_rate=max_lr * stage.rate_factor,
            base_lr=base_lr * stage.rate_factor,
            max_lr=max_lr * stage.rate_factor,
            total_steps=end - start,
            steps_per_epoch=1,
        )
        for start, end, stage in zip([0, *ends], ends, stages, strict=False)
    ]
