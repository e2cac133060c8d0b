"""What an entry of FIGURES is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lrsearch.interfaces import FigureMaker
from lrsearch.trial import StudyRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Table:
    """The numbers of a figure, for those who read rather than look."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Drawing:
    """A figure with its words and its numbers; calling it draws it."""

    title: str
    caption: Callable[[StudyRecord], str]
    """What is drawn, of how many searches, and how to read it."""
    draw: FigureMaker
    """May return None while the table has rows: then the table is all there is to see."""
    table: Callable[[StudyRecord], Table]

    def __call__(self, record: StudyRecord) -> go.Figure | None:
        return self.draw(record)


def no_figure(record: StudyRecord) -> None:
    """Draw nothing: the numbers are read better than seen."""
