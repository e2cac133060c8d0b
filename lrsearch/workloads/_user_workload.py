"""The user's model, data, loss and metric as a LoadedWorkload, checked once per process before the first trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrsearch.errors import WorkloadError
from lrsearch.interfaces import Batch, Split
from lrsearch.trial import WorkloadFacts
from lrsearch.workloads._classification import accuracy, chance, cross_entropy
from lrsearch.workloads._splits import range_test_subset, stratified_split
from lrsearch.workloads._user_code import blamed_on, resolve, seeded
from lrsearch.workloads._user_data import Examples, LoaderPart, UserData, read_parts
from lrsearch.workloads.callable import CallableWorkload

PROBE_ROWS = 16


def load_user_workload(settings: CallableWorkload, device: torch.device, seed: int) -> LoadedUserWorkload:
    """Return the workload, read and checked at its first use in this process, split by `seed`."""
    return LoadedUserWorkload(settings, device, _split(settings, device, seed), _checked(settings, device))


@dataclass(frozen=True)
class _Splits:
    train: Examples | LoaderPart
    validation: Examples
    range_test: Examples
    test: Examples


@lru_cache(maxsize=2)
def _data(reference: str, python_path: Path | None, device: torch.device) -> UserData:
    function = resolve("data", reference, python_path)
    with seeded(0):
        with blamed_on(f"workload.data {reference!r}"):
            returned = function()
        return read_parts(returned, reference, device)


@lru_cache(maxsize=32)
def _split(settings: CallableWorkload, device: torch.device, seed: int) -> _Splits:
    data = _data(settings.data, settings.python_path, device)
    generator = np.random.default_rng(seed)
    train, validation = data.train, data.validation
    if validation is None:
        assert not isinstance(train, LoaderPart), "read_parts refuses a loader without a validation part"
        kept, held_back = stratified_split(_strata(train.targets), settings.validation_fraction, generator)
        train, validation = train.subset(torch.from_numpy(kept)), train.subset(torch.from_numpy(held_back))
    labels = _strata(validation.targets)
    subset = range_test_subset(labels, np.arange(len(labels)), generator)
    return _Splits(train, validation, validation.subset(torch.from_numpy(subset)), data.test)


def _strata(targets: torch.Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the class of each example where targets are class ids, else one class for all."""
    class_ids = targets.ndim == 1 and targets.dtype == torch.int64
    return targets.numpy() if class_ids else np.zeros(len(targets), np.int64)


@dataclass(frozen=True)
class _Checked:
    """The user's functions, known to work together, and what the check has found out."""

    build: Callable[[], torch.nn.Module]
    loss: Callable[[Any, Any], torch.Tensor]
    metric: Callable[[Any, Any], Any]
    parameter_count: int
    class_count: int | None


@lru_cache(maxsize=8)
def _checked(settings: CallableWorkload, device: torch.device) -> _Checked:
    """Build the model, send some examples through it and try loss and metric. Raises WorkloadError where one fails."""
    data = _data(settings.data, settings.python_path, device)
    build = resolve("model", settings.model, settings.python_path)
    loss = resolve("loss", settings.loss, settings.python_path) if settings.loss else cross_entropy
    metric = resolve("metric", settings.metric, settings.python_path) if settings.metric else accuracy
    class_count = _class_count(settings, data)
    with seeded(0):
        model = _build(build, settings.model)
        _check_fresh(model, _build(build, settings.model), settings.model)
        _check_batch(settings, data, model.to(device).eval(), loss, metric, class_count)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return _Checked(build, loss, metric, parameters, class_count)


def _build(function: Callable[[], Any], reference: str) -> torch.nn.Module:
    with blamed_on(f"workload.model {reference!r}"):
        model = function()
    if not isinstance(model, torch.nn.Module):
        raise WorkloadError(
            f"workload.model {reference!r} must return a torch.nn.Module, got a {type(model).__name__}."
        )
    return model


def _check_fresh(first: torch.nn.Module, second: torch.nn.Module, reference: str) -> None:
    trainable = [parameter for parameter in first.parameters() if parameter.requires_grad]
    if not trainable:
        raise WorkloadError(f"workload.model {reference!r} must return a model with parameters that require gradients.")
    if {id(parameter) for parameter in trainable} & {id(parameter) for parameter in second.parameters()}:
        raise WorkloadError(
            f"workload.model {reference!r} returns the same parameters at each call, so trials would train on top of "
            "each other: build the model inside the function."
        )


def _class_count(settings: CallableWorkload, data: UserData) -> int | None:
    """Return 1 + the largest class id, or None when loss and metric are the user's own: targets are their business."""
    if settings.loss and settings.metric:
        return None
    default = "metric accuracy" if settings.loss else "loss cross-entropy"
    advice = "workload.metric" if settings.loss else "workload.loss and workload.metric"
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    largest = 0
    for name, part in parts.items():
        if part is None:
            continue
        where, targets = f"workload.data {settings.data!r}, {name}", part.targets
        if targets.dtype != torch.int64:
            raise WorkloadError(
                f"{where}: the default {default} needs class ids (whole numbers from 0) as targets, got "
                f"{targets.dtype}: convert them, or give {advice} for other targets."
            )
        if targets.ndim == 2 and targets.shape[1] == 1:
            raise WorkloadError(
                f"{where}: class ids must have shape (rows,), got {tuple(targets.shape)}: use .squeeze(1)."
            )
        if int(targets.min()) < 0:
            raise WorkloadError(
                f"{where}: class ids must be 0 or more, got {int(targets.min())}: number classes from 0."
            )
        largest = max(largest, int(targets.max()))
    return largest + 1


