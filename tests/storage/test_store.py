"""The ledger: nothing lost, nothing twice, every second charged."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lrsearch.analysis import StudySummary, summarise
from lrsearch.analysis.table import Cell, columns, row_cells
from lrsearch.errors import StorageError, StudyBusyError, UnknownNameError, UsageError
from lrsearch.storage import engine as engine_module
from lrsearch.storage import statements
from lrsearch.storage import store as store_module
from lrsearch.storage.engine import make_engine, parse_url, writer
from lrsearch.storage.owner import this_owner
from lrsearch.storage.schema import attempt, curve_point, event, phase, study, trial
from lrsearch.storage.store import Beat, Begun, Claim, End, Store, open_store
from lrsearch.storage.upkeep import Lease
from lrsearch.trial import Bills, StudyRecord, TrialRecord
from tests.records import make_record, some
from tests.storage.bulk import write_record
from tests.storage.samples import (
    CONFIG,
    CONSTANT,
    CPU,
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


@pytest.fixture
def engine(store: Store, url: str) -> Iterator[sa.Engine]:
    """A second way into the database: for what tests ask and change behind the ledger's back."""
    engine = make_engine(parse_url(url))
    yield engine
    engine.dispose()


def _execute(engine: sa.Engine, statement: sa.Executable) -> list[Any]:
    with writer(engine).begin() as connection:
        found = connection.execute(statement)
        return list(found) if found.returns_rows else []


def _count(engine: sa.Engine, table: sa.Table) -> int:
    return int(_execute(engine, sa.select(sa.func.count()).select_from(table))[0][0])


