"""One look for all figures: a way has the same colour, symbol and dash everywhere; user text is text, never markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import plotly.graph_objects as go

from lrsearch.analysis.searches import higher_is_better
from lrsearch.analysis.ways import clr_way
from lrsearch.trial import StudyRecord

T = TypeVar("T")

# Okabe and Ito's palette, darkened or lightened until each colour stands out from white and from black (3:1).
CLR_COLOR = "#d55e00"
COLORS = ("#2f7fc1", "#009e73", "#b8609f", "#a87d00", "#7f7f7f", "#1c9bb5", "#8c6d5a", "#6f68c9")
CLR_SYMBOL = "diamond"
SYMBOLS = ("circle", "square", "triangle-up", "triangle-down", "pentagon", "star", "hexagram", "bowtie")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "4px,2px", "8px,2px")
LONGEST_LABEL = 30
FAR = 3.0  # assumed: what is so far off the others is told by where it stands, and needs no axis that shows it
INK = "#767c85"  # readable on white and on black; the page's script replaces it by the theme's own ink


@dataclass(frozen=True)
class WayStyle:
    """How one way is drawn."""

    color: str
    symbol: str
    dash: str

    def faint(self, opacity: float = 0.35) -> str:
        """Return the colour as an rgba() of this opacity."""
        red, green, blue = (int(self.color[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity})"


def way_styles(record: StudyRecord) -> Mapping[str, WayStyle]:
    """Return the style of each way: the CLR run has its own, the others take turns in the order of the file."""
    clr = clr_way(record)
    return styles_of(record.strategies, clr.key if clr else None)


def styles_of(keys: Sequence[str], clr: str | None) -> dict[str, WayStyle]:
    """Return a style for each of `keys`, of which `clr` has its own."""
    styles = {key: _turn(index) for index, key in enumerate(key for key in keys if key != clr)}
    return styles if clr is None else {**styles, clr: WayStyle(CLR_COLOR, CLR_SYMBOL, "solid")}


def _turn(index: int) -> WayStyle:
    """Past the palette's end colours come again, with other symbols and dashes."""
    turn = index // len(COLORS)
    symbol, dash = SYMBOLS[(index + turn) % len(SYMBOLS)], DASHES[(index + 3 * turn) % len(DASHES)]
    return WayStyle(COLORS[index % len(COLORS)], symbol, dash)


def plain(text: str) -> str:
    """Return `text` so that plotly shows it as it is: it renders <b>, <a href> and %{...} otherwise.

    >>> plain("<b>%{x}")
    '&lt;b>%&#123;x}'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "%&#123;")


def label(key: str) -> str:
    """Return a way's name for a legend or an axis: plain, and cut where it would push the drawing aside.

    It is cut in the middle: long names often differ at their end alone.
    """
    half = LONGEST_LABEL // 2
    return plain(key if len(key) <= LONGEST_LABEL else f"{key[: half - 1]}…{key[-half:]}")


def new_figure(*, x: str, y: str, height: int = 420, **layout: Any) -> go.Figure:
    """Return an empty figure on a transparent ground with titled axes."""
    # Given at once: plotly takes ten times as long to change a figure.
    return go.Figure(
        layout={
            "template": go.layout.Template(),
            "height": height,
            "margin": {"l": 64, "r": 20, "t": 16, "b": 56},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
            "hovermode": "closest",
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
            "xaxis": {**axis(x), "tickformat": ""},
            "yaxis": axis(y),
            **layout,
        }
    )


def axis(title: str) -> dict[str, Any]:
    """Return the settings of a quiet axis with a title."""
    return {
        "title": {"text": plain(title), "standoff": 8, "font": {"size": 13}},
        "gridcolor": "rgba(128,128,128,0.18)",
        "linecolor": "rgba(128,128,128,0.5)",
        "zeroline": False,
        "automargin": True,
        "tickformat": ",.8~g",  # by itself plotly writes a rate or a metric of 0.000005 as 5µ
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "rgba(128,128,128,0.5)",
    }


def log_axis(low: float, high: float, *, pad: float = 0.06, last_tick: float = math.inf) -> dict[str, Any]:
    """Return the settings of a logarithmic axis over low..high with ticks, up to `last_tick`, in plain numbers."""
    left, right = math.log10(low), math.log10(high)
    room = max(right - left, 0.1) * pad
    ticks = [tick for tick in log_ticks(10 ** (left - room), 10 ** (right + room)) if tick <= last_tick]
    return {
        "type": "log",
        "range": [left - room, right + room],
        "tickvals": ticks,
        "ticktext": [tick_text(tick) for tick in ticks],
    }


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1-2-5 ticks; whole decades once there would be more than ten, even steps where there would be one or none.

    >>> log_ticks(0.9, 30), log_ticks(0.6, 0.95)
    ([1.0, 2.0, 5.0, 10.0, 20.0], [0.6, 0.7, 0.8, 0.9])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    inside = [tick for tick in fine if low <= tick <= high]
    if len(inside) < 2:
        return _even_ticks(low, high)
    if len(inside) <= 10:
        return inside
    return [10.0**decade for decade in decades if low <= 10.0**decade <= high]


def _even_ticks(low: float, high: float) -> list[float]:
    """Return three to seven multiples of 1, 2 or 5 times a power of ten."""
    decade = math.floor(math.log10(high - low))
    steps = (digit * 10.0**power for power in (decade, decade - 1) for digit in (5, 2, 1))
    counted = ((step, math.ceil(low / step), math.floor(high / step)) for step in steps)
    step, first, last = next(found for found in counted if found[2] - found[1] >= 2)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def tick_text(value: float) -> str:
    """Return a tick as people write it.

    >>> [tick_text(value) for value in (0.0001, 0.00025, 0.05, 2.0, 5000.0)]
    ['1e-4', '2.5e-4', '0.05', '2', '5,000']
    """
    if value < 1e-3 or value >= 1e6:
        mantissa, exponent = f"{value:.9e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.10g}"


def way_line(style: WayStyle, *, faint: bool = False, width: float | None = None) -> dict[str, Any]:
    """Return plotly's line settings of a way: bold for a summary, thin and faint for a single search."""
    if faint:
        return {"color": style.faint(), "width": width or 1.0}
    return {"color": style.color, "dash": style.dash, "width": width or 2.2}


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """Return the range of `values` with room on both sides."""
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * share
    return low - room, high + room


