from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets

from lrsearch.errors import DataError
from lrsearch.workloads.cifar import Cifar10, Cifar100
from tests.workloads.contract import ImageContract, load


def write_cifar(dataset: Any, root: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """Write small files in the original's layout, tell torchvision their checksums and return the training pixels."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    classes = 10 if dataset is torchvision.datasets.CIFAR10 else 100
    labels_key = "labels" if classes == 10 else "fine_labels"
    pixels = []

    def write(name: str, content: Any) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]  # noqa: S324  # torchvision's own check

    for listing in ("train_list", "test_list"):
        written = []
        for name, _ in getattr(dataset, listing):
            data = generator.integers(0, 256, (rows, 3072), dtype=np.uint8)
            labels = [index % classes for index in range(rows)]
            written.append(write(name, {"data": data, labels_key: labels}))
            pixels += [data] if listing == "train_list" else []
        monkeypatch.setattr(dataset, listing, written)
    meta = dict(dataset.meta)
    meta["md5"] = write(meta["filename"], {meta["key"]: [f"class {label}" for label in range(classes)]})[1]
    monkeypatch.setattr(dataset, "meta", meta)
    return np.concatenate(pixels)


class TestCifar10(ImageContract):
    @pytest.fixture
    def workload(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cifar10:
        self.pixels = write_cifar(torchvision.datasets.CIFAR10, tmp_path, 40, monkeypatch)
        return Cifar10(data_root=tmp_path, batch_size=16, model="lenet")

    def test_pixels_are_red_green_blue_planes(self, workload: Cifar10) -> None:
        assert np.array_equal(workload.read().train_images, self.pixels.reshape(-1, 3, 32, 32))

    def test_its_own_model_is_caffes(self, workload: Cifar10) -> None:
        assert Cifar10().model == "cifar10_quick"
        assert load(workload, model="cifar10_full").facts.parameter_count == 89_578

    def test_a_damaged_file_is_an_error_that_names_the_folder(self, workload: Cifar10) -> None:
        file = workload.data_root / "cifar-10-batches-py" / "data_batch_3"
        file.write_bytes(file.read_bytes()[:-1] + b"!")
        with pytest.raises(DataError, match=r"cifar-10-batches-py differs from the CIFAR10 that torchvision knows"):
            workload.read()

    def test_a_missing_file_is_an_error_that_names_it_and_what_helps(self, workload: Cifar10) -> None:
        (workload.data_root / "cifar-10-batches-py" / "data_batch_3").unlink()
        with pytest.raises(DataError, match=r"looked for .*data_batch_3.*download: true"):
            workload.read()

    def test_a_failed_download_is_an_error_that_says_what_helps(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
        with pytest.raises(DataError, match=r"CIFAR10 cannot be downloaded to .*copy the folder here"):
            Cifar10(data_root=tmp_path / "empty", download=True).read()


@pytest.mark.parametrize("kind", [Cifar10, Cifar100])
def test_files_are_where_torchvision_has_them(kind: type[Cifar10 | Cifar100]) -> None:
    theirs = getattr(torchvision.datasets, kind._torchvision_name)
    names = [name for name, _ in [*theirs.train_list, *theirs.test_list]] + [theirs.meta["filename"]]
    assert [Path(file) for file in kind._files] == [Path(theirs.base_folder, name) for name in names]


class TestCifar100(ImageContract):
    @pytest.fixture
    def workload(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cifar100:
        write_cifar(torchvision.datasets.CIFAR100, tmp_path, 500, monkeypatch)
        return Cifar100(data_root=tmp_path, batch_size=16, model="lenet")

    def test_it_has_a_hundred_classes(self, workload: Cifar100) -> None:
        assert load(workload).facts.class_count == 100
