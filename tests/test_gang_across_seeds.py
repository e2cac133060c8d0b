"""Trials of several seeds that are trained together: each gives what it gives alone, with its own weights and data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrsearch import gang_choice
from lrsearch.engine import run_trials
from lrsearch.errors import StorageError
from lrsearch.gang import run_gang
from lrsearch.gang_choice import choose
from lrsearch.interfaces import Batch, LoadedWorkload, Split
from lrsearch.stacked_run import CannotGangError, StackedRun
from lrsearch.training import Run, load, new_run
from lrsearch.trial import CheckpointPlan, Choice, TrainingPlan, TrialSpec
from tests.test_gang import DIGITS, SGD, Cut, Listener, alone, assert_equal, spec

CPU = torch.device("cpu")
SEEDS = (3, 3, 8, 1)
"""Of the members: two of them see the same data."""
RATES = (0.01, 0.03, 0.02, 0.01)


class Averaging(nn.Module):
    """Ties weights and replaces a buffer, when it is evaluated too: torch's vmap takes it as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.again = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.again.weight = self.inner.weight
        self.last = nn.Linear(32, 10)
        self.mean: torch.Tensor
        self.register_buffer("mean", torch.zeros(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x.flatten(1))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        else:
            self.mean = self.mean + 0.001
        return self.last(torch.tanh(self.again(torch.relu(self.inner(hidden - self.mean)))))  # type: ignore[no-any-return]


def convolutions() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 10))


class Reading(nn.Module):
    """Reads images row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.last = nn.GRU(8, 12, batch_first=True), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.rows(x.flatten(1, 2))[1][-1])  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": convolutions,
    "perceptron": perceptron,
    "averaging": Averaging,
    "reading": Reading,
}


class WithModel:
    """Digits in another precision, with another model."""

    def __init__(self, seed: int, build: Callable[[], nn.Module], precision: torch.dtype) -> None:
        self._digits = load(DIGITS, CPU, seed)
        self._build, self._precision = build, precision
        self.facts = self._digits.facts

    def build_model(self) -> nn.Module:
        return self._build().to(self._precision)

    def train_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        return self._cast(self._digits.train_batches(generator))

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        return self._cast(self._digits.evaluation_batches(split))

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets)

    def metric(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return self._digits.metric(outputs, targets)

    def _cast(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for inputs, targets in batches:
            yield inputs.to(self._precision), targets


def begun(name: str, seed: int, precision: torch.dtype, optimizer: Choice = SGD) -> Run:
    plan = TrainingPlan(epochs=1, optimizer=optimizer, device="cpu", gradient_clip_norm=1.0)
    loaded: LoadedWorkload = WithModel(seed, MODELS[name], precision)
    return new_run(loaded, plan, CPU, seed)


def stacked(name: str, precision: torch.dtype, optimizer: Choice = SGD) -> StackedRun:
    runs = {seed: begun(name, seed, precision, optimizer) for seed in sorted(set(SEEDS), key=SEEDS.index)}
    return StackedRun([runs[seed] for seed in SEEDS], [optimizer.settings] * len(SEEDS))


def trained(name: str, precision: torch.dtype, steps: int, optimizer: Choice = SGD) -> tuple[StackedRun, list[Run]]:
    """Return members after so many steps together, and each after as many alone."""
    single = [begun(name, seed, precision, optimizer) for seed in SEEDS]
    for run, rate in zip(single, RATES, strict=True):
        for _ in range(steps):
            run.step(rate)
    together = stacked(name, precision, optimizer)
    for _ in range(steps):
        together.step(torch.tensor(RATES, dtype=precision))
    return together, single


def farthest(together: StackedRun, single: Sequence[Run]) -> float:
    """Return the largest difference of any number in any member's state."""
    gaps = [0.0]
    for row, run in enumerate(single):
        for key, own in run.model.state_dict().items():
            gaps.append(float((together.stacked.state_dict(row)[key] - own).abs().max()))
    return max(gaps)


ADAMW = Choice("adamw", {"weight_decay": 0.1, "eps": 1e-6})
"""With 1e-8, rounding where there is no gradient (pixels that are always white, before batch norm) becomes steps."""


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=lambda one: one.name)
@pytest.mark.parametrize("name", MODELS)
def test_members_of_several_seeds_train_evaluate_and_shrink_as_each_does_alone(name: str, optimizer: Choice) -> None:
    together, single = trained(name, torch.float64, 50, optimizer)
    assert farthest(together, single) <= 1e-9
    for split in ("validation", "range_test", "test"):
        for found, run in zip(together.evaluate(split), single, strict=True):
            expected = run.evaluate(split)
            assert found[0] == pytest.approx(expected[0], abs=1e-9)
            assert found[1] == expected[1]
    for losses, run in zip(together.take_losses(), single, strict=True):
        assert losses == pytest.approx(run.take_losses(), abs=1e-9)
    together.keep([1, 3])
    for run, rate in ((single[1], RATES[1]), (single[3], RATES[3])):
        run.step(rate)
    together.step(torch.tensor([RATES[1], RATES[3]], dtype=torch.float64))
    assert farthest(together, [single[1], single[3]]) <= 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_one_step_in_single_precision_differs_by_rounding(name: str) -> None:
    assert farthest(*trained(name, torch.float32, 1)) <= 5e-7


@pytest.mark.parametrize("name", MODELS)
def test_a_member_at_nan_changes_no_bit_of_those_of_other_seeds(name: str) -> None:
    calm, wild = (stacked(name, torch.float32) for _ in range(2))
    rates = torch.tensor(RATES)
    mad = rates.clone()
    mad[2] = torch.nan
    for _ in range(5):
        calm.step(rates)
        wild.step(mad)
    for row in (0, 1, 3):
        for key, own in calm.stacked.state_dict(row).items():
            assert torch.equal(own, wild.stacked.state_dict(row)[key]), key
    assert (
        not wild.stacked.state_dict(2)["last.weight" if name in ("averaging", "reading") else "1.weight"]
        .isfinite()
        .any()
    )


