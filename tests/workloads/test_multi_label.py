from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from lrsearch.workloads._multi_label import FittedMicroF1, binary_cross_entropy, micro_f1_chance

tables = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**16))


def draw(rows: int, labels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs with ties among them, and targets."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randint(-3, 4, (rows, labels), generator=generator) / 2
    return outputs, torch.randint(2, (rows, labels), generator=generator, dtype=torch.uint8)


def micro_f1(answers: torch.Tensor, targets: torch.Tensor) -> float:
    return float(f1_score(targets.flatten(), answers.int().flatten(), zero_division=0.0))


@given(tables)
@settings(max_examples=25, deadline=None)
def test_no_threshold_is_better_than_the_fitted_one(table: tuple[int, int, int]) -> None:
    outputs, targets = draw(*table)
    fitted = FittedMicroF1.of(outputs, targets)
    candidates = [-math.inf, *outputs.flatten().tolist()]
    best = max(micro_f1(outputs > candidate, targets) for candidate in candidates)
    assert fitted(outputs, targets) == pytest.approx(best, abs=1e-6)


@given(tables)
@settings(max_examples=25, deadline=None)
def test_the_fitted_threshold_holds_for_other_outputs(table: tuple[int, int, int]) -> None:
    rows, labels, seed = table
    fitted, (outputs, targets) = FittedMicroF1.of(*draw(rows, labels, seed)), draw(rows, labels, seed + 1)
    assert fitted(outputs, targets) == pytest.approx(micro_f1(outputs > fitted.threshold, targets), abs=1e-6)


def test_a_threshold_between_neighbouring_floats_tells_them_apart() -> None:
    low = torch.tensor(1.0)
    high = torch.nextafter(low, torch.tensor(2.0))
    outputs, targets = torch.stack([high, low])[:, None], torch.tensor([[1], [0]])
    assert FittedMicroF1.of(outputs, targets)(outputs, targets) == 1.0


def test_outputs_that_are_not_finite_have_no_micro_f1() -> None:
    outputs, targets = draw(4, 3, 0)
    broken = outputs.clone()
    broken[0, 0] = math.nan
    assert math.isnan(FittedMicroF1.of(broken, targets)(broken, targets))
    assert math.isnan(FittedMicroF1.of(outputs, targets)(broken, targets))


@given(tables)
@settings(max_examples=25, deadline=None)
def test_chance_is_the_best_of_all_answers_that_are_the_same_for_every_row(table: tuple[int, int, int]) -> None:
    _, targets = draw(*table)
    answers = itertools.product([0, 1], repeat=targets.shape[1])
    best = max(micro_f1(torch.tensor(answer).expand_as(targets), targets) for answer in answers)
    assert micro_f1_chance(np.asarray(targets)) == pytest.approx(best)


def test_the_loss_is_the_mean_over_all_labels() -> None:
    outputs, targets = torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]], dtype=torch.uint8)
    expected = -(math.log(0.5) + math.log(1 - 1 / (1 + math.exp(-2)))) / 2
    assert float(binary_cross_entropy(outputs, targets)) == pytest.approx(expected)
