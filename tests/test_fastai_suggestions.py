"""Our four suggestions beside fastai's own functions; skipped where fastai is not installed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from lrsearch.range_test import ladder, suggestions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fastai's imports warn of their own dependencies
    fastai: Any = pytest.importorskip("fastai.callback.schedule")


def curve(seed: int) -> tuple[list[float], list[float]]:
    """Return a random loss curve: smooth, rippled, rough or flat, with or without ties and infinite ends."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(16, 250))
    x = np.linspace(-1, 1, count)
    y = 2.3 - rng.uniform(0, 2) / (1 + np.exp(-8 * (x - rng.uniform(-1, 1)))) + np.exp(rng.uniform(1, 20) * (x - 0.8))
    y += rng.choice([0, 0.02, 0.3]) * np.cumsum(rng.standard_normal(count)) / 10
    y += rng.choice([0, 0.02]) * np.sin(40 * x) + rng.choice([0, 0.05]) * rng.standard_normal(count)
    if rng.random() < 0.2:
        y = np.round(y, 1)
    return ladder(1e-7, 10.0, count), [float(value) for value in y]


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # fastai's slide, under numpy 2
@pytest.mark.parametrize("name", ["valley", "slide", "minimum", "steep"])
def test_suggestions_equal_fastais(name: str) -> None:
    for seed in range(150):
        rates, losses = curve(seed)
        suggest = getattr(fastai, name)
        theirs, _ = suggest(torch.tensor(rates), torch.tensor(losses), len(losses))
        assert getattr(suggestions(rates, losses), name) == pytest.approx(theirs, rel=1e-6), f"curve {seed}"
