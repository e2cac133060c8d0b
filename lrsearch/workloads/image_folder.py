"""Any folder of images that torchvision's ImageFolder can list: one sub-folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lrsearch.workloads._settings import ImageWorkload

if TYPE_CHECKING:
    from lrsearch.workloads._image_cache import DecodedImages


class ImageFolder(ImageWorkload):
    """`data_root` holds train/CLASS/* and test/CLASS/*, or just CLASS/* together with `test_fraction`.

    All images lie on the device at once, one byte per pixel and channel.
    """

    title: ClassVar[str] = "image folder"
    name: Literal["image_folder"] = "image_folder"
    data_root: Path
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of each class that is always the test set; for trees without a test folder, and only for those."""
    image_size: int | None = Field(default=None, ge=1)
    """Cut to the central square and resize to this many pixels; None: as they are, all of one size."""
    color: Literal["rgb", "grayscale"] = "rgb"

    @property
    def label(self) -> str:
        return self.data_root.name or self.title

    def read(self) -> DecodedImages:
        from lrsearch.workloads._image_files import list_images

        return list_images(self.data_root, self.test_fraction).decoded(self.image_size, self.color)
