"""Stratified choice of examples, in whole numbers: no class is off its exact share by one example or more."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrsearch.errors import WorkloadError

Indices = NDArray[np.int64]


def strata(targets: NDArray[Any]) -> Indices:
    """Return the class of each example where targets are class ids, else one class for all: a plain random split."""
    class_ids = targets.ndim == 1 and targets.dtype == np.int64
    return targets if class_ids else np.zeros(len(targets), np.int64)


def steps_per_epoch(train_count: int, batch_size: int) -> int:
    """Return the number of whole batches. Raises WorkloadError when there is none."""
    if train_count < batch_size:
        raise WorkloadError(
            f"workload.batch_size must be at most the number of training examples, {train_count}, got {batch_size}: "
            "lower it or validation_fraction, or give more data."
        )
    return train_count // batch_size


def stratified_sample(labels: Indices, count: int, generator: np.random.Generator) -> Indices:
    """Return `count` positions of `labels`, sorted, with every class in its share (largest remainders).

    Chance decides between equal remainders: with as many classes as examples, the first would always be chosen.

    >>> stratified_sample(np.array([0, 0, 1, 1, 0, 0]), 3, np.random.default_rng(0)).shape
    (3,)
    """
    classes, members = np.unique(labels, return_counts=True)
    taken, remainders = np.divmod(members * count, len(labels))
    of_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(members)[:-1])
    shuffled = [generator.permutation(positions) for positions in of_class]
    order, left = np.argsort(-remainders, kind="stable"), count - int(taken.sum())
    if 0 < left < len(classes) and remainders[order[left - 1]] == remainders[order[left]]:
        order = np.lexsort((generator.permutation(len(classes)), -remainders))
    taken[order[:left]] += 1
    chosen = [positions[:share] for positions, share in zip(shuffled, taken, strict=True)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def stratified_split(labels: Indices, fraction: float, generator: np.random.Generator) -> tuple[Indices, Indices]:
    """Return the positions that stay and those held back: `fraction` of all, stratified, both sorted, none empty."""
    if len(labels) < 2:
        raise WorkloadError(f"A training and a validation split take 2 examples or more, got {len(labels)}.")
    held_back = stratified_sample(labels, min(max(1, round(len(labels) * fraction)), len(labels) - 1), generator)
    return np.setdiff1d(np.arange(len(labels)), held_back, assume_unique=True), held_back


RANGE_TEST_LIMIT = 2000
EVALUATION_ROWS = 2000
EVALUATION_VALUES = 1_000_000
"""Input values per evaluation batch: 325 images of 32x32x3. Measured on a processor with lenet and cifar10_quick:
batches of 2,000 take 1.5 times the time of batches of 100 to 500, which fit its caches."""


def range_test_subset(labels: Indices, validation: Indices, generator: np.random.Generator) -> Indices:
    """Return the stratified part of `validation`, at most 2,000 examples, that range tests evaluate."""
    count = min(RANGE_TEST_LIMIT, len(validation))
    return validation[stratified_sample(labels[validation], count, generator)]


def evaluation_rows(batch_size: int, input_shape: tuple[int, ...]) -> int:
    """Return how many examples to evaluate at once: as many as are quick, and never fewer than a training batch."""
    return max(batch_size, min(EVALUATION_ROWS, EVALUATION_VALUES // prod(input_shape)))
