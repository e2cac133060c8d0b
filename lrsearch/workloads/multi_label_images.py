"""Images with any number of labels each, in the files of the iMaterialist challenge (fashion) of FGVC5 at CVPR 2018.

    data_root/
      train.json         {"images": [{"imageId": "1", "url": "..."}, ...],
      validation.json     "annotations": [{"imageId": "1", "labelId": ["95", "66"]}, ...]}
      test.json
      train/1.jpg        each image is named after its imageId; a part without a folder of its own
      validation/1.jpg   (train, validation, test) has its images in data_root/images, or in data_root
      test/1.jpg

Only train.json must be there; other keys in the files are passed over, and nothing is fetched from the urls. The test
set is test.json if it has annotations (the challenge's own has none), else `test_fraction` of train.json if that is
given, else validation.json. The validation split is validation.json where that is not the test set, else
`validation_fraction` of the training images, another one for each seed. Both are drawn at random, not stratified.

The loss is binary cross-entropy, the mean over all labels; the metric is micro-F1, whose one threshold is chosen on the
validation outputs and then holds for the test set. Chance is the micro-F1 of the best answer that ignores the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lrsearch.workloads._settings import FolderWorkload

if TYPE_CHECKING:
    from lrsearch.workloads._image_cache import DecodedImages


class MultiLabelImages(FolderWorkload):
    """The module's docstring describes the files. All images lie on the device, one byte per pixel and channel."""

    title: ClassVar[str] = "multi-label images"
    name: Literal["multi_label_images"] = "multi_label_images"
    model: str = "small_cnn"

    @property
    def measures(self) -> str:
        return "micro_f1"

    def read(self) -> DecodedImages:
        from lrsearch.workloads._labelled_images import read_labelled

        return read_labelled(self.data_root, self.test_fraction).decoded(self.image_size, self.color)
