"""Trials in persistent processes of this machine, one per slot: what dies there takes one attempt with it.

A slot is a CUDA device of its own, or a share of the processor's threads. Both are set in the environment of the
process before it starts; it imports torch and takes its throw-away steps before the clock starts, and dies with its
parent. It never sees the database: curve points and results come back over a socket, and with each point goes the
answer whether to go on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from lrsearch import errors
from lrsearch.errors import LrsearchError, UsageError, WorkerDiedError, WorkloadError
from lrsearch.interfaces import Channel, RunTrials, Settings
from lrsearch.trial import TrialResult, TrialSpec

T = TypeVar("T")

GAPS_TO_GIVE_UP = 20.0
"""A trial that shows no progress for so many times the longest pause that its worker ever made has hung."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Process(Settings):
    """Trials run in `slots` processes beside the orchestrator, each on a device or a share of the threads of its own.

    Searches run side by side; inside a search a trial begins when those are known that its proposal depends on, so
    that the study equals one that ran on one slot. With `asynchronous` a search proposes whenever a slot is free.
    """

    name: Literal["process"] = "process"
    slots: Annotated[int, Field(ge=1, le=256)] = 2
    threads_per_slot: Annotated[int, Field(ge=1)] | None = None
    """Of torch, for one operation; by default the processor's threads divided by the slots."""
    asynchronous: bool = False
    patience_seconds: Annotated[float, Field(gt=0)] = 300.0
    """A trial without any progress for so long, and for 20 times its worker's longest pause, is given up as hung."""

    def start(self, device: str) -> ProcessExecutor:
        """Return the executor. Raises UsageError when there are fewer CUDA devices than slots."""
        return ProcessExecutor(self.environments(device, os.environ), self.patience_seconds)

    def environments(self, device: str, base: Mapping[str, str]) -> list[dict[str, str]]:
        """Return each slot's environment: `base` with one CUDA device and its number of threads."""
        threads = str(self.threads_per_slot or max(1, (os.cpu_count() or 1) // self.slots))
        shares = dict.fromkeys(THREAD_VARIABLES, threads)
        devices = [] if device in ("cpu", "mps") else _cuda_devices(base)
        if device.startswith("cuda:"):
            raise UsageError(
                f"training.device {device!r} names one device, but the executor 'process' gives each slot its own: "
                "say cuda, and choose with CUDA_VISIBLE_DEVICES."
            )
        if not devices:
            return [{**base, **shares} for _ in range(self.slots)]
        if self.slots > len(devices):
            raise UsageError(
                f"executor.slots is {self.slots}, but only {len(devices)} CUDA devices are visible: a device that two "
                "slots share would be charged twice. Lower executor.slots."
            )
        return [{**base, **shares, "CUDA_VISIBLE_DEVICES": one} for one in devices[: self.slots]]


def _cuda_devices(environment: Mapping[str, str]) -> list[str]:
    """Return the CUDA devices that may be used, by the names that CUDA_VISIBLE_DEVICES knows them by."""
    import torch

    count = torch.cuda.device_count()  # asks the driver's library; no context is made here
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (visible or [str(index) for index in range(count)])[:count]


class ProcessExecutor:
    """One thread per slot talks to the slot's process, and starts another one when that has died."""

    def __init__(self, environments: Sequence[Mapping[str, str]], patience_seconds: float) -> None:
        self.slot_count = len(environments)
        self._slots = [_Slot(environment, patience_seconds) for environment in environments]
        for slot in self._slots:  # so that they import while we do
            slot.thread.submit(slot.living_worker, prepare=False)

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [slot.worker.pid for slot in self._slots if slot.worker is not None]

    def prepare(self, work: Callable[[], T]) -> T:
        """Run `work` in every slot at the same time and return what the first slot's gave."""
        first, *others = [slot.thread.submit(slot.prepare, work) for slot in self._slots]
        for future in others:
            future.result()
        return first.result()

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


class _Slot:
    """A process that comes again. All but `close` runs in the slot's own thread, with whose life the process's ends."""

    def __init__(self, environment: Mapping[str, str], patience_seconds: float) -> None:
        self.thread = ThreadPoolExecutor(1, "slot")
        self.worker: _Worker | None = None
        self._environment = environment
        self._patience_seconds = patience_seconds
        self._work: Callable[[], Any] | None = None
        self._closed = threading.Event()

    def prepare(self, work: Callable[[], T]) -> T:
        """Run `work` in the slot's process, now and in each process that follows it."""
        self._work = work
        try:
            prepared: T = self.living_worker(prepare=False).call(work)
        except WorkerDiedError as error:
            raise WorkloadError(f"The model or the data cannot be used: {error}") from error
        return prepared

    def run(self, run_trials: RunTrials, specs: Sequence[TrialSpec], channel: Channel) -> Sequence[TrialResult]:
        return self.living_worker(prepare=True).run(run_trials, specs, channel)

    def living_worker(self, *, prepare: bool) -> _Worker:
        """Return the slot's process, or a new one, which has done the slot's `work` if it is to `prepare`."""
        if self.worker is not None and self.worker.is_alive():
            return self.worker
        if self._closed.is_set():
            raise WorkerDiedError("the study stops")
        if self.worker is not None:
            self.worker.kill()
            self.worker.bury()
        self.worker = _Worker(self._environment, self._patience_seconds)
        if self._closed.is_set():  # meanwhile
            self.worker.kill()
        if prepare and self._work is not None:
            self.worker.call(self._work)
        return self.worker

    def close(self) -> None:
        self._closed.set()
        if self.worker is not None:
            self.worker.kill()


class _Worker:
    """The other end of `executors/worker.py`."""

    def __init__(self, environment: Mapping[str, str], patience_seconds: float) -> None:
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-m", "lrsearch.executors.worker", str(theirs.fileno()), str(os.getpid())],
            env={**environment, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what the user's code prints is no part of our own output
            start_new_session=True,  # Ctrl-C is for us alone; and its own children can be ended with it
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._patience_seconds = patience_seconds
        self._longest_gap = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process and its children."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def bury(self) -> int:
        """Wait for the end of the killed process, give everything back and return its exit code."""
        code = self._process.wait()
        self._connection.close()
        return code

    def call(self, work: Callable[[], T]) -> T:
        """Return what `work()` gives there. Raises WorkerDiedError."""
        return self._converse(("call", work), _no_point, watched=False)  # type: ignore[no-any-return]  # comes by wire

    def run(self, run_trials: RunTrials, specs: Sequence[TrialSpec], channel: Channel) -> Sequence[TrialResult]:
        """Return what `run_trials` gives there. Raises WorkerDiedError, StorageError."""
        return self._converse(("run", run_trials, specs), channel.report, watched=True)  # type: ignore[no-any-return]  # comes by wire

    def _converse(self, order: tuple[Any, ...], report: Callable[..., bool], *, watched: bool) -> Any:
        try:
            self._connection.send(order)
            while True:
                kind, *content = self._receive(watched=watched)
                if kind == "point":
                    self._connection.send(report(*content))
                elif kind == "done":
                    return content[0]
                elif kind == "error":
                    raise _told(*content)
        except (EOFError, ConnectionError) as error:
            died = WorkerDiedError(f"its process {self._ending()}")
            died.from_outside = self._process.returncode == -signal.SIGKILL
            raise died from error

    def _receive(self, *, watched: bool) -> tuple[Any, ...]:
        began = time.monotonic()
        limit = max(self._patience_seconds, GAPS_TO_GIVE_UP * self._longest_gap) if watched else None
        if not self._connection.poll(limit):
            self.kill()
            self.bury()
            raise WorkerDiedError(
                f"it made no progress for {limit:.0f} s and was stopped as hung; executor.patience_seconds sets how "
                "long to wait"
            )
        if watched:
            self._longest_gap = max(self._longest_gap, time.monotonic() - began)
        received: tuple[Any, ...] = self._connection.recv()
        return received

    def _ending(self) -> str:
        """Say how the process, whose connection is closed, has ended."""
        self.kill()
        code = self.bury()
        if code >= 0:
            return f"ended by itself with exit code {code}"
        name = signal.Signals(-code).name
        hints = {
            signal.SIGKILL: "; where memory is short, that is how the system ends the largest process",
            signal.SIGSEGV: ": a fault in compiled code",
        }
        return f"was ended by {name}{hints.get(signal.Signals(-code), '')}"


def _no_point(uuid: str, point: object) -> bool:
    return True


def _told(name: str, text: str) -> LrsearchError:
    """Return the error of ours that the worker met, as far as its name tells."""
    found = getattr(errors, name, LrsearchError)
    error: LrsearchError = found.__new__(found)
    Exception.__init__(error, text)
    return error
