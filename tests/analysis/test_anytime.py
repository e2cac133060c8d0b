"""The anytime curve against a brute-force reading of its definition."""

import math
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.analysis import StepCurve, anytime_curve, combine, common_grid
from lrsearch.errors import UsageError

trials = st.lists(
    st.tuples(
        st.floats(0.1, 10),
        st.one_of(st.none(), st.sampled_from([0.1, 0.5, 0.5, 0.9])),
        st.floats(0, 1),
    ),
    min_size=1,
    max_size=12,
)


@given(trials, st.floats(0, 130), st.booleans())
def test_the_curve_is_the_test_value_of_the_best_validated_trial_that_was_paid_for(
    drawn: list[tuple[float, float | None, float]], budget: float, higher: bool
) -> None:
    costs, values, tests = zip(*drawn, strict=True)
    curve = anytime_curve(costs, values, tests, lower_is_better=not higher)

    paid = [i for i, total in enumerate(accumulate(costs)) if total <= budget and values[i] is not None]
    key = (lambda i: (values[i], -i)) if higher else (lambda i: (-values[i], -i))  # ties: the earliest
    assert curve.at(budget) == (tests[max(paid, key=key)] if paid else None)


def test_there_is_no_value_before_the_first_model_and_the_step_itself_counts() -> None:
    curve = anytime_curve([2.0, 1.0], [None, 0.8], [None, 0.7])
    assert curve.at(2.999) is None
    assert curve.at(3.0) == 0.7
    assert curve.end == 3.0


@pytest.mark.parametrize(("costs", "values"), [([1.0, 2.0], [0.5]), ([1.0], [0.5, 0.6]), ([-1.0], [0.5])])
def test_trials_that_do_not_fit_together_are_refused(costs: list[float], values: list[float | None]) -> None:
    with pytest.raises(UsageError, match=r"an entry per trial|from 0 up, got -1\.0"):
        anytime_curve(costs, values, values)


def test_the_test_value_may_fall_when_a_better_validated_model_tests_worse() -> None:
    assert anytime_curve([1, 1], [0.8, 0.9], [0.85, 0.80]).values == (0.85, 0.80)


def test_curves_are_averaged_only_where_all_are_defined_and_counted_everywhere() -> None:
    early, late = StepCurve((1.0,), (0.4,), 5.0), StepCurve((3.0,), (0.8,), 5.0)
    combined = combine([early, late], [0.5, 1.0, 3.0])
    assert combined.values[:2] == (None, None)
    assert combined.values[2] == pytest.approx(0.6)
    assert combined.counts == (0, 1, 2)
    assert combined.total == 2


def test_the_median_of_three_is_the_middle_curve() -> None:
    curves = [StepCurve((1.0,), (value,), 2.0) for value in (0.1, 0.9, 0.5)]
    assert combine(curves, [1.5], "median").values == (0.5,)


def test_the_common_grid_has_every_event() -> None:
    curves = [StepCurve((1.0, 3.0), (0.1, 0.2), 4.0), StepCurve((2.5,), (0.3,), 9.0)]
    grid = common_grid(curves)
    assert {1.0, 2.5, 3.0, 4.0, 9.0} <= set(grid)
    assert grid == sorted(grid)
    assert len(grid) > 50


def test_a_curve_ends_at_its_last_step_however_sums_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrsearch.analysis.anytime.sum", math.fsum, raising=False)  # Python 3.12's is as exact
    costs = [0.1, 0.1, 0.1, 0.3]
    assert max(accumulate(costs)) > math.fsum(costs)
    curve = anytime_curve(costs, [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])
    assert curve.end == curve.costs[-1]
    assert curve.at(curve.end) == 0.4
