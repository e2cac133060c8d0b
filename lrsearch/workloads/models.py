"""Models by name, each made for an input shape (channels, height, width) and a number of outputs, one for each class.

Importing this module does not import torch. Besides the names in `MODELS`, `torchvision/NAME` is any classification
model of torchvision, with random weights. Initial weights are drawn from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import ceil, prod
from typing import TYPE_CHECKING

from lrsearch.errors import UnknownNameError, WorkloadError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
TORCHVISION = "torchvision/"


def build(name: str, input_shape: Shape, class_count: int) -> nn.Module:
    """Return the model on the processor. Raises WorkloadError when it cannot take such inputs."""
    check_name(name)
    if name.startswith(TORCHVISION):
        from lrsearch.workloads._torchvision_models import build_torchvision

        return build_torchvision(name.removeprefix(TORCHVISION), input_shape, class_count)
    smallest = SMALLEST_SIDE[name]
    if min(input_shape[1:], default=1) < smallest:  # a table has no sides: any mlp takes it
        size = "x".join(map(str, input_shape[1:]))
        fitting = ", ".join(other for other, side in SMALLEST_SIDE.items() if side <= min(input_shape[1:]))
        raise WorkloadError(
            f"Model {name!r} needs images of at least {smallest}x{smallest} pixels, got {size}: choose {fitting}."
        )
    return MODELS[name](input_shape, class_count)


@lru_cache(maxsize=32)
def count_parameters(name: str, input_shape: Shape, class_count: int) -> int:
    """Return the number of trainable parameters; torch's generator stays as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        model = build(name, input_shape, class_count)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def check_name(name: str) -> None:
    """Raise UnknownNameError unless `name` may be a model; torchvision's own names are checked when one is built."""
    if name not in MODELS and not name.startswith(TORCHVISION):
        raise UnknownNameError("model", name, [*MODELS, f"{TORCHVISION}<name>"])


def wants_raw_pixels(name: str) -> bool:
    """Say whether the model was made for pixels of 0 to 255 less the mean image (Caffe) and not for unit variance.

    With first weights of 1e-4 this decides which rates work: Smith's 0.001 to 0.006 are for raw pixels.
    """
    return name in ("cifar10_quick", "cifar10_full")


def mlp(input_shape: Shape, class_count: int) -> nn.Module:
    """Two hidden layers of 128 and 64 units with ReLU."""
    from torch import nn

    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(input_shape), 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, class_count),
    )


def small_cnn(input_shape: Shape, class_count: int) -> nn.Module:
    """Two 3x3 convolutions (16 and 32 channels), one max-pooling, one hidden layer of 64. ReLU as in `lenet`."""
    from torch import nn

    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 2) * (width // 2), 64),
        nn.ReLU(),
        nn.Linear(64, class_count),
    )


def lenet(input_shape: Shape, class_count: int) -> nn.Module:
    """LeNet-5 (LeCun et al., 1998) as usual today: ReLU, max-pooling, full connections; 61,706 parameters on MNIST.

    ReLU stands after max-pooling, where it has a quarter of the work; outputs and gradients are the same, bit for bit.
    """
    from torch import nn

    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(6, 16, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2), 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, class_count),
    )


def cifar10_quick(input_shape: Shape, class_count: int) -> nn.Module:
    """Caffe's CIFAR10_quick: three convolutions, then 64 linear units without a non-linearity after them.

    Layers and initial weights are those of Caffe's `cifar10_quick_train_test.prototxt`. Its biases learn at
    twice the rate: `training.groups: [{pattern: "*.bias", rate_multiplier: 2}]`.
    """
    from torch import nn

    return nn.Sequential(
        *_caffe_convolution(input_shape[0], 32, 1e-4, nn.MaxPool2d(3, 2, ceil_mode=True), pool_first=True),
        *_caffe_convolution(32, 32, 0.01, nn.AvgPool2d(3, 2, ceil_mode=True)),
        *_caffe_convolution(32, 64, 0.01, nn.AvgPool2d(3, 2, ceil_mode=True)),
        nn.Flatten(),
        _gaussian(nn.Linear(64 * _after_three_pools(input_shape), 64), 0.1),
        _gaussian(nn.Linear(64, class_count), 0.1),
    )


