"""Decoding here and in processes that help, which are real ones."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lrsearch.decoding import NUMBER, Work
from lrsearch.environment import DECODERS_VARIABLE
from lrsearch.errors import DataError, StorageError
from lrsearch.workloads import _image_decoding
from lrsearch.workloads._image_cache import DecodedImages, cached
from lrsearch.workloads._image_decoding import decode_all
from tests.processes import children, lives, modules_after

COUNT = 300
"""Of images that take Pillow 3 ms each: long enough for a process to begin and help."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return ten files, again and again."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(noise.integers(0, 256, (256, 256, 3), np.uint8)).save(
            folder / f"{number}.png", compress_level=1
        )
    return [folder / f"{index % 10}.png" for index in range(COUNT)]


@pytest.fixture(scope="module")
def pixels(files: list[Path]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, whatever the images take."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)))
    monkeypatch.setenv(DECODERS_VARIABLE, "3")
    monkeypatch.setattr(_image_decoding, "WORTH_HELP_SECONDS", 0.0)
    monkeypatch.setattr(_image_decoding, "TIMED_IMAGES", 1)
    monkeypatch.setattr(_image_decoding, "PART_IMAGES", 3)


def read(files: list[Path]) -> DecodedImages:
    """Return all but the last two as training images, from the cache."""

    def decode(target: Path) -> DecodedImages:
        images, labels = decode_all(files, None, "RGB", target), np.arange(len(files))
        return DecodedImages(images[:-2], labels[:-2], images[-2:], labels[-2:], len(files))

    return cached("some", sorted(set(files)), {}, decode)


@contextmanager
def when_helpers_run(act: signal.Signals, delay: float) -> Iterator[list[int]]:
    """Send the signal to the first one, or SIGINT to this process, so long after there is one; yield their numbers."""
    others, seen = set(children(os.getpid())), list[int]()

    def watch() -> None:
        while not (found := set(children(os.getpid())) - others):
            time.sleep(0.001)
        time.sleep(delay)
        seen.extend(found)
        with suppress(ProcessLookupError):  # it was done before that
            os.kill(os.getpid() if act == signal.SIGINT else min(found), act)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield seen
    watcher.join()
    while any(lives(child) for child in set(children(os.getpid())) - others):  # one that was just being started
        time.sleep(0.001)


@pytest.mark.usefixtures("helped")
@pytest.mark.parametrize("image_size", [None, 20])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_pixels_are_pillows_whoever_decodes_them(
    tmp_path: Path, files: list[Path], mode: str, image_size: int | None
) -> None:
    alone = decode_all(files, image_size, mode)
    with when_helpers_run(signal.SIGCONT, 0.0) as helpers:
        together = decode_all(files, image_size, mode, tmp_path / "pixels")
    assert helpers
    assert np.array_equal(together, alone)
    assert (tmp_path / "pixels").read_bytes() == alone.tobytes()
    if image_size is None:
        expected = np.asarray(Image.open(files[7]).convert(mode)).reshape(256, 256, -1).transpose(2, 0, 1)
        assert np.array_equal(together[17], expected)


def test_a_process_that_helps_decodes_what_it_takes(
    tmp_path: Path, files: list[Path], pixels: NDArray[np.uint8]
) -> None:
    """All parts that this process leaves to it, here all of them."""
    work = Work([str(file) for file in files], None, "RGB", pixels.shape, begin=1, part_size=7)
    images = _image_decoding._in_file(tmp_path / "pixels", work.shape)
    assert images is not None
    told = b""
    with ExitStack() as stack:
        queue, todo = os.pipe()
        stack.callback(os.close, queue)
        os.write(todo, b"".join(map(NUMBER.pack, range(work.part_count))))
        os.close(todo)
        done = _image_decoding._start_helpers(stack, 2, queue, (work, tmp_path / "pixels"))
        while news := os.read(done, 4096):
            told += news
    assert sorted(part for (part,) in NUMBER.iter_unpack(told)) == list(range(work.part_count))
    assert np.array_equal(images[1:], pixels[1:])
    assert not images[0].any()


@pytest.mark.usefixtures("helped")
def test_each_image_is_counted_once(tmp_path: Path, files: list[Path], pixels: NDArray[np.uint8]) -> None:
    work = Work([str(file) for file in files], None, "RGB", pixels.shape)
    images = _image_decoding._in_file(tmp_path / "pixels", work.shape)
    assert images is not None
    assert len(list(_image_decoding._filling(images, work, tmp_path / "pixels"))) == COUNT


@pytest.mark.usefixtures("helped")
@pytest.mark.parametrize("bad", [(3, 4, 250), (120, 121, 122, 123, 299), (298, 299), (1, 200)])
def test_the_first_of_several_corrupt_images_is_named_whoever_meets_it(
    tmp_path: Path, files: list[Path], cache_folder: Path, bad: tuple[int, ...]
) -> None:
    spoilt = list(files)
    for index in bad:
        spoilt[index] = tmp_path / f"bad-{index}.png"
        spoilt[index].write_bytes(b"no image")
    for _ in range(3):
        with pytest.raises(DataError, match=rf"bad-{bad[0]}\.png cannot be read"):
            read(spoilt)
        assert list(cache_folder.iterdir()) == []


@pytest.mark.usefixtures("helped")
def test_an_image_of_another_size_is_named_whoever_meets_it(tmp_path: Path, files: list[Path]) -> None:
    Image.new("RGB", (13, 12)).save(tmp_path / "odd.png")
    with pytest.raises(DataError, match=r"0.png is 256x256 and .*odd.png is 13x12: set workload.image_size"):
        decode_all([*files[:200], tmp_path / "odd.png", *files], None, "RGB", tmp_path / "pixels")


@pytest.mark.usefixtures("helped")
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.3])
def test_what_a_killed_process_has_taken_is_decoded_all_the_same(
    files: list[Path], pixels: NDArray[np.uint8], delay: float
) -> None:
    with when_helpers_run(signal.SIGKILL, delay):
        images = read(files * 2)
    assert np.array_equal(images.train_images, np.concatenate([pixels, pixels])[:-2])


