"""A study as one HTML page that opens offline, from disk, for ever: no request leaves it, no server is needed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lrsearch.analysis import StudySummary, summarise, wording
from lrsearch.analysis.document import study_document
from lrsearch.analysis.held import held_time, sentence
from lrsearch.analysis.problems import Problem, problems
from lrsearch.analysis.strip import strip, strip_lines
from lrsearch.analysis.table import Cell, Column, first_columns, further_columns, row_cells
from lrsearch.analysis.threats import threats
from lrsearch.analysis.way_summary import WaySummary
from lrsearch.figures import FIGURES, figure_tables
from lrsearch.figures._style import new_figure, way_styles
from lrsearch.page import GLYPHS, Download, download, make_template_ready, plot_of, render_page, write_page
from lrsearch.storage.export import TableName, export_rows, write_rows
from lrsearch.trial import StudyRecord

HERO = "accuracy_versus_cost"
THREATS_AT_ONCE = 3
MOST_PROBLEMS = 200
MOST_CURVE_POINTS = 5_000
MOST_EVALUATIONS = 20_000
"""Points of learning curves up to which a page carries its table of curves, and up to which its table of trials has
every column; what a bigger study lacks is left to `lrsearch export`."""
BOOKKEEPING = ("search_done", "charged_by")
"""Events that the page says otherwise, if at all."""


def write_report(record: StudyRecord, path: Path) -> Path:
    """Write the study's page to `path`, making its folder, and return `path`. Raises StorageError."""
    return write_page(render(record), path)


def make_ready() -> None:
    """Import and compile what the first page needs: for while this process waits for others."""
    new_figure(x="", y="").to_json()
    make_template_ready("report.html")


@dataclass(frozen=True)
class Row:
    """A way in a table."""

    way: WaySummary
    glyph: str
    is_clr: bool
    cells: Sequence[Cell]


def render(record: StudyRecord) -> str:
    """Return the page. Everything that anyone typed is escaped; the scripts are ours and allowed by their hashes."""
    summary, styles = summarise(record), way_styles(record)
    first, further = first_columns(summary), further_columns(summary)
    plots = [plot for key, drawing in FIGURES.items() if (plot := plot_of(key, drawing, record))]
    ended_badly = problems(record)
    held = held_time(record)
    return render_page(
        "report.html",
        way_styles=[styles[way.key] for way in summary.ways],
        record=record,
        summary=summary,
        columns=first,
        rows=_rows(record, summary, first),
        further_columns=further,
        further_rows=_rows(record, summary, further),
        hero=next((plot for plot in plots if plot.id == HERO), None),
        plots=[plot for plot in plots if plot.id != HERO],
        facts=strip_lines(strip(record)),
        threats=threats(record, summary),
        threats_at_once=THREATS_AT_ONCE,
        problems=[_row_of(problem) for problem in ended_badly[:MOST_PROBLEMS]],
        problem_count=len(ended_badly),
        events=_events(record),
        account=held and sentence(held),
        downloads=_downloads(record),
        study_file=_yaml(record.config),
    )


def _rows(record: StudyRecord, summary: StudySummary, shown: Sequence[Column]) -> list[Row]:
    styles = way_styles(record)
    return [
        Row(way, GLYPHS[styles[way.key].symbol], way.key == summary.clr, row_cells(shown, way)) for way in summary.ways
    ]


def _downloads(record: StudyRecord) -> list[Download]:
    """Return the tables that every number of the page follows from, and those numbers."""
    points = sum(len(trial.result.curve) for trial in record.trials if trial.result)
    tables: dict[TableName, str] = {"trials": "every trial with its rate, its values and each phase's seconds"}
    if points <= MOST_CURVE_POINTS:
        tables["curves"] = "every evaluation of every training run, with what had been charged by then"
    if points > MOST_EVALUATIONS:
        tables["trials"] += "; without its columns evaluations and range_test_points, which are too long for this page"
    files = [download(f"{record.name}-{name}.csv", what, _csv(record, name, points)) for name, what in tables.items()]
    document = {**study_document(record), "tables": figure_tables(record)}
    numbers = json.dumps(document, ensure_ascii=False, allow_nan=False)
    return [*files, download(f"{record.name}-numbers.json", "the verdict and the numbers of all tables", numbers)]


def _csv(record: StudyRecord, table: TableName, points: int) -> str:
    text = io.StringIO()
    without = ("evaluations", "range_test_points") if points > MOST_EVALUATIONS else ()
    write_rows(export_rows(record, table, without=without), "csv", text)
    return text.getvalue()


def _row_of(problem: Problem) -> tuple[str, ...]:
    return (
        problem.way,
        str(problem.seed),
        str(problem.trial),
        problem.stage.replace("_", " "),
        problem.status,
        wording.or_dash(problem.learning_rate, wording.rate),
        wording.significant(problem.charged_device_seconds),
        problem.what_happened,
    )


def _events(record: StudyRecord) -> list[tuple[str, str, str]]:
    return [
        (
            wording.moment(event.at),
            event.kind.replace("_", " "),
            "; ".join(f"{key.replace('_', ' ')}: {_short(value)}" for key, value in event.data.items()),
        )
        for event in record.events
        if event.kind not in BOOKKEEPING
    ]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return wording.significant(value)
    if value is None:
        return "not known"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _yaml(config: Mapping[str, Any]) -> str:
    yaml = YAML()
    yaml.default_flow_style = False
    stream = io.StringIO()
    yaml.dump(json.loads(json.dumps(config, default=str)), stream)
    return stream.getvalue()
