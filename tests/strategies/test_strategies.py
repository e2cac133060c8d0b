from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from lrsearch.strategies import STRATEGIES, ScheduleTemplate


def test_each_strategy_is_registered_under_its_own_name() -> None:
    for name, strategy in STRATEGIES.items():
        assert issubclass(strategy, BaseModel)
        assert strategy.model_fields["name"].default == name


def test_importing_the_strategies_brings_none_of_the_heavy_packages() -> None:
    program = (
        "import sys, lrsearch.strategies; print({'torch', 'optuna', 'numpy', 'scipy', 'sqlalchemy'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"


def test_a_schedule_template_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ScheduleTemplate(name="constant").name = "cosine"  # type: ignore[misc]  # that it is refused is the point
