"""The convolutions of several copies at once, whose groups must stay apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def convolve(
    function: Callable[..., torch.Tensor],
    input: torch.Tensor,  # noqa: A002  # torch's name
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *settings: Any,
    **keywords: Any,
) -> torch.Tensor:
    """Return what a convolution with these arguments gives, one of CONVOLUTIONS, without a group's numbers in another.

    On a processor in bfloat16 torch (2.15, oneDNN) takes the channels of a group by twos and reads beyond an odd one:
    0 times what stands there, in the next group, is no number where that is none. So a copy that diverged would take
    its neighbours with it. With an odd number of channels it is computed in float32, and is bfloat16 in the end.
    """
    as_autocast = torch.is_autocast_enabled("cpu") and weight.dtype is torch.float32
    precision = torch.get_autocast_dtype("cpu") if as_autocast else weight.dtype
    if weight.device.type != "cpu" or precision is not torch.bfloat16:
        return function(input, weight, bias, *settings, **keywords)
    groups = keywords.get("groups", settings[3] if len(settings) > 3 else 1)  # of all six the fourth
    is_odd = weight.shape[1] % 2 or weight.shape[0] // groups % 2
    computed = torch.float32 if is_odd else precision
    with torch.autocast("cpu", enabled=False):  # which does not know the transposed ones of vmap
        own = (one if one is None else one.to(computed) for one in (input, weight, bias))
        return function(*own, *settings, **keywords).to(precision)
