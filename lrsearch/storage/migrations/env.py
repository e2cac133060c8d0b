"""Alembic's entry: runs the migrations on the connection, and inside the transaction, that migrate.py hands over."""

from alembic import context

from lrsearch.storage.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
