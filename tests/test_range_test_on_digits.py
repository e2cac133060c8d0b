"""Real range tests, in a loop of their own, beside what fixed rates do to the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from lrsearch.range_test import RangeTestVerdict, combine_verdicts, find_bounds, ladder

pytestmark = pytest.mark.slow

Optimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Data:
    inputs: torch.Tensor
    labels: torch.Tensor
    validation_inputs: torch.Tensor
    validation_labels: torch.Tensor

    @classmethod
    def digits(cls, seed: int, random_labels: bool = False) -> Data:
        inputs, labels = load_digits(return_X_y=True)
        labels = np.random.default_rng(seed).permutation(labels) if random_labels else labels
        parts = train_test_split(
            torch.tensor(inputs / 16, dtype=torch.float32), torch.tensor(labels), test_size=0.2, random_state=seed
        )
        return cls(parts[0], parts[2], parts[1], parts[3])

    def batches(self, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.inputs), generator=generator)
            for part in order[: len(order) // 32 * 32].reshape(-1, 32):
                yield self.inputs[part], self.labels[part]

    def accuracy(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(self.validation_inputs).argmax(1) == self.validation_labels).float().mean())


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def steps(data: Data, make: Optimizer, rates: list[float], seed: int) -> Iterator[nn.Module]:
    """Train the digits MLP with one step at each of the rates; yield it after each."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer, batches = make(model), data.batches(seed)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        inputs, labels = next(batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
        yield model


def verdict_of(make: Optimizer, seed: int, low: float, high: float, random_labels: bool = False) -> RangeTestVerdict:
    data = Data.digits(seed, random_labels)
    rates = ladder(low, high, 300)
    return find_bounds(
        rates,
        [data.accuracy(model) for model in steps(data, make, rates, seed)],
        kind="metric",
        chance=0.1,
        evaluation_count=len(data.validation_labels),
    )


def trained(make: Optimizer, rate: float, seed: int) -> float:
    data = Data.digits(seed)
    *_, model = steps(data, make, [rate] * 540, seed)
    return data.accuracy(model)


@pytest.mark.parametrize(
    ("make", "low", "high", "largest_that_trains", "dies"),
    [(sgd, 1e-5, 10.0, 0.1, 0.5), (adam, 1e-6, 1.0, 0.01, 0.2)],
)
def test_max_lr_lies_below_the_rate_that_dies_and_trains_itself(
    make: Optimizer, low: float, high: float, largest_that_trains: float, dies: float
) -> None:
    assert trained(make, dies, seed=0) < 0.5
    assert trained(make, largest_that_trains, seed=0) > 0.9
    verdict = combine_verdicts([verdict_of(make, seed, low, high) for seed in range(5)])
    assert verdict.max_lr is not None
    assert largest_that_trains <= verdict.max_lr < dies
    assert np.mean([trained(make, verdict.max_lr, seed) for seed in range(2)]) > 0.85


def test_random_labels_are_never_learned() -> None:
    assert [verdict_of(sgd, seed, 1e-5, 10.0, random_labels=True).status for seed in range(5)] == ["never_learns"] * 5
