"""Performance profiles against numerical integration and an example worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.analysis import performance_profile
from lrsearch.errors import UsageError

cost = st.one_of(st.none(), st.just(math.inf), st.floats(0.5, 50))
tables = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.fixed_dictionaries(dict.fromkeys("wxyz", cost)), min_size=1
)


@given(tables, st.sampled_from([2.0, 4.0]))
def test_the_score_is_the_area_under_the_profile(table: dict[str, dict[str, float | None]], rmax: float) -> None:
    taus = np.linspace(1, rmax, 3001)
    for profile in performance_profile(table, rmax=rmax).values():  # type: ignore[arg-type]  # str is Hashable
        heights = [profile.rho(tau) for tau in taus]
        assert profile.score == pytest.approx(np.trapezoid(heights, taus) / (rmax - 1), abs=2e-3)
        assert 0 <= profile.score <= profile.rho(rmax) <= 1


def test_an_example_in_the_manner_of_algoperf_worked_by_hand() -> None:
    """Eight workloads, hours to target of three submissions, None: target not reached within the budget.

    Ratios of A: 1, 1.5, 1, never, 2, 1, 5, (nobody): (3 + 2.5 + 3 + 0 + 2 + 3 + 0 + 0) / (3 x 8) = 13.5 / 24.
    """
    table = {
        "A": {"ctr": 2.0, "mri": 3.0, "vit": 10.0, "gnn": None, "asr": 8.0, "wmt": 5.0, "res": 50.0, "ds": None},
        "B": {"ctr": 4.0, "mri": 2.0, "vit": None, "gnn": 6.0, "asr": 4.0, "wmt": 5.0, "res": 10.0, "ds": math.inf},
        "C": {"ctr": 8.0, "mri": 8.1, "vit": 15.0, "gnn": 9.0},
    }
    profiles = performance_profile(table)  # type: ignore[arg-type]  # str is Hashable
    assert profiles["A"].score == pytest.approx(13.5 / 24)
    assert profiles["B"].score == pytest.approx((2 + 3 + 0 + 3 + 3 + 3 + 3 + 0) / 24)
    assert profiles["C"].score == pytest.approx((0 + 0 + 2.5 + 2.5) / 24)
    assert [profiles["A"].rho(tau) for tau in (1, 1.5, 2, 4, 5)] == [3 / 8, 4 / 8, 5 / 8, 5 / 8, 6 / 8]
    assert profiles["C"].ratios["wmt"] == profiles["A"].ratios["ds"] == math.inf


def test_a_single_way_is_the_cheapest_wherever_it_arrives() -> None:
    assert performance_profile({"a": {"x": 3.0, "y": None}})["a"].score == 0.5


@pytest.mark.parametrize("table", [{}, {"a": {}}, {"a": {"x": 0.0}}, {"a": {"x": -1.0}}])
def test_nothing_and_costs_that_are_none_are_refused(table: dict[str, dict[str, float]]) -> None:
    with pytest.raises(UsageError):
        performance_profile(table)  # type: ignore[arg-type]  # str is Hashable


def test_rmax_leaves_room_above_one() -> None:
    with pytest.raises(UsageError, match="rmax"):
        performance_profile({"a": {"x": 1.0}}, rmax=1.0)
