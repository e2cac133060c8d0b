"""The ledger and its view on real servers: the oldest PostgreSQL that is supported and docker-compose.yml's."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import optuna
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from lrsearch.errors import NewerSchemaError, StorageError, StudyBusyError
from lrsearch.storage.engine import make_engine, parse_url, reader, transact, writer
from lrsearch.storage.export import export_rows
from lrsearch.storage.maintenance import back_up, check_database, mend_view
from lrsearch.storage.migrate import stored_revision
from lrsearch.storage.optuna_mirror import OptunaMirror
from lrsearch.storage.schema import HEAD, VERSION_TABLE, metadata
from lrsearch.storage.store import Beat, Claim, End, Store, open_store
from lrsearch.trial import StudyRecord
from tests.postgresql import PASSWORD, CommitCutter, Server
from tests.storage.samples import (
    CONFIG,
    CYCLE,
    FACTS,
    OWNER,
    RANGE_TEST,
    VERSIONS,
    begin,
    finish,
    held_study,
    points,
    range_test_result,
    result,
)

pytestmark = pytest.mark.postgres
T = TypeVar("T")


@pytest.fixture(scope="module", params=[15, 18])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(request.param)
    yield server
    server.close()


@pytest.fixture
def url(server: Server) -> str:
    return server.new_database()


def _fill(store: Store, url: str) -> StudyRecord:
    """Store a study with every kind of row, and show it."""
    study = held_study(store)
    tested = begin(store, study, RANGE_TEST, "clr")
    store.finish_attempts([End(tested.attempt_id, tested.token, range_test_result(tested.uuid), {"status": "ok"})])
    finish(store, begin(store, study, CYCLE, "clr"))
    begun = begin(store, study)
    store.heartbeat([Beat(begun.attempt_id, begun.token, points(2), {"train": 0.25})])
    store.interrupt_attempt(begun.attempt_id, begun.token, 0.5)
    again = store.begin_trials(
        study.id, [begun.uuid], owner=OWNER, versions=VERSIONS, settle=(tested.attempt_id, 0.125)
    )[0]
    finish(store, again, metric=1 / 3)
    finish(store, begin(store, study, seed=2**40), "diverged")
    store.finish_study(study.id, OWNER)
    record = store.record("digits")
    mirror = OptunaMirror(url)
    mirror.publish(record, record.trials)
    mirror.close()
    return record


def _comparable(record: StudyRecord) -> dict[str, Any]:
    """Return all exported tables without what is drawn anew each time: UUIDs and times of day."""
    drawn = ("uuid", "started_at", "finished_at")

    def without(row: Any) -> Any:
        """Go into columns of records, such as a trial's attempts, too."""
        if isinstance(row, dict):
            return {key: without(value) for key, value in row.items() if key not in drawn}
        return [without(one) for one in row] if isinstance(row, list) else row

    return {
        table: [without(row) for row in export_rows(record, table)]
        for table in ("trials", "attempts", "curves", "range_tests")
    }


def test_the_ledger_holds_the_same_as_on_sqlite(url: str, tmp_path: Path) -> None:
    here = f"sqlite:///{tmp_path / 'x.db'}"
    with open_store(here) as ours, open_store(url) as theirs:
        expected, found = _fill(ours, here), _fill(theirs, url)
    assert _comparable(found) == _comparable(expected)
    assert list(found.config["strategies"]) == list(CONFIG["strategies"])
    assert [len(rows) for rows in _comparable(found).values()] == [4, 5, 9, 3]


def test_optuna_reads_the_view(url: str) -> None:
    with open_store(url) as store:
        record = _fill(store, url)
    storage = optuna.storages.RDBStorage(parse_url(url).render_as_string(hide_password=False))
    study = optuna.load_study(study_name="digits/grid/0", storage=storage)
    assert [(trial.state.name, trial.value) for trial in study.trials] == [("COMPLETE", 1 / 3)]
    assert study.trials[0].user_attrs["uuid"] == record.search("grid", 0)[0].uuid
    storage.remove_session()
    storage.engine.dispose()


def test_the_migrated_tables_are_those_of_the_schema(url: str) -> None:
    open_store(url).close()
    engine = make_engine(parse_url(url))
    options: dict[str, Any] = {
        "version_table": VERSION_TABLE,
        "include_name": lambda name, kind, _parents: kind != "table" or name.startswith("lrsearch_"),
        "compare_type": True,
    }
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
    engine.dispose()


