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

_LOCK = 0x6C727365617263
"""Key of PostgreSQL's advisory lock, "lrsearc" in ASCII: two processes must not migrate at once."""
_FIRST_CONTACT_SECONDS = 5.0


def ensure_schema(engine: Engine, *, create: bool) -> None:
    """Create or upgrade our tables; others in the same database do not matter.

    Raises NewerSchemaError when a newer lrsearch has been here, and StorageError when there are no tables and `create`
    is False. Alembic is imported only when there is something to do.
    """
    revision = transact(engine, stored_revision, _FIRST_CONTACT_SECONDS)
    if revision == HEAD:
        return
    if revision is None and not create:
        raise StorageError(
            f"{display_url(engine.url)} holds no lrsearch study; run one with `lrsearch run-study FILE`."
        )
    if revision is not None and revision not in known_revisions():
        raise NewerSchemaError(
            f"{display_url(engine.url)} was written by a newer lrsearch: its schema is {revision!r}, this one knows "
            f"up to {HEAD!r}. Upgrade (pip install --upgrade lrsearch) or give another database with --database."
        )
    transact(writer(engine), upgrade)


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
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config
