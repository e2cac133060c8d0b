"""What `lrsearch db` does: bring a database up to date, copy it, and look for what must not be in it."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Select
from sqlalchemy.engine import URL

from lrsearch.errors import StorageError, StudyBusyError, UsageError
from lrsearch.storage.engine import (
    check_sqlite_file,
    database_now,
    display_url,
    is_archived,
    make_engine,
    parse_url,
    reader,
    sqlite_path,
    transact,
    writer,
)
from lrsearch.storage.migrate import ensure_schema, known_schema, upgrade
from lrsearch.storage.schema import HEAD, attempt, search, study, trial
from lrsearch.storage.statements import ended_but_not_shown, is_held, latest_study, spoken
from lrsearch.trial import FINISHED_STATUSES

_HEALTH_SECONDS = 5.0


@dataclass(frozen=True)
class Findings:
    """What a check found. Faults must never be; notes are what a kill leaves behind and the next run settles."""

    studies: int
    trials: int
    faults: list[str]
    notes: list[str]


def upgrade_database(url: str, tell: Callable[[str], None], *, backup: bool = True) -> None:
    """Make or upgrade our tables at `url`, after a copy when there is something to lose.

    Raises NewerSchemaError when a newer lrsearch has been here, StudyBusyError while a study runs, StorageError.
    """
    with _engine(url, must_exist=False) as engine:
        revision = known_schema(engine)
        name = display_url(engine.url)
        if revision == HEAD:
            tell(f"{name} has schema {HEAD!r} already; nothing to do.")
            return
        if revision is not None:
            transact(engine, _check_nobody_runs)
            if backup:
                tell(f"Copied to {back_up(url)}.")
        transact(writer(engine), upgrade)
        tell(f"{name} now has schema {HEAD!r}" + (f", it had {revision!r}." if revision else "; it was empty."))


def back_up(url: str, target: Path | None = None) -> Path:
    """Write one consistent copy of the database, studies may run meanwhile, and return its path.

    SQLite's is a database as well; PostgreSQL's is an archive for pg_restore. `target` is by default a new name in the
    database's folder, or for PostgreSQL in the current one. Raises UsageError when it exists, StorageError.
    """
    parsed = parse_url(url)
    path = sqlite_path(parsed)
    target = target or _new_name(parsed, path)
    if target.exists():
        raise UsageError(f"{target} exists already and is not overwritten; name another file.")
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        if path is None:
            _dump(parsed, unfinished)
        else:
            check_sqlite_file(path, must_exist=True)
            _copy(path, unfinished)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(target)
    except OSError as error:
        raise StorageError(f"The copy {target} cannot be written: {error.strerror}. Name another file.") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _new_name(url: URL, path: Path | None) -> Path:
    """Return a file's name with the time, which nothing has: a backup may have been made in this very second."""
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    stem, ending = (f"{url.database}-{stamp}", "dump") if path is None else (f"{path.stem}-{stamp}", "db")
    folder = Path() if path is None else path.parent
    numbered = (f"{stem}-{number}" for number in itertools.count(2))
    names = (folder / f"{name}.{ending}" for name in itertools.chain([stem], numbered))
    return next(name for name in names if not name.exists())


