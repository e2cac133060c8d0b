"""Half a cosine down, once or with restarts.

Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, https://arxiv.org/abs/1608.03983.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from lrsearch.errors import UsageError
from lrsearch.interfaces import Schedule
from lrsearch.schedules._run import Fraction, check_steps, within

CycleMult = Annotated[float, Field(ge=1)]


def cosine(*, learning_rate: float, total_steps: int, final_fraction: Fraction = 0.0) -> Schedule:
    """Fall from `learning_rate` along half a cosine towards final_fraction x learning_rate.

    The end value would be that of step `total_steps`; the last step taken stands just above it, as in torch's
    CosineAnnealingLR with T_max = total_steps.

    >>> schedule = cosine(learning_rate=1.0, total_steps=4)
    >>> [round(schedule(step), 6) for step in range(5)]
    [1.0, 0.853553, 0.5, 0.146447, 0.146447]
    """
    check_steps(total_steps=total_steps)

    def schedule(step: int) -> float:
        return learning_rate * _half_cosine(within(step, total_steps) / total_steps, final_fraction)

    return schedule


def cosine_restarts(
    *,
    learning_rate: float,
    first_cycle_steps: int,
    cycle_mult: CycleMult = 1.0,
    peak_decay: Fraction = 1.0,
    final_fraction: Fraction = 0.0,
) -> Schedule:
    """Fall like `cosine` again and again: each cycle is `cycle_mult` times as long and `peak_decay` times as high.

    SGDR's T_0 and T_mult; T_mult need not be whole. A cycle begins at the first step at or after its beginning.

    >>> schedule = cosine_restarts(learning_rate=1.0, first_cycle_steps=2, cycle_mult=2, peak_decay=0.5)
    >>> [round(schedule(step), 6) for step in range(7)]
    [1.0, 0.5, 0.5, 0.426777, 0.25, 0.073223, 0.25]
    """
    check_steps(first_cycle_steps=first_cycle_steps)
    if cycle_mult < 1:
        raise UsageError(f"cycle_mult must be at least 1, got {cycle_mult}.")

    def schedule(step: int) -> float:
        number = _cycle_number(step, first_cycle_steps, cycle_mult)
        position = step - cycle_start(number, first_cycle_steps, cycle_mult)
        length = first_cycle_steps * cycle_mult**number
        return learning_rate * peak_decay**number * _half_cosine(position / length, final_fraction)

    return schedule


def cycle_start(number: int, first_cycle_steps: int, cycle_mult: float) -> float:
    """Return where a cycle (counted from 0) begins, in steps; not always a whole number.

    >>> [cycle_start(number, 10, 1.5) for number in range(4)]
    [0.0, 10.0, 25.0, 47.5]
    """
    if cycle_mult == 1:
        return float(first_cycle_steps * number)
    # Rounded, or else a cycle that begins at 21.0000000000004 gives step 21 to the end of the one before.
    return round(first_cycle_steps * (cycle_mult**number - 1) / (cycle_mult - 1), 6)


def _cycle_number(step: int, first_cycle_steps: int, cycle_mult: float) -> int:
    if cycle_mult == 1:
        return step // first_cycle_steps
    guess = int(math.log(step / first_cycle_steps * (cycle_mult - 1) + 1, cycle_mult))
    # The logarithm may land on the wrong side of a boundary.
    return next(
        number
        for number in (guess + 1, guess, guess - 1)
        if number >= 0 and cycle_start(number, first_cycle_steps, cycle_mult) <= step
    )


def _half_cosine(share: float, final_fraction: float) -> float:
    return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * share)) / 2
