"""The migrations make the tables of schema.py, beside whatever else is in the database."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from lrsearch.errors import NewerSchemaError, StorageError
from lrsearch.storage.engine import make_engine, parse_url
from lrsearch.storage.migrate import known_revisions
from lrsearch.storage.schema import HEAD, VERSION_TABLE, metadata
from lrsearch.storage.store import open_store


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    open_store(url).close()
    engine = make_engine(parse_url(url))
    yield engine
    engine.dispose()


def _is_ours(name: str | None, kind: str, _parents: Any) -> bool:
    return kind != "table" or (name or "").startswith("lrsearch_")


def _differences(engine: sa.Engine) -> list[Any]:
    options = {"version_table": VERSION_TABLE, "include_name": _is_ours, "compare_type": True}
    with engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def test_the_migrated_tables_are_those_of_the_schema(engine: sa.Engine) -> None:
    assert _differences(engine) == []


def test_the_comparison_would_notice_a_missing_column(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE lrsearch_attempt DROP COLUMN error")
    assert [(kind, column.name) for kind, _, _, column in _differences(engine)] == [("add_column", "error")]


def test_the_migrated_checks_and_indices_are_those_of_the_schema(engine: sa.Engine, tmp_path: Path) -> None:
    """Alembic does not compare CHECK constraints; SQLite's own words for both are equal."""
    direct = make_engine(parse_url(f"sqlite:///{tmp_path / 'direct.db'}"))
    metadata.create_all(direct)
    migrated, created = sa.inspect(engine), sa.inspect(direct)
    for table in metadata.tables:
        for read in ("get_check_constraints", "get_indexes", "get_unique_constraints", "get_foreign_keys"):
            found, expected = getattr(migrated, read)(table), getattr(created, read)(table)
            assert sorted(map(str, found)) == sorted(map(str, expected)), (table, read)
        assert migrated.get_pk_constraint(table) == created.get_pk_constraint(table)
    direct.dispose()


def test_the_head_that_is_checked_without_alembic_is_alembics_head() -> None:
    assert known_revisions()[0] == HEAD


def test_opening_again_changes_nothing(url: str, engine: sa.Engine) -> None:
    before = (engine.url.database and Path(engine.url.database).stat().st_size, sa.inspect(engine).get_table_names())
    open_store(url).close()
    open_store(url, must_exist=True).close()
    assert (
        engine.url.database and Path(engine.url.database).stat().st_size,
        sa.inspect(engine).get_table_names(),
    ) == before


def test_a_newer_database_is_refused_with_both_revisions(url: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.update(sa.table(VERSION_TABLE, sa.column("version_num"))).values(version_num="0099"))
    for must_exist in (False, True):
        with pytest.raises(NewerSchemaError, match=f"'0099', this one knows up to '{HEAD}'. Upgrade"):
            open_store(url, must_exist=must_exist)


def test_a_database_without_our_tables_has_nothing_to_read(tmp_path: Path) -> None:
    optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'other.db'}").engine.dispose()
    with pytest.raises(StorageError, match="holds no lrsearch study"):
        open_store(f"sqlite:///{tmp_path / 'other.db'}", must_exist=True)


def test_optunas_tables_in_the_same_file_stay_as_they_are(url: str) -> None:
    storage = optuna.storages.RDBStorage(url)
    optuna.create_study(storage=storage, study_name="theirs").add_trial(optuna.trial.create_trial(value=1.0))
    storage.engine.dispose()
    open_store(url).close()
    engine = make_engine(parse_url(url))
    assert {"alembic_version", VERSION_TABLE, *metadata.tables} <= set(sa.inspect(engine).get_table_names())
    assert _differences(engine) == []
    engine.dispose()
    again = optuna.storages.RDBStorage(url)  # checks Optuna's own schema version
    assert optuna.load_study(study_name="theirs", storage=again).best_value == 1.0
    again.engine.dispose()


def test_migrating_leaves_the_programs_logging_alone(url: str, caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), root.disabled)
    with caplog.at_level(logging.INFO):
        level = root.level
        open_store(url).close()
        assert root.level == level
    assert caplog.records == []
    assert (root.level, root.handlers, root.disabled) == before
