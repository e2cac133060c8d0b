"""Tables from which every number of the report can be computed again."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from lrsearch.storage import export
from lrsearch.storage.export import COLUMNS, TableName, export_rows, write_rows
from lrsearch.storage.store import End, Store, open_store
from lrsearch.trial import CHARGED_PHASES, PHASES, StudyRecord
from tests.storage.samples import (
    CYCLE,
    OWNER,
    RANGE_TEST,
    VERSIONS,
    begin,
    finish,
    held_study,
    points,
    range_test_result,
    result,
)


@pytest.fixture
def record(tmp_path: Path) -> Iterator[StudyRecord]:
    """A range test, a cyclical run with an interrupted attempt, a failed trial and one that runs."""
    with open_store(f"sqlite:///{tmp_path / 'x.db'}") as store:
        yield _filled(store)


def _filled(store: Store) -> StudyRecord:
    row = held_study(store)
    test = begin(store, row, RANGE_TEST, "clr")
    store.finish_attempts([End(test.attempt_id, test.token, range_test_result(test.uuid), None)])
    first = begin(store, row, CYCLE, "clr")
    store.interrupt_attempt(first.attempt_id, first.token, 1.0)
    finish(store, store.begin_trials(row.id, [first.uuid], owner=OWNER, versions=VERSIONS)[0])
    failed = begin(store, row)
    done = replace(result(failed.uuid, "failed"), error='it said "no", twice', curve=())
    store.finish_attempts([End(failed.attempt_id, failed.token, done, None)])
    begin(store, row, seed=1)
    return store.record("digits")


def exported(record: StudyRecord, table: TableName) -> list[dict[str, str]]:
    stream = io.StringIO()
    write_rows(export_rows(record, table), "csv", stream)
    stream.seek(0)
    return list(csv.DictReader(stream))


@pytest.mark.parametrize("table", get_args(TableName))
def test_every_column_is_explained(table: TableName) -> None:
    words = set(re.findall(r"[a-z_]+\*?", str(export.__doc__)))
    named = words | {f"{phase}_seconds" for phase in PHASES}
    kinds = tuple(word[:-1] for word in words if word.endswith("_*"))
    assert [column for column in COLUMNS[table] if column not in named and not column.startswith(kinds)] == []


def test_the_trials_table_has_the_promised_columns(record: StudyRecord) -> None:
    promised = {
        "study",
        "strategy",
        "seed",
        "trial",
        "stage",
        "status",
        "learning_rate",
        "schedule",
        "base_lr",
        "max_lr",
    }
    promised |= {"train_steps", "validation_metric", "test_metric", "charged_device_seconds", "core_seconds"}
    promised |= {"gang_size", "device_kind", "device_name", "device_threads", "started_at", "finished_at", "error"}
    rows = export_rows(record, "trials")
    assert promised | {f"{phase}_seconds" for phase in PHASES} <= set(rows.columns)
    assert all(tuple(row) == rows.columns for row in rows)


def test_a_trial_charges_all_its_attempts(record: StudyRecord) -> None:
    row = next(row for row in exported(record, "trials") if (row["strategy"], row["trial"]) == ("clr", "1"))
    assert (row["attempts"], row["status"], row["schedule"], row["max_lr"]) == ("2", "completed", "triangular2", "0.6")
    assert json.loads(row["schedule_settings"]) == {"cycles": 2}
    assert float(row["lost_seconds"]) == 1.0
    assert row["core_seconds"] == "", "nobody knows them of an attempt that was cut short"
    charged = sum(float(row[f"{phase}_seconds"]) for phase in CHARGED_PHASES)
    assert float(row["charged_device_seconds"]) == charged == pytest.approx(1.0 + 0.1 + 1 / 3 + 0.2 + 0.05)


def test_the_attempts_add_up_to_the_trials(record: StudyRecord) -> None:
    attempts, trials = exported(record, "attempts"), exported(record, "trials")
    assert [(row["strategy"], row["trial"], row["attempt"], row["status"]) for row in attempts] == [
        ("grid", "0", "1", "finished"),
        ("clr", "0", "1", "finished"),
        ("clr", "1", "1", "interrupted"),
        ("clr", "1", "2", "finished"),
        ("grid", "0", "1", "running"),
    ]
    for column in ("charged_device_seconds", *(f"{phase}_seconds" for phase in PHASES)):
        assert sum(float(row[column]) for row in attempts) == pytest.approx(sum(float(row[column]) for row in trials))
    assert json.loads(attempts[0]["versions"]) == VERSIONS


def test_every_number_keeps_all_its_digits(record: StudyRecord) -> None:
    [row, *_] = [row for row in exported(record, "trials") if row["status"] == "completed" and row["stage"] == "train"]
    assert (float(row["validation_loss"]), float(row["test_metric"])) == (1 / 3, 2 / 3)
    curve = [row for row in exported(record, "curves") if row["trial"] == "1"]
    assert [float(row["validation_metric"]) for row in curve] == [p.validation_metric for p in points()]
    assert [float(row["charged_device_seconds"]) for row in curve] == [p.charged_device_seconds for p in points()]
    assert [row["cycle_end"] for row in curve] == ["false", "false", "true"]
    assert {row["attempt"] for row in curve} == {"2"}


def test_a_value_that_does_not_exist_is_an_empty_cell(record: StudyRecord) -> None:
    rungs = exported(record, "range_tests")
    assert [row["train_loss"] for row in rungs] == ["2.3", "2.1", ""]
    assert [row["validation_metric"] for row in rungs] == ["0.1", "", ""]
    running = next(row for row in exported(record, "trials") if row["status"] == "running")
    assert [running[column] for column in ("validation_metric", "device_kind", "finished_at", "core_seconds")] == [
        ""
    ] * 4


def test_json_says_the_same_as_csv(record: StudyRecord) -> None:
    for table in get_args(TableName):
        stream = io.StringIO()
        write_rows(export_rows(record, table), "json", stream)
        rows = json.loads(stream.getvalue())
        assert rows == export_rows(record, table)
        for as_json, as_csv in zip(rows, exported(record, table), strict=True):
            assert list(as_json) == list(as_csv) == list(COLUMNS[table])
            for column, text in as_csv.items():
                value = as_json[column]
                expected = "" if value is None else value if isinstance(value, str) else json.dumps(value)
                assert text == expected, (table, column)


@pytest.mark.parametrize("table", get_args(TableName))
def test_an_empty_table_keeps_its_header(table: TableName, record: StudyRecord) -> None:
    stream = io.StringIO()
    write_rows(export_rows(replace(record, trials=()), table), "csv", stream)
    assert stream.getvalue() == ",".join(COLUMNS[table]) + "\n"
