"""The ledger: plans before work, attempts with leases and fencing tokens, results in one transaction.

Each study has one writer. Every public method is a unit of work that may be repeated after a commit whose answer was
lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Row

from lrsearch import faults
from lrsearch.errors import StorageError, StudyBusyError, UnknownNameError, UsageError
from lrsearch.storage.engine import (
    Absence,
    check_sqlite_file,
    database_now,
    display_url,
    make_engine,
    parse_url,
    reader,
    sqlite_path,
    transact,
    writer,
)
from lrsearch.storage.migrate import ensure_schema
from lrsearch.storage.reading import (
    Points,
    attempt_columns,
    facts_to_json,
    point_rows,
    read_study,
    read_trials,
    result_columns,
)
from lrsearch.storage.schema import attempt, curve_point, event, range_test_point, search, study, trial
from lrsearch.storage.statements import (
    Begun,
    LostAttempt,
    StudyRow,
    attempt_for_update,
    begun_with,
    charged_seconds_by_study,
    check_holder,
    check_token,
    close_attempt,
    close_lost,
    ended_but_not_shown,
    insert_attempt,
    insert_event,
    insert_rows,
    insert_trial,
    is_held,
    latest_study,
    one_at_a_time,
    phase_seconds_of,
    plan_again,
    renew_leases,
    replace_phases,
    replace_rows,
    result_is,
    running_again,
    set_phase,
    spoken,
    study_for_update,
    to_study_row,
    trial_counts,
)
from lrsearch.trial import Bills, CurvePoint, Proposal, StudyRecord, TrialRecord, TrialResult, WorkloadFacts

__all__ = [
    "Beat",
    "Begun",
    "Claim",
    "End",
    "LostAttempt",
    "Store",
    "StudyRow",
    "StudySummary",
    "open_store",
]

T = TypeVar("T")

BESIDE_SECONDS = 1.0
"""How long a unit of work that holds up others, and is done again later anyway, is repeated."""


@dataclass(frozen=True)
class StudySummary:
    """A line of `lrsearch ls`."""

    id: int
    name: str
    version: int
    created_at: datetime
    finished: bool
    trials: Mapping[str, int]
    """Number of trials by status; a status that none has is absent."""
    charged_device_seconds: float


@dataclass(frozen=True)
class Claim:
    """The next trial of a search."""

    strategy: str
    seed: int
    proposal: Proposal


@dataclass(frozen=True)
class Beat:
    """A sign of life of a running attempt."""

    attempt_id: int
    token: str
    points: Sequence[CurvePoint] = ()
    """Those that the ledger has already do no harm."""
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    """So far; phases that are not given keep what they have."""


@dataclass(frozen=True)
class End:
    """How an attempt ended."""

    attempt_id: int
    token: str
    result: TrialResult
    verdict: Mapping[str, Any] | None = None
    """Of a range test."""


def open_store(url: str, *, must_exist: bool = False, patience_seconds: float | None = None) -> Store:
    """Open the ledger at `url`, creating its tables where there are none; readers say `must_exist` and never do.

    `patience_seconds` is how long a database that is away is waited for (see `patiently`). Raises UsageError for a URL
    that is neither SQLite's nor PostgreSQL's, StorageError for a file or server that cannot be used or was written by
    an older lrsearch, and NewerSchemaError when a newer one has written it.
    """
    parsed = parse_url(url)
    path = sqlite_path(parsed)
    if path is not None:
        check_sqlite_file(path, must_exist=must_exist)
    engine = make_engine(parsed, may_write=not must_exist)
    try:
        ensure_schema(engine, create=not must_exist)
    except BaseException:
        engine.dispose()
        raise
    return Store(engine, patience_seconds)


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Return what tells a file from any other on this machine; None where there is none."""
    if path is None:
        return None
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


