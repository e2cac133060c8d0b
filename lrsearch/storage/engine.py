"""Connections and units of work: everything that SQLite and PostgreSQL need said differently."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from lrsearch.errors import MissingExtraError, StorageError, UsageError
from lrsearch.storage.schema import UtcDateTime

T = TypeVar("T")

BUSY_SECONDS = 60.0
"""How long SQLite waits for another process to finish its transaction."""
LONGEST_PATH = 500
"""In bytes; SQLite's 512 less what the names of its journals add."""
PATIENCE_SECONDS = 90.0
"""How long a unit of work is repeated while SQLite stays locked."""
AWAY_SECONDS = 600.0
"""How long it is repeated while PostgreSQL is away: a result that took hours can wait for a server's repair."""
_TOLD_AFTER_SECONDS = 2.0
PASSWORD_FILE = "LRSEARCH_DATABASE_PASSWORD_FILE"  # noqa: S105  # the name of a variable
"""The environment variable that names a file with PostgreSQL's password: so it is in no URL and no process list."""


def parse_url(url: str) -> URL:
    """Return the URL with the driver that we use, and the password from PASSWORD_FILE where it has none.

    Raises UsageError for anything but an SQLite file or PostgreSQL.
    """
    try:
        url.encode()
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # its message may hold a password; ValueError: no number as port, no UTF-8
        if url.endswith((".db", ".sqlite", ".sqlite3")) and not {":", "@", "="} & set(url):  # no word of a password
            raise UsageError(f"A database is given as a URL: sqlite:///{url} for the file {url}.") from None
        raise UsageError(
            "A database is written sqlite:///lrsearch.db or postgresql://user@host:5432/database; this one cannot be "
            "read."
        ) from None
    if parsed.get_backend_name() != "sqlite" and "@" in f"{parsed.host}{parsed.database}":
        # What follows the first @ would be taken for the server's name, and shown.
        raise UsageError("The database's URL has more than one @: in its password write %40 for it.")
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg", password=parsed.password or _password_from_file())
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise UsageError(
            f"A database is sqlite:///lrsearch.db or postgresql://user@host/database, got {display_url(url)}."
        )
    if parsed.database in (None, "", ":memory:"):
        raise UsageError("SQLite in memory would be lost at exit: name a file, as in sqlite:///lrsearch.db.")
    if "?" in url:  # what follows would be no part of the file's name, and most of it would be dropped in silence
        raise UsageError("The URL of an SQLite file takes no settings, and its path no '?'; write sqlite:///FILE.")
    return parsed


def _password_from_file() -> str | None:
    name = os.environ.get(PASSWORD_FILE)
    if not name:
        return None
    try:
        return Path(name).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{PASSWORD_FILE} names {name}, which cannot be read: {getattr(error, 'strerror', 'it is not UTF-8')}. "
            "It must hold the database's password and be readable by the user that runs lrsearch."
        ) from error


def with_password(url: str) -> str:
    """Return `url` with the password that libpq's own variable has for it. Raises UsageError as `parse_url` does."""
    parsed, secret = parse_url(url), os.environ.get("PGPASSWORD")
    if sqlite_path(parsed) is not None or parsed.password or not secret:
        return url
    return parsed.set(password=secret).render_as_string(hide_password=False)


def display_url(url: str | URL) -> str:
    """Return the URL as users write it, with its passwords hidden."""
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        return "the given storage"
    if parsed.drivername == "postgresql+psycopg":
        parsed = parsed.set(drivername="postgresql")
    secrets = {key: "***" for key in parsed.query if "password" in key}
    return parsed.update_query_dict(secrets).render_as_string(hide_password=True)


def optuna_url(url: URL) -> str:
    """Return the URL as Optuna takes it: braces are a template to it, and not every SQLAlchemy writes them as %7B."""
    return url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")


def sqlite_path(url: URL) -> Path | None:
    """Return the file of an SQLite URL, None for PostgreSQL."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def check_sqlite_file(path: Path, *, must_exist: bool) -> None:
    """Raise StorageError where SQLite would only say "unable to open database file"."""
    try:
        found = path.exists()
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise StorageError(
            f"The database {path} cannot be reached: {error.strerror}; change the permissions or give another file "
            "with --database."
        ) from error
    if must_exist and not found:
        raise StorageError(f"There is no database {path}; give another one with --database, or run a study first.")
    if not path.parent.is_dir():
        raise StorageError(f"The folder {path.parent} of the database {path.name} does not exist; create it first.")
    if path.is_dir():
        raise StorageError(f"The database {path} is a folder; name a file in it, such as {path / 'lrsearch.db'}.")
    _refuse_network_file_systems(path)


NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "fuse.sshfs", "fuse.glusterfs"}
)


def file_system_of(path: Path, mounts: str) -> str:
    """Return the type of file system that `path` (resolved) lies on; `mounts` is Linux's /proc/self/mountinfo."""
    found, kind = Path("/"), ""
    for line in filter(None, mounts.split("\n")):
        before, _, after = line.partition(" - ")
        # A space is written \040, in octal as all bytes that would end the field.
        mount = Path(os.fsdecode(os.fsencode(before.split(" ")[4]).decode("unicode_escape").encode("latin-1")))
        if path.is_relative_to(mount) and mount.is_relative_to(found):
            found, kind = mount, after.split()[0]
    return kind


