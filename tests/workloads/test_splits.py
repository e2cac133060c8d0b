from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.workloads._splits import evaluation_rows, range_test_subset, stratified_sample, stratified_split


@settings(max_examples=100, deadline=None)
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=200), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_no_class_is_off_its_share_by_one(labels: list[int], share: float, seed: int) -> None:
    array, count = np.array(labels), round(share * len(labels))
    chosen = stratified_sample(array, count, np.random.default_rng(seed))
    assert len(chosen) == len(set(chosen.tolist())) == count
    for label in set(labels):
        exact = count * labels.count(label) / len(labels)
        assert abs(int((array[chosen] == label).sum()) - exact) < 1


def test_a_split_loses_nothing_and_holds_back_at_least_one() -> None:
    labels = np.array([0, 1] * 50)
    kept, held_back = stratified_split(labels, 0.2, np.random.default_rng(0))
    assert sorted([*kept, *held_back]) == list(range(100))
    assert len(held_back) == 20
    assert len(stratified_split(labels[:3], 0.01, np.random.default_rng(0))[1]) == 1
    assert len(stratified_split(labels, 0.999, np.random.default_rng(0))[0]) == 1


def test_each_example_is_held_back_equally_often() -> None:
    """400 draws of 4 out of 10: each count is binomial(400, 0.4) with a deviation of 9.8; five of those."""
    labels, generator = np.zeros(10, np.int64), np.random.default_rng(0)
    counts = np.bincount(
        np.concatenate([stratified_split(labels, 0.4, generator)[1] for _ in range(400)]), minlength=10
    )
    assert np.abs(counts - 160).max() < 49


def test_chance_decides_between_classes_of_the_same_size() -> None:
    """Of 50 classes of two, 20 hold one back: one that never did so in 60 draws would have a probability of 2e-12."""
    labels = np.repeat(np.arange(50), 2)
    held_back = {
        label for seed in range(60) for label in labels[stratified_split(labels, 0.2, np.random.default_rng(seed))[1]]
    }
    assert held_back == set(range(50))


def test_whole_numbers_that_are_no_classes_are_held_back_from_their_whole_range() -> None:
    """Prices, say: the mean of 200 of 1,000 has a deviation of 18; five of those."""
    held_back = stratified_split(np.arange(1000), 0.2, np.random.default_rng(0))[1]
    assert abs(held_back.mean() - 499.5) < 91


def test_a_range_test_evaluates_at_most_2000_examples_of_the_validation_split() -> None:
    labels = np.arange(9000) % 3
    validation = np.arange(3000, 9000)
    subset = range_test_subset(labels, validation, np.random.default_rng(0))
    assert len(subset) == 2000
    assert set(subset) <= set(validation)
    assert np.bincount(labels[subset]).max() - np.bincount(labels[subset]).min() <= 1


@pytest.mark.parametrize(
    ("shape", "batch_size", "expected"), [((5,), 32, 2000), ((3, 32, 32), 100, 325), ((3, 224, 224), 64, 64)]
)
def test_large_images_are_evaluated_in_smaller_batches(shape: tuple[int, ...], batch_size: int, expected: int) -> None:
    assert evaluation_rows(batch_size, shape) == expected