class Store:
    """The studies of one database. Safe to use from several threads; `close` it, or use it as a context manager."""

    def __init__(self, engine: Engine, patience_seconds: float | None = None) -> None:
        self._patience_seconds = patience_seconds
        self._reader = reader(engine)
        self._writer = writer(engine)
        path = sqlite_path(engine.url)
        self.sqlite_file = None if path is None else path.absolute()  # a study's own code may change the folder
        """The file that holds it; None on PostgreSQL."""
        self._identity = _identity(self.sqlite_file)
        self.absence = Absence()
        """Set its `tell` to hear of a database that is away."""
        self.turn: AbstractContextManager[object] = nullcontext() if self.sqlite_file is None else threading.RLock()
        """Held by a thread that writes to SQLite, where one waits for the other: whoever else writes there can wait."""

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.dispose()

    def _read(self, work: Callable[[Connection], T]) -> T:
        return transact(self._reader, work, self._patience_seconds, self.absence)

    def _write(self, work: Callable[[Connection], T], patience_seconds: float | None = None) -> T:
        with self.turn:
            if _identity(self.sqlite_file) != self._identity:
                raise StorageError(
                    f"{self.sqlite_file} was moved, deleted or replaced while it was in use, and what would be written "
                    "now would be lost. Put it back if you have it, then type the same command again."
                )
            patience = self._patience_seconds if patience_seconds is None else patience_seconds
            return transact(self._writer, work, patience, self.absence)

    # Studies

    def find_study(self, name: str, version: int | None = None) -> StudyRow | None:
        """Return that version of the study, by default the latest."""
        row = self._read(lambda connection: latest_study(connection, name, version))
        return None if row is None else to_study_row(row)

    def studies(self) -> list[StudySummary]:
        """Return all versions of all studies, oldest first, by three statements."""

        def work(connection: Connection) -> list[StudySummary]:
            studies = connection.execute(sa.select(study).order_by(study.c.id)).all()
            counts = trial_counts(connection)
            seconds = charged_seconds_by_study(connection)
            return [
                StudySummary(
                    row.id,
                    row.name,
                    row.version,
                    row.created_at,
                    row.finished_at is not None,
                    counts.get(row.id, {}),
                    seconds.get(row.id, 0.0),
                )
                for row in studies
            ]

        return self._read(work)

    def create_study(
        self, name: str, config: Mapping[str, Any], fingerprint: str, *, after: int | None = None
    ) -> StudyRow:
        """Store a new study, or the next version of the one that has this name.

        Raises StudyBusyError when the latest version is not `after` (0: there is none): another process was faster.
        """
        values = {
            "uuid": str(uuid4()),
            "name": name,
            "config": config,
            "fingerprint": fingerprint,
            "created_at": datetime.now(UTC),
            "token": 0,
        }

        def work(connection: Connection) -> Row[Any]:
            written = connection.execute(sa.select(study).where(study.c.uuid == values["uuid"])).one_or_none()
            if written is not None:
                return written
            one_at_a_time(connection)
            last = connection.scalar(sa.select(sa.func.max(study.c.version)).where(study.c.name == name)) or 0
            if after is not None and last != after:
                raise StudyBusyError(
                    f"Another process has just begun version {last} of study {name!r}; wait for it or stop it, "
                    "then try again."
                )
            connection.execute(sa.insert(study).values(**values, version=last + 1))
            return connection.execute(sa.select(study).where(study.c.uuid == values["uuid"])).one()

        return to_study_row(self._write(work))

    def extend_study(self, study_id: int, config: Mapping[str, Any], fingerprint: str) -> StudyRow:
        """Replace the study's file, keeping the old one in an event, and open the study again."""
        now = datetime.now(UTC)

        def work(connection: Connection) -> Row[Any]:
            before = study_for_update(connection, study_id)
            old = {"config": before.config, "fingerprint": before.fingerprint}
            insert_event(connection, study_id, now, "extended", old)
            values = {"config": config, "fingerprint": fingerprint, "finished_at": None}
            connection.execute(sa.update(study).where(study.c.id == study_id).values(**values))
            return study_for_update(connection, study_id)

        return to_study_row(self._write(work))

    def set_facts(self, study_id: int, facts: WorkloadFacts) -> None:
        stored = facts_to_json(facts)
        self._write(lambda c: c.execute(sa.update(study).where(study.c.id == study_id).values(facts=stored)))

    def add_event(self, study_id: int, kind: str, data: Mapping[str, Any]) -> None:
        now = datetime.now(UTC)
        self._write(lambda connection: insert_event(connection, study_id, now, kind, data))

    def note_failure(self, study_id: int, error: str) -> None:
        """Store why the study's holder gives it up."""
        now = datetime.now(UTC)

        def work(connection: Connection) -> None:
            turn = study_for_update(connection, study_id).token
            insert_event(connection, study_id, now, "failed", {"error": error, "turn": turn})

        self._write(work)

    def failure_since(self, study_id: int, turn: int) -> str | None:
        """Return why the last holder that gave the study up did so, if that was the one of this turn or a later one."""
        failures = sa.select(event.c.data).where(event.c.study_id == study_id, event.c.kind == "failed")
        last = self._read(lambda connection: connection.scalar(failures.order_by(event.c.id.desc()).limit(1)))
        return last["error"] if last is not None and last["turn"] >= turn else None

    def finish_study(self, study_id: int, owner: str) -> None:
        """Store that all is done. Raises StudyBusyError unless `owner` holds it: another one may have extended it."""
        statement = sa.update(study).where(study.c.id == study_id, study.c.finished_at.is_(None))
        now = datetime.now(UTC)

        def work(connection: Connection) -> None:
            check_holder(connection, study_id, owner)
            connection.execute(statement.values(finished_at=now))

        self._write(work)

    # The study's lease

    def acquire(self, study_id: int, owner: str, lease_seconds: float, *, renews: bool = False) -> None:
        """Take or renew the right to write to the study, for `lease_seconds` after each sign of life.

        It passes at once from a process of this machine that is dead, from any other one when its lease has run out. On
        SQLite, whose clock is the machine's own and may be set, never from one that lives here. Raises StudyBusyError,
        which names the holder; who only `renews` it also when another one had it meanwhile and has given it back.
        """

        def work(connection: Connection) -> None:
            row, now = study_for_update(connection, study_id), database_now(connection)
            if renews and row.owner is None:
                raise StudyBusyError(
                    f"Study {row.name!r} was taken over by another process, which has ended. Type the same command "
                    "again to go on."
                )
            if row.owner != owner and (renews or is_held(connection, row.owner, row.lease_expires_at, now)):
                busy = StudyBusyError(
                    f"Study {row.name!r} is being run by {spoken(row.owner)} (sign of life due by "
                    f"{row.lease_expires_at:%Y-%m-%d %H:%M:%S} UTC); wait for it or stop it, then try again."
                )
                busy.holder, busy.turn = spoken(row.owner), row.token
                raise busy
            values: dict[str, Any] = {"owner": owner, "lease_seconds": lease_seconds}
            if row.owner != owner:
                values["token"] = row.token + 1
            values["lease_expires_at"] = now + timedelta(seconds=lease_seconds)
            connection.execute(sa.update(study).where(study.c.id == study_id).values(**values))

        self._write(work)

    def release(self, study_id: int, owner: str) -> None:
        """Give the lease back; nothing happens when another process holds it by now."""
        statement = sa.update(study).where(study.c.id == study_id, study.c.owner == owner)
        self._write(lambda connection: connection.execute(statement.values(owner=None, lease_expires_at=None)))

    # Trials and attempts

    def begin_trials(
        self,
        study_id: int,
        claims: Sequence[Claim | str],
        *,
        owner: str,
        versions: Mapping[str, str],
        settle: tuple[int, float] | None = None,
    ) -> list[Begun]:
        """Plan new trials and begin their first attempts, or new attempts at planned trials, of which UUIDs are given.

        It is done for all or for none. `settle` (attempt, idle seconds) is done in the same transaction. Raises
        StudyBusyError unless `owner` holds the study, StorageError for a UUID of a trial that is not planned.
        """
        named = [(claim, str(uuid4()), uuid4().hex) for claim in claims]
        tokens = [token for _, _, token in named]

        def work(connection: Connection) -> list[Begun]:
            if begun := begun_with(connection, tokens):
                return begun
            check_holder(connection, study_id, owner)
            if settle is not None:
                settled, idle_seconds = settle
                before = phase_seconds_of(connection, settled).get("idle", 0.0)
                set_phase(connection, settled, "idle", before + idle_seconds)
            at = renew_leases(connection, study_id, owner)
            for claim, uuid, token in named:
                if isinstance(claim, str):
                    trial_id = running_again(connection, claim)
                else:
                    trial_id = insert_trial(connection, study_id, claim.strategy, claim.seed, claim.proposal, uuid)
                insert_attempt(connection, trial_id, token, owner, versions, at)
            return begun_with(connection, tokens)

        begun = self._write(work)
        for claim in claims:
            faults.point("after_claim" if isinstance(claim, str) else "after_plan")
        return begun

    def settle(self, attempt_id: int, idle_seconds: float) -> None:
        """Add idle seconds that came after the attempt's result was written."""
        before = self._read(lambda connection: phase_seconds_of(connection, attempt_id)).get("idle", 0.0)
        # Read outside: repeating the unit of work sets the same sum again.
        self._write(lambda connection: set_phase(connection, attempt_id, "idle", before + idle_seconds))

    def heartbeat(self, beats: Sequence[Beat]) -> None:
        """Store what is new of attempts of one study, and renew their leases and the study's.

        Raises StudyBusyError for attempts that are fenced off, when the others' beats are written.
        """

        def work(connection: Connection) -> list[StudyBusyError]:
            at, errors = None, []
            for beat in beats:
                try:
                    row = attempt_for_update(connection, beat.attempt_id)
                    check_token(row, beat.token)
                except StudyBusyError as error:
                    errors.append(error)
                    continue
                at = at or renew_leases(connection, row.study_id, row.owner)
                last = sa.select(sa.func.max(curve_point.c.step)).where(curve_point.c.attempt_id == beat.attempt_id)
                known = connection.scalar(last) if beat.points else None
                new = [point for point in beat.points if known is None or point.step > known]
                insert_rows(connection, curve_point, point_rows(beat.attempt_id, new))
                for name, seconds in beat.phase_seconds.items():
                    set_phase(connection, beat.attempt_id, name, seconds)
                times = dict(zip(("heartbeat_at", "lease_expires_at"), at, strict=True))
                connection.execute(sa.update(attempt).where(attempt.c.id == beat.attempt_id).values(**times))
            return errors

        for error in self._write(work):
            raise error

    def finish_attempts(self, ends: Sequence[End]) -> None:
        """Store how attempts, and with them their trials, ended; all or none. The same again is the same success.

        Raises StudyBusyError when one is fenced off: it was closed as lost, or the token is not its own.
        """

        def work(connection: Connection) -> None:
            finished_at = database_now(connection)
            for end in ends:
                row, columns = attempt_for_update(connection, end.attempt_id), result_columns(end.result, end.verdict)
                if row.status == "finished" and row.token == end.token and result_is(connection, row.trial_id, columns):
                    continue
                check_token(row, end.token)
                assert row.uuid == end.result.uuid, "a result belongs to its own trial"
                connection.execute(sa.update(trial).where(trial.c.id == row.trial_id).values(**columns))
                close_attempt(connection, row.id, "finished", finished_at, attempt_columns(end.result))
                replace_phases(connection, row.id, end.result.phase_seconds)
                replace_rows(connection, curve_point, row.id, point_rows(row.id, end.result.curve))
                replace_rows(connection, range_test_point, row.id, point_rows(row.id, end.result.range_test))
            renew_leases(connection, row.study_id, row.owner)
            faults.point("before_commit")

        self._write(work)
        faults.point("after_commit")

    def interrupt_attempt(
        self, attempt_id: int, token: str, seconds: float, *, kept: Bills | None = None, error: str | None = None
    ) -> None:
        """Close an attempt that was cut short after so many seconds, which are `lost`, and plan its trial again.

        `kept` is what it cost up to its checkpoint: that stays what it is. Without an `error` a signal stopped the
        study; with one the attempt's own process died of it, and the attempt is lost.
        """
        status = "interrupted" if error is None else "lost"

        def work(connection: Connection) -> None:
            row = attempt_for_update(connection, attempt_id)
            if row.status == status and row.token == token:
                return
            check_token(row, token)
            bills = (kept or Bills({})).with_lost(seconds)
            values = {"error": error, "billed_phase_seconds": bills.billed}
            close_attempt(connection, attempt_id, status, database_now(connection), values)
            replace_phases(connection, attempt_id, bills.charged)
            plan_again(connection, row.trial_id)

        self._write(work)

    def reconcile(
        self,
        study_id: int,
        kept: Callable[[str, int], Bills | None] = lambda uuid, attempt: None,
        alive: Collection[str] | None = None,
    ) -> list[LostAttempt]:
        """Close the attempts that a dead process left running, and plan their trials again. The caller holds the lease.

        A caller that runs trials itself gives the tokens of its attempts that are `alive`; then only others are closed,
        and only those whose own lease has run out, and no database that is away is waited for: it looks again later.

        An attempt is charged up to its last heartbeat, marked as estimated, all on the phase `lost`; seconds of the
        phases that are shown apart stay apart. What `kept` gives for it (by the trial's UUID and the attempt's number),
        its cost up to a checkpoint from which the trial will go on, stays what it is.
        """
        now = datetime.now(UTC)

        def work(connection: Connection) -> list[LostAttempt]:
            running = (
                sa.select(attempt, trial.c.uuid, trial.c.number.label("trial_number"), search.c.strategy, search.c.seed)
                .join(trial, attempt.c.trial_id == trial.c.id)
                .join(search)
                .where(search.c.study_id == study_id, attempt.c.status == "running")
                .order_by(attempt.c.id)
                # Else a result that its old owner commits between our reading and writing would be closed as lost.
                .with_for_update(of=attempt)
            )
            rows, now_there = connection.execute(running).all(), database_now(connection)
            if alive is not None:
                rows = [row for row in rows if row.token not in alive and row.lease_expires_at <= now_there]
            lost = [close_lost(connection, row, now_there, kept(row.uuid, row.number)) for row in rows]
            if lost:
                data = [{"uuid": one.uuid, "attempt": one.attempt, "seconds": one.seconds} for one in lost]
                insert_event(connection, study_id, now, "attempts_lost", {"attempts": data})
            return lost

        return self._write(work, None if alive is None else BESIDE_SECONDS)

    # Reading

    def record(self, name: str, version: int | None = None, points: Points = "all") -> StudyRecord:
        """Return one version of a study, by default the latest, with all its trials.

        A constant number of statements in one snapshot; `points` as in `read_study`. Raises UnknownNameError, which
        lists the known studies, and UsageError for a version that the study does not have.
        """

        def work(connection: Connection) -> StudyRecord:
            row = latest_study(connection, name, version)
            if row is None:
                raise self._unknown_study(connection, name, version)
            return read_study(connection, row, points)

        return self._read(work)

    def trial_record(self, uuid: str) -> TrialRecord:
        """Return one trial with its attempts."""
        [record] = self._read(lambda connection: read_trials(connection, trial.c.uuid == uuid))
        return record

    def not_shown(self, study_id: int) -> list[str]:
        """Return the UUIDs of the study's trials that have ended, but not in the dashboard's tables."""
        return self._read(lambda connection: ended_but_not_shown(connection, study_id))

    def _unknown_study(self, connection: Connection, name: str, version: int | None) -> Exception:
        versions = connection.execute(sa.select(study.c.name, study.c.version).order_by(study.c.version)).all()
        if not versions:
            return StorageError(
                f"{display_url(self._reader.url)} holds no study yet; run one with `lrsearch run-study FILE`."
            )
        own = [str(row.version) for row in versions if row.name == name]
        if own:
            return UsageError(f"Study {name!r} has no version {version}; it has {', '.join(own)}.")
        return UnknownNameError("study", name, {row.name for row in versions})
