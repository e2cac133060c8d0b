"""From a tree of image files to uint8 arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrsearch.errors import DataError
from lrsearch.workloads._image_cache import DecodedImages, cached
from lrsearch.workloads._image_decoding import MODES, decode_all
from lrsearch.workloads._splits import stratified_split

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of images; torchvision.datasets.folder.IMG_EXTENSIONS."""


@dataclass(frozen=True)
class ImageTree:
    """The files of a tree in fixed order, with their class ids."""

    root: Path
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]
    class_count: int
    test_fraction: float | None

    def decoded(self, image_size: int | None, color: str) -> DecodedImages:
        """Return all images, from the cache or decoded now. Raises DataError that names an unreadable file."""
        settings = {
            "root": str(self.root.resolve()),
            "test_fraction": self.test_fraction,
            "image_size": image_size,
            "color": color,
        }
        files = [path for path, _ in [*self.train, *self.test]]
        return cached("image_folder", files, settings, partial(self._decode, files, image_size, MODES[color]))

    def _decode(self, files: Sequence[str], image_size: int | None, mode: str, target: Path) -> DecodedImages:
        images = decode_all(files, image_size, mode, target)
        count = len(self.train)
        return DecodedImages(images[:count], _labels(self.train), images[count:], _labels(self.test), self.class_count)


def list_images(root: Path, test_fraction: float | None) -> ImageTree:
    """Return the files under `root`; without a test folder a fixed `test_fraction` of each class is the test set."""
    if not root.is_dir():
        raise DataError(f"workload.data_root must be a folder of class folders, and {root} is none: correct it.")
    train_folder = root / "train" if (root / "train").is_dir() else root
    test_folder = root / "test"
    if train_folder != root and test_folder.is_dir():
        if test_fraction is not None:
            raise DataError(
                f"{root} has a test folder, so workload.test_fraction ({test_fraction}) must go: remove one."
            )
        return _two_folders(root, train_folder, test_folder)
    if test_fraction is None:
        raise DataError(
            f"{root} holds no train and test folders: add them, or set workload.test_fraction, such as 0.2, "
            "to hold back a part of the images for the test."
        )
    return _one_folder(root, train_folder, test_fraction)


def _two_folders(root: Path, train_folder: Path, test_folder: Path) -> ImageTree:
    train, classes = _samples(train_folder)
    test, test_classes = _samples(test_folder)
    if classes != test_classes:
        odd = ", ".join(sorted(set(classes) ^ set(test_classes)))
        raise DataError(f"{train_folder} and {test_folder} must hold the same classes, but differ in: {odd}.")
    return ImageTree(root, train, test, len(classes), None)


def _one_folder(root: Path, folder: Path, test_fraction: float) -> ImageTree:
    samples, classes = _samples(folder)
    train, test = stratified_split(_labels(samples), test_fraction, np.random.default_rng(0))
    return ImageTree(
        root, [samples[index] for index in train], [samples[index] for index in test], len(classes), test_fraction
    )


def _samples(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """Return files and class ids, and the classes: what torchvision.datasets.ImageFolder lists, in its order.

    Here, because torchvision takes longer to import than a cached data set to read.
    """
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise DataError(f"{folder} must hold one folder of images per class, but holds no folders.")
    if len(classes) == 1:
        raise DataError(
            f"{folder} must hold one folder of images per class, but holds {classes[0]} alone: a classifier needs two "
            "classes. Or do they lie a folder deeper?"
        )
    samples: list[tuple[str, int]] = []
    for number, name in enumerate(classes):
        before = len(samples)
        for place, _, files in sorted(os.walk(folder / name, followlinks=True)):
            samples += [(os.path.join(place, file), number) for file in sorted(files) if _is_image(file)]
        if len(samples) == before:
            raise DataError(
                f"{folder} must hold one folder of images per class: there is none in {name}. Files are "
                f"taken by their endings ({', '.join(EXTENSIONS)})."
            )
    return samples, classes


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _labels(samples: Sequence[tuple[str, int]]) -> NDArray[np.int64]:
    return np.fromiter((label for _, label in samples), np.int64, len(samples))
