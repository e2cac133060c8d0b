"""Training that starts from saved weights: what is frozen stays, and a range test sees that the start is trained."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from lrsearch.engine import run_trials
from lrsearch.range_test import RangeTestVerdict, judge
from lrsearch.trial import (
    Choice,
    ParameterGroup,
    Proposal,
    RangeTestPlan,
    TrainingPlan,
    TrialResult,
    TrialSpec,
)
from lrsearch.workloads.digits import Digits
from tests.executors.contract import Listener
from tests.workloads.contract import load

SGD = Choice("sgd", {"momentum": 0.9, "weight_decay": 5e-4})
PLAN = RangeTestPlan(1e-5, 10.0)
NET = """
import torch
from sklearn.datasets import load_digits
from torch import nn

MODELS = []

def data():
    digits = load_digits()
    inputs, targets = torch.tensor(digits.images / 16).float()[:, None], torch.tensor(digits.target)
    return (inputs[:600], targets[:600]), (inputs[600:800], targets[600:800])

def model():
    features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    MODELS.append(nn.ModuleDict({"features": features, "norm": nn.BatchNorm1d(288), "head": nn.Linear(288, 10)}))
    MODELS[-1].forward = lambda x: MODELS[-1]["head"](MODELS[-1]["norm"](MODELS[-1]["features"](x)))
    return MODELS[-1]
"""


def run(workload: Choice, proposal: Proposal, groups: tuple[ParameterGroup, ...] = ()) -> TrialResult:
    spec = TrialSpec("u", "s", "w", 0, 0, proposal, workload, TrainingPlan(1, SGD, device="cpu", groups=groups))
    [result] = run_trials([spec], Listener())
    assert result.error is None
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the digits MLP after six epochs in a loop of this test's own."""
    loaded = load(Digits(batch_size=32))
    torch.manual_seed(1)
    model = loaded.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        for inputs, targets in loaded.train_batches(generator):
            optimizer.zero_grad()
            loaded.loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]  # torch: untyped
            optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "digits.pt"
    torch.save(model.state_dict(), path)
    return path


def verdict(**settings: Any) -> RangeTestVerdict:
    result = run(Choice("digits", {"batch_size": 32, **settings}), Proposal("range_test", range_test=PLAN))
    assert result.facts is not None
    return judge(result.range_test, result.facts, PLAN, "sgd", bootstrap=0)


def test_a_range_test_sees_a_pretrained_start_and_none_from_scratch(trained: Path) -> None:
    found = verdict(start_from=str(trained))
    assert found.status == "ok"
    assert set(found.flags) >= {"pretrained_start", "learns_from_first_point"}
    assert "starts trained" in found.advice
    assert found.max_lr is not None
    assert found.constant_lr == pytest.approx(found.max_lr / 10)
    assert not set(verdict().flags) & {"pretrained_start", "learns_from_first_point"}


def test_a_new_head_is_no_pretrained_start(trained: Path) -> None:
    found = verdict(start_from=str(trained), new_layers=["5.*"])
    assert found.status == "ok"
    assert "pretrained_start" not in found.flags


def test_a_pretrained_model_is_good_before_it_has_learned_anything_more(trained: Path) -> None:
    proposal = Proposal("train", Choice("constant"), 1e-9)
    tuned = run(Choice("digits", {"batch_size": 32, "start_from": str(trained)}), proposal)
    scratch = run(Choice("digits", {"batch_size": 32}), proposal)
    assert tuned.test_metric is not None
    assert scratch.test_metric is not None
    assert scratch.test_metric < 0.3 < 0.9 < tuned.test_metric


@pytest.mark.parametrize("stage", ["train", "range_test"])
def test_frozen_features_do_not_move_and_neither_do_their_statistics(tmp_path: Path, stage: str) -> None:
    name = f"frozen_{stage}"
    (tmp_path / f"{name}.py").write_text(NET)
    settings = {"batch_size": 32, "model": f"{name}:model", "data": f"{name}:data", "python_path": str(tmp_path)}
    whole = Proposal("train", Choice("constant"), 0.1)
    proposal = whole if stage == "train" else Proposal("range_test", range_test=PLAN)
    run(Choice("callable", settings), whole)
    models = importlib.import_module(name).MODELS
    saved = {key: value.clone() for key, value in models[-1].state_dict().items()}
    torch.save(saved, tmp_path / "w.pt")
    groups = (ParameterGroup("features.*", 0.0), ParameterGroup("norm.weight", 0.0))
    run(Choice("callable", {**settings, "start_from": str(tmp_path / "w.pt")}), proposal, groups)
    after = models[-1].state_dict()
    moved = {key for key in saved if not torch.equal(saved[key], after[key])}
    # The second norm has a bias that trains, so its statistics go on as well.
    assert moved == {
        "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "head.weight", "head.bias"
    }  # fmt: skip
