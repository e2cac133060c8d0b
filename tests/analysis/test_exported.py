"""The exported table of trials alone gives the numbers of the database."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lrsearch.analysis import summarise
from lrsearch.analysis.document import study_document
from lrsearch.analysis.exported import read_trials, record_of_rows
from lrsearch.analysis.table import columns, row_cells
from lrsearch.config import load_study
from lrsearch.errors import UsageError
from lrsearch.figures import FROM_TRIALS
from lrsearch.storage.export import export_rows, write_rows
from lrsearch.storage.store import open_store
from lrsearch.study import run_study
from lrsearch.trial import StudyRecord
from tests.records import make_record, unfinished
from tests.test_study import Quiet

STUDY = """
version: 1
name: small
workload: {name: digits, model: mlp, batch_size: 64}
training: {epochs: 2, device: cpu, optimizer: {name: sgd, momentum: 0.9}}
seeds: [0, 1]
rates: {low: 1e-5, high: 10.0}
target: {metric: accuracy, value: 0.8}
price: {usd_per_device_hour: 2.5, as_of: 2026-11-23}
confirmation_seeds: 1
strategies:
  grid: {name: grid, points: 3}
  random: {name: random_search, trials: 2}
  clr: {name: range_tested, test: once_per_study, schedule: {name: triangular2, cycles: 1}}
  default: {name: default_rate, optimizer: {name: adam}}
"""


def through_csv(record: StudyRecord) -> StudyRecord:
    stream = io.StringIO()
    write_rows(export_rows(record, "trials"), "csv", stream)
    stream.seek(0)
    return read_trials(stream)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    folder = tmp_path_factory.mktemp("exported")
    (folder / "study.yaml").write_text(STUDY)
    url = f"sqlite:///{folder / 'x.db'}"
    with open_store(url) as store:
        return run_study(load_study(folder / "study.yaml"), store, observer=Quiet(), mirror_url=url)


def numbers(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a document by its path."""
    if isinstance(value, dict):
        return {k: v for key, one in value.items() for k, v in numbers(one, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, one in enumerate(value) for k, v in numbers(one, f"{path}/{i}").items()}
    return {path: value}


def same(record: StudyRecord) -> None:
    back = through_csv(record)
    expected, found = numbers(study_document(record)), numbers(study_document(back))
    assert set(found) == set(expected)
    for path, value in expected.items():
        assert found[path] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), path
    shown = columns(summarise(record))
    assert [c.title for c in columns(summarise(back))] == [c.title for c in shown]
    for row, row_back in zip(summarise(record).ways, summarise(back).ways, strict=True):
        assert row_cells(shown, row) == row_cells(shown, row_back)
    for drawing in FROM_TRIALS:
        assert drawing.table(back) == drawing.table(record), drawing.title


def test_a_real_study_is_the_same_from_its_csv_cell_by_cell(ran: StudyRecord) -> None:
    same(ran)
    assert summarise(ran).way("grid").confirmed is not None


@pytest.mark.parametrize(
    "record",
    [
        make_record(),
        unfinished(make_record(), 60),
        make_record(seeds=[0, 1], target=None, usd_per_device_hour=None),
        replace(make_record(seeds=[0, 1]), facts=replace(make_record().facts, higher_is_better=False)),  # type: ignore[type-var]  # it has facts
    ],
    ids=["whole", "unfinished", "no target, no price", "lower is better"],
)
def test_failures_kills_and_unfinished_searches_come_through(record: StudyRecord) -> None:
    same(record)


def test_the_document_is_json_without_nan(ran: StudyRecord) -> None:
    document = json.loads(json.dumps(study_document(ran), allow_nan=False))
    assert document["ways"]["grid"]["bill"]["charged_device_seconds"] > 0
    never = study_document(make_record())["ways"]["default"]["reach"]["expected_cost"]
    assert never == "infinite"


def test_the_seconds_to_target_of_a_trial_are_those_of_its_first_evaluation_that_met_it() -> None:
    for row, trial in zip(export_rows(make_record(), "trials"), make_record().trials, strict=True):
        before = sum(attempt.charged_device_seconds for attempt in trial.attempts[:-1])
        points = trial.result.curve if trial.result else ()
        hits = [before + p.charged_device_seconds for p in points if (p.validation_metric or 0) >= 0.95]
        assert row["seconds_to_target"] == (hits[0] if hits else None)
        assert len(row["evaluations"]) <= len(points)


HAND_MADE = """strategy,seed,validation_metric,charged_device_seconds,test_metric,learning_rate,target
grid_a,0,0.5,2,0.4,0.1,0.8
grid_a,0,0.9,3,0.85,0.2,0.8
grid_a,1,,1,,0.1,0.8
grid_a,1,0.7,4,0.7,0.2,0.8
clr,0,0.9,1,0.9,,0.8
clr,1,0.85,2,0.8,,0.8
"""


def test_a_table_written_by_hand_is_enough() -> None:
    record = read_trials(io.StringIO(HAND_MADE))
    summary = summarise(record)
    grid, clr = summary.way("grid_a"), summary.way("clr")
    assert (grid.reach and grid.reach.reached, grid.reach and grid.reach.total) == (1, 2)
    assert grid.reach is not None
    assert (grid.reach.expected_cost, grid.reach.median_cost) == (10.0, math.inf)
    assert clr.reach is not None
    assert clr.reach.expected_cost == 1.5
    assert summary.clr == "clr"
    assert grid.trials["failed"] == 1
    assert grid.tests == (0.85, 0.7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no trials"),
        ("strategy,seed\na,0\n", "lacks the column validation_metric"),
        (HAND_MADE.replace("grid_a,1,0.7,4", "grid_a,one,0.7,4"), "Line 5"),
        (HAND_MADE.replace("grid_a,1,0.7,4", "grid_a,1,0.7,-4"), "Line 5.*from 0 up"),
        (HAND_MADE.replace("grid_a,1,0.7,4", "grid_a,1,good,4"), "Line 5"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_trials(io.StringIO(text))


def test_two_studies_in_one_table_are_refused() -> None:
    rows = [
        *export_rows(make_record(seeds=[0]), "trials"),
        *export_rows(make_record(name="other", seeds=[0]), "trials"),
    ]
    with pytest.raises(UsageError, match="several studies"):
        record_of_rows(rows)


def test_rows_of_the_json_export_are_read_as_well(tmp_path: Path) -> None:
    record = make_record(seeds=[0, 1])
    rows = export_rows(record, "trials")
    assert study_document(record_of_rows(rows)) == study_document(through_csv(record))
    text = io.StringIO()
    write_rows(rows, "csv", text)
    assert csv.DictReader(io.StringIO(text.getvalue())).fieldnames == list(rows.columns)
