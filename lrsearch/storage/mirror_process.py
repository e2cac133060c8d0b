"""The dashboard's view, written by a process of its own: no training waits for Optuna, nor pays for it.

`python -m lrsearch.storage.mirror_process PPID` reads pickled orders from its input, the database's URL and then what
`OptunaMirror.publish` takes, and answers each with the processor seconds that it has used by then, and None or what
went wrong. Both ends are our own.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lrsearch.environment import importing_alike
from lrsearch.errors import LrsearchError, StorageError
from lrsearch.trial import CurvePoint, StudyRecord, TrialRecord
from lrsearch.worker import die_with

MOST_WAITING = 512
"""When so many trials wait for the process, which gets one at a time, whoever has more waits too."""
CLOSING_SECONDS = 10.0
"""How long `close` lets the process write; what is missing then is written when the study goes on."""
PATIENCE_SECONDS = 2.0
"""After so long `finish` says that it waits."""
DEATHS_TO_FAIL = 3
NICENESS = 10
"""Of the process: training with a thread on each processor would wait for the thread that it stops. Not more, because
the ledger waits for it while it holds SQLite's lock."""

_Order = tuple[StudyRecord, tuple[TrialRecord], Mapping[str, Sequence[CurvePoint]] | None]


class MirrorProcess:
    """Does what `OptunaMirror` does, later and elsewhere. May be called from any thread.

    What goes wrong there is raised by the next call as StorageError. When the process dies, another one takes its
    place, and what was not acknowledged is written again.
    """

    def __init__(self, url: str, turn: AbstractContextManager[object] | None = None) -> None:
        """`turn` is held by whoever writes to the same file and must not wait for more than one trial of ours."""
        self._url = url
        self._folder = os.getcwd()  # from which a relative path leads; a study's own code may change it
        self._turn = turn or nullcontext()
        self._changed = threading.Condition()
        self._is_open = False
        self._waiting: deque[_Order] = deque()
        """What has not been answered yet."""
        self._error: str | None = None
        self.core_seconds = 0.0
        """What the process has used of a processor so far."""
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        # The process dies with the thread that has started it; this one stays.
        self._thread = threading.Thread(target=self._tend, name="mirror", daemon=True)
        self._thread.start()

    def publish(
        self,
        record: StudyRecord,
        trials: Sequence[TrialRecord],
        live_points: Mapping[str, Sequence[CurvePoint]] | None = None,
    ) -> None:
        """Have Optuna's tables brought in step with `trials`; `live_points` only where nothing else waits."""
        with self._changed:
            if live_points is not None and self._waiting:
                return
            self._changed.wait_for(lambda: self._error is not None or len(self._waiting) < MOST_WAITING)
            self._check()
            is_idle = self._is_idle()
            self._waiting += [(record, (trial,), live_points) for trial in trials]
            if is_idle and self._waiting:
                self._send(self._waiting[0])

    def finish(self, tell: Callable[[str], None]) -> None:
        """Return when all is written; `tell` hears of it where that takes a while. Raises StorageError."""
        with self._changed:
            if not self._changed.wait_for(self._is_idle, timeout=PATIENCE_SECONDS):
                tell("Waiting for the dashboard's tables ...")
                self._changed.wait_for(self._is_idle)
            self._check()

    def close(self, *, waits: bool = True) -> None:
        """End the process, which may write for CLOSING_SECONDS more if it has anything to write and this `waits`."""
        with self._changed:
            patience = CLOSING_SECONDS if waits else 0.0
            self._changed.wait_for(lambda: not self._waiting or self._is_idle(), timeout=patience)
            self._closed = True
            if self._process is not None:
                if self._is_idle():
                    self._send(None)
                else:
                    self._process.kill()
        self._thread.join()

    def _is_idle(self) -> bool:
        return self._error is not None or (self._is_open and not self._waiting)

    def _check(self) -> None:
        if self._error is not None:
            raise StorageError(self._error)

    def _send(self, order: str | _Order | None) -> None:
        """Send it to the process, which waits for it; when it has just died, the next one is sent the same."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                pickle.dump(order, _input(self._process))
                _input(self._process).flush()

    def _tend(self) -> None:
        """Run the process, take its answers, and start another one when it dies."""
        deaths = 0
        try:
            while self._error is None:
                with self._changed:
                    if self._closed:
                        return
                    self._is_open = False
                    self._process = process = _start(self._folder)
                    self._send(self._url)
                deaths = 1 if self._take_answers(process) else deaths + 1
                with self._changed:
                    self._process = None
                    with contextlib.suppress(OSError):  # of what it has not read
                        _input(process).close()
                    code = process.wait()
                    self.core_seconds = 0.0  # from now on those of an ended child
                    if deaths >= DEATHS_TO_FAIL and not self._closed:
                        raise StorageError(f"it died {deaths} times in a row, the last time with exit code {code}")
        except Exception as error:  # whatever it is, nobody must wait for this thread
            with self._changed:
                self._error = self._error or (
                    f"The process that writes the dashboard's tables does not run: {error}. Type the same command to "
                    "go on."
                )
        finally:
            with self._changed:
                self._changed.notify_all()

    def _take_answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Take the answers of the process until it ends; return whether it has carried out any order."""
        assert process.stdout is not None
        done = -1  # the first answer says that the database is open
        with process.stdout as answers:
            while True:
                try:
                    self.core_seconds, error = pickle.load(answers)  # noqa: S301  our own child's
                except (EOFError, OSError, pickle.UnpicklingError):
                    return done > 0
                done += 1
                with self._turn:
                    pass
                with self._changed:
                    if self._is_open:
                        self._waiting.popleft()
                    self._is_open = True
                    self._error = self._error or error
                    if self._waiting and self._error is None:
                        self._send(self._waiting[0])
                    self._changed.notify_all()


def _input(process: subprocess.Popen[bytes]) -> Any:
    return process.stdin


def _start(folder: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  our own program
        [sys.executable, "-P", "-m", "lrsearch.storage.mirror_process", str(os.getpid())],
        cwd=folder,
        env=importing_alike(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us alone
    )


def main() -> None:
    die_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no answer
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):  # the parent has died, maybe in mid-sentence
        _obey(sys.stdin.buffer, answers)
    os._exit(0)  # all is written; taking apart what was imported would take 0.2 s, for which the study waits


def _obey(orders: Any, answers: Any) -> None:
    """Carry out orders until one is None, or the parent's end closes."""
    from lrsearch.storage.optuna_mirror import OptunaMirror

    mirror: OptunaMirror | None = None
    while (order := pickle.load(orders)) is not None:  # noqa: S301  from our own parent
        error: str | None = None
        try:
            if mirror is None:
                mirror = OptunaMirror(order)
            else:
                mirror.publish(*order)
        except LrsearchError as told:
            error = str(told)
        except Exception as unexpected:
            error = f"The dashboard's tables were not written: {type(unexpected).__name__}: {unexpected}"
        answers.write(pickle.dumps((time.process_time(), error)))
        if mirror is None:
            return
    if mirror is not None:
        mirror.close()


if __name__ == "__main__":
    main()
