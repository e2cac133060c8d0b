"""Every workload can start from a state_dict; what does not fit is named."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lrsearch.config import load_study
from lrsearch.errors import DataError, LrsearchError, WorkloadError
from lrsearch.workloads import WORKLOADS
from lrsearch.workloads.callable import CallableWorkload
from lrsearch.workloads.digits import Digits
from tests.workloads.contract import load
from tests.workloads.fashion import write_part

NET = """
import torch

def data():
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return (inputs[:40], (inputs[:40, 0] > 0).long()), (inputs[40:], (inputs[40:, 0] > 0).long())

def model():
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
"""


@pytest.fixture(params=["digits", "diabetes", "text", "multi_label_images", "callable"])
def workload(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "multi_label_images":
        write_part(tmp_path, "train", 40, seed=0)
        return WORKLOADS[request.param](data_root=tmp_path, test_fraction=0.2, batch_size=8)
    if request.param == "callable":
        (tmp_path / "net_of_mine.py").write_text(NET)
        return CallableWorkload(model="net_of_mine:model", data="net_of_mine:data", batch_size=8, python_path=tmp_path)
    return WORKLOADS[request.param]()


def save(path: Path, model: torch.nn.Module, **changes: torch.Tensor | None) -> Path:
    state = {**model.state_dict(), **changes}
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    return path


def fresh(workload: Any, seed: int, **changes: Any) -> torch.nn.Module:
    loaded = load(workload, **changes)
    torch.manual_seed(seed)
    return loaded.build_model()


def error_of(**changes: Any) -> str:
    with pytest.raises(LrsearchError) as caught:
        fresh(Digits(), 0, **changes)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError | WorkloadError), "exit code 3"
    return str(caught.value)


def test_every_trial_starts_from_the_weights_of_the_file_and_its_facts_name_them(workload: Any, tmp_path: Path) -> None:
    saved = fresh(workload, 1)
    for value in saved.state_dict().values():
        if value.is_floating_point():
            value.mul_(2).add_(0.25)
    path = save(tmp_path / "weights.pt", saved)
    for seed in (2, 3):
        model = fresh(workload, seed, start_from=path)
        assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.state_dict().items())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load(workload, start_from=path).facts.description.endswith(f", starting from weights.pt (sha256 {digest})")


def test_new_layers_are_drawn_by_the_seed_whatever_the_file_holds_of_them(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", fresh(Digits(), 1), **{"5.weight": torch.zeros(3, 64), "5.bias": None, "6.x": None})
    settings: dict[str, Any] = {"start_from": path, "new_layers": ("5.*",)}
    first, again, other = (fresh(Digits(), seed, **settings).state_dict() for seed in (2, 2, 3))
    drawn = fresh(Digits(), 2).state_dict()
    assert torch.equal(first["1.weight"], other["1.weight"])
    assert torch.equal(first["5.weight"], again["5.weight"])
    assert torch.equal(first["5.weight"], drawn["5.weight"])
    assert not torch.equal(first["5.weight"], other["5.weight"])
    assert "new: 5.*" in load(Digits(), **settings).facts.description


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    for value in (1.0, 2.0):
        save(path, fresh(Digits(), 1), **{"5.bias": torch.full((10,), value), "pad": torch.zeros(int(value))})
        model = fresh(Digits(), 0, start_from=path, new_layers=("pad",))
        assert model.state_dict()["5.bias"].unique().tolist() == [value]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = save(
        tmp_path / "w.pt",
        fresh(Digits(), 1),
        **{"1.weight": None, "head.bias": torch.zeros(2), "5.weight": torch.zeros(3, 64)},
    )
    message = error_of(start_from=path)
    assert "it lacks 1.weight; it has, but the model has not, head.bias; other shapes: 5.weight" in message
    assert "((3, 64) in the file, (10, 64) in the model)" in message
    assert 'workload.new_layers: ["fc.*"]' in message
    assert "lacks 1.weight, 1.bias, 3.weight and 3 more" in error_of(
        start_from=save(tmp_path / "e.pt", torch.nn.ReLU())
    )


def test_patterns_that_match_nothing_or_everything_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", fresh(Digits(), 1))
    message = error_of(start_from=path, new_layers=("fc.*",))
    assert "'fc.*' matches nothing in the model or its file; there are 1.weight, 1.bias, 3.weight and" in message
    assert "leaves nothing to take" in error_of(start_from=path, new_layers=("*",))
    with pytest.raises(ValidationError, match="give start_from too"):
        Digits(new_layers=("fc.*",))


def test_missing_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    assert "none.pt cannot be read (No such file" in error_of(start_from=tmp_path / "none.pt")
    assert "cannot be read (Is a directory" in error_of(start_from=tmp_path)
    path = save(tmp_path / "w.pt", fresh(Digits(), 1))
    (tmp_path / "cut.pt").write_bytes(path.read_bytes()[:-300])
    assert "cut.pt is damaged, or holds more than tensors" in error_of(start_from=tmp_path / "cut.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    assert "empty.pt is damaged" in error_of(start_from=tmp_path / "empty.pt")
    torch.save({"epoch": 3, "state_dict": fresh(Digits(), 1).state_dict()}, tmp_path / "checkpoint.pt")
    message = error_of(start_from=tmp_path / "checkpoint.pt")
    assert "must hold a state_dict (names and tensors), got a dict with the keys epoch, state_dict" in message


def test_a_pickled_model_is_refused_and_its_code_does_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "trap.pt").write_bytes(pickle.dumps(Trap()))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    for name in ("trap.pt", "model.pt"):
        assert f"{name} is damaged, or holds more than tensors" in error_of(start_from=tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_relative_path_starts_at_the_study_file(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        """
version: 1
name: tuned
workload: {name: digits, start_from: weights/w.pt, new_layers: ["5.*"]}
training: {epochs: 1, optimizer: {name: sgd}}
seeds: [0]
rates: {low: 1e-5, high: 1.0}
strategies: {default: {name: default_rate}}
"""
    )
    config = load_study(study)
    assert config.workload_choice().settings["start_from"] == str(tmp_path / "weights" / "w.pt")
    assert config.resolved()["workload"]["start_from"] == "weights/w.pt"
