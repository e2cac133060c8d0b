"""A study as one HTML page that opens offline, from disk, for ever: no request leaves it, no server is needed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from ruamel.yaml import YAML

from lrsearch import __version__
from lrsearch.analysis import StudySummary, summarise, wording
from lrsearch.analysis.table import Cell, Column, columns, row_cells
from lrsearch.analysis.threats import package_versions, threats
from lrsearch.analysis.way_summary import WaySummary
from lrsearch.errors import StorageError
from lrsearch.figures import FIGURES, Drawing, Table
from lrsearch.figures._style import WayStyle, way_styles
from lrsearch.trial import APART_PHASES, PHASES, StudyRecord, TrialRecord, charged_seconds

GLYPHS = {
    "diamond": "◆",
    "circle": "●",
    "square": "■",
    "triangle-up": "▲",
    "triangle-down": "▼",
    "pentagon": "⬟",
    "star": "★",
    "hexagram": "✶",
    "bowtie": "⧓",
}


def write_report(record: StudyRecord, path: Path) -> Path:
    """Write the study's page to `path`, making its folder, and return `path`.

    The page appears whole or not at all: a report that was there before survives a kill and a full disk. Raises
    StorageError when it cannot be written.
    """
    page = render(record)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, page)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"Cannot write the report {path}: {reason}. Nothing of the study is lost: free space, or name a file in a "
            "folder that you may write to, and make the report again."
        ) from error
    return path


def replace_file(path: Path, text: str) -> None:
    """Write beside `path`, force it to disk, then rename: what stands at `path` is always a whole page."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@dataclass(frozen=True)
class Row:
    """A way in the first table."""

    way: WaySummary
    glyph: str
    color: str
    is_clr: bool
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Plot:
    """A figure on the page: drawn by script from JSON, readable as a table without."""

    id: str
    title: str
    caption: str
    json: Markup
    height: int
    table: Table


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
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("lrsearch"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [get_plotlyjs(), _asset("report.js")]
    summary = summarise(record)
    shown = columns(summary)
    plots = [plot for key, drawing in FIGURES.items() if (plot := _plot(key, drawing, record))]
    return environment.get_template("report.html").render(
        scripts=[Markup(script) for script in scripts],  # noqa: S704  # plotly's bundle and our own file
        style=Markup(_asset("report.css")),  # noqa: S704  # our own file
        policy=content_security_policy(scripts),
        record=record,
        summary=summary,
        columns=shown,
        rows=_rows(record, summary, shown),
        hero=next((plot for plot in plots if plot.id == "accuracy_versus_cost"), None),
        plots=[plot for plot in plots if plot.id != "accuracy_versus_cost"],
        facts=_facts(record, summary),
        threats=threats(record, summary),
        problems=_problems(record),
        events=_events(record),
        account=_account(record),
        study_file=_yaml(record.config),
        version=__version__,
        written_at=_moment(datetime.now(UTC)),
    )


def content_security_policy(scripts: Sequence[str]) -> str:
    """Return a policy under which these scripts run, plots draw (inline styles, data images), and nothing loads."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _rows(record: StudyRecord, summary: StudySummary, shown: Sequence[Column]) -> list[Row]:
    styles: Mapping[str, WayStyle] = way_styles(record)
    return [
        Row(
            way,
            GLYPHS[styles[way.key].symbol],
            styles[way.key].color,
            way.key == summary.clr,
            row_cells(shown, way),
        )
        for way in summary.ways
    ]


def _plot(key: str, drawing: Drawing, record: StudyRecord) -> Plot | None:
    figure = drawing(record)
    if figure is None:
        return None
    return Plot(
        id=key,
        title=drawing.title,
        caption=drawing.caption(record),
        json=_script_json(figure.to_json()),
        height=int(figure.layout.height or 420),
        table=drawing.table(record),
    )


def _script_json(text: str) -> Markup:
    """Return JSON that cannot end the script element that holds it."""
    escaped = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(escaped)  # noqa: S704  # made safe by the line above


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
        ("Workload", record.facts.description if record.facts else str(record.config["workload"]["name"])),
        ("Device", ", ".join(map(str, summary.devices)) or "not known yet"),
        ("Threads", ", ".join(map(str, threads)) or "–"),
        ("Ran", f"{_moment(times[0])} to {_moment(ends[-1])}" if times and ends else "–"),
        ("Versions", ", ".join(f"{name} {' and '.join(found)}" for name, found in package_versions(record).items())),
    ]
    price = record.config.get("price")
    if price:
        facts.append(("Price", f"${price['usd_per_device_hour']:g} per device hour, as of {price['as_of']}"))
    return [(name, text or "–") for name, text in facts]


def _problems(record: StudyRecord) -> list[Problem]:
    """Return every trial that diverged or failed, with its one line."""
    return [
        Problem(
            trial.strategy,
            trial.seed,
            trial.number,
            trial.stage.replace("_", " "),
            trial.status,
            _rate_of(trial.proposal.learning_rate),
            wording.significant(trial.charged_device_seconds),
            _what_happened(trial),
        )
        for trial in record.trials
        if trial.status in ("diverged", "failed")
    ]


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
        (_moment(event.at), event.kind.replace("_", " "), "; ".join(f"{k}: {_short(v)}" for k, v in event.data.items()))
        for event in record.events
    ]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return wording.significant(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _account(record: StudyRecord) -> dict[str, str] | None:
    """Return how much of the time that the process held the device is on a bill; None where that time is not known.

    A killed process leaves no record of how long it held the device.
    """
    runs = [float(event.data["held_seconds"]) for event in record.events if "held_seconds" in event.data]
    processes = {attempt.owner for trial in record.trials for attempt in trial.attempts}
    held = sum(runs)
    if not held or len(processes) > len(runs):
        return None
    phases = {phase: sum(trial.phase_seconds[phase] for trial in record.trials) for phase in PHASES}
    charged, apart = charged_seconds(phases), sum(phases[phase] for phase in APART_PHASES)
    return {
        "held": wording.significant(held, 4),
        "charged": wording.significant(charged, 4),
        "apart": wording.significant(apart),
        "share": f"{100 * (charged + apart) / held:.1f} %",
    }


def _yaml(config: Mapping[str, Any]) -> str:
    yaml = YAML()
    yaml.default_flow_style = False
    stream = io.StringIO()
    yaml.dump(json.loads(json.dumps(config, default=str)), stream)
    return stream.getvalue()


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
