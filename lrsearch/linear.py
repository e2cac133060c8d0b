"""The linear layer of several copies at once."""

from __future__ import annotations

import torch


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return what the layers of K copies give for N rows each, (K, N, outputs), of (K, N, inputs).

    Weights are (K, outputs, inputs) and biases (K, outputs).
    """
    return torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
