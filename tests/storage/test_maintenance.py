"""`lrsearch db`: upgrades with a copy first, copies that are whole, and a check that finds each fault it claims to."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from lrsearch.errors import NewerSchemaError, StorageError, StudyBusyError, UsageError
from lrsearch.storage import migrate
from lrsearch.storage.engine import make_engine, parse_url
from lrsearch.storage.maintenance import back_up, check_database, check_schema, is_alive, mend_view, upgrade_database
from lrsearch.storage.optuna_mirror import OptunaMirror
from lrsearch.storage.owner import this_owner
from lrsearch.storage.schema import HEAD
from lrsearch.storage.store import Claim, open_store
from tests.storage.samples import CONSTANT, begin, finish, held_study

RELEASES = sorted((Path(__file__).parent / "releases").glob("*.sql"))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with a finished study, shown in the dashboard."""
    path = tmp_path / "lrsearch.db"
    with open_store(f"sqlite:///{path}") as store:
        study = held_study(store, owner=this_owner())
        for seed in (0, 1):
            for _ in range(2):
                finish(
                    store,
                    store.begin_trials(study.id, [Claim("grid", seed, CONSTANT)], owner=this_owner(), versions={})[0],
                )
        store.finish_study(study.id, this_owner())
        store.release(study.id, this_owner())
        record = store.record("digits")
    mirror = OptunaMirror(f"sqlite:///{path}")
    mirror.publish(record, record.trials)
    mirror.close()
    return path


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A lrsearch of the future, whose schema has one more column."""
    folder = Path(shutil.copytree(migrate.MIGRATIONS, tmp_path / "migrations"))
    (folder / "versions" / "v9999_more.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision, branch_labels, depends_on = '9999', {HEAD!r}, None, None\n"
        "def upgrade() -> None:\n    op.add_column('lrsearch_study', sa.Column('mood', sa.Text()))\n"
    )
    monkeypatch.setattr(migrate, "MIGRATIONS", folder)
    for module in ("migrate", "maintenance"):
        monkeypatch.setattr(f"lrsearch.storage.{module}.HEAD", "9999")
    return "9999"


def _url(path: Path) -> str:
    return f"sqlite:///{path}"


def _change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def _columns(path: Path) -> set[str]:
    engine = make_engine(parse_url(_url(path)))
    columns = {column["name"] for column in sa.inspect(engine).get_columns("lrsearch_study")}
    engine.dispose()
    return columns


# Upgrading


def test_an_older_database_is_copied_and_upgraded_on_request_only(database: Path, newer: str) -> None:
    with pytest.raises(
        StorageError,
        match=rf"older lrsearch: its schema is '{HEAD}', .* `lrsearch db upgrade`, with the same --database",
    ):
        open_store(_url(database))
    with pytest.raises(StorageError, match="older lrsearch"):
        open_store(_url(database), must_exist=True)
    said: list[str] = []
    upgrade_database(_url(database), said.append)
    assert "mood" in _columns(database)
    [copy] = database.parent.glob("lrsearch-*.db")
    assert said[0] == f"Copied to {copy}."
    assert "mood" not in _columns(copy)
    assert said[1].endswith(f"now has schema '{newer}', it had '{HEAD}'.")
    with open_store(_url(database)) as store:
        assert len(store.record("digits").trials) == 4


@pytest.mark.parametrize("lease_seconds", [60.0, 0.0], ids=["in time", "stopped for a while, or the clock was set"])
def test_nothing_is_upgraded_under_a_running_study(
    database: Path, request: pytest.FixtureRequest, lease_seconds: float
) -> None:
    with open_store(_url(database)) as store:
        store.acquire(1, this_owner(), lease_seconds)
    request.getfixturevalue("newer")
    with pytest.raises(StudyBusyError, match="Study 'digits' is being run by process"):
        upgrade_database(_url(database), lambda line: None)
    assert "mood" not in _columns(database)


def test_an_empty_place_gets_the_tables_and_a_current_one_is_left_alone(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        upgrade_database(_url(tmp_path / "x.db"), said.append)
    assert said[0].endswith(f"now has schema '{HEAD}'; it was empty.")
    assert said[1].endswith("already; nothing to do.")
    assert [path.name for path in tmp_path.glob("*.db")] == ["x.db"]


def test_a_newer_database_is_never_touched(database: Path) -> None:
    _change(database, "UPDATE lrsearch_alembic_version SET version_num = '0099'")
    before = database.read_bytes()
    for look in (lambda: upgrade_database(_url(database), print), lambda: check_database(_url(database))):
        with pytest.raises(NewerSchemaError, match="its schema is '0099'"):
            look()
    assert database.read_bytes() == before


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
def test_the_database_of_every_release_can_be_upgraded_and_read(release: Path, tmp_path: Path) -> None:
    path = tmp_path / "lrsearch.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(release.read_text())
    connection.close()
    upgrade_database(_url(path), lambda line: None)
    found = check_database(_url(path))
    assert (found.faults, found.notes) == ([], [])
    with open_store(_url(path), must_exist=True) as store:
        record = store.record("tiny")
    assert record.finished
    assert {trial.strategy for trial in record.trials} == {"grid", "clr"}
    for trial in record.trials:
        assert trial.result is not None
        assert trial.charged_device_seconds > 0
        assert trial.result.validation_metric is not None or trial.stage == "range_test"


def test_there_is_a_database_of_every_release() -> None:
    assert [path.stem for path in RELEASES] == ["0.1.0"]


# Copies


def test_a_copy_is_whole_while_a_study_writes(database: Path) -> None:
    stop, writes = threading.Event(), threading.Event()
    written = []

    def write() -> None:
        with open_store(_url(database)) as store:
            study = held_study(store, "other")
            while not stop.is_set():
                finish(store, begin(store, study))
                written.append(1)
                writes.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert writes.wait(timeout=60)
    copies = [back_up(_url(database), database.with_name(f"copy{number}.db")) for number in range(5)]
    stop.set()
    thread.join()
    assert written
    for copy in copies:
        found = check_database(_url(copy))
        assert found.faults == []
        assert found.trials >= 4
    assert not list(database.parent.glob(".*unfinished"))


def test_copies_of_the_same_second_have_names_of_their_own(database: Path) -> None:
    """As in `lrsearch db backup && lrsearch db upgrade`."""
    copies = [back_up(_url(database)) for _ in range(3)]
    assert len(set(copies)) == 3
    assert {copy.parent for copy in copies} == {database.parent}


def test_a_copy_overwrites_nothing_and_needs_a_source(database: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lrsearch\.db exists already and is not overwritten"):
        back_up(_url(database), database)
    with pytest.raises(StorageError, match="There is no database"):
        back_up(_url(tmp_path / "none.db"), tmp_path / "copy.db")
    with pytest.raises(StorageError, match=r"cannot be copied|cannot be written"):
        back_up(_url(database), tmp_path / "nowhere" / "copy.db")


def test_a_database_in_a_folder_that_one_cannot_write_to_is_copied_elsewhere(
    database: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path_factory.mktemp("elsewhere") / "copy.db"
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != database.parent)  # root may write all the same
    assert back_up(_url(database), copy) == copy
    assert [path.name for path in database.parent.iterdir()] == [database.name], "no file of SQLite's own beside it"
    with open_store(_url(copy), must_exist=True) as store:
        assert len(store.record("digits").trials) == 4


def test_a_damaged_database_is_not_copied_as_if_it_were_whole(database: Path, tmp_path: Path) -> None:
    content = bytearray(database.read_bytes())
    content[8 * 4096 : 12 * 4096] = b"\xff" * (4 * 4096)
    database.write_bytes(content)
    with pytest.raises(StorageError, match=r"damaged|malformed"):
        back_up(_url(database), tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


def test_without_pg_dump_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StorageError, match=r"needs pg_dump.*install postgresql-client"):
        back_up("postgresql://me@127.0.0.1/x", tmp_path / "copy")


# Checks


def test_a_sound_database_has_no_fault(database: Path) -> None:
    found = check_database(_url(database))
    assert (found.studies, found.trials, found.faults, found.notes) == (1, 4, [], [])


FAULTS = {
    "UPDATE lrsearch_attempt SET status = 'lost' WHERE id = 1": "trial 0 is completed with 0 finished attempts",
    "UPDATE lrsearch_trial SET status = 'planned' WHERE id = 2": "trial 1 is planned with 1 finished attempts",
    "INSERT INTO lrsearch_attempt SELECT 99, trial_id, 2, status, owner, lease_expires_at, 'other', heartbeat_at, "
    "started_at, finished_at, device_kind, device_name, device_count, device_threads, gang_size, core_seconds, "
    "estimated, peak_device_memory_bytes, energy_joules, versions, error, billed_phase_seconds FROM lrsearch_attempt "
    "WHERE id = 3": ("seed 1, trial 0 is completed with 2 finished attempts"),
    "UPDATE lrsearch_attempt SET status = 'running' WHERE id = 4": "trial 1 is completed with 1 running attempts",
    "UPDATE lrsearch_trial SET number = 7 WHERE id = 4": "grid, seed 1 has 2 trials, numbered to 7",
    "DELETE FROM lrsearch_search WHERE id = 1": "belongs to no row of lrsearch_search",
}


@pytest.mark.parametrize("statement", FAULTS, ids=FAULTS.values())
def test_each_fault_is_found(database: Path, statement: str) -> None:
    _change(database, statement)
    assert any(FAULTS[statement] in fault for fault in check_database(_url(database)).faults)


def test_another_program_s_database_is_told_to_hold_no_study_and_gets_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "places.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE places (name)")
        before = path.read_bytes()
        for look in (check_database, mend_view, partial(is_alive, study_name="digits"), _list_studies):
            with pytest.raises(StorageError, match=r"places\.db holds no lrsearch study"):
                look(f"sqlite:///{path}")
        with pytest.raises(StorageError, match=r"places\.db holds no tables of lrsearch"):
            check_schema(f"sqlite:///{path}")
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("places",)]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _list_studies(url: str) -> None:
    with open_store(url, must_exist=True) as store:
        store.studies()


def test_what_a_kill_leaves_behind_is_a_note(database: Path) -> None:
    with open_store(_url(database)) as store:
        begin(store, held_study(store, "killed"))
    _change(database, "UPDATE lrsearch_study SET lease_expires_at = datetime('now', '-1 minute')")
    found = check_database(_url(database))
    assert found.faults == []
    [note] = found.notes
    assert note.startswith("killed version 1, grid, seed 0, trial 0 was left running by a process that died")


def test_a_process_that_lives_here_has_left_nothing_running(database: Path) -> None:
    """Its lease runs out while it is stopped, as by Ctrl-Z, and when the clock is set."""
    with open_store(_url(database)) as store:
        study = held_study(store, "stopped", owner=this_owner())
        store.begin_trials(study.id, [Claim("grid", 0, CONSTANT)], owner=this_owner(), versions={})
    _change(database, "UPDATE lrsearch_study SET lease_expires_at = datetime('now', '-1 minute')")
    found = check_database(_url(database))
    assert (found.faults, found.notes) == ([], [])


def test_a_trial_that_the_dashboard_lacks_is_noted_and_mended(database: Path) -> None:
    with open_store(_url(database)) as store:
        finish(store, begin(store, held_study(store, "unseen")))
    assert [note.split(";")[0] for note in check_database(_url(database)).notes] == [
        "the dashboard's tables lack 1 ended trials"
    ]
    mend_view(_url(database))
    assert check_database(_url(database)).notes == []


def test_no_database_is_made_to_be_mended(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no database"):
        mend_view(_url(tmp_path / "none.db"))
    assert list(tmp_path.iterdir()) == []
