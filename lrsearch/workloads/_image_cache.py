"""Images decoded once into one uint8 file that is checksummed, memory-mapped and rebuilt when anything is off.

The file: 8 hex digits (CRC-32 of all that follows), a line feed, one line of JSON, then the bytes of the four arrays.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lrsearch.cache import cache_folder
from lrsearch.errors import StorageError

FORMAT = 2
CHECKSUM_BYTES = 9
READ_AT_ONCE = 2**20


@dataclass(frozen=True)
class DecodedImages:
    """All images of a data set: uint8, (count, channels, height, width), and their class ids from 0.

    Multi-label: a row of zeros and ones, (count, classes), in the place of a class id; never in a cache file.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[Any]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[Any]
    class_count: int
    validation_count: int = 0
    """How many of the last training images are the validation split of every seed; 0: each seed holds back its own."""


def cached(
    name: str,
    sources: Iterable[str | Path],
    settings: Mapping[str, str | int | float | None],
    decode: Callable[[], DecodedImages],
) -> DecodedImages:
    """Return `decode()`'s images, from the cache file if it is whole and no source changed path, size or time.

    `name` and `settings` name the file: a changed source replaces it. Raises StorageError when the cache folder cannot
    be written.
    """
    identity = hashlib.sha256(json.dumps([name, dict(settings)], sort_keys=True).encode()).hexdigest()
    path = cache_folder() / f"{name}-{identity[:16]}.images"
    key = _fingerprint(sources)
    images = _read(path, key)
    if images is None:
        with _alone(path):  # other processes of this study wait, and find it made
            images = _read(path, key)
            if images is None:
                _write(path, key, decode())
                images = _read(path, key)
    if images is None:
        raise StorageError(
            f"The image cache {path} does not read back as written: check the disk, or set LRSEARCH_CACHE."
        )
    return images


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock beside `path` where the system has such; it goes with the process."""
    with ExitStack() as stack:
        with suppress(ImportError, OSError):  # Windows; file systems without locks: then each makes its own
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_suffix(".lock")
            file = stack.enter_context(lock.open("w"))
            stack.callback(lock.unlink, missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fingerprint(sources: Iterable[str | Path]) -> str:
    files = (f"{source}\0{(stat := os.stat(source)).st_size}\0{stat.st_mtime_ns}" for source in sources)
    return hashlib.sha256("\n".join((str(FORMAT), *files)).encode()).hexdigest()


def _read(path: Path, key: str) -> DecodedImages | None:
    """Return the images, mapped from the file, or None if the file is absent, damaged or made from other sources."""
    try:
        with path.open("rb") as file:
            stored = file.read(CHECKSUM_BYTES)
            if _checksum(iter(partial(file.read, READ_AT_ONCE), b"")) != stored:
                return None
            file.seek(CHECKSUM_BYTES)
            header = json.loads(file.readline())
            return _map_arrays(path, file, header) if header["key"] == key else None
    except OSError:
        return None


def _map_arrays(path: Path, file: BinaryIO, header: dict[str, Any]) -> DecodedImages:
    labels = [np.fromfile(file, "<i8", count=header["shapes"][split][0]) for split in ("train", "test")]
    offset = file.tell()
    train_shape, test_shape = (tuple(header["shapes"][split]) for split in ("train", "test"))
    # Copy on write: torch wants writable memory, and the file must never change through it.
    train = np.memmap(path, np.uint8, "c", offset, train_shape)
    test = np.memmap(path, np.uint8, "c", offset + train.size, test_shape)
    return DecodedImages(train, labels[0], test, labels[1], header["class_count"])


def _checksum(pieces: Iterable[bytes | memoryview]) -> bytes:
    """Return the first line of a file with these pieces: it is to find damage, and is read at each start."""
    return f"{reduce(lambda before, piece: zlib.crc32(piece, before), pieces, 0):08x}\n".encode()


def _write(path: Path, key: str, images: DecodedImages) -> None:
    shapes = {"train": images.train_images.shape, "test": images.test_images.shape}
    header = json.dumps({"key": key, "class_count": images.class_count, "shapes": shapes}).encode() + b"\n"
    pieces = [
        memoryview(header),
        images.train_labels.astype("<i8").view(np.uint8).data,
        images.test_labels.astype("<i8").view(np.uint8).data,
        np.ascontiguousarray(images.train_images).reshape(-1).data,
        np.ascontiguousarray(images.test_images).reshape(-1).data,
    ]
    try:
        _write_whole(path, [memoryview(_checksum(pieces)), *pieces])
    except OSError as error:
        raise StorageError(
            f"The image cache {path} cannot be written ({error.strerror or error}): make room or give permission "
            "there, or set LRSEARCH_CACHE to another folder."
        ) from error


def _write_whole(path: Path, pieces: Iterable[memoryview]) -> None:
    """Write so that `path` is the old file, or none, until the new one is whole.

    Nothing waits for the disk: what a loss of power spoils is found by its checksum, and made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
