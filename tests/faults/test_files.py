"""Files that are changed or damaged beside a kill: the study file, the user's model, the checkpoint, the report."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrsearch.conductor import HEARTBEAT_SECONDS
from lrsearch.storage.store import open_store
from lrsearch.trial import StudyRecord, TrialRecord
from tests.faults.harness import (
    GRID,
    INLINE,
    PROCESSES,
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
from tests.processes import lives, workers_of

EPOCHS = 16
SLACK_SECONDS = 0.75
RANGE_TEST = """
  clr: {name: range_tested, min_steps: 20, range_epochs: 60, schedule: {name: triangular2, cycles: 2}}"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    return unbroken(tmp_path_factory.mktemp("unbroken"), INLINE, EPOCHS, GRID)


def killed_inside_an_attempt(path: Path, url: str, *, checkpointed: bool = False) -> set[tuple[str, int]]:
    """Start the study, kill it while its first attempts run, and return those."""
    process = start(path, url)
    assert await_attempt(process, url, set())
    while checkpointed and not list((path.parent / "states").glob("*.ckpt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # so that no attempt ends before the kill
    while not (landed := set(running_attempts(url))):
        process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
    workers = workers_of(process.pid)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    while any(lives(pid) for pid in workers):  # some milliseconds more, in which one may write a checkpoint
        time.sleep(0.01)
    return landed


def trial_of(url: str, landed: tuple[str, int]) -> TrialRecord:
    with open_store(url) as store:
        [trial] = [trial for trial in store.record("small").trials if trial.uuid == landed[0]]
    return trial


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_study_file_that_was_changed_beside_a_kill_is_refused_and_the_old_one_goes_on(
    tmp_path: Path, expected: StudyRecord
) -> None:
    path, url = write(tmp_path, INLINE, EPOCHS, GRID), on_sqlite(tmp_path)
    [landed] = killed_inside_an_attempt(path, url)
    text = path.read_text()
    path.write_text(text.replace(f"epochs: {EPOCHS}", "epochs: 5"))
    assert start(path, url).wait(timeout=120) == 7
    assert "training.epochs" in said(tmp_path)
    assert "--fresh starts a new version" in said(tmp_path) or "start a new version with --fresh" in said(tmp_path)
    assert set(running_attempts(url)) == {landed}, "nothing was touched"
    path.write_text(f"# a comment does not count\n{text}")
    assert start(path, url).wait(timeout=300) == 0, said(tmp_path)
    with open_store(url) as store:
        check(store.record("small"), expected, tmp_path, url, Figures())
    assert [attempt.status for attempt in trial_of(url, landed).attempts] == ["lost", "finished"]


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("executor", [INLINE, PROCESSES], ids=["inline", "process"])
def test_a_model_that_was_changed_beside_a_kill_is_said_to_begin_anew(tmp_path: Path, executor: str) -> None:
    path, url = write(tmp_path, executor, EPOCHS, GRID.replace("points: 3", "points: 2")), on_sqlite(tmp_path)
    landed = killed_inside_an_attempt(path, url, checkpointed=True)
    kept = {file.name.partition(".")[0] for file in (tmp_path / "states").glob("*.ckpt")}
    module = tmp_path / "slow_user.py"
    text = module.read_text()
    module.write_text(text.replace("Linear(4, 8)", "Linear(4, 16)").replace("Linear(8, 2)", "Linear(16, 2)"))
    assert start(path, url).wait(timeout=300) == 7, said(tmp_path)
    assert "parameter" in said(tmp_path)
    module.write_text(text.replace("layers", "net"))
    assert start(path, url).wait(timeout=300) == 0, said(tmp_path)
    assert said(tmp_path).count("its checkpoint does not fit the model or the data") == len(kept)
    assert "it begins anew" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    with open_store(url) as store:
        trials = store.record("small").trials
    assert {trial.status for trial in trials} == {"completed"}
    assert {trial.uuid for trial in trials if len(trial.attempts) > 1} == {uuid for uuid, _ in landed} >= kept > set()


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_checkpoint_with_a_flipped_byte_is_told_and_the_study_ends_as_ever(
    tmp_path: Path, expected: StudyRecord
) -> None:
    path, url = write(tmp_path, INLINE, EPOCHS, GRID), on_sqlite(tmp_path)
    [landed] = killed_inside_an_attempt(path, url, checkpointed=True)
    for file in (tmp_path / "states").glob("*.ckpt"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert start(path, url).wait(timeout=300) == 0, said(tmp_path)
    assert "is damaged (its checksum differs)" in said(tmp_path)
    with open_store(url) as store:
        check(store.record("small"), expected, tmp_path, url, Figures())
    lost = trial_of(url, landed).attempts[0]
    assert set(lost.phase_seconds) == {"lost"}, "nothing of it was kept"


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_range_test_that_is_killed_runs_again_from_its_first_step_and_all_of_it_is_lost(tmp_path: Path) -> None:
    """It is short, and keeps no checkpoint."""
    expected = unbroken(tmp_path / "unbroken", INLINE, EPOCHS, RANGE_TEST)
    path, url = write(tmp_path, INLINE, EPOCHS, RANGE_TEST), on_sqlite(tmp_path)
    process = start(path, url)
    assert await_attempt(process, url, set())
    began = time.monotonic()
    time.sleep(1.5)
    [landed] = running_attempts(url)
    process.kill()
    lasted = time.monotonic() - began
    process.wait()
    assert not list((tmp_path / "states").glob("*"))
    assert start(path, url).wait(timeout=300) == 0, said(tmp_path)
    with open_store(url) as store:
        check(store.record("small"), expected, tmp_path, url, Figures())
    trial = trial_of(url, landed)
    assert trial.stage == "range_test"
    lost, finished = trial.attempts
    assert set(lost.phase_seconds) == {"lost"}
    assert lost.phase_seconds["lost"] == pytest.approx(lasted, abs=HEARTBEAT_SECONDS + SLACK_SECONDS)
    assert "lost" not in finished.phase_seconds


@pytest.mark.faults
def test_a_report_that_is_killed_half_way_leaves_the_old_one_whole(tmp_path: Path) -> None:
    path, url, page = write(tmp_path, INLINE, 1, GRID), on_sqlite(tmp_path), tmp_path / "report.html"
    assert start(path, url).wait(timeout=300) == 0, said(tmp_path)
    old = page.read_bytes()
    command = [sys.executable, "-m", "lrsearch", "report", "small", "--output", str(page), "--database", url]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRSEARCH_KILL_AT", "page_before_rename")
        assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert page.read_bytes() == old
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert page.read_bytes()[:15].lower() == b"<!doctype html>"
