from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from lrsearch.errors import DataError, StorageError
from lrsearch.workloads._image_cache import DecodedImages, cached


class Decoder:
    """Counts how often it was needed."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.calls = 0
        self.images = DecodedImages(
            generator.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8),
            np.arange(5),
            generator.integers(0, 256, (2, 3, 4, 4), dtype=np.uint8),
            np.arange(2),
            class_count=5,
        )

    def __call__(self, target: Path) -> DecodedImages:
        self.calls += 1
        return self.images


class MappingDecoder(Decoder):
    """Writes its images where the cache file will be."""

    def __call__(self, target: Path) -> DecodedImages:
        with suppress(OSError):
            target.write_bytes(self.images.train_images.tobytes() + self.images.test_images.tobytes())
        return super().__call__(target)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"pixels")
    return path


@pytest.fixture(params=[Decoder, MappingDecoder])
def decode(request: pytest.FixtureRequest) -> Decoder:
    made: Decoder = request.param()
    return made


def same(images: DecodedImages, expected: DecodedImages) -> bool:
    names = ("train_images", "train_labels", "test_images", "test_labels", "class_count")
    return all(np.array_equal(getattr(images, name), getattr(expected, name)) for name in names)


def test_images_are_decoded_once_and_read_back_as_they_were(source: Path, decode: Decoder, cache_folder: Path) -> None:
    for _ in range(3):
        assert same(cached("some", [source], {"size": 4}, decode), decode.images)
    assert decode.calls == 1
    assert [file.suffix for file in cache_folder.iterdir()] == [".images"]


def test_images_are_mapped_from_the_file(source: Path, decode: Decoder, cache_folder: Path) -> None:
    images = cached("some", [source], {}, decode)
    [file] = cache_folder.iterdir()
    for mapped in (images.train_images, images.test_images):
        assert isinstance(mapped, np.memmap)
        assert (Path(str(mapped.filename)), mapped.mode) == (file, "c")


def test_both_ways_make_the_same_file(source: Path, cache_folder: Path) -> None:
    cached("some", [source], {}, Decoder())
    [file] = cache_folder.iterdir()
    content = file.read_bytes()
    file.unlink()
    cached("some", [source], {}, MappingDecoder())
    assert file.read_bytes() == content


def test_a_mapped_image_can_be_written_without_touching_the_file(source: Path, decode: Decoder) -> None:
    cached("some", [source], {}, decode).train_images[:] = 0
    assert same(cached("some", [source], {}, decode), decode.images)


def test_every_flipped_byte_is_detected_and_the_cache_rebuilt(
    source: Path, decode: Decoder, cache_folder: Path
) -> None:
    cached("some", [source], {}, decode)
    [file] = cache_folder.iterdir()
    whole = file.read_bytes()
    for position in range(0, len(whole), 7):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        calls = decode.calls
        assert same(cached("some", [source], {}, decode), decode.images)
        assert decode.calls == calls + 1
        assert file.read_bytes() == whole


@pytest.mark.parametrize("length", [0, 10, 65, 200, -1])
def test_a_cut_cache_is_rebuilt(source: Path, decode: Decoder, cache_folder: Path, length: int) -> None:
    cached("some", [source], {}, decode)
    [file] = cache_folder.iterdir()
    file.write_bytes(file.read_bytes()[:length])
    assert same(cached("some", [source], {}, decode), decode.images)
    assert decode.calls == 2


def test_a_changed_source_replaces_its_cache(source: Path, decode: Decoder, cache_folder: Path) -> None:
    cached("some", [source], {}, decode)
    os.utime(source, ns=(1, 1))
    cached("some", [source], {}, decode)
    source.write_bytes(b"more pixels")
    cached("some", [source], {}, decode)
    assert decode.calls == 3
    assert len(list(cache_folder.iterdir())) == 1


def test_other_settings_have_a_cache_of_their_own(source: Path, decode: Decoder, cache_folder: Path) -> None:
    for _ in range(2):
        cached("some", [source], {"size": 4}, decode)
        cached("some", [source], {"size": 8}, decode)
    assert decode.calls == 2
    assert len(list(cache_folder.iterdir())) == 2


def test_a_folder_that_cannot_be_written_says_how_to_choose_another(
    source: Path, decode: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "file" / "folder"))
    with pytest.raises(
        StorageError, match=r"file/folder/some-.* cannot be written \(Not a directory\).*LRSEARCH_CACHE"
    ):
        cached("some", [source], {}, decode)


def test_a_full_disk_leaves_nothing_half_written(
    source: Path, decode: Decoder, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StorageError, match="No space left on device"):
            cached("some", [source], {}, decode)
    assert list(cache_folder.iterdir()) == []
    assert same(cached("some", [source], {}, decode), decode.images)


@pytest.mark.parametrize("error", [DataError("The image is broken."), KeyboardInterrupt()])
def test_nothing_stays_behind_when_decoding_fails(source: Path, cache_folder: Path, error: BaseException) -> None:
    def fail(target: Path) -> DecodedImages:
        target.write_bytes(b"half of the pixels")
        raise error

    with pytest.raises(type(error)):
        cached("some", [source], {}, fail)
    assert list(cache_folder.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_one(source: Path, decode: Decoder, cache_folder: Path) -> None:
    def killed(target: Path) -> DecodedImages:
        target.write_bytes(b"half of the pixels")
        os._exit(9)

    if (pid := os.fork()) == 0:
        cached("some", [source], {}, killed)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert len(list(cache_folder.glob(".some-*"))) == 1
    cached("some", [source], {}, decode)
    assert [file.suffix for file in cache_folder.iterdir()] == [".images"]


def test_who_waited_for_a_lock_file_that_is_gone_holds_the_new_one(source: Path, cache_folder: Path) -> None:
    """Else what it takes for left behind might be what another process writes."""
    inside: list[int] = []
    most: list[int] = []

    def decode(target: Path) -> DecodedImages:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        raise DataError("The image is broken.")

    def read() -> None:
        for _ in range(4):  # the second time some still wait for the file that went with the first
            with pytest.raises(DataError):
                cached("some", [source], {}, decode)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 16
