"""What some steps have made of a member of a gang, and of the same trial alone: by it a gang is refused before a study.

In float64, where a workload lets itself be computed so, rounding is far below all that another computation does.
In float32 it grows from step to step, by Adam and batch norm of few images most, and there only what is clearly
another computation is told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lrsearch.interfaces import LoadedWorkload, Split
from lrsearch.training import Run
from lrsearch.trial import Precision

COMPARED_RATE = 1e-3
"""Of the steps of a small gang that are compared with those of its members alone."""
EVALUATED_ROWS = 32
LOSS_TOLERANCE = {"float32": 0.05, "bfloat16": 0.1}
"""How far, relative to the larger of 1 and itself, the loss of an evaluation may be from that alone."""
UPDATE_TOLERANCE = {"float32": 0.1, "bfloat16": 0.5}
"""How far, relative to itself, what a weight has learned may be from what it has learned alone,"""
ROUNDING = 2e-6
"""and relative to the weight,"""
MOST_OFF = 0.3
"""and the share of weights that may be farther off. ResNet-18 with Adam in bfloat16 had 0.16 after four steps."""
BUFFER_TOLERANCE = 0.5
"""How far, relative to its norm, the change of a buffer may be from that alone."""
DOUBLE_ROWS = 4
"""Of each batch, in float64."""
DOUBLE_TOLERANCE = 1e-6
"""In float64, how far what a weight or buffer has become may be from that alone: relative to the most that any of its
numbers has changed,"""
FAINT = 1e-7
"""to the most that any of the model's weights has changed: where a gradient is nothing but rounding, Adam makes steps
of it;"""
DOUBLE_ROUNDING = 1e-12
"""and to the largest number in it. Eager and stacked optimisers differ by some 1e-16."""
EVALUATION_TOLERANCE = 1e-5
"""Losses of evaluations are computed from outputs in float32."""


@dataclass
class History:
    """What some steps and evaluations have made of a model."""

    first: dict[str, torch.Tensor]
    """Parameters, to begin with."""
    first_buffers: dict[str, torch.Tensor]
    evaluations: list[float | None] = field(default_factory=list)
    updates: dict[str, torch.Tensor] = field(default_factory=dict)
    buffer_changes: dict[str, torch.Tensor] = field(default_factory=dict)

    def end(self, last: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
        """Raises ValueError for what was not there to begin with."""
        if not (last.keys() <= self.first.keys() and buffers.keys() <= self.first_buffers.keys()):
            raise ValueError("the model makes a buffer or parameter in its first pass")
        self.updates = {name: _less(own, self.first[name]) for name, own in last.items()}
        self.buffer_changes = {
            name: _less(own.double(), self.first_buffers[name].double())
            for name, own in buffers.items()
            if own.shape == self.first_buffers[name].shape
        }


def state(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return copies that stay as they are."""
    return {name: one.detach().cpu().clone() for name, one in tensors if not one.is_complex()}


def difference(found: History, expected: History, precision: Precision) -> str:
    """Return in what a member's history differs by more than rounding does; nothing where it does not."""
    if reason := _other_evaluation(found, expected, LOSS_TOLERANCE[precision]):
        return reason
    for name, change in expected.buffer_changes.items():
        slack = BUFFER_TOLERANCE * float(change.norm()) + 1e-3 * float(expected.first_buffers[name].double().norm())
        if name not in found.buffer_changes or float((found.buffer_changes[name] - change).norm()) > slack:
            return f"together the model's buffer {name} becomes another than alone"
    off = count = 0
    for name, update in expected.updates.items():
        near = UPDATE_TOLERANCE[precision] * update.abs() + ROUNDING * expected.first[name].abs()
        off += int(((found.updates[name] - update).abs() > near).sum())
        count += update.numel()
    if off > MOST_OFF * count:
        return f"together {off} of {count} weights are trained otherwise than alone"
    return ""


def difference_in_double(found: History, expected: History) -> str:
    """Return in what a member's history differs from that alone, both computed in float64."""
    most = max((_largest(update) for update in expected.updates.values()), default=0.0)
    changes = [
        (expected.updates, found.updates, expected.first, "together {}'s weights are trained otherwise than alone"),
        (
            expected.buffer_changes,
            found.buffer_changes,
            expected.first_buffers,
            "together the model's buffer {} becomes another than alone",
        ),
    ]
    for alone_changes, own_changes, first, words in changes:
        for name, change in alone_changes.items():
            slack = DOUBLE_TOLERANCE * _largest(change) + FAINT * most + DOUBLE_ROUNDING * _largest(first[name])
            if name not in own_changes or not bool((_less(own_changes[name], change).abs() <= slack).all()):
                return words.format(name)
    return _other_evaluation(found, expected, EVALUATION_TOLERANCE)


