"""The main job on a small real study: sklearn's digits, SQLite in a temporary folder, the inline executor."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lrsearch import conductor
from lrsearch.conductor import interleaved
from lrsearch.config import StudyConfig, load_study
from lrsearch.errors import StorageError, StudyBusyError, StudyChangedError, StudyFailedError, UsageError, WorkloadError
from lrsearch.storage.mirror_process import MirrorProcess
from lrsearch.storage.store import Store, open_store
from lrsearch.strategies import Grid, OptunaSearch
from lrsearch.study import forecast, run_study
from lrsearch.trial import CurvePoint, History, Proposal, StudyRecord, TrialRecord, WorkloadFacts, charged_seconds

FILE = """
version: 1
name: {name}
workload: {workload}
training:
  epochs: {epochs}
  device: cpu
  optimizer: {{name: sgd, momentum: 0.9}}
seeds: {seeds}
rates: {{low: 1e-5, high: 10.0}}
target: {{metric: accuracy, value: 0.9}}
strategies:
  grid: {{name: grid, points: {points}, schedule: {{name: constant}}}}
  tpe: {{name: optuna_search, sampler: tpe, trials: 3, startup_trials: 2}}
  clr: {{name: range_tested, schedule: {{name: triangular2, cycles: 2}}}}
"""
DIGITS = "{name: digits, model: mlp, batch_size: 64}"


class Quiet:
    """An observer that keeps what it was told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.finished: list[TrialRecord] = []
        self.messages: list[str] = []

    def study_started(self, record: StudyRecord, planned_trials: dict[str, int]) -> None:
        self.planned = planned_trials

    def trial_started(self, trial: TrialRecord) -> None:
        self.started.append((trial.strategy, trial.seed))

    def curve_point(self, trial: TrialRecord, point: CurvePoint) -> None: ...

    def trial_finished(self, trial: TrialRecord) -> None:
        self.finished.append(trial)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def study_finished(self, record: StudyRecord) -> None:
        self.record = record


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(**changes: Any) -> Path:
        values = {"name": "small", "workload": DIGITS, "epochs": 2, "seeds": [0], "points": 3} | changes
        path = tmp_path / "study.yaml"
        path.write_text(FILE.format(**values))
        return path

    return make


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        yield store


def config(path: Path) -> StudyConfig:
    return load_study(path)


def outcome(record: StudyRecord) -> list[Any]:
    """All that must be equal in two runs of the same study: everything but clocks and identities."""
    rows = []
    for trial in record.trials:
        assert trial.result is not None
        curve = tuple(replace(point, charged_device_seconds=0.0) for point in trial.result.curve)
        result = trial.result
        identity = (trial.strategy, trial.seed, trial.number, trial.status, trial.proposal)
        values = (curve, result.range_test, result.validation_metric, result.test_metric)
        rows.append((*identity, *values))
    return rows


def test_turns_alternate_so_that_no_way_always_comes_first() -> None:
    assert "".join(islice(interleaved(["a", "b", "c"]), 9)) == "abccbaabc"


def test_a_study_runs_every_trial_of_every_way_and_seed(write: Write, store: Store) -> None:
    watcher = Quiet()
    record = run_study(config(write(seeds=[0, 1])), store, observer=watcher)
    assert record.finished
    assert watcher.planned == {"grid": 6, "tpe": 6, "clr": 4}
    assert len(record.trials) == 16
    assert all(trial.result is not None for trial in record.trials)
    assert watcher.started[:6] == [(way, 0) for way in ("grid", "tpe", "clr", "clr", "tpe", "grid")]
    clr = record.search("clr", 1)
    assert [trial.stage for trial in clr] == ["range_test", "train"]
    base_lr, max_lr = clr[1].proposal.base_lr, clr[1].proposal.max_lr
    assert base_lr is not None
    assert max_lr is not None
    assert 0 < base_lr < max_lr
    assert clr[1].result is not None
    assert (clr[1].result.test_metric or 0) > 0.8
    assert record.facts is not None
    assert record.facts.metric == "accuracy"


