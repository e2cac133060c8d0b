"""The momentum that a schedule asks for is the one that the optimizer steps with."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrsearch.config import load_study
from lrsearch.errors import UsageError
from lrsearch.schedules import plan_schedule
from lrsearch.storage.store import open_store
from lrsearch.study import run_study
from lrsearch.trial import Choice, Proposal, TrainingPlan, TrialSpec
from tests.executors.contract import Listener
from tests.test_study import Quiet

SCHEDULE = Choice("triangular", {"cycles": 2, "base_momentum": 0.5, "max_momentum": 0.9})
FILE = """
version: 1
name: momentum
workload: {{name: digits, batch_size: 64}}
training: {{epochs: 2, device: cpu, optimizer: {{name: {optimizer}}}}}
seeds: [0]
rates: {{low: 1e-5, high: 1.0}}
strategies:
  way: {{name: default_rate, schedule: {{name: one_cycle, base_momentum: 0.85, max_momentum: 0.95}}}}
"""


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_step_has_the_momentum_of_the_schedule(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrsearch.engine import run_trials
    from lrsearch.training import OPTIMIZERS

    seen: list[float] = []
    kind = OPTIMIZERS[optimizer]

    class Watched(kind):  # type: ignore[misc, valid-type]  # the class is chosen at run time
        def step(self, closure: None = None) -> None:
            group = self.param_groups[0]
            seen.append(group["momentum"] if "momentum" in group else group["betas"][0])
            super().step(closure)

    monkeypatch.setitem(OPTIMIZERS, optimizer, Watched)
    settings = {"momentum": 0.9} if optimizer == "sgd" else {"betas": (0.9, 0.999)}
    training = TrainingPlan(epochs=2, optimizer=Choice(optimizer, settings), device="cpu")
    proposal = Proposal("train", SCHEDULE, base_lr=1e-4, max_lr=1e-2)
    spec = TrialSpec("u", "s", "w", 0, 0, proposal, Choice("digits", {"batch_size": 64}), training)
    [result] = run_trials([spec], Listener())
    assert result.status == "completed", result.error
    planned = plan_schedule(
        SCHEDULE, learning_rate=None, base_lr=1e-4, max_lr=1e-2, total_steps=result.train_steps, steps_per_epoch=18
    )
    assert planned.momentum is not None
    assert seen == pytest.approx([planned.momentum(step) for step in range(result.train_steps)])
    assert min(seen) == pytest.approx(0.5)


def test_an_optimizer_without_momentum_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(FILE.format(optimizer="adagrad"))
    with open_store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        with pytest.raises(UsageError, match=r"strategies\.way\.schedule: adagrad has no momentum to schedule; remove"):
            run_study(load_study(path), store, observer=Quiet())
        assert not store.studies()


def test_a_schedule_that_does_not_fit_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(FILE.format(optimizer="sgd").replace("name: one_cycle, base", "name: triangular, cycles: 30, base"))
    with open_store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        with pytest.raises(UsageError, match=r"strategies\.way: The schedule 'triangular' does not fit: 30 cycles in"):
            run_study(load_study(path), store, observer=Quiet())
        assert not store.studies()


def test_what_is_searched_must_fit_at_its_ends_when_a_study_begins(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    plan = FILE.partition("strategies:")[0].format(optimizer="sgd")
    way = "{name: random_search, trials: 1, schedule: {name: triangular}, search: {cycles: {low: 1, high: %d}}}"
    path.write_text(f"{plan}strategies: {{way: {way % 30}}}\n")
    with open_store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        with pytest.raises(UsageError, match=r"strategies\.way: The schedule 'triangular' does not fit: 30 cycles in"):
            run_study(load_study(path), store, observer=Quiet())
        assert not store.studies()
        path.write_text(f"{plan}strategies: {{way: {way % 4}}}\n")
        [trial] = run_study(load_study(path), store, observer=Quiet()).trials
    assert trial.status == "completed"


def test_a_schedule_must_fit_with_the_batch_sizes_that_are_searched_whatever_that_of_the_study(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    plan = FILE.partition("strategies:")[0].format(optimizer="sgd")
    way = "{name: random_search, trials: 1, schedule: {name: triangular, cycles: 3}, search: {batch_size: %s}}"
    path.write_text(f"{plan}strategies: {{way: {way % '{low: 32, high: 512}'}}}\n")
    with open_store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        refused = (
            r"strategies\.way \(with batches of 512\): The schedule 'triangular' does not fit: 3 cycles in 4 steps"
        )
        with pytest.raises(UsageError, match=refused):
            run_study(load_study(path), store, observer=Quiet())
        assert not store.studies()
        of_few_steps = plan.replace("batch_size: 64", "batch_size: 512")
        path.write_text(f"{of_few_steps}strategies: {{way: {way % '{choices: [32, 64]}'}}}\n")
        [trial] = run_study(load_study(path), store, observer=Quiet()).trials
    assert trial.status == "completed"


@pytest.mark.parametrize(
    ("added", "refused"),
    [
        ("schedule: {name: triangular, cycles: 3}", r"with batches of 512\): The schedule 'triangular' does not fit"),
        (
            "optimizer: {name: adagrad}, schedule: {name: one_cycle, base_momentum: 0.8, max_momentum: 0.9}",
            r"adagrad has no momentum to schedule",
        ),
    ],
)
def test_what_an_added_way_searches_must_fit_when_a_study_is_extended(tmp_path: Path, added: str, refused: str) -> None:
    path, plan = tmp_path / "study.yaml", FILE.partition("strategies:")[0].format(optimizer="sgd")
    ways = "strategies:\n  way: {name: default_rate}\n"
    new = f"  new: {{name: random_search, trials: 1, {added}, search: {{batch_size: {{low: 32, high: 512}}}}}}\n"
    with open_store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        path.write_text(plan + ways)
        begun = run_study(load_study(path), store, observer=Quiet())
        path.write_text(plan + ways + new)
        with pytest.raises(UsageError, match=refused):
            run_study(load_study(path), store, observer=Quiet(), extend=True)
        assert store.record("momentum").trials == begun.trials
