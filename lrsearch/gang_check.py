"""What some steps have made of a member of a gang, and of the same trial alone: by it a gang is refused before a study.

In float64, where a workload lets itself be computed so, rounding is far below all that another computation does.
In float32 it grows from step to step, by Adam and batch norm of few images most, and there only what is clearly
another computation is told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lrsearch.interfaces import LoadedWorkload, Split
from lrsearch.stacked_values import each_in
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
FEW_ROWS = 32
"""Of each batch, in bfloat16 where float64 has told no difference,"""
DOUBLE_ROWS = 8
"""and in float64."""
ROUNDED = 3.0
"""Times what rounding changes of a trial alone, how much more its members may be off: after four steps ResNet-50 in
float32, and MobileNet, ShuffleNet and DenseNet in bfloat16, have trained half of their weights otherwise."""
ALONG = 0.1
"""How much farther along the way of a trial alone, or less far, its weights may go, beside twice what rounding does,"""
MOST_BLURRED = 0.3
"""and the most of that where float64 tells nothing."""
DOUBLE_TOLERANCE = 1e-6
"""In float64, how far what a weight or buffer has become may be from that alone: relative to the most that any of its
numbers has changed,"""
FAINT = 1e-7
"""to the most that any of the model's weights has changed,"""
DOUBLE_ROUNDING = 1e-12
"""to the largest number in it,"""
SHAKEN = 100.0
"""and to what it becomes where the weights begin with other last digits: Adam makes steps also of a gradient that is
nothing but rounding, and batch norm of few rows makes rounding grow."""
LAST_DIGITS = 5.0
"""Times the distance from 1 to the next number."""
LARGEST_IN_DOUBLE = 30_000_000
"""Parameters; for more the four copies with all that an optimiser keeps would take gigabytes."""
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
        self.updates = {name: less(own, self.first[name]) for name, own in last.items()}
        self.buffer_changes = {
            name: less(own.double(), self.first_buffers[name].double())
            for name, own in buffers.items()
            if own.shape == self.first_buffers[name].shape
        }


