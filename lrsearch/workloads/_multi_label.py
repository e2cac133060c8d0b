"""Loss and metric where an example has any number of labels: targets are rows of zeros and ones, (rows, labels)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray


def binary_cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.float())


@dataclass(frozen=True)
class FittedMicroF1:
    """Micro-F1: 2 hits / (labels answered + labels there) over all rows; outputs above `threshold` are answers."""

    threshold: float

    @classmethod
    def of(cls, outputs: torch.Tensor, targets: torch.Tensor) -> FittedMicroF1:
        """Return micro-F1 at the one threshold for all labels that is best for these outputs, the highest on ties.

        It lies half-way between the lowest output that is answered and the highest that is not. NaN for NaN.
        """
        scores, order = outputs.flatten().sort(descending=True)
        hits = targets.flatten()[order].cumsum(0, dtype=torch.int64).float()
        answered = torch.arange(1, len(scores) + 1, device=scores.device)
        below = torch.cat([scores[1:], scores.new_tensor([-math.inf])])
        # Equal outputs are answered together: only where the next one is lower can a threshold lie.
        f1 = torch.where(below < scores, 2 * hits / (answered + hits[-1]), -1.0)
        best = int(f1.argmax())
        upper, lower = scores[best], below[best]
        middle = upper / 2 + lower / 2
        return cls(float(torch.where(middle < upper, middle, lower)))  # of two neighbouring floats there is no middle

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Return the micro-F1 of these outputs, 0 to 1; NaN where outputs are not finite."""
        from torchmetrics.functional.classification import binary_f1_score

        if math.isnan(self.threshold) or not bool(torch.isfinite(outputs).all()):
            return math.nan
        return float(binary_f1_score((outputs > self.threshold).int().flatten(), targets.int().flatten()))


def micro_f1_chance(labels: NDArray[Any]) -> float:
    """Return the micro-F1 of the best answer that is the same for every row of `labels`.

    Answering a set S of labels gives 2 sum(n_l, l in S) / (rows |S| + sum(n_l, all l)), where n_l rows have label l. Of
    the sets of one size the commonest labels are best, so it is enough to try the k commonest, for every k.

    >>> round(micro_f1_chance(np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1]])), 4)  # label 0: 2 * 3 / (3 + 5)
    0.75
    """
    counts = np.sort(labels.sum(0, dtype=np.int64))[::-1]
    answered = len(labels) * np.arange(1, len(counts) + 1)
    return float((2 * counts.cumsum() / (answered + counts.sum())).max())
