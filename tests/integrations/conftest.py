"""Tests with the real Lightning, Keras and fastai: `make integration-test`. Others do not even import these files."""

from __future__ import annotations

import pytest
import torch


def is_asked_for(config: pytest.Config) -> bool:
    return bool(config.getoption("markexpr") == "integrations")


def pytest_configure(config: pytest.Config) -> None:
    if is_asked_for(config):
        config.addinivalue_line("filterwarnings", "default")  # these libraries warn of one another
        torch.set_num_threads(1)  # the models are tiny


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if is_asked_for(config) else True
