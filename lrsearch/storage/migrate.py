"""Brings a database's tables up to this version of lrsearch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from lrsearch.errors import NewerSchemaError, StorageError
from lrsearch.storage.engine import display_url, transact, writer
from lrsearch.storage.schema import HEAD, VERSION_TABLE

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x6C727365617263
"""Key of PostgreSQL's advisory lock, "lrsearc" in ASCII: two processes must not migrate at once."""
_FIRST_CONTACT_SECONDS = 5.0


def ensure_schema(engine: Engine, *, create: bool) -> None:
    """Create our tables where there are none; others in the same database do not matter.

    Raises NewerSchemaError when a newer lrsearch has been here, and StorageError when an older one has, whose tables
    only `lrsearch db upgrade` changes, or when there are no tables and `create` is False.
    """
    revision = known_schema(engine, must_be_current=True)
    if revision is None and not create:
        raise StorageError(
            f"{display_url(engine.url)} holds no lrsearch study; run one with `lrsearch run-study FILE`."
        )
    if revision is None:
        transact(writer(engine), upgrade)


def known_schema(engine: Engine, *, must_be_current: bool = False) -> str | None:
    """Return the revision of the tables, None where there are none. Alembic is imported only for one that is not HEAD.

    Raises NewerSchemaError for a revision that this version does not know, StorageError for an older one if it
    `must_be_current`.
    """
    revision = transact(engine, stored_revision, _FIRST_CONTACT_SECONDS)
    if revision in (None, HEAD):
        return revision
    name = display_url(engine.url)
    if revision not in known_revisions():
        raise NewerSchemaError(
            f"{name} was written by a newer lrsearch: its schema is {revision!r}, this one knows up to {HEAD!r}. "
            "Upgrade (pip install --upgrade lrsearch) or give another database with --database."
        )
    if must_be_current:
        raise StorageError(
            f"{name} was written by an older lrsearch: its schema is {revision!r}, this one's is {HEAD!r}. "
            "Type `lrsearch db upgrade`, with the same --database if you gave one; it makes a copy first."
        )
    return revision


def stored_revision(connection: Connection) -> str | None:
    """Return the revision of our tables, None where there are none."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    version = sa.table(VERSION_TABLE, sa.column("version_num", sa.String))
    return connection.execute(sa.select(version.c.version_num)).scalar()


def upgrade(connection: Connection) -> None:
    """Run the missing migrations inside the caller's transaction. Does nothing when there are none."""
    from alembic import command

    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def known_revisions() -> list[str]:
    """Return the revisions that this version can read, newest first."""
    from alembic.script import ScriptDirectory

    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


def _config() -> Config:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
