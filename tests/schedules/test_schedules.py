from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.errors import UsageError
from lrsearch.schedules import (
    constant,
    cosine_restarts,
    decay,
    exp_range,
    exp_range_paper,
    linear_to_zero,
    one_cycle,
    triangular,
    triangular2,
    warmup_stable_decay,
    with_warmup,
)
from lrsearch.schedules.cosine import cycle_start

STEPSIZES = st.integers(1, 500)
STEPS = st.integers(0, 20_000)


def keras(iteration: int, stepsize: int, base: float, top: float, mode: str, gamma: float = 1.0) -> float:
    """The formula of https://github.com/bckenstler/CLR, which the paper's author names as his code."""
    cycle = math.floor(1 + iteration / (2 * stepsize))
    x = abs(iteration / stepsize - 2 * cycle + 1)
    scale = {"triangular": 1.0, "triangular2": math.pow(0.5, cycle - 1), "exp_range": math.pow(gamma, iteration)}[mode]
    return base + (top - base) * max(0.0, 1 - x) * scale


@given(STEPS, STEPSIZES)
def test_cycles_equal_the_keras_callback(step: int, stepsize: int) -> None:
    bounds: Any = {"base_lr": 0.001, "max_lr": 0.006, "cycle_steps": 2 * stepsize}
    for name, ours in (
        ("triangular", triangular(**bounds)),
        ("triangular2", triangular2(**bounds)),
        ("exp_range", exp_range(**bounds, gamma=0.99994)),
    ):
        assert ours(step) == pytest.approx(keras(step, stepsize, 0.001, 0.006, name, 0.99994), rel=1e-9), name


@given(STEPS, STEPSIZES, st.floats(0.05, 0.95))
def test_triangular_repeats_itself_and_keeps_its_bounds(step: int, stepsize: int, rise: float) -> None:
    schedule = triangular(base_lr=0.1, max_lr=1.0, cycle_steps=2 * stepsize, rise_fraction=rise)
    assert schedule(step) == schedule(step + 2 * stepsize)
    assert 0.1 - 1e-12 <= schedule(step) <= 1.0 + 1e-12


@given(STEPS)
def test_triangular2_halves_its_height_in_each_cycle(step: int) -> None:
    schedule = triangular2(base_lr=0.0, max_lr=1.0, cycle_steps=100)
    assert schedule(step + 100) == pytest.approx(schedule(step) / 2)


def test_exp_range_keeps_the_lower_bound_and_the_papers_form_does_not() -> None:
    """Smith 2017, section 3.1: in the paper both bounds decline by gamma**iteration."""
    amplitude = exp_range(base_lr=0.001, max_lr=0.006, gamma=0.99994, cycle_steps=4000)
    both = exp_range_paper(base_lr=0.001, max_lr=0.006, gamma=0.99994, cycle_steps=4000)
    assert amplitude(40_000) == 0.001
    assert both(40_000) == pytest.approx(0.001 * 0.99994**40_000)
    assert both(2000) == pytest.approx(0.006 * 0.99994**2000)


def test_decay_is_the_fall_of_the_triangle_and_then_the_lower_bound() -> None:
    fall = decay(base_lr=0.001, max_lr=0.007, total_steps=25_000)
    triangle = triangular(base_lr=0.001, max_lr=0.007, cycle_steps=8000)
    assert [fall(step) for step in range(0, 4000, 7)] == pytest.approx([triangle(4000 + s) for s in range(0, 4000, 7)])
    assert {fall(step) for step in range(4000, 25_000)} == {0.001}


@given(st.integers(1, 200), st.floats(1.0, 3.0), st.floats(0.1, 1.0))
def test_restarts_fall_within_each_cycle_and_begin_at_the_decayed_peak(first: int, mult: float, decay: float) -> None:
    schedule = cosine_restarts(learning_rate=1.0, first_cycle_steps=first, cycle_mult=mult, peak_decay=decay)
    rates = [schedule(step) for step in range(3 * first)]
    starts = [start for number in range(3) if (start := math.ceil(cycle_start(number, first, mult))) < 3 * first]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], 3 * first], strict=True)):
        assert all(a >= b for a, b in zip(rates[start:end], rates[start + 1 : end], strict=False))
        assert all(0 < rate <= decay**number + 1e-12 for rate in rates[start:end])
    assert rates[first] == decay


@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycle_is_defined_for_runs_of_a_few_steps(total_steps: int, three_phase: bool) -> None:
    schedule = one_cycle(max_lr=1.0, total_steps=total_steps, three_phase=three_phase)
    assert all(0 < schedule(step) <= 1 for step in range(total_steps + 2))


def test_one_cycle_refuses_a_rise_and_a_fall_longer_than_the_run() -> None:
    with pytest.raises(UsageError, match=r"pct_start of at most 0\.5, got 0\.6"):
        one_cycle(max_lr=1.0, total_steps=100, pct_start=0.6, three_phase=True)


@given(st.integers(0, 50), st.integers(1, 100))
def test_a_warm_up_rises_to_the_schedule_and_only_delays_it(warmup: int, total: int) -> None:
    schedule = linear_to_zero(learning_rate=1.0, total_steps=total)
    warm = with_warmup(schedule, warmup)
    rise = [warm(step) for step in range(warmup + 1)]
    assert rise == sorted(rise)
    assert rise[-1] == 1.0
    assert all(rate > 0 for rate in rise)
    assert [warm(warmup + step) for step in range(total)] == [schedule(step) for step in range(total)]


def test_warmup_stable_decay_holds_its_rate_between_rise_and_fall() -> None:
    schedule = warmup_stable_decay(learning_rate=0.4, total_steps=1000, decay_shape="linear")
    rates = [schedule(step) for step in range(1000)]
    assert rates[:50] == pytest.approx([0.4 * (step + 1) / 50 for step in range(50)])
    assert set(rates[50:801]) == {0.4}
    assert rates[800:] == pytest.approx([0.4 * (1 - step / 200) for step in range(200)])


def test_warmup_stable_decay_refuses_more_than_the_run() -> None:
    with pytest.raises(UsageError, match=r"add up to at most 1, got 0\.5 and 0\.6"):
        warmup_stable_decay(learning_rate=1.0, total_steps=10, warmup_fraction=0.5, decay_fraction=0.6)


def test_a_length_of_no_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="cycle_steps must be at least 1, got 0"):
        triangular(base_lr=0.1, max_lr=1.0, cycle_steps=0)


def test_a_constant_rate_is_constant() -> None:
    assert {constant(learning_rate=0.3)(step) for step in range(10)} == {0.3}