def cifar10_full(input_shape: Shape, class_count: int) -> nn.Module:
    """Caffe's CIFAR10_full, the net of Smith's CIFAR-10 experiments (81 to 82 % after 70,000 steps of 100 images).

    Layers and initial weights are those of Caffe's `cifar10_full_train_test.prototxt`. Its multipliers of rate
    and weight decay are the optimizer's business; a study file says them under `training`:

        groups:
          - {pattern: "[04].bias", rate_multiplier: 2}
          - {pattern: "12.weight", weight_decay_multiplier: 250}
          - {pattern: "12.bias", rate_multiplier: 2, weight_decay_multiplier: 0}
    """
    from torch import nn

    from lrsearch.workloads._layers import LocalResponseNorm

    return nn.Sequential(
        *_caffe_convolution(input_shape[0], 32, 1e-4, nn.MaxPool2d(3, 2, ceil_mode=True), pool_first=True),
        LocalResponseNorm(size=3, alpha=5e-5, beta=0.75),
        *_caffe_convolution(32, 32, 0.01, nn.AvgPool2d(3, 2, ceil_mode=True)),
        LocalResponseNorm(size=3, alpha=5e-5, beta=0.75),
        *_caffe_convolution(32, 64, 0.01, nn.AvgPool2d(3, 2, ceil_mode=True)),
        nn.Flatten(),
        _gaussian(nn.Linear(64 * _after_three_pools(input_shape), class_count), 0.01),
    )


def resnet9(input_shape: Shape, class_count: int) -> nn.Module:
    """The nine-layer residual net of David Page's DAWNBench entry ("How to train your ResNet", 2018)."""
    from torch import nn

    from lrsearch.workloads._layers import GlobalMaxPool, Residual, Scale, convolution

    return nn.Sequential(
        *convolution(input_shape[0], 64),
        *convolution(64, 128),
        nn.MaxPool2d(2),
        Residual(nn.Sequential(*convolution(128, 128), *convolution(128, 128))),
        *convolution(128, 256),
        nn.MaxPool2d(2),
        *convolution(256, 512),
        nn.MaxPool2d(2),
        Residual(nn.Sequential(*convolution(512, 512), *convolution(512, 512))),
        GlobalMaxPool(),
        nn.Linear(512, class_count, bias=False),
        Scale(0.125),
    )


def _caffe_convolution(
    inputs: int, outputs: int, deviation: float, pool: nn.Module, *, pool_first: bool = False
) -> list[nn.Module]:
    """Return 5x5 convolution, ReLU and pooling, in the order that Caffe's nets have them."""
    from torch import nn

    after = [pool, nn.ReLU()] if pool_first else [nn.ReLU(), pool]
    return [_gaussian(nn.Conv2d(inputs, outputs, 5, padding=2), deviation), *after]


def _gaussian(layer: nn.Conv2d | nn.Linear, deviation: float) -> nn.Module:
    from torch import nn

    nn.init.normal_(layer.weight, std=deviation)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _after_three_pools(input_shape: Shape) -> int:
    """Return the number of pixels after three 3/2 poolings that round up, as Caffe's do: 32x32 becomes 4x4."""
    height, width = input_shape[1:]
    for _ in range(3):
        height, width = ceil((height - 3) / 2) + 1, ceil((width - 3) / 2) + 1
    return height * width


def unknown_torchvision(name: str, known: list[str]) -> WorkloadError:
    return WorkloadError(
        f"torchvision has no classification model {name!r}; "
        f"torchvision.models.list_models() lists them.{did_you_mean(name, known)}"
    )


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "cifar10_full": cifar10_full,
    "cifar10_quick": cifar10_quick,
    "lenet": lenet,
    "mlp": mlp,
    "resnet9": resnet9,
    "small_cnn": small_cnn,
}
SMALLEST_SIDE = {"cifar10_full": 8, "cifar10_quick": 8, "lenet": 12, "mlp": 1, "resnet9": 8, "small_cnn": 2}
"""Pixels per side below which a layer of the model would have nothing left to see."""
