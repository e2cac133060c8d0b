"""Image workloads on a device: uint8 tensors that stay there, index tensors for splits, batches gathered together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lrsearch.errors import DataError
from lrsearch.interfaces import BLOCK_STEPS, Batch, Split
from lrsearch.trial import WorkloadFacts
from lrsearch.workloads import models
from lrsearch.workloads._augment import Draws
from lrsearch.workloads._classification import accuracy, chance, stacked_cross_entropy
from lrsearch.workloads._multi_label import FittedMicroF1, binary_cross_entropy, micro_f1_chance
from lrsearch.workloads._settings import ImageWorkload
from lrsearch.workloads._splits import (
    evaluation_rows,
    range_test_subset,
    steps_per_epoch,
    strata,
    stratified_sample,
    stratified_split,
)
from lrsearch.workloads._weights import origin, started

PROCESSOR_BYTES, DEVICE_BYTES = 2**20, 2**24
"""As many batches as make at most so many bytes are gathered and normalised at once, but at least one: on the processor
what fits a core's second-level cache; on a GPU, where each call takes some microseconds, more."""
FLOAT_BYTES = 4
SHARE_OF_FREE_MEMORY = 0.5
"""Of a CUDA device, up to which the images go there; what is larger stays in the machine's memory."""


def load_images(settings: ImageWorkload, device: torch.device, seed: int) -> LoadedImages:
    """Return the workload, read and copied at its first use in this process, split by `seed`.

    One class id per image makes it classification; a row of zeros and ones, multi-label.
    """
    raw_pixels = models.wants_raw_pixels(settings.model)
    of_no_account = {"batch_size": 1, "model": "mlp", "augment": "none", "start_from": None, "new_layers": ()}
    source = settings.model_copy(update={**of_no_account, "validation_fraction": 0.5})
    prepared = _prepare(source, device, seed, settings.validation_fraction, raw_pixels)
    kind = LoadedImages if prepared.images.labels.ndim == 1 else LoadedMultiLabelImages
    return kind(settings, prepared)


@dataclass(frozen=True)
class _Images:
    """Everything on `device`, a pixel's channels beside each other; labels also where splits are drawn.

    Where the images do not fit there, `train` and `test` lie in the machine's memory, and batches are copied.

    Convolutions, and above all poolings, are faster in this layout: docs/speed.md says by how much.
    """

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor
    labels: np.ndarray[Any, np.dtype[Any]]
    class_count: int
    available: int
    validation_count: int
    device: torch.device


@lru_cache(maxsize=2)
def _on_device(source: ImageWorkload, device: torch.device) -> _Images:
    images = source.read()
    pixels, labels, limit = images.train_images, images.train_labels, source.train_limit
    own = len(labels) - images.validation_count
    if limit is not None and limit > own:
        raise DataError(f"workload.train_limit is {limit}, but there are only {own} training images: lower it.")
    if limit is not None:
        kept = stratified_sample(strata(labels[:own]), limit, np.random.default_rng(0))
        kept = np.append(kept, np.arange(own, len(labels)))
        pixels, labels = pixels[kept], labels[kept]
    home = device if _fit(pixels.nbytes + images.test_images.nbytes, device) else torch.device("cpu")
    return _Images(
        train=_tensor(pixels, home).contiguous(memory_format=torch.channels_last),
        train_labels=_tensor(labels, device),
        test=_tensor(images.test_images, home).contiguous(memory_format=torch.channels_last),
        test_labels=_tensor(images.test_labels, device),
        labels=labels,
        class_count=images.class_count,
        available=len(images.train_labels),
        validation_count=images.validation_count,
        device=device,
    )


def _fit(count: int, device: torch.device) -> bool:
    """Whether so many bytes of images are to lie on the device."""
    return device.type != "cuda" or count <= SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]


