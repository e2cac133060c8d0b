"""What the schedules of a run with a fixed number of steps share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lrsearch.errors import UsageError

Fraction = Annotated[float, Field(ge=0, le=1)]
ProperFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


def check_steps(**steps: float) -> None:
    """Raise UsageError unless each of the step counts is at least 1."""
    for name, count in steps.items():
        if not count >= 1:
            raise UsageError(f"{name} must be at least 1, got {count}.")


def within(step: int, total_steps: int) -> int:
    """Return `step`, or the last step of the run for all steps after it: there a schedule stays where it ended."""
    return min(step, total_steps - 1)
