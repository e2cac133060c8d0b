"""How good the best of k random trials is on average: what a random search buys with its k-th trial."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lrsearch.errors import UsageError


def expected_best(values: Sequence[float | None], *, chance: float, lower_is_better: bool = False) -> list[float]:
    """Return U(1), ..., U(n): entry k-1 is the mean of the best of k trials over all subsets of k of the n trials.

    U(k) = sum_{i>=k} C(i-1, k-1) / C(n, k) x_(i) over the sorted values x_(1) <= ... <= x_(n): unbiased for the best of
    k independent draws (Tang et al. 2020, 2004.13705), where the plug-in with replacement (Dodge et al. 2019,
    1909.03004) is not. It is undefined for k > n: there the list ends. Trials that failed or diverged (None, or not
    finite) count as `chance`, the value of a model that ignores its input. Give only trials that were drawn
    independently of each other: those of a random search, never those of a sampler that learns.

    >>> [round(best, 4) for best in expected_best([0.5, 0.9, None], chance=0.1)]
    [0.5, 0.7667, 0.9]
    """
    if not math.isfinite(chance):
        raise UsageError(f"The chance level must be finite, got {chance}; give the value of an untrained model.")
    sign = -1.0 if lower_is_better else 1.0
    known = [chance if value is None or not math.isfinite(value) else value for value in values]
    falling = np.sort(sign * np.array(known, dtype=float))[::-1]
    return [sign * float(_weights(len(falling), k) @ falling) for k in range(1, len(falling) + 1)]


def _weights(n: int, k: int) -> NDArray[np.float64]:
    """Return C(i-1, k-1) / C(n, k) for i = n, ..., 1: the first is k/n, each next one (i-k)/(i-1) of that before."""
    i = np.arange(n, 1, -1)
    return np.asarray(k / n * np.cumprod(np.concatenate([[1.0], np.maximum(i - k, 0) / (i - 1)])))
