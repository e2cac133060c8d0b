"""A warm-up in front of any schedule."""

from __future__ import annotations

from lrsearch.interfaces import Schedule


def with_warmup(schedule: Schedule, warmup_steps: int, start_factor: float = 0.0) -> Schedule:
    """Rise in a straight line to the schedule's first rate over `warmup_steps` steps, then follow the schedule.

    The first step has start_factor x that rate. With start_factor 0 it is the line's first step above zero: no step is
    wasted on the rate zero. Goyal et al., "Accurate, Large Minibatch SGD", 2017, https://arxiv.org/abs/1706.02677.

    >>> warm = with_warmup(lambda step: 1.0 - step / 10, warmup_steps=2, start_factor=0.5)
    >>> [warm(step) for step in range(4)]
    [0.5, 0.75, 1.0, 0.9]
    >>> [with_warmup(lambda step: 1.0, warmup_steps=3)(step) for step in range(4)]
    [0.25, 0.5, 0.75, 1.0]
    """

    def warm(step: int) -> float:
        if step >= warmup_steps:
            return schedule(step - warmup_steps)
        if start_factor == 0:
            return schedule(0) * (step + 1) / (warmup_steps + 1)
        return schedule(0) * (start_factor + (1 - start_factor) * step / warmup_steps)

    return warm
