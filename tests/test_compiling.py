"""training.compile: the same training up to rounding, compiled once for all trials of a process."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lrsearch import training
from lrsearch.config import load_study
from lrsearch.engine import prepare_all, run_trials
from lrsearch.errors import UsageError
from lrsearch.trial import Choice, TrainingPlan
from tests.clock import Clock
from tests.executors.contract import Listener
from tests.test_training import spec

CNN = Choice("digits", {"model": "small_cnn"})
PLAN = TrainingPlan(1, Choice("sgd", {"momentum": 0.9}), device="cpu", compile="on")
FILE = """
version: 1
name: small
workload: {name: digits}
training: {epochs: 1, optimizer: {name: sgd}COMPILE}
seeds: [0]
rates: {low: 1e-3, high: 1.0}
strategies: {grid: {name: grid, points: 2, schedule: {name: constant}}}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_trials_learn_as_others_do_and_share_what_was_compiled() -> None:
    from torch._dynamo.utils import counters

    prepare_all([(CNN, PLAN)], 0)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for rate in (0.01, 0.05):
        trial = spec(rate, workload=CNN, training=PLAN)
        [ours] = run_trials([trial], Listener())
        [plain] = run_trials([replace(trial, training=replace(PLAN, compile="off"))], Listener())
        assert ours.status == plain.status == "completed"
        assert ours.validation_loss == pytest.approx(plain.validation_loss, rel=0.02)
        assert ours.validation_metric == pytest.approx(plain.validation_metric, abs=0.02)
    assert counters["stats"]["unique_graphs"] == graphs, "nothing is compiled on a trial's bill"


def test_without_a_compiler_the_study_is_refused_before_its_first_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UsageError, match=r"training\.compile is on.*C\+\+ compiler.*say off"):
        prepare_all([(CNN, PLAN)], 0)


@pytest.mark.parametrize(("slow", "chosen"), [(False, "on"), (True, "off")])
def test_left_open_it_is_compiled_where_that_takes_less_time_and_known_the_next_time(
    slow: bool, chosen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The steps are real, but not compiled here: that takes half a minute."""

    def seconds(run: training.Run, *_: float) -> float:
        return 0.01 if (run.training.compile == "on") == slow else 0.001

    Clock(monkeypatch, training).charge(training.Run, "step", seconds)
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path))
    monkeypatch.setattr(training, "compiled", lambda: lambda model, inputs: model(inputs))
    monkeypatch.setattr(training, "check_compiling", lambda plan, device: None)
    plan = replace(PLAN, compile="off")
    assert training.fastest_compiling(CNN, plan, 0, 1_000, ["on"]) == "off", "no time for it"
    assert training.fastest_compiling(CNN, plan, 0, 10**9, ["on"]) == chosen
    monkeypatch.setattr(training, "new_run", None)
    assert training.fastest_compiling(CNN, plan, 0, 10**9, ["on"]) == chosen


def test_left_open_a_model_that_cannot_be_compiled_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert training.fastest_compiling(CNN, replace(PLAN, compile="off"), 0, 10**9, ["on"]) == "off"


def test_a_study_that_compiles_is_another_study_and_one_that_does_not_is_the_one_it_was(tmp_path: Path) -> None:
    studies = {}
    for compiles in ("", ", compile: off", ", compile: on", ", compile: auto"):
        path = tmp_path / "study.yaml"
        path.write_text(FILE.replace("COMPILE", compiles))
        studies[compiles] = load_study(path)
    default, off, on, auto = studies.values()
    assert "compile" not in default.resolved()["training"], "as in studies from before there was such a key"
    assert default.fingerprint() == off.fingerprint() != on.fingerprint()
    assert [study.training_plan().compile for study in (default, off, on)] == ["off", "off", "on"]
    assert auto.settled(compile="off").fingerprint() == off.fingerprint()
    assert auto.as_begun(on).fingerprint() == on.fingerprint(), "a study that goes on keeps to what was chosen"