def state(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return copies that stay as they are."""
    return {name: one.detach().cpu().clone() for name, one in tensors if not one.is_complex()}


def difference(
    found: History,
    expected: History,
    precision: Precision,
    rounded: History | None = None,
    *,
    is_told: bool = False,
) -> str:
    """Return in what a member's history differs by more than rounding does; nothing where it does not.

    `rounded` is another history alone, which differs by rounding, of which batch norm of few images may make much; so
    much that nothing else can be seen is a difference, too, unless float64 `is_told` to have shown none.
    """
    if reason := _other_evaluation(found, expected, LOSS_TOLERANCE[precision], rounded, ROUNDED):
        return reason
    rounding = {} if rounded is None else rounded.updates | rounded.buffer_changes
    for name, change in expected.buffer_changes.items():
        slack = BUFFER_TOLERANCE * norm(change) + 1e-3 * norm(expected.first_buffers[name])
        if name in rounding:
            slack += ROUNDED * norm(less(rounding[name], change))
        if name not in found.buffer_changes or not float(less(found.buffer_changes[name], change).norm()) <= slack:
            return f"together the model's buffer {name} becomes another than alone"
    off = count = 0
    for name, update in expected.updates.items():
        near = UPDATE_TOLERANCE[precision] * update.abs() + ROUNDING * expected.first[name].abs()
        if name in rounding:
            near += ROUNDED * norm(less(rounding[name], update)) / math.sqrt(max(1, update.numel()))
        off += int((~(less(found.updates[name], update).abs() <= near)).sum())
        count += update.numel()
    if off > MOST_OFF * count:
        return f"together {off} of {count} weights are trained otherwise than alone"
    if rounded is None:
        return ""
    usual = abs(_along(rounded, expected) - 1)
    if not is_told and not usual <= MOST_BLURRED:
        return "rounding changes too much of what the weights learn to compare it"
    along = _along(found, expected)
    if not abs(along - 1) <= ALONG + 2 * usual:
        return f"together the weights are trained {along:.3g} times as far as alone"
    return ""


def _along(history: History, expected: History) -> float:
    """Return how far the weights went along the way that was expected: rounding lies across it, mostly."""
    ways = [(history.updates[name].double(), update.double()) for name, update in expected.updates.items()]
    length = sum(float(way.square().sum()) for _, way in ways)
    return sum(float((own * way).sum()) for own, way in ways) / length if length else 0.0


def difference_in_double(found: History, expected: History, shaken: History | None = None) -> str:
    """Return in what a member's history differs from that alone, both computed in float64.

    `shaken` is another history alone, which began with weights that are other in their last digits: what that changes
    is rounding.
    """
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
    rounding = {} if shaken is None else shaken.updates | shaken.buffer_changes
    for alone_changes, own_changes, first, words in changes:
        for name, change in alone_changes.items():
            slack = DOUBLE_TOLERANCE * _largest(change) + FAINT * most + DOUBLE_ROUNDING * _largest(first[name])
            if name in rounding:
                slack += SHAKEN * _largest(less(rounding[name], change))
            if name not in own_changes or not bool((less(own_changes[name], change).abs() <= slack).all()):
                return words.format(name)
    return _other_evaluation(found, expected, EVALUATION_TOLERANCE, shaken, SHAKEN)


def _other_evaluation(
    found: History, expected: History, tolerance: float, rounded: History | None, factor: float
) -> str:
    others = [] if rounded is None else rounded.evaluations
    others = [*others, *expected.evaluations[len(others) :]]
    # There are fewer where so few rows could not be evaluated any more.
    for loss, alone, other in zip(found.evaluations, expected.evaluations, others, strict=False):
        if loss == alone:
            continue
        rounding = 0.0 if alone is None or other is None else factor * abs(other - alone)  # None: not finite
        if loss is None or alone is None or not abs(loss - alone) <= tolerance * max(1.0, abs(alone)) + rounding:
            return f"evaluated together the model gives the loss {loss}, alone {alone}"
    return ""


def shake(model: nn.Module) -> None:
    """Give the weights other last digits; torch's generator stays where it is."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.requires_grad:  # the others may be everybody's
                shake_numbers(parameter, generator)


def shake_numbers(numbers: torch.Tensor, generator: torch.Generator) -> None:
    """Give the numbers other last digits."""
    noise = torch.randn(numbers.shape, dtype=torch.float64, generator=generator).to(numbers)
    numbers.add_(numbers * noise, alpha=LAST_DIGITS * torch.finfo(numbers.dtype).eps)


def less(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return one minus the other, 0 also where both are the same infinity or no number."""
    return torch.where((one == other) | (one.isnan() & other.isnan()), 0, one - other)


def norm(numbers: torch.Tensor) -> float:
    """Return the root of the sum of squares, 0 where that is not finite."""
    found = float(numbers.double().norm())
    return found if math.isfinite(found) else 0.0


def _largest(numbers: torch.Tensor) -> float:
    """Return the largest amount of the finite numbers among them."""
    return float(numbers.abs().nan_to_num(0.0, posinf=0.0).max()) if numbers.numel() else 0.0


def begun_anew(loaded: LoadedWorkload) -> LoadedWorkload:
    """Return the workload with a loss of its own, as that of each trial is: what the loss keeps begins anew."""
    own = object.__new__(type(loaded))
    try:
        if isinstance(loaded.loss, MethodType):  # of the workload itself, maybe
            return loaded
        vars(own).update({**vars(loaded), "loss": deepcopy(loaded.loss)})
    except Exception:  # whatever the loss holds
        return loaded
    return own


class FewEvaluations:
    """A workload, of whose splits two batches of a few rows are evaluated, and the loss of these alone."""

    rows = EVALUATED_ROWS
    watching: AbstractContextManager[object] = nullcontext()
    """Looks at the steps of trials alone."""

    def __init__(self, loaded: LoadedWorkload) -> None:
        self.loaded = loaded
        self.evaluates = True
        for name in ("stacked_loss", "random_sources", "channels_last"):
            if hasattr(loaded, name):  # from Python 3.12 on protocols do not find what __getattr__ gives
                setattr(self, name, getattr(loaded, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loaded, name)

    def evaluated(self, run: Run) -> list[float | None]:
        """Return the loss of a trial alone; nothing, from now on, where so few rows cannot be evaluated."""
        try:
            return [run.evaluate("range_test")[0]] if self.evaluates else []
        except Exception:  # over the whole split it may go well
            self.evaluates = False
            run.switch(training=True)
            return []

    def evaluation_batches(self, split: Split) -> Iterator[Any]:
        for batch in islice(self.loaded.evaluation_batches(split), 2):
            yield _few(batch, self.rows)

    def metric(self, outputs: Any, targets: Any) -> float:
        """Take any rows, which the user's may not."""
        return 0.0

    def fit_metric(self, outputs: Any, targets: Any) -> Callable[[Any, Any], float]:
        return self.metric


class FewRows(FewEvaluations):
    """A workload, of whose batches a few rows are trained on, too."""

    rows = FEW_ROWS

    def train_batches(self, generator: torch.Generator) -> Iterator[Any]:
        for batch in self.loaded.train_batches(generator):
            yield _few(batch, self.rows)


class InDouble(FewRows):
    """A workload whose model computes in float64, with a few rows of each batch.

    Making or using one raises whatever the user's code raises that cannot do so.
    """

    rows = DOUBLE_ROWS

    def __init__(self, loaded: LoadedWorkload) -> None:
        super().__init__(loaded)
        self.loss = _LossInDouble(loaded.loss) if isinstance(loaded.loss, nn.Module) else loaded.loss
        self.watching = self.losing_precision = LosingPrecision()

    def build_model(self) -> nn.Module:
        return deepcopy(self.loaded.build_model()).double()  # others may hold parts of it

    def train_batches(self, generator: torch.Generator) -> Iterator[Any]:
        for batch in super().train_batches(generator):
            yield _of_tensors(batch, _double)

    def evaluated(self, run: Run) -> list[float | None]:
        return [run.evaluate("range_test")[0]]

    def evaluation_batches(self, split: Split) -> Iterator[Any]:
        for inputs, targets in super().evaluation_batches(split):
            yield _of_tensors(inputs, _double), targets  # a run computes losses of evaluations in float32


class LosingPrecision(TorchFunctionMode):
    """Notices whether something makes of numbers in float64 others of fewer digits, as a model does that asks for
    float32: its rounding is not told from another computation by them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.noticed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        written = args[0] if func is torch.Tensor.__setitem__ else result
        if not self.noticed and any(one.dtype in FEWER_DIGITS for one in _tensors_in(written)):
            self.noticed = any(one.dtype in ALL_DIGITS for one in _tensors_in([args, kwargs]))
        return result


FEWER_DIGITS = (torch.float32, torch.bfloat16, torch.float16, torch.complex64)
ALL_DIGITS = (torch.float64, torch.complex128)


class _LossInDouble(nn.Module):
    """A loss, which may hold weights, that computes in float64."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.exact = deepcopy(loss).double()

    def forward(self, outputs: Any, targets: Any) -> torch.Tensor:
        loss: torch.Tensor = self.exact(_of_tensors(outputs, _double), _of_tensors(targets, _double))
        return loss


def _few(batch: Any, rows: int) -> Any:
    """Return the first rows of a batch, all of them where its tensors have not the same number."""
    lengths = {len(one) if one.ndim else 0 for one in _tensors_in(batch)}
    return _of_tensors(batch, lambda one: one[:rows]) if len(lengths) == 1 and 0 not in lengths else batch


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _tensors_in(nested: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _of_tensors(nested, found.append)
    return found


def _of_tensors(nested: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Return `nested` with what the function makes of the tensors in its tuples, lists and dictionaries."""
    return each_in(lambda one: function(one) if isinstance(one, torch.Tensor) else one, nested)
