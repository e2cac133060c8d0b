"""The ledger: study, search, trial, attempt, phase, curve and range-test points, events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lrsearch_study",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("fingerprint", sa.String(length=128), nullable=False),
        sa.Column("facts", sa.JSON()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("owner", sa.Text()),
        sa.Column("lease_seconds", sa.Double()),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.CheckConstraint("version >= 1", name=op.f("ck_lrsearch_study_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lrsearch_study")),
        sa.UniqueConstraint("name", "version", name=op.f("uq_lrsearch_study_name_version")),
        sa.UniqueConstraint("uuid", name=op.f("uq_lrsearch_study_uuid")),
    )
    op.create_table(
        "lrsearch_event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=50), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["lrsearch_study.id"], name=op.f("fk_lrsearch_event_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lrsearch_event")),
    )
    op.create_index(op.f("ix_lrsearch_event_study_id"), "lrsearch_event", ["study_id"])
    op.create_table(
        "lrsearch_search",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("strategy", sa.String(length=200), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["lrsearch_study.id"], name=op.f("fk_lrsearch_search_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lrsearch_search")),
        sa.UniqueConstraint("study_id", "strategy", "seed", name=op.f("uq_lrsearch_search_study_id_strategy_seed")),
    )
    op.create_table(
        "lrsearch_trial",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("search_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("stage", sa.String(length=20), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("proposal", sa.JSON(), nullable=False),
        sa.Column("schedule", sa.Text()),
        sa.Column("learning_rate", sa.Double()),
        sa.Column("base_lr", sa.Double()),
        sa.Column("max_lr", sa.Double()),
        sa.Column("validation_loss", sa.Double()),
        sa.Column("validation_metric", sa.Double()),
        sa.Column("test_loss", sa.Double()),
        sa.Column("test_metric", sa.Double()),
        sa.Column("train_steps", sa.Integer()),
        sa.Column("diverged_step", sa.Integer()),
        sa.Column("verdict", sa.JSON()),
        sa.Column("facts", sa.JSON()),
        sa.Column("error", sa.Text()),
        sa.Column("traceback", sa.Text()),
        sa.CheckConstraint("stage IN ('range_test', 'train')", name=op.f("ck_lrsearch_trial_stage")),
        sa.CheckConstraint(
            "status IN ('planned', 'running', 'completed', 'diverged', 'pruned', 'failed')",
            name=op.f("ck_lrsearch_trial_status"),
        ),
        sa.CheckConstraint("number >= 0", name=op.f("ck_lrsearch_trial_number")),
        sa.ForeignKeyConstraint(["search_id"], ["lrsearch_search.id"], name=op.f("fk_lrsearch_trial_search_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lrsearch_trial")),
        sa.UniqueConstraint("search_id", "number", name=op.f("uq_lrsearch_trial_search_id_number")),
        sa.UniqueConstraint("uuid", name=op.f("uq_lrsearch_trial_uuid")),
    )
    op.create_table(
        "lrsearch_attempt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("device_kind", sa.String(length=20)),
        sa.Column("device_name", sa.Text()),
        sa.Column("device_count", sa.Integer()),
        sa.Column("device_threads", sa.Integer()),
        sa.Column("gang_size", sa.Integer(), nullable=False),
        sa.Column("core_seconds", sa.Double()),
        sa.Column("estimated", sa.Boolean(), nullable=False),
        sa.Column("peak_device_memory_bytes", sa.BigInteger()),
        sa.Column("energy_joules", sa.Double()),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.CheckConstraint(
            "status IN ('running', 'finished', 'interrupted', 'lost')", name=op.f("ck_lrsearch_attempt_status")
        ),
        sa.CheckConstraint("gang_size >= 1", name=op.f("ck_lrsearch_attempt_gang_size")),
        sa.CheckConstraint("number >= 1", name=op.f("ck_lrsearch_attempt_number")),
        sa.ForeignKeyConstraint(["trial_id"], ["lrsearch_trial.id"], name=op.f("fk_lrsearch_attempt_trial_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lrsearch_attempt")),
        sa.UniqueConstraint("token", name=op.f("uq_lrsearch_attempt_token")),
        sa.UniqueConstraint("trial_id", "number", name=op.f("uq_lrsearch_attempt_trial_id_number")),
    )
    op.create_index(op.f("ix_lrsearch_attempt_status"), "lrsearch_attempt", ["status"])
    op.create_table(
        "lrsearch_curve_point",
        sa.Column("attempt_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Double(), nullable=False),
        sa.Column("learning_rate", sa.Double(), nullable=False),
        sa.Column("train_loss", sa.Double()),
        sa.Column("validation_loss", sa.Double()),
        sa.Column("validation_metric", sa.Double()),
        sa.Column("charged_device_seconds", sa.Double(), nullable=False),
        sa.Column("cycle_end", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["lrsearch_attempt.id"], name=op.f("fk_lrsearch_curve_point_attempt_id")
        ),
        sa.PrimaryKeyConstraint("attempt_id", "step", name=op.f("pk_lrsearch_curve_point")),
    )
    op.create_table(
        "lrsearch_phase",
        sa.Column("attempt_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=20), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "name IN ('setup', 'warmup', 'train', 'evaluate', 'range_test', 'idle', 'lost', 'data', 'test_evaluation')",
            name=op.f("ck_lrsearch_phase_name"),
        ),
        sa.CheckConstraint("seconds >= 0", name=op.f("ck_lrsearch_phase_seconds")),
        sa.ForeignKeyConstraint(["attempt_id"], ["lrsearch_attempt.id"], name=op.f("fk_lrsearch_phase_attempt_id")),
        sa.PrimaryKeyConstraint("attempt_id", "name", name=op.f("pk_lrsearch_phase")),
    )
    op.create_table(
        "lrsearch_range_test_point",
        sa.Column("attempt_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("learning_rate", sa.Double(), nullable=False),
        sa.Column("train_loss", sa.Double()),
        sa.Column("validation_loss", sa.Double()),
        sa.Column("validation_metric", sa.Double()),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["lrsearch_attempt.id"], name=op.f("fk_lrsearch_range_test_point_attempt_id")
        ),
        sa.PrimaryKeyConstraint("attempt_id", "step", name=op.f("pk_lrsearch_range_test_point")),
    )
