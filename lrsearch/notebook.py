"""A stored study in a notebook: the table and the first figure of its report."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from lrsearch.trial import StudyRecord

if TYPE_CHECKING:
    from pathlib import Path

    from lrsearch.analysis import StudySummary

DEFAULT_DATABASE = "sqlite:///lrsearch.db"


@dataclass(frozen=True)
class Study:
    """What `open_study` returns. Shown at the end of a notebook's cell it is a table, and `figure()` draws."""

    record: StudyRecord

    @property
    def summary(self) -> StudySummary:
        """Every number of the report's tables."""
        from lrsearch.analysis import summarise

        return summarise(self.record)

    def figure(self, name: str = "accuracy_versus_cost") -> Any:
        """Return a figure of the report as a plotly figure. Raises UnknownNameError, UsageError when it is empty."""
        from lrsearch.errors import UnknownNameError, UsageError
        from lrsearch.figures import FIGURES

        if name not in FIGURES:
            raise UnknownNameError("figure", name, FIGURES)
        figure = FIGURES[name](self.record)
        if figure is None:
            raise UsageError(f"Study {self.record.name!r} has nothing to draw as {name!r}.")
        return figure

    def write_report(self, path: str | Path) -> Path:
        """Write the study's page to `path` and return it."""
        from pathlib import Path

        from lrsearch.report import write_report

        return write_report(self.record, Path(path))

    def __repr__(self) -> str:
        return f"<lrsearch study {self.record.name!r} version {self.record.version}: {self.summary.verdict.headline}>"

    def _repr_html_(self) -> str:
        """Return the verdict and the first table. All text is escaped; there is no script in it."""
        from lrsearch.analysis.table import first_columns, row_cells

        summary = self.summary
        columns = first_columns(summary)
        head = "".join(f"<th scope=col title='{escape(one.meaning)}'>{escape(one.title)}</th>" for one in columns)
        rows = []
        for way in summary.ways:
            cells = (
                f"<td><b>{escape(cell.text)}</b><br><small>{'<br>'.join(map(escape, cell.notes))}</small></td>"
                for cell in row_cells(columns, way)
            )
            rows.append(f"<tr><th scope=row>{escape(way.key)}</th>{''.join(cells)}</tr>")
        verdict = f"<b>{escape(summary.verdict.grade)}</b>: {escape(summary.verdict.headline)}"
        table = f"<thead><tr><th scope=col>Way</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
        return f"<p>{escape(summary.name)}: {verdict}</p><table>{table}</table>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": self._repr_html_() + self._figure_html()}

    def _figure_html(self) -> str:
        """Return the first figure as a picture where images can be made, else nothing: notebooks forbid our scripts."""
        import base64

        from lrsearch.errors import LrsearchError
        from lrsearch.images import pictures

        try:
            [svg] = pictures([self.figure()], "svg")
        except LrsearchError:
            return ""
        source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        return f'<img alt="What was bought for what it cost" width="900" src="{source}">'


def open_study(name: str, *, database: str | None = None, version: int | None = None) -> Study:
    """Return a stored study, by default its newest version, for a notebook or a script.

    Without a `database` it is that of the command line: LRSEARCH_DATABASE, else `lrsearch.db` in the current folder.
    Raises UnknownNameError, which lists the known studies, and StorageError when there is no such database.
    """
    from lrsearch.storage.store import open_store

    url = database or os.environ.get("LRSEARCH_DATABASE") or DEFAULT_DATABASE
    with open_store(url, must_exist=True) as store:
        return Study(store.record(name, version))
