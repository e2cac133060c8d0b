"""From image files to one uint8 array: in threads, or in processes where there are many files.

`python -m lrsearch.workloads._image_decoding` is one of these processes: it reads a JSON object with `files` and the
fields of Decoder from stdin, and writes the pixels of one image after another to stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lrsearch.errors import DataError
from lrsearch.timing import processors
from lrsearch.workloads._progress import with_progress

MODES = {"rgb": "RGB", "grayscale": "L"}
PART, WINDOW = 50, 20
"""Files per task, enough to hide the threads' own cost on tiny images, and tasks under way at once."""
WORTH_A_PROCESS = 5_000
"""Files: Pillow opens small ones inside the interpreter's lock, so threads gain nothing; a process starts in 0.3 s."""
DAMAGED = 3
"""The exit code of a process that met a file which it cannot use."""


def decode_all(files: Sequence[str | Path], image_size: int | None, mode: str) -> NDArray[np.uint8]:
    """Return the images as (count, channels, height, width). Raises DataError that names an unreadable file."""
    first = _decode(str(files[0]), image_size, mode)
    images = np.empty((len(files), *first.shape), np.uint8)
    decoder = Decoder(image_size, mode, str(files[0]), first.shape)
    processes = min(len(files) // WORTH_A_PROCESS, _processors())
    paths = [str(file) for file in files]
    filling = _in_processes(images, paths, decoder, processes) if processes > 1 else _in_threads(images, paths, decoder)
    for _ in with_progress(filling, len(files), "Decoding images"):
        pass
    return images


@dataclass(frozen=True)
class Decoder:
    """How to read each file; `shape` is that of the `first`, and so of all."""

    image_size: int | None
    mode: str
    first: str
    shape: Sequence[int]

    def decode(self, path: str) -> NDArray[np.uint8]:
        """Return the image as (channels, height, width). Raises DataError."""
        image = _decode(path, self.image_size, self.mode)
        if image.shape != tuple(self.shape):
            raise DataError(
                f"All images must have one size, but {self.first} is {_size(self.shape)} and {path} is "
                f"{_size(image.shape)}: set workload.image_size."
            )
        return image


def _decode(path: str, image_size: int | None, mode: str) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            pixels = image.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"The image {path} cannot be read ({error}): replace or remove it.") from error
    if image_size is not None:
        pixels = ImageOps.fit(pixels, (image_size, image_size), Image.Resampling.BILINEAR)
    array = np.asarray(pixels)
    return array[np.newaxis] if array.ndim == 2 else array.transpose(2, 0, 1)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[2]}x{shape[1]}"


def _processors() -> int:
    """Return how many may be busy: in a worker those of its slot."""
    own = os.environ.get("OMP_NUM_THREADS", "")
    return min(processors(), int(own)) if own.isdecimal() and int(own) else processors()


def _in_threads(images: NDArray[np.uint8], files: Sequence[str], decoder: Decoder) -> Iterator[None]:
    """Decode in order, and yield for each image. Pillow decodes outside the interpreter's lock."""

    def decode(part: Sequence[str]) -> list[NDArray[np.uint8]]:
        return [decoder.decode(path) for path in part]

    parts = [files[start : start + PART] for start in range(0, len(files), PART)]
    rows = iter(images)
    with ThreadPoolExecutor(max_workers=min(8, _processors())) as pool:
        for start in range(0, len(parts), WINDOW):
            for decoded in pool.map(decode, parts[start : start + WINDOW]):
                for image in decoded:
                    next(rows)[...] = image
                    yield


def _in_processes(images: NDArray[np.uint8], files: Sequence[str], decoder: Decoder, processes: int) -> Iterator[None]:
    """Decode a range of the files in each process, and yield for each image."""
    bounds = [len(files) * part // processes for part in range(processes + 1)]
    news: SimpleQueue[int | None] = SimpleQueue()
    with ThreadPoolExecutor(processes) as pool, ExitStack() as stack:
        readers = []
        for start, stop in pairwise(bounds):
            said = stack.enter_context(tempfile.TemporaryFile())
            process = stack.enter_context(_started(decoder, files[start:stop], said))
            stack.callback(process.kill)
            readers.append(pool.submit(_take, process, said, images[start:stop], news))
        for _ in readers:
            for count in iter(news.get, None):
                yield from [None] * count
            for reader in readers:  # in order, so that the first damaged file is named; what comes after it is killed
                if not reader.done():
                    break
                reader.result()
        for reader in readers:
            reader.result()


def _started(decoder: Decoder, files: Sequence[str], said: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a process that decodes the files; what it has to say goes to `said`, which never blocks it."""
    path = os.pathsep.join(path for path in sys.path if path)
    with tempfile.TemporaryFile() as order:
        order.write(json.dumps({**asdict(decoder), "files": files}).encode())
        order.seek(0)
        return subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-m", __name__],
            env={**os.environ, "PYTHONPATH": path},
            stdin=order,
            stdout=subprocess.PIPE,
            stderr=said,
        )


def _take(
    process: subprocess.Popen[bytes], said: IO[bytes], images: NDArray[np.uint8], news: SimpleQueue[int | None]
) -> None:
    """Take `images` from the process; tell how many came, and None at the end. Raises DataError."""
    assert process.stdout is not None
    try:
        for start in range(0, len(images), PART):
            part = images[start : start + PART]
            if process.stdout.readinto(part.data.cast("B")) != part.nbytes:  # type: ignore[attr-defined]  # buffered
                code = process.wait()
                said.seek(0)
                *_, last = ["", *said.read().decode(errors="replace").splitlines()]
                raise DataError(last if code == DAMAGED else f"Decoding images ended with exit code {code}: {last}")
            news.put(len(part))
    finally:
        news.put(None)


def main() -> int:
    order = json.load(sys.stdin)
    files = order.pop("files")
    decoder = Decoder(**order)
    try:
        for path in files:
            sys.stdout.buffer.write(np.ascontiguousarray(decoder.decode(path)).data)
    except DataError as error:
        sys.stdout.flush()
        sys.stderr.write(" ".join(str(error).split()))
        return DAMAGED
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