def test_a_database_in_a_folder_that_one_cannot_write_to_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'a 100%.db'}"
    with open_store(url) as store:
        study_id = store.create_study("small", CONFIG, "f").id
    tmp_path.chmod(0o555)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write all the same
    try:
        with open_store(url, must_exist=True) as store:
            assert [one.name for one in store.studies()] == ["small"]
            with pytest.raises(StorageError, match="cannot be written: attempt to write a readonly database"):
                store.add_event(study_id, "new", {})
            assert len(list(tmp_path.iterdir())) == 1, "no file of SQLite's own stands beside it"
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("put_another", [False, True])
def test_nothing_is_written_where_the_file_was_deleted_or_replaced_and_elsewhere_it_goes_on(
    put_another: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with open_store("sqlite:///a.db") as store:
        assert store.sqlite_file == tmp_path / "a.db"
        study_id = store.create_study("small", CONFIG, "f").id
        monkeypatch.chdir("elsewhere")
        store.add_event(study_id, "still the same file", {})
        for file in tmp_path.glob("a.db*"):
            file.rename(tmp_path / "elsewhere" / file.name)
        if put_another:
            (tmp_path / "a.db").touch()
        with pytest.raises(StorageError, match=r"a\.db was moved, deleted or replaced while it was in use"):
            store.add_event(study_id, "lost", {})


def _only(record: StudyRecord) -> TrialRecord:
    [trial] = record.trials
    return trial


@contextmanager
def _counted(store: Store) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            statements.append(statement)

    sa.event.listen(store._reader, "before_cursor_execute", note)
    yield statements
    sa.event.remove(store._reader, "before_cursor_execute", note)


@contextmanager
def _answer_of_commit_lost(store: Store) -> Iterator[list[int]]:
    """The next commit happens, but the client hears that the connection broke."""
    lost: list[int] = []

    def commit(connection: sa.Connection) -> None:
        if not lost:
            lost.append(1)
            connection.connection.commit()
            broken = sa.exc.OperationalError("COMMIT", None, Exception("gone"), connection_invalidated=True)
            raise broken

    sa.event.listen(store._writer, "commit", commit)
    yield lost
    sa.event.remove(store._writer, "commit", commit)


class TestStudies:
    def test_a_study_comes_back_as_it_was_stored(self, store: Store) -> None:
        created = store.create_study("digits", CONFIG, "abc")
        store.set_facts(created.id, FACTS)
        found = store.find_study("digits")
        assert found == replace(created, facts=FACTS)
        assert found is not None
        assert (found.name, found.version, found.config, found.fingerprint, found.finished) == (
            "digits",
            1,
            CONFIG,
            "abc",
            False,
        )
        assert list(found.config["strategies"]) == ["grid", "clr", "default"]
        assert store.find_study("other") is None

    def test_a_second_version_stands_beside_the_first(self, store: Store) -> None:
        first, second = (store.create_study("digits", CONFIG, mark) for mark in "ab")
        assert (first.version, second.version) == (1, 2)
        assert store.find_study("digits") == second
        assert store.find_study("digits", 1) == first
        assert store.find_study("digits", 3) is None

    def test_a_version_that_another_process_began_meanwhile_is_not_followed_by_a_second_one(self, store: Store) -> None:
        store.create_study("digits", CONFIG, "a", after=0)
        with pytest.raises(StudyBusyError, match="version 1 of study 'digits'"):
            store.create_study("digits", CONFIG, "a", after=0)
        assert store.create_study("digits", CONFIG, "a", after=1).version == 2

    def test_an_extension_opens_the_study_again_and_keeps_the_old_file(self, store: Store) -> None:
        first = store.create_study("digits", CONFIG, "a")
        store.acquire(first.id, OWNER, 60.0)
        store.finish_study(first.id, OWNER)
        assert store.record("digits").finished
        extended = store.extend_study(first.id, {**CONFIG, "seeds": [0, 1, 2]}, "b")
        assert (extended.config["seeds"], extended.fingerprint, extended.finished) == ([0, 1, 2], "b", False)
        [event] = store.record("digits").events
        assert (event.kind, event.data) == ("extended", {"config": CONFIG, "fingerprint": "a"})

    def test_an_event_keeps_its_time_in_utc(self, store: Store) -> None:
        row = store.create_study("digits", CONFIG, "a")
        store.add_event(row.id, "run", {"held_seconds": 1 / 3, "unknown": math.nan})
        [event] = store.record("digits").events
        assert event.data == {"held_seconds": 1 / 3, "unknown": None}
        assert event.at.tzinfo is UTC
        assert abs(datetime.now(UTC) - event.at) < timedelta(seconds=60)

    def test_finishing_twice_keeps_the_first_time(self, store: Store, engine: sa.Engine) -> None:
        row = held_study(store)
        store.finish_study(row.id, OWNER)
        first = _execute(engine, sa.select(study.c.finished_at))
        store.finish_study(row.id, OWNER)
        assert _execute(engine, sa.select(study.c.finished_at)) == first

    def test_an_unknown_study_lists_the_known_ones(self, store: Store) -> None:
        with pytest.raises(StorageError, match="holds no study yet"):
            store.record("digits")
        store.create_study("digits", CONFIG, "a")
        with pytest.raises(UnknownNameError, match=r"study 'digit'; known: digits\. Did you mean 'digits'\?"):
            store.record("digit")
        with pytest.raises(UsageError, match=r"Study 'digits' has no version 7; it has 1\."):
            store.record("digits", 7)

    def test_the_list_of_studies_counts_trials_and_charged_seconds(self, store: Store) -> None:
        row = held_study(store)
        finish(store, begin(store, row))
        finish(store, begin(store, row), "diverged")
        begin(store, row)
        held_study(store, "empty")
        digits, empty = store.studies()
        assert (digits.name, digits.version, digits.finished) == ("digits", 1, False)
        assert digits.trials == {"completed": 1, "diverged": 1, "running": 1}
        # setup + train + evaluate + idle of each; the test evaluation is not charged
        assert digits.charged_device_seconds == pytest.approx(2 * (0.1 + 1 / 3 + 0.2 + 0.05))
        assert (empty.trials, empty.charged_device_seconds) == ({}, 0.0)


def _given(bills: Bills | None, uuid: str, attempt: int) -> Bills | None:
    return bills


class TestLease:
    def test_a_live_holder_keeps_others_out(self, store: Store) -> None:
        row = held_study(store, owner=this_owner())
        host, pid, *_ = this_owner().split(":")
        with pytest.raises(StudyBusyError, match=f"'digits' is being run by process {pid} on {host}"):
            store.acquire(row.id, "elsewhere:2:2:2", 60.0)
        store.acquire(row.id, this_owner(), 60.0)

    def test_a_released_study_is_free_and_only_the_holder_releases_it(self, store: Store) -> None:
        row = held_study(store)
        store.release(row.id, "elsewhere:2:2:2")
        with pytest.raises(StudyBusyError):
            store.acquire(row.id, "elsewhere:2:2:2", 60.0)
        store.release(row.id, OWNER)
        store.acquire(row.id, "elsewhere:2:2:2", 60.0)

    def test_a_lease_that_ran_out_passes_on(self, store: Store) -> None:
        row = store.create_study("digits", CONFIG, "a")
        store.acquire(row.id, OWNER, 0.0)
        store.acquire(row.id, "elsewhere:2:2:2", 60.0)
        with pytest.raises(StudyBusyError, match="process 2 on elsewhere"):
            store.acquire(row.id, OWNER, 60.0)

    def test_a_lease_that_another_process_had_meanwhile_is_lost_also_when_that_has_ended(self, store: Store) -> None:
        """Else its old holder would go on by what it remembers, and run again what the other one has run."""
        row = store.create_study("digits", CONFIG, "a")
        lease = Lease(store, row.id, print)
        lease.owner = OWNER  # that of a process elsewhere
        lease.take()
        lease._renew()
        lease.check()
        store.release(row.id, OWNER)  # as if it had run out
        for _ in range(2):
            lease._renew()
            with pytest.raises(StudyBusyError, match="'digits' was taken over by another process"):
                lease.check()
        with pytest.raises(StudyBusyError, match="fenced off: study 'digits' has no holder"):
            begin(store, row)

    def test_whoever_waits_learns_of_a_failure_since_then_and_of_none_before(self, store: Store) -> None:
        row = store.create_study("digits", CONFIG, "a")

        def hold_and_wait(owner: str) -> int:
            store.acquire(row.id, owner, 60.0)
            with pytest.raises(StudyBusyError) as busy:
                store.acquire(row.id, "elsewhere:2:2:2", 60.0)
            return busy.value.turn

        first = hold_and_wait(OWNER)
        assert store.failure_since(row.id, first) is None
        store.note_failure(row.id, "worn out")
        store.release(row.id, OWNER)
        assert store.failure_since(row.id, first) == "worn out"
        second = hold_and_wait(OWNER)
        assert store.failure_since(row.id, second) is None, "that was before"
        assert store.failure_since(row.id, first) == "worn out"

    def test_books_that_are_looked_through_beside_trials_hold_them_up_only_shortly(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine_module, "BUSY_SECONDS", 0.01)
        monkeypatch.setattr(store_module, "BESIDE_SECONDS", 0.1)
        with (
            open_store(f"sqlite:///{tmp_path / 'x.db'}") as store,
            closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)) as other,
        ):
            row = held_study(store)
            other.execute("BEGIN IMMEDIATE")
            released = threading.Timer(0.3, other.rollback)
            released.start()
            with pytest.raises(StorageError, match="stayed locked"):
                store.reconcile(row.id, alive=())
            assert store.reconcile(row.id) == []
            released.join()

    def test_a_clock_that_is_set_takes_no_study_from_a_process_that_lives_here(self, store: Store) -> None:
        row = store.create_study("digits", CONFIG, "a")
        store.acquire(row.id, this_owner(), 0.0)
        with pytest.raises(StudyBusyError, match="is being run by process"):
            store.acquire(row.id, "elsewhere:2:2:2", 60.0)

    def test_a_dead_process_of_this_machine_gives_way_at_once(self, store: Store) -> None:
        host, _, start, namespace = this_owner().rsplit(":", 3)
        row = held_study(store, owner=f"{host}:{2**22 + 1}:{start}:{namespace}")
        store.acquire(row.id, this_owner(), 60.0)

    def test_the_token_counts_holders(self, store: Store, engine: sa.Engine) -> None:
        row = held_study(store)
        store.acquire(row.id, OWNER, 60.0)
        assert _execute(engine, sa.select(study.c.token)) == [(1,)]
        store.release(row.id, OWNER)
        store.acquire(row.id, "elsewhere:2:2:2", 60.0)
        assert _execute(engine, sa.select(study.c.token)) == [(2,)]

    def test_who_lost_the_study_begins_nothing_more(self, store: Store, engine: sa.Engine) -> None:
        row = held_study(store)
        store.release(row.id, OWNER)
        with pytest.raises(StudyBusyError, match="fenced off: study 'digits' has no holder"):
            begin(store, row)
        store.acquire(row.id, "elsewhere:2:2:2", 60.0)
        with pytest.raises(StudyBusyError, match="fenced off: study 'digits' is held by process 2 on elsewhere"):
            begin(store, row)
        assert _count(engine, trial) == 0

    def test_who_lost_the_study_does_not_finish_it_either(self, store: Store) -> None:
        """Its new holder may have extended it: what that has still to run would never run."""
        row = store.create_study("digits", CONFIG, "a")
        store.acquire(row.id, OWNER, 0.0)
        store.acquire(row.id, "elsewhere:2:2:2", 60.0)
        store.extend_study(row.id, {**CONFIG, "seeds": [0, 1, 2]}, "b")
        with pytest.raises(StudyBusyError, match="fenced off: study 'digits' is held by process 2 on elsewhere"):
            store.finish_study(row.id, OWNER)
        assert not store.record("digits").finished

    def test_each_sign_of_life_prolongs_the_leases(self, store: Store, engine: sa.Engine) -> None:
        row = held_study(store)
        begun = begin(store, row)
        past = datetime.now(UTC) - timedelta(hours=1)
        _execute(engine, sa.update(study).values(lease_expires_at=past))
        _execute(engine, sa.update(attempt).values(lease_expires_at=past))
        store.heartbeat([Beat(begun.attempt_id, begun.token, [], {})])
        for column in (study.c.lease_expires_at, attempt.c.lease_expires_at):
            [(expires_at,)] = _execute(engine, sa.select(column))
            assert 50 < (expires_at - datetime.now(UTC)).total_seconds() <= 60


