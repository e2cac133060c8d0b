"""The steps that the ledger's units of work are made of; each runs inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Row

from lrsearch.errors import StorageError, StudyBusyError
from lrsearch.storage.engine import database_now, finite
from lrsearch.storage.owner import is_alive, is_dead
from lrsearch.storage.reading import facts_from_json, proposal_columns
from lrsearch.storage.schema import attempt, event, phase, search, study, trial
from lrsearch.trial import (
    APART_PHASES,
    CHARGED_PHASES,
    FINISHED_STATUSES,
    Bills,
    Proposal,
    WorkloadFacts,
    billed_device_seconds,
    charged_seconds,
)

_CREATION = 0x63726561746573
"""Key of PostgreSQL's advisory lock for making studies, "creates" in ASCII."""


@dataclass(frozen=True)
class StudyRow:
    """One version of a study without its trials."""

    id: int
    name: str
    version: int
    config: Mapping[str, Any]
    fingerprint: str
    facts: WorkloadFacts | None
    finished: bool


@dataclass(frozen=True)
class Begun:
    """A trial whose attempt runs; `token` proves to the ledger that it still may."""

    uuid: str
    number: int
    attempt_id: int
    token: str


@dataclass(frozen=True)
class LostAttempt:
    """An attempt whose process died; its trial is planned again."""

    uuid: str
    strategy: str
    seed: int
    number: int
    attempt: int
    seconds: float
    """Billed, up to the last heartbeat."""

    def __str__(self) -> str:
        return f"{self.strategy}, seed {self.seed}, trial {self.number} (attempt {self.attempt}, {self.seconds:.1f} s)"


def spoken(owner: str) -> str:
    host, pid, *_ = owner.split(":")
    return f"process {pid} on {host}" if pid.isdigit() else owner


def inserted_id(inserted: sa.CursorResult[Any]) -> int:
    """Return the id that the database gave the inserted row."""
    assert inserted.inserted_primary_key is not None
    return int(inserted.inserted_primary_key[0])


