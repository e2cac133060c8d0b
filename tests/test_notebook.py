"""A stored study in a notebook."""

from __future__ import annotations

import base64
import importlib.util
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import plotly.graph_objects as go
import pytest

import lrsearch
from lrsearch.errors import StorageError, UnknownNameError
from lrsearch.notebook import Study
from tests.records import make_record, some
from tests.storage.bulk import write_record
from tests.test_images import can_draw
from tests.test_report import PAYLOADS, Reader


def test_a_stored_study_is_opened_and_shown(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    write_record(url, make_record(seeds=[0, 1], failures=False))
    study = lrsearch.open_study("digits", database=url)
    html = study._repr_html_()
    assert study.summary.verdict.headline in Reader(html).text
    assert html.count("<tr>") == 1 + len(study.summary.ways)
    assert study.summary.verdict.headline in repr(study)
    assert isinstance(study.figure(), go.Figure)
    assert study.write_report(tmp_path / "page.html").stat().st_size > 1_000_000
    with pytest.raises(UnknownNameError, match="Did you mean 'cost_by_phase'"):
        study.figure("cost_by_phases")
    with pytest.raises(UnknownNameError, match="digits"):
        lrsearch.open_study("digit", database=url)
    with pytest.raises(StorageError):
        lrsearch.open_study("digits", database=f"sqlite:///{tmp_path / 'none.db'}")


def test_without_a_database_it_is_that_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LRSEARCH_DATABASE", raising=False)
    write_record(f"sqlite:///{tmp_path / 'elsewhere.db'}", make_record(seeds=[0], failures=False))
    with pytest.raises(StorageError, match="no database lrsearch"):
        lrsearch.open_study("digits")
    monkeypatch.setenv("LRSEARCH_DATABASE", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    assert lrsearch.open_study("digits").record.name == "digits"
    (tmp_path / "elsewhere.db").rename("lrsearch.db")
    monkeypatch.setenv("LRSEARCH_DATABASE", "")
    assert lrsearch.open_study("digits").record.name == "digits"


@can_draw
@pytest.mark.slow
def test_a_notebook_shows_the_table_and_the_first_figure_as_a_picture() -> None:
    bundle = Study(make_record(seeds=[0, 1]))._repr_mimebundle_(include=None, exclude=None)
    assert set(bundle) == {"text/plain", "text/html"}
    [picture] = [attributes for tag, attributes in Reader(bundle["text/html"]).tags if tag == "img"]
    kind, content = some(picture["src"]).split(",")
    assert kind == "data:image/svg+xml;base64"
    svg = ElementTree.fromstring(base64.b64decode(content))  # noqa: S314  # our own picture
    assert svg.tag.endswith("}svg")
    texts = {element.text for element in svg.iter() if element.text}
    assert {"grid", "clr", "charged processor seconds of the search (log scale)"} <= texts
    assert some(picture["alt"])


def test_without_kaleido_a_notebook_shows_the_table_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    study = Study(make_record(seeds=[0, 1]))
    assert study._repr_mimebundle_()["text/html"] == study._repr_html_()


def test_a_study_that_has_not_begun_is_shown_too() -> None:
    study = Study(replace(make_record(), trials=(), events=(), facts=None, finished=False))
    html = study._repr_mimebundle_()["text/html"]
    assert "not shown" in Reader(html).text
    assert "<img" not in html


def test_what_users_wrote_stays_text() -> None:
    ways = {f"{payload}": {"name": "default_rate", "schedule": {"name": "constant"}} for payload in PAYLOADS}
    html = Study(replace(make_record(ways, seeds=[0]), name=PAYLOADS[0]))._repr_html_()
    reader = Reader(html)
    assert all(payload in reader.text for payload in PAYLOADS)
    assert {tag for tag, _ in reader.tags} == {"p", "b", "table", "thead", "tbody", "tr", "th", "td", "br", "small"}
