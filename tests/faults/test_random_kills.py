"""kill -9 of orchestrators and workers at random points on SQLite; `make faults` does it 200 times."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from lrsearch.conductor import HEARTBEAT_SECONDS
from tests.faults.harness import Figures, check, run_with_kills, unbroken

KILLS = int(os.environ.get("LRSEARCH_KILLS", "6"))
PER_STUDY = 8
SLACK_SECONDS = 0.75
"""What a busy machine adds between a heartbeat's time and its commit, and between the kill and its time."""


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_random_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    expected = unbroken(tmp_path / "unbroken")
    chance, figures = random.Random(int(os.environ.get("LRSEARCH_SEED", "0"))), Figures()
    while len(figures.kills) < KILLS:
        folder = tmp_path / str(figures.studies)
        record = run_with_kills(folder, chance, min(PER_STUDY, KILLS - len(figures.kills)), figures)
        check(record, expected, folder, figures)
        if log := os.environ.get("LRSEARCH_FIGURES"):
            Path(log).write_text(f"{figures}\n")
    assert all(kill.running for kill in figures.kills), "each landed inside a running attempt"
    assert figures.lost_attempts > 0
    assert all(abs(error) < HEARTBEAT_SECONDS + SLACK_SECONDS for error in figures.errors), figures.errors
