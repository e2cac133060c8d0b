"""Several studies on one page: each is a workload, and what is compared are ratios within each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go

from lrsearch.analysis import StudySummary, summarise, wording
from lrsearch.analysis.compare import Ratio
from lrsearch.analysis.profile import RMAX, Profile
from lrsearch.analysis.workloads import (
    FEWEST_FOR_PROFILE,
    OverWorkloads,
    check_comparable,
    cost_of,
    over_workloads,
    profiles,
    study_names,
)
from lrsearch.figures import Table
from lrsearch.figures._style import legend_entry, new_figure, of_way, styles_of, way_line
from lrsearch.page import Plot, plot, render_page, write_page
from lrsearch.trial import StudyRecord


def write_workloads_report(records: Sequence[StudyRecord], path: Path) -> Path:
    """Write one page over the studies to `path` and return it. Raises UsageError and StorageError."""
    return write_page(render_workloads(records), path)


def render_workloads(records: Sequence[StudyRecord]) -> str:
    """Return the page. Raises UsageError for a study that has no cost to a target."""
    summaries = [summarise(record) for record in records]
    check_comparable(summaries)
    rows, found = over_workloads(summaries), profiles(summaries)
    return render_page(
        "workloads.html",
        draws=bool(found),
        summaries=list(zip(study_names(summaries), summaries, strict=True)),
        costs=cost_table(summaries),
        speed_ups=_speed_up_table(rows, len(summaries)),
        lost=list(_lost(summaries)),
        profile=_profile_plot(found, summaries) if found else None,
        fewest=FEWEST_FOR_PROFILE,
    )


def cost_table(summaries: Sequence[StudySummary]) -> Table:
    """Return a row per way and a column per study: expected cost to the target and how many searches reached it."""
    keys = list(dict.fromkeys(way.key for summary in summaries for way in summary.ways))
    heads = [f"{name}, s" for name in study_names(summaries)]
    rows = [(key, *(_cost(summary, key) for summary in summaries)) for key in keys]
    return Table(("Way", *heads), rows)


def _cost(summary: StudySummary, key: str) -> str:
    way = next((way for way in summary.ways if way.key == key), None)
    if way is None or way.reach is None:
        return "–"
    cost = cost_of(way)
    shown = wording.significant(cost) if math.isfinite(cost) else wording.NEVER
    mark = " (CLR)" if key == summary.clr else ""
    return f"{shown} ({way.reach.reached}/{way.reach.total}){mark}"


def _speed_up_table(rows: Sequence[OverWorkloads], count: int) -> Table:
    heads = (
        "Way",
        "Geometric mean",
        "Over",
        "Least",
        "Most",
        "Dearer than CLR",
        "Cheaper than CLR",
        "Only CLR reached",
    )
    return Table(heads, [_speed_up_row(row, count) for row in rows])


def _speed_up_row(row: OverWorkloads, count: int) -> tuple[str, ...]:
    ratios = list(row.ratios.values())
    mean, least, most = "–", "–", "–"
    if row.geometric_mean is not None:
        mean, least, most = map(wording.times, (row.geometric_mean, min(row.finite), max(row.finite)))
    over = f"{len(row.finite)} of {wording.counted(count, 'study', 'studies')}"
    dearer, cheaper = sum(ratio > 1 for ratio in ratios), sum(ratio < 1 for ratio in ratios)
    return (row.key, mean, over, least, most, str(dearer), str(cheaper), str(sum(map(math.isinf, ratios))))


def _lost(summaries: Sequence[StudySummary]) -> list[str]:
    """Return a line for every way that cost less than the CLR run, or that alone reached the target."""
    lines = []
    for name, summary in zip(study_names(summaries), summaries, strict=True):
        for way in summary.ways:
            ratio = way.speed_up
            if ratio is None or not ratio.value < 1:
                continue
            if ratio.value == 0:
                lines.append(f"{name}: {way.key} reached the target, the CLR run never did.")
            else:
                lines.append(f"{name}: {way.key} cost {wording.times(ratio.value)} the CLR run's; {_firmness(ratio)}.")
    return lines


def _firmness(ratio: Ratio) -> str:
    if ratio.high is None:
        return "one search has no interval"
    leaves_out = ratio.high < 1
    return "its 95 % interval leaves out 1" if leaves_out else "not distinguished, as its 95 % interval holds 1"


def _profile_plot(found: Mapping[str, Profile], summaries: Sequence[StudySummary]) -> Plot:
    styles = styles_of(list(found), summaries[0].clr)
    figure = new_figure(x="times the cheapest way's cost to target (tau)", y="share of studies")
    taus = sorted({1.0, RMAX, *(r for one in found.values() for r in one.ratios.values() if r <= RMAX)})
    for key, profile in found.items():
        line = {**way_line(styles[key]), "shape": "hv"}
        hover = "within %{x:.3g} times the cheapest: %{y:.0%} of the studies"
        y = [profile.rho(tau) for tau in taus]
        figure.add_trace(legend_entry(key, styles[key]))
        figure.add_trace(go.Scatter(x=taus, y=y, mode="lines", line=line, hovertemplate=hover, **of_way(key)))
    figure.update_xaxes(range=(0.97, RMAX))
    figure.update_yaxes(range=(-0.03, 1.05))
    caption = (
        f"Share of the {len(summaries)} studies in which a way's expected cost to target is at most tau times that of "
        "the cheapest way there (Dolan and Moré, 2002). The score is the area under the line from 1 to 4, divided by 3 "
        "(Dahl et al., 2023): 1 is always the cheapest. A study that nobody solves counts against every way."
    )
    rows = [
        (key, wording.significant(one.score), *(f"{100 * one.rho(tau):.0f} %" for tau in (1.0, 1.5, 2.0, RMAX)))
        for key, one in sorted(found.items(), key=lambda item: -item[1].score)
    ]
    table = Table(("Way", "Score", "Cheapest", "Within 1.5×", "Within 2×", "Within 4×"), rows)
    return plot("profile", "Performance profile", caption, figure, table)
