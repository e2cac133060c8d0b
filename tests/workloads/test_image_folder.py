from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from lrsearch.errors import DataError
from lrsearch.workloads._image_decoding import decode_all
from lrsearch.workloads._image_files import EXTENSIONS, list_images
from lrsearch.workloads.image_folder import ImageFolder
from tests.workloads.contract import ImageContract, epoch, load, whole

CLASSES = ("bird", "cat", "dog")


def write_tree(folder: Path, per_class: int, *, size: tuple[int, int] = (12, 12), suffix: str = "png") -> None:
    generator = np.random.default_rng(len(str(folder)))
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03}.{suffix}")


class TestTreeWithTestFolder(ImageContract):
    @pytest.fixture
    def workload(self, tmp_path: Path) -> ImageFolder:
        write_tree(tmp_path / "birds" / "train", 30)
        write_tree(tmp_path / "birds" / "test", 7)
        return ImageFolder(data_root=tmp_path / "birds", batch_size=16, model="lenet")

    def test_pixels_are_pillows_and_classes_are_sorted_folders(self, workload: ImageFolder) -> None:
        images = workload.read()
        assert images.class_count == 3
        for row, (name, index) in ((0, ("bird", 0)), (31, ("cat", 1)), (89, ("dog", 29))):
            with Image.open(workload.data_root / "train" / name / f"{index:03}.png") as image:
                expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            assert np.array_equal(images.train_images[row], expected)
            assert images.train_labels[row] == CLASSES.index(name)

    def test_files_are_listed_as_torchvision_does(self, workload: ImageFolder) -> None:
        train = workload.data_root / "train"
        (train / "dog" / "more" / "yet").mkdir(parents=True)
        for file in (
            "dog/more/a.JPG",
            "dog/more/yet/b.png",
            "dog/00.webp",
            "cat/notes.txt",
            "cat/.hidden.png",
            "top.png",
        ):
            shutil.copy(train / "bird" / "000.png", train / file)
        listed = torchvision.datasets.ImageFolder(str(train))
        assert list_images(workload.data_root, None).train == listed.samples
        assert EXTENSIONS == torchvision.datasets.folder.IMG_EXTENSIONS

    def test_grey_images_have_one_channel(self, workload: ImageFolder) -> None:
        grey = load(workload, color="grayscale")
        assert grey.facts.input_shape == (1, 12, 12)
        assert grey.facts.description == "birds, 90 images 12x12x1, model lenet"

    def test_a_size_is_cut_from_the_centre(self, tmp_path: Path) -> None:
        for part in ("train", "test"):
            write_tree(tmp_path / "wide" / part, 3, size=(32, 16))
        images = ImageFolder(data_root=tmp_path / "wide", model="mlp", image_size=16).read()
        with Image.open(tmp_path / "wide" / "train" / "bird" / "000.png") as image:
            expected = np.asarray(image.crop((8, 0, 24, 16))).transpose(2, 0, 1)
        assert np.array_equal(images.train_images[0], expected)

    def test_images_of_several_sizes_need_a_size(self, workload: ImageFolder) -> None:
        Image.new("RGB", (13, 12)).save(workload.data_root / "train" / "dog" / "odd.png")
        with pytest.raises(DataError, match=r"000.png is 12x12 and .*odd.png is 13x12: set workload.image_size"):
            workload.read()
        assert load(workload, image_size=8, model="mlp").facts.input_shape == (3, 8, 8)

    @pytest.mark.parametrize("damage", ["text", "truncated"])
    def test_a_corrupt_image_is_named_and_nothing_stays_behind(
        self, workload: ImageFolder, cache_folder: Path, damage: str
    ) -> None:
        bad = workload.data_root / "test" / "cat" / "003.png"
        bad.write_bytes(b"no image" if damage == "text" else bad.read_bytes()[:100])
        with pytest.raises(DataError, match=r"The image .*test/cat/003.png cannot be read .*replace or remove it"):
            load(workload)
        assert not cache_folder.exists() or not list(cache_folder.iterdir())

    def test_the_first_of_several_corrupt_images_is_named(self, workload: ImageFolder) -> None:
        for name in ("dog", "cat", "bird"):
            (workload.data_root / "train" / name / "005.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"train/bird/005\.png"):
            workload.read()

    @pytest.mark.parametrize("color", ["RGB", "L"])
    @pytest.mark.parametrize("made_of", ["RGB", "L", "CMYK"])
    def test_a_jpeg_has_the_pixels_that_pillow_gives(self, tmp_path: Path, made_of: str, color: str) -> None:
        noise = np.random.default_rng(0)
        for number, (subsampling, progressive, size) in enumerate(
            itertools.product((0, 1, 2), (False, True), ((32, 32), (33, 31), (500, 333)))
        ):
            pixels = noise.integers(0, 256, (*size, 3), np.uint8)
            path = tmp_path / f"{number}.jpg"
            Image.fromarray(pixels).convert(made_of).save(path, subsampling=subsampling, progressive=progressive)
            with Image.open(path) as image:
                expected = np.asarray(image.convert(color)).reshape(*size, -1).transpose(2, 0, 1)
            assert np.array_equal(decode_all([path], None, color)[0], expected)

    def test_a_jpeg_is_not_left_to_pillow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "one.jpg")
        monkeypatch.setattr(Image, "open", None)
        assert decode_all([tmp_path / "one.jpg"] * 3, None, "RGB").shape == (3, 3, 8, 8)

    @pytest.mark.parametrize("damage", ["text", "truncated", "empty", "bomb"])
    def test_a_corrupt_jpeg_is_named(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "one.jpg"
        Image.effect_noise((64, 64), 100).convert("RGB").save(path)
        whole = path.read_bytes()
        size = whole.index(b"\xff\xc0") + 5
        bomb = whole[:size] + b"\xff\xdc\xff\xdc" + whole[size + 4 :]
        damaged = {"text": b"no image", "truncated": whole[: len(whole) // 2], "empty": b"", "bomb": bomb}[damage]
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"The image .*one.jpg cannot be read .*replace or remove it"):
            decode_all([path], None, "RGB")

    @pytest.mark.parametrize("kind", ["I;16", "F"])
    def test_an_image_whose_pixels_do_not_fit_into_8_bits_is_refused(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "scan.tif"
        Image.fromarray(np.full((8, 8), 4000, np.uint16 if kind == "I;16" else np.float32)).save(path)
        with pytest.raises(
            DataError, match=rf"scan.tif has more than 8 bits per pixel \({kind}\).*save it with 8 bits"
        ):
            decode_all([path], None, "L")

    def test_a_link_to_nowhere_is_named(self, workload: ImageFolder) -> None:
        (workload.data_root / "train" / "cat" / "link.png").symlink_to("nowhere.png")
        with pytest.raises(DataError, match=r"train/cat/link.png cannot be read \(No such file.*replace or remove it"):
            load(workload)

    def test_a_changed_added_or_removed_image_is_seen(self, workload: ImageFolder) -> None:
        before = workload.read().train_images[0].copy()
        Image.new("RGB", (12, 12), (1, 2, 3)).save(workload.data_root / "train" / "bird" / "000.png")
        after = workload.read()
        assert not np.array_equal(after.train_images[0], before)
        assert after.train_images[0, :, 5, 5].tolist() == [1, 2, 3]
        (workload.data_root / "train" / "bird" / "001.png").unlink()
        assert len(workload.read().train_images) == len(after.train_images) - 1

    def test_classes_must_be_the_same_in_both_folders(self, workload: ImageFolder) -> None:
        (workload.data_root / "test" / "dog").rename(workload.data_root / "test" / "wolf")
        with pytest.raises(DataError, match="must hold the same classes, but differ in: dog, wolf"):
            workload.read()

    def test_an_empty_class_is_refused(self, workload: ImageFolder) -> None:
        (workload.data_root / "train" / "newt").mkdir()
        with pytest.raises(DataError, match=r"train must hold one folder of images per class: .*newt"):
            workload.read()

    def test_a_test_folder_leaves_no_room_for_a_fraction(self, workload: ImageFolder) -> None:
        with pytest.raises(DataError, match=r"has a test folder, so workload.test_fraction \(0.2\) must go"):
            load(workload, test_fraction=0.2)


class TestTreeOfClasses(ImageContract):
    @pytest.fixture
    def workload(self, tmp_path: Path) -> ImageFolder:
        write_tree(tmp_path, 40, suffix="jpg")
        return ImageFolder(data_root=tmp_path, test_fraction=0.25, batch_size=16, model="small_cnn")

    def test_the_fraction_is_taken_from_each_class(self, workload: ImageFolder) -> None:
        loaded = load(workload)
        targets: Any = whole(loaded, "test")[1]
        assert targets.bincount().tolist() == [10, 10, 10]
        assert len(epoch(loaded)) == loaded.facts.train_count // 16

    def test_without_a_test_folder_the_fraction_must_be_given(self, workload: ImageFolder) -> None:
        with pytest.raises(
            DataError, match=r"holds no train and test folders: add them, or set workload\.test_fraction"
        ):
            load(workload, test_fraction=None)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^workload.data_root must be a folder of class folders, and .*nowhere is none"
    ):
        ImageFolder(data_root=tmp_path / "nowhere", model="mlp").read()


def test_a_single_class_is_refused_as_where_the_classes_lie_a_folder_deeper(tmp_path: Path) -> None:
    write_tree(tmp_path / "birds" / "images", 5)
    with pytest.raises(
        DataError, match=r"holds images alone: a classifier needs two classes\. Or do they lie a folder"
    ):
        ImageFolder(data_root=tmp_path / "birds", model="mlp", test_fraction=0.2).read()


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold one folder of images per class"):
        ImageFolder(data_root=tmp_path, model="mlp", test_fraction=0.2).read()
