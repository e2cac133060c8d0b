"""One rise and one fall, far below where it began; the momentum moves the other way.

Smith and Topin, "Super-Convergence", 2018, https://arxiv.org/abs/1708.07120; the shape and its defaults are those of
torch's OneCycleLR, without the rising step that it takes when it is stepped `total_steps` times.
"""

from __future__ import annotations

import math
from typing import Literal

from lrsearch.errors import UsageError
from lrsearch.interfaces import Schedule
from lrsearch.schedules._run import Positive, ProperFraction, check_steps, within

Anneal = Literal["cos", "linear"]
Phase = tuple[float, float, float]
"""The step at which it ends (not always a whole one), the value that it starts from, the value that it reaches."""


def one_cycle(
    *,
    max_lr: float,
    total_steps: int,
    pct_start: ProperFraction = 0.3,
    anneal: Anneal = "cos",
    three_phase: bool = False,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
) -> Schedule:
    """Rise from max_lr / div_factor to `max_lr` in the first `pct_start` of the run; end at start / final_div_factor.

    With `three_phase` the fall mirrors the rise, and a third phase goes on to the end value.

    >>> schedule = one_cycle(max_lr=1.0, total_steps=11, pct_start=6 / 11, anneal="linear")
    >>> [round(schedule(step), 6) for step in (0, 5, 10, 11)]
    [0.04, 1.0, 4e-06, 4e-06]
    """
    start = max_lr / div_factor
    end = start / final_div_factor
    falls = ((max_lr, start), (start, end)) if three_phase else ((max_lr, end),)
    return _through(((start, max_lr), *falls), total_steps, pct_start, anneal)


def one_cycle_momentum(
    *,
    total_steps: int,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    pct_start: float = 0.3,
    anneal: Anneal = "cos",
    three_phase: bool = False,
) -> Schedule:
    """Return the momentum (Adam: beta 1) that belongs to `one_cycle`: low where the rate is high.

    >>> momentum = one_cycle_momentum(total_steps=11, pct_start=6 / 11, anneal="linear")
    >>> [round(momentum(step), 6) for step in (0, 5, 10)]
    [0.95, 0.85, 0.95]
    """
    fall, rise, rest = (max_momentum, base_momentum), (base_momentum, max_momentum), (max_momentum, max_momentum)
    return _through((fall, rise, rest) if three_phase else (fall, rise), total_steps, pct_start, anneal)


def _through(legs: tuple[tuple[float, float], ...], total_steps: int, pct_start: float, anneal: Anneal) -> Schedule:
    """Go through two or three legs (from, to); as in torch, the first ends one step before its share of the run."""
    check_steps(total_steps=total_steps)
    if len(legs) == 3 and pct_start > 0.5:
        raise UsageError(f"one_cycle with three_phase needs pct_start of at most 0.5, got {pct_start}.")
    turn = pct_start * total_steps
    ends = (turn - 1, 2 * turn - 2, total_steps - 1) if len(legs) == 3 else (turn - 1, total_steps - 1)
    phases = [(end, *leg) for end, leg in zip(ends, legs, strict=True)]

    def schedule(step: int) -> float:
        return _value_in(phases, within(step, total_steps), anneal)

    return schedule


def _value_in(phases: list[Phase], step: int, anneal: Anneal) -> float:
    begin = 0.0
    for end, first, last in phases:
        if step <= end:
            share = (step - begin) / (end - begin) if end > begin else 1.0
            return last + (first - last) * (1 - share if anneal == "linear" else (1 + math.cos(math.pi * share)) / 2)
        begin = end
    return phases[-1][2]