def _refuse_network_file_systems(path: Path) -> None:
    """Raise StorageError where two machines can both believe to hold SQLite's lock; its WAL needs shared memory too."""
    try:
        mounts = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())  # names of mounts need not be UTF-8
    except OSError:  # not Linux
        return
    kind = file_system_of(Path(os.path.realpath(path)).parent, mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise StorageError(
            f"The database {path} would lie on a network file system ({kind}), where SQLite can lose what it wrote: "
            "give a --database on a local disk, or PostgreSQL."
        )


def is_archived(path: Path) -> bool:
    """Whether nobody is at the file and we cannot change it: SQLite's WAL takes a writable folder even to read.

    That is the folder of the file itself, also where `path` is a link to it.
    """
    file = Path(os.path.realpath(path))  # `resolve` raises where links lead in a circle
    return file.exists() and not os.access(file.parent, os.W_OK) and not file.with_name(f"{file.name}-wal").exists()


def connect_args(url: URL) -> dict[str, Any]:
    """Return what the driver needs: patience with SQLite's lock; soon noticing that PostgreSQL is away."""
    if url.get_backend_name() == "sqlite":
        return {"timeout": BUSY_SECONDS}
    return {
        "connect_timeout": 10,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,  # ms; without it a cut cable in the middle of a statement holds us for 15 minutes
        "application_name": "lrsearch",
    }


def set_pragmas(dbapi_connection: Any, _record: object = None) -> None:
    """Make an SQLite connection durable at each commit, readable beside a writer, and strict about foreign keys."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        dbapi_connection.execute(f"PRAGMA {pragma}").close()


def make_engine(url: URL, *, may_write: bool = True) -> Engine:
    """Return an engine whose transactions read, and whose `writer(engine)` takes the write lock at their beginning.

    Unless it `may_write`, an SQLite file keeps the journal that it has: it may be another program's.
    """
    more: dict[str, Any] = {}
    if (path := sqlite_path(url)) is not None and is_archived(path):
        uri = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
        more["creator"] = partial(sqlite3.connect, uri, uri=True, check_same_thread=False)
    try:
        engine = sa.create_engine(
            url, connect_args=connect_args(url), pool_pre_ping=path is None, json_serializer=_dumps, **more
        )
    except ImportError as error:
        raise MissingExtraError("PostgreSQL", "postgresql") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _begin_ourselves)
        if may_write:
            event.listen(engine, "connect", set_pragmas)
        event.listen(engine, "begin", _begin)
    else:
        event.listen(engine, "connect", set_timeouts)
    return engine


_TIMEOUTS = """
SELECT set_config(name, CASE name WHEN 'idle_in_transaction_session_timeout' THEN '60s' ELSE '0' END, false)
FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'lock_timeout', 'statement_timeout', 'transaction_timeout')
"""


def set_timeouts(dbapi_connection: Any, _record: object = None) -> None:
    """Let no timeout that somebody has set for a role or a database end what a study reads or writes, as pg_dump does.

    But let the server drop the row locks of a client whose machine vanished, so that its successor can go on.
    """
    with dbapi_connection.cursor() as cursor:
        cursor.execute(_TIMEOUTS)
    dbapi_connection.commit()


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


class Absence:
    """Notices that a server does not answer, and says so: once after a while, and once when it is back.

    All who wait for the same database share one, from any thread.
    """

    def __init__(self) -> None:
        self.tell: Callable[[str], None] = lambda line: None
        self.is_given_up = False
        """Whether nobody is to wait for it any more."""
        self._lock = threading.Lock()
        self._since: float | None = None
        self._told = False

    @property
    def lasts(self) -> bool:
        return self._since is not None

    def give_up(self) -> None:
        self.is_given_up = True

    def noticed(self, error: DBAPIError, patience_seconds: float) -> None:
        with self._lock:
            if self._since is None:
                self._since, self._told = time.monotonic(), False
            elif not self._told and patience_seconds >= _TOLD_AFTER_SECONDS < time.monotonic() - self._since:
                self._told = True
                self.tell(
                    f"The database does not answer ({_reason(error)}); training goes on, and what is to be written "
                    f"waits up to {patience_seconds / 60:.0f} min. Ctrl-C stops the study when that is written, a "
                    "second one at once."
                )

    def over(self) -> None:
        with self._lock:
            if self._since is not None:
                seconds, self._since = time.monotonic() - self._since, None
                self.tell(f"Database away for {seconds:.1f} s; it is back and nothing was lost.")


def transact(
    engine: Engine,
    work: Callable[[Connection], T],
    patience_seconds: float | None = None,
    absence: Absence | None = None,
) -> T:
    """Return `work(connection)`, committed; repeated as `patiently` does.

    A commit whose answer was lost may have happened, so `work` must do nothing the second time.
    """

    def unit() -> T:
        with engine.begin() as connection:
            return work(connection)

    return patiently(unit, engine.url, patience_seconds, absence)


def patiently(
    work: Callable[[], T], url: URL, patience_seconds: float | None = None, absence: Absence | None = None
) -> T:
    """Return `work()`, repeated with growing pauses while the database at `url` is locked or away.

    Patience is by default PATIENCE_SECONDS with SQLite, AWAY_SECONDS with PostgreSQL; it ends where an `absence` is
    given up. Database errors come out as StorageError.
    """
    if patience_seconds is None:
        patience_seconds = AWAY_SECONDS if sqlite_path(url) is None else PATIENCE_SECONDS
    deadline = time.monotonic() + patience_seconds
    pause = 0.02
    while True:
        try:
            done = work()
        except DBAPIError as error:
            hopeless = absence is not None and absence.is_given_up and _is_away(error)
            if hopeless or not _is_passing(error) or time.monotonic() + pause > deadline:
                raise translated(error, url) from error
            if absence is not None and _is_away(error):
                absence.noticed(error, patience_seconds)
        except PoolTimeout as error:
            if time.monotonic() + pause > deadline:
                raise StorageError(
                    f"The database {display_url(url)} cannot be used: all connections to it are in use, and wait."
                ) from error
        else:
            if absence is not None:
                absence.over()
            return done
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


def database_now(connection: Connection) -> datetime:
    """Return the time by the database's clock, by which all leases are judged."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    return connection.execute(sa.select(sa.func.clock_timestamp(type_=UtcDateTime))).scalar_one()


