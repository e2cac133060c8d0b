"""The exported table of trials alone gives the numbers of the database."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lrsearch import __version__
from lrsearch.analysis import summarise
from lrsearch.analysis.details import early_clues
from lrsearch.analysis.document import study_document
from lrsearch.analysis.exported import notes_on, read_rows, read_trials, record_of_rows
from lrsearch.analysis.table import columns, row_cells
from lrsearch.config import load_study
from lrsearch.errors import UsageError
from lrsearch.figures import FIGURES, figure_tables
from lrsearch.report import render
from lrsearch.storage.export import export_rows, write_rows
from lrsearch.storage.store import open_store
from lrsearch.study import run_study
from lrsearch.trial import Event, StudyRecord
from tests.records import STARTED, VERSIONS, make_record, unfinished
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


def as_csv(record: StudyRecord, *without: str) -> io.StringIO:
    stream = io.StringIO()
    write_rows(export_rows(record, "trials", without=without), "csv", stream)
    stream.seek(0)
    return stream


def through_csv(record: StudyRecord) -> StudyRecord:
    return read_trials(as_csv(record))


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
    for drawing in FIGURES.values():
        assert drawing.table(back) == drawing.table(record), drawing.title


def test_a_real_study_is_the_same_from_its_csv_cell_by_cell(ran: StudyRecord) -> None:
    same(ran)
    assert summarise(ran).way("grid").confirmed is not None


class Page(HTMLParser):
    """What a page says: `rows` of all tables, each a list of the texts of its cells, and `words`, all text outside of
    scripts, both with the section that they stand in.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[tuple[str, list[str]]] = []
        self.words: list[tuple[str, str]] = []
        self._section, self._in_cell, self._in_script = "", False, False
        self.feed(page)

    def text(self, section: str) -> str:
        return " ".join(" ".join(words for place, words in self.words if place == section).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag in ("script", "style")
        if tag in ("section", "footer"):
            self._section = dict(attrs).get("id") or tag
        elif tag == "tr":
            self.rows.append((self._section, []))
        elif tag in ("th", "td"):
            self.rows[-1][1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("th", "td")
        self._in_script = False
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if not self._in_script:
            self.words.append((self._section, data))
        if self._in_cell:
            self.rows[-1][1][-1] += data


def test_every_word_of_the_page_is_what_the_csv_alone_gives(ran: StudyRecord, tmp_path: Path) -> None:
    page = Page(render(ran))
    assert {section for section, _ in page.rows} >= {*OF_A_STUDY, "ways", "more", "events"}
    assert_same(page, Page(render(through_csv(ran))))
    (tmp_path / "trials.csv").write_text(as_csv(ran).getvalue())
    said = subprocess.run(
        [sys.executable, "-m", "lrsearch", "analyze", str(tmp_path / "trials.csv"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(said.stdout)
    assert_numbers_of_the_page(document, page)
    assert document["notes"] == []
    assert document["strip"]["versions"]["lrsearch"] == [__version__]
    assert document["strip"]["seeds"] == 2
    assert document["held_time"]["share"] == pytest.approx(1.0, abs=0.2)


def assert_same(page: Page, other: Page) -> None:
    """Hold two pages to the same words, but for the sizes of their downloads and when they were written."""
    assert page.rows == other.rows
    apart = ("downloads", "footer")
    kept, others = ([(s, w) for s, w in one.words if s not in apart] for one in (page, other))
    assert kept == others


def assert_numbers_of_the_page(document: dict[str, Any], page: Page) -> None:
    """Hold the JSON's words to those of the page, section by section."""
    for key, table in document["tables"].items():
        assert [cells for section, cells in page.rows if section == key] == [table["columns"], *table["rows"]], key
        assert " ".join(table["caption"].split()) in page.text(key)
    assert set(document["tables"]) == {section for section, _ in page.rows} & set(FIGURES)
    lines = " ".join(f"{name} {text}" for name, text in document["strip"]["lines"].items())
    assert page.text("facts") == f"What ran {lines}"
    threats = page.text("threats")
    assert document["threats"]
    assert all(threat in threats for threat in document["threats"])
    rest = threats
    for threat in document["threats"]:
        rest = rest.replace(threat, "", 1)
    assert rest.split()[:4] == ["What", "could", "be", "wrong"]
    assert len(rest.split()) <= 6, "and how many more there are"
    line = (document["held_time"] or {"line": ""})["line"]
    assert line in page.text("methods")
    assert bool(line) == ("accounted for" in page.text("methods"))
    of_ways = [cells for section, cells in page.rows if section in ("ways", "more") and cells[0] != "Way"]
    shown = [text for cells in of_ways for text in cells[1:]]
    assert sorted(shown) == sorted("".join(cell) for cells in document["cells"].values() for cell in cells.values())
    troubled = [tuple(cells[:3]) for section, cells in page.rows if section == "problems" and cells[0] != "Way"]
    assert troubled == [(one["way"], str(one["seed"]), str(one["trial"])) for one in document["problems"]]


def test_the_page_of_a_study_with_failures_is_that_of_its_csv() -> None:
    record = with_surroundings(make_record(seeds=[0, 1]))
    page = Page(render(record))
    assert "problems" in {section for section, _ in page.rows}
    assert "died unseen" in page.text("threats")
    assert "different versions of torch" in page.text("threats")
    assert_same(page, Page(render(through_csv(record))))
    document = study_document(through_csv(record))
    assert_numbers_of_the_page({**document, "tables": figure_tables(record)}, page)
    assert document["strip"]["busy_with_others"] == 0.75
    assert document["strip"]["commits"] == ["abc"]


def with_surroundings(record: StudyRecord) -> StudyRecord:
    """Another process, with another torch, ended the study; the first was killed; the machine was shared."""
    *others, last = record.trials
    attempts = tuple(
        replace(one, owner="other:1:1:1", versions={**one.versions, "torch": "2.11.0"}) for one in last.attempts
    )
    noted = {"processors": 2, "seconds": 9.0, "busy_with_others": 0.75, "commit": "abc"}
    return replace(
        record,
        trials=(*others, replace(last, attempts=attempts)),
        events=(*record.events, Event(STARTED, "surroundings", noted)),
    )


def test_no_host_is_named_in_a_table_that_pages_carry() -> None:
    record = make_record(seeds=[0])
    owners = {attempt.owner for trial in record.trials for attempt in trial.attempts}
    assert owners
    assert not any(owner in as_csv(record).getvalue() for owner in owners)


def test_tables_of_before_attempts_were_told_apart_are_still_read() -> None:
    record = make_record(seeds=[0, 1])
    rows = read_rows(as_csv(record, "attempt_records"))
    assert [note for note in notes_on(rows) if "attempt_records" in note] == notes_on(rows) != []
    expected, found = (study_document(one) for one in (record, record_of_rows(rows)))
    assert found["held_time"] is None, "it is not known which process ran what"
    assert found["strip"].pop("versions") == {}
    different = {key for key, value in plain_numbers(expected).items() if plain_numbers(found).get(key) != value}
    assert {key.split("/")[1] for key in different} <= {"held_time", "strip"}
    assert {key for key in different if key.startswith("/strip")} == {
        *(f"/strip/versions/{name}/0" for name in VERSIONS),
        "/strip/lines/Versions",
    }


def plain_numbers(document: dict[str, Any]) -> dict[str, Any]:
    """Every leaf of a document by its path, numbers to nine digits."""
    return {
        key: float(f"{value:.9g}") if isinstance(value, float) else value for key, value in numbers(document).items()
    }


OF_A_STUDY = ("range_test", "schedules", "learning_curves", "value_versus_rate", "cost_by_phase", "leaderboard")


def test_ways_and_searches_that_have_not_begun_are_seen() -> None:
    record = unfinished(make_record(), 3)
    assert len({trial.strategy for trial in record.trials}) < len(record.strategies)
    same(record)
    back = summarise(through_csv(record))
    assert [(row.key, row.searches_done, row.searches_planned) for row in back.ways][-1] == ("default", 0, 5)


def test_searches_are_done_where_the_ledger_says_so() -> None:
    done = Event(STARTED, "search_done", {"strategy": "default", "seed": 0})
    record = replace(unfinished(make_record(), 60), events=(done,))
    same(record)
    assert [row.searches_done for row in summarise(through_csv(record)).ways] == [0, 0, 0, 0, 0, 0, 1]


def test_the_order_of_the_rows_does_not_matter() -> None:
    record = make_record(seeds=[0, 1])
    rows = read_rows(as_csv(record))
    shuffled = sorted(rows, key=lambda row: row["uuid"][::-1])
    assert shuffled != rows
    assert study_document(record_of_rows(shuffled)) == study_document(record)


def test_what_a_table_cannot_give_is_said(ran: StudyRecord) -> None:
    assert notes_on(read_rows(as_csv(ran))) == []
    notes = " ".join(notes_on(read_rows(as_csv(ran, "study_record", "evaluations", "range_test_points"))))
    assert all(column in notes for column in ("study_record", "evaluations", "range_test_points"))
    assert len(notes_on(read_rows(io.StringIO(HAND_MADE)))) == 3


def test_without_evaluations_costs_to_the_target_are_still_true_and_nothing_is_made_up(ran: StudyRecord) -> None:
    back = read_trials(as_csv(ran, "evaluations"))
    for row, known in zip(summarise(back).ways, summarise(ran).ways, strict=True):
        assert row.reach is not None
        assert known.reach is not None
        assert row.reach.expected_cost == pytest.approx(known.reach.expected_cost)
    assert early_clues(ran)
    assert not early_clues(back)
    assert not FIGURES["learning_curves"].table(back).rows


@pytest.mark.parametrize("change", [{"config": {}}, {"facts": {"metric": "x"}}, {"events": [{"at": "now"}]}, None])
def test_a_study_record_that_is_none_is_refused(change: dict[str, Any] | None) -> None:
    rows = [dict(row) for row in read_rows(as_csv(make_record(seeds=[0])))]
    rows[0]["study_record"] = "{" if change is None else json.dumps({**json.loads(rows[0]["study_record"]), **change})
    with pytest.raises(UsageError, match="study_record cannot be read"):
        record_of_rows(rows)


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
        (HAND_MADE.replace(",target", ",trial").replace(",0.8\n", ",inf\n"), "Line 2"),
        (HAND_MADE.replace(",0.8\n", ",good\n"), "Line 2"),
        (HAND_MADE.replace(",target", ",chance").replace(",0.8\n", ",good\n"), "Line 2"),
        (HAND_MADE.replace(",target", ",version").replace(",0.8\n", ",first\n"), "Line 2"),
        (
            HAND_MADE.replace(",target", ",status").replace(",0.8\n", ",COMPLETE\n"),
            "status must be one of .*'COMPLETE'",
        ),
        (
            HAND_MADE.replace(",target", ",trial").replace(",0.8\n", ",7\n"),
            "Line 3.* trial 7 of grid_a, seed 0, is in it twice",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_trials(io.StringIO(text))


@pytest.mark.parametrize("value", ["inf", "-inf"])
def test_values_that_are_not_finite_are_none(value: str) -> None:
    def document(value: str) -> dict[str, Any]:
        lines = HAND_MADE.replace("clr,0,0.9,1,0.9", f"clr,0,{value},1,{value}")
        return study_document(read_trials(io.StringIO(lines)))

    assert document(value) == document("nan")


def test_two_studies_in_one_table_are_refused() -> None:
    rows = [
        *export_rows(make_record(seeds=[0]), "trials"),
        *export_rows(make_record(name="other", seeds=[0]), "trials"),
    ]
    with pytest.raises(UsageError, match="several studies"):
        record_of_rows(rows)


def test_rows_of_the_json_export_are_read_as_well() -> None:
    record = make_record(seeds=[0, 1])
    rows = export_rows(record, "trials")
    assert study_document(record_of_rows(rows)) == study_document(through_csv(record))
    text = io.StringIO()
    write_rows(rows, "csv", text)
    assert csv.DictReader(io.StringIO(text.getvalue())).fieldnames == list(rows.columns)
