"""Open set: workloads, each a model with data, loss and metric. `WORKLOADS` maps the name in a study file to its class.

A new one is a frozen pydantic model with the methods of `interfaces.Workload`; an image data set only has to subclass
`ImageWorkload` and say how its images are read. Importing this package imports neither torch nor sklearn.
"""

from __future__ import annotations

from typing import Any

from lrsearch.workloads.callable import CallableWorkload
from lrsearch.workloads.cifar import Cifar10, Cifar100
from lrsearch.workloads.diabetes import Diabetes
from lrsearch.workloads.digits import Digits
from lrsearch.workloads.image_folder import ImageFolder
from lrsearch.workloads.mnist import FashionMnist, Mnist
from lrsearch.workloads.multi_label_images import MultiLabelImages
from lrsearch.workloads.text import Text

WORKLOADS: dict[str, type[Any]] = {
    "callable": CallableWorkload,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "diabetes": Diabetes,
    "digits": Digits,
    "fashion_mnist": FashionMnist,
    "image_folder": ImageFolder,
    "mnist": Mnist,
    "multi_label_images": MultiLabelImages,
    "text": Text,
}

__all__ = ["WORKLOADS"]
