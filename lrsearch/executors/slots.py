"""Slots whose trials run in a process of their own, on this machine or another: a thread each, and a watch on progress.

What dies there takes one attempt with it, and another process takes its place. The process never sees the database:
curve points and results come back over a wire, and with each point goes the answer whether to go on.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from lrsearch import errors
from lrsearch.errors import ClusterError, LrsearchError, MachineLostError, WorkerDiedError, WorkloadError
from lrsearch.interfaces import Channel, RunTrials, Told
from lrsearch.trial import TrialResult, TrialSpec

T = TypeVar("T")

GAPS_TO_GIVE_UP = 20.0
"""A trial that shows no progress for so many times the longest pause that its worker ever made has hung."""


class Worker(ABC):
    """The other end of `worker.py`, wherever that runs."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._longest_gap = 0.0
        self._tell: Callable[[str, str], None] = _nobody
        """Who hears what the trial that runs has to say."""

    @abstractmethod
    def is_alive(self) -> bool:
        """Whether the process can take an order."""

    @abstractmethod
    def send(self, message: Any) -> None:
        """Send it to the process. Raises WorkerDiedError."""

    @abstractmethod
    def receive(self, timeout: float | None) -> tuple[Any, ...] | None:
        """Return the next message, or None when there was none for so long. Raises WorkerDiedError."""

    @abstractmethod
    def kill(self) -> None:
        """End the process and its children. Any thread may."""

    @abstractmethod
    def bury(self) -> None:
        """Wait for the end of the killed process and give everything back."""

    def call(self, work: Callable[[], T]) -> T:
        """Return what `work()` gives there. Raises WorkerDiedError."""
        return self._converse(("call", work), _no_point, watched=False)  # type: ignore[no-any-return]  # comes by wire

    def run(self, run_trials: RunTrials, specs: Sequence[TrialSpec], channel: Channel) -> Sequence[TrialResult]:
        """Return what `run_trials` gives there. Raises WorkerDiedError, StorageError."""
        self._tell = channel.message if isinstance(channel, Told) else _nobody
        return self._converse(("run", run_trials, specs), channel.report, watched=True)  # type: ignore[no-any-return]  # comes by wire

    def _converse(self, order: tuple[Any, ...], report: Callable[..., bool], *, watched: bool) -> Any:
        self.send(order)
        while True:
            kind, *content = self._next(watched=watched)
            if kind == "point":
                self.send(report(*content))
            elif kind == "message":
                self._tell(*content)
            elif kind == "done":
                return content[0]
            elif kind == "error":
                error = _told(*content)
                if isinstance(error, WorkerDiedError):  # it says so itself, before it is of no more use
                    self.kill()
                    self.bury()
                raise error

    def _next(self, *, watched: bool) -> tuple[Any, ...]:
        began = time.monotonic()
        limit = max(self._patience_seconds, GAPS_TO_GIVE_UP * self._longest_gap) if watched else None
        received = self.receive(limit)
        if received is None:
            self.kill()
            self.bury()
            raise WorkerDiedError(
                f"it made no progress for {limit:.0f} s and was stopped as hung; executor.patience_seconds sets how "
                "long to wait"
            )
        if watched:
            self._longest_gap = max(self._longest_gap, time.monotonic() - began)
        return received


AnyWorker = TypeVar("AnyWorker", bound=Worker)


class Slot(Generic[AnyWorker]):
    """A worker that comes again. All but `close` runs in the slot's own thread."""

    def __init__(self, start: Callable[[], AnyWorker]) -> None:
        self.thread = ThreadPoolExecutor(1, "slot")
        self.worker: AnyWorker | None = None
        self.closed = threading.Event()
        self._start = start
        self._work: Callable[[], Any] | None = None

    def prepare(self, work: Callable[[], T]) -> T:
        """Run `work` in the slot's process, now and in each process that follows it."""
        self._work = work
        try:
            prepared: T = self.living_worker(prepare=False).call(work)
        except MachineLostError as error:
            raise ClusterError(f"A machine was lost before the study began: {error}.") from error
        except WorkerDiedError as error:
            raise WorkloadError(f"The model or the data cannot be used: {error}") from error
        return prepared

    def run(self, run_trials: RunTrials, specs: Sequence[TrialSpec], channel: Channel) -> Sequence[TrialResult]:
        return self.living_worker(prepare=True).run(run_trials, specs, channel)

    def living_worker(self, *, prepare: bool) -> AnyWorker:
        """Return the slot's worker, or a new one, which has done the slot's `work` if it is to `prepare`."""
        if self.worker is not None and self.worker.is_alive():
            return self.worker
        if self.closed.is_set():
            raise WorkerDiedError("the study stops")
        if self.worker is not None:
            self.worker.kill()
            self.worker.bury()
        self.worker = self._start()
        if self.closed.is_set():  # meanwhile
            self.worker.kill()
        if prepare and self._work is not None:
            self.worker.call(self._work)
        return self.worker

    def close(self) -> None:
        self.closed.set()
        if self.worker is not None:
            self.worker.kill()


AnySlot = TypeVar("AnySlot", bound=Slot[Any])


class SlotsExecutor(Generic[AnySlot]):
    """One thread per slot talks to the slot's worker, and starts another one when that has died."""

    def __init__(self, slots: Sequence[AnySlot]) -> None:
        self.slot_count = len(slots)
        self._slots = slots
        for slot in slots:  # so that they import while we do
            slot.thread.submit(slot.living_worker, prepare=False)

    def prepare(self, work: Callable[[], T]) -> list[T]:
        """Run `work` in every slot at the same time and return what each gave."""
        futures = [slot.thread.submit(slot.prepare, work) for slot in self._slots]
        return [future.result() for future in futures]

    def submit(
        self, run_trials: RunTrials, specs: Sequence[TrialSpec], channel: Channel, slot: int = 0
    ) -> Future[Sequence[TrialResult]]:
        """Run the trials in that slot's process. The future may hold a WorkerDiedError."""
        return self._slots[slot].thread.submit(self._slots[slot].run, run_trials, specs, channel)

    def close(self) -> None:
        """End all processes at once, whatever they do."""
        for slot in self._slots:
            slot.close()
        for slot in self._slots:
            slot.thread.shutdown(cancel_futures=True)
            if slot.worker is not None:
                slot.worker.bury()


def _nobody(uuid: str, text: str) -> None:
    pass


def _no_point(uuid: str, point: object) -> bool:
    return True


def _told(name: str, text: str) -> LrsearchError:
    """Return the error of ours that the worker met, as far as its name tells."""
    found = getattr(errors, name, LrsearchError)
    error: LrsearchError = found.__new__(found)
    Exception.__init__(error, text)
    return error
