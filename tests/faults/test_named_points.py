"""A kill at each named point between two steps that belong together, and where several processes meet."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lrsearch.storage.store import open_store
from lrsearch.trial import StudyRecord
from tests.faults.harness import INLINE, Figures, check, on_sqlite, said, start, unbroken, write
from tests.test_study import outcome

EPOCHS = 6
POINTS = (
    "after_plan:2",
    "checkpoint_temp:1",
    "checkpoint_before_rename:1",
    "checkpoint_after_rename:1",
    "before_commit:3",
    "after_commit:3",
    "before_mirror:3",
)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    return unbroken(tmp_path_factory.mktemp("unbroken"), INLINE, EPOCHS)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_there_loses_nothing_and_doubles_nothing(tmp_path: Path, expected: StudyRecord, point: str) -> None:
    path, url = write(tmp_path, INLINE, EPOCHS), on_sqlite(tmp_path)
    assert start(path, url, LRSEARCH_KILL_AT=point).wait(timeout=300) == -signal.SIGKILL, "the point was passed"
    with open_store(url) as store:
        attempts = [attempt for trial in store.record("small").trials for attempt in trial.attempts]
        cut_off = [attempt.status for attempt in attempts].count("running")
        assert cut_off == (0 if point.startswith("after_commit") else 1)
        if cut_off and point.startswith("after_plan"):  # and the same at the claim of that very trial
            assert start(path, url, LRSEARCH_KILL_AT="after_claim").wait(timeout=300) == -signal.SIGKILL
        assert start(path, url).wait(timeout=300) == 0
        check(store.record("small"), expected, tmp_path, url, Figures())


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_of_four_processes_on_one_study_one_runs_it_and_three_name_the_holder(
    tmp_path: Path, expected: StudyRecord
) -> None:
    path, url = write(tmp_path, INLINE, EPOCHS), on_sqlite(tmp_path)
    processes = [start(path, url) for _ in range(4)]
    codes = [process.wait(timeout=600) for process in processes]
    assert set(codes) <= {0, 6}, said(tmp_path)
    assert 0 in codes
    log = said(tmp_path)
    assert "Traceback" not in log
    assert log.count("is being run by process") + log.count("has just begun version") == codes.count(6)
    with open_store(url) as store:
        [summary] = store.studies()
        assert summary.version == 1
        assert outcome(store.record("small")) == outcome(expected)
