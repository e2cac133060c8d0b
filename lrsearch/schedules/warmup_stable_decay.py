"""Warm up, hold, decay: the decay can be begun whenever the budget ends."""

from __future__ import annotations

import math
from typing import Literal

from lrsearch.errors import UsageError
from lrsearch.interfaces import Schedule
from lrsearch.schedules._run import Fraction, check_steps, within


def warmup_stable_decay(
    *,
    learning_rate: float,
    total_steps: int,
    warmup_fraction: Fraction = 0.05,
    decay_fraction: Fraction = 0.2,
    decay_shape: Literal["linear", "1-sqrt"] = "1-sqrt",
) -> Schedule:
    """Rise to `learning_rate` over the first part of the run, hold it, fall to zero over the last part.

    Hu et al., "MiniCPM", 2024, https://arxiv.org/abs/2404.06395; the shape 1 - sqrt: Hägele et al., "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations", 2024, https://arxiv.org/abs/2405.18392. No step has the
    rate zero: the first of the rise and the last of the fall are one step away from it.

    >>> schedule = warmup_stable_decay(learning_rate=1.0, total_steps=20, warmup_fraction=0.1)
    >>> [round(schedule(step), 6) for step in (0, 1, 15, 16, 17, 19, 20)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.133975, 0.133975]
    """
    check_steps(total_steps=total_steps)
    if warmup_fraction + decay_fraction > 1:
        raise UsageError(
            f"warmup_fraction and decay_fraction must add up to at most 1, got {warmup_fraction} and {decay_fraction}."
        )
    warmup_steps, decay_steps = round(warmup_fraction * total_steps), round(decay_fraction * total_steps)

    def schedule(step: int) -> float:
        step = within(step, total_steps)
        if step < warmup_steps:
            return learning_rate * (step + 1) / warmup_steps
        decayed = max(0, step - (total_steps - decay_steps)) / max(1, decay_steps)
        return learning_rate * (1 - (decayed if decay_shape == "linear" else math.sqrt(decayed)))

    return schedule
