"""The dashboard's view written by another process: nothing is lost or doubled when that dies, and nobody waits."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from lrsearch.errors import StorageError
from lrsearch.storage import mirror_process
from lrsearch.storage.mirror_process import MirrorProcess
from lrsearch.storage.store import Store
from lrsearch.trial import StudyRecord
from tests.processes import children, lives
from tests.storage.samples import begin, finish, held_study, points
from tests.storage.test_optuna_mirror import shown_trials

ROOT = Path(__file__).parents[2]
SOON_SECONDS = 30
"""Of a busy machine: half of what SQLite waits for a lock."""


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def mirror(store: Store, url: str, told: list[str]) -> Iterator[MirrorProcess]:
    with closing(MirrorProcess(url)) as mirror:
        mirror.finish(told.append)
        yield mirror


def stored(store: Store, trials: int) -> StudyRecord:
    row = held_study(store)
    for number in range(trials):
        finish(store, begin(store, row), metric=number / trials)
    return store.record("digits")


def values(url: str) -> list[float | None]:
    return [trial.value for trial in shown_trials(url)]


def own_child(others: set[int]) -> int:
    """Return the process, when it is there: between two there is none for a moment."""
    deadline = time.monotonic() + 120
    while not (found := [child for child in set(children(os.getpid())) - others if lives(child)]):
        assert time.monotonic() < deadline
    [child] = found
    return child


def test_what_was_published_is_there_when_it_has_finished(
    store: Store, mirror: MirrorProcess, url: str, told: list[str]
) -> None:
    record = stored(store, 4)
    for trial in record.trials:
        mirror.publish(record, [trial])
    mirror.finish(told.append)
    assert values(url) == [0.0, 0.25, 0.5, 0.75]
    mirror.publish(record, record.trials)
    mirror.finish(told.append)
    assert len(values(url)) == 4, "what is there already is skipped"


def test_nobody_waits_for_a_database_that_is_locked_until_it_must(
    store: Store, mirror: MirrorProcess, url: str, told: list[str], tmp_path: Path
) -> None:
    record = stored(store, 2)
    mirror.publish(record, record.trials[:1])
    mirror.finish(told.append)
    with closing(sqlite3.connect(tmp_path / "lrsearch.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        mirror.publish(record, record.trials)
        mirror.publish(record, record.trials[:1], live_points={record.trials[0].uuid: points()})
        assert mirror._waiting, "a study would go on"
        assert values(url) == [0.0]
        other.execute("ROLLBACK")
    mirror.finish(told.append)
    assert values(url) == [0.0, 0.5]


def test_when_too_much_waits_one_waits_for_it(
    store: Store, mirror: MirrorProcess, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_process, "MOST_WAITING", 2)
    record = stored(store, 8)
    for trial in record.trials:
        mirror.publish(record, [trial])
        assert len(mirror._waiting) <= 2
    assert len(values(url)) >= 6


def test_another_process_takes_the_place_of_one_that_dies_and_nothing_is_lost_or_there_twice(
    store: Store, url: str, told: list[str]
) -> None:
    record, others = stored(store, 40), set(children(os.getpid()))
    with closing(MirrorProcess(url)) as mirror:
        mirror.finish(told.append)
        for number, trial in enumerate(record.trials):
            mirror.publish(record, [trial])
            if number in (3, 20):
                os.kill(own_child(others), signal.SIGKILL)
        mirror.finish(told.append)
    assert values(url) == [number / 40 for number in range(40)]
    assert set(children(os.getpid())) == others


def test_the_next_process_writes_to_the_same_file_also_from_another_folder(
    store: Store, url: str, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study's own code, which runs in the same process, may have changed the folder."""
    record, others = stored(store, 1), set(children(os.getpid()))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with closing(MirrorProcess("sqlite:///lrsearch.db")) as mirror:
        mirror.finish(told.append)
        monkeypatch.chdir(tmp_path / "elsewhere")
        os.kill(own_child(others), signal.SIGKILL)
        mirror.publish(record, record.trials)
        mirror.finish(told.append)
    assert values(url) == [0.0]


def test_one_that_dies_again_and_again_is_an_error(
    store: Store, url: str, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "optuna.py").write_text("import os; os._exit(9)")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        closing(MirrorProcess(url)) as mirror,
        pytest.raises(StorageError, match=r"died 3 times .*exit code 9"),
    ):
        mirror.finish(told.append)