def _check_batch(
    settings: CallableWorkload,
    data: UserData,
    model: torch.nn.Module,
    loss: Callable[[Any, Any], Any],
    metric: Callable[[Any, Any], Any],
    class_count: int | None,
) -> None:
    """Send some examples through model, loss and metric."""
    inputs, targets = _probe_batch(data, next(iter(model.parameters())).device)
    shape = f" on inputs of shape {tuple(inputs.shape)}" if isinstance(inputs, torch.Tensor) else ""
    with blamed_on(f"The model {type(model).__name__} of {settings.model!r}{shape}"):
        outputs = model(inputs)
    if class_count is not None:
        _check_class_outputs(outputs, targets, class_count, settings)
    loss_name = settings.loss or "cross-entropy"
    with blamed_on(f"workload.loss {loss_name!r}"):
        value = loss(outputs, targets)
    if not (isinstance(value, torch.Tensor) and value.ndim == 0 and value.requires_grad):
        got = f"a {type(value).__name__}"
        if isinstance(value, torch.Tensor):
            got = f"shape {tuple(value.shape)}" if value.ndim else "one without a gradient"
        raise WorkloadError(f"workload.loss {loss_name!r} must return a scalar tensor to differentiate, got {got}.")
    with blamed_on(f"workload.metric {settings.metric or 'accuracy'!r} must return a number, but"):
        float(metric(outputs.detach().cpu(), targets.cpu()))


def _probe_batch(data: UserData, device: torch.device) -> Batch:
    part = data.validation or data.train
    assert not isinstance(part, LoaderPart), "read_parts refuses a loader without a validation part"
    rows = min(PROBE_ROWS, len(part.targets))
    return next(iter(part.subset(torch.arange(rows)).in_order(rows, device)))


def _check_class_outputs(outputs: Any, targets: torch.Tensor, class_count: int, settings: CallableWorkload) -> None:
    who = f"The model of {settings.model!r}"
    if not isinstance(outputs, torch.Tensor):
        raise WorkloadError(f"{who} must return a tensor of (rows, classes), got a {type(outputs).__name__}.")
    expected = (len(targets), "classes", *targets.shape[1:])
    if outputs.ndim != len(expected) or (len(outputs), *outputs.shape[2:]) != tuple(targets.shape):
        shape = f"({', '.join(map(str, expected))})"
        raise WorkloadError(f"{who} must return {shape} for {len(targets)} rows, got {tuple(outputs.shape)}.")
    if outputs.shape[1] < class_count:
        raise WorkloadError(
            f"{who} returns {outputs.shape[1]} values per row, but the targets hold class ids up to {class_count - 1}: "
            f"give its last layer {class_count} outputs."
        )


class LoadedUserWorkload:
    """Implements `LoadedWorkload` for the user's own functions."""

    def __init__(self, settings: CallableWorkload, device: torch.device, splits: _Splits, checked: _Checked) -> None:
        self._settings = settings
        self._device = device
        self._splits = splits
        self._checked = checked
        self.facts = _facts(settings, splits, checked)

    def build_model(self) -> torch.nn.Module:
        return _build(self._checked.build, self._settings.model).to(self._device)

    def train_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        return self._splits.train.shuffled(self.facts.batch_size, generator, self._device)

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        part: Examples = getattr(self._splits, split)
        return part.in_order(self.facts.batch_size, self._device)

    def loss(self, outputs: Any, targets: Any) -> torch.Tensor:
        return self._checked.loss(outputs, targets)

    def metric(self, outputs: Any, targets: Any) -> float:
        """Return the metric: NaN, without asking the user's function, where outputs are not finite."""
        if self._settings.metric is None:
            return accuracy(outputs, targets)
        if not bool(torch.isfinite(outputs).all()):
            return float("nan")
        with blamed_on(f"workload.metric {self._settings.metric!r} must return a number, but"):
            return float(self._checked.metric(outputs.cpu(), targets.cpu()))


def _facts(settings: CallableWorkload, splits: _Splits, checked: _Checked) -> WorkloadFacts:
    train_count = len(splits.train.targets)
    own_metric = settings.metric is not None
    return WorkloadFacts(
        metric=settings.metric_name or (settings.metric or "accuracy").rsplit(":")[-1].rsplit(".")[-1],
        higher_is_better=settings.higher_is_better,
        chance=settings.chance if own_metric else chance(splits.train.targets.flatten().numpy()),
        train_count=train_count,
        validation_count=len(splits.validation.targets),
        test_count=len(splits.test.targets),
        range_test_count=len(splits.range_test.targets),
        steps_per_epoch=_steps_per_epoch(settings, splits.train),
        batch_size=settings.batch_size,
        parameter_count=checked.parameter_count,
        input_shape=splits.train.input_shape,
        class_count=checked.class_count,
        description=f"{settings.data}, {train_count + len(splits.validation.targets)} examples{_shape(splits.train)}, "
        f"model {settings.model}",
    )


def _steps_per_epoch(settings: CallableWorkload, train: Examples | LoaderPart) -> int:
    if not isinstance(train, LoaderPart):
        steps = len(train.targets) // settings.batch_size
    else:
        steps = len(train.loader)
        if train.loader.batch_size not in (None, settings.batch_size):
            raise WorkloadError(
                f"workload.batch_size is {settings.batch_size}, but the training DataLoader of {settings.data!r} has "
                f"batch_size {train.loader.batch_size}: make them equal."
            )
    if steps == 0:
        raise WorkloadError(
            f"The training split has {len(train.targets)} examples, fewer than workload.batch_size "
            f"{settings.batch_size}: lower batch_size or validation_fraction."
        )
    return steps


def _shape(train: Examples | LoaderPart) -> str:
    return f" of shape {'x'.join(map(str, train.input_shape))}" if train.input_shape else ""
