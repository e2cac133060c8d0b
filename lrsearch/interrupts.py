"""Signals that wait until something has been done as a whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deferred(*numbers: signal.Signals) -> Iterator[None]:
    """Hold these signals back until the block has ended; only the main thread ever gets one."""
    before = {number: signal.getsignal(number) for number in numbers}
    if threading.current_thread() is not threading.main_thread() or None in before.values():
        yield
        return
    came: list[int] = []
    for number in numbers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)
