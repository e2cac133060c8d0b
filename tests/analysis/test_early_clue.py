"""Rank correlation of early and final values, against scipy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from lrsearch.analysis import early_clue

value = st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.5, 0.9]))


@given(st.lists(st.tuples(value, value, value), min_size=3, max_size=10), st.booleans())
def test_it_is_spearmans_correlation_with_failures_last(drawn: list[tuple[float | None, ...]], lower: bool) -> None:
    worst = 2.0 if lower else -1.0
    *early, final = ([worst if v is None else v for v in column] for column in zip(*drawn, strict=True))
    found = early_clue([row[:2] for row in drawn], [row[2] for row in drawn], lower_is_better=lower)
    for values, correlation in zip(early, found, strict=True):
        if len(set(values)) == 1 or len(set(final)) == 1:
            assert correlation is None
        else:
            assert correlation == pytest.approx(spearmanr(values, final).statistic)


def test_two_trials_have_no_order_to_speak_of() -> None:
    assert early_clue([[0.1], [0.2]], [0.3, 0.4]) == [None]


def test_nan_is_a_failure() -> None:
    assert early_clue([[0.1], [0.2], [math.nan]], [0.3, 0.4, None]) == [1.0]
