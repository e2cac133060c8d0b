"""From image files to one uint8 array, here and in processes that help (`lrsearch/decoding.py`)."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from lrsearch.decoding import NUMBER, Work, decode, drain, map_pixels, taken_from
from lrsearch.environment import DECODERS_VARIABLE, importing_alike, processors
from lrsearch.errors import DataError

MODES = {"rgb": "RGB", "grayscale": "L"}
MOST_PROCESSES = 8
WORTH_HELP_SECONDS = 1.0
"""What would take longer alone gets help: a process uses 0.2 s of a processor before its first image."""
TIMED_SECONDS, TIMED_IMAGES = 0.1, 50
"""Whichever comes first is decoded here, to know how long the rest will take."""
PART_SECONDS, PART_IMAGES = 0.05, 50
"""A part takes no longer and has no more images, enough to hide what handing it out costs, ..."""
MOST_PARTS = 1_000
"""... unless there would be too many: all their numbers must fit in a pipe, which may have one page of memory only."""
PATIENCE_SECONDS = 1.0
"""Before a bar is shown."""


def decode_all(
    files: Sequence[str | Path], image_size: int | None, mode: str, target: Path | None = None
) -> NDArray[np.uint8]:
    """Return the images as (count, channels, height, width). Raises DataError that names an unreadable file.

    They are the bytes of the new file `target`, unless it cannot be made: then it is not there.
    """
    paths = [str(file) for file in files]
    first = decode(paths[0], image_size, mode)
    work = Work(paths, image_size, mode, (len(paths), *first.shape))
    shared = None if target is None else _in_file(target, work.shape)
    images = np.empty(work.shape, np.uint8) if shared is None else shared
    images[0] = first
    with closing(_filling(images, work, None if shared is None else target)) as filling:
        _go_through(filling, len(paths))
    return images


def _go_through(filling: Iterator[None], total: int) -> None:
    """Have all images decoded; once that has taken long, show a bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        for _ in filling:
            pass
        return
    from rich.console import Console
    from rich.progress import Progress

    began = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Decoding images", total=total, visible=False)
        for _ in filling:
            progress.update(task, advance=1, visible=time.monotonic() - began > PATIENCE_SECONDS)


def _in_file(target: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Return an array whose bytes are those of a new file; None, and no file, where that cannot be."""
    try:
        with target.open("xb") as file:
            _reserve(file.fileno(), math.prod(shape))
        return map_pixels(target, shape)
    except OSError:
        with suppress(OSError):
            target.unlink()
        return None


def _reserve(file: int, size: int) -> None:
    """Take the room on the disk now: where there is none later, writing to the map would end this process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        zeros = bytes(2**20)
        while size > 0:
            size -= os.write(file, zeros[:size])


def _filling(images: NDArray[np.uint8], work: Work, target: Path | None) -> Generator[None, None, None]:
    """Decode all but the first, and yield for each image that is done."""
    yield
    row, began, seconds = 1, time.perf_counter(), 0.0
    while row < len(images) and row <= TIMED_IMAGES and seconds < TIMED_SECONDS:
        work.fill(images, [row])
        yield
        row, seconds = row + 1, time.perf_counter() - began
    left, seconds_each = len(images) - row, seconds / row
    helpers = 0 if target is None else min(MOST_PROCESSES, _processors()) - 1
    if target is None or helpers < 1 or left * seconds_each <= WORTH_HELP_SECONDS:
        for rest in range(row, len(images)):
            work.fill(images, [rest])
            yield
        return
    most = min(PART_IMAGES, int(PART_SECONDS / seconds_each))
    work = replace(work, begin=row, part_size=max(1, most, math.ceil(left / MOST_PARTS)))
    for part in _parts_done(images, work, target, min(helpers, work.part_count - 1)):
        for _ in work.rows(part):
            yield


def _parts_done(images: NDArray[np.uint8], work: Work, target: Path, helpers: int) -> Iterator[int]:
    """Decode all parts, with so many processes that help, and yield each part's number.

    What none of them has said to be done is decoded here at the end, in order: so the DataError that is raised is that
    of the first image with one, and what a process has left half done when it died is done again.
    """
    missing = set(range(work.part_count))
    with ExitStack() as stack:
        queue, todo = os.pipe()
        stack.callback(os.close, queue)
        with open(todo, "wb", buffering=0) as file:
            file.write(b"".join(map(NUMBER.pack, range(work.part_count))))
        done = _start_helpers(stack, helpers, queue, (work, target))
        os.set_blocking(done, False)
        with suppress(DataError):
            for part in taken_from(queue):
                work.fill(images, work.rows(part))
                news = {part, *_told(done)}
                missing -= news
                yield from news
        drain(queue)
        os.set_blocking(done, True)
        while missing and (news := _told(done)):
            missing -= news
            yield from news
    for part in sorted(missing):
        work.fill(images, work.rows(part))
        yield part


def _told(done: int) -> set[int]:
    """Return the parts that the pipe names; none, where there is nothing in it and it does not block, or has ended."""
    with suppress(BlockingIOError):
        return {part for (part,) in NUMBER.iter_unpack(os.read(done, MOST_PARTS * NUMBER.size))}
    return set()


def _start_helpers(stack: ExitStack, count: int, queue: int, order: object) -> int:
    """Start so many processes, or as many as there can be, that end with `stack`; return the pipe they answer by."""
    done, tell = os.pipe()
    stack.callback(os.close, done)
    life, end = os.pipe()
    stack.callback(os.close, end)
    with open(tell, "wb", buffering=0), open(life, "rb", buffering=0), suppress(OSError), TemporaryFile() as file:
        pickle.dump(order, file)
        file.flush()
        for _ in range(count):
            process = _start_helper(life, file.fileno(), queue, tell)
            stack.callback(process.wait)
            stack.callback(process.kill)
    return done


def _start_helper(life: int, *descriptors: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  our own program
        [sys.executable, "-P", "-m", "lrsearch.decoding", *map(str, descriptors)],
        env=importing_alike(os.environ),
        pass_fds=descriptors,
        stdin=life,
        stdout=2,  # what a library prints is no part of our own output
        start_new_session=True,  # Ctrl-C is for us alone
    )


def _processors() -> int:
    """Return how many may be busy: in a worker those of its slot, or of all slots."""
    own = os.environ.get(DECODERS_VARIABLE) or os.environ.get("OMP_NUM_THREADS", "")
    return min(processors(), int(own)) if own.isdecimal() and int(own) else processors()
