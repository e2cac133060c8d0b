"""What some steps have made of a member of a gang, and of the same trial alone: by it a gang is refused before a study.

Rounding grows from step to step, by Adam and batch norm of few images most: what is told apart here is another
computation, not another rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

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
        self.updates = {name: own - self.first[name] for name, own in last.items()}
        self.buffer_changes = {
            name: own.double() - self.first_buffers[name].double()
            for name, own in buffers.items()
            if own.shape == self.first_buffers[name].shape
        }


def state(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return copies that stay as they are."""
    return {name: one.detach().cpu().clone() for name, one in tensors if not one.is_complex()}


def difference(found: History, expected: History, precision: Precision) -> str:
    """Return in what a member's history differs by more than rounding does; nothing where it does not."""
    tolerance = LOSS_TOLERANCE[precision]
    for loss, alone in zip(found.evaluations, expected.evaluations, strict=True):
        if loss != alone and (
            loss is None or alone is None or not abs(loss - alone) <= tolerance * max(1.0, abs(alone))
        ):
            return f"evaluated together the model gives the loss {loss}, alone {alone}"
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
