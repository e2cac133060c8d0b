"""Studies whose trials train together: the same findings as one after another, kills and budgets included."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import get_num_threads

from lrsearch import gang_choice
from lrsearch.analysis import searches, summarise
from lrsearch.analysis.exported import read_trials
from lrsearch.analysis.held import held_time
from lrsearch.cache import remember
from lrsearch.config import load_study
from lrsearch.engine import GangRequest
from lrsearch.rehearsal import LARGEST_GANG, Rehearsal, Solo
from lrsearch.report import render
from lrsearch.storage.export import export_rows, write_rows
from lrsearch.storage.store import open_store
from lrsearch.strategies.default_rate import DefaultRate
from lrsearch.study import _gang_requests, run_study
from lrsearch.trial import CurvePoint, History, Proposal, SoloCost, StudyRecord, TrialRecord
from tests.records import some
from tests.test_gang import OWN_GRADIENT
from tests.test_study import Quiet

FILE = """
version: 1
name: {name}
workload: {workload}
training: {{epochs: 2, device: cpu, optimizer: {{name: sgd, momentum: 0.9}}}}
seeds: {seeds}
rates: {{low: 1e-3, high: 0.1}}
target: {{metric: accuracy, value: 0.5}}
strategies:
  grid: {{name: grid, points: 3}}
  random: {{name: random_search, trials: 2, schedule: {{name: triangular2, cycles: 1}}}}
  tpe: {{name: optuna_search, sampler: tpe, trials: 2, startup_trials: 1}}
  default: {{name: default_rate}}
  clr: {{name: range_tested, schedule: {{name: linear_to_zero}}}}
  clr2: {{name: range_tested, schedule: {{name: triangular2, cycles: 1}}}}
  once: {{name: range_tested, test: once_per_study, schedule: {{name: linear_to_zero}}}}
"""
FIRST = 7
"""Trials of a seed that can begin at once: those of the grid and the random search, and one each of tpe and default."""
DIGITS = "{name: digits, model: mlp, batch_size: 128}"


@pytest.fixture(autouse=True)
def gangs_always_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the larger the better, whatever else the machine does."""
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gang_choice, "MUST_SAVE", 1e9)
    timed = Rehearsal.seconds_per_member

    def even(rehearsal: Rehearsal, size: int, crowds: int, **limits: Any) -> float:
        return min(timed(rehearsal, size, crowds, **limits), 1e-9) / size

    monkeypatch.setattr(Rehearsal, "seconds_per_member", even)
    monkeypatch.setattr(Rehearsal, "evaluation_seconds", lambda rehearsal, crowds: 0.0)


def run(
    folder: Path,
    more: str,
    watcher: Quiet | None = None,
    *,
    workload: str = DIGITS,
    name: str = "together",
    seeds: str = "[0, 1]",
) -> StudyRecord:
    file = folder / "study.yaml"
    file.write_text(FILE.format(workload=workload, name=name, seeds=seeds) + more)
    with open_store(f"sqlite:///{folder}/study.db") as store:
        return run_study(
            load_study(file), store, observer=watcher or Quiet(), mirror_url=f"sqlite:///{folder}/study.db"
        )


def sizes(record: StudyRecord, key: str) -> set[int]:
    return {trial.gang_size for trial in record.trials if trial.strategy == key}


@pytest.fixture
def together(tmp_path: Path) -> StudyRecord:
    folder = tmp_path / "together"
    folder.mkdir()
    return run(folder, "gangs: auto\n")


