"""The process of one slot: takes orders over a socket until that closes. `python -m lrsearch.worker FD PPID`.

Orders are ("call", function) and ("run", run_trials, specs); answers ("point", uuid, point), to which a bool comes
back, ("message", uuid, text), ("progress",), ("done", result) and ("error", class, text). Both ends are our own
processes and trust each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from lrsearch.errors import LrsearchError
from lrsearch.timing import import_at_rest
from lrsearch.trial import CurvePoint

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
PROGRESS_SECONDS = 0.5


class WireChannel:
    """Sends curve points and waits for the answer; tells twice a second whether anything has moved."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._signs = 0

    def report(self, uuid: str, point: CurvePoint) -> bool:
        self.send("point", uuid, point)
        return bool(self._connection.recv())

    def progressed(self) -> None:
        self._signs += 1

    def message(self, uuid: str, text: str) -> None:
        self.send("message", uuid, text)

    def send(self, *message: Any) -> None:
        with self._lock:
            self._connection.send(message)

    def tell_progress(self, stop: threading.Event) -> None:
        """Tell until `stop`, but only when there is something to tell."""
        told = self._signs
        with contextlib.suppress(OSError):  # the other end has died, and this one will in a moment
            while not stop.wait(PROGRESS_SECONDS):
                if self._signs != told:
                    told = self._signs
                    self.send("progress")


def main() -> None:
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    import_at_rest("lrsearch.gang_choice")  # what the first order will need, while the parent is still busy
    connection = Connection(descriptor)  # which must not close before the exit code is certain
    serve(connection)


def serve(connection: Connection) -> None:
    """Take orders until the other end closes."""
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            kind, *content = connection.recv()
            _obey(connection, kind, content)


def die_with(parent: int) -> None:
    """Have the kernel end this process with the parent's thread that started it; elsewhere the socket closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has died before that was asked for
            os._exit(1)


def _obey(connection: Connection, kind: str, content: list[Any]) -> None:
    channel = WireChannel(connection)
    stop = threading.Event()
    teller = threading.Thread(target=channel.tell_progress, args=(stop,), daemon=True)
    try:
        if kind == "run":
            run_trials, specs = content
            teller.start()
            answer: tuple[Any, ...] = ("done", run_trials(specs, channel))
        else:
            answer = ("done", content[0]())
    except LrsearchError as error:
        answer = ("error", type(error).__name__, str(error))
    except Exception as error:
        answer = ("error", "LrsearchError", f"{type(error).__name__}: {' '.join(str(error).split())}")
    finally:
        stop.set()
        if teller.is_alive():
            teller.join()
    channel.send(*answer)


if __name__ == "__main__":
    main()