def test_charged_seconds_add_up_to_the_time_that_the_device_was_held(write: Write, store: Store) -> None:
    record = run_study(config(write(seeds=[0, 1])), store, observer=Quiet())
    [run] = [event for event in record.events if event.kind == "run"]
    explained = sum(sum(trial.phase_seconds.values()) for trial in record.trials)
    assert explained == pytest.approx(run.data["held_seconds"], rel=0.01)


def test_a_curve_counts_the_idle_seconds_before_its_trial_began(write: Write, store: Store) -> None:
    class Slow(Quiet):
        def trial_started(self, trial: TrialRecord) -> None:
            time.sleep(0.2)

    record = run_study(config(write()), store, observer=Slow())
    for trial in record.trials:
        points = [point.charged_device_seconds for point in trial.result.curve] if trial.result else []
        assert all(0.2 < seconds <= trial.charged_device_seconds for seconds in points)
        assert points == sorted(points)


def test_the_same_file_twice_gives_the_same_rates_curves_and_accuracies(write: Write, tmp_path: Path) -> None:
    path = write()
    first, second = (
        run_study(config(path), open_store(f"sqlite:///{tmp_path / name}"), observer=Quiet())
        for name in ("1.db", "2.db")
    )
    assert outcome(first) == outcome(second)


def test_a_finished_study_says_so_and_runs_nothing(write: Write, store: Store) -> None:
    path = write()
    run_study(config(path), store, observer=Quiet())
    again = Quiet()
    record = run_study(config(path), store, observer=again)
    assert record.finished
    assert again.started == []
    assert "finished" in again.messages[0]


