from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from lrsearch.errors import UnknownNameError, WorkloadError
from lrsearch.workloads import models
from lrsearch.workloads._layers import LocalResponseNorm


def naive_within_channel_norm(image: torch.Tensor, size: int, alpha: float, beta: float) -> torch.Tensor:
    """One channel: x / (1 + alpha / size^2 * sum of the squares in the window)^beta, pixel by pixel."""
    reach, result = size // 2, torch.empty_like(image)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            window = image[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
            energy = float(window.square().sum())
            result[row, column] = image[row, column] / (1 + alpha / size**2 * energy) ** beta
    return result


@pytest.mark.parametrize("size", [3, 5])
def test_response_norm_follows_the_formula_in_every_channel(size: int) -> None:
    images = 20 * torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = LocalResponseNorm(size, alpha=0.05, beta=0.75)(images)
    for example, expected in zip(result, images, strict=True):
        for channel, raw in zip(example, expected, strict=True):
            torch.testing.assert_close(channel, naive_within_channel_norm(raw, size, 0.05, 0.75))


def naive_caffe_pool(image: torch.Tensor, largest: bool) -> torch.Tensor:
    """Caffe's 3/2 pooling: as many windows as it takes to cover the last pixel; averages over real pixels only."""
    count = [math.ceil((side - 3) / 2) + 1 for side in image.shape]
    result = torch.empty(count[0], count[1], dtype=image.dtype)
    for row in range(count[0]):
        for column in range(count[1]):
            window = image[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            result[row, column] = window.max() if largest else window.sum() / window.numel()
    return result


@pytest.mark.parametrize("side", [28, 32, 33])
def test_the_caffe_nets_pool_as_caffe_does(side: int) -> None:
    net = models.build("cifar10_full", (3, side, side), 10)
    pools = [layer for layer in net.modules() if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d)]
    assert [type(pool) for pool in pools] == [nn.MaxPool2d, nn.AvgPool2d, nn.AvgPool2d]
    image = torch.randn(side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for pool in pools:
        expected = naive_caffe_pool(image, isinstance(pool, nn.MaxPool2d))
        image = pool(image[None, None])[0, 0]
        torch.testing.assert_close(image, expected)


def convolution(inputs: int, outputs: int, kernel: int) -> int:
    return outputs * (inputs * kernel**2 + 1)


def linear(inputs: int, outputs: int) -> int:
    return outputs * (inputs + 1)


CAFFE = convolution(3, 32, 5) + convolution(32, 32, 5) + convolution(32, 64, 5)
RESNET9 = [(3, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 512), (512, 512), (512, 512)]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("mlp", (1, 8, 8), linear(64, 128) + linear(128, 64) + linear(64, 10)),
        ("small_cnn", (1, 8, 8), convolution(1, 16, 3) + convolution(16, 32, 3) + linear(512, 64) + linear(64, 10)),
        ("lenet", (1, 28, 28), 61_706),  # LeNet-5 with full connections, as textbooks give it
        ("cifar10_quick", (3, 32, 32), CAFFE + linear(1024, 64) + linear(64, 10)),  # 145,578, Caffe's count
        ("cifar10_full", (3, 32, 32), CAFFE + linear(1024, 10)),  # 89,578, Caffe's count
        ("resnet9", (3, 32, 32), sum(9 * inputs * outputs + 2 * outputs for inputs, outputs in RESNET9) + 512 * 10),
    ],
)
def test_models_have_the_parameters_that_their_layers_say(name: str, shape: tuple[int, ...], expected: int) -> None:
    assert models.count_parameters(name, shape, 10) == expected


@pytest.mark.parametrize("name", ["cifar10_quick", "cifar10_full"])
def test_caffe_nets_start_from_gaussian_weights_and_zero_biases(name: str) -> None:
    torch.manual_seed(0)
    net = models.build(name, (3, 32, 32), 10)
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    expected = [1e-4, 0.01, 0.01, *([0.1, 0.1] if name == "cifar10_quick" else [0.01])]
    for layer, deviation in zip(layers, expected, strict=True):
        # The relative error of a deviation over n weights is 1 / sqrt(2 n); at least 640 weights, four of those.
        assert layer.weight.std().item() == pytest.approx(deviation, rel=4 / math.sqrt(2 * layer.weight.numel()))
        assert layer.bias is not None
        assert not layer.bias.any()


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_models_fit_grey_and_colour_images_of_several_sizes(name: str) -> None:
    smallest = models.SMALLEST_SIDE[name]
    for shape, classes in (((1, 28, 28), 10), ((3, 33, 17), 7), ((2, smallest, smallest), 3)):
        net = models.build(name, shape, classes).eval()
        assert net(torch.zeros(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_one_pixel_below_the_smallest_size_a_model_is_refused_with_others_to_choose(name: str) -> None:
    side = models.SMALLEST_SIDE[name] - 1
    if side == 0:
        return
    with pytest.raises(WorkloadError, match=rf"{name}.*at least {side + 1}x{side + 1} pixels, got {side}x{side}.*mlp"):
        models.build(name, (1, side, side), 10)


def test_counting_parameters_draws_no_chance() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    models.count_parameters("lenet", (1, 30, 30), 4)
    assert torch.equal(state, torch.get_rng_state())


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown model 'lenett'.*Did you mean 'lenet'"):
        models.check_name("lenett")
    with pytest.raises(WorkloadError, match=r"no classification model 'resnet19'.*Did you mean 'resnet1"):
        models.build("torchvision/resnet19", (3, 32, 32), 10)
    with pytest.raises(WorkloadError, match="no classification model"):
        models.build("torchvision/fcn_resnet50", (3, 32, 32), 10)  # torchvision has it, for segmentation


def test_a_resnet_sees_small_images_at_full_size_and_large_ones_as_torchvision_does() -> None:
    small = models.build("torchvision/resnet18", (1, 28, 28), 7)
    assert isinstance(small, torchvision.models.ResNet)
    assert small.conv1.stride == (1, 1)
    assert small.conv1.in_channels == 1
    assert isinstance(small.maxpool, nn.Identity)
    assert small.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    large = models.build("torchvision/resnet18", (3, 224, 224), 1000)
    assert sum(parameter.numel() for parameter in large.parameters()) == 11_689_512  # torchvision's documented count


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "regnet_y_400mf"])
def test_other_torchvision_models_get_the_channels_and_classes_at_hand(name: str) -> None:
    net = models.build(f"torchvision/{name}", (1, 40, 40), 7)
    assert net.eval()(torch.zeros(2, 1, 40, 40)).shape == (2, 7)


def test_a_torchvision_model_that_cannot_take_the_images_says_why() -> None:
    with pytest.raises(
        WorkloadError, match=r"torchvision/alexnet cannot take 3x32x32 images \(RuntimeError: .*too small"
    ):
        models.build("torchvision/alexnet", (3, 32, 32), 10)
