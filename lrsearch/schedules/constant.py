"""A rate that does not change."""

from __future__ import annotations

from lrsearch.interfaces import Schedule


def constant(*, learning_rate: float) -> Schedule:
    """Hold `learning_rate`.

    >>> constant(learning_rate=0.1)(1000)
    0.1
    """

    def schedule(step: int) -> float:
        return learning_rate

    return schedule
