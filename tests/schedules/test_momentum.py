"""Momentum that mirrors the rate, against torch's own schedulers."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError

from lrsearch.schedules import PlannedSchedule, plan_schedule, schedule_settings
from lrsearch.trial import Choice

MOMENTA = {"base_momentum": 0.8, "max_momentum": 0.9}


def plan(name: str, steps: int, **settings: Any) -> PlannedSchedule:
    return plan_schedule(
        Choice(name, {**MOMENTA, **settings}),
        learning_rate=None,
        base_lr=0.001,
        max_lr=0.006,
        total_steps=steps,
        steps_per_epoch=10,
    )


def momenta(planned: PlannedSchedule, count: int) -> list[float]:
    assert planned.momentum is not None
    return [planned.momentum(step) for step in range(count)]


def torch_momenta(optimizer: torch.optim.Optimizer, scheduler: Any, count: int) -> list[float]:
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    return found


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.001, momentum=0.9)


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_cyclical_momentum_is_that_of_torch(mode: Literal["triangular", "triangular2", "exp_range"]) -> None:
    gamma = {"gamma": 0.99} if mode == "exp_range" else {}
    optimizer = sgd()
    settings: dict[str, Any] = {"cycle_momentum": True, **MOMENTA, **gamma}
    scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.001, 0.006, step_size_up=10, mode=mode, **settings)
    ours = momenta(plan(mode, 60, cycles=3, **gamma), 60)
    assert ours == pytest.approx(torch_momenta(optimizer, scheduler, 60), abs=1e-12)


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_momentum_is_that_of_torch(anneal: Literal["cos", "linear"], three_phase: bool) -> None:
    optimizer = sgd()
    settings: dict[str, Any] = {"three_phase": three_phase, **MOMENTA}
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.006, total_steps=50, anneal_strategy=anneal, **settings
    )
    ours = momenta(plan("one_cycle", 50, anneal=anneal, three_phase=three_phase), 49)
    assert ours == pytest.approx(torch_momenta(optimizer, scheduler, 49), abs=1e-12)


def test_a_warm_up_holds_the_first_momentum() -> None:
    found = momenta(plan("triangular", 40, cycles=1, warmup_epochs=2), 40)
    assert found[:21] == [0.9] * 21
    assert min(found) == pytest.approx(0.8)


def test_no_momentum_is_scheduled_unless_asked_for() -> None:
    planned = plan_schedule(
        Choice("one_cycle"), learning_rate=None, base_lr=None, max_lr=0.1, total_steps=20, steps_per_epoch=10
    )
    assert planned.momentum is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_momentum": 0.8}, "belong together; give both"),
        ({"base_momentum": 0.9, "max_momentum": 0.8}, "must not exceed max_momentum"),
        ({"base_momentum": 0.9, "max_momentum": 1.0}, "less than 1"),
    ],
)
def test_momenta_that_make_no_sense_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        schedule_settings("one_cycle").model_validate(settings)
