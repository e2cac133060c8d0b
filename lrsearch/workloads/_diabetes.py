"""The diabetes table on a device; `diabetes` says what it is."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lrsearch.trial import WorkloadFacts
from lrsearch.workloads import models
from lrsearch.workloads._examples import LoadedExamples, Splits
from lrsearch.workloads._scikit_learn import datasets_folder
from lrsearch.workloads._splits import range_test_subset, steps_per_epoch, stratified_split
from lrsearch.workloads._user_data import TensorPart
from lrsearch.workloads._weights import origin, started
from lrsearch.workloads.diabetes import Diabetes

TEST_FRACTION = 0.2


def load_diabetes_table(settings: Diabetes, device: torch.device, seed: int) -> LoadedExamples:
    splits = _split(device, seed, settings.validation_fraction)
    count = len(splits.train.targets)
    shape = splits.train.input_shape
    facts = WorkloadFacts(
        metric=settings.measures,
        higher_is_better=True,
        chance=0.0,
        train_count=count,
        validation_count=len(splits.validation.targets),
        test_count=len(splits.test.targets),
        range_test_count=len(splits.range_test.targets),
        steps_per_epoch=steps_per_epoch(count, settings.batch_size),
        batch_size=settings.batch_size,
        parameter_count=models.count_parameters(settings.model, shape, 1),
        input_shape=shape,
        class_count=None,
        description=f"diabetes, {count + len(splits.validation.targets)} patients, {shape[0]} measurements, "
        f"model {settings.model}{origin(settings)}",
    )
    return LoadedExamples(
        facts,
        splits,
        device,
        build=lambda: started(models.build(settings.model, shape, 1), settings),
        loss=F.mse_loss,
        metric=_r2,
    )


@lru_cache(maxsize=32)
def _split(device: torch.device, seed: int, validation_fraction: float) -> Splits:
    folder = datasets_folder() / "data"
    table = np.column_stack([np.loadtxt(folder / f"diabetes_{name}.csv.gz") for name in ("data_raw", "target")])
    one_class, generator = np.zeros(len(table), np.int64), np.random.default_rng(seed)
    pool, test = stratified_split(one_class, TEST_FRACTION, np.random.default_rng(0))
    kept, held_back = stratified_split(one_class[pool], validation_fraction, generator)
    train, validation = pool[kept], pool[held_back]
    subset = range_test_subset(one_class, validation, generator)
    scaled = (table - table[train].mean(0)) / table[train].std(0)
    parts = [_part(scaled[rows], device) for rows in (train, validation, subset, test)]
    return Splits(*parts)


def _part(table: NDArray[np.float64], device: torch.device) -> TensorPart:
    values = torch.from_numpy(table).float().to(device)
    return TensorPart(values[:, :-1], values[:, -1:], torch.arange(len(values), device=device))


def _r2(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Return 1 - (sum of squared errors) / (sum of squared distances from the mean).

    Not torchmetrics', which takes a second to import.
    """
    found = 1 - F.mse_loss(outputs, targets) / targets.var(correction=0)
    return float(found) if bool(torch.isfinite(found)) else math.nan
