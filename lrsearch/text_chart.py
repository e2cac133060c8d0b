"""A curve over a logarithmic axis as lines of text, for terminals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

BLOCKS = " ▁▂▃▄▅▆▇█"


def text_chart(
    rates: Sequence[float], values: Sequence[float], marks: Mapping[str, float], *, width: int = 72, height: int = 12
) -> list[str]:
    """Return the lines of a filled chart: values over the logarithm of rising rates, and a row that places `marks`.

    A column shows the median of the values that fall into it, or nothing where none does.
    """
    low, high = math.log(rates[0]), math.log(rates[-1])
    inside: list[list[float]] = [[] for _ in range(width)]
    for rate, value in zip(rates, values, strict=True):
        inside[_column(rate, low, high, width)].append(value)
    columns = [statistics.median_high(some) if some else None for some in inside]
    bottom, top = min(values), max(values)
    eighths = [None if v is None else 1 + (v - bottom) / ((top - bottom) or 1.0) * (8 * height - 1) for v in columns]
    rows = ["".join(_block(eighth, row) for eighth in eighths).rstrip() for row in reversed(range(height))]
    scale = [f"{top:8.3g}", *[" " * 8] * (height - 2), f"{bottom:8.3g}"]
    chart = [f"{label} │{row}" for label, row in zip(scale, rows, strict=True)]
    axis = f"{rates[0]:.3g}{f'{rates[-1]:.3g}':>{width - len(f'{rates[0]:.3g}')}}"
    rule = ["─"] * width
    for rate in marks.values():
        rule[_column(rate, low, high, width)] = "┴"
    names = [" " * (10 + _column(rate, low, high, width)) + f"↑ {name} {rate:.3g}" for name, rate in marks.items()]
    return [*chart, f"{'':8} └{''.join(rule)}", f"{'':10}{axis}", *names]


def _column(rate: float, low: float, high: float, width: int) -> int:
    share = (math.log(rate) - low) / ((high - low) or 1.0)
    return min(max(round(share * (width - 1)), 0), width - 1)


def _block(eighth: float | None, row: int) -> str:
    return " " if eighth is None else BLOCKS[min(max(round(eighth - 8 * row), 0), 8)]
