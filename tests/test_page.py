"""The frame of every page: its scripts, its policy, what it carries, and what of it is installed."""

from __future__ import annotations

import base64
import gzip
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from lrsearch.figures import FIGURES, Table
from lrsearch.page import FOLDER, MOST_ROWS, download, plot, plotly_script
from lrsearch.report import render
from tests.records import make_record, some

ROOT = FOLDER.parent


@pytest.fixture
def another_plotly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("plotly.offline.get_plotlyjs_version", lambda: "4.0.0")
    plotly_script.cache_clear()
    yield
    plotly_script.cache_clear()


def test_the_bundle_is_of_the_version_that_the_installed_plotly_declares() -> None:
    [bundle] = (FOLDER / "vendor").glob("plotly-basic-*.min.js")
    declared = get_plotlyjs_version()
    assert bundle.name == f"plotly-basic-{declared}.min.js"
    assert f"plotly.js (basic - minified) v{declared}" in bundle.read_text(encoding="utf-8")[:200]
    assert "MIT License" in (FOLDER / "vendor" / "plotly-LICENSE.txt").read_text()


def test_the_bundle_can_draw_all_that_the_figures_hold() -> None:
    drawn = [figure for drawing in FIGURES.values() if (figure := drawing(make_record())) is not None]
    kinds = {trace.type for figure in drawn for trace in figure.data}
    assert kinds <= {"scatter", "bar", "pie"}


@pytest.mark.usefixtures("another_plotly")
def test_with_another_plotly_its_own_bundle_is_taken_and_the_page_says_so() -> None:
    page = render(make_record(seeds=[0]))
    assert get_plotlyjs() in page
    assert "carries all of plotly.js" in page


def test_an_ordinary_page_is_smaller_than_two_megabytes() -> None:
    page = render(make_record())
    assert len(page.encode()) < 2_000_000
    assert "carries all of plotly.js" not in page


def test_points_are_drawn_in_six_digits_and_text_cannot_end_its_script() -> None:
    figure = go.Figure(go.Scatter(x=[1 / 3, 2e9 / 3], y=[None, float("nan")], name="</script>"))
    json = some(plot("a", "", "", figure, Table(("x",), [])).json)
    assert '"x":[0.333333,666667000.0],"y":[null,null]' in json
    assert "<" not in json


def test_a_long_table_is_cut_and_says_how_much_is_left_out() -> None:
    cut = plot("a", "", "", None, Table(("x",), [("1",)] * (MOST_ROWS + 3)))
    assert (len(cut.table.rows), cut.rows_left_out, cut.json) == (MOST_ROWS, 3, None)


def test_downloads_hold_the_file_as_it_is_or_packed() -> None:
    short, long = download("a.csv", "", "α,1\n"), download("b.json", "", "1234567890\n" * 30_000)
    kind, content = short.address.split(",")
    assert (short.name, kind, base64.b64decode(content).decode()) == ("a.csv", "data:text/csv;base64", "α,1\n")
    kind, content = long.address.split(",")
    assert (long.name, kind) == ("b.json.gz", "data:application/gzip;base64")
    assert gzip.decompress(base64.b64decode(content)).decode() == "1234567890\n" * 30_000


@pytest.mark.slow
def test_the_wheel_brings_all_that_a_page_is_made_of(tmp_path: Path) -> None:
    """Built by the backend itself, in this environment."""
    program = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    built = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    names = zipfile.ZipFile(tmp_path / built.stdout.split()[-1]).namelist()
    made_of = [path for folder in ("templates", "vendor") for path in (FOLDER / folder).iterdir()]
    assert {str(path.relative_to(ROOT)) for path in made_of} <= set(names)
    assert any(re.fullmatch(r"lrsearch-.*dist-info/.*plotly-LICENSE\.txt", name) for name in names)
