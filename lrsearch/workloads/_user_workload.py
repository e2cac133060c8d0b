"""The user's model, data, loss and metric as a LoadedWorkload, checked once per process before the first trial."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lrsearch.contents import Contents
from lrsearch.errors import WorkloadError, typed
from lrsearch.interfaces import Batch
from lrsearch.trial import WorkloadFacts
from lrsearch.workloads._classification import accuracy, chance
from lrsearch.workloads._examples import LoadedExamples, Splits
from lrsearch.workloads._splits import range_test_subset, steps_per_epoch, strata, stratified_split
from lrsearch.workloads._user_data import Examples, LoaderPart, UserData, read_parts
from lrsearch.workloads._weights import origin, started
from lrsearch.workloads.callable import CallableWorkload
from lrsearch.workloads.user_code import blamed_on, resolve, seeded

PROBE_ROWS = 16


def load_user_workload(settings: CallableWorkload, device: torch.device, seed: int) -> LoadedExamples:
    """Return the workload, read and checked at its first use in this process, split by `seed`."""
    splits, checked = _split(settings, device, seed), _checked(settings, device)
    return LoadedExamples(
        _facts(settings, splits, checked),
        splits,
        device,
        build=lambda: _build(checked.build, settings),
        loss=copy.deepcopy(checked.loss) if checked.loss_changes else checked.loss,
        metric=checked.metric,
    )


@lru_cache(maxsize=2)
def _data(reference: str, python_path: Path | None, device: torch.device) -> UserData:
    function = resolve("data", reference, python_path)
    with seeded():
        with blamed_on(f"workload.data {reference!r}"):
            returned = function()
        return read_parts(returned, reference, device)


@lru_cache(maxsize=32)
def _split(settings: CallableWorkload, device: torch.device, seed: int) -> Splits:
    data = _data(settings.data, settings.python_path, device)
    generator = np.random.default_rng(seed)
    train, validation = data.train, data.validation
    if validation is None:
        assert not isinstance(train, LoaderPart), "read_parts refuses a loader without a validation part"
        kept, held_back = stratified_split(strata(train.targets.numpy()), settings.validation_fraction, generator)
        train, validation = train.subset(torch.from_numpy(kept)), train.subset(torch.from_numpy(held_back))
    labels = strata(validation.targets.numpy())
    subset = range_test_subset(labels, np.arange(len(labels)), generator)
    return Splits(train, validation, validation.subset(torch.from_numpy(subset)), data.test)


@dataclass(frozen=True)
class _Checked:
    """The user's functions, known to work together, and what the check has found out."""

    build: Callable[[], torch.nn.Module]
    loss: Callable[[Any, Any], torch.Tensor]
    loss_changes: bool
    """Whether it holds something, such as a running mean, that each trial is to begin anew with."""
    metric: Callable[[Any, Any], float]
    parameter_count: int
    class_count: int | None


@lru_cache(maxsize=8)
def _checked(settings: CallableWorkload, device: torch.device) -> _Checked:
    """Build the model, send some examples through it and try loss and metric. Raises WorkloadError where one fails."""
    data = _data(settings.data, settings.python_path, device)
    build = resolve("model", settings.model, settings.python_path)
    if isinstance(build, torch.nn.Module):
        raise WorkloadError(
            f"workload.model {settings.model!r} must be a function that returns a new model, got a model "
            f"({type(build).__name__}): build it inside a function."
        )
    loss = _scorer("loss", settings.loss, settings) if settings.loss else F.cross_entropy
    _check_loss(loss, settings)
    metric = _metric(settings)
    class_count = _class_count(settings, data)
    with seeded():
        model = _build(build, settings)
        _check_fresh(model, _build(build, settings), settings.model)
        tried = _copied(loss)
        held = Contents(torch.nn.Identity(), tried)
        _check_batch(settings, data, model.to(device).eval(), tried, metric, class_count)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    changes = tried is not loss and not held.is_still()
    return _Checked(build, loss, changes, metric, parameters, class_count)


def _scorer(role: str, reference: str, settings: CallableWorkload) -> Callable[..., Any]:
    """Return the loss or metric. Raises WorkloadError where it is a class such as torch.nn.MSELoss, not made yet."""
    found = resolve(role, reference, settings.python_path)
    if isinstance(found, type) and issubclass(found, torch.nn.Module):
        raise WorkloadError(
            f"workload.{role} {reference!r} must be a function of (outputs, targets), got a class: name a function, or "
            f"an object of that class, such as `{role} = {found.__name__}(...)` in a module of yours."
        )
    return found


def _copied(loss: Callable[[Any, Any], torch.Tensor]) -> Callable[[Any, Any], torch.Tensor]:
    """Return a copy, if it is an object of the user's that can be copied."""
    with suppress(Exception):  # whatever it holds
        return copy.deepcopy(loss)  # of a function: the function
    return loss


