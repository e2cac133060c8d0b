"""The work that all sides do: the same images, splits, models and first weights' distribution.

`python -m benchmarks.tasks lenet quick` gets the data ready, so that no side pays for unpacking or first decoding.

Data: Fashion-MNIST where Debian's package dataset-fashion-mnist puts it (or `LRSEARCH_FASHION_MNIST`), CIFAR-10 as a
folder of JPEG images in data/cifar10-jpeg (or `LRSEARCH_CIFAR10`), scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrsearch.workloads._splits import stratified_sample, stratified_split

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader, Dataset

    from lrsearch.workloads._image_cache import DecodedImages

ROOT = Path(__file__).resolve().parent.parent
FASHION_MNIST = Path(os.environ.get("LRSEARCH_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
CIFAR10 = Path(os.environ.get("LRSEARCH_CIFAR10", ROOT / "data" / "cifar10-jpeg"))
UNPACKED = ROOT / "build" / "benchmarks"
"""Where torchvision's FashionMNIST looks."""
MOMENTUM = 0.9
VALIDATION_FRACTION = 0.2
EVALUATION_BATCH = 1000
"""Of the usual ways."""
SEED = 0


class Task(NamedTuple):
    """A model with its data."""

    title: str
    model: str
    input_shape: tuple[int, int, int]
    workload: dict[str, Any]
    """What lrsearch calls it."""
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    """Of pixels from 0 to 1, as the tutorials write them."""


TASKS = {
    "lenet": Task(
        "LeNet on Fashion-MNIST",
        "lenet",
        (1, 28, 28),
        {"name": "fashion_mnist", "data_root": str(FASHION_MNIST), "model": "lenet"},
        (0.2860,),
        (0.3530,),
    ),
    # Caffe's nets take pixels from 0 to 255 less their mean; that decides which rates work.
    "quick": Task(
        "cifar10_quick on CIFAR-10",
        "cifar10_quick",
        (3, 32, 32),
        {"name": "image_folder", "data_root": str(CIFAR10), "model": "cifar10_quick"},
        (0.4914, 0.4822, 0.4465),
        (1 / 255, 1 / 255, 1 / 255),
    ),
    "digits": Task(
        "MLP on scikit-learn's digits", "mlp", (1, 8, 8), {"name": "digits", "model": "mlp"}, (0.3053,), (0.3761,)
    ),
}


class Options(NamedTuple):
    """What a program of one side is told."""

    task: str
    images: int
    """Training images, before a fifth of them becomes the validation split. Of digits: all there are."""
    batch_size: int
    epochs: int
    precision: str
    workers: int
    rates: Sequence[float]


def options(arguments: Sequence[str] | None = None) -> Options:
    """Return what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--workers", type=int, default=0, help="of a DataLoader")
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    return Options(**vars(parser.parse_args(arguments)))


def workload(chosen: Options) -> dict[str, Any]:
    """Return the workload block of a study file that does this work."""
    limit = {} if chosen.task == "digits" else {"train_limit": chosen.images}
    return {**TASKS[chosen.task].workload, "batch_size": chosen.batch_size, **limit}


def new_model(task: str) -> torch.nn.Module:
    """Return lrsearch's own model: the same layers and the same distribution of first weights for all of torch."""
    from lrsearch.workloads.models import build

    return build(TASKS[task].model, TASKS[task].input_shape, 10)


def loaders(chosen: Options) -> tuple[DataLoader[Any], DataLoader[Any], DataLoader[Any]]:
    """Return what reads training, validation and test set in torch's tutorials."""
    from torch.utils.data import DataLoader

    train, validation, test = _datasets(chosen)
    return (
        DataLoader(train, chosen.batch_size, shuffle=True, drop_last=True, num_workers=chosen.workers),
        DataLoader(validation, EVALUATION_BATCH, num_workers=chosen.workers),
        DataLoader(test, EVALUATION_BATCH, num_workers=chosen.workers),
    )


def _datasets(chosen: Options) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
    """Return training, validation and test set as torch's tutorials have them; the split is lrsearch's own."""
    import torch
    from torch.utils.data import Subset, TensorDataset

    if chosen.task == "digits":
        (train_x, train_y), (validation_x, validation_y), (test_x, test_y) = arrays(chosen)
        return (
            TensorDataset(torch.from_numpy(train_x), torch.from_numpy(train_y)),
            TensorDataset(torch.from_numpy(validation_x), torch.from_numpy(validation_y)),
            TensorDataset(torch.from_numpy(test_x), torch.from_numpy(test_y)),
        )

    from torchvision import transforms

    task = TASKS[chosen.task]
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(task.mean, task.deviation)])
    full, test = _torchvision(chosen.task, True, transform), _torchvision(chosen.task, False, transform)
    train, validation = split(np.asarray(full.targets), chosen.images)
    return Subset(full, train.tolist()), Subset(full, validation.tolist()), test


