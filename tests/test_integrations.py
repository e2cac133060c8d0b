"""What the integrations share, without the libraries; the tests with them are in tests/integrations."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from lrsearch.errors import MissingExtraError, UsageError
from lrsearch.finder import RangeTest
from lrsearch.integrations._run_plan import check_schedule, plan_run, stops_at
from lrsearch.range_test import RangeTestVerdict


def found(status: Any = "ok", **rates: Any) -> RangeTest:
    return RangeTest(RangeTestVerdict(status, None, "Do this.", **rates), (), 1e-5, 10.0, 100, "SGD()")


@pytest.mark.parametrize(
    ("name", "libraries"),
    [("fastai", ["fastai"]), ("keras", ["keras"]), ("lightning", ["lightning", "pytorch_lightning"])],
)
def test_without_its_library_an_integration_says_what_to_install(
    name: str, libraries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in libraries:
        for module in [library, *(loaded for loaded in sys.modules if loaded.startswith(f"{library}."))]:
            monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"lrsearch.integrations.{name}", raising=False)
    with pytest.raises(MissingExtraError, match=rf"pip install 'lrsearch\[{name}\]'"):
        importlib.import_module(f"lrsearch.integrations.{name}")


@pytest.mark.parametrize("bounds", [(0.01, 0.1), found(base_lr=0.01, max_lr=0.1, constant_lr=0.05)])
def test_a_cyclical_schedule_runs_between_the_bounds_and_whole_cycles(bounds: Any) -> None:
    named = {"name": "triangular", "stepsize_epochs": 2}
    planned = plan_run(named, bounds, None, total_steps=100, epoch_steps=10)
    assert [planned.rate(step) for step in (0, 20, 40, 60)] == pytest.approx([0.01, 0.1, 0.01, 0.1])
    assert planned.cycle_ends == (40, 80)
    assert stops_at(planned, named) == 80


def test_a_decaying_schedule_starts_from_the_guess_for_a_constant_rate() -> None:
    bounds = found(base_lr=0.01, max_lr=0.1, constant_lr=0.05)
    planned = plan_run("linear_to_zero", bounds, None, total_steps=100, epoch_steps=10)
    assert planned.rate(0) == 0.05


def test_a_function_needs_no_length_and_never_ends_a_run() -> None:
    planned = plan_run(lambda step: 0.1, None, lambda step: 0.9, total_steps=None, epoch_steps=None)
    assert planned.momentum is not None
    assert (planned.rate(7), planned.momentum(7)) == (0.1, 0.9)
    assert stops_at(planned, planned.rate) == float("inf")


@pytest.mark.parametrize(
    ("bounds", "steps", "message"),
    [
        (found("never_learns"), 100, r"found no bounds \(never_learns\). Do this."),
        (object(), 100, "has not run"),
        ((0.01, 0.1), float("inf"), "known length"),
        ((0.01, 0.1), 1, "does not fit"),
    ],
)
def test_what_gives_no_schedule_says_why(bounds: Any, steps: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_run("triangular", bounds, None, total_steps=steps, epoch_steps=steps)


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("triangular", {"bounds": None}, "needs bounds="),
        (lambda step: 0.1, {"bounds": (0.1, 0.2)}, "has its rates in it"),
        ("triangular", {"bounds": (0.1, 0.2), "momentum": lambda step: 0.9}, "base_momentum"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(schedule: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_schedule(schedule, **options)
