"""The stopwatch: every second that a device is held belongs to one phase."""

from __future__ import annotations

import functools
import gc
import importlib
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lrsearch.errors import DeviceFaultError
from lrsearch.trial import PHASES

if TYPE_CHECKING:
    import torch


def core_seconds() -> float:
    """Return user + system processor seconds that this process, all its threads and its ended children have used."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


THREADS = Path("/proc/self/task")


def waited_seconds() -> float:
    """Return the seconds that the threads of this process have waited for a processor that others had; 0 where unknown.

    An ended thread takes its own with it.
    """
    nanoseconds = 0
    for thread in THREADS.glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # it has ended
            nanoseconds += int(thread.read_text().split()[1])
    return nanoseconds / 1e9


@functools.cache
def processor_name() -> str:
    """Return what the processor is called."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Keep the garbage collector from walking a million new objects, none of them garbage.

    It takes a third of the time of reading many records, and a tenth of that of `import torch`.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_at_rest(module: str) -> None:
    """Import a large module; the collector looks no more at what is there by then, nor copies it in forked processes.

    Frozen before the collector wakes: else it would walk all of torch, once and again.
    """
    with collector_at_rest():
        importlib.import_module(module)
        gc.freeze()


class DeviceStopwatch:
    """Splits the span from `start` to `stop` into consecutive segments, each on one phase's account.

    The device is synchronised before each reading, so call `switch` at segment ends, never per step. Seconds are those
    of a monotonic clock.

    >>> ticks = iter([0, 2_000_000_000, 5_000_000_000])
    >>> watch = DeviceStopwatch(clock=lambda: next(ticks))
    >>> watch.start("setup"); watch.switch("train"); watch.stop()
    >>> watch.phase_seconds
    {'setup': 2.0, 'train': 3.0}
    """

    def __init__(
        self,
        synchronize: Callable[[], None] = lambda: None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.phase_seconds: dict[str, float] = {}
        self._synchronize = synchronize
        self._clock = clock
        self._phase: str | None = None
        self._since = 0
        self._core_since = 0.0
        self._core_seconds = 0.0

    def start(self, phase: str) -> None:
        """Begin the first segment."""
        assert self._phase is None
        assert phase in PHASES
        self._synchronize()
        self._core_since = core_seconds()
        self._since = self._clock()
        self._phase = phase

    def switch(self, phase: str) -> None:
        """End the running segment and begin one of `phase`, which may be the same."""
        assert self._phase is not None
        assert phase in PHASES
        self._synchronize()
        now = self._clock()
        self.add(self._phase, (now - self._since) / 1e9)
        self._since = now
        self._phase = phase

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds that were spent before `start`, or elsewhere."""
        self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + seconds

    def lap(self) -> None:
        """Bring `phase_seconds` up to date; the same phase goes on."""
        assert self._phase is not None
        self.switch(self._phase)

    def stop(self) -> None:
        """End the last segment; further calls do nothing."""
        if self._phase is None:
            return
        self.switch(self._phase)
        self._phase = None
        self._core_seconds = core_seconds() - self._core_since

    @property
    def core_seconds(self) -> float:
        """Processor seconds from start to stop, or up to now."""
        return self._core_seconds if self._phase is None else core_seconds() - self._core_since


def synchronizer(device: torch.device) -> Callable[[], None]:
    """Return what waits until all work handed to `device` is done; it raises DeviceFaultError where that cannot be."""
    import torch

    def synchronize() -> None:
        try:
            torch.cuda.synchronize(device)
        except torch.AcceleratorError as error:
            raise DeviceFaultError(f"its device failed: {str(error).partition(chr(10))[0]}") from error

    if device.type == "cuda":
        return synchronize
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None
