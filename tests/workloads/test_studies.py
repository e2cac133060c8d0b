"""The study files that come with lrsearch name workloads as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrsearch.config import load_study
from lrsearch.registry import lookup
from lrsearch.workloads import WORKLOADS

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_that_comes_with_lrsearch_is_valid_and_named_after_its_file(path: Path) -> None:
    study = load_study(path)
    choice = study.workload_choice()
    assert study.name == path.stem
    assert lookup("workload", WORKLOADS, choice.name)(**choice.settings).batch_size > 0