def test_a_study_whose_trials_train_together_finds_what_one_after_another_finds(
    tmp_path: Path, together: StudyRecord
) -> None:
    alone = run(tmp_path, "gangs: off\n")
    assert {key: sizes(together, key) for key in together.strategies} == {
        "grid": {2 * FIRST},
        "random": {2 * FIRST},
        "tpe": {2 * FIRST, 2},
        "default": {2 * FIRST},
        "clr": {5},
        "clr2": {5},
        "once": {5, 1},
    }, "what can begin, tpe's second trials, the range tests, and what they lead to, of both seeds; the last one waits"
    assert all(sizes(alone, key) == {1} for key in alone.strategies)
    for found, expected in zip(together.trials, alone.trials, strict=True):
        assert (found.strategy, found.seed, found.number) == (expected.strategy, expected.seed, expected.number)
        if (found.strategy, found.number) == ("tpe", 1):  # goes by what the first gave, up to rounding
            continue
        assert found.proposal == expected.proposal, "also what follows from range tests"
        result, wanted = some(found.result), some(expected.result)
        assert len(result.range_test) == len(wanted.range_test)
        for own, other in zip(result.range_test, wanted.range_test, strict=True):
            assert own.learning_rate == other.learning_rate
            assert own.train_loss == pytest.approx(other.train_loss, rel=1e-3) if other.train_loss else True
        if found.stage == "train":
            assert result.validation_loss == pytest.approx(wanted.validation_loss, rel=1e-3)
        assert result.train_steps == wanted.train_steps
        assert len(result.curve) == len(wanted.curve)


def test_trials_of_one_seed_train_together_whichever_ways_they_are_of(tmp_path: Path) -> None:
    record = run(tmp_path, "gangs: auto\n", seeds="[0]")
    assert {key: sizes(record, key) for key in record.strategies} == {
        "grid": {FIRST},
        "random": {FIRST},
        "tpe": {FIRST, 1},
        "default": {FIRST},
        "clr": {3},
        "clr2": {3},
        "once": {3},
    }


@pytest.mark.slow
def test_the_trials_of_a_round_train_together_and_propose_what_they_would_alone(tmp_path: Path) -> None:
    rounds = "  rounds: {name: optuna_search, sampler: tpe, trials: 5, startup_trials: 2, round_size: 2}\n"
    alone, together = (tmp_path / "alone", tmp_path / "together")
    for folder in (alone, together):
        folder.mkdir()
    found = run(together, rounds + "gangs: auto\n", seeds="[0]")
    own = [trial.gang_size for trial in found.trials if trial.strategy == "rounds"]
    assert own == [FIRST + 2, FIRST + 2, 3, 3, 4], "with what comes first, with tpe's second trial, with clr's runs"
    expected = [trial for trial in run(alone, rounds, seeds="[0]").trials if trial.strategy == "rounds"]
    for trial, other in zip([t for t in found.trials if t.strategy == "rounds"], expected, strict=True):
        assert trial.proposal.learning_rate == pytest.approx(other.proposal.learning_rate, rel=0.01)


def test_a_gang_s_trials_are_charged_what_each_takes_alone_and_all_seconds_are_on_the_other_bill(
    together: StudyRecord,
) -> None:
    members = [trial for trial in together.trials if trial.gang_size > 1]
    [first, *others] = [trial for trial in members if trial.strategy == "grid" and trial.seed == 0]
    for trial in others:
        for phase in ("setup", "train", "evaluate"):
            assert trial.phase_seconds[phase] == pytest.approx(first.phase_seconds[phase])
    [charged_by] = [event.data for event in together.events if event.kind == "charged_by"]
    [cost] = charged_by["costs"].values()
    for trial in together.trials:
        if trial.stage == "train":
            steps = some(trial.result).train_steps
            assert trial.phase_seconds["train"] == pytest.approx(steps * cost["step_seconds"]), "also of those alone"
    solo = [trial for trial in together.trials if trial.gang_size == 1]
    assert solo
    assert all(trial.attempts[-1].billed_phase_seconds for trial in solo)
    [run] = [event.data for event in together.events if event.kind == "run"]
    billed = sum(attempt.billed_seconds for trial in together.trials for attempt in trial.attempts)
    assert billed == pytest.approx(run["held_seconds"], rel=0.01)


