"""The frame of every page: one HTML file that opens offline, from disk, for ever, and that no network can reach.

A page's own policy allows its scripts and its style by their hashes and forbids everything else, requests included. All
text is escaped; figures are drawn by script from JSON, and each has its table.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lrsearch import __version__, faults
from lrsearch.analysis import wording
from lrsearch.errors import StorageError
from lrsearch.figures import Drawing, Table
from lrsearch.figures._style import WayStyle
from lrsearch.trial import StudyRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

FOLDER = Path(__file__).parent
MOST_ROWS = 400
"""Of a figure's table; the downloads have every trial."""
LONGEST_PLAIN_DOWNLOAD = 200_000  # characters; longer ones are packed
DIGITS = 6
"""Significant digits of a drawn point: finer than a screen, and a third of the size."""
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


@dataclass(frozen=True)
class Plot:
    """A figure on the page: drawn by script from JSON, readable as a table without."""

    id: str
    title: str
    caption: str
    json: Markup | None
    """None where the table says it all."""
    table: Table
    rows_left_out: int = 0


@dataclass(frozen=True)
class Download:
    """A file that the page carries within itself."""

    name: str
    what: str
    address: str
    size: str


def render_page(template: str, *, way_styles: Sequence[WayStyle] = (), draws: bool = True, **context: Any) -> str:
    """Return the page of `template`, which extends base.html; `way_styles` colour the classes way-0, way-1, ..."""
    bundle, is_small = plotly_script()
    scripts = [bundle, _asset("page.js")] if draws else []
    style = "\n".join(
        [_asset("page.css"), *(f".way-{i} {{ color: {one.color}; }}" for i, one in enumerate(way_styles))]
    )
    return (
        _environment()
        .get_template(template)
        .render(
            scripts=[Markup(script) for script in scripts],  # noqa: S704  # plotly's bundle and our own file
            style=Markup(style),  # noqa: S704  # our own file and colours
            policy=content_security_policy(scripts, [style]),
            is_small=is_small or not draws,
            version=__version__,
            written_at=wording.moment(datetime.now(UTC)),
            **context,
        )
    )


def make_template_ready(template: str) -> None:
    """Read and compile what `render_page` will need."""
    plotly_script()
    _environment().get_template(template)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lrsearch"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment


def breakable(text: str) -> Markup:
    """Return `text`, escaped, so that a narrow column breaks it after an underscore rather than within a word."""
    return Markup("_<wbr>").join(text.split("_"))


@cache
def plotly_script() -> tuple[str, bool]:
    """Return plotly.js as the installed plotly declares it, and whether it is the small bundle that we bring.

    Ours draws lines, points and bars in a quarter of the size. Another plotly.js than the installed plotly's could read
    a figure differently, so that with any other version the installed package's own bundle is taken whole.
    """
    from plotly.offline import get_plotlyjs, get_plotlyjs_version

    small = FOLDER / "vendor" / f"plotly-basic-{get_plotlyjs_version()}.min.js"
    return (small.read_text(encoding="utf-8"), True) if small.exists() else (str(get_plotlyjs()), False)


def content_security_policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """Return a policy under which these scripts and styles work, images lie in the page, and nothing is loaded.

    plotly adds style elements that are empty and fills them by script, which needs the hash of nothing.
    """
    script_hashes, style_hashes = (" ".join(map(_hash, texts)) for texts in (scripts, [*styles, ""]))
    nothing = "'none'"
    return (
        f"default-src 'none'; script-src {script_hashes or nothing}; style-src {style_hashes}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (FOLDER / "templates" / name).read_text(encoding="utf-8")


def plot_of(key: str, drawing: Drawing, record: StudyRecord) -> Plot | None:
    """Return a drawing's figure and table, or its table alone; None when it has neither."""
    figure, table = drawing(record), drawing.table(record)
    if figure is None and not table.rows:
        return None
    return plot(key, drawing.title, drawing.caption(record), figure, table)


def plot(key: str, title: str, caption: str, figure: go.Figure | None, table: Table) -> Plot:
    """Return a figure with its words, its table cut to MOST_ROWS."""
    shown = Table(table.columns, table.rows[:MOST_ROWS])
    return Plot(
        key, title, caption, None if figure is None else _json(figure), shown, max(0, len(table.rows) - MOST_ROWS)
    )


def _json(figure: go.Figure) -> Markup:
    """Return the figure as JSON that cannot end the script element that holds it."""
    text = json.dumps(_rounded(json.loads(figure.to_json())), separators=(",", ":"), ensure_ascii=False)
    escaped = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(escaped)  # noqa: S704  # made safe by the line above


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return {key: _rounded(one) for key, one in value.items()} if isinstance(value, dict) else value


def download(name: str, what: str, text: str) -> Download:
    """Return a file within the page, packed (NAME.gz) when it is long."""
    content, kind = text.encode(), "application/json" if name.endswith(".json") else "text/csv"
    if len(content) > LONGEST_PLAIN_DOWNLOAD:
        content, kind, name = gzip.compress(content, mtime=0), "application/gzip", f"{name}.gz"
    address = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return Download(name, what, address, f"{max(1, round(len(content) / 1000)):,} kB")


def write_page(page: str, path: Path) -> Path:
    """Write `page` to `path`, making its folder, and return `path`.

    The page appears whole or not at all: one that was there before survives a kill and a full disk. Raises StorageError
    when it cannot be written.
    """
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
        faults.point("page_before_rename")
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
