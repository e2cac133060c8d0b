"""Workers that are forked from a process which has imported torch (`forker.py`): each begins at once."""

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

from lrsearch.errors import WorkerDiedError

IS_SAFE = sys.platform == "linux"
"""Elsewhere a process that has loaded system libraries may not be forked, or not end with its parent."""
READY = b"r"
"""What the forker says when it has imported all and listens."""
NEWS = struct.Struct("=ci")
"""What comes through a worker's pipe: PID and its process id, then ENDED and its exit code, below 0 by a signal."""
PID, ENDED = b"p", b"e"


class Forker:
    """The other end: starts the process, and starts it again when it has died."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._lock = threading.Lock()
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._has_imported = False
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-m", "lrsearch.forker", str(theirs.fileno())],
            env=self.environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what the user's code prints is no part of our own output
            start_new_session=True,  # Ctrl-C is for us alone
        )
        theirs.close()

    def fork(self, environment: Mapping[str, str]) -> ForkedProcess:
        """Return a new worker with that environment. It is there only when its `pid` is.

        Raises WorkerDiedError after `close`.
        """
        variables = {name: value for name, value in environment.items() if self.environment.get(name) != value}
        ours, theirs = socket.socketpair()
        status, told = os.pipe()
        try:
            forker = self._ask(json.dumps(variables).encode(), [theirs.fileno(), told])
        except BaseException:
            ours.close()
            os.close(status)
            raise
        finally:
            theirs.close()
            os.close(told)
        return ForkedProcess(Connection(ours.detach()), status, forker)

    def _ask(self, request: bytes, descriptors: list[int]) -> subprocess.Popen[bytes]:
        """Send the request and return the process that has it."""
        with self._lock:
            if self._closed:
                raise WorkerDiedError("the study stops")
            if self.process.poll() is None:
                with contextlib.suppress(OSError):  # it has just died
                    socket.send_fds(self._socket, [request], descriptors)
                    return self.process
            self._end()
            self._start()
            socket.send_fds(self._socket, [request], descriptors)
            return self.process

    def close(self) -> None:
        """End the process and all workers that it has forked."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._end()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._has_imported = self._socket.recv(1, socket.MSG_DONTWAIT) == READY
        if not self._has_imported:
            self.process.kill()
        with contextlib.suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_WR)  # which it takes for its end
        if not select.select([self._socket], [], [], 5)[0]:  # it was stopped, or waits for a disk
            self.process.kill()
        self._socket.close()
        self.process.wait()


class ForkedProcess:
    """A worker that a Forker's process has forked, with the methods of `process.WorkerProcess`."""

    def __init__(self, connection: Connection, status: int, forker: subprocess.Popen[bytes]) -> None:
        self.connection = connection
        self._forker = forker
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
                self._take_news()
            return self._pid or 0

    def is_alive(self) -> bool:
        with self._lock:
            if self.pid and not self._ended and select.select([self._status], [], [], 0)[0]:
                self._take_news()
            return not self._ended

    def kill(self) -> None:
        """End the process and its children."""
        outlived = self._status >= 0 and self._code is None and self.pid  # by its children, when its forker died
        if self.is_alive() or outlived:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def bury(self) -> int:
        """Wait for the end of the killed process, give everything back and return its exit code."""
        with self._lock:
            if self.pid and not self._ended:
                self._take_news()
            self.connection.close()
            if self._status >= 0:
                os.close(self._status)
                self._status = -1
            if self._code is not None:
                return self._code
            # Without a word: it died with its forker, or never began because that could not.
            return -signal.SIGKILL if self.pid else self._forker.wait(timeout=5)

    def end(self) -> int:
        """Return the exit code of a process whose connection has closed; what is left of it and its children ends."""
        self.kill()
        return self.bury()

    def _take_news(self) -> None:
        """Take the next news from the pipe; when whoever could have written some is dead, that is the end."""
        news = os.read(self._status, NEWS.size)
        kind, number = NEWS.unpack(news) if news else (ENDED, None)
        if kind == PID:
            self._pid = number
        else:
            self._pid, self._code, self._ended = self._pid or 0, number, True
