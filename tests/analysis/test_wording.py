"""The worked values in the docstrings hold."""

import doctest
import importlib

import pytest

from lrsearch.analysis import wording

WITH_EXAMPLES = (
    *("anytime", "compare", "cost", "early_clue", "expected_best", "grid_order", "plain", "profile", "select"),
    *("target", "wording"),
)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_the_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"lrsearch.analysis.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_processor_seconds_are_called_so() -> None:
    assert wording.seconds_noun("cpu") == "processor seconds"
    assert wording.seconds_noun("cuda") == "device seconds"
