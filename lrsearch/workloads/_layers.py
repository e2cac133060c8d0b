"""Layers that torch does not have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class LocalResponseNorm(nn.Module):
    """Caffe's LRN *within* a channel: x / (1 + alpha/size^2 * sum of x^2 over a size x size window)^beta.

    The window is centred and reaches over zeros at the border; the divisor stays size^2 there. torch's own layer of
    this name normalises across channels.
    """

    def __init__(self, size: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        energy = F.avg_pool2d(inputs.square(), self.size, stride=1, padding=self.size // 2)
        return inputs * (1 + self.alpha * energy).pow(-self.beta)


class Residual(nn.Module):
    """inputs + branch(inputs)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.branch(inputs)  # type: ignore[no-any-return]  # torch: a module's call is untyped


class GlobalMaxPool(nn.Module):
    """The largest value of each channel: (rows, channels, height, width) -> (rows, channels)."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(2).max(dim=2).values


class Scale(nn.Module):
    """inputs * factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.factor


def convolution(inputs: int, outputs: int) -> list[nn.Module]:
    """Return a 3x3 convolution that keeps the size, batch normalisation and ReLU."""
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