class TestTrials:
    def test_trials_are_numbered_within_their_search(self, store: Store) -> None:
        row = held_study(store)
        numbers = [
            begin(store, row, strategy=way, seed=seed).number
            for way, seed in [("grid", 0), ("grid", 0), ("clr", 0), ("grid", 1)]
        ]
        assert numbers == [0, 1, 0, 0]

    def test_the_plan_is_stored_before_the_work(self, store: Store) -> None:
        row = held_study(store)
        begun = begin(store, row, CYCLE)
        planned = _only(store.record("digits"))
        assert (planned.uuid, planned.status, planned.proposal, planned.result) == (begun.uuid, "running", CYCLE, None)
        [attempt] = planned.attempts
        assert (attempt.number, attempt.status, attempt.owner, attempt.versions) == (1, "running", OWNER, VERSIONS)
        assert attempt.finished_at is None

    @pytest.mark.parametrize("status", ["completed", "diverged", "pruned", "failed"])
    def test_a_result_comes_back_as_it_was_finished(self, store: Store, status: Any) -> None:
        row = held_study(store)
        begun = begin(store, row)
        done = replace(
            result(begun.uuid, status), diverged_step=7, gang_size=2, error="boom", traceback="line 1\nline 2: boom"
        )
        store.finish_attempts([End(begun.attempt_id, begun.token, done, None)])
        record = _only(store.record("digits"))
        assert record.result == done
        assert (record.status, record.attempts[0].status, record.attempts[0].device) == (status, "finished", CPU)
        assert store.trial_record(begun.uuid) == record

    def test_a_range_test_comes_back_with_its_rungs_and_its_verdict(self, store: Store) -> None:
        row = held_study(store)
        begun = begin(store, row, RANGE_TEST, "clr")
        done = range_test_result(begun.uuid)
        store.finish_attempts(
            [End(begun.attempt_id, begun.token, done, {"status": "ok", "max_lr": 0.5, "gain": math.inf})]
        )
        record = _only(store.record("digits"))
        assert (record.proposal, record.result) == (RANGE_TEST, done)
        assert store.trial_record(begun.uuid).verdict == {"status": "ok", "max_lr": 0.5, "gain": None}

    def test_a_loss_that_is_not_finite_is_stored_as_null(self, store: Store) -> None:
        row = held_study(store)
        begun = begin(store, row)
        [*_, last] = points()
        broken = replace(last, train_loss=math.inf, validation_loss=math.nan)
        done = replace(result(begun.uuid, "diverged"), validation_loss=math.nan, curve=(broken,))
        store.finish_attempts([End(begun.attempt_id, begun.token, done, None)])
        stored = _only(store.record("digits")).result
        assert stored == replace(
            done, validation_loss=None, curve=(replace(last, train_loss=None, validation_loss=None),)
        )

    def test_points_that_beat_already_are_not_doubled(self, store: Store, engine: sa.Engine) -> None:
        row = held_study(store)
        begun = begin(store, row)
        one, two, three = points()
        store.heartbeat([Beat(begun.attempt_id, begun.token, [one], {"train": 1.0})])
        store.heartbeat([Beat(begun.attempt_id, begun.token, [one, two], {"train": 2.0})])
        assert _count(engine, curve_point) == 2
        [(seconds,)] = _execute(engine, sa.select(phase.c.seconds).where(phase.c.name == "train"))
        assert seconds == 2.0
        done = finish(store, begun)
        assert _only(store.record("digits")).result == done
        assert _count(engine, curve_point) == 3
        assert three in done.curve

    def test_idle_seconds_go_to_the_attempt_that_they_followed(self, store: Store) -> None:
        row = held_study(store)
        first = begin(store, row)
        finish(store, first)
        second = store.begin_trials(
            row.id, [Claim("grid", 0, CONSTANT)], owner=OWNER, versions=VERSIONS, settle=(first.attempt_id, 0.25)
        )[0]
        finish(store, second)
        store.settle(second.attempt_id, 1.0)
        idle = [trial.phase_seconds["idle"] for trial in store.record("digits").trials]
        assert idle == pytest.approx([0.05 + 0.25, 0.05 + 1.0])

    def test_trials_are_ordered_by_seed_then_as_in_the_file(self, store: Store) -> None:
        row = held_study(store)
        for seed, way in [(1, "grid"), (0, "default"), (0, "clr"), (0, "grid"), (0, "grid"), (1, "clr")]:
            begin(store, row, strategy=way, seed=seed)
        order = [(t.seed, t.strategy, t.number) for t in store.record("digits").trials]
        assert order == [
            (0, "grid", 0),
            (0, "grid", 1),
            (0, "clr", 0),
            (0, "default", 0),
            (1, "grid", 0),
            (1, "clr", 0),
        ]

    def test_the_statements_of_each_unit_do_not_grow_with_the_study(self, store: Store) -> None:
        row = held_study(store)
        counts = []
        for _ in range(2):
            with _counted(store) as statements:
                finish(store, begin(store, row))
                store.record("digits")
                store.studies()
            counts.append(len(statements))
            for _ in range(20):
                finish(store, begin(store, row))
        with _counted(store) as statements:
            finish(store, begin(store, row))
            store.record("digits")
            store.studies()
        assert counts[1] == len(statements)
        assert counts[0] - counts[1] == 1  # the first trial inserts its search


