"""Loss and metric of classification."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


def stacked_cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each model, (models,), for (models, rows, classes) and (models, rows)."""
    # Beside each other the numbers of a class are gone through many at once, and those of a row one by one.
    return F.cross_entropy(outputs.mT.contiguous(), targets, reduction="none").mean(1)


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the share of targets hit by the largest output: (rows, classes, ...) against (rows, ...)."""
    return int((outputs.argmax(1) == targets).sum()) / targets.numel()


def chance(labels: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Return the accuracy of always answering the commonest class."""
    return float(np.bincount(labels).max() / len(labels))
