"""From an image file to its pixels; `python -m lrsearch.decoding ORDER QUEUE DONE` is a process that helps with many.

ORDER is a file with a pickled `Work` and the path to write to. QUEUE and DONE are pipes of part numbers: what it takes
out of the one it decodes and puts into the other. A part that cannot be decoded it leaves, with all that are still in
the queue, to the process that started it. It ends when its input does. Here, because to import `lrsearch.workloads`
takes longer than 5,000 small images.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import signal
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from lrsearch.errors import DataError

NUMBER = struct.Struct("=I")
JPEG_BEGINS = b"\xff\xd8"
SAME_AS_PILLOWS = {("YCbCr", "RGB"), ("Gray", "RGB"), ("Gray", "L")}
"""Colours in the file and mode; a grey picture of colours is made by other weights."""
DEEP = ("I", "F")
"""How Pillow's modes begin that it cuts off at 255: I;16 of medical images, 32-bit floats. Coloured ones it scales."""


@dataclass(frozen=True)
class Work:
    """Images to be decoded into the rows of an array, `shape`: (count, channels, height, width)."""

    paths: Sequence[str]
    image_size: int | None
    mode: str
    shape: tuple[int, ...]
    begin: int = 0
    """The row where part 0 begins."""
    part_size: int = 1

    @property
    def part_count(self) -> int:
        return math.ceil((len(self.paths) - self.begin) / self.part_size)

    def rows(self, part: int) -> range:
        start = self.begin + part * self.part_size
        return range(start, min(start + self.part_size, len(self.paths)))

    def fill(self, images: NDArray[np.uint8], rows: Iterable[int]) -> None:
        """Decode the images of these rows. Raises DataError, also for one that has not the first one's size."""
        for row in rows:
            image = decode(self.paths[row], self.image_size, self.mode)
            if image.shape != self.shape[1:]:
                raise DataError(
                    f"All images must have one size, but {self.paths[0]} is {_size(self.shape[1:])} and "
                    f"{self.paths[row]} is {_size(image.shape)}: set workload.image_size."
                )
            images[row] = image


def decode(path: str, image_size: int | None, mode: str) -> NDArray[np.uint8]:
    """Return the image as (channels, height, width). Raises DataError that names it."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
        array = _jpeg(data, mode)
        if array is None:
            with Image.open(io.BytesIO(data)) as image:
                if image.mode.startswith(DEEP):
                    raise DataError(
                        f"The image {path} has more than 8 bits per pixel ({image.mode}), and what is above 255 would "
                        "all be white: save it with 8 bits."
                    )
                array = np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"The image {path} cannot be read ({error}): replace or remove it.") from error
    if image_size is not None:
        from PIL import ImageOps

        fitted = ImageOps.fit(Image.fromarray(array), (image_size, image_size), Image.Resampling.BILINEAR)
        array = np.asarray(fitted)
    return array[np.newaxis] if array.ndim == 2 else array.transpose(2, 0, 1)


def _jpeg(data: bytes, mode: str) -> NDArray[np.uint8] | None:
    """Return the pixels, the same as Pillow's in a seventh of its time; None for what is to be left to Pillow.

    That is what is no JPEG, too large, damaged, or has colours that the two translate in different ways.
    """
    if not data.startswith(JPEG_BEGINS):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > (Image.MAX_IMAGE_PIXELS or 0) or (space, mode) not in SAME_AS_PILLOWS:
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB" if mode == "RGB" else "GRAY")
    except ValueError:
        return None
    return pixels if mode == "RGB" else pixels[..., 0]


def _size(shape: Sequence[int]) -> str:
    return f"{shape[2]}x{shape[1]}"


def map_pixels(target: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the array whose bytes are those of the file: what is written there, every process sees."""
    return np.memmap(target, np.uint8, "r+", 0, shape)


def taken_from(queue: int) -> Iterator[int]:
    """Yield the numbers that this process gets of those in the pipe, which has no writer any more."""
    while taken := os.read(queue, NUMBER.size):
        yield from NUMBER.unpack(taken)


def drain(queue: int) -> None:
    """Leave nothing to anybody."""
    deque(taken_from(queue), maxlen=0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    order, queue, done = map(int, sys.argv[1:])
    # At its place, not where others have read to: all have the same open file.
    work, target = pickle.loads(os.pread(order, os.fstat(order).st_size, 0))  # noqa: S301  from our own parent
    _decode_parts(work, map_pixels(target, work.shape), queue, done)
    os._exit(0)


def _end_with_parent() -> None:
    """End this process when the other end of its input is closed, if only because the parent has died."""
    os.read(0, 1)
    os._exit(1)


def _decode_parts(work: Work, images: NDArray[np.uint8], queue: int, done: int) -> None:
    try:
        for part in taken_from(queue):
            work.fill(images, work.rows(part))
            os.write(done, NUMBER.pack(part))
    except (DataError, BrokenPipeError):  # which the parent will meet too, if not one before; and it has died
        drain(queue)


if __name__ == "__main__":
    main()
