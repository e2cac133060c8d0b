from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets

from lrsearch.errors import DataError
from lrsearch.workloads._idx import read_idx
from lrsearch.workloads.mnist import FILES, FashionMnist, Mnist
from tests.workloads.contract import ImageContract, load

COUNTS = {"train": 200, "t10k": 50}


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_files(folder: Path, *, zipped: bool = True, side: int = 28) -> dict[str, np.ndarray[Any, Any]]:
    """Write four idx files of random images in classes 0 to 9; return what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    written = {}
    for file in FILES:
        count = COUNTS[file.split("-")[0]]
        array = generator.integers(0, 256, (count, side, side)) if "images" in file else np.arange(count) % 10
        content = idx(array)
        (folder / (file + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
        written[file] = array
    return written


class TestFashionMnist(ImageContract):
    @pytest.fixture
    def workload(self, tmp_path: Path) -> FashionMnist:
        write_files(tmp_path / "debian")
        return FashionMnist(data_root=tmp_path / "debian", batch_size=16)

    def test_pixels_and_classes_are_those_of_the_files(self, workload: FashionMnist, tmp_path: Path) -> None:
        written, images = write_files(tmp_path / "again"), workload.read()
        assert np.array_equal(images.train_images[:, 0], written[FILES[0]])
        assert np.array_equal(images.train_labels, written[FILES[1]])
        assert np.array_equal(images.test_images[:, 0], written[FILES[2]])
        assert np.array_equal(images.test_labels, written[FILES[3]])
        assert images.class_count == 10

    def test_torchvisions_own_layout_is_found_and_read_alike(self, workload: FashionMnist, tmp_path: Path) -> None:
        write_files(tmp_path / "root" / "FashionMNIST" / "raw", zipped=False)
        ours = FashionMnist(data_root=tmp_path / "root").read()
        torchvisions = torchvision.datasets.FashionMNIST(tmp_path / "root", train=True)
        assert np.array_equal(ours.train_images[:, 0], torchvisions.data.numpy())
        assert np.array_equal(ours.train_labels, torchvisions.targets.numpy())
        assert np.array_equal(ours.train_images, workload.read().train_images)

    def test_missing_files_are_an_error_that_says_where_it_looked_and_what_helps(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            FashionMnist(data_root=tmp_path / "nowhere").read()
        for words in ("nowhere", "FashionMNIST/raw", "apt-get install dataset-fashion-mnist", "download: true"):
            assert words in str(caught.value)

    def test_a_failed_download_is_an_error_that_says_what_helps(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Nothing listens at the discard port: the download fails at once, with or without a network.
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
        with pytest.raises(DataError, match=r"FashionMNIST cannot be downloaded to .*copy the folder here"):
            FashionMnist(data_root=tmp_path / "empty", download=True).read()

    def test_three_files_are_not_enough(self, workload: FashionMnist) -> None:
        (workload.data_root / f"{FILES[3]}.gz").unlink()
        with pytest.raises(DataError, match="Fashion-MNIST is not there"):
            workload.read()


class TestMnist(ImageContract):
    @pytest.fixture
    def workload(self, tmp_path: Path) -> Mnist:
        write_files(tmp_path / "MNIST" / "raw", zipped=False)
        return Mnist(data_root=tmp_path, batch_size=16)

    def test_its_models_and_name_are_in_the_description(self, workload: Mnist) -> None:
        assert load(workload).facts.description == "MNIST, 200 images 28x28x1, model lenet"

    def test_a_limit_above_what_is_there_is_refused(self, workload: Mnist) -> None:
        with pytest.raises(DataError, match="train_limit is 201, but there are only 200 training images"):
            load(workload, train_limit=201)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be an idx file"),
        (b"not an idx file", "must be an idx file"),
        (struct.pack(">BBBBI", 0, 0, 13, 1, 3) + b"abc", "must be an idx file of unsigned bytes"),
        (struct.pack(">BBBB", 0, 0, 8, 2) + b"\0\0", "ends inside its header"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 3) + b"ab", "must hold 3 bytes, but holds 2"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 3) + b"abcd", "must hold 3 bytes, but holds 4"),
    ],
)
def test_a_damaged_idx_file_is_an_error_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "some-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=rf"some-idx3-ubyte {message}"):
        read_idx(tmp_path / "some-idx3-ubyte")


def test_a_flipped_or_missing_byte_in_a_gzip_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "some-idx1-ubyte.gz"
    whole = gzip.compress(idx(np.arange(100)))
    for damaged in (whole[:-9], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], b"PK" + whole[2:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"some-idx1-ubyte.gz cannot be read .*fetch the file again"):
            read_idx(path)


def test_images_and_labels_of_different_length_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, zipped=False)
    (tmp_path / FILES[1]).write_bytes(idx(np.arange(199) % 10))
    with pytest.raises(DataError, match=r"must belong together, but hold arrays of shape \(200, 28, 28\) and \(199,\)"):
        Mnist(data_root=tmp_path).read()