def arrays(chosen: Options) -> tuple[tuple[Any, Any], ...]:
    """Return inputs, (count, channels, height, width), and targets of training, validation and test set, in memory."""
    task = TASKS[chosen.task]
    decoded = read(chosen.task)
    train, validation = split(decoded.train_labels, min(chosen.images, len(decoded.train_labels)))
    whole = 16 if chosen.task == "digits" else 255

    def normalised(pixels: Any) -> Any:
        mean, deviation = (np.array(value, np.float32)[:, None, None] for value in (task.mean, task.deviation))
        return (pixels.astype(np.float32) / whole - mean) / deviation

    return (
        (normalised(decoded.train_images[train]), decoded.train_labels[train]),
        (normalised(decoded.train_images[validation]), decoded.train_labels[validation]),
        (normalised(decoded.test_images), decoded.test_labels),
    )


def split(labels: Any, images: int) -> tuple[Any, Any]:
    """Return the rows of the training and of the validation split, those that lrsearch takes with seed 0."""
    kept = stratified_sample(labels, images, np.random.default_rng(0)) if images < len(labels) else np.arange(images)
    train, validation = stratified_split(labels[kept], VALIDATION_FRACTION, np.random.default_rng(SEED))
    return kept[train], kept[validation]


def read(task: str) -> DecodedImages:
    """Return all images as bytes, through lrsearch's image cache."""
    from lrsearch.workloads import WORKLOADS

    made: Any = WORKLOADS[TASKS[task].workload["name"]](**TASKS[task].workload)
    found: DecodedImages = made.read()
    return found


def _torchvision(task: str, train: bool, transform: Any) -> Any:
    from torchvision import datasets

    if task == "lenet":
        return datasets.FashionMNIST(str(UNPACKED), train=train, transform=transform)

    class Cifar10(datasets.CIFAR10):  # type: ignore[misc]  # torchvision is untyped
        """torchvision's, filled with the images that lie here as JPEG: it keeps them in memory just the same."""

        def __init__(self) -> None:
            images = read("quick")
            pixels = images.train_images if train else images.test_images
            self.data = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
            self.targets = (images.train_labels if train else images.test_labels).tolist()
            self.transform, self.target_transform = transform, None

    return Cifar10()


class TrainClock:
    """Seconds of training from the end of the first step on; what lies between `end` and `begin` is not counted."""

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = 0.0
        self.first_step_at = 0.0
        self._since = 0.0

    def begin(self) -> None:
        self._since = time.perf_counter()

    def stepped(self) -> None:
        self.steps += 1
        if self.steps == 1:
            self.first_step_at = time.time()
            self._since = time.perf_counter()

    def end(self) -> None:
        self.seconds += time.perf_counter() - self._since


def tell_trial(clock: TrainClock, accuracy: float, chosen: Options) -> None:
    """Print the result of a program that trained once."""
    per_second = (clock.steps - 1) * chosen.batch_size / clock.seconds
    tell(images_per_second=per_second, steps=clock.steps, accuracy=accuracy, first_step_at=clock.first_step_at)


def tell_search(seconds: float, accuracy_by_rate: dict[float, float]) -> None:
    """Print the result of a program that searched: its seconds between imports and exit, and what won."""
    best = best_rate(accuracy_by_rate)
    tell(search_seconds=seconds, rate=best, accuracy=accuracy_by_rate[best], trials=len(accuracy_by_rate))


def best_rate(accuracy_by_rate: Mapping[float, float]) -> float:
    """Return the rate with the highest accuracy; of several, the lowest, in whichever order they were tried."""
    return min(accuracy_by_rate, key=lambda rate: (-accuracy_by_rate[rate], rate))


def tell(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def main(names: Sequence[str]) -> None:
    for name in names:
        read(name)
        if name == "lenet":
            _unpack()


def _unpack() -> None:
    folder = UNPACKED / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for source in FASHION_MNIST.glob("*-ubyte*"):
        target = folder / source.name.removesuffix(".gz")
        if not target.exists():
            content = source.read_bytes()
            target.write_bytes(gzip.decompress(content) if source.suffix == ".gz" else content)


if __name__ == "__main__":
    main(sys.argv[1:])
