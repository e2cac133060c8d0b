"""torchvision's classification models, fitted to the channels, size and classes at hand."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torchvision
from torch import nn

from lrsearch.errors import WorkloadError
from lrsearch.workloads.models import Shape, unknown_torchvision

SMALL_SIDE = 64
"""Pixels up to which a ResNet's first layers keep the size, as is usual on CIFAR (He et al., 2015, section 4.2)."""


def build_torchvision(name: str, input_shape: Shape, class_count: int) -> nn.Module:
    """Return the untrained model `name`. Raises WorkloadError when it is unknown or does not fit the inputs."""
    _check_fit(name, input_shape, class_count)
    return _fitted(name, input_shape, class_count)


def _fitted(name: str, input_shape: Shape, class_count: int) -> nn.Module:
    # The two Inceptions return a tuple while training unless their side exits are off.
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=class_count, **options)
    small = isinstance(model, torchvision.models.ResNet) and max(input_shape[1:]) <= SMALL_SIDE
    if small:
        model.maxpool = nn.Identity()
    _replace_first_convolution(model, input_shape[0], small)
    return model


def _replace_first_convolution(model: nn.Module, channels: int, small: bool) -> None:
    path, old = next((path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
    if channels == old.in_channels and not small:
        return
    size = {"kernel_size": 3, "stride": 1, "padding": 1} if small else _size_of(old)
    new = nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **size)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule(path, new)


def _size_of(layer: nn.Conv2d) -> dict[str, Any]:
    return {"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}


@lru_cache(maxsize=32)
def _check_fit(name: str, input_shape: Shape, class_count: int) -> None:
    """Send two empty images through the model; torchvision says itself what it cannot take."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_torchvision(name, known)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            outputs = _fitted(name, input_shape, class_count).eval()(torch.zeros(2, *input_shape))
        fits = outputs.shape == (2, class_count)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _unfit(name, input_shape, reason) from error
    if not fits:
        raise _unfit(name, input_shape, f"it returns {tuple(outputs.shape)} for two images and {class_count} classes")


def _unfit(name: str, input_shape: Shape, reason: str) -> WorkloadError:
    channels, height, width = input_shape
    return WorkloadError(
        f"torchvision/{name} cannot take {channels}x{height}x{width} images ({reason}): "
        "choose another model, such as torchvision/resnet18, or images of the size that it was made for."
    )