def reined(record: StudyRecord, values: Sequence[float]) -> list[float]:
    """Return values of the metric, those far worse than the others drawn nearer: near divergence many have no bound.

    Far worse is further beyond chance than the best is on its other side; where chance is not known, or nothing better,
    further from the median than FAR times its size, or its distance from the best.
    """
    rises, chance = higher_is_better(record), record.facts.chance if record.facts else None
    best = (max if rises else min)(values)
    if chance is not None and (best > chance if rises else best < chance):
        limit = 2 * chance - best
    else:
        middle = median(values)
        far = FAR * max(abs(middle), abs(best - middle)) or math.inf
        limit = middle - far if rises else middle + far
    return [max(value, limit) if rises else min(value, limit) for value in values]


def cut_range(curves: Sequence[Sequence[float]], *, rises: bool) -> tuple[float, float]:
    """Return an axis from the best value to as far beyond the start as learning gained, or to the worst value.

    Where training blows up, losses and perplexities grow, and R2 falls, without bound.
    """
    sign = 1 if rises else -1
    values = [[sign * value for value in curve] for curve in curves if curve]
    if not values:
        return (0.0, 1.0)
    start, best = min(curve[0] for curve in values), max(map(max, values))
    worst = max(min(map(min, values)), start - (best - start))
    return padded([sign * worst, sign * best])


def thinned(points: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the points, evenly spread, the last among them.

    >>> thinned(range(10), 4), thinned("abc", 4)
    ([0, 3, 6, 9], ['a', 'b', 'c'])
    """
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def legend_entry(key: str, style: WayStyle, *, lines: bool = True) -> go.Scatter:
    """Return a trace without points that stands for the way in the legend, symbol and line in one."""
    return go.Scatter(
        x=[None],
        y=[None],
        mode="lines+markers" if lines else "markers",
        line=way_line(style),
        marker={"symbol": style.symbol, "size": 9, "color": style.color},
        name=label(key),
        legendgroup=plain(key),
    )


def of_way(key: str) -> dict[str, Any]:
    """Return what ties a trace to its way's entry in the legend and names it in hover texts."""
    return {"name": label(key), "legendgroup": plain(key), "showlegend": False}


def add_target(figure: go.Figure, target: float, addition: str = "") -> None:
    """Draw the dashed line of the study's target, named at its left end."""
    figure.add_hline(y=target, line={"dash": "dash", "width": 1.2, "color": INK}, layer="below")
    figure.add_annotation(
        x=0.005,
        xref="paper",
        y=target,
        text=f"target {target:g} {addition}".strip(),
        showarrow=False,
        xanchor="left",
        yanchor="bottom",
        font={"size": 12},
    )
