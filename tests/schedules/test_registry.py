from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
from pydantic import TypeAdapter

import lrsearch.schedules
from lrsearch.errors import UnknownNameError
from lrsearch.schedules import SCHEDULES, schedule_settings
from tests.schedules.contract import FILLING, made

MODULES = [module.name for module in pkgutil.iter_modules(lrsearch.schedules.__path__, "lrsearch.schedules.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_worked_values_in_the_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", SCHEDULES)
class TestEverySchedule:
    def test_stays_between_zero_and_its_upper_rate(self, name: str) -> None:
        rates = [made(name)(step) for step in range(200)]
        assert all(0 < rate <= FILLING["max_lr"] * (1 + 1e-12) for rate in rates)

    def test_comes_within_a_tenth_of_its_upper_rate(self, name: str) -> None:
        assert max(made(name)(step) for step in range(100)) > 0.9 * FILLING["max_lr"]

    def test_is_a_function_of_the_step_alone(self, name: str) -> None:
        schedule = made(name)
        forward = [schedule(step) for step in range(50)]
        assert [schedule(step) for step in reversed(range(50))] == forward[::-1]

    def test_stays_where_it_ended_or_goes_on_in_cycles(self, name: str) -> None:
        schedule = made(name)
        if "total_steps" in inspect.signature(SCHEDULES[name]).parameters:
            assert [schedule(step) for step in (100, 101, 1000)] == [schedule(99)] * 3
        else:
            assert 0 < schedule(1_000_000) <= FILLING["max_lr"]

    def test_says_where_it_comes_from_with_a_worked_value(self, name: str) -> None:
        assert ">>>" in (inspect.getdoc(SCHEDULES[name]) or "")

    def test_has_settings_with_defaults_that_travel_as_json(self, name: str) -> None:
        settings = schedule_settings(name).model_validate({"name": name})
        assert schedule_settings(name).model_validate_json(settings.model_dump_json()) == settings
        assert TypeAdapter(schedule_settings(name)).json_schema()["properties"]["name"]["const"] == name


def test_the_schedules_import_neither_torch_nor_numpy() -> None:
    code = "import sys, lrsearch.schedules; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'optuna')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_schedule_is_named_with_its_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown schedule 'triangel'; known: .* Did you mean 'triangular'\?"):
        schedule_settings("triangel")
