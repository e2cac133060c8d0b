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
from lrsearch.analysis.cost import device_models
from lrsearch.analysis.document import study_document
from lrsearch.analysis.table import Cell, Column, first_columns, further_columns, row_cells
from lrsearch.analysis.threats import EXCLUSIVE_BELOW, busy_with_others, package_versions, threats
from lrsearch.analysis.way_summary import WaySummary
from lrsearch.figures import FIGURES, figure_tables
from lrsearch.figures._style import way_styles
from lrsearch.page import GLYPHS, Download, download, moment, plot_of, render_page, write_page
from lrsearch.storage.export import TableName, export_rows, write_rows
from lrsearch.trial import Event, StudyRecord, TrialRecord

HERO = "accuracy_versus_cost"
BILLS = ("billed_device_seconds", "charged_device_seconds")
THREATS_AT_ONCE = 3
MOST_PROBLEMS = 200
MOST_CURVE_POINTS = 5_000
MOST_EVALUATIONS = 20_000
"""Points of learning curves up to which a page carries its table of curves, and up to which its table of trials has
every column; what a bigger study lacks is left to `lrsearch export`."""


def write_report(record: StudyRecord, path: Path) -> Path:
    """Write the study's page to `path`, making its folder, and return `path`. Raises StorageError."""
    return write_page(render(record), path)


@dataclass(frozen=True)
class Row:
    """A way in a table."""

    way: WaySummary
    glyph: str
    is_clr: bool
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Problem:
    """A trial that gave no model."""

    way: str
    seed: int
    trial: int
    stage: str
    status: str
    rate: str
    seconds: str
    error: str


def render(record: StudyRecord) -> str:
    """Return the page. Everything that anyone typed is escaped; the scripts are ours and allowed by their hashes."""
    summary, styles = summarise(record), way_styles(record)
    first, further = first_columns(summary), further_columns(summary)
    plots = [plot for key, drawing in FIGURES.items() if (plot := plot_of(key, drawing, record))]
    problems = [trial for trial in record.trials if trial.status in ("diverged", "failed")]
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
        facts=_facts(record, summary),
        threats=threats(record, summary),
        threats_at_once=THREATS_AT_ONCE,
        problems=[_problem(trial) for trial in problems[:MOST_PROBLEMS]],
        problem_count=len(problems),
        events=_events(record),
        account=_account(record),
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


def _facts(record: StudyRecord, summary: StudySummary) -> list[tuple[str, str]]:
    """Return the strip: what ran, on what, when, with which versions."""
    done, planned = (sum(getattr(way, f"searches_{which}") for way in summary.ways) for which in ("done", "planned"))
    attempts = [attempt for trial in record.trials for attempt in trial.attempts]
    threads = sorted({attempt.device.threads for attempt in attempts if attempt.device})
    times = sorted([attempt.started_at for attempt in attempts])
    ends = sorted([attempt.finished_at for attempt in attempts if attempt.finished_at])
    facts = [
        ("Searches", f"{done} of {planned} done, {len(summary.ways)} ways × {len(record.seeds)} seeds"),
        ("Trials", str(len(record.trials))),
        *_gangs(record),
        ("Workload", record.facts.description if record.facts else str(record.config["workload"]["name"])),
        ("Device", ", ".join(map(str, summary.devices)) or "not known yet"),
        ("Threads", ", ".join(map(str, threads)) or "–"),
        ("Precision", _precision(record)),
        ("Shared with others?", _sharing(record)),
        ("Ran", f"{moment(times[0])} to {moment(ends[-1])}" if times and ends else "–"),
        ("Versions", ", ".join(f"{name} {' and '.join(found)}" for name, found in package_versions(record).items())),
    ]
    commits = dict.fromkeys(str(one.data["commit"]) for one in _surroundings(record) if one.data.get("commit"))
    facts.append(("Commit of the study's folder", ", ".join(commits) or "not recorded"))
    price = record.config.get("price")
    if price:
        facts.append(("Price", f"{wording.usd(price['usd_per_device_hour'])} per device hour, as of {price['as_of']}"))
    return [(name, text or "–") for name, text in facts]


