"""Cyclical rates: up from a lower to an upper bound and down again, over and over.

Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, https://arxiv.org/abs/1506.01186. The paper's
`stepsize` is half of `cycle_steps`. All but `exp_range_paper` equal torch's CyclicLR and the Keras callback of the
paper's companion repository, https://github.com/bckenstler/CLR.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from lrsearch.errors import UsageError, typed
from lrsearch.interfaces import Schedule
from lrsearch.schedules._run import ProperFraction, check_steps

Gamma = Annotated[float, Field(gt=0, le=1)]
Reference = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]

PAPER_GAMMA = 0.99994  # Smith 2017, table 1: exp_range on CIFAR-10, 42,000 iterations


def cyclical(
    *,
    base_lr: float,
    max_lr: float,
    cycle_steps: float,
    scale: Callable[[int], float],
    scale_mode: Literal["cycle", "iteration"] = "cycle",
    rise_fraction: float = 0.5,
) -> Schedule:
    """Rise from `base_lr` and fall back once every `cycle_steps` steps, to a height of `scale` x (max_lr - base_lr).

    `scale` is given the number of the cycle, counted from 1, or of the step, counted from 0. `rise_fraction` is the
    part of a cycle in which the rate rises: torch's step_size_up / (step_size_up + step_size_down).

    >>> schedule = cyclical(base_lr=1.0, max_lr=2.0, cycle_steps=10, scale=lambda cycle: 1 / cycle, rise_fraction=0.2)
    >>> [schedule(step) for step in (0, 1, 2, 6, 10, 11, 12)]
    [1.0, 1.5, 2.0, 1.5, 1.0, 1.25, 1.5]
    """
    check_steps(cycle_steps=cycle_steps)
    if not 0 < rise_fraction < 1:
        raise UsageError(f"rise_fraction must lie between 0 and 1, got {rise_fraction}.")

    def schedule(step: int) -> float:
        finished, rest = divmod(step, cycle_steps)
        position = rest / cycle_steps
        height = position / rise_fraction if position <= rise_fraction else (1 - position) / (1 - rise_fraction)
        return base_lr + (max_lr - base_lr) * height * scale(int(finished) + 1 if scale_mode == "cycle" else step)

    return schedule


def halved(cycle: int) -> float:
    """Return the height of a cycle of `triangular2`, counted from 1.

    >>> [halved(cycle) for cycle in (1, 2, 3)]
    [1.0, 0.5, 0.25]
    """
    return 0.5 ** (cycle - 1)


def custom_cyclical(
    *,
    base_lr: float,
    max_lr: float,
    cycle_steps: int,
    amplitude: Reference = "lrsearch.schedules.cyclical:halved",
    scale_mode: Literal["cycle", "iteration"] = "cycle",
    rise_fraction: ProperFraction = 0.5,
) -> Schedule:
    """Like `triangular`, with heights by a function of your own: `amplitude` names it as module:function.

    It is given the number of the cycle, counted from 1, or of the step, counted from 0, and returns the share of the
    full height; modules are looked for in the current directory, then where Python looks. The function runs with your
    rights: run only study files that you trust.

    >>> schedule = custom_cyclical(base_lr=1.0, max_lr=2.0, cycle_steps=4)
    >>> [schedule(step) for step in (2, 6, 10)]
    [2.0, 1.5, 1.25]
    """
    scale = _function(amplitude)
    return cyclical(
        base_lr=base_lr,
        max_lr=max_lr,
        cycle_steps=cycle_steps,
        scale=scale,
        scale_mode=scale_mode,
        rise_fraction=rise_fraction,
    )


def _function(reference: str) -> Callable[[int], float]:
    """Return the function that `reference` names. Raises UsageError where there is none."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = pkgutil.resolve_name(reference)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"schedule.amplitude {reference!r} is not to be had: {error}.") from error
    if not callable(found):
        raise UsageError(f"schedule.amplitude {reference!r} must be a function, got {typed(found)}.")
    return found  # type: ignore[no-any-return]  # a callable of the user's, of unknown signature


def triangular(*, base_lr: float, max_lr: float, cycle_steps: int, rise_fraction: ProperFraction = 0.5) -> Schedule:
    """Rise from `base_lr` to `max_lr` and back, once every `cycle_steps` steps.

    >>> schedule = triangular(base_lr=0.001, max_lr=0.006, cycle_steps=4000)
    >>> [schedule(step) for step in (0, 1000, 2000, 3000, 4000)]
    [0.001, 0.0035, 0.006, 0.0035, 0.001]
    """
    return cyclical(
        base_lr=base_lr, max_lr=max_lr, cycle_steps=cycle_steps, scale=lambda cycle: 1.0, rise_fraction=rise_fraction
    )


def triangular2(*, base_lr: float, max_lr: float, cycle_steps: int, rise_fraction: ProperFraction = 0.5) -> Schedule:
    """Like `triangular`, but each cycle is half as high as the one before.

    >>> schedule = triangular2(base_lr=0.001, max_lr=0.005, cycle_steps=4000)
    >>> [schedule(step) for step in (2000, 6000, 10000)]
    [0.005, 0.003, 0.002]
    """
    return cyclical(
        base_lr=base_lr,
        max_lr=max_lr,
        cycle_steps=cycle_steps,
        scale=halved,
        rise_fraction=rise_fraction,
    )


def exp_range(
    *,
    base_lr: float,
    max_lr: float,
    cycle_steps: int,
    gamma: Gamma = PAPER_GAMMA,
    rise_fraction: ProperFraction = 0.5,
) -> Schedule:
    """Like `triangular`, but the height shrinks by the factor `gamma` in each step; `base_lr` stays.

    So it is in torch and Keras; in the paper both bounds shrink: see `exp_range_paper`.

    >>> schedule = exp_range(base_lr=1.0, max_lr=2.0, cycle_steps=4, gamma=0.5)
    >>> [schedule(step) for step in range(5)]
    [1.0, 1.25, 1.25, 1.0625, 1.0]
    """
    return cyclical(
        base_lr=base_lr,
        max_lr=max_lr,
        cycle_steps=cycle_steps,
        scale=lambda step: gamma**step,
        scale_mode="iteration",
        rise_fraction=rise_fraction,
    )


def exp_range_paper(
    *,
    base_lr: float,
    max_lr: float,
    cycle_steps: int,
    gamma: Gamma = PAPER_GAMMA,
    rise_fraction: ProperFraction = 0.5,
) -> Schedule:
    """Like `triangular`, but both bounds shrink by the factor `gamma` in each step, as the paper's section 3.1 says.

    >>> schedule = exp_range_paper(base_lr=1.0, max_lr=2.0, cycle_steps=4, gamma=0.5)
    >>> [schedule(step) for step in range(5)]
    [1.0, 0.75, 0.5, 0.1875, 0.0625]
    """
    full = triangular(base_lr=base_lr, max_lr=max_lr, cycle_steps=cycle_steps, rise_fraction=rise_fraction)

    def schedule(step: int) -> float:
        return full(step) * gamma**step

    return schedule
