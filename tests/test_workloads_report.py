"""One page over several studies: its table, its profile, and where the CLR run lost."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lrsearch.analysis import StudySummary, summarise
from lrsearch.analysis.workloads import over_workloads, profiles, study_names
from lrsearch.errors import UsageError
from lrsearch.trial import StudyRecord
from lrsearch.workloads_report import render_workloads, write_workloads_report
from tests.records import PlainTrial, make_record, plain_record, some
from tests.test_report import PAYLOADS, Reader

HIT, MISS = 0.96, 0.5


def study(name: str, **costs: float | None) -> StudyRecord:
    """A study of two searches per way, each one trial of this cost; None: it never reaches the target."""
    searches = {
        way: {seed: [PlainTrial(cost or 7.0, validation=MISS if cost is None else HIT, test=HIT)] for seed in (0, 1)}
        for way, cost in costs.items()
    }
    return replace(plain_record(searches), name=name)


def summaries(*records: StudyRecord) -> list[StudySummary]:
    return [summarise(record) for record in records]


def test_the_geometric_mean_is_over_the_studies_in_which_both_reached_the_target() -> None:
    found = summaries(study("a", clr=2.0, grid=8.0), study("b", clr=4.0, grid=2.0), study("c", clr=1.0, grid=None))
    [grid] = over_workloads(found)
    assert grid.ratios == {"a": 4.0, "b": 0.5, "c": math.inf}
    assert grid.geometric_mean == pytest.approx(math.sqrt(4.0 * 0.5))
    assert len(grid.finite) == 2


def test_the_profile_has_the_score_that_one_reckons_by_hand() -> None:
    """Ratios of grid to the cheapest: 1, 2, 3, 4, never; (3 + 2 + 1 + 0 + 0) / (3 x 5) = 0.4."""
    records = [study("a", clr=2.0, grid=1.0)] + [
        study(name, clr=1.0, grid=float(i)) for i, name in ((2, "b"), (3, "c"))
    ]
    records += [study("d", clr=1.0, grid=4.0), study("e", clr=1.0, grid=None)]
    found = profiles(summaries(*records))
    assert found["grid"].score == pytest.approx(0.4)
    assert found["clr"].score == pytest.approx((2 + 4 * 3) / 15)
    text = Reader(render_workloads(records)).text
    assert "Performance profile" in text
    assert "0.400" in text
    assert profiles(summaries(*records[:4])) == {}


def test_a_single_search_is_given_no_interval() -> None:
    searches = {way: {0: [PlainTrial(cost, HIT, HIT)]} for way, cost in {"clr": 4.0, "grid": 2.0}.items()}
    text = Reader(render_workloads([plain_record(searches)])).text
    assert "grid cost 0.50× the CLR run's; one search has no interval." in text


def test_under_five_studies_there_is_a_table_and_no_score() -> None:
    page = render_workloads([study("a", clr=2.0, grid=8.0), study("b", clr=4.0, grid=2.0)])
    text = Reader(page).text
    assert "Not drawn: it takes 5 studies" in text
    assert "Score" not in text
    assert "b: grid cost 0.50× the CLR run's" in text
    assert "a: grid" not in text
    assert "<script" not in page
    assert "script-src &#39;none&#39;" in page


def test_a_name_that_is_taken_twice_carries_its_version() -> None:
    one = study("a", clr=2.0, grid=8.0)
    assert study_names(summaries(one, replace(one, version=2), study("b", clr=1.0))) == ["a v1", "a v2", "b"]


def test_a_study_without_a_cost_to_target_is_refused() -> None:
    with pytest.raises(UsageError, match="'digits' has no target"):
        render_workloads([make_record(seeds=[0, 1], target=None), make_record(seeds=[0, 1])])


def test_the_page_is_written_and_what_users_wrote_stays_text(tmp_path: Path) -> None:
    evil = " ".join(PAYLOADS)
    record = study("a", **{"clr": 1.0, evil: 2.0})
    facts = replace(some(record.facts), metric=evil)
    path = write_workloads_report([replace(record, name=evil, facts=facts)] * 5, tmp_path / "deep" / "all.html")
    page = path.read_text()
    reader = Reader(page)
    assert all(payload in reader.text for payload in PAYLOADS)
    assert not {"img", "svg", "b", "a"} & {tag for tag, a in reader.tags if a.get("href") != "#main"}
    assert len(re.findall("<script", page)) == len(re.findall("</script", page)) == 3
