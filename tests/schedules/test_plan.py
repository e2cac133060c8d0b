from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from lrsearch.errors import UsageError
from lrsearch.schedules import SCHEDULES, PlannedSchedule, plan_schedule, schedule_settings, triangular2
from lrsearch.schedules.settings import filled_arguments
from lrsearch.trial import Choice


def plan(name: str, settings: dict[str, Any] | None = None, **given: Any) -> PlannedSchedule:
    rates = {"learning_rate": 0.25, "base_lr": 0.05, "max_lr": 0.5}
    return plan_schedule(Choice(name, settings or {}), **{**rates, "total_steps": 100, "steps_per_epoch": 10, **given})


def peak(planned: PlannedSchedule) -> float:
    return max(map(planned.rate, range(planned.train_steps)))


@example("cyclical", 20, 8, 46, 0.1)
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(20, 3000),
    st.integers(1, 8),
    st.integers(1, 50),
    st.sampled_from([0.0, 0.1]),
)
def test_every_plan_fits_its_run_and_ends_with_a_cycle(
    name: str, total_steps: int, cycles: int, steps_per_epoch: int, warmup_epochs: float
) -> None:
    settings = {"cycles": cycles} if "cycles" in schedule_settings(name).model_fields else {}
    total_steps += 60 * (name == "staged")  # by default ten cycles
    asked = partial(
        plan,
        name,
        settings | {"warmup_epochs": warmup_epochs},
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
    )
    if settings and total_steps - round(warmup_epochs * steps_per_epoch) < 2 * cycles:  # one up and one down, each
        with pytest.raises(UsageError, match="does not fit"):
            asked()
        return
    planned = asked()
    assert 0 < planned.train_steps <= total_steps
    assert list(planned.cycle_ends) == sorted(set(planned.cycle_ends))
    assert planned.cycle_ends[-1:] == (() if name == "constant" else (planned.train_steps,))
    if settings:
        assert len(planned.cycle_ends) == cycles
    rates = [planned.rate(step) for step in range(planned.train_steps)]
    highest = 0.25 if "learning_rate" in filled_arguments(SCHEDULES[name]) else 0.5
    assert all(0 < rate <= highest * (1 + 1e-12) for rate in rates)


@given(st.integers(4, 5000), st.floats(0.5, 10.0), st.integers(1, 60))
def test_a_stepsize_in_epochs_gives_whole_cycles_of_that_length(total: int, epochs: float, per_epoch: int) -> None:
    cycle_steps = 2 * max(1, round(epochs * per_epoch))
    try:
        planned = plan("triangular", {"stepsize_epochs": epochs}, total_steps=total, steps_per_epoch=per_epoch)
    except UsageError:
        assert total < cycle_steps
        return
    assert planned.cycle_ends == tuple(range(cycle_steps, total + 1, cycle_steps))


def test_cycles_are_two_unless_something_else_is_said_and_are_even() -> None:
    planned = plan("triangular2", {"cycles": None, "stepsize_epochs": None}, total_steps=103)
    assert (planned.train_steps, planned.cycle_ends) == (100, (50, 100))
    expected = triangular2(base_lr=0.05, max_lr=0.5, cycle_steps=50)
    assert [planned.rate(step) for step in range(100)] == [expected(step) for step in range(100)]


def test_the_rate_is_low_where_a_cycle_ends() -> None:
    """One step before its end a cycle stands one step above base_lr: 2 / 50 of its height."""
    planned = plan("triangular")
    assert [planned.rate(end - 1) for end in planned.cycle_ends] == pytest.approx([0.05 + 0.45 * 2 / 50] * 2)


def test_a_fixed_rate_search_gives_a_cycle_its_upper_bound_and_a_tenth_of_it() -> None:
    planned = plan("triangular", base_lr=None, max_lr=None)
    assert [planned.rate(0), planned.rate(25)] == pytest.approx([0.025, 0.25])
    assert plan("triangular", {"base_fraction": 0.2}, base_lr=None, max_lr=None).rate(0) == pytest.approx(0.05)
    assert peak(planned) == pytest.approx(0.25)


def test_decaying_schedules_start_from_the_learning_rate_and_one_cycle_peaks_at_the_bound() -> None:
    assert plan("linear_to_zero").rate(0) == peak(plan("cosine")) == 0.25
    assert peak(plan("one_cycle")) == 0.5
    assert peak(plan("one_cycle", max_lr=None)) == 0.25


def test_a_template_reaches_the_factory() -> None:
    early, late = plan("one_cycle", {"pct_start": 0.1}), plan("one_cycle", {"pct_start": 0.5})
    assert max(range(100), key=early.rate) == 9
    assert max(range(100), key=late.rate) == 49


def test_a_warm_up_is_taken_out_of_the_run() -> None:
    planned = plan("triangular", {"cycles": 3, "warmup_epochs": 1})
    assert planned.cycle_ends == (40, 70, 100)
    assert planned.rate(9) < planned.rate(10) == 0.05


def test_restarts_fill_the_run_with_cycles_that_grow() -> None:
    planned = plan("cosine_restarts", {"cycles": 3, "cycle_mult": 1.5}, total_steps=100)
    assert planned.cycle_ends == (21, 53, 100)  # 21 (1, 2.5, 4.75), rounded up
    assert [planned.rate(step) for step in (0, 21)] == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("constant", {"learning_rate": None}, "'constant' needs learning_rate, and the strategy gave none"),
        ("triangular", {"learning_rate": None, "max_lr": None}, "'triangular' needs max_lr or learning_rate"),
        ("triangular", {"base_lr": 0.5}, "needs base_lr below max_lr, got 0.5 and 0.5"),
        ("cosine", {"learning_rate": -1.0}, "needs a positive learning_rate, got -1.0"),
        ("cosine", {"learning_rate": float("nan")}, "needs a positive learning_rate, got nan"),
        ("triangular", {"total_steps": 3}, "does not fit: 2 cycles in 3 steps"),
        ("cosine_restarts", {"total_steps": 1}, "does not fit: 2 cycles in 1 steps"),
        ("cosine_restarts", {"settings": {"cycles": 200, "cycle_mult": 100}}, "does not fit: 200 cycles in "),
        ("cosine", {"total_steps": 0}, "0 steps left after its warm-up"),
    ],
)
def test_what_cannot_be_planned_is_refused(name: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(name, **changed)


def test_a_stepsize_longer_than_the_run_is_refused() -> None:
    with pytest.raises(UsageError, match="one cycle of 160 steps in 100 steps"):
        plan("triangular", {"stepsize_epochs": 8})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("triangular", {"cycles": 0}),
        ("triangular", {"cycles": 2, "stepsize_epochs": 2}),
        ("triangular", {"stepsize_epochs": 0}),
        ("triangular", {"learning_rate": 0.1}),
        ("triangular", {"rise_fraction": 1.0}),
        ("triangular", {"base_fraction": 1.5}),
        ("one_cycle", {"pct_start": 1.0}),
        ("one_cycle", {"anneal": "sine"}),
        ("one_cycle", {"cycles": 2}),
        ("step_decay", {"milestones": []}),
        ("step_decay", {"milestones": [0.5, 1.5]}),
        ("exp_range", {"gamma": 1.1}),
        ("cosine_restarts", {"cycle_mult": 0.5}),
        ("constant", {"warmup_epochs": -1}),
        ("constant", {"decay": 1}),
    ],
)
def test_wrong_settings_are_refused_in_a_study_file_and_in_a_plan(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        schedule_settings(name).model_validate(settings)
    with pytest.raises(UsageError, match=f"schedule.{name}"):
        plan(name, settings)
