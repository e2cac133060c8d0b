from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from lrsearch import torch_scheduler
from lrsearch.errors import UsageError
from lrsearch.interfaces import Schedule
from lrsearch.schedules import cosine_restarts, linear_to_zero, one_cycle, one_cycle_momentum, triangular2


def make_optimizer(*rates: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=0.1, momentum=momentum)


def take_step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def rates_of_run(
    optimizer: torch.optim.Optimizer, scheduler: lr_scheduler.LRScheduler, steps: int
) -> list[list[float]]:
    """Return the rates with which each step is taken, by group."""
    rates = []
    for _ in range(steps):
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        take_step(optimizer)
        scheduler.step()
    return rates


def test_each_step_has_the_rate_of_its_number() -> None:
    schedule = triangular2(base_lr=0.001, max_lr=0.005, cycle_steps=8)
    optimizer = make_optimizer(0.1)
    scheduler = torch_scheduler(optimizer, schedule)
    assert isinstance(scheduler, lr_scheduler.LRScheduler)
    assert rates_of_run(optimizer, scheduler, 20) == [[schedule(step)] for step in range(20)]


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (
            triangular2(base_lr=0.001, max_lr=0.1, cycle_steps=10),
            lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, 5, mode="triangular2", cycle_momentum=False),
        ),
        (one_cycle(max_lr=0.1, total_steps=30), lambda o: lr_scheduler.OneCycleLR(o, 0.1, 30, cycle_momentum=False)),
        (
            cosine_restarts(learning_rate=0.1, first_cycle_steps=6, cycle_mult=2),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6, 2),
        ),
    ],
    ids=["triangular2", "one_cycle", "cosine_restarts"],
)
def test_a_loop_with_torchs_own_scheduler_can_swap_it_for_ours(
    schedule: Schedule, theirs: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
) -> None:
    ours, other = make_optimizer(0.1), make_optimizer(0.1)
    expected = rates_of_run(other, theirs(other), 25)
    found = rates_of_run(ours, torch_scheduler(ours, schedule), 25)
    assert [rate for [rate] in found] == pytest.approx([rate for [rate] in expected], rel=1e-12)


def test_groups_keep_the_ratio_that_they_were_given() -> None:
    optimizer = make_optimizer(0.1, 0.01, 0.0)
    rates = rates_of_run(optimizer, torch_scheduler(optimizer, lambda step: 1.0 + step), 3)
    assert rates == [[1.0, pytest.approx(0.1), 0.0], [2.0, pytest.approx(0.2), 0.0], [3.0, pytest.approx(0.3), 0.0]]


def test_groups_at_rate_zero_get_the_rate_of_the_schedule() -> None:
    optimizer = make_optimizer(0.0, 0.0)
    assert rates_of_run(optimizer, torch_scheduler(optimizer, lambda step: 0.5), 1) == [[0.5, 0.5]]


def test_a_rate_that_is_a_tensor_stays_that_tensor() -> None:
    """Compiled and captured optimizers read the rate from where it lies."""
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=rate)
    scheduler = torch_scheduler(optimizer, lambda step: 0.5 / (1 + step))
    assert float(rate) == 0.5
    take_step(optimizer)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.25
    scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": 4})
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.1)


