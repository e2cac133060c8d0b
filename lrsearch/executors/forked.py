"""Workers that are forked from a process which has imported torch (`executors/forker.py`): each begins at once."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection

IS_SAFE = sys.platform == "linux"
"""Elsewhere a process that has loaded system libraries may not be forked, or not end with its parent."""
READY = b"r"
"""What the forker says when it has imported all and listens."""
NUMBER = struct.Struct("i")


class Forker:
    """The other end: starts the process, and starts it again when it has died."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._has_imported = False
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-m", "lrsearch.executors.forker", str(theirs.fileno())],
            env=self._environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what the user's code prints is no part of our own output
            start_new_session=True,  # Ctrl-C is for us alone
        )
        theirs.close()

    def fork(self, environment: Mapping[str, str]) -> ForkedProcess:
        """Return a new worker with that environment. It is there only when its `pid` is."""
        variables = {name: value for name, value in environment.items() if self._environment.get(name) != value}
        ours, theirs = socket.socketpair()
        status, told = os.pipe()
        try:
            self._ask(json.dumps(variables).encode(), [theirs.fileno(), told])
        finally:
            theirs.close()
            os.close(told)
        return ForkedProcess(Connection(ours.detach()), status)

    def _ask(self, request: bytes, descriptors: list[int]) -> None:
        with self._lock:
            if self.process.poll() is None:
                with contextlib.suppress(OSError):  # it has just died
                    socket.send_fds(self._socket, [request], descriptors)
                    return
            self._end()
            self._start()
            socket.send_fds(self._socket, [request], descriptors)

    def close(self) -> None:
        """End the process and all workers that it has forked."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._has_imported = self._socket.recv(1, socket.MSG_DONTWAIT) == READY
        self._socket.close()
        if not self._has_imported:
            self.process.kill()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it was stopped, or waits for a disk
            self.process.kill()
            self.process.wait()


class ForkedProcess:
    """A worker that a Forker's process has forked, with the methods of `process.WorkerProcess`."""

    def __init__(self, connection: Connection, status: int) -> None:
        self.connection = connection
        self._status = status
        self._pid: int | None = None
        self._code: int | None = None
        self._ended = False
        self._lock = threading.RLock()
        """Two threads that read from the pipe would take each other's number."""

    @property
    def pid(self) -> int:
        """Its process id, once it runs; 0 when it never came to that."""
        with self._lock:
            if self._pid is None:
                self._pid = self._read() or 0
                self._ended = self._pid == 0
            return self._pid

    def is_alive(self) -> bool:
        with self._lock:
            if self.pid and not self._ended and select.select([self._status], [], [], 0)[0]:
                self._take_code()
            return not self._ended

    def kill(self) -> None:
        """End the process and its children."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def bury(self) -> int:
        """Wait for the end of the killed process, give everything back and return its exit code."""
        with self._lock:
            if self.pid and not self._ended:
                self._take_code()
            self.connection.close()
            if self._status >= 0:
                os.close(self._status)
                self._status = -1
            return -signal.SIGKILL if self._code is None else self._code  # without a word: all of them were killed

    def end(self) -> int:
        """Return the exit code of a process whose connection has closed; what is left of it and its children ends."""
        self.kill()
        return self.bury()

    def _take_code(self) -> None:
        self._code, self._ended = self._read(), True

    def _read(self) -> int | None:
        """Return the next number from the pipe; None when whoever could have written it is dead."""
        read = os.read(self._status, NUMBER.size)
        return int(NUMBER.unpack(read)[0]) if read else None
