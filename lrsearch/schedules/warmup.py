"""A warm-up in front of any schedule."""

from __future__ import annotations

from lrsearch.interfaces import Schedule


def with_warmup(schedule: Schedule, warmup_steps: int) -> Schedule:
    """Rise in a straight line to the schedule's first rate over `warmup_steps` steps, then follow the schedule.

    The first step is the line's first above zero: none is wasted on the rate zero. Goyal et al., "Accurate, Large
    Minibatch SGD", 2017, https://arxiv.org/abs/1706.02677.

    >>> warm = with_warmup(lambda step: 1.0 - step / 10, warmup_steps=3)
    >>> [warm(step) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 0.9]
    """

    def warm(step: int) -> float:
        if step >= warmup_steps:
            return schedule(step - warmup_steps)
        return schedule(0) * (step + 1) / (warmup_steps + 1)

    return warm