@given(stop=st.integers(0, 12), more=st.integers(1, 8), optimizer_first=st.booleans(), scales=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_resumed_run_goes_on_bit_for_bit(stop: int, more: int, optimizer_first: bool, scales: bool) -> None:
    rates = (0.1, 0.03) if scales else (0.1, 0.1)
    schedule = one_cycle(max_lr=0.1, total_steps=20)
    momentum = one_cycle_momentum(total_steps=20)

    def start() -> tuple[torch.optim.Optimizer, Any]:
        optimizer = make_optimizer(*rates)
        return optimizer, torch_scheduler(optimizer, schedule, momentum=momentum)

    whole, scheduler = start()
    expected = rates_of_run(whole, scheduler, stop + more)[stop:]

    optimizer, scheduler = start()
    rates_of_run(optimizer, scheduler, stop)
    saved = stored({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    weights = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]

    optimizer, scheduler = start()
    for group, values in zip(optimizer.param_groups, weights, strict=True):
        group["params"][0].data.copy_(values[0])
    loads = [
        lambda: optimizer.load_state_dict(saved["optimizer"]),
        lambda: scheduler.load_state_dict(saved["scheduler"]),
    ]
    for load in loads if optimizer_first else reversed(loads):
        load()
    assert optimizer.param_groups[0]["momentum"] == momentum(stop)
    assert rates_of_run(optimizer, scheduler, more) == expected
    for ours, theirs in zip(optimizer.param_groups, whole.param_groups, strict=True):
        assert torch.equal(ours["params"][0], theirs["params"][0])
        assert ours["momentum"] == theirs["momentum"]


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """Return `state` after a trip through a file that is opened with weights_only=True."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def test_the_state_is_plain_numbers() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=torch.tensor(0.1))
    state = torch_scheduler(optimizer, lambda step: 0.5).state_dict()
    assert state == {"last_epoch": 0, "base_lrs": [pytest.approx(0.1)], "_last_lr": [0.5], "_step_count": 1}
    assert all(
        type(value) in (int, float)
        for member in state.values()
        for value in (member if type(member) is list else [member])
    )


def test_a_run_without_saved_scheduler_state_resumes_by_its_step() -> None:
    optimizer = make_optimizer(0.1, 0.05)
    rates_of_run(optimizer, torch_scheduler(optimizer, lambda step: 1.0 + step), 4)
    resumed = make_optimizer(0.1, 0.05)
    resumed.load_state_dict(optimizer.state_dict())
    scheduler = torch_scheduler(resumed, lambda step: 1.0 + step, last_step=3)
    assert rates_of_run(resumed, scheduler, 2) == [[5.0, 2.5], [6.0, 3.0]]


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_momentum_moves_as_in_torchs_one_cycle(kind: str) -> None:
    def make() -> torch.optim.Optimizer:
        weights = [nn.Parameter(torch.ones(2))]
        return torch.optim.Adam(weights, lr=0.1) if kind == "adam" else torch.optim.SGD(weights, lr=0.1, momentum=0.9)

    def momentum(optimizer: torch.optim.Optimizer) -> float:
        group = optimizer.param_groups[0]
        return float(group["betas"][0] if kind == "adam" else group["momentum"])

    ours, theirs = make(), make()
    schedulers: list[lr_scheduler.LRScheduler] = [
        torch_scheduler(ours, one_cycle(max_lr=0.1, total_steps=20), momentum=one_cycle_momentum(total_steps=20)),
        lr_scheduler.OneCycleLR(theirs, 0.1, 20),
    ]
    for _ in range(19):
        assert momentum(ours) == pytest.approx(momentum(theirs), rel=1e-12)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        for optimizer, scheduler in zip((ours, theirs), schedulers, strict=True):
            take_step(optimizer)
            scheduler.step()
    if kind == "adam":
        assert ours.param_groups[0]["betas"][1] == 0.999


def test_it_works_with_a_grad_scaler_and_gives_no_warning() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch_scheduler(optimizer, linear_to_zero(learning_rate=0.1, total_steps=4))
    scaler = torch.amp.GradScaler("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 3)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
    assert scheduler.get_last_lr() == [linear_to_zero(learning_rate=0.1, total_steps=4)(4)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: torch_scheduler(make_optimizer(0.1), "triangular"), "schedule must be a function"),  # type: ignore[arg-type]
        (lambda: torch_scheduler(make_optimizer(0.1), lambda step: -1.0), "at least 0, got -1.0 for step 0"),
        (lambda: torch_scheduler(make_optimizer(0.1), lambda step: float("nan")), "finite"),
        (lambda: torch_scheduler(make_optimizer(0.1), lambda step: 0.1, last_step=-2), "last_step must be -1"),
        (lambda: torch_scheduler(make_optimizer(0.1), lambda step: 0.1, last_step=3), "initial_lr"),
        (
            lambda: torch_scheduler(
                make_optimizer(0.1),
                triangular2(base_lr=None, max_lr=None, cycle_steps=9),  # type: ignore[arg-type]  # as a verdict has them
            ),
            "no number for step 0 .*: are its bounds None",
        ),
        (
            lambda: torch_scheduler(
                torch.optim.Adagrad([nn.Parameter(torch.ones(1))]), lambda step: 0.1, momentum=lambda step: 0.9
            ),
            "Adagrad has no momentum",
        ),
        (lambda: torch_scheduler(make_optimizer(0.1), lambda step: 0.1).load_state_dict({}), "lacks _step_count"),
        (
            lambda: torch_scheduler(make_optimizer(0.1), lambda step: 0.1).load_state_dict(
                torch_scheduler(make_optimizer(0.1, 0.2), lambda step: 0.1).state_dict()
            ),
            "2 parameter groups, this has 1",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_at_once(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