class TestFaults:
    def test_attempts_begin_and_end_by_the_databases_clock(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        there = datetime(2031, 5, 6, 7, 8, tzinfo=UTC)
        for module in (store_module, statements):
            monkeypatch.setattr(module, "database_now", lambda connection: there)
        study = held_study(store)
        finish(store, begin(store, study))
        cut = begin(store, study)
        store.interrupt_attempt(cut.attempt_id, cut.token, 0.5)
        begin(store, study)
        store.reconcile(study.id)
        attempts = [one for trial in store.record("digits").trials for one in trial.attempts]
        assert [one.status for one in attempts] == ["finished", "interrupted", "lost"]
        assert {at for one in attempts for at in (one.started_at, one.finished_at)} == {there}

    def test_a_wrong_token_is_fenced_off(self, store: Store) -> None:
        row = held_study(store)
        begun = begin(store, row)
        with pytest.raises(StudyBusyError, match="fenced off"):
            store.finish_attempts([End(begun.attempt_id, "not mine", result(begun.uuid), None)])
        with pytest.raises(StudyBusyError, match="fenced off"):
            store.heartbeat([Beat(begun.attempt_id, "not mine", points(), {})])
        with pytest.raises(StudyBusyError, match="fenced off"):
            store.interrupt_attempt(begun.attempt_id, "not mine", 0.0)
        assert _only(store.record("digits")).status == "running"

    def test_the_same_result_again_is_the_same_success(self, store: Store, engine: sa.Engine) -> None:
        row = held_study(store)
        begun = begin(store, row)
        done = finish(store, begun)
        store.settle(begun.attempt_id, 1.0)
        before = store.record("digits")
        store.finish_attempts([End(begun.attempt_id, begun.token, done, None)])
        assert store.record("digits") == before
        with pytest.raises(StudyBusyError, match="fenced off"):
            finish(store, begun, metric=0.8)
        assert store.record("digits") == before

    def test_the_same_range_test_again_is_the_same_success(self, store: Store) -> None:
        row = held_study(store)
        begun = begin(store, row, RANGE_TEST, "clr")
        verdict = {"bounds": (0.1, math.inf)}
        for _ in range(2):
            store.finish_attempts([End(begun.attempt_id, begun.token, range_test_result(begun.uuid), verdict)])

    def test_an_interrupted_trial_is_planned_again_and_keeps_its_cost(self, store: Store) -> None:
        row = held_study(store)
        begun = begin(store, row)
        for _ in range(2):  # a repeated unit of work does nothing more
            store.interrupt_attempt(begun.attempt_id, begun.token, 1.5)
        record = _only(store.record("digits"))
        assert (record.status, record.result) == ("planned", None)
        [attempt] = record.attempts
        assert (attempt.status, attempt.estimated, attempt.core_seconds) == ("interrupted", False, None)
        assert attempt.phase_seconds == {"lost": 1.5}

        again = store.begin_trials(
            row.id, [begun.uuid], owner=OWNER, versions=VERSIONS, settle=(begun.attempt_id, 0.5)
        )[0]
        assert (again.uuid, again.number) == (begun.uuid, begun.number)
        finish(store, again)
        record = _only(store.record("digits"))
        assert [attempt.number for attempt in record.attempts] == [1, 2]
        assert record.charged_device_seconds == pytest.approx(1.5 + 0.5 + (0.1 + 1 / 3 + 0.2 + 0.05))

    def test_only_a_planned_trial_is_begun_again(self, store: Store) -> None:
        row = held_study(store)
        begun = begin(store, row)
        with pytest.raises(StorageError, match=r"Only a planned trial .* is running"):
            store.begin_trials(row.id, [begun.uuid], owner=OWNER, versions=VERSIONS)[0]

    def test_a_clock_that_is_set_changes_no_cost(self, store: Store, engine: sa.Engine) -> None:
        """The seconds so far come with each heartbeat, from a clock that only goes forward."""
        row = held_study(store)
        for hours, checkpointed in ((1, None), (-1, None), (1, Bills({"train": 2.0, "data": 1.0}))):
            begun = begin(store, row)
            store.heartbeat([Beat(begun.attempt_id, begun.token, [], {"lost": 2.5})])
            store.heartbeat([Beat(begun.attempt_id, begun.token, [], {"lost": 3.5})])
            _execute(engine, sa.update(attempt).values(heartbeat_at=datetime.now(UTC) + timedelta(hours=hours)))
            [lost] = store.reconcile(row.id, partial(_given, checkpointed))
            assert lost.seconds == 3.5 - (1.0 if checkpointed else 0.0)

    @pytest.mark.parametrize("killed", [True, False])
    def test_what_a_checkpoint_keeps_stays_on_both_bills(self, store: Store, *, killed: bool) -> None:
        """A trial that trained beside others: 2 of its 5 seconds are after its checkpoint."""
        row = held_study(store)
        begun = begin(store, row)
        kept = Bills({"train": 24.0, "data": 0.5, "idle": 0.25}, {"train": 2.25, "data": 0.5})
        if killed:
            store.heartbeat([Beat(begun.attempt_id, begun.token, [], {"lost": 5.0})])
            [lost] = store.reconcile(row.id, partial(_given, kept))
            assert lost.seconds == 4.5
        else:
            store.interrupt_attempt(begun.attempt_id, begun.token, 5.0, kept=kept)
        [attempt] = _only(store.record("digits")).attempts
        assert attempt.phase_seconds == {"train": 24.0, "data": 0.5, "idle": 0.25, "lost": 2.0}
        assert (attempt.charged_device_seconds, attempt.billed_seconds) == (26.25, 5.0)
        assert attempt.billed_device_seconds == 4.5

    def test_attempts_that_are_alive_or_whose_lease_holds_are_left_alone(self, store: Store, engine: sa.Engine) -> None:
        row = held_study(store)
        mine, fresh, stale = begin(store, row), begin(store, row), begin(store, row)
        past = datetime.now(UTC) - timedelta(hours=1)
        expired = sa.update(attempt).where(attempt.c.id.in_([mine.attempt_id, stale.attempt_id]))
        _execute(engine, expired.values(lease_expires_at=past))
        assert [lost.uuid for lost in store.reconcile(row.id, alive={mine.token})] == [stale.uuid]
        assert {lost.uuid for lost in store.reconcile(row.id)} == {mine.uuid, fresh.uuid}

    def test_a_killed_attempt_is_charged_up_to_its_last_heartbeat(self, store: Store, engine: sa.Engine) -> None:
        row = held_study(store)
        begun = begin(store, row)
        store.heartbeat([Beat(begun.attempt_id, begun.token, points(2), {"train": 3.0, "data": 2.0})])
        started_at = datetime.now(UTC)
        times = {"started_at": started_at, "heartbeat_at": started_at + timedelta(seconds=9)}
        _execute(engine, sa.update(attempt).values(**times))

        [lost] = store.reconcile(row.id)
        assert (lost.uuid, lost.strategy, lost.seed, lost.number, lost.attempt) == (begun.uuid, "grid", 0, 0, 1)
        assert lost.seconds == pytest.approx(9 - 2)  # the decoding of data is shown apart
        assert str(lost) == "grid, seed 0, trial 0 (attempt 1, 7.0 s)"
        record = _only(store.record("digits"))
        assert record.status == "planned"
        [attempt_record] = record.attempts
        assert (attempt_record.status, attempt_record.estimated, attempt_record.core_seconds) == ("lost", True, None)
        assert attempt_record.phase_seconds == pytest.approx({"data": 2.0, "lost": 7.0})
        assert [event.kind for event in store.record("digits").events] == ["attempts_lost"]
        assert store.reconcile(row.id) == []

    def test_reported_seconds_count_when_they_are_more_than_the_clock_says(self, store: Store) -> None:
        row = held_study(store)
        begun = begin(store, row)
        store.heartbeat([Beat(begun.attempt_id, begun.token, [], {"setup": 1.0, "train": 30.0})])
        [lost] = store.reconcile(row.id)
        assert lost.seconds == 31.0

    def test_an_attempt_that_never_beat_is_closed_too(self, store: Store) -> None:
        row = held_study(store)
        begin(store, row)
        [lost] = store.reconcile(row.id)
        assert lost.seconds == 0.0

    def test_a_study_reconciles_its_own_attempts_only(self, store: Store) -> None:
        first, second = held_study(store), held_study(store, "other")
        begin(store, first)
        assert store.reconcile(second.id) == []

    def test_a_late_result_of_a_lost_attempt_changes_nothing(self, store: Store) -> None:
        row = held_study(store)
        late = begin(store, row)
        store.reconcile(row.id)
        with pytest.raises(StudyBusyError, match="fenced off: it was closed as 'lost'"):
            finish(store, late, metric=0.1)
        again = store.begin_trials(row.id, [late.uuid], owner=OWNER, versions=VERSIONS)[0]
        with pytest.raises(StudyBusyError, match="fenced off"):
            store.heartbeat([Beat(late.attempt_id, late.token, points(), {})])
        done = finish(store, again, metric=0.9)
        stored = _only(store.record("digits"))
        assert (stored.result, [a.status for a in stored.attempts]) == (done, ["lost", "finished"])

    def test_a_commit_whose_answer_was_lost_is_not_done_twice(self, store: Store, engine: sa.Engine) -> None:
        landed: list[int] = []
        with _answer_of_commit_lost(store) as lost:
            row = store.create_study("digits", CONFIG, "a")
        landed += lost
        store.acquire(row.id, OWNER, 60.0)
        with _answer_of_commit_lost(store) as lost:
            first = begin(store, row)
        landed += lost
        finish(store, first)
        with _answer_of_commit_lost(store) as lost:
            second = store.begin_trials(
                row.id, [Claim("grid", 0, CONSTANT)], owner=OWNER, versions=VERSIONS, settle=(first.attempt_id, 1.0)
            )[0]
        landed += lost
        with _answer_of_commit_lost(store) as lost:
            store.heartbeat([Beat(second.attempt_id, second.token, points(2), {"train": 1.0})])
        landed += lost
        with _answer_of_commit_lost(store) as lost:
            done = finish(store, second)
        landed += lost
        with _answer_of_commit_lost(store) as lost:
            store.settle(second.attempt_id, 2.0)
        landed += lost
        with _answer_of_commit_lost(store) as lost:
            store.add_event(row.id, "run", {})
        landed += lost
        with _answer_of_commit_lost(store) as lost:
            store.extend_study(row.id, CONFIG, "b")
        landed += lost
        assert landed == [1] * 8, "each fault must have struck"

        assert [_count(engine, table) for table in (study, trial, attempt, event)] == [1, 2, 2, 2]
        record = store.record("digits")
        assert [t.phase_seconds["idle"] for t in record.trials] == pytest.approx([1.05, 2.05])
        assert record.trials[1].result is not None
        assert record.trials[1].result.curve == done.curve

    def test_an_impossible_row_is_refused_and_nothing_of_its_unit_stays(self, store: Store, engine: sa.Engine) -> None:
        row = held_study(store)
        begun = begin(store, row)
        bad = replace(result(begun.uuid), phase_seconds={"train": 1.0, "coffee": 2.0})
        with pytest.raises(StorageError, match="refused: CHECK constraint failed"):
            store.finish_attempts([End(begun.attempt_id, begun.token, bad, None)])
        assert _only(store.record("digits")).status == "running"
        assert _count(engine, phase) == 0

    def test_a_locked_database_delays_the_ledger_but_loses_nothing(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine_module, "BUSY_SECONDS", 0.01)
        with open_store(url) as store:
            row = held_study(store)
            other = make_engine(parse_url(url))
            with writer(other).connect() as connection, connection.begin():
                found: list[Begun] = []
                thread = threading.Thread(target=lambda: found.append(begin(store, row)))
                thread.start()
                thread.join(0.2)
                assert found == []
            thread.join()
            other.dispose()
            assert [t.uuid for t in store.record("digits").trials] == [found[0].uuid]


def test_times_are_aware_and_naive_ones_are_refused(store: Store, engine: sa.Engine) -> None:
    row = held_study(store)
    finish(store, begin(store, row))
    [attempt_record] = _only(store.record("digits")).attempts
    assert attempt_record.finished_at is not None
    assert attempt_record.started_at.tzinfo is attempt_record.finished_at.tzinfo is UTC
    assert timedelta(0) <= attempt_record.finished_at - attempt_record.started_at < timedelta(seconds=60)
    with pytest.raises(sa.exc.StatementError, match="must be aware"):
        _execute(engine, sa.update(study).values(finished_at=datetime(2026, 1, 1)))  # noqa: DTZ001  that is the point


def test_hits_alone_cost_the_same_as_the_whole_record(tmp_path: Path) -> None:
    """Of a maximised and of a minimised metric; a study without a target needs no points at all."""
    record = make_record(seeds=[0, 1], failures=False)
    facts = replace(some(record.facts), higher_is_better=False)
    low = replace(record, facts=facts, config={**record.config, "target": {"metric": "accuracy", "value": 0.5}})
    for number, written in enumerate((record, low, make_record(seeds=[0], target=None, failures=False))):
        url = f"sqlite:///{tmp_path / f'{number}.db'}"
        write_record(url, written)
        with open_store(url) as store:
            whole, hits = store.record("digits"), store.record("digits", points="hits")
        assert ways_table(summarise(hits)) == ways_table(summarise(whole))
        points = [len(trial.result.curve) for trial in hits.trials if trial.result]
        assert max(points) == (0 if written.config["target"] is None else 1)


def ways_table(summary: StudySummary) -> list[list[Cell]]:
    return [row_cells(columns(summary), way) for way in summary.ways]