def test_eight_processes_that_create_the_tables_at_once_do_not_meet(url: str) -> None:
    failures: list[BaseException] = []

    def create() -> None:
        try:
            open_store(url).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    engine = make_engine(parse_url(url))
    assert transact(engine, stored_revision) == HEAD
    engine.dispose()


def test_a_newer_database_is_refused(url: str) -> None:
    open_store(url).close()
    engine = make_engine(parse_url(url))
    version = sa.table(VERSION_TABLE, sa.column("version_num"))
    transact(writer(engine), lambda c: c.execute(sa.update(version).values(version_num="0099")))
    engine.dispose()
    with pytest.raises(NewerSchemaError, match="'0099'") as caught:
        open_store(url, must_exist=True)
    assert PASSWORD not in str(caught.value)


def test_readers_see_one_state_while_a_writer_commits(url: str) -> None:
    with open_store(url) as store:
        held_study(store)
        engine = make_engine(parse_url(url))
        count = sa.select(sa.func.count()).select_from(metadata.tables["lrsearch_study"])

        def read(connection: sa.Connection) -> tuple[int, int]:
            first = connection.execute(count).scalar_one()
            store.create_study("other", CONFIG, "b")
            return first, connection.execute(count).scalar_one()

        assert transact(reader(engine), read) == (1, 1)
        assert transact(reader(engine), lambda c: c.execute(count).scalar_one()) == 2
        engine.dispose()