def _other_evaluation(found: History, expected: History, tolerance: float) -> str:
    for loss, alone in zip(found.evaluations, expected.evaluations, strict=True):
        if loss != alone and (
            loss is None or alone is None or not abs(loss - alone) <= tolerance * max(1.0, abs(alone))
        ):
            return f"evaluated together the model gives the loss {loss}, alone {alone}"
    return ""


def _less(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return one minus the other, 0 also where both are the same infinity or no number."""
    return torch.where((one == other) | (one.isnan() & other.isnan()), 0, one - other)


def _largest(numbers: torch.Tensor) -> float:
    """Return the largest amount of the finite numbers among them."""
    return float(numbers.abs().nan_to_num(0.0, posinf=0.0).max()) if numbers.numel() else 0.0


@dataclass
class FewEvaluations:
    """A workload, of whose splits two batches of a few rows are evaluated."""

    loaded: LoadedWorkload

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loaded, name)

    def can_evaluate(self, run: Run) -> bool:
        """Whether the user's metric takes so few rows."""
        try:
            run.evaluate("range_test")
        except Exception:  # whatever it is, over the whole split it may go well
            return False
        return True

    def evaluation_batches(self, split: Split) -> Iterator[Any]:
        for batch in islice(self.loaded.evaluation_batches(split), 2):
            yield tuple(part[:EVALUATED_ROWS] if isinstance(part, torch.Tensor) else part for part in batch)


class InDouble(FewEvaluations):
    """A workload whose model computes in float64, with a few rows of each batch.

    Making or using one raises whatever the user's code raises that cannot do so.
    """

    def __init__(self, loaded: LoadedWorkload) -> None:
        super().__init__(loaded)
        self.loss = _loss_in_double(loaded.loss)
        self.losing_precision = LosingPrecision()

    def build_model(self) -> nn.Module:
        return self.loaded.build_model().double()

    def train_batches(self, generator: torch.Generator) -> Iterator[Any]:
        for batch in self.loaded.train_batches(generator):
            yield _few_in_double(batch)

    def evaluation_batches(self, split: Split) -> Iterator[Any]:
        for inputs, targets in super().evaluation_batches(split):  # whose outputs a run evaluates in float32
            yield _few_in_double((inputs, targets))[0], _of_tensors(targets, lambda one: one[:DOUBLE_ROWS])


class LosingPrecision(TorchFunctionMode):
    """Notices whether something makes of numbers in float64 others of fewer digits, as a model does that asks for
    float32: its rounding is not told from another computation by them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.noticed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype in (torch.float32, torch.bfloat16, torch.float16):
            given = [*args, *(kwargs or {}).values()]
            self.noticed |= any(isinstance(one, torch.Tensor) and one.dtype is torch.float64 for one in given)
        return result


def _loss_in_double(loss: Callable[[Any, Any], torch.Tensor]) -> Callable[[Any, Any], torch.Tensor]:
    """Return a loss for outputs in float64, too, of one that may hold weights."""
    if not isinstance(loss, nn.Module):
        return loss
    double: Callable[[Any, Any], torch.Tensor] = deepcopy(loss).double()
    return lambda outputs, targets: (double if outputs.dtype is torch.float64 else loss)(outputs, targets)


def _few_in_double(batch: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the first rows of a batch, where all its tensors have as many, in float64."""
    rows = set[int]()
    _of_tensors(batch, lambda one: rows.add(len(one) if one.ndim else 0))

    def few(one: torch.Tensor) -> torch.Tensor:
        part = one[:DOUBLE_ROWS] if len(rows) == 1 and one.ndim else one
        return part.double() if part.is_floating_point() else part

    result: tuple[Any, Any] = _of_tensors(batch, few)
    return result


def _of_tensors(nested: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Return `nested` with what the function makes of the tensors in its tuples, lists and dictionaries."""
    if isinstance(nested, torch.Tensor):
        return function(nested)
    if isinstance(nested, dict):
        return {key: _of_tensors(one, function) for key, one in nested.items()}
    if isinstance(nested, (tuple, list)):
        made = [_of_tensors(one, function) for one in nested]
        return type(nested)(*made) if hasattr(nested, "_fields") else type(nested)(made)
    return nested
