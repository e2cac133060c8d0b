"""scikit-learn's digits: 1,797 real images of 8x8 in ten classes, shipped with the package: needs no data folder."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Literal

from lrsearch.errors import StorageError
from lrsearch.workloads._settings import ImageWorkload

if TYPE_CHECKING:
    from lrsearch.workloads._image_cache import DecodedImages

TEST_FRACTION = 0.2


class Digits(ImageWorkload):
    """Pixels of 0 to 16; the test set is a fixed stratified fifth. Models that fit: mlp and small_cnn."""

    title: ClassVar[str] = "digits"
    name: Literal["digits"] = "digits"
    model: str = "mlp"

    def read(self) -> DecodedImages:
        """Return the images from the cache: scikit-learn takes a second and a half to import, for nothing else."""
        from lrsearch.workloads._image_cache import cached
        from lrsearch.workloads._scikit_learn import datasets_folder

        source = datasets_folder() / "data" / "digits.csv.gz"
        if source.exists():
            with suppress(StorageError):  # where nothing can be kept, reading anew is only slower
                return cached("digits", [source], {"test_fraction": TEST_FRACTION}, lambda _: _read())
        return _read()


def _read() -> DecodedImages:
    import numpy as np
    from sklearn.datasets import load_digits

    from lrsearch.workloads._image_cache import DecodedImages
    from lrsearch.workloads._splits import stratified_split

    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    train, test = stratified_split(labels, TEST_FRACTION, np.random.default_rng(0))
    return DecodedImages(images[train], labels[train], images[test], labels[test], class_count=10)
