"""A stored study in a notebook."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
import pytest

import lrsearch
from lrsearch.errors import StorageError, UnknownNameError
from lrsearch.notebook import Study
from tests.records import make_record
from tests.storage.bulk import write_record
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


def test_what_users_wrote_stays_text() -> None:
    ways = {f"{payload}": {"name": "default_rate", "schedule": {"name": "constant"}} for payload in PAYLOADS}
    html = Study(replace(make_record(ways, seeds=[0]), name=PAYLOADS[0]))._repr_html_()
    reader = Reader(html)
    assert all(payload in reader.text for payload in PAYLOADS)
    assert {tag for tag, _ in reader.tags} == {"p", "b", "table", "thead", "tbody", "tr", "th", "td", "br", "small"}
