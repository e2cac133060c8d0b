"""Cells of tables as numbers."""

from __future__ import annotations

import math
from typing import Any


def plain_number(value: Any) -> float | None:
    """Return a cell as a number; None for an empty one and for NaN.

    >>> plain_number("0.5"), plain_number("")
    (0.5, None)
    """
    number = math.nan if value is None or value == "" else float(value)
    return None if math.isnan(number) else number
