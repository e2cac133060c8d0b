"""kill -9 of orchestrators and workers at random points; `make faults` does it 200 times on each database."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lrsearch.conductor import HEARTBEAT_SECONDS
from tests.faults.harness import Figures, check, on_sqlite, run_with_kills, unbroken
from tests.postgresql import Server

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
