from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lrsearch.errors import UsageError
from lrsearch.schedules import plan_schedule, schedule_settings, staged, triangular2
from lrsearch.schedules.staged import Stage
from lrsearch.trial import Choice


def plan(stages: list[dict[str, Any]], steps: int, **settings: Any) -> Any:
    return plan_schedule(
        Choice("staged", {"stages": stages, **settings}),
        learning_rate=None,
        base_lr=0.001,
        max_lr=0.005,
        total_steps=steps,
        steps_per_epoch=10,
    )


def test_the_default_is_table_2_of_the_paper() -> None:
    planned = plan_schedule(
        Choice("staged"), learning_rate=None, base_lr=0.001, max_lr=0.005, total_steps=25000, steps_per_epoch=500
    )
    first = triangular2(base_lr=0.001, max_lr=0.005, cycle_steps=4000)
    last = triangular2(base_lr=1e-5, max_lr=5e-5, cycle_steps=1000)
    assert [planned.rate(step) for step in range(0, 16000, 500)] == pytest.approx(
        [first(step) for step in range(0, 16000, 500)], rel=1e-12
    )
    assert [planned.rate(22000 + step) for step in range(0, 3000, 100)] == pytest.approx(
        [last(step) for step in range(0, 3000, 100)], rel=1e-12
    )
    assert planned.train_steps == 25000
    assert planned.cycle_ends == (4000, 8000, 12000, 16000, 18000, 20000, 22000, 23000, 24000, 25000)


def test_a_decaying_stage_starts_from_the_upper_bound() -> None:
    planned = plan([{"schedule": {"name": "constant"}}, {"schedule": {"name": "linear_to_zero"}, "rate_factor": 2}], 20)
    assert [planned.rate(step) for step in (0, 9, 10)] == pytest.approx([0.005, 0.005, 0.01])
    assert planned.rate(19) == pytest.approx(0.001)


def test_a_warm_up_goes_in_front_of_the_first_stage() -> None:
    planned = plan([{"schedule": {"name": "triangular", "cycles": 1}}], 30, warmup_epochs=1)
    assert planned.train_steps == 30
    assert planned.rate(10) == 0.001
    assert planned.rate(20) == pytest.approx(0.005)
    assert planned.cycle_ends == (30,)


@given(
    shares=st.lists(st.floats(0.2, 5), min_size=1, max_size=5),
    cycles=st.integers(1, 3),
    steps=st.integers(400, 3000),
)
def test_a_run_of_stages_ends_with_a_whole_cycle_and_wastes_little(
    shares: list[float], cycles: int, steps: int
) -> None:
    planned = plan([{"schedule": {"name": "triangular", "cycles": cycles}, "share": share} for share in shares], steps)
    assert len(planned.cycle_ends) == cycles * len(shares)
    assert all(before < after for before, after in pairwise(planned.cycle_ends))
    assert planned.cycle_ends[-1] == planned.train_steps <= steps
    assert steps - planned.train_steps < 2 * cycles * len(shares) + len(shares)
    assert all(planned.rate(end) == pytest.approx(0.001) for end in planned.cycle_ends[:-1])


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"schedule": {}}, "needs a name"),
        ({"schedule": {"name": "triangel"}}, "Unknown schedule 'triangel'"),
        ({"schedule": {"name": "triangular", "cycle": 2}}, "cycle: Extra inputs are not permitted"),
        ({"schedule": {"name": "triangular", "stepsize_epochs": 2}}, "give cycles instead"),
        ({"schedule": {"name": "staged"}}, "no stages"),
        ({"schedule": {"name": "triangular", "base_momentum": 0.8, "max_momentum": 0.9}}, "remove base_momentum"),
        ({"schedule": {"name": "constant"}, "share": 0}, "greater than 0"),
        ({"schedule": {"name": "constant"}, "share": 1e308}, "less than or equal to 1000000000"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        schedule_settings("staged").model_validate({"stages": [stage]})


def test_a_stage_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="does not fit"):
        staged(base_lr=0.1, max_lr=1.0, total_steps=5, stages=(Stage(schedule={"name": "triangular", "cycles": 4}),))