def _precision(record: StudyRecord) -> str:
    """Return in what the models computed; runs of one study may differ when `auto` found another device."""
    found = dict.fromkeys(str(event.data["precision"]) for event in record.events if "precision" in event.data)
    training = record.config["training"]
    compiled = ", compiled by torch.compile" if training.get("compile") == "on" else ""
    return " and ".join(found or [str(training.get("precision", "not recorded"))]) + compiled


def _surroundings(record: StudyRecord) -> list[Event]:
    return [event for event in record.events if event.kind == "surroundings"]


def _sharing(record: StudyRecord) -> str:
    """Return whether other programs worked on the machine: the mean over runs, by their length."""
    busy = busy_with_others(record)
    if busy is None:
        return "not recorded"
    kind = "exclusive" if busy < EXCLUSIVE_BELOW else "shared"
    processors = wording.counted(int(_surroundings(record)[-1].data.get("processors") or 1), "processor")
    only = (
        "" if all(one.kind == "cpu" for one in device_models(record.trials)) else "; of the accelerator: not recorded"
    )
    return f"{kind}: other programs kept {wording.significant(busy, 2)} of {processors} busy{only}"


def _problem(trial: TrialRecord) -> Problem:
    return Problem(
        trial.strategy,
        trial.seed,
        trial.number,
        trial.stage.replace("_", " "),
        trial.status,
        _rate_of(trial.proposal.learning_rate),
        wording.significant(trial.charged_device_seconds),
        _what_happened(trial),
    )


def _what_happened(trial: TrialRecord) -> str:
    result = trial.result
    if result is not None and result.error:
        return result.error
    if trial.status == "diverged":
        at = "" if result is None or result.diverged_step is None else f" at step {result.diverged_step}"
        return f"the loss became non-finite{at}"
    return "no reason known"


def _rate_of(value: float | None) -> str:
    return "–" if value is None else wording.rate(value)


def _events(record: StudyRecord) -> list[tuple[str, str, str]]:
    return [
        (
            moment(event.at),
            event.kind.replace("_", " "),
            "; ".join(f"{key.replace('_', ' ')}: {_short(value)}" for key, value in event.data.items()),
        )
        for event in record.events
        if event.kind != "search_done"  # bookkeeping of studies whose searches run side by side
    ]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return wording.significant(value)
    if value is None:
        return "not known"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _gangs(record: StudyRecord) -> list[tuple[str, str]]:
    """Return, where trials trained together, how many and which of their two bills the page is about."""
    members = [trial for trial in record.trials if trial.gang_size > 1]
    if not members:
        return []
    billed, alone = (sum(getattr(trial, name) for trial in members) for name in BILLS)
    text = (
        f"{len(members)} trials, up to {max(trial.gang_size for trial in members)} at a time, in "
        f"{wording.significant(billed)} s; all costs below charge what each takes alone, "
        f"{wording.significant(alone)} s"
    )
    return [("Trained together", text)]


def _account(record: StudyRecord) -> dict[str, str] | None:
    """Return how much of the time that the process held the device is on a bill; None where that time is not known.

    A killed process leaves no record of how long it held the device.
    """
    runs = [float(event.data["held_seconds"]) for event in record.events if "held_seconds" in event.data]
    processes = {attempt.owner for trial in record.trials for attempt in trial.attempts}
    held = sum(runs)
    if not held or len(processes) > len(runs):
        return None
    charged = sum(trial.billed_device_seconds for trial in record.trials)
    confirming = sum(trial.charged_device_seconds for trial in record.confirmations)
    trials = (*record.trials, *record.confirmations)
    apart = sum(attempt.billed_seconds - attempt.billed_device_seconds for one in trials for attempt in one.attempts)
    return {
        "held": wording.significant(held, 4),
        "charged": wording.significant(charged, 4),
        "confirming": wording.significant(confirming) if confirming else "",
        "apart": wording.significant(apart),
        "share": f"{100 * (charged + confirming + apart) / held:.1f} %",
    }


def _yaml(config: Mapping[str, Any]) -> str:
    yaml = YAML()
    yaml.default_flow_style = False
    stream = io.StringIO()
    yaml.dump(json.loads(json.dumps(config, default=str)), stream)
    return stream.getvalue()
