"""A rate that shrinks by the same factor in each step."""

from __future__ import annotations

import math

from lrsearch.interfaces import Schedule
from lrsearch.schedules._run import ProperFraction, check_steps, within


def exponential(*, learning_rate: float, total_steps: int, final_fraction: ProperFraction = 0.01) -> Schedule:
    """Shrink from `learning_rate` towards final_fraction x learning_rate, by the same factor in each step.

    Smith's `exp` (https://arxiv.org/abs/1506.01186, table 1), gamma 0.99994 over 70,000 iterations, has a
    final_fraction of 0.015. torch's ExponentialLR stepped once a step is the same.

    >>> schedule = exponential(learning_rate=1.0, total_steps=4, final_fraction=0.0625)
    >>> [schedule(step) for step in range(5)]
    [1.0, 0.5, 0.25, 0.125, 0.125]
    """
    check_steps(total_steps=total_steps)

    def schedule(step: int) -> float:
        share = within(step, total_steps) / total_steps
        return learning_rate * math.pow(final_fraction, share)

    return schedule
