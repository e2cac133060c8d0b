"""Trials in persistent processes of this machine, one per slot: what dies there takes one attempt with it.

A slot is a CUDA device of its own, or a share of the processor's threads. Both are set in the environment of the
process before it starts; it has imported torch, is forked where that can be, takes its throw-away steps before the
clock starts, and dies with its parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lrsearch import ahead
from lrsearch.environment import has_no_driver, importing_alike, of_slot, processors
from lrsearch.errors import UsageError, WorkerDiedError
from lrsearch.executors.slots import Slot, SlotsExecutor, Worker
from lrsearch.forked import IS_SAFE, ForkedProcess
from lrsearch.interfaces import Settings


class Process(Settings):
    """Trials run in `slots` processes beside the orchestrator, each on a device or a share of the threads of its own.

    Searches run side by side; inside a search a trial begins when those are known that its proposal depends on, so
    that the study equals one that ran on one slot. With `asynchronous` a search proposes whenever a slot is free.
    """

    name: Literal["process"] = "process"
    slots: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = ahead.DEFAULT_SLOTS
    """`auto`: a slot for each CUDA device; on the processor what timing finds fastest when the study begins."""
    threads_per_slot: Annotated[int, Field(ge=1)] | None = None
    """Of torch, for one operation; by default the processor's threads divided by the slots."""
    asynchronous: bool = False
    patience_seconds: Annotated[float, Field(gt=0)] = 300.0
    """A trial without any progress for so long, and for 20 times its worker's longest pause, is given up as hung."""

    def layouts(self, device: str, most: int) -> list[Process]:
        """Return what `auto` may come to where at most so many trials run at once, with numbers, many slots first."""
        if self.slots != "auto":
            return [self]
        if device == "mps" or (device == "auto" and sys.platform == "darwin"):
            return [self.model_copy(update={"slots": 1})]
        if device != "cpu" and (count := len(_cuda_devices(os.environ))):
            return [self.model_copy(update={"slots": min(count, most)})]
        cores = processors()
        if self.threads_per_slot is not None:
            return [self.model_copy(update={"slots": max(1, min(cores // self.threads_per_slot, most))})]
        counts = {max(1, min(most, cores >> halvings)) for halvings in range(cores.bit_length())}
        return [
            self.model_copy(update={"slots": count, "threads_per_slot": cores // count})
            for count in sorted(counts, reverse=True)
        ]

    def start(self, device: str, code: Path | None = None) -> ProcessExecutor:
        """Return the executor. Raises UsageError when there are fewer CUDA devices than slots."""
        return ProcessExecutor(self.environments(device, os.environ), self.patience_seconds)

    def environments(self, device: str, base: Mapping[str, str]) -> list[dict[str, str]]:
        """Return each slot's environment: `base` with one CUDA device and its number of threads, without secrets."""
        if self.slots == "auto":
            raise UsageError("executor.slots is auto, and nothing has put a number in its place: see `layouts`.")
        shared = of_slot(base, self.slots, self.threads_per_slot)
        refuse_one_device(device)
        devices = [] if device in ("cpu", "mps") else _cuda_devices(base)
        if not devices:
            return [dict(shared) for _ in range(self.slots)]
        if self.slots > len(devices):
            raise UsageError(
                f"executor.slots is {self.slots}, but only {len(devices)} CUDA devices are visible: a device that two "
                "slots share would be charged twice. Lower executor.slots."
            )
        return [{**shared, "CUDA_VISIBLE_DEVICES": one} for one in devices[: self.slots]]


def refuse_one_device(device: str) -> None:
    """Raise UsageError when `device` (training.device) names one of several CUDA devices."""
    if device.startswith("cuda:"):
        raise UsageError(
            f"training.device {device!r} names one device, but this executor gives each slot its own: say cuda, and "
            "choose with CUDA_VISIBLE_DEVICES."
        )


def _cuda_devices(environment: Mapping[str, str]) -> list[str]:
    """Return the CUDA devices that may be used, by the names that CUDA_VISIBLE_DEVICES knows them by."""
    if has_no_driver():
        return []  # and torch need not be imported to find that out
    import torch

    count = torch.cuda.device_count()  # asks the driver's library; no context is made here
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (visible or [str(index) for index in range(count)])[:count]


class ProcessExecutor(SlotsExecutor[Slot["ProcessWorker"]]):
    """Runs trials in processes of this machine, which die with this one."""

    def __init__(self, environments: Sequence[Mapping[str, str]], patience_seconds: float) -> None:
        complete = [importing_alike(one) for one in environments]
        self._forker = ahead.taken(complete[0]) if IS_SAFE else None
        new_process = self._forker.fork if self._forker else WorkerProcess
        super().__init__([Slot(partial(ProcessWorker, new_process, one, patience_seconds)) for one in complete])

    def close(self) -> None:
        """End all processes at once, whatever they do."""
        for slot in self._slots:
            slot.closed.set()
        if self._forker is not None:
            self._forker.close()
        super().close()

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [slot.worker.process.pid for slot in self._slots if slot.worker is not None]


class ProcessWorker(Worker):
    """A process of this machine, at the other end of a socket."""

    def __init__(
        self,
        new_process: Callable[[Mapping[str, str]], WorkerProcess | ForkedProcess],
        environment: Mapping[str, str],
        patience_seconds: float,
    ) -> None:
        super().__init__(patience_seconds)
        self.process = new_process(environment)

    def is_alive(self) -> bool:
        return self.process.is_alive()

    def send(self, message: Any) -> None:
        try:
            self.process.connection.send(message)
        except OSError as error:
            raise death_of(self.process.end()) from error

    def receive(self, timeout: float | None) -> tuple[Any, ...] | None:
        try:
            if not self.process.connection.poll(timeout):
                return None
            received: tuple[Any, ...] = self.process.connection.recv()
        except (EOFError, OSError) as error:  # OSError: also for the end of a message that was half sent
            raise death_of(self.process.end()) from error
        return received

    def kill(self) -> None:
        self.process.kill()

    def bury(self) -> None:
        self.process.bury()


class WorkerProcess:
    """A process that runs `worker.py`, and dies with the thread that made it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-m", "lrsearch.worker", str(theirs.fileno()), str(os.getpid())],
            env=dict(environment),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what the user's code prints is no part of our own output
            start_new_session=True,  # Ctrl-C is for us alone; and its own children can be ended with it
        )
        theirs.close()
        self.connection = Connection(ours.detach())

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
        self.connection.close()
        return code

    def end(self) -> int:
        """Return the exit code of a process whose connection has closed; what is left of it and its children ends."""
        self.kill()
        return self.bury()


def death_of(code: int) -> WorkerDiedError:
    """Return what to say of a process that ended with that exit code, below 0 by a signal."""
    if code >= 0:
        return WorkerDiedError(f"its process ended by itself with exit code {code}")
    name = signal.Signals(-code).name
    hints = {
        signal.SIGKILL: "; where memory is short, that is how the system ends the largest process",
        signal.SIGSEGV: ": a fault in compiled code",
    }
    died = WorkerDiedError(f"its process was ended by {name}{hints.get(signal.Signals(-code), '')}")
    died.from_outside = code == -signal.SIGKILL
    return died