def test_in_a_gang_each_pays_for_the_thinking_of_its_own_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose = DefaultRate.propose

    def slowly(strategy: DefaultRate, history: History, max_count: int) -> Sequence[Proposal]:
        time.sleep(0.0 if history.trials else 0.5)
        return propose(strategy, history, max_count)

    monkeypatch.setattr(DefaultRate, "propose", slowly)
    record = run(tmp_path, "gangs: auto\n", seeds="[0]")
    idle = {trial.strategy: trial.phase_seconds["idle"] for trial in record.trials if trial.gang_size == FIRST}
    thought = idle.pop("default")
    assert idle.keys() == {"grid", "random", "tpe"}
    assert thought > 0.25 + min(idle.values()), "of the rest all have the same"
    [event] = [event.data for event in record.events if event.kind == "run"]
    billed = sum(attempt.billed_seconds for trial in record.trials for attempt in trial.attempts)
    assert billed == pytest.approx(event["held_seconds"], rel=0.01)


def remembered(folder: Path, across: Mapping[str, float] | None = None, **chosen: int) -> GangRequest:
    """Have the study in `folder` find this choice of gangs in the cache, and `across` seeds; return its kind."""
    [kind] = _gang_requests(load_study(folder / "study.yaml"), 1)
    where = gang_choice._circumstances(kind.workload, kind.training, torch.device("cpu"))
    circumstances = [*where, min(kind.most, LARGEST_GANG)]
    remember("gangs", circumstances, {"measured": [[chosen["size"], 1e-5]], **chosen})
    if across:
        remember("gangs_across", [*circumstances, min(kind.most_across, LARGEST_GANG), kind.crowds], across)
    return kind


def test_where_a_gang_of_one_seed_is_large_enough_no_other_seed_joins_it(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        FILE.format(workload=DIGITS, name="together", seeds="[0, 1]") + "gangs: auto\n"
    )
    kind = remembered(tmp_path, {"across": 16, "enough": 2}, size=10)
    assert (kind.most, kind.most_across, kind.crowds) == (10, 20, 2)
    watcher = Quiet()
    record = run(tmp_path, "gangs: auto\n", watcher)
    assert sizes(record, "grid") == {FIRST, FIRST + 1}, "seed 0's alone; those of seed 1 beside tpe's second of seed 0"
    assert sizes(record, "clr") == {2, 3}
    told = [text for text in watcher.messages if "train together" in text]
    assert re.fullmatch(r"Up to 10 trials train together: a step takes \d\.\d\d of a step alone for each\.", told[0])
    assert told[1:] == ["Up to 16 trials of several seeds train together."]


def test_trials_that_are_too_few_to_gain_anything_together_train_alone(tmp_path: Path) -> None:
    apart = tmp_path / "apart"
    apart.mkdir()
    expected = run(apart, "gangs: off\n", seeds="[0]")
    (tmp_path / "study.yaml").write_text((apart / "study.yaml").read_text().replace("gangs: off", "gangs: auto"))
    remembered(tmp_path, size=10, smallest=4)
    record = run(tmp_path, "gangs: auto\n", seeds="[0]")
    assert {key: sizes(record, key) for key in record.strategies} == {
        "grid": {FIRST},
        "random": {FIRST},
        "tpe": {FIRST, 1},
        "default": {FIRST},
        "clr": {1},
        "clr2": {1},
        "once": {1},
    }, "the three range tests are one too few"
    rates = [(trial.strategy, trial.number, trial.proposal) for trial in record.trials if trial.strategy != "tpe"]
    assert rates == [(one.strategy, one.number, one.proposal) for one in expected.trials if one.strategy != "tpe"]


