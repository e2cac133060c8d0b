"""The process from which the workers of this machine are forked. `python -m lrsearch.forker FD`.

Over that socket come requests, each the JSON of the variables to set and two descriptors: the worker's connection and a
pipe. The worker writes its process id into the pipe; when it has ended, the forker writes how. When the socket closes,
all end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import NoReturn

from lrsearch import worker
from lrsearch.forked import ENDED, NEWS, PID, READY
from lrsearch.timing import import_at_rest

LONGEST_REQUEST = 65_536


def main() -> NoReturn:
    requests = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    # What is there from now on is shared with the workers, as long as nobody writes to it.
    import_at_rest("lrsearch.gang_choice")
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with contextlib.suppress(OSError):  # the parent has died: see below
        requests.send(READY)
    told: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([requests.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _tell_the_ends(told)
        if requests.fileno() in ready:
            request, descriptors = _receive(requests)
            if not request:
                for pid in told:
                    _kill_group(pid)
                    os.kill(pid, signal.SIGKILL)  # which may have no group of its own yet
                    os.waitpid(pid, 0)
                os._exit(0)
            connection, status = descriptors
            forker, pid = os.getpid(), _fork()
            if pid == 0:
                for descriptor in (requests.fileno(), woken, wake, *told.values()):
                    os.close(descriptor)
                _be_a_worker(json.loads(request), connection, status, forker)
            os.close(connection)
            told[pid] = status


def _receive(requests: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next request; an empty one when the parent has closed its end, or has died."""
    try:
        request, descriptors, *_ = socket.recv_fds(requests, LONGEST_REQUEST, 2)
    except ConnectionError:
        return b"", []
    return request, descriptors


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: numpy's libraries mend theirs after a fork
        return os.fork()


def _tell_the_ends(told: dict[int, int]) -> None:
    """Reap all children that have ended, with what they have left running, and tell their exit codes."""
    while told:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return
        _kill_group(ended.si_pid)
        pipe = told.pop(ended.si_pid)
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        with contextlib.suppress(BrokenPipeError):
            os.write(pipe, NEWS.pack(ENDED, code))  # before its number is free for another process
        os.close(pipe)
        os.waitpid(ended.si_pid, 0)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _be_a_worker(variables: Mapping[str, str], connection: int, status: int, forker: int) -> NoReturn:
    code = 1
    try:
        os.setsid()  # its own children can be ended with it
        worker.die_with(forker)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.update(variables)
        os.write(status, NEWS.pack(PID, os.getpid()))
        os.close(status)
        orders = Connection(connection)  # which must not close before the exit code is certain
        worker.serve(orders)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if error.code is not None and not isinstance(error.code, int):
            sys.stderr.write(f"{error.code}\n")
    except BrokenPipeError:  # whoever has asked for this process has died before it began
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
