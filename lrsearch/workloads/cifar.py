"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32x32, as torchvision stores them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from lrsearch.errors import DataError
from lrsearch.workloads._settings import ImageWorkload

if TYPE_CHECKING:
    from lrsearch.workloads._image_cache import DecodedImages


class _CifarWorkload(ImageWorkload):
    data_root: Path = Path("data")
    """Folder above cifar-10-batches-py or cifar-100-python; default: `data` in the current directory."""
    download: bool = False
    _torchvision_name: ClassVar[str]
    _files: ClassVar[tuple[str, ...]]
    """Where torchvision has them below its root; it need not be imported once they are in the cache."""

    def read(self) -> DecodedImages:
        from lrsearch.workloads._image_cache import cached

        files = [self.data_root / file for file in self._files]
        missing = [file for file in files if not file.is_file()]
        if missing and self.download:
            from lrsearch.workloads._torchvision_data import download

            download(self._torchvision_name, self.data_root)
        elif missing:
            raise DataError(
                f"{self.title} is not there: looked for {missing[0]}. Point workload.data_root at the folder that "
                f"holds {files[0].parent.name}, or say download: true, which also unpacks an archive that lies there."
            )
        return cached(
            self._torchvision_name.lower(),
            files,
            {"root": str(self.data_root)},
            lambda _: self._decode(),
        )

    def _decode(self) -> DecodedImages:
        from lrsearch.workloads._torchvision_data import decode_cifar

        return decode_cifar(self._torchvision_name, self.data_root)


class Cifar10(_CifarWorkload):
    """Ten classes, 6,000 images each."""

    title: ClassVar[str] = "CIFAR-10"
    _torchvision_name: ClassVar[str] = "CIFAR10"
    _files: ClassVar[tuple[str, ...]] = tuple(
        f"cifar-10-batches-py/{name}"
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
    )
    name: Literal["cifar10"] = "cifar10"
    model: str = "cifar10_quick"


class Cifar100(_CifarWorkload):
    """A hundred classes, 600 images each."""

    title: ClassVar[str] = "CIFAR-100"
    _torchvision_name: ClassVar[str] = "CIFAR100"
    _files: ClassVar[tuple[str, ...]] = tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta"))
    name: Literal["cifar100"] = "cifar100"
    model: str = "resnet9"