def test_the_last_points_of_a_grid_train_alone_where_they_are_too_few(tmp_path: Path) -> None:
    only = FILE[: FILE.index("  grid:")] + "  grid: {{name: grid, points: 11}}\n"
    records = {}
    for gangs in ("off", "auto"):
        (tmp_path / "study.yaml").write_text(
            only.format(workload=DIGITS, name="together", seeds="[0]") + f"gangs: {gangs}\n"
        )
        if gangs == "auto":
            remembered(tmp_path, size=3, smallest=3)
        with open_store(f"sqlite:///{tmp_path}/{gangs}.db") as store:
            records[gangs] = run_study(load_study(tmp_path / "study.yaml"), store, observer=Quiet())
    assert [trial.gang_size for trial in records["auto"].trials] == [3] * 9 + [1, 1]
    apart, together = ([trial.proposal for trial in records[gangs].trials] for gangs in ("off", "auto"))
    assert together == apart, "also behind the eighth, where a grid is asked for more"


def test_of_several_seeds_too_few_train_with_their_own_or_alone(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        FILE.format(workload=DIGITS, name="together", seeds="[0, 1]") + "gangs: auto\n"
    )
    remembered(tmp_path, {"across": 16, "enough": 16, "smallest_across": 6}, size=10, smallest=3)
    record = run(tmp_path, "gangs: auto\n")
    assert {key: sizes(record, key) for key in record.strategies} == {
        "grid": {2 * FIRST},
        "random": {2 * FIRST},
        "tpe": {2 * FIRST, 1},
        "default": {2 * FIRST},
        "clr": {1, 3},
        "clr2": {1, 3},
        "once": {3},
    }, "five range tests of two seeds are too few: the first seed's three train together, the others alone"


@pytest.mark.parametrize(("most", "together"), [(1.0, {5}), (0.99, {3, 2})])  # one after each of 100 steps
def test_range_tests_whose_evaluations_are_too_many_train_with_those_of_their_own_seed(
    tmp_path: Path, most: float, together: set[int]
) -> None:
    (tmp_path / "study.yaml").write_text(
        FILE.format(workload=DIGITS, name="together", seeds="[0, 1]") + "gangs: auto\n"
    )
    remembered(tmp_path, {"across": 16, "enough": 16, "most_evaluations": most}, size=10, smallest=2)
    record = run(tmp_path, "gangs: auto\n")
    assert {trial.gang_size for trial in record.trials if trial.proposal.range_test} == together
    assert sizes(record, "grid") == {2 * FIRST}


BUDGETED = """
version: 1
name: budgeted
workload: {name: digits, model: mlp, batch_size: 128}
training: {epochs: 4, device: cpu, optimizer: {name: sgd}}
seeds: [0]
rates: {low: 1e-3, high: 0.1}
strategies: {grid: {name: grid, points: 150, schedule: {name: constant}}}
gangs: auto
budget: {device_hours: HOURS}
"""