@pytest.mark.usefixtures("helped")
def test_processes_that_cannot_begin_are_not_missed(
    tmp_path: Path, files: list[Path], pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        assert np.array_equal(decode_all(files, None, "RGB", tmp_path / "pixels"), pixels)
        patch.setattr(sys, "executable", str(tmp_path / "nowhere"))
        assert np.array_equal(decode_all(files, None, "RGB", tmp_path / "others"), pixels)


@pytest.mark.usefixtures("helped")
@pytest.mark.parametrize("delay", [0.0, 0.2])
@pytest.mark.filterwarnings("ignore:subprocess [0-9]+ is still running:ResourceWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_an_interrupt_ends_all_and_leaves_nothing(files: list[Path], cache_folder: Path, delay: float) -> None:
    """Where it comes while a process is being started, nobody holds that process: it ends by the pipe of its life.

    Where it comes between the opening of a file and its ``with``, Python closes the file, and warns.
    """
    with when_helpers_run(signal.SIGINT, delay), pytest.raises(KeyboardInterrupt):
        read(files * 10)
    assert list(cache_folder.iterdir()) == []


PARENT = """
import os, sys
from pathlib import Path
from lrsearch.workloads import _image_decoding as decoding
decoding.WORTH_HELP_SECONDS = 0.0
decoding.processors = lambda: 3
decoding.decode_all([sys.argv[1]] * 100_000, 16, "RGB", Path(sys.argv[2]))
"""


def test_helpers_end_with_a_process_that_is_killed(tmp_path: Path, files: list[Path]) -> None:
    arguments = [sys.executable, "-c", PARENT, str(files[0]), str(tmp_path / "pixels")]
    with subprocess.Popen(arguments, env={**os.environ, DECODERS_VARIABLE: "3"}) as parent:
        while len(helpers := children(parent.pid)) < 2:
            assert parent.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        assert all(map(lives, helpers))
        parent.kill()
    deadline = time.monotonic() + 60
    while any(map(lives, helpers)):
        assert time.monotonic() < deadline, "a helper outlived its parent"
        time.sleep(0.01)


def test_without_room_for_a_map_they_are_decoded_into_memory(
    files: list[Path], pixels: NDArray[np.uint8], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert decode_all(files[:20], None, "RGB", cache_folder.parent / "pixels").base is None
    assert not (cache_folder.parent / "pixels").exists()
    assert np.array_equal(read(files).train_images, pixels[:-2])
    assert [file.suffix for file in cache_folder.iterdir()] == [".images"]


@pytest.mark.parametrize("fallocate", [True, False])
def test_a_disk_without_room_is_told_and_nothing_stays_behind(
    files: list[Path], cache_folder: Path, monkeypatch: pytest.MonkeyPatch, fallocate: bool
) -> None:
    """Here by the limit that a process can have on its files' size."""
    if not fallocate:
        monkeypatch.delattr(os, "posix_fallocate")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(StorageError, match=r"some-.* cannot be written \(File too large\)"):
            read(files[:20])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache_folder.iterdir()) == []
    assert len(read(files[:20]).train_images) == 18


def test_parts_cover_each_row_once_and_their_numbers_fit_in_a_page() -> None:
    for count, begin, size in ((10, 1, 3), (10, 1, 9), (1_000_000, 51, 1_000), (2, 1, 50)):
        work = replace(Work(["a"] * count, None, "RGB", (count, 3, 8, 8)), begin=begin, part_size=size)
        assert [row for part in range(work.part_count) for row in work.rows(part)] == list(range(begin, count))
    assert NUMBER.size * _image_decoding.MOST_PARTS <= 4096


def test_a_worker_decodes_with_the_processors_of_all_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.delenv(DECODERS_VARIABLE, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert _image_decoding._processors() == 1
    monkeypatch.setenv(DECODERS_VARIABLE, "4")
    assert _image_decoding._processors() == 4
    monkeypatch.setenv(DECODERS_VARIABLE, "8")
    assert _image_decoding._processors() == 6


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "patience", "shown"), [(Terminal, 0, True), (Terminal, 60, False), (io.StringIO, 0, False)]
)
def test_a_bar_is_shown_on_a_terminal_once_patience_ends(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], patience: float, shown: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(_image_decoding, "PATIENCE_SECONDS", patience)
    monkeypatch.setattr(sys, "stderr", screen := stream())
    filling = iter([None] * 5)
    _image_decoding._go_through(filling, 5)
    assert not list(filling)
    assert ("Decoding images" in screen.getvalue()) is shown


def test_a_process_that_helps_imports_little() -> None:
    imported = modules_after("import lrsearch.decoding")
    assert not imported & {"lrsearch.workloads", "pydantic", "torch", "lrsearch.trial"}