def insert_rows(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(sa.insert(table), rows)


def replace_rows(connection: Connection, table: sa.Table, attempt_id: int, rows: Sequence[Mapping[str, Any]]) -> None:
    connection.execute(sa.delete(table).where(table.c.attempt_id == attempt_id))
    insert_rows(connection, table, rows)


def to_study_row(row: Row[Any]) -> StudyRow:
    facts, finished = facts_from_json(row.facts), row.finished_at is not None
    return StudyRow(row.id, row.name, row.version, row.config, row.fingerprint, facts, finished)


def latest_study(connection: Connection, name: str, version: int | None) -> Row[Any] | None:
    wanted: list[ColumnElement[bool]] = [study.c.name == name]
    if version is not None:
        wanted.append(study.c.version == version)
    return connection.execute(sa.select(study).where(*wanted).order_by(study.c.version.desc()).limit(1)).one_or_none()


def study_for_update(connection: Connection, study_id: int) -> Row[Any]:
    """Return the study's row, locked until the transaction ends."""
    return connection.execute(sa.select(study).where(study.c.id == study_id).with_for_update()).one()


def one_at_a_time(connection: Connection) -> None:
    """Wait for the other transactions that have called this, also where there is no row yet that could be locked."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION)))


def trial_counts(connection: Connection) -> dict[int, dict[str, int]]:
    counted = sa.select(search.c.study_id, trial.c.status, sa.func.count()).select_from(trial).join(search)
    counts: dict[int, dict[str, int]] = {}
    for study_id, status, count in connection.execute(counted.group_by(search.c.study_id, trial.c.status)):
        counts.setdefault(study_id, {})[status] = count
    return counts


def charged_seconds_by_study(connection: Connection) -> dict[int, float]:
    summed = sa.select(search.c.study_id, sa.func.sum(phase.c.seconds)).select_from(phase)
    summed = summed.join(attempt).join(trial).join(search).where(phase.c.name.in_(CHARGED_PHASES))
    return {row[0]: row[1] for row in connection.execute(summed.group_by(search.c.study_id))}


def insert_event(connection: Connection, study_id: int, at: datetime, kind: str, data: Mapping[str, Any]) -> None:
    written = sa.select(event.c.id).where(event.c.study_id == study_id, event.c.at == at, event.c.kind == kind)
    if connection.execute(written).first() is None:
        connection.execute(sa.insert(event).values(study_id=study_id, at=at, kind=kind, data=data))


def is_held(connection: Connection, owner: str | None, lease_expires_at: datetime | None, now: datetime) -> bool:
    """Return whether the process `owner` holds a study, `now` by the database's clock.

    Not from when its lease has run out, or when it is known to be dead. SQLite's clock is the machine's own and may be
    set, and a process may be stopped for a while: there one that lives on this machine holds it nevertheless.
    """
    if owner is None or is_dead(owner):
        return False
    if lease_expires_at is not None and lease_expires_at > now:
        return True
    return connection.dialect.name == "sqlite" and is_alive(owner)


def check_holder(connection: Connection, study_id: int, owner: str) -> None:
    """Raise StudyBusyError unless `owner` holds the study, which stays locked until the transaction ends."""
    row = study_for_update(connection, study_id)
    if row.owner != owner:
        holder = f"is held by {spoken(row.owner)}" if row.owner else "has no holder"
        raise StudyBusyError(
            f"This process is fenced off: study {row.name!r} {holder} now. Type the same command again to go on."
        )


def renew_leases(connection: Connection, study_id: int, owner: str) -> tuple[datetime, datetime]:
    """Prolong the study's lease if `owner` still holds it; return now and the time when leases begun now run out."""
    now = database_now(connection)
    seconds = connection.scalar(sa.select(study.c.lease_seconds).where(study.c.id == study_id)) or 0.0
    expires_at = now + timedelta(seconds=seconds)
    held = sa.update(study).where(study.c.id == study_id, study.c.owner == owner)
    connection.execute(held.values(lease_expires_at=expires_at))
    return now, expires_at


def search_id_of(connection: Connection, study_id: int, strategy: str, seed: int) -> int:
    values = {"study_id": study_id, "strategy": strategy, "seed": seed}
    found = sa.select(search.c.id).where(*(search.c[name] == value for name, value in values.items()))
    known = connection.scalar(found)
    return known if known is not None else inserted_id(connection.execute(sa.insert(search).values(**values)))


def insert_trial(connection: Connection, study_id: int, strategy: str, seed: int, proposal: Proposal, uuid: str) -> int:
    """Make the next trial of a search, running, and return its id."""
    search_id = search_id_of(connection, study_id, strategy, seed)
    last = connection.scalar(sa.select(sa.func.max(trial.c.number)).where(trial.c.search_id == search_id))
    values = {"uuid": uuid, "search_id": search_id, "number": 0 if last is None else last + 1, "status": "running"}
    return inserted_id(connection.execute(sa.insert(trial).values(**values, **proposal_columns(proposal))))


def running_again(connection: Connection, uuid: str) -> int:
    """Have a planned trial run and return its id."""
    row = connection.execute(sa.select(trial.c.id, trial.c.status).where(trial.c.uuid == uuid)).one()
    if row.status != "planned":
        raise StorageError(f"Only a planned trial can be begun again; {uuid} is {row.status}.")
    connection.execute(sa.update(trial).where(trial.c.id == row.id).values(status="running"))
    return int(row.id)


def begun_with(connection: Connection, tokens: Collection[str]) -> list[Begun]:
    """Return the attempts that have these tokens, in the order in which they began."""
    found = sa.select(trial.c.uuid, trial.c.number, attempt.c.id, attempt.c.token).select_from(attempt).join(trial)
    return [Begun(*row) for row in connection.execute(found.where(attempt.c.token.in_(tokens)).order_by(attempt.c.id))]


def insert_attempt(
    connection: Connection,
    trial_id: int,
    token: str,
    owner: str,
    versions: Mapping[str, str],
    at: tuple[datetime, datetime],
) -> None:
    """Begin the next attempt of a trial; `at`: now, and when its lease runs out."""
    before = connection.scalar(sa.select(sa.func.max(attempt.c.number)).where(attempt.c.trial_id == trial_id))
    values = {"trial_id": trial_id, "number": (before or 0) + 1, "status": "running", "owner": owner, "token": token}
    now, expires_at = at
    times = {"started_at": now, "heartbeat_at": now, "lease_expires_at": expires_at}
    connection.execute(
        sa.insert(attempt).values(**values, **times, gang_size=1, estimated=False, versions=dict(versions))
    )


def attempt_for_update(connection: Connection, attempt_id: int) -> Row[Any]:
    """Return the attempt's row with `uuid` and `study_id`, locked until the transaction ends."""
    joined = sa.select(attempt, trial.c.uuid, search.c.study_id).join(trial, attempt.c.trial_id == trial.c.id)
    return connection.execute(joined.join(search).where(attempt.c.id == attempt_id).with_for_update(of=attempt)).one()


def check_token(row: Row[Any], token: str) -> None:
    if row.status != "running" or row.token != token:
        raise StudyBusyError(
            f"Attempt {row.number} of trial {row.uuid} is fenced off: it was closed as {row.status!r} or belongs to "
            "another process, so nothing more is written for it. Run the same command again to go on."
        )


def result_is(connection: Connection, trial_id: int, columns: Mapping[str, Any]) -> bool:
    stored = connection.execute(sa.select(*(trial.c[name] for name in columns)).where(trial.c.id == trial_id)).one()
    return list(stored) == [finite(value) for value in columns.values()]


def close_attempt(
    connection: Connection, attempt_id: int, status: str, at: datetime, values: Mapping[str, Any]
) -> None:
    closed = sa.update(attempt).where(attempt.c.id == attempt_id)
    connection.execute(closed.values(status=status, finished_at=at, **values))


def close_lost(connection: Connection, row: Row[Any], now: datetime, kept: Bills | None) -> LostAttempt:
    """Close a running attempt whose process is dead; `row` is the attempt's with its trial's and search's names.

    `kept` is what it cost up to its checkpoint: that stays what it is, and what came after it is lost.
    """
    stored = phase_seconds_of(connection, row.id)
    # Heartbeats bring the seconds so far, as `lost`, from a clock that nobody sets; those of older versions did not.
    elapsed = stored.get("lost", (row.heartbeat_at - row.started_at).total_seconds())
    if kept is None:
        phases = as_lost(stored)
        apart = sum(phases.values()) - phases["lost"]
        bills = Bills({**phases, "lost": max(phases["lost"], elapsed - apart)})
    else:
        bills = kept.with_lost(elapsed)
    replace_phases(connection, row.id, bills.charged)
    error = "The process that ran it died; its seconds are those up to its last heartbeat."
    values = {"estimated": True, "error": error, "billed_phase_seconds": bills.billed}
    close_attempt(connection, row.id, "lost", now, values)
    plan_again(connection, row.trial_id)
    seconds = billed_device_seconds(bills.charged, bills.billed)
    return LostAttempt(row.uuid, row.strategy, row.seed, row.trial_number, row.number, seconds)


def plan_again(connection: Connection, trial_id: int) -> None:
    connection.execute(sa.update(trial).where(trial.c.id == trial_id).values(status="planned"))


def as_lost(phase_seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds with all charged ones moved to `lost`: their work has to be repeated."""
    apart = {name: seconds for name, seconds in phase_seconds.items() if name in APART_PHASES}
    return {**apart, "lost": charged_seconds(phase_seconds)}


OPTUNA_ENDED = ("COMPLETE", "PRUNED", "FAIL")


def ended_but_not_shown(connection: Connection, study_id: int | None = None) -> list[str]:
    """Return the UUIDs of the trials, by default of all studies, that have ended, but not in Optuna's tables.

    They are read without Optuna. What confirms a search's choice is not shown there.
    """
    confirmed = trial.c.proposal["confirmation_seed"].as_string()
    missing = sa.select(trial.c.uuid).where(trial.c.status.in_(FINISHED_STATUSES), confirmed.is_(None))
    if study_id is not None:
        missing = missing.join(search).where(search.c.study_id == study_id)
    if {"trials", "trial_user_attributes"} <= set(sa.inspect(connection).get_table_names()):
        trials = sa.table("trials", sa.column("trial_id"), sa.column("state"))
        attributes = sa.table("trial_user_attributes", *map(sa.column, ("trial_id", "key", "value_json")))
        shown = sa.select(attributes.c.value_json).join(trials, trials.c.trial_id == attributes.c.trial_id)
        shown = shown.where(attributes.c.key == "uuid", sa.cast(trials.c.state, sa.String).in_(OPTUNA_ENDED))
        missing = missing.where(sa.literal('"').concat(trial.c.uuid).concat('"').not_in(shown))
    return list(connection.scalars(missing.order_by(trial.c.id)))


def phase_seconds_of(connection: Connection, attempt_id: int) -> dict[str, float]:
    rows = connection.execute(sa.select(phase.c.name, phase.c.seconds).where(phase.c.attempt_id == attempt_id))
    return {row.name: row.seconds for row in rows}


def set_phase(connection: Connection, attempt_id: int, name: str, seconds: float) -> None:
    connection.execute(sa.delete(phase).where(phase.c.attempt_id == attempt_id, phase.c.name == name))
    connection.execute(sa.insert(phase).values(attempt_id=attempt_id, name=name, seconds=seconds))


def replace_phases(connection: Connection, attempt_id: int, phase_seconds: Mapping[str, float]) -> None:
    rows = [{"attempt_id": attempt_id, "name": name, "seconds": seconds} for name, seconds in phase_seconds.items()]
    replace_rows(connection, phase, attempt_id, rows)
