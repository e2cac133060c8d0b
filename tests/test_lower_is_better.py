"""A metric that should be low, through the whole product: a regression of the user, from its file to the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from lrsearch.analysis.searches import searches
from lrsearch.analysis.summary import summarise
from lrsearch.config import load_study
from lrsearch.engine import run_trials
from lrsearch.range_test import judge
from lrsearch.report import write_report
from lrsearch.storage.store import open_store
from lrsearch.study import run_study
from lrsearch.trial import (
    Choice,
    Proposal,
    RangeTestPlan,
    StudyRecord,
    TrainingPlan,
    TrialResult,
    TrialSpec,
)
from tests.executors.contract import Listener
from tests.test_study import Quiet

TASK = """
import torch
from sklearn.datasets import make_friedman1

def data():
    inputs, targets = make_friedman1(500, random_state=0)
    targets = ((targets - targets.mean()) / targets.std())[:, None]
    return (inputs[:400], targets[:400]), (inputs[400:], targets[400:])

def model():
    return torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
"""
STUDY = """
version: 1
name: regression
workload:
  name: callable
  model: friedman_task:model
  data: friedman_task:data
  loss: torch.nn.functional:mse_loss
  metric: torchmetrics.functional.regression:mean_squared_error
  metric_settings: {squared: false}
  metric_name: rmse
  higher_is_better: false
  chance: 1
  batch_size: 16
  python_path: .
training: {epochs: 8, device: cpu, optimizer: {name: sgd, momentum: 0.9}}
seeds: [0, 1]
rates: {low: 1e-5, high: 10.0}
target: {metric: rmse, value: 0.5}
strategies:
  grid: {name: grid, points: 5}
  tpe: {name: optuna_search, sampler: tpe, trials: 3, startup_trials: 2}
  clr: {name: range_tested, schedule: {name: triangular2, cycles: 2}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regression")
    (folder / "friedman_task.py").write_text(TASK)
    (folder / "study.yaml").write_text(STUDY)
    return folder


@pytest.fixture(scope="module")
def record(folder: Path) -> StudyRecord:
    url = f"sqlite:///{folder / 'study.db'}"
    return run_study(load_study(folder / "study.yaml"), open_store(url), observer=Quiet(), mirror_url=url)


def test_a_search_keeps_its_lowest_validation_value(record: StudyRecord) -> None:
    for key in record.strategies:
        for search in searches(record, key):
            values = [
                trial.result.validation_metric
                for trial in search.trials
                if trial.result and trial.result.validation_metric is not None
            ]
            assert search.incumbent is not None
            assert search.incumbent.trial.result is not None
            assert search.incumbent.trial.result.validation_metric == min(values)


def test_the_anytime_curve_follows_falling_validation_values(record: StudyRecord) -> None:
    [search] = [search for search in searches(record, "grid") if search.seed == 0]
    best, followed = float("inf"), []
    for trial in search.trials:
        assert trial.result is not None
        if trial.result.validation_metric is not None and trial.result.validation_metric < best:
            best = trial.result.validation_metric
            followed.append(trial.result.test_metric)
    assert [value for value in search.curve.values if value is not None][-1] == followed[-1]
    assert set(search.curve.values) <= set(followed)


def test_the_target_is_reached_from_above(record: StudyRecord) -> None:
    summary = summarise(record)
    assert (summary.metric, summary.higher_is_better, summary.target) == ("rmse", False, 0.5)
    for search in searches(record, "grid"):
        lowest = min(value for _, value in search.evaluations() if value is not None)
        assert search.outcome(0.5).reached == (lowest <= 0.5)
        assert search.outcome(lowest).reached
        assert not search.outcome(lowest - 1e-6).reached


def test_the_range_test_is_judged_on_the_loss(record: StudyRecord) -> None:
    tests = [trial for trial in record.trials if trial.proposal.range_test]
    assert len(tests) == 2
    for trial in tests:
        assert trial.verdict is not None
        assert (trial.verdict["status"], trial.verdict["signal"]) == ("ok", "validation_loss")
        assert 0.003 < trial.verdict["max_lr"] < 1.0


def test_the_dashboards_studies_minimise(folder: Path, record: StudyRecord) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    studies = optuna.get_all_study_summaries(storage)
    assert {study.direction for study in studies} == {optuna.study.StudyDirection.MINIMIZE}
    storage.remove_session()
    storage.engine.dispose()


def test_the_verdict_calls_a_higher_error_the_worse_one(record: StudyRecord, tmp_path: Path) -> None:
    """With every value of CLR tripled it must be worse, with a third of it better, whatever the runs gave."""
    page = write_report(record, tmp_path / "report.html").read_text()
    assert "rmse" in page
    assert "a worse test rmse" in summarise(_scaled(record, 3.0)).verdict.headline
    assert "a better test rmse" in summarise(_scaled(record, 1 / 3)).verdict.headline


def _scaled(record: StudyRecord, factor: float) -> StudyRecord:
    trials = []
    for trial in record.trials:
        result = trial.result
        if trial.strategy == "clr" and result is not None and result.test_metric is not None:
            trial = replace(trial, result=replace(result, test_metric=factor * result.test_metric))
        trials.append(trial)
    return replace(record, trials=tuple(trials))


def run(workload: Choice, proposal: Proposal, optimizer: Choice) -> TrialResult:
    spec = TrialSpec("u", "s", "w", 0, 0, proposal, workload, TrainingPlan(1, optimizer, device="cpu"))
    [result] = run_trials([spec], Listener())
    assert result.error is None
    return result


@pytest.mark.parametrize(
    ("workload", "optimizer", "rate", "band"),
    [
        (Choice("text", {"sequence_length": 24, "batch_size": 16}), Choice("adam"), 0.01, (0.005, 0.5)),
        (Choice("diabetes"), Choice("sgd", {"momentum": 0.9}), 0.01, (0.005, 0.5)),
    ],
)
def test_perplexity_and_r2_are_learned_and_range_tested(
    workload: Choice, optimizer: Choice, rate: float, band: tuple[float, float]
) -> None:
    trained = run(workload, Proposal("train", Choice("constant"), rate), optimizer)
    assert trained.facts is not None
    assert trained.facts.chance is not None
    assert trained.test_metric is not None
    sign = 1 if trained.facts.higher_is_better else -1
    assert sign * trained.test_metric > sign * trained.facts.chance
    plan = RangeTestPlan(1e-5, 10.0, epochs=1.0)
    tested = run(workload, Proposal("range_test", range_test=plan), optimizer)
    verdict = judge(tested.range_test, trained.facts, plan, optimizer.name, bootstrap=0)
    assert (verdict.status, verdict.signal) == ("ok", "validation_loss")
    assert verdict.max_lr is not None
    assert band[0] < verdict.max_lr < band[1]
