"""A clock that is set under a running study, by an hour forward and back: neither costs nor leases go by it.

libfaketime gives a process a wall clock of its own (Debian: libfaketime); the monotonic ones stay true.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrsearch.conductor import HEARTBEAT_SECONDS
from lrsearch.storage.store import open_store
from lrsearch.trial import StudyRecord
from tests.faults.harness import (
    INLINE,
    Figures,
    await_attempt,
    check,
    on_sqlite,
    running_attempts,
    said,
    start,
    unbroken,
    write,
)
from tests.postgresql import Server

EPOCHS = 16
SLACK_SECONDS = 1.5
"""What a busy machine adds."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    return unbroken(tmp_path_factory.mktemp("unbroken"), INLINE, EPOCHS)


SLEEP = """
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds)  # libfaketime 0.9.10 breaks the one of Python 3.11
"""


class Clock:
    """The wall clock of the processes that are started with its `variables`."""

    def __init__(self, folder: Path, library: Path) -> None:
        self._file = folder / "clock"
        self.set("+0")
        (folder / "sitecustomize.py").write_text(SLEEP)
        self.variables = {
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }

    def set(self, offset: str) -> None:
        """Set it, as in "+1h", against the true time."""
        beside = self._file.with_suffix(".new")
        beside.write_text(f"{offset}\n")
        beside.replace(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    found = sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("there is no libfaketime here: apt-get install libfaketime")
    return Clock(tmp_path, found[0])


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_study_whose_clock_is_set_goes_on_and_its_cost_is_true(
    tmp_path: Path, expected: StudyRecord, clock: Clock
) -> None:
    path, url, began = write(tmp_path, INLINE, EPOCHS), on_sqlite(tmp_path), time.monotonic()
    process = start(path, url, **clock.variables)
    for offset in ("+1h", "-1h", "+1d", "+0"):
        assert await_attempt(process, url, set())
        known = set(running_attempts(url))
        clock.set(offset)
        assert await_attempt(process, url, known), "this one runs by the new time"
    assert process.wait(timeout=300) == 0, said(tmp_path)
    with open_store(url) as store:
        record = store.record("small")
    check(record, expected, tmp_path, url, Figures())
    assert all(len(trial.attempts) == 1 for trial in record.trials)
    times = [attempt.started_at for trial in record.trials for attempt in trial.attempts]
    assert (max(times) - min(times)).total_seconds() > 3000, "attempts began at both times"
    [run] = [event for event in record.events if event.kind == "run"]
    explained = sum(sum(trial.phase_seconds.values()) for trial in record.trials)
    assert explained == pytest.approx(run.data["held_seconds"], rel=0.01)
    assert run.data["held_seconds"] < time.monotonic() - began


STEADY = """
  grid: {name: grid, learning_rates: [1e-3, 2e-3], schedule: {name: constant}}"""
"""Rates at which a trial of many epochs does not diverge meanwhile."""


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("offset", ["+1h", "-1h"])
def test_a_kill_after_the_clock_was_set_is_charged_what_it_took_and_nobody_takes_a_live_study(
    tmp_path: Path, clock: Clock, offset: str
) -> None:
    path, url = write(tmp_path, INLINE, 50_000, STEADY), on_sqlite(tmp_path)
    process = start(path, url, **clock.variables)
    assert await_attempt(process, url, set())
    began = time.monotonic()
    time.sleep(1)
    clock.set(offset)
    assert start(path, url, **clock.variables).wait(timeout=120) == 6, said(tmp_path)
    [landed] = running_attempts(url)
    process.kill()
    lasted = time.monotonic() - began
    assert process.wait() == -signal.SIGKILL
    successor = start(path, url, **clock.variables)
    assert await_attempt(successor, url, {landed})
    successor.kill()
    successor.wait()
    with open_store(url) as store:
        [trial] = store.record("small").trials
    lost, again = trial.attempts
    assert (trial.uuid, lost.number, lost.status, lost.estimated) == (*landed, "lost", True)
    assert again.status == "running"
    assert sum(lost.phase_seconds.values()) == pytest.approx(lasted, abs=HEARTBEAT_SECONDS + SLACK_SECONDS)
    assert "Traceback" not in said(tmp_path)


_TAKE = """
import sys
from lrsearch.errors import StudyBusyError
from lrsearch.storage.store import open_store
with open_store(sys.argv[1]) as store:
    try:
        store.acquire(store.find_study("small").id, "elsewhere:1:1:1", 60.0)
    except StudyBusyError as error:
        print("busy")
"""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(15)
    yield server
    server.close()


@pytest.mark.faults
def test_on_postgresql_leases_go_by_the_servers_clock(clock: Clock, server: Server) -> None:
    url = server.new_database()
    with open_store(url) as store:
        study = store.create_study("small", {"strategies": {}, "seeds": []}, "a")
        for offset in ("+1d", "-1d"):
            clock.set(offset)
            store.acquire(study.id, "first:1:1:1", 60.0)
            take = [sys.executable, "-c", _TAKE, url]
            done = subprocess.run(take, env={**os.environ, **clock.variables}, capture_output=True, text=True)
            assert (done.stdout, done.stderr) == ("busy\n", "")
