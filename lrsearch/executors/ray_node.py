"""What stands on a node of a Ray cluster for one slot: it keeps the slot's process and passes on what is said.

The user's code runs in that process, not in Ray's own: a fault there ends no Ray worker, and is told as precisely as
on one machine. Checkpoints are kept in a folder of the node and go to the orchestrator piece by piece. Nothing here
imports torch or the user's code.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from lrsearch.environment import SECRETS
from lrsearch.executors.process import WorkerProcess
from lrsearch.interfaces import CODE_COPY_VARIABLE

PACKAGES = ("lrsearch", "torch", "torchvision", "numpy", "ray")
PREFIX = "lrsearch-node-"
PIECE_BYTES = 4_000_000
"""Of a checkpoint, in one message: small enough to pass well within the time that a node may be silent."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of what results depend on, here."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def remove_left_folders() -> None:
    """Remove what was left here by those whose process was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        try:
            os.kill(int(folder.name.removeprefix(PREFIX).partition("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (PermissionError, ValueError):  # another user's, or none of ours
            continue


class Host:
    """An actor of two threads: `exchange` may wait in one while `stop` comes in by the other."""

    def __init__(self) -> None:
        self._line: _Line | None = None
        self._lock = threading.Lock()

    def describe(self) -> tuple[str, dict[str, str]]:
        """Return the node's name and address, and its versions."""
        import ray

        return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})", versions()

    def start(self, variables: Mapping[str, str], code: Mapping[str, bytes], fence_seconds: float) -> str:
        """Start the slot's process, in place of one that runs; return its folder, by which it is known."""
        import ray

        remove_left_folders()
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in SECRETS and not name.startswith("RAY_AUTH_")
        }
        devices = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        environment |= {**variables, "CUDA_VISIBLE_DEVICES": ",".join(devices)}
        if code:
            copy = folder / "code"
            _write(copy, code)
            environment[CODE_COPY_VARIABLE] = str(copy)
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(copy), environment.get("PYTHONPATH"))))
        with self._lock:
            if self._line is not None:
                self._line.stop()
            self._line = _Line(environment, folder, fence_seconds)
        return str(folder)

    def exchange(
        self,
        folder: str,
        first: int,
        orders: Sequence[tuple[Any, ...]],
        taken: int,
        wait_seconds: float,
        *,
        busy: bool,
    ) -> list[tuple[Any, ...]]:
        """Take orders, the first of which has this number, and return what there is to tell from number `taken` on.

        What has been taken or returned before may come again: nothing is done or counted twice.
        """
        line = self._line
        if line is None or str(line.folder) != folder:
            return [("ended", -signal.SIGKILL)]
        return line.exchange(first, orders, taken, wait_seconds, busy=busy)

    def stop(self, folder: str) -> None:
        """End the slot's process, if it is the one of that folder, and remove what it leaves."""
        with self._lock:
            if self._line is not None and str(self._line.folder) == folder:
                self._line.stop()
                self._line = None


def _write(folder: Path, code: Mapping[str, bytes]) -> None:
    for name, content in code.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _trial_of(name: str) -> str:
    """Return the UUID of the trial whose checkpoint has this name."""
    return name.partition(".")[0]


class _Line:
    """One process and what it has said: numbered, and kept until the other end says that it has it."""

    def __init__(self, environment: Mapping[str, str], folder: Path, fence_seconds: float) -> None:
        self.folder = folder
        self._fence_seconds = fence_seconds
        self._news = threading.Condition()
        self._messages: deque[tuple[Any, ...]] = deque()
        self._first = 0
        self._obeyed = 0
        self._busy = False
        self._asked = time.monotonic()
        self._code: int | None = None
        self._told_end = False
        self._shipped: dict[str, str] = {}
        """Of each trial the last checkpoint that went out or came in; the trial whose turn was last stands last."""
        self._shipping: tuple[str, IO[bytes]] | None = None
        self._environment = environment
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._begun.wait()

    def _listen(self) -> None:
        """Run the process, which the kernel ends with this thread; end it too when nobody asks for it any more."""
        try:
            self._process = process = WorkerProcess(self._environment)
        finally:
            self._begun.set()
        try:
            while True:
                if process.connection.poll(0.5):
                    self._tell(("wire", process.connection.recv_bytes()))
                if self._busy and time.monotonic() - self._asked > self._fence_seconds:
                    process.kill()
        except (EOFError, OSError):
            code = process.end()
        with self._news:
            self._code = code
            self._news.notify_all()

    def _tell(self, message: tuple[Any, ...]) -> None:
        with self._news:
            self._messages.append(message)
            self._news.notify_all()

    def exchange(
        self, first: int, orders: Sequence[tuple[Any, ...]], taken: int, wait_seconds: float, *, busy: bool
    ) -> list[tuple[Any, ...]]:
        with self._news:
            self._asked = time.monotonic()
            self._busy = busy
            for number, order in enumerate(orders, first):
                if number == self._obeyed:
                    self._obeyed += 1
                    self._obey(*order)
            while self._messages and self._first < taken:
                self._messages.popleft()
                self._first += 1
            self._offer()
            self._news.wait_for(lambda: self._messages or self._code is not None, wait_seconds)
            self._offer()
            self._asked = time.monotonic()
            return list(self._messages)

    def _obey(self, kind: str, *content: Any) -> None:
        if kind == "wire":
            try:
                self._process.connection.send_bytes(content[0])
            except OSError:  # it has died, which `_listen` tells
                return
        elif kind == "forget":
            self._shipping = None
            self._shipped.clear()
            for path in self.folder.glob("*.ckpt"):
                path.unlink(missing_ok=True)
        elif kind == "keep":
            name, piece = content
            self._shipped[_trial_of(name)] = name
            with (self.folder / name).open("ab") as file:
                file.write(piece)

    def _offer(self) -> None:
        """Put the next piece of a new checkpoint, and at last how the process ended, among what is to be told."""
        if any(kind == "checkpoint" for kind, *_ in self._messages):
            return
        if self._shipping is None:
            self._shipping = self._next_checkpoint()
        if self._shipping is not None:
            name, file = self._shipping
            piece = file.read(PIECE_BYTES)
            last = len(piece) < PIECE_BYTES
            if last:
                file.close()
                self._shipping = None
            self._messages.append(("checkpoint", name, piece, last))
        elif self._code is not None and not self._told_end:
            self._told_end = True
            self._messages.append(("ended", self._code))

    def _next_checkpoint(self) -> tuple[str, IO[bytes]] | None:
        """Return name and content of a trial's newest checkpoint, if it is new; older ones are passed over.

        Of several trials, which train together, the one is taken that has waited longest.
        """
        newest = {_trial_of(path.name): path for path in sorted(self.folder.glob("*.ckpt"))}
        waiting = [trial for trial, path in newest.items() if self._shipped.get(trial) != path.name]
        if not waiting:
            return None
        served = list(self._shipped)
        trial = min(waiting, key=lambda one: served.index(one) if one in served else -1)
        try:
            file = newest[trial].open("rb")
        except FileNotFoundError:  # there is a newer one by now
            return None
        self._shipped.pop(trial, None)
        self._shipped[trial] = newest[trial].name
        return newest[trial].name, file

    def stop(self) -> None:
        self._process.kill()
        self._thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)