def test_what_goes_wrong_there_is_raised_here(url: str, told: list[str], tmp_path: Path) -> None:
    (tmp_path / "lrsearch.db").write_text("no database, but some text that is long enough to be looked at")
    with closing(MirrorProcess(url)) as mirror:
        for _ in range(2):
            with pytest.raises(StorageError, match=r"lrsearch\.db is not an SQLite database"):
                mirror.finish(told.append)


def test_it_closes_soon_although_the_database_is_locked(
    store: Store, url: str, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_process, "CLOSING_SECONDS", 0.3)
    record, others = stored(store, 1), set(children(os.getpid()))
    mirror = MirrorProcess(url)
    mirror.finish(told.append)
    with closing(sqlite3.connect(tmp_path / "lrsearch.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        mirror.publish(record, record.trials)
        began = time.monotonic()
        mirror.close()
        assert time.monotonic() - began < SOON_SECONDS
        assert set(children(os.getpid())) == others


def test_where_no_process_can_be_started_nobody_waits(
    store: Store, url: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/python")
    with closing(MirrorProcess(url)) as mirror, pytest.raises(StorageError, match=r"does not run.*no/python"):
        mirror.finish(told.append)


def test_it_closes_although_a_child_of_this_process_lives_on(store: Store, url: str, told: list[str]) -> None:
    """As a DataLoader's workers may, which have all that was open when they were forked."""
    others = set(children(os.getpid()))
    mirror = MirrorProcess(url)
    mirror.finish(told.append)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        mirror.close()
        assert set(children(os.getpid())) - others == {child}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_lies_in_the_working_folder_is_no_module_of_its(
    store: Store, url: str, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    with closing(MirrorProcess(url)) as mirror:
        mirror.finish(told.append)


def test_it_closes_in_time_with_more_waiting_than_a_pipe_holds(
    store: Store, url: str, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_process, "CLOSING_SECONDS", 0.3)
    record = stored(store, 1)
    large = replace(record, config={**record.config, "more": "x" * 200_000})
    mirror = MirrorProcess(url)
    mirror.finish(told.append)
    with closing(sqlite3.connect(tmp_path / "lrsearch.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        for _ in range(5):
            mirror.publish(large, record.trials)
        mirror.close()
        assert time.monotonic() - began < SOON_SECONDS


HOLDER = """
import sys, time
from lrsearch.storage.mirror_process import MirrorProcess
mirror = MirrorProcess(sys.argv[1])
mirror.finish(lambda text: None)
print("open", flush=True)
time.sleep(1000)
"""


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def any_is_shown(url: str) -> bool:
    try:
        return values(url) != []
    except KeyError:  # not even their study is, yet
        return False


def test_it_dies_with_the_study_and_no_password_stands_in_its_command(store: Store, url: str) -> None:
    study = subprocess.Popen([sys.executable, "-c", HOLDER, url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with study:
        assert study.stdout is not None
        assert study.stdout.readline() == "open\n"
        [child] = children(study.pid)
        assert "sqlite" not in Path(f"/proc/{child}/cmdline").read_text()
        study.send_signal(signal.SIGKILL)
    wait_until(lambda: not lives(child))


def test_it_lets_the_ledger_go_first(store: Store, url: str, told: list[str]) -> None:
    record = stored(store, 4)
    with closing(MirrorProcess(url, store.turn)) as mirror:
        mirror.finish(told.append)
        with store.turn:
            mirror.publish(record, record.trials)
            wait_until(lambda: any_is_shown(url))
            time.sleep(0.5)  # enough for all
            assert values(url) == [0.0], "the trial that it had begun with"
        mirror.finish(told.append)
    assert values(url) == [0.0, 0.25, 0.5, 0.75]


def test_one_that_has_nothing_to_write_is_not_waited_for(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "optuna.py").write_text("import time; time.sleep(1000)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(mirror_process, "CLOSING_SECONDS", 1000.0)
    others = set(children(os.getpid()))
    mirror = MirrorProcess(url)
    own_child(others)
    began = time.monotonic()
    mirror.close()
    assert time.monotonic() - began < SOON_SECONDS
    assert set(children(os.getpid())) == others


def test_many_trials_are_taken_at_once(store: Store, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_process, "MOST_WAITING", 2)
    record = stored(store, 6)
    with store.turn, closing(MirrorProcess(url, store.turn)) as mirror:
        mirror.publish(record, record.trials)
        assert len(mirror._waiting) == 6, "a study that goes on shows all that it has; that must not hold it up"
        monkeypatch.setattr(mirror_process, "CLOSING_SECONDS", 0.0)
