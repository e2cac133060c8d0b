"""Figures as image files, drawn by the system's Chromium through kaleido (extra `images`)."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrsearch.errors import MissingExtraError, StorageError, UsageError
from lrsearch.figures import FIGURES
from lrsearch.trial import StudyRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

WIDTH = 1000
SCALE = 2
ON_WHITE: Mapping[str, Any] = {"paper_bgcolor": "white", "plot_bgcolor": "white", "font": {"color": "#333333"}}


def check_images(path: Path, kind: str) -> None:
    """Raise before anything runs: MissingExtraError without kaleido, UsageError for a file name of another kind."""
    if importlib.util.find_spec("kaleido") is None:
        raise MissingExtraError("Writing images", "images")
    if path.suffix not in ("", f".{kind}"):
        raise UsageError(f"--{kind} takes a file that ends in .{kind} or a folder, got {path}.")


def study_figures(record: StudyRecord) -> dict[str, go.Figure]:
    """Return the study's figures in the order of its page, by their keys."""
    return {key: figure for key, drawing in FIGURES.items() if (figure := drawing(record)) is not None}


def write_images(figures: Mapping[str, go.Figure], path: Path, kind: str) -> list[Path]:
    """Write the first figure to a file, or all of them into a folder as KEY.png or KEY.svg; return the paths.

    Raises MissingExtraError, UsageError when there is no figure or no browser, StorageError.
    """
    check_images(path, kind)
    if not figures:
        raise UsageError("There is nothing to draw yet: no trial has ended.")
    if path.suffix:
        figures = {path.stem: next(iter(figures.values()))}
    folder = path.parent if path.suffix else path
    drawn = {
        folder / f"{key}.{kind}": content
        for key, content in zip(figures, pictures(figures.values(), kind), strict=True)
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place, content in drawn.items():
            place.write_bytes(content)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}. Choose another --{kind}.") from error
    return list(drawn)


def pictures(figures: Iterable[go.Figure], kind: str) -> list[bytes]:
    """Return figures on white as PNG or SVG, by one browser, which asks no network for anything.

    Raises MissingExtraError, and UsageError without a browser.
    """
    if importlib.util.find_spec("kaleido") is None:
        raise MissingExtraError("Writing images", "images")
    from choreographer.errors import BrowserFailedError, ChromeNotFoundError

    try:
        with ThreadPoolExecutor(1) as beside:  # a notebook has a loop of its own here
            return beside.submit(asyncio.run, _drawn(figures, kind)).result()
    except (ChromeNotFoundError, BrowserFailedError) as error:
        raise UsageError(
            "Images need a Chromium or Chrome that starts: apt-get install chromium, or name one in BROWSER_PATH."
        ) from error


async def _drawn(figures: Iterable[go.Figure], kind: str) -> list[bytes]:
    from kaleido import Kaleido

    size = {"format": kind, "width": WIDTH, "scale": SCALE if kind == "png" else 1}
    async with Kaleido(mathjax=False) as browser:
        return [bytes(await browser.calc_fig(_on_white(figure), size)) for figure in figures]


def _on_white(figure: go.Figure) -> go.Figure:
    return type(figure)(figure).update_layout(ON_WHITE).update_annotations(bgcolor="rgba(255,255,255,0.7)")
