"""How early one could have known which trial of a search would end best."""

from __future__ import annotations

import plotly.graph_objects as go

from lrsearch.analysis.compare import Mean
from lrsearch.analysis.details import early_clues
from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures._style import legend_entry, new_figure, of_way, way_line, way_styles
from lrsearch.trial import StudyRecord


def draw(record: StudyRecord) -> go.Figure | None:
    """Draw a line per way that tries several rates: rank correlation over the share of the epochs."""
    clues, styles = early_clues(record), way_styles(record)
    if not clues:
        return None
    figure = new_figure(x="share of the epochs", y="rank correlation with the final value", height=340)
    for key, found in clues.items():
        known = [(clue.share, clue.correlation) for clue in found if clue.correlation is not None]
        figure.add_trace(legend_entry(key, styles[key]))
        figure.add_trace(
            go.Scatter(
                x=[share for share, _ in known],
                y=[mean.value for _, mean in known],
                mode="lines+markers",
                line=way_line(styles[key]),
                marker={"symbol": styles[key].symbol, "size": 8},
                customdata=[mean.count for _, mean in known],
                hovertemplate="after %{x:.0%} of the epochs: %{y:.2f}, mean of %{customdata} searches",
                **of_way(key),
            )
        )
    lowest = min(clue.correlation.value for found in clues.values() for clue in found if clue.correlation)
    figure.update_xaxes(tickformat=".0%", range=(0.07, 0.53), tickvals=[0.1, 0.2, 0.3, 0.4, 0.5])
    figure.update_yaxes(range=(min(-0.05, lowest - 0.05), 1.05))
    return figure


def caption(record: StudyRecord) -> str:
    return (
        "Spearman's rank correlation, within a search, between the validation value early in its trials and their "
        "final value; mean over searches. 1: the early order is the final order, and bad rates could have been stopped "
        "then; 0: it says nothing. Diverged and failed trials rank last on both sides, which lifts the correlation: "
        "seeing that a rate diverges is a clue too. An early value is the first evaluation at or after that share; "
        "pruned trials have no final value and are left out."
    )


def table(record: StudyRecord) -> Table:
    clues = early_clues(record)
    shares = next(iter(clues.values()), [])
    rows = [(key, *(_cell(clue.correlation) for clue in found)) for key, found in clues.items()]
    return Table(("Way", *(f"{clue.share:.0%} of the epochs" for clue in shares)), rows)


def _cell(mean: Mean | None) -> str:
    if mean is None:
        return "–"
    spread = "" if mean.sd is None else f" ± {mean.sd:.2f}"
    return f"{mean.value:.2f}{spread} (n {mean.count})"


EARLY_CLUE = Drawing("Early clue: how soon the order of trials shows", caption, draw, table)
