"""A rate that drops at fixed points of the run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lrsearch.interfaces import Schedule
from lrsearch.schedules._run import ProperFraction, check_steps, within


def step_decay(
    *,
    learning_rate: float,
    total_steps: int,
    factor: ProperFraction = 0.1,
    milestones: Annotated[tuple[ProperFraction, ...], Field(min_length=1)] = (0.5, 0.75),
) -> Schedule:
    """Hold `learning_rate`, and multiply it by `factor` at each of the `milestones`, fractions of the run.

    The defaults: He et al., "Deep Residual Learning", 2016, https://arxiv.org/abs/1512.03385, CIFAR-10: /10 at 32k and
    48k of 64k iterations.

    >>> schedule = step_decay(learning_rate=0.1, total_steps=64000)
    >>> [round(schedule(step), 9) for step in (31999, 32000, 48000)]
    [0.1, 0.01, 0.001]
    """
    check_steps(total_steps=total_steps)
    drops = [round(milestone * total_steps) for milestone in milestones]

    def schedule(step: int) -> float:
        passed: int = sum(within(step, total_steps) >= drop for drop in drops)
        return learning_rate * factor**passed

    return schedule
