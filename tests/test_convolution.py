"""Convolutions of several copies in bfloat16 keep what is no number to themselves, and compute what each does alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lrsearch.stacking import StackedModel

COPIES, SPOILED = 4, 1
KINDS: dict[str, tuple[type[Any], int]] = {
    "1d": (nn.Conv1d, 1),
    "2d": (nn.Conv2d, 2),
    "3d": (nn.Conv3d, 3),
    "1d transposed": (nn.ConvTranspose1d, 1),
    "2d transposed": (nn.ConvTranspose2d, 2),
    "3d transposed": (nn.ConvTranspose3d, 3),
}


class Net(nn.Module):
    """Has a convolution between two others, written as a module or as a function."""

    def __init__(self, kind: str, channels: int, groups: int, stride: int, *, as_function: bool) -> None:
        super().__init__()
        convolution, sides = KINDS[kind]
        self.first = convolution(2, channels, 1)
        self.middle = convolution(channels, channels, 3, stride, padding=1, groups=groups)
        self.last = convolution(channels, 3, 1)
        self.as_function, self.sides = as_function, tuple(range(2, 2 + sides))
        name = "conv_transpose" if "transposed" in kind else "conv"
        self.function = getattr(F, f"{name}{sides}d")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(inputs))
        if self.as_function:
            groups, weight = self.middle.groups, self.middle.weight
            hidden = self.function(hidden, weight, self.middle.bias, self.middle.stride, padding=1, groups=groups)
        else:
            hidden = self.middle(hidden)
        return self.last(torch.relu(hidden)).mean(self.sides)  # type: ignore[no-any-return]


def outputs_and_gradients(stacked: StackedModel, inputs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with torch.autocast("cpu", torch.bfloat16):
        outputs = stacked(inputs)
    found = torch.autograd.grad(outputs.float().square().sum(), list(stacked.parameters.values()))
    return outputs.detach(), dict(zip(stacked.parameters, found, strict=True))


@pytest.mark.parametrize("as_function", [False, True], ids=["module", "function"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "groups"), [(24, 24), (12, 4), (12, 2), (7, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_without_numbers_leaves_the_others_as_they_are(
    kind: str, channels: int, groups: int, stride: int, *, as_function: bool
) -> None:
    torch.manual_seed(0)
    model = Net(kind, channels, groups, stride, as_function=as_function)
    inputs = torch.randn(4, 2, *(8,) * KINDS[kind][1])
    stacked = StackedModel(model, COPIES)
    with torch.no_grad():
        for weight in stacked.parameters.values():
            weight.mul_(torch.linspace(0.9, 1.1, COPIES).reshape(-1, *[1] * (weight.ndim - 1)))
    outputs, gradients = outputs_and_gradients(stacked, inputs)
    for copy in range(COPIES):
        own = {name: weight[copy].detach().requires_grad_() for name, weight in stacked.parameters.items()}
        with torch.autocast("cpu", torch.bfloat16):
            alone = functional_call(model, own, (inputs,))
        assert alone.dtype == outputs.dtype
        torch.testing.assert_close(outputs[copy], alone, rtol=0.05, atol=0.02)
    with torch.no_grad():
        for weight in stacked.parameters.values():
            weight[SPOILED] = torch.nan
    spoiled, spoiled_gradients = outputs_and_gradients(stacked, inputs)
    others = [copy for copy in range(COPIES) if copy != SPOILED]
    assert not spoiled[SPOILED].isfinite().any()
    assert torch.equal(spoiled[others], outputs[others])
    for name, gradient in gradients.items():
        assert torch.equal(spoiled_gradients[name][others], gradient[others]), name