def test_a_budget_holds_when_trials_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gang takes in no more than would fit one after another, but takes less time.

    What a trial takes alone is made up; what gangs take depends on what else the machine does.
    """
    file, limit, step_seconds = tmp_path / "study.yaml", 2.0, 0.009
    monkeypatch.setattr(Solo, "cost", lambda *_: SoloCost(0.0, step_seconds, 0.0, 0.0, blocks=(step_seconds,)))

    def go(hours: float) -> StudyRecord:
        file.write_text(BUDGETED.replace("HOURS", str(hours)))
        with open_store(f"sqlite:///{tmp_path}/study.db") as store:
            return run_study(load_study(file), store, observer=Quiet())

    record = go(limit / 3600)
    assert not record.finished
    assert {trial.status for trial in record.trials} == {"completed"}
    alone = step_seconds * some(record.trials[0].result).train_steps
    spent, begun = 0.0, 0
    while begun < len(record.trials):
        gang = record.trials[begun : begun + record.trials[begun].gang_size]
        assert begun or len(gang) == int(limit / alone) > 3
        assert spent + len(gang) * alone <= limit, "when it began, all of it would have fitted one after another"
        spent, begun = spent + sum(one.attempts[0].billed_seconds for one in gang), begun + len(gang)
    assert begun > limit / alone
    record = go(1.0)
    assert record.finished
    assert [trial.status for trial in record.trials] == ["completed"] * 150
    assert {len(trial.attempts) for trial in record.trials} == {1}


def test_searches_of_several_seeds_that_a_budget_ends_half_way_are_not_done(tmp_path: Path) -> None:
    """They advance side by side, so that what a later seed has begun says nothing of those before."""
    studied = FILE.format(workload=DIGITS, name="half", seeds="[0, 1, 2]")
    file, start = tmp_path / "study.yaml", studied.partition("strategies:")[0]
    ways = "{short: {name: grid, points: 2}, tpe: {name: optuna_search, trials: 300, startup_trials: 300}}"
    file.write_text(f"{start}strategies: {ways}\ngangs: auto\nbudget: {{device_hours: 0.0003}}\n")
    with open_store(f"sqlite:///{tmp_path}/study.db") as store:
        record = run_study(load_study(file), store, observer=Quiet())
    assert not record.finished
    assert max(sizes(record, "tpe")) > 2
    assert [search.done for search in searches(record, "tpe")] == [False] * 3
    assert [outcome.ended for search in searches(record, "tpe") for outcome in [search.outcome(1.0)]] == ["budget"] * 3
    assert searches(record, "short")[0].done


def test_the_page_and_its_table_say_both_bills(together: StudyRecord) -> None:
    page = render(together)
    assert "Trained together" in page
    assert "26 trials, up to 14 at a time" in page
    assert "Really billed" in page
    text = io.StringIO()
    write_rows(export_rows(together, "trials"), "csv", text)
    text.seek(0)
    again = summarise(read_trials(text))
    for row, expected in zip(again.ways, summarise(together).ways, strict=True):
        assert some(row.billed).value == pytest.approx(some(expected.billed).value)


@pytest.mark.slow
def test_what_confirms_the_choices_trains_together(tmp_path: Path) -> None:
    together, alone = (
        run(tmp_path, f"gangs: {gangs}\nconfirmation_seeds: 2\n", name=gangs) for gangs in ("auto", "off")
    )
    confirmed = len(together.confirmations)
    assert {trial.gang_size for trial in together.confirmations} == {LARGEST_GANG, confirmed - LARGEST_GANG}
    of_grid = [[one for one in study.confirmations if one.strategy == "grid"] for study in (together, alone)]
    for found, expected in zip(*of_grid, strict=True):
        assert found.proposal == expected.proposal
        assert some(found.result).test_loss == pytest.approx(some(expected.result).test_loss, rel=1e-3)
    assert some(held_time(together)).share == pytest.approx(1, abs=0.01), "of gangs what they took"


class Impatient(Quiet):
    """Types Ctrl-C when the first gang has told its second epoch."""

    def curve_point(self, trial: TrialRecord, point: CurvePoint) -> None:
        if point.epoch > 1.5:
            raise KeyboardInterrupt


def test_ctrl_c_in_a_gang_charges_every_member_and_the_same_command_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "gangs: auto\n", Impatient())
    record = run(tmp_path, "gangs: auto\n")
    grid = [trial for trial in record.trials if trial.strategy == "grid" and trial.seed == 0]
    assert [len(trial.attempts) for trial in grid] == [2, 2, 2]
    lost = [trial.attempts[0].phase_seconds["lost"] for trial in grid]
    assert min(lost) > 0
    assert max(lost) == pytest.approx(min(lost), rel=0.05)
    assert {trial.status for trial in record.trials} == {"completed"}


def test_a_study_that_goes_on_charges_by_what_was_timed_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is 50 times as slow by then; what was cut short goes on from its checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "gangs: auto\ncheckpoint: {every_seconds: 0.0001}\n", Impatient())
    cost = Solo.cost

    def slower(solo: Solo, validation_seconds: float) -> SoloCost:
        found = cost(solo, validation_seconds)
        return replace(found, step_seconds=50 * found.step_seconds)

    monkeypatch.setattr(Solo, "cost", slower)
    record = run(tmp_path, "gangs: auto\ncheckpoint: {every_seconds: 0.0001}\n")
    [charged_by] = [event.data for event in record.events if event.kind == "charged_by"]
    [found] = charged_by["costs"].values()
    assert record.finished
    for trial in record.trials:
        if trial.stage == "train":
            steps = some(trial.result).train_steps
            assert trial.phase_seconds["train"] == pytest.approx(steps * found["step_seconds"])
    assert {len(trial.attempts) for trial in record.trials} == {1, 2}
    assert some(held_time(record)).share == pytest.approx(1, abs=0.02)


def test_where_no_trials_train_together_each_is_charged_what_it_took(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(FILE.format(workload=DIGITS, name="together", seeds="[0]") + "gangs: auto\n")
    remembered(tmp_path, size=1)
    record = run(tmp_path, "gangs: auto\nbudget: {device_hours: 1}\n", seeds="[0]")
    assert {trial.gang_size for trial in record.trials} == {1}
    assert not [event for event in record.events if event.kind == "charged_by"]
    assert all(attempt.billed_phase_seconds is None for trial in record.trials for attempt in trial.attempts)


def test_a_model_that_cannot_be_stacked_trains_alone_and_the_study_says_why(tmp_path: Path) -> None:
    (tmp_path / "branching.py").write_text(OWN_GRADIENT)
    watcher = Quiet()
    workload = (
        f"{{name: callable, model: 'branching:model', data: 'branching:data', batch_size: 16, python_path: {tmp_path}}}"
    )
    record = run(tmp_path, "gangs: auto\n", watcher, workload=workload)
    assert {trial.gang_size for trial in record.trials} == {1}
    [told] = [text for text in watcher.messages if "gangs is auto" in text]
    assert told.startswith("Trials train alone, although gangs is auto: ")
    assert "control flow" in told or "vmap" in told


DYING = """
import os
import pathlib
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = 0
        self.layer = torch.nn.Linear(5, 2)

    def train(self, mode=True):
        folder = pathlib.Path(__file__).parent
        if not mode and (folder / "armed").exists():
            (folder / "armed").unlink()
            os._exit(7)
        return super().train(mode)

    def forward(self, inputs):
        return self.layer(inputs)

