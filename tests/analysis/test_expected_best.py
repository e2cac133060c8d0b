"""The expected best of k against all subsets and against a closed form."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.analysis import expected_best
from lrsearch.errors import UsageError

some_values = st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=9)


@given(some_values, st.booleans())
def test_it_is_the_mean_of_the_best_over_all_subsets(values: list[float | None], lower: bool) -> None:
    known = [0.1 if value is None else value for value in values]
    best = min if lower else max
    by_hand = [fmean(best(subset) for subset in combinations(known, k)) for k in range(1, len(known) + 1)]
    assert expected_best(values, chance=0.1, lower_is_better=lower) == pytest.approx(by_hand, abs=1e-12)


@given(some_values)
def test_more_trials_never_hurt_and_end_at_the_best(values: list[float | None]) -> None:
    curve = expected_best(values, chance=0.0)
    assert len(curve) == len(values)
    assert all(b >= a - 1e-12 for a, b in pairwise(curve))
    assert curve[-1] == pytest.approx(max(value or 0.0 for value in values))


def test_it_is_unbiased_for_uniform_draws_whose_expected_maximum_is_k_over_k_plus_one() -> None:
    """4000 samples of 6: the standard error of each entry is below 0.3 / sqrt(4000) = 0.005; the bound is four."""
    draws = np.random.default_rng(0).random((4000, 6))
    mean = np.mean([expected_best(row, chance=0.0) for row in draws.tolist()], axis=0)
    assert mean == pytest.approx([k / (k + 1) for k in range(1, 7)], abs=0.02)


def test_failures_count_as_chance_whether_none_or_not_finite() -> None:
    assert expected_best([0.9, None, math.nan, -math.inf], chance=0.5) == pytest.approx(
        expected_best([0.9, 0.5, 0.5, 0.5], chance=0.0)
    )


def test_a_large_pool_is_no_trouble() -> None:
    curve = expected_best([i / 1000 for i in range(1, 1001)], chance=0.0)
    assert curve[1] == pytest.approx(2 / 3, abs=1e-3)
    assert curve[-1] == pytest.approx(1.0)


def test_no_values_give_no_entries_and_chance_must_be_a_number() -> None:
    assert expected_best([], chance=0.1) == []
    with pytest.raises(UsageError, match="chance"):
        expected_best([0.5], chance=math.nan)
