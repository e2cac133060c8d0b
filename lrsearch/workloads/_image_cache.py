"""Images decoded once into one uint8 file that is checksummed, memory-mapped and rebuilt when anything is off.

The file: the bytes of the images, training then test, those of the labels, a line feed, one line of JSON, and a line of
8 hex digits: the CRC-32 of all before it. So images can be decoded straight into it, when nothing else is known yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lrsearch.cache import cache_folder
from lrsearch.errors import DataError, StorageError

FORMAT = 4
CHECKSUM_BYTES = 9
MOST_HEADER_BYTES = 2**12
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
    decode: Callable[[Path], DecodedImages],
) -> DecodedImages:
    """Return `decode`'s images, from the cache file if it is whole and no source changed path, size or time.

    `decode` is given a path. If it makes a file there, then that holds the bytes of the training and the test images,
    and nothing else. `name` and `settings` name the cache file: a changed source replaces it. Raises StorageError when
    the cache folder cannot be written.
    """
    identity = hashlib.sha256(json.dumps([name, dict(settings)], sort_keys=True).encode()).hexdigest()
    path = cache_folder() / f"{name}-{identity[:16]}.images"
    with ThreadPoolExecutor(1) as beside:  # asking for many files takes as long as reading one
        fingerprint = beside.submit(_fingerprint, sources)
        images = _read(path, fingerprint.result)
    key = fingerprint.result()
    if images is None:
        with _alone(path):  # other processes of this study wait, and find it made
            images = _read(path, lambda: key)
            if images is None:
                _make(path, key, decode)
                images = _read(path, lambda: key)
    if images is None:
        raise StorageError(
            f"The image cache {path} does not read back as written: check the disk, or set LRSEARCH_CACHE."
        )
    return images


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock beside `path` where the system has such; it goes with the process."""
    with suppress(OSError):  # said by who writes there
        path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with suppress(ImportError, OSError):  # Windows; file systems without locks: then each makes its own
            _lock(path.with_suffix(".lock"), stack)
            for left in path.parent.glob(_temporary(path, "*").name):  # by a process that was killed
                left.unlink(missing_ok=True)
        yield


def _lock(file: Path, stack: ExitStack) -> None:
    """Hold the lock until `stack` ends, which removes the file: whoever has waited for that one then makes another."""
    import fcntl

    while True:
        lock = stack.enter_context(file.open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            file.unlink(missing_ok=True)
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                stack.callback(file.unlink, missing_ok=True)
                return


def _temporary(path: Path, name: str) -> Path:
    return path.with_name(f".{path.name}-{name}")


def _fingerprint(sources: Iterable[str | Path]) -> str:
    try:
        files = [f"{source}\0{(stat := os.stat(source)).st_size}\0{stat.st_mtime_ns}" for source in sources]
    except OSError as error:  # a link to nowhere, say
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): replace or remove it.") from error
    return hashlib.sha256("\n".join((str(FORMAT), *files)).encode()).hexdigest()


def _read(path: Path, key: Callable[[], str]) -> DecodedImages | None:
    """Return the images, mapped from the file, or None if the file is absent, damaged or made from other sources."""
    try:
        with path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size - CHECKSUM_BYTES
            if end < 0 or _checksum(_pieces(file, end)) != file.read(CHECKSUM_BYTES):
                return None
            file.seek(max(0, end - MOST_HEADER_BYTES))
            header = json.loads(file.read(min(end, MOST_HEADER_BYTES)).splitlines()[-1])
            return _map_arrays(path, file, header) if header["key"] == key() else None
    except OSError:
        return None


def _pieces(file: BinaryIO, end: int) -> Iterator[bytes]:
    """Yield what stands in the file from here to `end`."""
    while piece := file.read(min(READ_AT_ONCE, end - file.tell())):
        yield piece


def _map_arrays(path: Path, file: BinaryIO, header: dict[str, Any]) -> DecodedImages:
    train_shape, test_shape = (tuple(header["shapes"][split]) for split in ("train", "test"))
    # Copy on write: torch wants writable memory, and the file must never change through it.
    train = np.memmap(path, np.uint8, "c", 0, train_shape)
    test = np.memmap(path, np.uint8, "c", train.size, test_shape)
    file.seek(train.size + test.size)
    labels = [np.fromfile(file, "<i8", count=shape[0]) for shape in (train_shape, test_shape)]
    return DecodedImages(train, labels[0], test, labels[1], header["class_count"])


def _checksum(pieces: Iterable[bytes | memoryview]) -> bytes:
    """Return the last line of a file with these pieces: it is to find damage, and is read at each start."""
    return f"{reduce(lambda before, piece: zlib.crc32(piece, before), pieces, 0):08x}\n".encode()


def _make(path: Path, key: str, decode: Callable[[Path], DecodedImages]) -> None:
    """Have `path` be the old file, or none, until the new one is whole; what was begun goes with any error.

    Nothing waits for the disk: what a loss of power spoils is found by its checksum, and made again.
    """
    temporary = _temporary(path, uuid.uuid4().hex)
    try:
        images = decode(temporary)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(temporary, key, images)
            os.replace(temporary, path)
        except OSError as error:
            raise StorageError(
                f"The image cache {path} cannot be written ({error.strerror or error}): make room or give permission "
                "there, or set LRSEARCH_CACHE to another folder."
            ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _write(file: Path, key: str, images: DecodedImages) -> None:
    """Write all that is not there yet."""
    shapes = {"train": images.train_images.shape, "test": images.test_images.shape}
    header = json.dumps({"key": key, "class_count": images.class_count, "shapes": shapes})
    pixels = [np.ascontiguousarray(some).reshape(-1).data for some in (images.train_images, images.test_images)]
    rest: list[bytes | memoryview] = [
        images.train_labels.astype("<i8").view(np.uint8).data,
        images.test_labels.astype("<i8").view(np.uint8).data,
        f"\n{header}\n".encode(),
    ]
    missing = rest if file.exists() else [*pixels, *rest]
    with file.open("ab") as end:
        for piece in [*missing, _checksum([*pixels, *rest])]:
            end.write(piece)
