"""How much a trial's early values say about its end: what one could stop early by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Of the epochs of a run."""


def early_clue(
    early: Sequence[Sequence[float | None]], final: Sequence[float | None], *, lower_is_better: bool = False
) -> list[float | None]:
    """Return Spearman's rank correlation between the values at each early moment and the final ones (Spearman 1904).

    `early[i][j]` is trial i's validation value at moment j, `final[i]` its value at the end. None is a trial that had
    diverged or failed: worse than any number, and tied with others like it. Ties take mean ranks. A correlation is None
    for fewer than three trials, and where one side is constant: then there is nothing to tell apart.

    >>> early_clue([[0.3, 0.1], [0.2, 0.2], [0.1, 0.3]], [0.7, 0.8, 0.9])
    [-1.0, 1.0]
    """
    ends = _ranks(final, lower_is_better)
    return [_correlation(_ranks(moment, lower_is_better), ends) for moment in zip(*early, strict=True)]


def _ranks(values: Sequence[float | None], lower_is_better: bool) -> NDArray[np.float64]:
    """Return ranks from the worst, ties with the mean of the ranks that they take up."""
    sign = -1.0 if lower_is_better else 1.0
    scores = [-math.inf if value is None or math.isnan(value) else sign * value for value in values]
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(ranks[place])


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(round(np.corrcoef(x, y)[0, 1], 12))  # rounding: 1 - 1e-16 is 1