def test_of_many_that_want_a_study_one_gets_it(url: str) -> None:
    with open_store(url) as store:
        study = store.create_study("digits", CONFIG, "a")
        won, lost = [], []

        def acquire(number: int) -> None:
            try:
                store.acquire(study.id, f"machine{number}:1:1:1", 60.0)
                won.append(number)
            except StudyBusyError as error:
                lost.append(str(error))

        threads = [threading.Thread(target=acquire, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert len(lost) == 7
        assert all(f"process 1 on machine{won[0]} " in message for message in lost)


def test_of_many_that_begin_a_study_at_once_one_makes_it(url: str) -> None:
    with open_store(url) as store:
        made, beaten = [], []
        start = threading.Barrier(8)

        def create() -> None:
            start.wait()
            try:
                made.append(store.create_study("digits", CONFIG, "a", after=0))
            except StudyBusyError as error:
                beaten.append(str(error))

        threads = [threading.Thread(target=create) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(made), len(beaten)) == (1, 7)


def test_a_result_committed_while_the_successor_reconciles_stays(url: str) -> None:
    """The old owner's transaction is open when reconcile reads: it must wait for it and then leave the result alone."""
    with open_store(url) as store:
        study = held_study(store)
        begun = begin(store, study)
        engine = writer(make_engine(parse_url(url)))
        attempts, trials = metadata.tables["lrsearch_attempt"], metadata.tables["lrsearch_trial"]
        lost: list[object] = []
        with engine.begin() as old_owner:
            finished = sa.update(attempts).where(attempts.c.id == begun.attempt_id).values(status="finished")
            old_owner.execute(finished)
            completed = sa.update(trials).where(trials.c.uuid == begun.uuid).values(status="completed")
            old_owner.execute(completed)
            thread = threading.Thread(target=lambda: lost.extend(store.reconcile(study.id)))
            thread.start()
            thread.join(0.5)
            assert thread.is_alive(), "reconcile did not wait for the open transaction"
        thread.join(60)
        assert not thread.is_alive()
        assert lost == []
        status = sa.select(trials.c.status).where(trials.c.uuid == begun.uuid)
        assert transact(engine, lambda connection: connection.scalar(status)) == "completed"
        engine.dispose()


# lrsearch db


def test_a_check_finds_what_is_wrong_and_what_a_kill_left(server: Server, url: str) -> None:
    with open_store(url) as store:
        _fill(store, url)
        killed = held_study(store, "killed", "elsewhere:1:1:1")
        store.begin_trials(killed.id, [Claim("grid", 0, CYCLE)], owner="elsewhere:1:1:1", versions=VERSIONS)[0]
        finish(store, begin(store, held_study(store, "unseen")))
    found = check_database(url)
    assert (found.studies, found.trials, found.faults) == (3, 6, [])
    assert found.notes == ["the dashboard's tables lack 1 ended trials; `lrsearch db check --mend` writes them"]
    mend_view(url)
    engine = make_engine(parse_url(url))
    attempts, trials, studies = (metadata.tables[f"lrsearch_{name}"] for name in ("attempt", "trial", "study"))

    def break_it(connection: sa.Connection) -> None:
        connection.execute(sa.update(studies).values(lease_expires_at=sa.func.now()))
        connection.execute(sa.update(attempts).where(attempts.c.id == 1).values(status="lost"))
        connection.execute(sa.update(trials).where(trials.c.id == 2).values(number=9))

    transact(writer(engine), break_it)
    engine.dispose()
    broken = check_database(url)
    assert [note.split(" was left")[0] for note in broken.notes] == ["killed version 1, grid, seed 0, trial 0"]
    assert broken.faults == [
        "digits version 1, clr, seed 0, trial 0 is completed with 0 finished attempts",
        "digits version 1, clr, seed 0 has 2 trials, numbered to 9",
    ]


def test_a_copy_can_be_restored(server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{server.programs}:{os.environ['PATH']}")
    with open_store(url) as store:
        expected = _fill(store, url)
    copy = back_up(url, tmp_path / "copy.dump")
    other = server.new_database()
    address = other.replace(f":{PASSWORD}", "")
    restore = ["pg_restore", "--no-owner", "--exit-on-error", f"--dbname={address}", str(copy)]
    subprocess.run(restore, env={**os.environ, "PGPASSWORD": PASSWORD}, check=True)
    with open_store(other, must_exist=True) as store:
        assert store.record("digits") == expected
    assert check_database(other).faults == []
    server.stop("fast")
    with pytest.raises(StorageError, match=r"pg_dump could not copy .*refused") as caught:
        back_up(url, tmp_path / "none.dump")
    server.start()
    assert PASSWORD not in str(caught.value)
    assert not (tmp_path / "none.dump").exists()


# Outages


def _away(server: Server, how: str) -> None:
    server.kill() if how == "kill" else server.stop(how)


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_all_who_write_wait_for_a_server_that_is_away_and_one_line_says_so(server: Server, url: str, how: str) -> None:
    with open_store(url) as store:
        said: list[str] = []
        back = threading.Timer(3.0, server.start)

        def tell(text: str) -> None:
            said.append(text)
            if len(said) == 1:
                back.start()

        store.absence.tell = tell
        study = held_study(store)
        begun = begin(store, study)
        mirror = OptunaMirror(url)
        record = store.record("digits")
        mirror.publish(record, record.trials)

        left = time.monotonic()
        _away(server, how)
        beat = threading.Thread(target=store.heartbeat, args=([Beat(begun.attempt_id, begun.token, points(2))],))
        beat.start()
        live = {begun.uuid: points(2)}
        mirror.publish(record, record.trials, live)
        beat.join(120)
        back.join(120)
        assert not beat.is_alive()
        began, ended = said
        assert began.startswith("The database does not answer (")
        assert ended.startswith("Database away for ")
        assert 2.5 < float(ended.split()[3]) < time.monotonic() - left + 0.05, "told with one decimal"
        assert PASSWORD not in began

        finish(store, begun)
        _away(server, how)
        server.start()
        record = store.record("digits")
        mirror.publish(record, record.trials)
        mirror.close()
    assert [(trial.status, len(trial.attempts)) for trial in record.trials] == [("completed", 1)]
    storage = optuna.storages.RDBStorage(parse_url(url).render_as_string(hide_password=False))
    [shown] = optuna.load_study(study_name="digits/grid/0", storage=storage).trials
    assert (shown.state.name, sorted(shown.intermediate_values)) == ("COMPLETE", [32, 64, 96])
    storage.remove_session()
    storage.engine.dispose()


@pytest.fixture
def cutter(server: Server) -> Iterator[CommitCutter]:
    proxy = CommitCutter(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def cut_url(server: Server, url: str, cutter: CommitCutter) -> str:
    """The database, reached through the cutter."""
    return url.replace(f":{server.port}/", f":{cutter.port}/")


def test_a_commit_whose_answer_was_lost_is_not_repeated(cut_url: str, cutter: CommitCutter) -> None:
    """Every unit of work of a study's life, each with the answer to its COMMIT cut off."""
    with open_store(cut_url) as store:

        def cut(unit: Callable[..., T], *arguments: Any, nth: int = 1, **named: Any) -> T:
            before = cutter.cuts
            cutter.cut(nth)
            done = unit(*arguments, **named)
            assert cutter.cuts == before + 1
            return done

        study = cut(store.create_study, "digits", CONFIG, "a")
        cut(store.set_facts, study.id, FACTS)
        cut(store.acquire, study.id, OWNER, 60.0)
        begun = cut(begin, store, study)
        cut(store.heartbeat, [Beat(begun.attempt_id, begun.token, points(2), {"train": 0.25})])
        cut(store.interrupt_attempt, begun.attempt_id, begun.token, 0.5)
        [again] = cut(store.begin_trials, study.id, [begun.uuid], owner=OWNER, versions=VERSIONS)
        cut(store.finish_attempts, [End(again.attempt_id, again.token, result(again.uuid))])
        cut(store.settle, again.attempt_id, 0.125, nth=2)  # the first one ends its reading
        left = cut(begin, store, study)
        cut(store.reconcile, study.id)
        cut(store.add_event, study.id, "run", {"held_seconds": 1.0})
        cut(store.note_failure, study.id, "worn out")
        cut(store.finish_study, study.id, OWNER)
        cut(store.release, study.id, OWNER)
        record = store.record("digits")
    assert [(trial.number, trial.status) for trial in record.trials] == [(0, "completed"), (1, "planned")]
    assert record.trials[1].uuid == left.uuid
    assert [a.status for a in record.trials[0].attempts] == ["interrupted", "finished"]
    assert [a.status for a in record.trials[1].attempts] == ["lost"]
    assert record.trials[0].attempts[1].phase_seconds["idle"] == 0.05 + 0.125
    assert record.trials[0].result is not None
    assert record.trials[0].result.curve == points()
    assert [event.kind for event in record.events] == ["attempts_lost", "run", "failed"]
    assert record.finished


def test_the_view_is_whole_whichever_answer_was_lost(url: str, cut_url: str, cutter: CommitCutter) -> None:
    with open_store(cut_url) as store:
        study = held_study(store)
        mirror = OptunaMirror(cut_url)
        for nth in range(1, 12):
            begun = begin(store, study)
            record = store.record("digits")
            cutter.cut(nth)
            mirror.publish(record, record.trials, {begun.uuid: points(2)})
            finish(store, begun)
            record = store.record("digits")
            mirror.publish(record, record.trials)
        assert cutter.cuts >= 9
    mirror.close()
    storage = optuna.storages.RDBStorage(parse_url(url).render_as_string(hide_password=False))
    shown = optuna.load_study(study_name="digits/grid/0", storage=storage).trials
    assert [trial.state.name for trial in shown] == ["COMPLETE"] * 11
    assert [trial.user_attrs["uuid"] for trial in shown] == [trial.uuid for trial in record.trials]
    assert all(sorted(trial.intermediate_values) == [32, 64, 96] for trial in shown)
    storage.remove_session()
    storage.engine.dispose()


def test_a_wrong_password_is_told_at_once_and_not_shown(server: Server, url: str) -> None:
    with pytest.raises(StorageError, match=r"password authentication failed.*PASSWORD_FILE") as caught:
        open_store(url.replace(PASSWORD, "marker-wrong"))
    assert "marker" not in str(caught.value)


@pytest.mark.parametrize("name", ["statement_timeout", "lock_timeout", "transaction_timeout"])
def test_a_timeout_that_a_database_has_ends_no_study(server: Server, url: str, name: str) -> None:
    if name == "transaction_timeout" and server.major < 17:
        pytest.skip("came with PostgreSQL 17")
    server.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET {name} = '50ms'")
    with open_store(url) as store:
        study = held_study(store)
        engine = writer(make_engine(parse_url(url)))
        with engine.connect() as other:
            other.execute(sa.select(metadata.tables["lrsearch_study"]).with_for_update())
            late = threading.Timer(0.2, other.rollback)
            late.start()
            begun = begin(store, study)
            late.join()
        engine.dispose()
        record = store.record("digits")
        mirror = OptunaMirror(url)
        with mirror._storage.engine.connect() as connection:
            assert connection.exec_driver_sql(f"SHOW {name}").scalar() == "0"
        mirror.publish(record, record.trials)
        mirror.close()
    assert [trial.uuid for trial in record.trials] == [begun.uuid]


def test_a_statement_that_somebody_cancels_is_repeated(server: Server, url: str) -> None:
    with open_store(url) as store:
        study = held_study(store)
        engine = writer(make_engine(parse_url(url)))
        waiting = "FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        with engine.connect() as other, engine.connect() as third:
            other.execute(sa.select(metadata.tables["lrsearch_study"]).with_for_update())
            begins = threading.Thread(target=begin, args=(store, study))
            begins.start()
            while not third.exec_driver_sql(f"SELECT pg_cancel_backend(pid) {waiting}").all():
                third.commit()
            other.rollback()
            begins.join(60)
        engine.dispose()
        assert len(store.record("digits").trials) == 1


def test_a_client_that_vanished_holds_its_locks_for_a_minute_at_most(url: str) -> None:
    engine = make_engine(parse_url(url))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == "1min"
    engine.dispose()