def translated(error: DBAPIError, url: URL) -> StorageError:
    """Return the StorageError that says what the user can do about a database error."""
    path = sqlite_path(url)
    reason = _reason(error)
    if path is None and (_is_away(error) or _is_refused(error)):
        is_full = any(words in reason for words in ("too many clients", "too many connections", "connection slots"))
        way_out = "End some of them, or raise max_connections." if is_full else "Is its server running?"
        way_out = _LOGIN_ADVICE if _is_refused(error) else way_out
        reason = reason.split(" Is the server running")[0]  # libpq's own question
        return StorageError(f"The database {display_url(url)} cannot be used: {reason}. {way_out}")
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
    if "unable to open" in reason and (length := len(os.fsencode(path.absolute()))) > LONGEST_PATH:
        return StorageError(
            f"SQLite opens no file whose path has more than {LONGEST_PATH} bytes, and that of {path.name} has "
            f"{length}: give a shorter one with --database."
        )
    if "unable to open" in reason or "readonly" in reason:
        return StorageError(
            f"{path} cannot be written: {reason}. Its folder must be writable too, and so must {path.name}-wal and "
            f"{path.name}-shm where there are any; change the permissions or give another file with --database."
        )
    if "locked" in reason:
        return StorageError(
            f"{path} stayed locked for {BUSY_SECONDS:.0f} s by another program; close that and try again."
        )
    return StorageError(f"The database {path} refused: {reason}.")


_REFUSALS = ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry")
"""What a server says that answers and will say the same the next time; libpq gives no code for a failed login."""
_LOGIN_ADVICE = (
    f"Check user, database and password; a password belongs into the file that {PASSWORD_FILE} names, "
    "or into ~/.pgpass (mode 0600)."
)


def _reason(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split()).removesuffix(".")


def _is_refused(error: DBAPIError) -> bool:
    return _state(error) is None and any(words in str(error.orig) for words in _REFUSALS)


def _state(error: DBAPIError) -> str | None:
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state


def _is_passing(error: DBAPIError) -> bool:
    """Whether the same work may succeed a moment later."""
    if isinstance(error.orig, sqlite3.Error):
        return isinstance(error, OperationalError) and "locked" in str(error.orig)
    # 40: serialisation, deadlock. 55P03, 57014: somebody has set a short timeout, or cancelled a statement.
    return _is_away(error) or (_state(error) or "").startswith(("40", "55P03", "57014"))


def _is_away(error: DBAPIError) -> bool:
    """Whether PostgreSQL did not answer, or said that it stops or starts."""
    if error.connection_invalidated:
        return True
    if not isinstance(error, OperationalError) or isinstance(error.orig, sqlite3.Error) or _is_refused(error):
        return False
    state = _state(error)
    # None: no connection. 08: connection. 53300: too many connections. 57P: the server stops or starts.
    return state is None or state.startswith(("08", "53300", "57P"))


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