def _gather(images: torch.Tensor, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return those images on the device; whole rows of memory are copied, so that the layout stays.

    From the machine's memory they go to a CUDA device through pages that it reads by itself, while it still computes.
    """
    source = images.permute(0, 2, 3, 1)
    shape, pinned = (len(rows), *source.shape[1:]), device.type == "cuda" and source.device.type == "cpu"
    chosen = torch.empty(shape, dtype=source.dtype, device=source.device, pin_memory=pinned)
    torch.index_select(source, 0, rows, out=chosen)
    return chosen.to(device, non_blocking=pinned).permute(0, 3, 1, 2)


def _tensor(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    array = array if array.flags.writeable else array.copy()
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


@dataclass(frozen=True)
class _Prepared:
    """Images with the splits of one seed, which lie where these do, and its training split's normalisation."""

    images: _Images
    train: torch.Tensor
    validation: torch.Tensor
    range_test: torch.Tensor
    chance: float
    mean: torch.Tensor
    factor: torch.Tensor


@lru_cache(maxsize=32)
def _prepare(
    source: ImageWorkload, device: torch.device, seed: int, validation_fraction: float, raw_pixels: bool
) -> _Prepared:
    images = _on_device(source, device)
    generator = np.random.default_rng(seed)
    classes = strata(images.labels)
    if images.validation_count:
        train, validation = np.split(np.arange(len(classes)), [len(classes) - images.validation_count])
    else:
        train, validation = stratified_split(classes, validation_fraction, generator)
    subset = range_test_subset(classes, validation, generator)
    home = images.train.device
    train_indices = _tensor(train, home)
    mean, factor = _normalisation(images.train, train_indices, raw_pixels)
    return _Prepared(
        images=images,
        train=train_indices,
        validation=_tensor(validation, home),
        range_test=_tensor(subset, home),
        chance=(chance if images.labels.ndim == 1 else micro_f1_chance)(images.labels[train]),
        mean=mean.to(device),
        factor=factor.to(device),
    )


def _normalisation(images: torch.Tensor, indices: torch.Tensor, raw_pixels: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what to subtract from pixels and then to multiply by.

    For unit variance: each channel's mean and 1 / standard deviation. For raw pixels: the mean image and 1.
    """
    # Sums of whole numbers are exact in float64 (below 2^53), so every device finds the same values.
    total = torch.zeros(images.shape[1:], dtype=torch.float64)
    squares = torch.zeros(images.shape[1:], dtype=torch.float64)
    for chunk in torch.split(indices, 1000):
        pixels = images[chunk].int()
        total += pixels.sum(0).cpu()
        squares += pixels.square().sum(0).cpu()
    if raw_pixels:
        return _float(total / len(indices), images), torch.ones(1, device=images.device)
    mean = (total.mean((1, 2), keepdim=True)) / len(indices)
    variance = squares.mean((1, 2), keepdim=True) / len(indices) - mean.square()
    deviation = variance.clamp(min=0).sqrt()
    return _float(mean, images), _float(torch.where(deviation > 0, 1 / deviation, 1.0), images)


def _float(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.float().to(like.device)


class LoadedImages:
    """Implements `LoadedWorkload` for classification of images that all fit into memory."""

    channels_last = True

    def __init__(self, settings: ImageWorkload, prepared: _Prepared) -> None:
        self._settings = settings
        self._prepared = prepared
        self.facts = _facts(settings, prepared)

    def build_model(self) -> torch.nn.Module:
        """Draw the weights on the processor: the same on every device."""
        model = models.build(self._settings.model, self.facts.input_shape, self._prepared.images.class_count)
        return started(model, self._settings).to(self._prepared.images.device)

    def train_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        """Yield one epoch; the incomplete batch at its end is left out, so that each step sees `batch_size` images."""
        images, device = self._prepared.images, self._prepared.images.device
        train = self._prepared.train
        order = train[torch.randperm(len(train), generator=generator).to(train.device)]
        labels = images.train_labels[order.to(device)]
        draws = Draws.of(self._settings.augment, len(order), generator, device)
        size, steps = self.facts.batch_size, self.facts.steps_per_epoch
        most_bytes = PROCESSOR_BYTES if device.type == "cpu" else DEVICE_BYTES
        fitting = most_bytes // (FLOAT_BYTES * size * math.prod(self.facts.input_shape))
        at_once = max(1, min(BLOCK_STEPS, fitting))
        for first in range(0, steps, at_once):
            rows = slice(first * size, min(first + at_once, steps) * size)
            pixels = self._normalise(draws.apply(_gather(images.train, order[rows], device), rows))
            yield from zip(torch.split(pixels, size), torch.split(labels[rows], size), strict=True)

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        images = self._prepared.images
        rows = evaluation_rows(self.facts.batch_size, self.facts.input_shape)
        if split == "test":
            for pixels, labels in zip(
                torch.split(images.test, rows), torch.split(images.test_labels, rows), strict=True
            ):
                yield self._normalise(pixels.to(images.device)), labels
            return
        indices = self._prepared.validation if split == "validation" else self._prepared.range_test
        for chunk in torch.split(indices, rows):
            yield (
                self._normalise(_gather(images.train, chunk, images.device)),
                images.train_labels[chunk.to(images.device)],
            )

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets)

    def stacked_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return stacked_cross_entropy(outputs, targets)

    def metric(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return accuracy(outputs, targets)

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().sub_(self._prepared.mean).mul_(self._prepared.factor)


class LoadedMultiLabelImages(LoadedImages):
    """Images with any number of labels each: also implements `FitsMetric`."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy(outputs, targets)

    def stacked_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.loss(one, own) for one, own in zip(outputs, targets, strict=True)])

    def metric(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Return micro-F1 at the threshold that is best for these very outputs."""
        return self.fit_metric(outputs, targets)(outputs, targets)

    def fit_metric(self, outputs: torch.Tensor, targets: torch.Tensor) -> FittedMicroF1:
        return FittedMicroF1.of(outputs, targets)


def _facts(settings: ImageWorkload, prepared: _Prepared) -> WorkloadFacts:
    images, train_count = prepared.images, len(prepared.train)
    shape = tuple(images.train.shape[1:])
    return WorkloadFacts(
        metric=settings.measures,
        higher_is_better=True,
        chance=prepared.chance,
        train_count=train_count,
        validation_count=len(prepared.validation),
        test_count=len(images.test),
        range_test_count=len(prepared.range_test),
        steps_per_epoch=steps_per_epoch(train_count, settings.batch_size),
        batch_size=settings.batch_size,
        parameter_count=models.count_parameters(settings.model, shape, images.class_count),
        input_shape=shape,
        class_count=images.class_count,
        description=_describe(settings, images),
    )


def _describe(settings: ImageWorkload, images: _Images) -> str:
    channels, height, width = images.train.shape[1:]
    count = (
        f"{len(images.train)}"
        if len(images.train) == images.available
        else f"{len(images.train)} of {images.available}"
    )
    augmented = "" if settings.augment == "none" else f", augmented by {settings.augment.replace('_', ' and ')}"
    data = f"{settings.label}, {count} images {width}x{height}x{channels}{augmented}"
    return f"{data}, model {settings.model}{origin(settings)}"
