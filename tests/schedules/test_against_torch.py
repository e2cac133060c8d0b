"""The schedules beside torch's own, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch.optim import lr_scheduler

from lrsearch.interfaces import Schedule
from lrsearch.schedules import (
    cosine,
    cosine_restarts,
    cyclical,
    exp_range,
    exponential,
    linear_to_zero,
    one_cycle,
    one_cycle_momentum,
    polynomial,
    step_decay,
    triangular,
    triangular2,
)

Scheduler = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


def rates_of(scheduler: Scheduler, steps: int, key: str = "lr") -> list[float]:
    """Return what torch would use in each of the first `steps` steps, as an optimiser sees it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    stepper = scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0][key]))
        optimizer.step()
        stepper.step()
    return rates


def ours(schedule: Schedule, steps: int) -> list[float]:
    return [schedule(step) for step in range(steps)]


def close(expected: list[float]) -> object:
    return pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("mode", "schedule"),
    [
        ("triangular", triangular(base_lr=0.001, max_lr=0.006, cycle_steps=20)),
        ("triangular2", triangular2(base_lr=0.001, max_lr=0.006, cycle_steps=20)),
        ("exp_range", exp_range(base_lr=0.001, max_lr=0.006, cycle_steps=20, gamma=0.98)),
    ],
)
def test_cycles_equal_cyclic_lr(mode: Literal["triangular", "triangular2", "exp_range"], schedule: Schedule) -> None:
    theirs = rates_of(
        lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.006, step_size_up=10, mode=mode, gamma=0.98, cycle_momentum=False),
        107,
    )
    assert ours(schedule, 107) == close(theirs)


@pytest.mark.parametrize(("up", "down"), [(3, 17), (15, 5), (1, 6)])
def test_asymmetric_cycles_equal_cyclic_lr(up: int, down: int) -> None:
    theirs = rates_of(
        lambda o: lr_scheduler.CyclicLR(
            o, 0.1, 1.0, step_size_up=up, step_size_down=down, mode="triangular2", cycle_momentum=False
        ),
        83,
    )
    schedule = triangular2(base_lr=0.1, max_lr=1.0, cycle_steps=up + down, rise_fraction=up / (up + down))
    assert ours(schedule, 83) == close(theirs)


@pytest.mark.parametrize("mode", ["cycle", "iteration"])
def test_a_custom_amplitude_equals_cyclic_lr(mode: str) -> None:
    def scale(number: float) -> float:
        return 1 / (1 + number)

    theirs = rates_of(
        lambda o: lr_scheduler.CyclicLR(
            o,
            0.1,
            1.0,
            step_size_up=6,
            scale_fn=scale,
            scale_mode="cycle" if mode == "cycle" else "iterations",
            cycle_momentum=False,
        ),
        50,
    )
    schedule = cyclical(
        base_lr=0.1, max_lr=1.0, cycle_steps=12, scale=scale, scale_mode="cycle" if mode == "cycle" else "iteration"
    )
    assert ours(schedule, 50) == close(theirs)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize(("total_steps", "pct_start"), [(100, 0.3), (37, 0.25), (7, 0.45), (3, 0.3)])
def test_one_cycle_equals_one_cycle_lr(anneal: str, three_phase: bool, total_steps: int, pct_start: float) -> None:
    def theirs(key: str) -> list[float]:
        return rates_of(
            lambda o: lr_scheduler.OneCycleLR(
                o,
                0.7,
                total_steps=total_steps,
                pct_start=pct_start,
                anneal_strategy="cos" if anneal == "cos" else "linear",
                three_phase=three_phase,
            ),
            total_steps,
            key,
        )

    kind: Any = {
        "total_steps": total_steps,
        "pct_start": pct_start,
        "anneal": anneal,
        "three_phase": three_phase,
    }
    assert ours(one_cycle(max_lr=0.7, **kind), total_steps) == close(theirs("lr"))
    assert ours(one_cycle_momentum(**kind), total_steps) == close(theirs("momentum"))


def test_one_cycle_never_takes_the_extra_rising_step_of_torch() -> None:
    schedule = one_cycle(max_lr=0.1, total_steps=100)
    theirs = rates_of(lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=100), 100)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
    for _ in range(100):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] > 100 * theirs[-1], "torch no longer rises: this test has lost its point"
    assert schedule(100) == schedule(99) == pytest.approx(theirs[-1])


@pytest.mark.parametrize(("first", "mult"), [(10, 1), (7, 2), (3, 3)])
def test_restarts_equal_cosine_annealing_warm_restarts(first: int, mult: int) -> None:
    theirs = rates_of(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, first, mult, eta_min=0.1), 120)
    schedule = cosine_restarts(learning_rate=1.0, first_cycle_steps=first, cycle_mult=mult, final_fraction=0.1)
    assert ours(schedule, 120) == close(theirs)


@pytest.mark.parametrize(
    ("schedule", "scheduler"),
    [
        (cosine(learning_rate=1.0, total_steps=50), lambda o: lr_scheduler.CosineAnnealingLR(o, 50)),
        (linear_to_zero(learning_rate=1.0, total_steps=50), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 50)),
        (polynomial(learning_rate=1.0, total_steps=50, power=3), lambda o: lr_scheduler.PolynomialLR(o, 50, 3)),
        (
            exponential(learning_rate=1.0, total_steps=50, final_fraction=0.02),
            lambda o: lr_scheduler.ExponentialLR(o, 0.02 ** (1 / 50)),
        ),
        (
            step_decay(learning_rate=1.0, total_steps=50, milestones=(0.2, 0.6, 0.9), factor=0.3),
            lambda o: lr_scheduler.MultiStepLR(o, [10, 30, 45], 0.3),
        ),
    ],
)
def test_decaying_rates_equal_those_of_torch(schedule: Schedule, scheduler: Scheduler) -> None:
    assert ours(schedule, 50) == close(rates_of(scheduler, 50))