def model():
    return Net()

def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 5, generator=generator)
    targets = (inputs[:, 0] > 0).long()
    return (inputs[:300], targets[:300]), (inputs[300:], targets[300:])
"""


class Arming(Quiet):
    """Lets the first gang take its process down."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._armed = folder / "armed"

    def trial_started(self, trial: TrialRecord) -> None:
        if not self.started:
            self._armed.touch()
        super().trial_started(trial)


@pytest.mark.slow
def test_a_gang_that_takes_its_process_down_runs_again_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "gang_dying.py").write_text(DYING)
    code = "model: 'gang_dying:model', data: 'gang_dying:data'"
    workload = f"{{name: callable, {code}, batch_size: 8, python_path: {tmp_path}}}"
    watcher, more = Arming(tmp_path), f"executor: {{name: process, slots: 1, threads_per_slot: {get_num_threads()}}}\n"
    (tmp_path / "study.yaml").write_text(FILE.format(workload=workload, name="together", seeds="[0, 1]"))
    config = load_study(tmp_path / "study.yaml")
    # The process will find this choice in the cache.
    gang_choice.choose(
        config.workload_choice(), config.training_plan_of("grid"), 0, most=10, most_across=20, crowds=2, search_steps=0
    )
    record = run(tmp_path, f"gangs: auto\n{more}", watcher, workload=workload)
    first = [trial for trial in record.trials if trial.strategy == "grid" and trial.seed == 0]
    assert [[attempt.status for attempt in trial.attempts] for trial in first] == [["lost", "finished"]] * 3
    assert [trial.gang_size for trial in first] == [1, 1, 1]
    assert sum("ended by itself with exit code 7" in text for text in watcher.messages) == 2 * FIRST
    assert min(sizes(record, "clr")) > 1, "what comes later trains together again"
