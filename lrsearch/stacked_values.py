"""What passes through the copies of a model: tensors and how those of the copies lie in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol

import torch


class Layout(Enum):
    """How a value of the copies lies in one tensor. K copies, N rows (examples), C channels."""

    SHARED = "shared"
    """(N, ...): the same for all copies."""
    STACKED = "stacked"
    """(K, N, ...), or (K, ...) for a parameter."""
    FOLDED = "folded"
    """(N, K * C, ...): the channels of the copies beside each other."""


class Value(NamedTuple):
    """A tensor on its way through the copies."""

    layout: Layout
    tensor: torch.Tensor


class Copies(Protocol):
    """The models that a rule computes for: see stacking.StackedModel."""

    count: int
    parameters: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    own: set[int]
    turned: frozenset[tuple[int, ...]]


Rule = Callable[[Copies, list[Any], dict[str, Any]], Any]
"""What does the work of one step of a model's forward pass for all copies, with its arguments and keywords."""


def side_by_side(inputs: Sequence[torch.Tensor]) -> Value:
    """Return the inputs of each copy, (N, ...), as one value; images lie as convolutions take them."""
    if inputs[0].ndim == 4:
        return Value(Layout.FOLDED, torch.cat(list(inputs), 1))
    return Value(Layout.STACKED, torch.stack(list(inputs)))


def to_stacked(value: Value, count: int) -> torch.Tensor:
    """Return the tensor as (K, N, ...)."""
    if value.layout is Layout.STACKED:
        return value.tensor
    if value.layout is Layout.SHARED:
        return value.tensor.unsqueeze(0).expand(count, *value.tensor.shape)
    rows, channels, *sides = value.tensor.shape
    return value.tensor.view(rows, count, channels // count, *sides).transpose(0, 1)


def to_folded(value: Value, count: int) -> torch.Tensor:
    """Return the tensor as (N, K * C, ...)."""
    if value.layout is Layout.FOLDED:
        return value.tensor
    return to_stacked(value, count).transpose(0, 1).flatten(1, 2)


def each_in(function: Callable[[Any], Any], nested: Any) -> Any:
    """Return `nested` with `function` applied to all that is in its lists, tuples and dictionaries, however deep."""
    if isinstance(nested, Value):
        return function(nested)
    if isinstance(nested, dict):
        return {key: each_in(function, one) for key, one in nested.items()}
    if isinstance(nested, (list, tuple)):
        made = [each_in(function, one) for one in nested]
        if hasattr(nested, "_fields"):
            return type(nested)(*made)
        return type(nested)(made)  # also torch's own, such as torch.return_types.max
    return function(nested)
