"""Our four suggestions beside fastai's own functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastai.callback import schedule as fastai

from lrsearch.range_test import ladder, suggestions

pytestmark = pytest.mark.integrations


def curve(seed: int) -> tuple[list[float], list[float]]:
    """Return a random loss curve: smooth, rippled, rough or flat, with or without ties and infinite ends."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(16, 250))
    x = np.linspace(-1, 1, count)
    y = 2.3 - rng.uniform(0, 2) / (1 + np.exp(-8 * (x - rng.uniform(-1, 1)))) + np.exp(rng.uniform(1, 20) * (x - 0.8))
    y += rng.choice([0, 0.02, 0.3]) * np.cumsum(rng.standard_normal(count)) / 10
    y += rng.choice([0, 0.02]) * np.sin(40 * x) + rng.choice([0, 0.05]) * rng.standard_normal(count)
    if rng.random() < 0.3:
        y = np.round(y, int(rng.integers(1, 3)))  # many slopes are equal but for the rounding of logarithms
    return ladder(1e-7, 10.0, count), [float(value) for value in y]


@pytest.mark.parametrize("name", ["valley", "slide", "minimum", "steep"])
def test_suggestions_equal_fastais(name: str) -> None:
    for seed in range(500):
        rates, losses = curve(seed)
        suggest = getattr(fastai, name)
        theirs, _ = suggest(torch.tensor(rates), torch.tensor(losses), len(losses))
        assert getattr(suggestions(rates, losses), name) == theirs, f"curve {seed}"
