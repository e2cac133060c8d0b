"""What torchvision knows about data sets: where to download them, their files and their checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets

from lrsearch.errors import DataError
from lrsearch.workloads._image_cache import DecodedImages


def download(name: str, root: Path) -> None:
    """Download and unpack torchvision's data set `name` under `root`; what already lies there is not fetched again."""
    try:
        getattr(torchvision.datasets, name)(root, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{name} cannot be downloaded to {root} ({reason}): fetch it elsewhere and copy the folder here."
        ) from error


def decode_cifar(name: str, root: Path) -> DecodedImages:
    """Return the images; torchvision checks the MD5 of every file before it unpickles it."""
    dataset = getattr(torchvision.datasets, name)
    try:
        train, test = dataset(root, train=True), dataset(root, train=False)
    except RuntimeError as error:
        folder = root / dataset.base_folder
        raise DataError(
            f"{folder} differs from the {name} that torchvision knows (MD5): delete it and unpack it again."
        ) from error
    return DecodedImages(*_arrays(train), *_arrays(test), class_count=len(train.classes))


def _arrays(dataset: Any) -> tuple[Any, Any]:
    """Return images as (count, channels, height, width) and labels."""
    return np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)), np.asarray(dataset.targets, np.int64)
