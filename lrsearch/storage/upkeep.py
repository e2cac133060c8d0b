"""What is done for a running study in threads of its own: its lease is renewed, its books are put right."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lrsearch.errors import LrsearchError, StudyBusyError
from lrsearch.storage.owner import this_owner
from lrsearch.storage.store import Store

LEASE_SECONDS = 60.0
"""For so long after its last sign of life nobody takes a study from a process that may live."""


@contextmanager
def every(seconds: float, work: Callable[[], None], name: str) -> Iterator[None]:
    """Call `work` each time that so many seconds have passed, for as long as the block runs, in a thread `name`."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(seconds):
            work()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Lease:
    """The right of this process to write to one study."""

    def __init__(self, store: Store, study_id: int, tell: Callable[[str], None]) -> None:
        self.owner = this_owner()
        self._store = store
        self._study_id = study_id
        self._tell = tell
        self._lost: StudyBusyError | None = None

    def take(self) -> None:
        """Take the lease. Raises StudyBusyError, which names the holder."""
        self._store.acquire(self._study_id, self.owner, LEASE_SECONDS)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the lease, which was taken, for as long as the block runs, whatever else is slow; then give it back."""
        try:
            with every(LEASE_SECONDS / 3, self._renew, "lease"):
                yield
        finally:
            self._store.release(self._study_id, self.owner)

    def check(self) -> None:
        """Raise StudyBusyError when another process has taken the study over."""
        if self._lost is not None:
            raise self._lost

    def _renew(self) -> None:
        try:
            self._store.acquire(self._study_id, self.owner, LEASE_SECONDS, renews=True)
        except StudyBusyError as error:
            self._lost = error
        except LrsearchError as error:
            self._tell(f"The study's lease was not renewed: {error}")
