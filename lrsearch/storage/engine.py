"""Connections and units of work: everything that SQLite and PostgreSQL need said differently."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from lrsearch.errors import MissingExtraError, StorageError, UsageError
from lrsearch.storage.schema import UtcDateTime

T = TypeVar("T")

BUSY_SECONDS = 60.0
"""How long SQLite waits for another process to finish its transaction."""
PATIENCE_SECONDS = 90.0
"""How long a unit of work is repeated: a PostgreSQL that restarts may be away for 30 s."""


def parse_url(url: str) -> URL:
    """Return the URL with the driver that we use. Raises UsageError for anything but an SQLite file or PostgreSQL."""
    try:
        parsed = sa.make_url(url)
    except ArgumentError:  # its message may hold a password
        raise UsageError(
            "A storage is written sqlite:///lrsearch.db or postgresql://user@host/database; this one cannot be read."
        ) from None
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise UsageError(
            f"A storage is sqlite:///lrsearch.db or postgresql://user@host/database, got {display_url(url)}."
        )
    if parsed.database in (None, "", ":memory:"):
        raise UsageError("SQLite in memory would be lost at exit: name a file, as in sqlite:///lrsearch.db.")
    return parsed


def display_url(url: str | URL) -> str:
    """Return the URL with its passwords hidden."""
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        return "the given storage"
    secrets = {key: "***" for key in parsed.query if "password" in key}
    return parsed.update_query_dict(secrets).render_as_string(hide_password=True)


def sqlite_path(url: URL) -> Path | None:
    """Return the file of an SQLite URL, None for PostgreSQL."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def check_sqlite_file(path: Path, *, must_exist: bool) -> None:
    """Raise StorageError where SQLite would only say "unable to open database file"."""
    if must_exist and not path.exists():
        raise StorageError(f"There is no database {path}; give another one with --database, or run a study first.")
    if not path.parent.is_dir():
        raise StorageError(f"The folder {path.parent} of the database {path.name} does not exist; create it first.")
    if path.is_dir():
        raise StorageError(f"The database {path} is a folder; name a file in it, such as {path / 'lrsearch.db'}.")


def connect_args(url: URL) -> dict[str, Any]:
    """Return what the driver needs: patience with SQLite's lock; soon noticing that PostgreSQL is away."""
    if url.get_backend_name() == "sqlite":
        return {"timeout": BUSY_SECONDS}
    return {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


def set_pragmas(dbapi_connection: Any, _record: object = None) -> None:
    """Make an SQLite connection durable at each commit, readable beside a writer, and strict about foreign keys."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        dbapi_connection.execute(f"PRAGMA {pragma}").close()


def make_engine(url: URL) -> Engine:
    """Return an engine whose transactions read, and whose `writer(engine)` takes the write lock at their beginning."""
    try:
        engine = sa.create_engine(
            url, connect_args=connect_args(url), pool_pre_ping=sqlite_path(url) is None, json_serializer=_dumps
        )
    except ImportError as error:
        raise MissingExtraError("PostgreSQL", "postgresql") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _begin_ourselves)
        event.listen(engine, "connect", set_pragmas)
        event.listen(engine, "begin", _begin)
    return engine


def writer(engine: Engine) -> Engine:
    """Return the same engine for transactions that write.

    A transaction that reads first and writes later must hold SQLite's lock from the start: under WAL a deferred one
    fails at its first write, without waiting, when someone has written meanwhile.
    """
    return engine.execution_options(lrsearch_writes=True)


def reader(engine: Engine) -> Engine:
    """Return the same engine for transactions that read: all their statements see one state of the database."""
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ")


def _begin_ourselves(dbapi_connection: Any, _record: object) -> None:
    dbapi_connection.isolation_level = None  # else sqlite3 begins late, and never for SELECT and CREATE


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("lrsearch_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def transact(engine: Engine, work: Callable[[Connection], T], patience_seconds: float = PATIENCE_SECONDS) -> T:
    """Return `work(connection)`, committed.

    It is repeated, with growing pauses, while the database is locked or away. A commit whose answer was lost may have
    happened, so `work` must do nothing the second time. Database errors come out as StorageError.
    """
    deadline = time.monotonic() + patience_seconds
    pause = 0.02
    while True:
        try:
            with engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            if not _is_passing(error) or time.monotonic() + pause > deadline:
                raise translated(error, engine.url) from error
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def database_now(connection: Connection) -> datetime:
    """Return the time by the database's clock, by which all leases are judged."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    return connection.execute(sa.select(sa.func.clock_timestamp(type_=UtcDateTime))).scalar_one()


def translated(error: DBAPIError, url: URL) -> StorageError:
    """Return the StorageError that says what the user can do about a database error."""
    path = sqlite_path(url)
    reason = " ".join(str(error.orig).split()).removesuffix(".")
    if path is None and isinstance(error, OperationalError):
        return StorageError(f"The database {display_url(url)} cannot be used: {reason}. Is its server running?")
    if path is None:
        return StorageError(f"The database {display_url(url)} refused: {reason}.")
    if "disk is full" in reason or "disk I/O error" in reason:
        free = shutil.disk_usage(path.parent).free
        return StorageError(
            f"{path} cannot grow: {reason} ({free / 1e6:.1f} MB free in {path.parent.resolve()}). "
            "Free some space and type the same command again; all that was acknowledged is kept."
        )
    if "not a database" in reason:
        return StorageError(f"{path} is not an SQLite database; give another file with --database.")
    if "malformed" in reason:
        return StorageError(f"{path} is damaged ({reason}); move it away and restore a copy.")
    if "unable to open" in reason or "readonly" in reason:
        return StorageError(
            f"{path} cannot be written: {reason}. Its folder must be writable too; "
            "change the permissions or give another file with --database."
        )
    if "locked" in reason:
        return StorageError(
            f"{path} stayed locked for {BUSY_SECONDS:.0f} s by another program; close that and try again."
        )
    return StorageError(f"The database {path} refused: {reason}.")


def _is_passing(error: DBAPIError) -> bool:
    """Whether the same work may succeed a moment later."""
    if error.connection_invalidated:
        return True
    if not isinstance(error, OperationalError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return "locked" in str(error.orig)
    state = getattr(error.orig, "sqlstate", None)
    # None: no connection. 08: connection. 40: serialisation, deadlock. 57P: the server stops or starts.
    return state is None or state[:2] in ("08", "40") or state[:3] == "57P"


def _dumps(value: Any) -> str:
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """Return plain data with every float that is not finite replaced by None."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
