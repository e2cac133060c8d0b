"""Smith's control: the fall of a cycle without its rise."""

from __future__ import annotations

from lrsearch.interfaces import Schedule
from lrsearch.schedules._run import ProperFraction, check_steps


def decay(*, base_lr: float, max_lr: float, total_steps: int, decay_fraction: ProperFraction = 0.16) -> Schedule:
    """Fall from `max_lr` to `base_lr` in a straight line over the first part of the run, then hold `base_lr`.

    Smith, https://arxiv.org/abs/1506.01186, table 1: a stepsize of 4,000 in 25,000 iterations, a fraction of 0.16.

    >>> schedule = decay(base_lr=0.001, max_lr=0.007, total_steps=25000)
    >>> [schedule(step) for step in (0, 2000, 4000, 24999)]
    [0.007, 0.004, 0.001, 0.001]
    """
    check_steps(total_steps=total_steps)
    decay_steps = decay_fraction * total_steps

    def schedule(step: int) -> float:
        return base_lr + (max_lr - base_lr) * max(0.0, 1 - step / decay_steps)

    return schedule
