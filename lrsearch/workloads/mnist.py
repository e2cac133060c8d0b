"""MNIST and Fashion-MNIST: 60,000 + 10,000 grey images of 28x28 in ten classes, from idx files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from lrsearch.errors import DataError
from lrsearch.workloads._settings import ImageWorkload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lrsearch.workloads._image_cache import DecodedImages

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class _IdxWorkload(ImageWorkload):
    model: str = "lenet"
    data_root: Path = Path("data")
    """Folder with the four idx files (plain or .gz), or torchvision's root; default: ./data."""
    download: bool = False
    _torchvision_name: ClassVar[str]
    _advice: ClassVar[str] = ""

    def read(self) -> DecodedImages:
        from lrsearch.workloads._image_cache import cached

        files = self._find() or self._download()
        return cached(self._torchvision_name.lower(), files, {"root": str(self.data_root)}, lambda _: _decode(files))

    def _find(self) -> list[Path]:
        """Return the four files, or an empty list unless all lie in one of the folders."""
        for folder in self._folders():
            found = [path for file in FILES if (path := _plain_or_gzipped(folder / file)) is not None]
            if len(found) == len(FILES):
                return found
        return []

    def _folders(self) -> tuple[Path, Path]:
        return self.data_root, self.data_root / self._torchvision_name / "raw"

    def _download(self) -> list[Path]:
        if not self.download:
            places = " and ".join(str(folder) for folder in self._folders())
            raise DataError(
                f"{self.title} is not there: looked for {FILES[0]}[.gz] and its three companions in {places}. "
                f"{self._advice}Point workload.data_root at them, or say download: true."
            )
        from lrsearch.workloads._torchvision_data import download

        download(self._torchvision_name, self.data_root)
        return self._find()


class Mnist(_IdxWorkload):
    """Handwritten digits (LeCun et al., 1998)."""

    title: ClassVar[str] = "MNIST"
    _torchvision_name: ClassVar[str] = "MNIST"
    name: Literal["mnist"] = "mnist"


class FashionMnist(_IdxWorkload):
    """Zalando's articles (Xiao et al., 2017), also as Debian's package dataset-fashion-mnist installs them."""

    title: ClassVar[str] = "Fashion-MNIST"
    _torchvision_name: ClassVar[str] = "FashionMNIST"
    _advice: ClassVar[str] = (
        "On Debian `apt-get install dataset-fashion-mnist` puts them into /usr/share/datasets/fashion-mnist. "
    )
    name: Literal["fashion_mnist"] = "fashion_mnist"


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((found for found in (path, path.with_name(path.name + ".gz")) if found.is_file()), None)


def _decode(files: list[Path]) -> DecodedImages:
    from lrsearch.workloads._image_cache import DecodedImages

    train_images, train_labels = _read_pair(files[0], files[1])
    test_images, test_labels = _read_pair(files[2], files[3])
    return DecodedImages(train_images, train_labels, test_images, test_labels, int(train_labels.max()) + 1)


def _read_pair(images_file: Path, labels_file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images with a channel axis, and labels."""
    import numpy as np

    from lrsearch.workloads._idx import read_idx

    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{images_file} and {labels_file} must belong together, "
            f"but hold arrays of shape {images.shape} and {labels.shape}: fetch both again."
        )
    return images[:, np.newaxis], labels.astype(np.int64)