def _copy(path: Path, target: Path) -> None:
    way = "mode=ro&immutable=1" if is_archived(path) else "mode=ro"
    try:
        with (
            closing(sqlite3.connect(f"{path.resolve().as_uri()}?{way}", uri=True)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
            verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        raise StorageError(f"{path} cannot be copied to {target}: {error}.") from error
    if verdict != "ok":
        raise StorageError(f"{path} is damaged ({verdict}), and so would be its copy; restore an older one.")


def _dump(url: URL, target: Path) -> None:
    program = shutil.which("pg_dump")
    if program is None:
        raise StorageError(
            "A copy of a PostgreSQL database needs pg_dump, at least as new as the server: install postgresql-client, "
            "or run pg_dump --format=custom where the server is. `lrsearch db upgrade --no-backup` upgrades without."
        )
    secret = url.password or url.query.get("password")
    plain = URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query)
    address = plain.difference_update_query(["password"]).render_as_string(hide_password=False)
    command = [program, "--format=custom", "--no-owner", "--no-password", f"--file={target}", f"--dbname={address}"]
    environment = {**os.environ, **({"PGPASSWORD": str(secret)} if secret else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603  # arguments, no shell
    if done.returncode != 0:
        raise StorageError(f"pg_dump could not copy {display_url(url)}: {' '.join(done.stderr.split())}")


def _check_nobody_runs(connection: Connection) -> None:
    now = database_now(connection)
    for name, owner, expires_at in connection.execute(sa.select(study.c.name, study.c.owner, study.c.lease_expires_at)):
        if is_held(connection, owner, expires_at, now):
            raise StudyBusyError(f"Study {name!r} is being run by {spoken(owner)}; stop it, then upgrade.")


def check_database(url: str) -> Findings:
    """Look through the whole database, changing nothing. Raises StorageError when it cannot be read."""
    with _engine(url, must_exist=True) as engine:
        ensure_schema(engine, create=False)

        def work(connection: Connection) -> Findings:
            counts = [connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in (study, trial)]
            faults = [*_damage(connection), *_ledger_faults(connection)]
            return Findings(counts[0], counts[1], faults, [*_left_running(connection), *_not_shown(connection)])

        return transact(reader(engine), work)


def check_schema(url: str) -> None:
    """Raise StorageError unless the database answers and has this version's tables."""
    with _engine(url, must_exist=True) as engine:
        if known_schema(engine, must_be_current=True) is None:
            raise StorageError(
                f"{display_url(engine.url)} holds no tables of lrsearch; type `lrsearch db upgrade`, with the same "
                "--database if you gave one."
            )


def is_alive(url: str, study_name: str) -> bool:
    """Return whether the newest version of a study is finished, or its process gave a sign of life in time."""
    with _engine(url, must_exist=True) as engine:
        ensure_schema(engine, create=False)

        def work(connection: Connection) -> bool:
            row = latest_study(connection, study_name, None)
            if row is None:
                return False
            held = row.owner is not None and row.lease_expires_at > database_now(connection)
            return row.finished_at is not None or held

        return transact(reader(engine), work, _HEALTH_SECONDS)


def mend_view(url: str) -> None:
    """Write into Optuna's tables what they lack of the ledger."""
    from lrsearch.storage.optuna_mirror import OptunaMirror
    from lrsearch.storage.store import open_store

    with open_store(url, must_exist=True) as store, closing(OptunaMirror(url)) as mirror:
        for summary in store.studies():
            record = store.record(summary.name, summary.version)
            mirror.publish(record, record.trials)


@contextmanager
def _engine(url: str, *, must_exist: bool) -> Iterator[Engine]:
    parsed = parse_url(url)
    path = sqlite_path(parsed)
    if path is not None:
        check_sqlite_file(path, must_exist=must_exist)
    engine = make_engine(parsed, may_write=not must_exist)
    try:
        yield engine
    finally:
        engine.dispose()


def _damage(connection: Connection) -> Iterator[str]:
    """Yield what SQLite finds wrong in its file; PostgreSQL's files are its server's to check."""
    if connection.dialect.name != "sqlite":
        return
    for (line,) in connection.exec_driver_sql("PRAGMA integrity_check"):
        if line != "ok":
            yield f"the file is damaged: {line}"
    for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield f"row {row} of {table} belongs to no row of {parent}"


def _ledger_faults(connection: Connection) -> Iterator[str]:
    has_one = {"finished": trial.c.status.in_(FINISHED_STATUSES), "running": trial.c.status == "running"}
    for status, is_due in has_one.items():
        counted = sa.select(attempt.c.trial_id, sa.func.count().label("n")).where(attempt.c.status == status)
        per_trial = counted.group_by(attempt.c.trial_id).subquery()
        n = sa.func.coalesce(per_trial.c.n, 0)
        trials = _trials(n).outerjoin(per_trial, per_trial.c.trial_id == trial.c.id)
        for row in connection.execute(trials.where(n != sa.case((is_due, 1), else_=0))):
            yield f"{_spoken(row)} is {row.status} with {row[-1]} {status} attempts"

    last, count = sa.func.max(trial.c.number), sa.func.count()
    names = (study.c.name, study.c.version, search.c.strategy, search.c.seed)
    gaps = sa.select(*names, last, count).select_from(trial).join(search).join(study)
    gaps = gaps.group_by(*names).having(last + 1 != count)
    for row in connection.execute(gaps):
        search_name = f"{row.name} version {row.version}, {row.strategy}, seed {row.seed}"
        yield f"{search_name} has {row[-1]} trials, numbered to {row[-2]}"


def _left_running(connection: Connection) -> Iterator[str]:
    """Yield the attempts whose process is gone."""
    now = database_now(connection)
    running = _trials(study.c.owner, study.c.lease_expires_at).join(attempt).where(attempt.c.status == "running")
    for row in connection.execute(running):
        if not is_held(connection, row.owner, row.lease_expires_at, now):
            yield f"{_spoken(row)} was left running by a process that died; the study's next run charges and repeats it"


def _not_shown(connection: Connection) -> Iterator[str]:
    missing = ended_but_not_shown(connection)
    if missing:
        yield f"the dashboard's tables lack {len(missing)} ended trials; `lrsearch db check --mend` writes them"


def _trials(*columns: Any) -> Select[Any]:
    names = (study.c.name, study.c.version, search.c.strategy, search.c.seed, trial.c.number, trial.c.status)
    return sa.select(*names, *columns).select_from(trial).join(search).join(study)


def _spoken(row: Any) -> str:
    return f"{row.name} version {row.version}, {row.strategy}, seed {row.seed}, trial {row.number}"
