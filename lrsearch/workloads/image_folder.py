"""Any folder of images that torchvision's ImageFolder can list: one sub-folder per class."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lrsearch.workloads._settings import FolderWorkload

if TYPE_CHECKING:
    from lrsearch.workloads._image_cache import DecodedImages


class ImageFolder(FolderWorkload):
    """`data_root` holds train/CLASS/* and test/CLASS/*, or just CLASS/* together with `test_fraction`.

    That is the share of each class which is always the test set; for trees without a test folder, and only for those.

    All images lie on the device at once, one byte per pixel and channel.
    """

    title: ClassVar[str] = "image folder"
    name: Literal["image_folder"] = "image_folder"

    def read(self) -> DecodedImages:
        from lrsearch.workloads._image_files import list_images

        return list_images(self.data_root, self.test_fraction).decoded(self.image_size, self.color)
