"""kill -9 of orchestrators and workers at random points; `make faults` does it 200 times on each database."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lrsearch.conductor import HEARTBEAT_SECONDS
from lrsearch.storage.store import open_store
from tests.faults.harness import (
    Figures,
    await_attempt,
    check,
    on_sqlite,
    run_with_kills,
    running_attempts,
    said,
    start,
    unbroken,
    write,
)
from tests.postgresql import Server
from tests.processes import children, lives

KILLS = int(os.environ.get("LRSEARCH_KILLS", "6"))
PER_STUDY = 8
SLACK_SECONDS = 0.75
"""What a busy machine adds between a heartbeat's time and its commit, and between the kill and its time."""

Place = Callable[[Path], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Give the URL of a new database for a study in a folder."""
    if request.param == "sqlite":
        yield on_sqlite
        return
    server = Server(15)
    yield lambda folder: server.new_database()
    server.close()


@pytest.mark.faults
@pytest.mark.timeout(14_400)
def test_random_kills_lose_nothing_and_double_nothing(place: Place, tmp_path: Path) -> None:
    """`LRSEARCH_FIGURES` names a file for what was counted so far."""
    expected = unbroken(tmp_path / "unbroken")
    chance, figures = random.Random(int(os.environ.get("LRSEARCH_SEED", "0"))), Figures()
    while len(figures.kills) < KILLS:
        folder = tmp_path / str(figures.studies)
        url = place(folder)
        record = run_with_kills(folder, url, chance, min(PER_STUDY, KILLS - len(figures.kills)), figures)
        check(record, expected, folder, url, figures)
        if log := os.environ.get("LRSEARCH_FIGURES"):
            Path(log).write_text(f"{figures}\n")
    assert all(kill.running for kill in figures.kills), "each landed inside a running attempt"
    assert figures.lost_attempts > 0
    assert all(abs(error) < HEARTBEAT_SECONDS + SLACK_SECONDS for error in figures.errors), figures.errors


def mirrors_of(pid: int) -> list[int]:
    """Return the process that writes Optuna's tables for the study in process `pid`, while there is one."""
    found = []
    for child in children(pid):
        command = Path(f"/proc/{child}/cmdline")
        if lives(child) and command.exists() and b"mirror_process" in command.read_bytes():
            found.append(child)
    return found


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_what_writes_the_dashboard_s_tables_may_die_while_trials_run(place: Place, tmp_path: Path) -> None:
    expected = unbroken(tmp_path / "unbroken")
    folder = tmp_path / "killed"
    url = place(folder)
    process = start(write(folder), url)
    for _ in range(2):
        assert await_attempt(process, url, set(running_attempts(url)))
        [mirror] = mirrors_of(process.pid)
        os.kill(mirror, signal.SIGKILL)
        while mirrors_of(process.pid) in ([], [mirror]):
            assert process.poll() is None, said(folder)
            time.sleep(0.02)
    assert process.wait(timeout=300) == 0, said(folder)
    with open_store(url) as store:
        check(store.record("small"), expected, folder, url, Figures())
