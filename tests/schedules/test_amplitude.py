from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from lrsearch.errors import UsageError
from lrsearch.schedules import plan_schedule, schedule_settings
from lrsearch.schedules.cyclical import custom_cyclical
from lrsearch.trial import Choice


def test_an_amplitude_of_ones_own_is_that_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_amplitude.py").write_text("def sinking(step):\n    return 1 / (1 + 0.1 * step)\n")
    monkeypatch.chdir(tmp_path)
    planned = plan_schedule(
        Choice("cyclical", {"amplitude": "my_amplitude:sinking", "scale_mode": "iteration", "cycles": 2}),
        learning_rate=None,
        base_lr=0.001,
        max_lr=0.006,
        total_steps=40,
        steps_per_epoch=10,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CyclicLR(
        optimizer, 0.001, 0.006, step_size_up=10, scale_fn=lambda step: 1 / (1 + 0.1 * step), scale_mode="iterations"
    )
    for step in range(40):
        assert planned.rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nothing_here:f", "schedule.amplitude 'nothing_here:f' is not to be had: No module named 'nothing_here'"),
        ("math:sine", "schedule.amplitude 'math:sine' is not to be had: module 'math' has no attribute 'sine'"),
        ("math:pi", "schedule.amplitude 'math:pi' must be a function, got a float"),
    ],
)
def test_an_amplitude_that_is_not_there_is_named(reference: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        custom_cyclical(base_lr=0.1, max_lr=1.0, cycle_steps=10, amplitude=reference)


def test_an_amplitude_is_named_as_module_and_function() -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        schedule_settings("cyclical").model_validate({"amplitude": "lambda: 1"})
