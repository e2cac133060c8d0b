"""Products of matrices in float32 on a processor, by the one of torch's two libraries that is faster there.

torch has them done by MKL, which on some processors uses half of what they can do. Where torch may round their
factors to bfloat16 it hands them to oneDNN instead, and that rounds with AMX instructions alone: elsewhere it computes
in float32.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from lrsearch.cache import recall, remember
from lrsearch.timing import processor_name

SIDE, TURNS = 256, 8
"""Of the matrices that are multiplied to see which way is faster, and how often each way: a few milliseconds."""
CLEARLY_FASTER = 0.8
"""Of what a product takes in one library, the most that it may take in the other one."""


def by_onednn(wanted: bool) -> AbstractContextManager[None]:
    """Have products of float32 matrices inside done by oneDNN, if that is `wanted` and may be."""
    return _in_precision("medium") if wanted and _tells_precision() else nullcontext()


def _tells_precision() -> bool:
    """Whether torch tells what it may round: not where somebody, as the user's code, has set that in newer words."""
    try:
        torch.get_float32_matmul_precision()
    except RuntimeError:
        return False
    return True


@contextmanager
def _in_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def is_exact() -> bool:
    """Whether oneDNN rounds no factor on this machine: its products are float32's, up to the order of their sums."""
    if not _tells_precision():
        return False
    numbers = torch.linspace(1, 2, SIDE * SIDE, dtype=torch.float32, device="cpu").view(1, SIDE, SIDE)
    unit = torch.eye(SIDE, dtype=torch.float32, device="cpu")[None]
    with by_onednn(True):
        return torch.equal(torch.bmm(numbers, unit), numbers) and torch.equal(numbers[0] @ unit[0], numbers[0])


@functools.cache
def is_faster() -> bool:
    """Whether oneDNN's products are exact and clearly faster than MKL's. Kept in the cache folder for a week."""
    if not is_exact():
        return False
    circumstances = [processor_name(), torch.get_num_threads(), torch.__version__]
    known: bool | None = recall("onednn", circumstances)
    if known is None:
        factor = torch.ones(SIDE, SIDE, dtype=torch.float32, device="cpu")

        def product(precision: str) -> None:
            with _in_precision(precision):
                factor @ factor

        known = ratio(lambda: product("medium"), lambda: product("highest")) <= CLEARLY_FASTER
        remember("onednn", circumstances, known)
    return known


def ratio(one: Callable[[], object], other: Callable[[], object]) -> float:
    """Return what `one` takes on the processor over what `other` takes.

    They take turns; it is the median after one of each to warm up.
    """
    ratios = []
    for _ in range(TURNS):
        marks = [time.perf_counter()]
        for work in (one, other):
            work()
            marks.append(time.perf_counter())
        ratios.append((marks[1] - marks[0]) / (marks[2] - marks[1]))
    return statistics.median(ratios[1:])
