"""The ledger's tables: study > search > trial > attempt > phase and points. A change here comes with its migration.

Nothing is ever deleted. Rates and results that are queried have columns of their own; what only travels is JSON.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import get_args

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Table, UniqueConstraint

from lrsearch.trial import PHASES, AttemptStatus, Stage, TrialStatus

HEAD = "0002"
"""The migration after which the tables are those below."""
VERSION_TABLE = "lrsearch_alembic_version"

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A time that is aware and UTC on both sides, also on SQLite, which forgets zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a stored time must be aware, got {value!r}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Json = sa.JSON(none_as_null=True)
"""Of which None is SQL's null. The text is kept as written, so the order of keys is too."""


def _one_of(column: str, allowed: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(sa.column(column).in_([sa.literal_column(f"'{value}'") for value in allowed]), name=column)


study = Table(
    "lrsearch_study",
    metadata,
    Column("id", sa.Integer, primary_key=True),
    Column("uuid", sa.String(36), nullable=False),
    Column("name", sa.String(200), nullable=False),
    Column("version", sa.Integer, nullable=False),
    Column("config", Json, nullable=False),
    Column("fingerprint", sa.String(128), nullable=False),
    Column("facts", Json),
    Column("created_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    # The lease of the one process that may write to this study; `token` counts its holders.
    Column("owner", sa.Text),
    Column("lease_seconds", sa.Double),
    Column("lease_expires_at", UtcDateTime),
    Column("token", sa.Integer, nullable=False),
    UniqueConstraint("uuid"),
    UniqueConstraint("name", "version"),
    CheckConstraint("version >= 1", name="version"),
)

search = Table(
    "lrsearch_search",
    metadata,
    Column("id", sa.Integer, primary_key=True),
    Column("study_id", ForeignKey("lrsearch_study.id"), nullable=False),
    Column("strategy", sa.String(200), nullable=False),
    Column("seed", sa.BigInteger, nullable=False),
    UniqueConstraint("study_id", "strategy", "seed"),
)

trial = Table(
    "lrsearch_trial",
    metadata,
    Column("id", sa.Integer, primary_key=True),
    Column("uuid", sa.String(36), nullable=False),
    Column("search_id", ForeignKey("lrsearch_search.id"), nullable=False),
    Column("number", sa.Integer, nullable=False),
    Column("stage", sa.String(20), nullable=False),
    Column("status", sa.String(20), nullable=False),
    Column("proposal", Json, nullable=False),
    Column("schedule", sa.Text),
    Column("learning_rate", sa.Double),
    Column("base_lr", sa.Double),
    Column("max_lr", sa.Double),
    # What follows is null until the trial has ended.
    Column("validation_loss", sa.Double),
    Column("validation_metric", sa.Double),
    Column("test_loss", sa.Double),
    Column("test_metric", sa.Double),
    Column("train_steps", sa.Integer),
    Column("diverged_step", sa.Integer),
    Column("verdict", Json),
    Column("facts", Json),
    Column("error", sa.Text),
    Column("traceback", sa.Text),
    UniqueConstraint("uuid"),
    UniqueConstraint("search_id", "number"),
    _one_of("stage", get_args(Stage)),
    _one_of("status", get_args(TrialStatus)),
    CheckConstraint("number >= 0", name="number"),
)

attempt = Table(
    "lrsearch_attempt",
    metadata,
    Column("id", sa.Integer, primary_key=True),
    Column("trial_id", ForeignKey("lrsearch_trial.id"), nullable=False),
    Column("number", sa.Integer, nullable=False),
    Column("status", sa.String(20), nullable=False),
    Column("owner", sa.Text, nullable=False),
    Column("lease_expires_at", UtcDateTime, nullable=False),
    Column("token", sa.String(32), nullable=False),
    Column("heartbeat_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("device_kind", sa.String(20)),
    Column("device_name", sa.Text),
    Column("device_count", sa.Integer),
    Column("device_threads", sa.Integer),
    Column("gang_size", sa.Integer, nullable=False),
    Column("core_seconds", sa.Double),
    Column("estimated", sa.Boolean, nullable=False),
    Column("peak_device_memory_bytes", sa.BigInteger),
    Column("energy_joules", sa.Double),
    Column("versions", Json, nullable=False),
    Column("error", sa.Text),
    # What a member of a gang really took, by phase; null for an attempt that had its device to itself.
    Column("billed_phase_seconds", Json),
    UniqueConstraint("token"),
    UniqueConstraint("trial_id", "number"),
    _one_of("status", get_args(AttemptStatus)),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint("gang_size >= 1", name="gang_size"),
)
Index(None, attempt.c.status)

phase = Table(
    "lrsearch_phase",
    metadata,
    Column("attempt_id", ForeignKey("lrsearch_attempt.id"), primary_key=True),
    Column("name", sa.String(20), primary_key=True),
    Column("seconds", sa.Double, nullable=False),
    _one_of("name", PHASES),
    CheckConstraint("seconds >= 0", name="seconds"),
)

curve_point = Table(
    "lrsearch_curve_point",
    metadata,
    Column("attempt_id", ForeignKey("lrsearch_attempt.id"), primary_key=True),
    Column("step", sa.Integer, primary_key=True),
    Column("epoch", sa.Double, nullable=False),
    Column("learning_rate", sa.Double, nullable=False),
    Column("train_loss", sa.Double),
    Column("validation_loss", sa.Double),
    Column("validation_metric", sa.Double),
    Column("charged_device_seconds", sa.Double, nullable=False),
    Column("cycle_end", sa.Boolean, nullable=False),
)

range_test_point = Table(
    "lrsearch_range_test_point",
    metadata,
    Column("attempt_id", ForeignKey("lrsearch_attempt.id"), primary_key=True),
    Column("step", sa.Integer, primary_key=True),
    Column("learning_rate", sa.Double, nullable=False),
    Column("train_loss", sa.Double),
    Column("validation_loss", sa.Double),
    Column("validation_metric", sa.Double),
)

event = Table(
    "lrsearch_event",
    metadata,
    Column("id", sa.Integer, primary_key=True),
    Column("study_id", ForeignKey("lrsearch_study.id"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("kind", sa.String(50), nullable=False),
    Column("data", Json, nullable=False),
)
Index(None, event.c.study_id)
