"""A run that was cut short goes on from its checkpoint, and nobody can tell afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrsearch import checkpoint, training
from lrsearch.optimizers import OPTIMIZERS
from lrsearch.trial import CheckpointPlan, Choice, TrialSpec
from tests.clock import Clock
from tests.resuming import UUID, Channel, assert_goes_on_bit_for_bit, kept, run, spec

DIGITS = Choice("digits", {"batch_size": 256, "model": "mlp"})

USER = """
import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Noisy(Dataset):
    '''Draws from every global generator and from two of its own.'''

    def __init__(self, rows, seed):
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(rows, 4, generator=generator)
        self.targets = (self.inputs.sum(1) > 0).long()
        self.numpy, self.python = np.random.default_rng(seed), random.Random(seed)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        chance = [torch.rand(1).item(), np.random.rand(), random.random(), self.numpy.random(), self.python.random()]
        return self.inputs[index] + 0.1 * sum(chance), self.targets[index]

class Steady(Noisy):
    def __getitem__(self, index):
        return self.inputs[index], self.targets[index]

def own():
    return Noisy(96, 0), Steady(64, 1), Steady(32, 2)

def loader(**options):
    return DataLoader(Noisy(96, 0), batch_size=16, shuffle=True, **options), Steady(64, 1), Steady(32, 2)

def with_workers():
    return loader(num_workers=1)

class Model(nn.Module):
    '''Dropout, batch norm, and a buffer that is in no state_dict.'''

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, inputs):
        self.calls += self.training
        return self.layers(inputs) * (1 + 0.001 * self.calls)

def model():
    return Model()
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "drawing_user.py").write_text(USER)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(data: str) -> Choice:
        return Choice("callable", {"batch_size": 16, "model": "drawing_user:model", "data": f"drawing_user:{data}"})

    return make


@pytest.mark.parametrize("data", ["own", "loader"])
def test_data_sets_and_loaders_that_draw_everywhere_go_on_bit_for_bit(user: Any, data: str, tmp_path: Path) -> None:
    assert_goes_on_bit_for_bit(spec(user(data)), tmp_path)


@pytest.mark.slow
def test_a_loader_with_worker_processes_goes_on_bit_for_bit(user: Any, tmp_path: Path) -> None:
    """Its own generators live in the workers, which each epoch makes anew."""
    assert_goes_on_bit_for_bit(spec(user("with_workers"), epochs=1.5), tmp_path, cuts=(0.6,))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    extra = {"momentum": 0.9} if name == "sgd" else {}
    assert_goes_on_bit_for_bit(spec(DIGITS, optimizer=Choice(name, extra)), tmp_path, cuts=(0.6,))


def test_points_from_before_the_cut_lie_before_the_attempt_and_are_told_again(tmp_path: Path) -> None:
    trial = spec(DIGITS, epochs=4)
    whole = Channel()
    run(trial, whole)
    first = Channel(cut_at=round(0.7 * whole.signs))
    run(kept(trial, tmp_path, 1), first)
    assert 0 < len(first.points) < 4
    channel = Channel()
    resumed = run(kept(trial, tmp_path, 3, charged=(100.0, 7.0)), channel)
    assert [point.step for point in channel.points] == [point.step for point in resumed.curve]
    before, after = resumed.curve[: len(first.points)], resumed.curve[len(first.points) :]
    assert [point.charged_device_seconds for point in before] == [
        pytest.approx(point.charged_device_seconds - 107.0) for point in first.points
    ]
    assert all(0 < point.charged_device_seconds < 60 for point in after)


def test_a_damaged_checkpoint_leaves_the_one_before_and_the_same_end(tmp_path: Path) -> None:
    trial = spec(DIGITS)
    unbroken = run(trial)
    run(kept(trial, tmp_path, 1), Channel(cut_at=6))
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-40])
    resumed = run(kept(trial, tmp_path, 2))
    assert resumed.test_loss == unbroken.test_loss


def test_a_checkpoint_of_another_model_is_of_no_use_and_the_run_begins_anew(tmp_path: Path) -> None:
    run(kept(spec(Choice("digits", {"batch_size": 256, "model": "small_cnn"})), tmp_path, 1), Channel(cut_at=6))
    assert checkpoint.newest(tmp_path, UUID) is not None
    resumed, unbroken = run(kept(spec(DIGITS), tmp_path, 2)), run(spec(DIGITS))
    assert (resumed.status, resumed.test_loss, len(resumed.curve)) == ("completed", unbroken.test_loss, 2)


MORE = """
import numpy as np
import torch

class Model(torch.nn.Linear):
    def get_extra_state(self):
        return np.ones(2)

    def set_extra_state(self, state):
        pass

def model():
    return Model(4, 2)

def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(96, 4, generator=generator)[:ROWS]
    targets = (inputs.sum(1) > 0).long()
    return (inputs, targets), (inputs, targets), (inputs, targets)
"""


@pytest.mark.parametrize("change", ["shorter data", "arrays in it"])
def test_a_checkpoint_of_longer_data_or_with_other_things_in_it_is_of_no_use_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = MORE if change == "arrays in it" else MORE.replace("np.ones(2)", "torch.ones(2)")

    def trial(rows: int) -> TrialSpec:
        name = f"more_{change.partition(' ')[0]}_{rows}"
        (tmp_path / f"{name}.py").write_text(source.replace("ROWS", str(rows)))
        return spec(Choice("callable", {"batch_size": 16, "model": f"{name}:model", "data": f"{name}:data"}))

    after = 32 if change == "shorter data" else 96
    run(kept(trial(96), tmp_path, 1), Channel(cut_at=5))
    assert checkpoint.newest(tmp_path, UUID) is not None
    resumed, unbroken = run(kept(trial(after), tmp_path, 2)), run(trial(after))
    assert (resumed.status, resumed.test_loss, len(resumed.curve)) == ("completed", unbroken.test_loss, 2), (
        resumed.error
    )


def test_a_checkpoint_of_a_version_with_other_points_is_of_no_use_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any, **settings: Any) -> Any:
        state = really(*arguments, **settings)
        assert state["curve"]
        return {**state, "curve": [{**point, "of_later": 1.0} for point in state["curve"]]}

    trial, really = spec(DIGITS), torch.load
    whole = Channel()
    unbroken = run(trial, whole)
    run(kept(trial, tmp_path, 1), Channel(cut_at=round(0.7 * whole.signs)))
    monkeypatch.setattr("torch.load", load)
    resumed = run(kept(trial, tmp_path, 2))
    assert (resumed.status, resumed.test_loss, len(resumed.curve)) == ("completed", unbroken.test_loss, 2)


def test_a_run_shorter_than_the_interval_writes_nothing(tmp_path: Path) -> None:
    result = run(replace(spec(DIGITS), checkpoint=CheckpointPlan(str(tmp_path / "none"), 60.0)))
    assert result.status == "completed"
    assert not (tmp_path / "none").exists()


def test_writing_checkpoints_is_charged_as_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, training).charge(checkpoint, "write", 1.0)
    with_checkpoints, without = run(kept(spec(DIGITS), tmp_path, 1)), run(spec(DIGITS))
    assert with_checkpoints.phase_seconds["idle"] == pytest.approx(with_checkpoints.train_steps), "one after each step"
    assert without.phase_seconds.get("idle", 0.0) == 0.0