def of_seeds(*seeds: int, workload: Choice = DIGITS, **training: Any) -> list[TrialSpec]:
    return [
        replace(spec(number, 0.01 * (number + 1), **training), seed=seed, workload=workload)
        for number, seed in enumerate(seeds)
    ]


CNN = Choice("digits", {"batch_size": 64, "model": "small_cnn"})


@pytest.mark.parametrize("workload", [DIGITS, CNN], ids=["mlp", "small_cnn"])
def test_trials_of_several_seeds_give_what_each_gives_alone(workload: Choice) -> None:
    specs, listener = of_seeds(0, 5, 0, workload=workload), Listener()
    together = run_gang(specs, listener)
    assert_equal(together, alone(specs))
    assert [one.gang_size for one in together] == [3, 3, 3]
    assert [tuple(listener.points[one.uuid]) for one in together] == [one.curve for one in together]


LIVELY = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(5, 2)
        {attribute}

    def forward(self, inputs):
        return self.layer({inputs})

def model():
    return Net()

def rows(count):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 5, generator=generator)
    return inputs, (inputs[:, 0] > 0).long()

class Noisy(torch.utils.data.TensorDataset):
    def __getitem__(self, index):
        inputs, targets = super().__getitem__(index)
        return inputs + 0.01 * torch.randn(5), targets

def data():
    train, test = rows(300), rows(100)
    return {train}, test
"""
PLAIN = {"attribute": "pass", "inputs": "inputs", "train": "train"}
REFUSED = {
    "dropout": ({"inputs": "torch.dropout(inputs, 0.5, self.training)"}, "the model draws chance"),
    "dropout in evaluation": ({"inputs": "torch.dropout(inputs, 0.5, not self.training)"}, "the model draws chance"),
    "a constant that is drawn": (
        {"attribute": "self.mask = torch.rand(5)", "inputs": "inputs * self.mask"},
        "another way",
    ),
    "layers that are drawn": (
        {
            "attribute": "self.more = torch.nn.Linear(5, int(torch.randint(1, 1000, (1,))))",
            "inputs": "inputs + self.more(inputs).mean(1, keepdim=True)",
        },
        "another way",
    ),
    "a generator of the model's own": ({"attribute": "self.dice = torch.Generator()"}, "chance of their own"),
    "a data set": ({"train": "Noisy(*train)"}, "chance of their own"),
}


def lively(folder: Path, name: str, **parts: str) -> Choice:
    module = f"lively_{name.replace(' ', '_').replace(chr(39), '')}"
    (folder / f"{module}.py").write_text(LIVELY.format(**PLAIN | parts))
    code = {"model": f"{module}:model", "data": f"{module}:data", "python_path": str(folder)}
    return Choice("callable", {"batch_size": 16, **code})


@pytest.mark.parametrize("case", REFUSED)
def test_what_each_seed_would_draw_for_itself_is_refused_and_seeds_train_apart(case: str, tmp_path: Path) -> None:
    parts, reason = REFUSED[case]
    specs, listener = of_seeds(0, 1, 0, workload=lively(tmp_path, case, **parts)), Listener()
    with pytest.raises(CannotGangError, match=reason):
        run_gang(specs, listener)
    assert not listener.points
    results = run_trials(specs, listener)
    assert [one.gang_size for one in results] == [2, 1, 2]
    assert_equal(results, alone(specs))


def test_seeds_train_together_on_a_data_set_that_is_the_same_each_time(tmp_path: Path) -> None:
    same = "torch.utils.data.ConcatDataset([torch.utils.data.TensorDataset(*train)])"
    specs = of_seeds(0, 1, 0, workload=lively(tmp_path, "the same", train=same))
    results = run_trials(specs, Listener())
    assert [one.gang_size for one in results] == [3, 3, 3]
    assert_equal(results, alone(specs))


def test_the_choice_says_why_seeds_train_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gang_choice, "MUST_SAVE", 1e9)
    drops = lively(tmp_path, "chosen", **REFUSED["dropout"][0])
    plan = TrainingPlan(20, SGD, device="cpu")
    chosen = choose(drops, plan, 0, most=2, most_across=4, crowds=2, search_steps=10**5)
    assert (chosen.size, chosen.across) == (2, 1)
    assert "the model draws chance" in chosen.reason_across


def test_a_user_s_tensors_and_model_train_together_across_seeds(tmp_path: Path) -> None:
    specs = of_seeds(0, 1, 0, workload=lively(tmp_path, "plain"))
    together = run_gang(specs, Listener())
    assert_equal(together, alone(specs))
    assert [one.gang_size for one in together] == [3, 3, 3]


def test_members_of_several_seeds_go_on_alone_each_from_its_own_place_in_its_own_data(tmp_path: Path) -> None:
    specs = [replace(one, checkpoint=CheckpointPlan(str(tmp_path), 0.0)) for one in of_seeds(0, 1, 2, epochs=3)]
    with pytest.raises(StorageError, match="cut short"):
        run_gang(specs, Cut())
    again = [replace(one, checkpoint=CheckpointPlan(str(tmp_path), 1e9, 2, (100.0,))) for one in specs]
    resumed = run_trials(again, Listener())
    assert [one.gang_size for one in resumed] == [1, 1, 1]
    assert_equal(resumed, alone([replace(one, checkpoint=None) for one in specs]))
    for one in resumed:
        assert one.curve[0].charged_device_seconds < 0, "an earlier attempt reached it"
