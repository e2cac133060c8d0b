"""Optimisers without torch's wrappers: the same weights to the last bit, and no compiler loaded for them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from lrsearch.plain_optimizer import plain_step
from lrsearch.training import OPTIMIZERS, build_optimizer
from lrsearch.trial import Choice, TrainingPlan

SETTINGS: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}}


def weights_after(name: str, *, plainly: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
    optimizer = build_optimizer(TrainingPlan(1, Choice(name, SETTINGS.get(name, {})), device="cpu"), model)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    step = plain_step(optimizer) if plainly else optimizer.step
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(8, 5)).square().sum().backward()
        step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_plain_step_changes_the_weights_as_the_optimisers_own_does(name: str) -> None:
    plain, own = weights_after(name, plainly=True), weights_after(name, plainly=False)
    assert all(torch.equal(one, other) for one, other in zip(plain, own, strict=True))


STUDY = """
version: 1
name: small
workload: WORKLOAD
training: {epochs: 1, device: cpu, optimizer: {name: sgd, momentum: 0.9}}
checkpoint: {every_seconds: 0.01, folder: states}
gangs: GANGS
seeds: [0]
rates: {low: 1e-3, high: 1.0}
strategies:
  grid: {name: grid, points: 4, schedule: {name: constant}}
  clr: {name: range_tested, schedule: {name: triangular2, cycles: 1}}
"""


@pytest.mark.parametrize(
    ("gangs", "workload"),
    [
        ("auto", ""),
        pytest.param("off", "", marks=pytest.mark.slow),
        ("auto", "{name: diabetes}"),
    ],
)
def test_a_study_loads_neither_torchs_compiler_nor_what_its_cached_data_came_from(
    tmp_path: Any, gangs: str, workload: str
) -> None:
    study = STUDY.replace("GANGS", gangs).replace("WORKLOAD", workload or "{name: digits, model: mlp, batch_size: 32}")
    (tmp_path / "study.yaml").write_text(study)
    command = [sys.executable, "-X", "importtime", "-m", "lrsearch", "run-study", "study.yaml", "--report", "page.html"]
    environment = {**os.environ, "LRSEARCH_CACHE": str(tmp_path / "cache")}  # others may write into the user's
    for number in range(2):  # the first fills the cache
        database = ["--database", f"sqlite:///{number}.db"]
        ended = subprocess.run(
            [*command, *database], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")}
    assert "torch" in loaded
    assert not loaded & {"torch._dynamo", "torchvision", "torchmetrics", "sklearn", "sympy"}
