"""A disk that fills up under a running study: it stops with a word about the disk, and goes on once there is space."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrsearch.storage.maintenance import check_database
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

EPOCHS = 16


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    return unbroken(tmp_path_factory.mktemp("unbroken"), INLINE, EPOCHS)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a disk that can be filled has to be mounted, which only root may do")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_full_disk_stops_the_study_and_loses_nothing(tmp_path: Path, disk: Path, expected: StudyRecord) -> None:
    """Database and checkpoints lie on it. What still fits is written; then the study says what is the matter."""
    path, url, ballast = write(tmp_path, INLINE, EPOCHS), on_sqlite(disk), disk / "ballast"
    (disk / "states").mkdir()
    (tmp_path / "states").symlink_to(disk / "states")
    process = start(path, url)
    assert await_attempt(process, url, set())
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    landed = running_attempts(url)
    assert landed, "in the middle of an attempt"
    assert process.wait(timeout=300) == 4, said(tmp_path)
    assert "No space left" in said(tmp_path) or "disk is full" in said(tmp_path)
    assert "MB free" in said(tmp_path)
    assert str(disk) in said(tmp_path)
    assert "the same command again" in said(tmp_path)
    ballast.unlink()
    assert check_database(url).faults == []
    assert start(path, url).wait(timeout=300) == 0, said(tmp_path)
    with open_store(url) as store:
        record = store.record("small")
        check(record, expected, tmp_path, url, Figures())
    attempts = {(trial.uuid, one.number): one for trial in record.trials for one in trial.attempts}
    assert all(attempts[key].status in ("lost", "interrupted", "finished") for key in landed)
    assert any(len(trial.attempts) > 1 for trial in record.trials)
