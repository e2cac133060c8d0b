"""From image files to one uint8 array, in threads."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lrsearch.errors import DataError
from lrsearch.timing import processors
from lrsearch.workloads._progress import with_progress

MODES = {"rgb": "RGB", "grayscale": "L"}
PART, WINDOW = 50, 20
"""Files per task, enough to hide the threads' own cost on tiny images, and tasks under way at once."""
WORTH_A_THREAD = 2**16
"""Values of an image; smaller ones are decoded faster than two threads hand the interpreter's lock to each other."""
JPEG_BEGINS = b"\xff\xd8"
SAME_AS_PILLOWS = {("YCbCr", "RGB"), ("Gray", "RGB"), ("Gray", "L")}
"""Colours in the file and mode; a grey picture of colours is made by other weights."""


def decode_all(files: Sequence[str | Path], image_size: int | None, mode: str) -> NDArray[np.uint8]:
    """Return the images as (count, channels, height, width). Raises DataError that names an unreadable file."""
    paths = [str(file) for file in files]
    first = _decode(paths[0], image_size, mode)
    images = np.empty((len(paths), *first.shape), np.uint8)

    def decode(part: Sequence[str]) -> list[NDArray[np.uint8]]:
        decoded = [_decode(path, image_size, mode) for path in part]
        for path, image in zip(part, decoded, strict=True):
            if image.shape != first.shape:
                raise DataError(
                    f"All images must have one size, but {paths[0]} is {_size(first)} and {path} is {_size(image)}: "
                    "set workload.image_size."
                )
        return decoded

    for _ in with_progress(_filling(images, paths, decode), len(paths), "Decoding images"):
        pass
    return images


def _filling(
    images: NDArray[np.uint8], paths: Sequence[str], decode: Callable[[Sequence[str]], list[NDArray[np.uint8]]]
) -> Iterator[None]:
    """Decode in order, and yield for each image."""
    parts = [paths[start : start + PART] for start in range(0, len(paths), PART)]
    rows = iter(images)
    with ThreadPoolExecutor(min(8, _processors())) as pool:
        for start in range(0, len(parts), WINDOW):
            some = parts[start : start + WINDOW]
            for decoded in map(decode, some) if images[0].size < WORTH_A_THREAD else pool.map(decode, some):
                for image in decoded:
                    next(rows)[...] = image
                    yield


def _decode(path: str, image_size: int | None, mode: str) -> NDArray[np.uint8]:
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
        array = _jpeg(data, mode)
        if array is None:
            with Image.open(io.BytesIO(data)) as image:
                array = np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"The image {path} cannot be read ({error}): replace or remove it.") from error
    if image_size is not None:
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


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def _processors() -> int:
    """Return how many may be busy: in a worker those of its slot."""
    own = os.environ.get("OMP_NUM_THREADS", "")
    return min(processors(), int(own)) if own.isdecimal() and int(own) else processors()
