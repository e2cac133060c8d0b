"""A rate that falls like a power of the part of the run that is left."""

from __future__ import annotations

from lrsearch.interfaces import Schedule
from lrsearch.schedules._run import Fraction, Positive, check_steps, within


def polynomial(
    *, learning_rate: float, total_steps: int, power: Positive = 2.0, final_fraction: Fraction = 0.0
) -> Schedule:
    """Fall from `learning_rate` towards final_fraction x learning_rate as (1 - step / total_steps) ** power.

    With final_fraction 0 it equals torch's PolynomialLR and Caffe's `poly`.

    >>> schedule = polynomial(learning_rate=1.0, total_steps=4)
    >>> [schedule(step) for step in range(5)]
    [1.0, 0.5625, 0.25, 0.0625, 0.0625]
    """
    check_steps(total_steps=total_steps)

    def schedule(step: int) -> float:
        left: float = (1 - within(step, total_steps) / total_steps) ** power
        return learning_rate * (final_fraction + (1 - final_fraction) * left)

    return schedule


def linear_to_zero(*, learning_rate: float, total_steps: int) -> Schedule:
    """Fall from `learning_rate` in a straight line; zero would be reached one step after the last.

    The strongest cheap baseline of Chen et al., "REX", 2021, https://arxiv.org/abs/2107.04197.

    >>> schedule = linear_to_zero(learning_rate=1.0, total_steps=4)
    >>> [schedule(step) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.25]
    """
    return polynomial(learning_rate=learning_rate, total_steps=total_steps, power=1.0)