def _metric(settings: CallableWorkload) -> Callable[[Any, Any], float]:
    """Return accuracy, or the user's metric: NaN, without asking their function, where outputs are not finite."""
    if settings.metric is None:
        return accuracy
    function = _scorer("metric", settings.metric, settings)
    given = f" with metric_settings {settings.metric_settings}" if settings.metric_settings else ""

    def metric(outputs: Any, targets: Any) -> float:
        with blamed_on(f"workload.metric {settings.metric!r}{given} must return a number, but"):
            if not bool(torch.isfinite(outputs).all()):
                return math.nan
            return float(function(outputs.cpu(), targets.cpu(), **settings.metric_settings))

    return metric


def _build(function: Callable[[], Any], settings: CallableWorkload) -> torch.nn.Module:
    with blamed_on(f"workload.model {settings.model!r}"):
        model = function()
    if not isinstance(model, torch.nn.Module):
        raise WorkloadError(f"workload.model {settings.model!r} must return a torch.nn.Module, got {typed(model)}.")
    return started(model, settings)


def _check_fresh(first: torch.nn.Module, second: torch.nn.Module, reference: str) -> None:
    trainable = [parameter for parameter in first.parameters() if parameter.requires_grad]
    if not trainable:
        raise WorkloadError(f"workload.model {reference!r} must return a model with parameters that require gradients.")
    if {id(parameter) for parameter in trainable} & {id(parameter) for parameter in second.parameters()}:
        raise WorkloadError(
            f"workload.model {reference!r} returns the same parameters at each call, so trials would train on top of "
            "each other: build the model inside the function."
        )
    shared = [norm for norm in _batch_norms(first) if any(norm is other for other in _batch_norms(second))]
    if any(norm.running_mean is not None and not norm.affine for norm in shared):
        raise WorkloadError(
            f"workload.model {reference!r} returns a batch norm that all models share, so trials would go on from each "
            "other's running statistics: build or copy (copy.deepcopy) it inside the function."
        )


def _batch_norms(model: torch.nn.Module) -> list[torch.nn.modules.batchnorm._BatchNorm]:
    return [part for part in model.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]


def _check_loss(loss: object, settings: CallableWorkload) -> None:
    if isinstance(loss, torch.nn.Module) and any(parameter.requires_grad for parameter in loss.parameters()):
        raise WorkloadError(
            f"workload.loss {settings.loss!r} has parameters of its own, which no optimizer would train: make them a "
            "part of the model, or freeze them with .requires_grad_(False)."
        )


def _class_count(settings: CallableWorkload, data: UserData) -> int | None:
    """Return 1 + the largest class id, or None when loss and metric are the user's own: targets are their business."""
    if settings.loss and settings.metric:
        return None
    default = "metric accuracy" if settings.loss else "loss cross-entropy"
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    largest = 0
    for name, part in parts.items():
        if part is None:
            continue
        where, targets = f"workload.data {settings.data!r}, {name}", part.targets
        if targets.dtype != torch.int64:
            raise WorkloadError(
                f"{where}: the default {default} needs class ids (whole numbers from 0) as targets, got "
                f"{targets.dtype}: convert them, or give {_own_scores(settings)} for other targets."
            )
        if targets.ndim == 2 and targets.shape[1] == 1:
            raise WorkloadError(
                f"{where}: class ids must have shape (rows,), got {tuple(targets.shape)}: use .squeeze(1)."
            )
        if int(targets.min()) < 0:
            raise WorkloadError(
                f"{where}: class ids must be 0 or more, got {int(targets.min())}: number classes from 0."
            )
        if name == "train" and int(targets.min()) == int(targets.max()):
            raise WorkloadError(
                f"{where}: all {len(targets)} targets are class {int(targets.max())}: a classifier needs two classes."
            )
        largest = max(largest, int(targets.max()))
    return largest + 1


def _own_scores(settings: CallableWorkload) -> str:
    """Return what to name where targets are no class ids, or outputs no value per class."""
    return "workload.metric" if settings.loss else "workload.loss and workload.metric"