@pytest.mark.parametrize("trouble", [StorageError("no room"), KeyboardInterrupt()])
def test_the_page_is_drawn_while_the_dashboards_tables_are_written_and_again_when_that_did_not_work(
    write: Write, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    def in_trouble(record: StudyRecord) -> None:
        raise trouble

    def finish(mirror: MirrorProcess, tell: Any) -> None:
        order.append("tables")
        really(mirror, tell)

    order, drawn, really = list[str](), list[StudyRecord](), MirrorProcess.finish
    monkeypatch.setattr(MirrorProcess, "finish", finish)
    study, url = config(write(points=2)), f"sqlite:///{tmp_path / 'study.db'}"
    with pytest.raises(type(trouble)):
        run_study(study, store, observer=Quiet(), mirror_url=url, conclude=in_trouble)
    stored = store.find_study("small")
    assert stored is not None
    assert not stored.finished

    def draw(record: StudyRecord) -> None:
        order.append("page")
        drawn.append(record)

    order.clear()
    again = Quiet()
    record = run_study(study, store, observer=again, mirror_url=url, conclude=draw)
    assert order == ["tables", "page", "tables"], "what an earlier run wrote, then that of this one"
    assert drawn == [record]
    assert record.finished
    assert not again.finished, "no trial ran again"
    run_study(study, store, observer=again, mirror_url=url, conclude=draw)
    assert drawn == [record], "nothing was to run"


def test_a_changed_file_is_refused_with_its_differences(write: Write, store: Store) -> None:
    run_study(config(write()), store, observer=Quiet())
    with pytest.raises(
        StudyChangedError, match=r"training\.epochs.*2.*3\n.*--extend can add seeds, trials and strategies only"
    ):
        run_study(config(write(epochs=3)), store, observer=Quiet())
    with pytest.raises(StudyChangedError, match="add to the study with --extend"):
        run_study(config(write(seeds=[0, 1, 2])), store, observer=Quiet())
    with pytest.raises(StudyChangedError, match="--extend can add"):
        run_study(config(write(epochs=3)), store, observer=Quiet(), extend=True)


def test_a_study_does_not_go_on_with_another_model_or_other_data(write: Write, store: Store) -> None:
    small = config(write())
    facts = WorkloadFacts.of_metric("accuracy")
    store.set_facts(store.create_study("small", small.resolved(), small.fingerprint()).id, facts)
    with pytest.raises(StudyChangedError, match=r"train count 0 -> \d+, .*parameter count 0 -> \d+\. .*--fresh"):
        run_study(small, store, observer=Quiet())


def test_a_study_from_before_a_key_came_goes_on_and_is_told_only_what_changed(write: Write, store: Store) -> None:
    old = config(write()).resolved()
    del old["training"]["groups"]
    store.create_study("small", old, "what the older version computed")
    with pytest.raises(StudyChangedError) as error:
        run_study(config(write(epochs=3)), store, observer=Quiet())
    assert [line for line in str(error.value).splitlines() if "->" in line or "added" in line] == [
        "  training.epochs: 2 -> 3"
    ]
    record = run_study(config(write()), store, observer=Quiet())
    assert (record.version, record.finished) == (1, True)


def test_more_seeds_extend_a_study_without_running_anything_twice(write: Write, store: Store) -> None:
    first = run_study(config(write()), store, observer=Quiet())
    with pytest.raises(StudyChangedError, match="--extend"):
        run_study(config(write(seeds=[0, 1])), store, observer=Quiet())
    watcher = Quiet()
    record = run_study(config(write(seeds=[0, 1])), store, observer=watcher, extend=True)
    assert {seed for _, seed in watcher.started} == {1}
    assert outcome(record)[: len(first.trials)] == outcome(first)
    assert record.finished


def test_the_first_trial_of_an_extension_does_not_pay_for_asking_what_was_done_before(
    write: Write, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_study(config(write()), store, observer=Quiet())
    order: list[str] = []
    propose, slot = Grid.propose, conductor._Slot

    def asked(strategy: Grid, history: History, max_count: int) -> Sequence[Proposal]:
        order.append(f"seed {history.seed} asked")
        return propose(strategy, history, max_count)

    def begun(number: int, boundary: float) -> conductor._Slot:
        order.append("the clock started")
        return slot(number, boundary)

    monkeypatch.setattr(Grid, "propose", asked)
    monkeypatch.setattr(conductor, "_Slot", begun)
    record = run_study(config(write(seeds=[0, 1])), store, observer=Quiet(), extend=True)
    assert record.finished
    assert [one for one in order if one != "seed 1 asked"] == ["seed 0 asked", "the clock started"]
    assert order[-1] == "seed 1 asked"


def test_a_fresh_version_keeps_the_old_one(write: Write, store: Store) -> None:
    path = write()
    first = run_study(config(path), store, observer=Quiet())
    second = run_study(config(path), store, observer=Quiet(), fresh=True)
    assert (first.version, second.version) == (1, 2)
    assert outcome(store.record("small", 1)) == outcome(second)


def test_a_study_that_another_process_holds_is_refused(write: Write, store: Store) -> None:
    path = write()
    study = store.create_study("small", config(path).resolved(), config(path).fingerprint())
    source = "from lrsearch.storage.owner import this_owner as me; print(me(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        store.acquire(study.id, holder.stdout.readline().strip(), 60)
        with pytest.raises(StudyBusyError, match=str(holder.pid)):
            run_study(config(path), store, observer=Quiet())
        holder.kill()
    assert run_study(config(path), store, observer=Quiet()).finished


class Overtaken(Quiet):
    """While this run prepares its workload, another process does `meanwhile`."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    def message(self, text: str) -> None:
        super().message(text)
        if text.startswith("Preparing"):
            self._meanwhile()


def test_of_two_processes_that_begin_a_study_at_once_one_is_refused(write: Write, store: Store) -> None:
    small = config(write())
    overtaken = Overtaken(lambda: store.create_study("small", small.resolved(), small.fingerprint()))
    with pytest.raises(StudyBusyError, match="version 1 of study 'small'"):
        run_study(small, store, observer=overtaken)
    assert [study.version for study in store.studies()] == [1]


def test_a_study_that_another_process_holds_is_not_extended(write: Write, store: Store) -> None:
    small = config(write())
    study = store.create_study("small", small.resolved(), small.fingerprint())
    store.acquire(study.id, "elsewhere:1:1:1", 60)
    with pytest.raises(StudyBusyError):
        run_study(config(write(seeds=[0, 1])), store, observer=Quiet(), extend=True)
    assert store.find_study("small") == study


def test_a_model_that_raises_stops_before_the_first_trial(
    write: Write, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raising.py").write_text(
        "def model():\n    raise ValueError('no model')\n\ndef data():\n    return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write(workload="{name: callable, model: 'raising:model', data: 'raising:data', batch_size: 8}")
    with pytest.raises(WorkloadError):
        run_study(config(path), store, observer=Quiet())
    assert store.studies() == [], "a file that never ran can be mended and run under the same name"


@pytest.mark.parametrize("seed", ["", "0"])
def test_data_that_are_others_in_each_process_are_refused(
    write: Write, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: str
) -> None:
    drawn = f"torch.from_numpy(np.random.default_rng({seed}).normal(size=(64, 3)))"
    data = f"def data():\n    inputs = {drawn}\n    return [(inputs, (inputs[:, 0] > 0).long())] * 2\n"
    model = "def model():\n    return torch.nn.Linear(3, 2)\n"
    (tmp_path / "drawn.py").write_text(f"import numpy as np\nimport torch\n\n{data}\n{model}")
    monkeypatch.syspath_prepend(str(tmp_path))
    functions = f"model: 'drawn:model', data: 'drawn:data', batch_size: 8, python_path: {tmp_path}"
    path = write(workload=f"{{name: callable, {functions}}}", points=2)
    path.write_text(path.read_text() + "executor: {name: process, slots: 2}\n")
    if seed:
        assert run_study(config(path), store, observer=Quiet()).finished
    else:
        with pytest.raises(WorkloadError, match=r"others in each process, .*np.random.default_rng\(0\)"):
            run_study(config(path), store, observer=Quiet())


def test_a_target_that_the_workload_does_not_measure_is_refused(write: Write, store: Store) -> None:
    path = write()
    path.write_text(path.read_text().replace("metric: accuracy", "metric: acuracy"))
    with pytest.raises(UsageError, match=r"'accuracy'.*'acuracy'"):
        run_study(config(path), store, observer=Quiet())


IN_PERCENT = """
import torch

def data():
    inputs = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    return (inputs[:64], (inputs[:64, 0] > 0).long()), (inputs[64:], (inputs[64:, 0] > 0).long())

def model():
    return torch.nn.Linear(3, 2)

def accuracy(outputs, targets):
    return 100 * (outputs.argmax(1) == targets).float().mean()
"""


@pytest.mark.parametrize("chance", ["", ", chance: 1.0"])
def test_a_target_in_percent_is_one_of_a_metric_of_the_users_own(
    write: Write, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chance: str
) -> None:
    (tmp_path / "in_percent.py").write_text(IN_PERCENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    functions = "model: 'in_percent:model', data: 'in_percent:data', batch_size: 8"
    own = "metric: 'in_percent:accuracy', higher_is_better: true" + chance
    path = write(workload=f"{{name: callable, {functions}, {own}}}")
    path.write_text(re.sub(r"value: [0-9.]+", "value: 60", path.read_text()))
    assert run_study(config(path), store, observer=Quiet()).finished
    path = write(workload=f"{{name: callable, {functions}}}", name="share")
    path.write_text(re.sub(r"value: [0-9.]+", "value: 60", path.read_text()))
    with pytest.raises(UsageError, match="at most 1, beyond which accuracy never lies, got 60"):
        run_study(config(path), store, observer=Quiet())


FAILS_LATER = """
import torch

def data():
    return (torch.randn(64, 3), torch.randint(0, 2, (64,))), (torch.randn(8, 3), torch.randint(0, 2, (8,)))

class Model(torch.nn.Linear):
    steps = 0

    def forward(self, inputs):
        Model.steps += self.training
        if Model.steps > 4:
            raise RuntimeError("worn out")
        return super().forward(inputs)

def model():
    return Model(3, 2)
"""


def test_trials_that_keep_failing_stop_the_study_and_are_kept(
    write: Write, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails_later.py").write_text(FAILS_LATER)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write(workload="{name: callable, model: 'fails_later:model', data: 'fails_later:data', batch_size: 8}")
    with pytest.raises(StudyFailedError, match=r"worn out \(.*, in forward\)\. They are stored"):
        run_study(config(path), store, observer=Quiet())
    failed = store.record("small").trials
    assert [trial.status for trial in failed] == ["failed"] * 3
    assert all(trial.charged_device_seconds > 0 for trial in failed)


def test_a_study_without_any_model_is_not_finished(
    write: Write, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails_early.py").write_text(FAILS_LATER)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write(workload="{name: callable, model: 'fails_early:model', data: 'fails_early:data', batch_size: 8}")
    path.write_text(path.read_text().split("strategies:")[0] + "strategies:\n  default: {name: default_rate}\n")
    with pytest.raises(StudyFailedError, match=r"All 1 training runs failed.*worn out.*--fresh"):
        run_study(config(path), store, observer=Quiet())
    assert not store.record("small").finished


def test_a_forecast_counts_every_way(write: Write) -> None:
    plan = forecast(config(write(seeds=[0, 1])))
    assert plan.trials == {"grid": 6, "tpe": 6, "clr": 4}
    assert plan.seconds["grid"] == pytest.approx(plan.seconds["tpe"])
    assert 0 < plan.seconds["clr"] < plan.total_seconds
    assert (plan.confirmations, plan.confirmation_seconds) == (0, 0.0)


def test_a_forecast_tells_apart_what_confirming_would_take(write: Write) -> None:
    plan = forecast(config(write(seeds=[0, 1])).model_copy(update={"confirmation_seeds": 5}))
    assert plan.confirmations == 3 * 2 * 5, "ways, searches of each, fresh seeds"
    one_run = plan.seconds["grid"] / plan.trials["grid"]
    assert plan.confirmation_seconds == pytest.approx(plan.confirmations * one_run)
    assert plan.total_seconds == pytest.approx(sum(plan.seconds.values())), "no way has that on its bill"


def spawn(path: Path, database: Path, **options: Any) -> subprocess.Popen[Any]:
    command = [sys.executable, "-m", "lrsearch", "run-study", str(path), "--database", f"sqlite:///{database}"]
    return subprocess.Popen([*command, "--report", str(path.parent / "report.html")], **options)


def start(path: Path, database: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"NO_COLOR": "1"}
    return spawn(path, database, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def stop_after_heartbeat(process: subprocess.Popen[str], database: Path, after_trials: int) -> None:
    """Stop the process when `after_trials` trials are done and another attempt runs, of which a heartbeat has told."""
    beating = "SELECT 1 FROM lrsearch_attempt WHERE status = 'running' AND heartbeat_at > started_at"
    begun = "SELECT count(*) FROM lrsearch_trial"

    def is_there() -> bool:
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database)) as connection:
            [count] = connection.execute(begun).fetchone()
            return count > after_trials and connection.execute(beating).fetchone() is not None
        return False

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if is_there():
            process.send_signal(signal.SIGSTOP)
            if is_there():
                return
            process.send_signal(signal.SIGCONT)  # the attempt has ended meanwhile
        time.sleep(0.02)
    raise AssertionError("no heartbeat was seen")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_study_goes_on_with_nothing_lost_and_nothing_twice(
    write: Write, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    path = write(epochs=200, points=2)  # trials long enough to be hit in the middle, after their first heartbeat
    unbroken = run_study(config(path), open_store(f"sqlite:///{tmp_path / 'unbroken.db'}"), observer=Quiet())
    database = tmp_path / "broken.db"
    for after_trials in (1, 4):
        process = start(path, database)
        stop_after_heartbeat(process, database, after_trials)
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == code, output
        assert "Traceback" not in output
        if number != signal.SIGKILL:
            assert "lrsearch run-study" in output, "the way to go on is said"
    process = start(path, database)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    with open_store(f"sqlite:///{database}") as store:
        record = store.record("small")
    assert outcome(record) == outcome(unbroken)
    broken_off = [a for trial in record.trials for a in trial.attempts if a.status in ("lost", "interrupted")]
    assert len(broken_off) == 2, "both kills landed inside a running attempt"
    assert all(0 < charged_seconds(attempt.phase_seconds) < 60 for attempt in broken_off)
    assert all(attempt.estimated == (number == signal.SIGKILL) for attempt in broken_off)


def test_a_running_trial_is_seen_in_the_ledger_and_in_optuna_before_it_ends(
    write: Write, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    class Peeking(Quiet):
        """Looks at both tables from inside a running trial, until something is there."""

        seen: ClassVar[list[tuple[int, int]]] = []

        def curve_point(self, trial: TrialRecord, point: CurvePoint) -> None:
            deadline = time.monotonic() + 120
            while point.epoch >= 2 and not self.seen:
                assert time.monotonic() < deadline, "no running trial with values was seen"
                time.sleep(0.1)
                with contextlib.suppress(KeyError):  # the mirror has not begun the study
                    trials = optuna.load_study(study_name=f"small/{trial.strategy}/0", storage=url).trials
                    self.seen.extend(
                        (len(shown.intermediate_values), int(point.epoch))
                        for shown in trials[trial.number : trial.number + 1]
                        if shown.state == optuna.trial.TrialState.RUNNING and shown.intermediate_values
                    )

    monkeypatch.setattr("lrsearch.conductor.HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr("lrsearch.conductor.LIVE_AFTER_SECONDS", 0.5)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    run_study(config(write(points=2)), store, observer=Peeking(), mirror_url=url)
    assert Peeking.seen
    assert all(0 < shown <= epoch for shown, epoch in Peeking.seen)


def test_the_dashboard_shows_what_the_ledger_charges(write: Write, store: Store, tmp_path: Path) -> None:
    import optuna

    class Slow(Quiet):
        def trial_finished(self, trial: TrialRecord) -> None:
            time.sleep(0.01)  # after its result was written

    url = f"sqlite:///{tmp_path / 'study.db'}"
    record = run_study(config(write(points=2, epochs=1)), store, observer=Slow(), mirror_url=url)
    studies = [optuna.load_study(study_name=name, storage=url) for name in optuna.get_all_study_names(url)]
    shown = {trial.user_attrs["uuid"]: trial.user_attrs for study in studies for trial in study.trials}
    charged = {trial.uuid: trial.charged_device_seconds for trial in record.trials}
    assert {uuid: one["charged_device_seconds"] for uuid, one in shown.items()} == pytest.approx(charged, abs=1e-9)


def test_what_samplers_import_is_imported_before_anything_is_on_a_bill(
    write: Write, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[OptunaSearch] = []
    real = OptunaSearch.import_all

    def import_all(way: OptunaSearch, history: History) -> None:
        assert not store.studies()
        imported.append(way)
        real(way, history)

    monkeypatch.setattr(OptunaSearch, "import_all", import_all)
    config = load_study(write())
    run_study(config, store, observer=Quiet())
    assert imported == [config.strategies["tpe"]]


def test_a_run_says_once_what_it_costs_to_read_data_example_by_example(
    write: Write, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "read.py").write_text(
        "import torch\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "def part(rows):\n"
        "    inputs = torch.randn(rows, 4)\n"
        "    return TensorDataset(inputs, (inputs[:, 0] > 0).long())\n"
        "def data():\n"
        "    return DataLoader(part(64), 16, shuffle=True), part(32), part(32)\n"
        "def model():\n"
        "    return torch.nn.Linear(4, 2)\n"
    )
    own = "{name: callable, model: 'read:model', data: 'read:data', batch_size: 16, python_path: .}"
    observer = Quiet()
    run_study(load_study(write(workload=own)), store, observer=observer)
    [said] = [text for text in observer.messages if "example by example" in text]
    assert re.search(r"of the [\d.e-]+ ms of a step [\d.e-]+ ms are for its batch", said)