def _check_batch(
    settings: CallableWorkload,
    data: UserData,
    model: torch.nn.Module,
    loss: Callable[[Any, Any], Any],
    metric: Callable[[Any, Any], float],
    class_count: int | None,
) -> None:
    """Send some examples through model, loss and metric."""
    inputs, targets = _probe_batch(data, next(iter(model.parameters())).device)
    shape = f" on inputs of shape {tuple(inputs.shape)}" if isinstance(inputs, torch.Tensor) else ""
    with blamed_on(f"workload.model {settings.model!r}: {type(model).__name__}{shape}"):
        outputs = model(inputs)
    if class_count is not None:
        _check_class_outputs(outputs, targets, class_count, settings)
    elif not isinstance(outputs, torch.Tensor):
        raise WorkloadError(
            f"workload.model {settings.model!r} must return one tensor when it is evaluated, since loss and metric are "
            f"given that of a whole split, got {typed(outputs)}: return what they need of it, side by side (torch.cat)."
        )
    loss_name = settings.loss or "cross-entropy"
    if outputs.is_floating_point() and not outputs.requires_grad:  # a copy with averaged weights, say, was evaluated
        outputs = outputs.detach().clone().requires_grad_()
    if class_count is None:  # before the metric is asked, which may refuse the same shapes without a way out
        _check_pairs(f"workload.loss {loss_name!r}", loss, outputs, targets)
    with blamed_on(f"workload.loss {loss_name!r}"):
        value = loss(outputs, targets)
    if not (isinstance(value, torch.Tensor) and value.ndim == 0 and value.requires_grad):
        got = typed(value)
        if isinstance(value, torch.Tensor):
            got = f"shape {tuple(value.shape)}" if value.ndim else "one without a gradient"
        raise WorkloadError(f"workload.loss {loss_name!r} must return a scalar tensor to differentiate, got {got}.")
    metric(outputs.detach(), targets)
    if class_count is None:
        _check_pairs(f"workload.metric {settings.metric!r}", metric, outputs, targets)


def _check_pairs(who: str, score: Callable[[Any, Any], Any], outputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Refuse a loss or metric for which it does not matter which target belongs to which output.

    Outputs of shape (rows, 1) and targets of shape (rows,) are broadcast to (rows, rows), at most with a warning.
    """
    if sorted((outputs.shape, targets.shape)) != [(len(targets),), (len(targets), 1)]:
        return
    spread = torch.linspace(0.1, 0.9, len(targets)).to(outputs).reshape(outputs.shape)
    tries = (spread, targets), (spread, targets.roll(1, 0)), (spread.reshape(targets.shape), targets)
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            as_it_is, in_another_order, of_one_shape = (float(score(*one)) for one in tries)
    except Exception:  # it takes other numbers or shapes only
        return
    if math.isclose(as_it_is, in_another_order, rel_tol=1e-5) and not math.isclose(
        as_it_is, of_one_shape, rel_tol=1e-5
    ):
        raise WorkloadError(
            f"{who} compares each output with every target: the model returns {tuple(outputs.shape)}, targets have "
            f"{tuple(targets.shape)}, which torch broadcasts to {(len(targets),) * 2}. Give both one shape, "
            "(rows,) or (rows, 1)."
        )


def _probe_batch(data: UserData, device: torch.device) -> Batch:
    part = data.validation or data.train
    assert not isinstance(part, LoaderPart), "read_parts refuses a loader without a validation part"
    rows = min(PROBE_ROWS, len(part.targets))
    return next(iter(part.subset(torch.arange(rows)).in_order(rows, device)))


def _check_class_outputs(outputs: Any, targets: torch.Tensor, class_count: int, settings: CallableWorkload) -> None:
    who = f"workload.model {settings.model!r}"
    if not isinstance(outputs, torch.Tensor):
        raise WorkloadError(f"{who} must return a tensor of (rows, classes), got {typed(outputs)}.")
    expected = (len(targets), "classes", *targets.shape[1:])
    if outputs.ndim != len(expected) or (len(outputs), *outputs.shape[2:]) != tuple(targets.shape):
        shape = f"({', '.join(map(str, expected))})"
        given = f" with targets of shape {tuple(targets.shape)}" if targets.ndim > 1 else ""
        others = f": give one value per class, or {_own_scores(settings)} for other outputs"
        advice = ": give class ids, not one-hot rows" if outputs.shape == targets.shape != (len(targets),) else others
        raise WorkloadError(
            f"{who} must return {shape} for {len(targets)} rows{given}, got {tuple(outputs.shape)}{advice}."
        )
    if outputs.shape[1] < class_count:
        raise WorkloadError(
            f"{who} returns {outputs.shape[1]} values per row, but the targets hold class ids up to {class_count - 1}: "
            f"give its last layer {class_count} outputs, number classes from 0, or give "
            f"{_own_scores(settings)} for other outputs."
        )


def _facts(settings: CallableWorkload, splits: Splits, checked: _Checked) -> WorkloadFacts:
    train_count = len(splits.train.targets)
    own_metric = settings.metric is not None
    return WorkloadFacts(
        metric=settings.measures,
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
        f"model {settings.model}{origin(settings)}",
    )


def _steps_per_epoch(settings: CallableWorkload, train: Examples | LoaderPart) -> int:
    whole = steps_per_epoch(len(train.targets), settings.batch_size)
    if not isinstance(train, LoaderPart):
        return whole
    if train.loader.batch_size not in (None, settings.batch_size):
        raise WorkloadError(
            f"workload.batch_size is {settings.batch_size}, but the training DataLoader of {settings.data!r} has "
            f"batch_size {train.loader.batch_size}: make them equal."
        )
    return len(train.loader)


def _shape(train: Examples | LoaderPart) -> str:
    return f" of shape {'x'.join(map(str, train.input_shape))}" if train.input_shape else ""
