"""Several slots, budgets, and trials whose process dies: the study loop with the process executor."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pty
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from lrsearch import conductor
from lrsearch.analysis.searches import searches
from lrsearch.conductor import DEATHS_TO_FAIL, Budget, Signals
from lrsearch.config import load_study
from lrsearch.errors import StorageError, StudyFailedError
from lrsearch.storage.maintenance import check_database
from lrsearch.storage.mirror_process import MirrorProcess
from lrsearch.storage.store import Begun, LostAttempt, Store, open_store
from lrsearch.study import run_study
from lrsearch.trial import FINISHED_STATUSES, Choice, CurvePoint, Proposal, StudyRecord, TrialRecord
from tests.processes import workers_of
from tests.records import make_record
from tests.test_study import Quiet, outcome, spawn

FILE = """
version: 1
name: small
workload: {workload}
training: {{epochs: {epochs}, device: cpu, optimizer: {{name: sgd, momentum: 0.9}}}}
seeds: [0, 1]
rates: {{low: 1e-3, high: 1.0}}
strategies:
  grid: {{name: grid, points: 3, schedule: {{name: constant}}}}
  tpe: {{name: optuna_search, sampler: tpe, pruner: median, trials: 3, startup_trials: 2}}
  clr: {{name: range_tested, test: once_per_study, schedule: {{name: triangular2, cycles: 2}}}}
executor: {executor}
"""
DIGITS = "{name: digits, model: mlp, batch_size: 128}"


def write(tmp_path: Path, executor: str, more: str = "", workload: str = DIGITS, epochs: int = 2) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(FILE.format(executor=executor, workload=workload, epochs=epochs) + more)
    return path


def run(path: Path, database: Path, watcher: Quiet | None = None) -> StudyRecord:
    with open_store(f"sqlite:///{database}") as store:
        return run_study(load_study(path), store, observer=watcher or Quiet(), mirror_url=f"sqlite:///{database}")


class Crowded(Quiet):
    """Counts how many trials run at once."""

    def __init__(self) -> None:
        super().__init__()
        self._running = 0
        self.most = 0

    def trial_started(self, trial: TrialRecord) -> None:
        self._running += 1
        self.most = max(self.most, self._running)

    def trial_finished(self, trial: TrialRecord) -> None:
        self._running -= 1


@pytest.mark.slow
def test_a_parallel_study_equals_the_one_on_one_slot(tmp_path: Path) -> None:
    one = run(write(tmp_path, "{name: process, slots: 1, threads_per_slot: 1}"), tmp_path / "one.db")
    crowd = Crowded()
    three = run(write(tmp_path, "{name: process, slots: 3, threads_per_slot: 1}"), tmp_path / "three.db", crowd)
    assert crowd.most == 3
    assert outcome(three) == outcome(one)
    [event] = [event for event in three.events if event.kind == "run"]
    explained = sum(sum(trial.phase_seconds.values()) for trial in three.trials)
    assert explained == pytest.approx(event.data["held_seconds"], rel=0.01), "every slot's seconds are on some bill"
    assert event.data["slots"] == 3
    done = [event.data for event in three.events if event.kind == "search_done"]
    assert len(done) == 6


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_a_study_s_own_code_forks_ends_by_sigterm_as_it_would_elsewhere() -> None:
    """A pool's processes that outlive SIGTERM are waited for without end."""

    def end() -> None:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # from its beginning
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with Signals().handled(), Signals().handled():
        mine = signal.getsignal(signal.SIGTERM)
        child = multiprocessing.get_context("fork").Process(target=end)
        child.start()
        child.join()
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert child.exitcode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_hangup_that_nohup_has_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals().handled(), Signals().handled():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Impatient(Quiet):
    """Types Ctrl-C in the middle of the fourth trial."""

    def curve_point(self, trial: TrialRecord, point: CurvePoint) -> None:
        if len(self.started) > 3:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["{name: inline}", "{name: process, slots: 2, threads_per_slot: 1}"])
def test_the_seconds_of_trials_that_ctrl_c_cuts_short_are_held_too(tmp_path: Path, executor: str) -> None:
    path, database = write(tmp_path, executor, epochs=40), tmp_path / "study.db"
    with pytest.raises(KeyboardInterrupt):
        run(path, database, Impatient())
    with open_store(f"sqlite:///{database}") as store:
        record = store.record("small")
    attempts = [attempt for trial in record.trials for attempt in trial.attempts]
    assert "interrupted" in {attempt.status for attempt in attempts}
    [event] = [event for event in record.events if event.kind == "run"]
    explained = sum(sum(attempt.phase_seconds.values()) for attempt in attempts)
    assert explained == pytest.approx(event.data["held_seconds"], rel=0.01)


DYING = """
import os, signal, time
from pathlib import Path
import torch

FLAG = Path(__file__).with_name("flag")

def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(640, 4, generator=generator)
    targets = (inputs.sum(1) > 0).long()
    return (inputs[:512], targets[:512]), (inputs[512:], targets[512:])

class Model(torch.nn.Linear):
    steps = 0

    def forward(self, inputs):
        Model.steps += self.training
        if Model.steps > 40 and (FLAG.read_text() == "always" or not FLAG.with_name("died").exists()):
            FLAG.with_name("died").touch()
            {death}
        return super().forward(inputs)

def model():
    return Model(4, 2)
"""
DEATHS = {
    "segfault": ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "exit": ("os._exit(7)", "exit code 7"),
    "hang": ("time.sleep(1000)", "no progress for"),
}


def dying_study(tmp_path: Path, death: str, flag: str, patience_seconds: float = 60.0) -> Path:
    (tmp_path / "dying.py").write_text(DYING.format(death=death))
    (tmp_path / "flag").write_text(flag)
    workload = "{name: callable, model: 'dying:model', data: 'dying:data', batch_size: 16, python_path: .}"
    executor = f"{{name: process, slots: 1, threads_per_slot: 1, patience_seconds: {patience_seconds}}}"
    path = write(tmp_path, executor, workload=workload)
    one_way = "strategies:\n  grid: {name: grid, points: 2}\nexecutor"
    path.write_text(re.sub(r"strategies:(.*\n)+executor", one_way, path.read_text()).replace("[0, 1]", "[0]"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEATHS)
def test_a_users_model_that_dies_costs_one_attempt_and_not_the_study(tmp_path: Path, kind: str) -> None:
    death, told = DEATHS[kind]
    watcher, patience = Quiet(), 4.0 if kind == "hang" else 60.0
    record = run(dying_study(tmp_path, death, "once", patience), tmp_path / "x.db", watcher)
    assert record.finished
    assert {trial.status for trial in record.trials} == {"completed"}
    lost = [attempt for trial in record.trials for attempt in trial.attempts if attempt.status == "lost"]
    assert len(lost) == 1
    assert told in (lost[0].error or "")
    assert not lost[0].estimated, "the loop saw when it died"
    assert set(lost[0].phase_seconds) <= {"lost", "idle"}, "without a checkpoint nothing of it is kept"
    assert lost[0].phase_seconds["lost"] > (patience if kind == "hang" else 0)
    assert any("runs again" in message and told in message for message in watcher.messages)


@pytest.mark.slow
def test_a_trial_that_never_survives_has_failed_and_all_its_attempts_are_paid(tmp_path: Path) -> None:
    record_path = tmp_path / "x.db"
    path = dying_study(tmp_path, "os._exit(7)", "always")
    with pytest.raises(StudyFailedError, match=r"All 2 training runs failed.*exit code 7"):
        run(path, record_path)
    with open_store(f"sqlite:///{record_path}") as store:
        trials = store.record("small").trials[:2]
    for trial in trials:
        assert trial.status == "failed"
        assert [attempt.status for attempt in trial.attempts] == ["lost"] * (DEATHS_TO_FAIL - 1) + ["finished"]
        assert all(attempt.charged_device_seconds > 0 for attempt in trial.attempts)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_terminal_leaves_no_worker_and_no_open_attempt(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C reaches the terminal's whole foreground group; the workers are not in it."""
    path = write(tmp_path, "{name: process, slots: 2, threads_per_slot: 1}", epochs=2000)
    main_side, terminal = pty.openpty()
    database = tmp_path / "x.db"
    spawned = time.monotonic()
    process = spawn(path, database, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    with open_store(f"sqlite:///{database}") as store:
        deadline = time.monotonic() + 120
        while not store.studies() or store.studies()[0].trials.get("running", 0) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        seen, workers = time.monotonic(), workers_of(process.pid)
        assert len(workers) == 2
        time.sleep(1.5)
        ran = time.monotonic() - seen
        os.killpg(process.pid, number)
        shown = b""
        while True:
            try:
                part = os.read(main_side, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
        assert process.wait(timeout=60) == code
        lived = time.monotonic() - spawned
        assert b"Traceback" not in shown
        assert b"lrsearch run-study" in re.sub(rb"\s+", b" ", shown)
        record = store.record("small")
        attempts = [attempt for trial in record.trials for attempt in trial.attempts]
        assert [attempt.status for attempt in attempts] == ["interrupted"] * 2
        assert all(ran < attempt.charged_device_seconds < lived for attempt in attempts)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    os.close(main_side)


def test_a_budget_ends_the_study_before_the_trial_that_would_break_it(tmp_path: Path) -> None:
    path = write(tmp_path, "{name: inline}", "budget: {device_hours: 0.00006}\n")
    watcher = Quiet()
    record = run(path, tmp_path / "x.db", watcher)
    assert not record.finished
    assert 0 < len(record.trials) < 16
    spent = sum(sum(trial.phase_seconds.values()) for trial in record.trials)
    last = max(record.trials, key=lambda trial: trial.attempts[-1].started_at)
    assert spent - sum(last.phase_seconds.values()) < 0.00006 * 3600, "the last one began when it might still fit"
    assert "budget.device_hours" in watcher.messages[-1]
    [stopped] = [event for event in record.events if event.kind == "budget_reached"]
    assert stopped.data["spent_seconds"] == pytest.approx(spent, rel=0.05)
    assert any(not search.done for search in searches(record, "grid"))
    path.write_text(path.read_text().replace("0.00006", "1.0"))
    whole = run(path, tmp_path / "x.db")
    assert whole.finished
    path.write_text(path.read_text().replace("budget: {device_hours: 1.0}\n", ""))
    assert outcome(whole) == outcome(run(path, tmp_path / "unlimited.db"))


@pytest.mark.parametrize("optimizer", ["sgd, momentum: 0.9", "adagrad"])
def test_with_gangs_a_budget_for_less_than_one_trial_begins_none(tmp_path: Path, optimizer: str) -> None:
    path = write(tmp_path, "{name: inline}", "gangs: auto\nbudget: {device_hours: 1e-7}\n")
    path.write_text(path.read_text().replace("sgd, momentum: 0.9", optimizer))
    record = run(path, tmp_path / "x.db")
    assert not record.finished
    assert record.trials == ()


def test_a_budget_expects_what_such_a_trial_took_longest() -> None:
    budget = Budget(1.0, make_record())
    short, long = Proposal("train", Choice("constant"), 0.1, epochs=1), Proposal("train", Choice("constant"), 0.1)
    test = Proposal("range_test")
    before = budget.spent_seconds
    budget.learn("a", short, 10.0)
    budget.learn("a", short, 30.0)
    budget.learn("b", long, 100.0)
    assert budget.forecast("a", short) == budget.forecast("other", short) >= 30.0
    assert budget.forecast("c", test) >= 0.0
    budget.spend(3600 - before - 40)
    assert budget.allows(39)
    assert not budget.allows(41)
    assert Budget(None, make_record()).allows(1e9)


def test_a_budget_expects_all_of_a_trial_that_went_on_from_a_checkpoint() -> None:
    record = make_record()
    trial = record.trials[0]
    [attempt] = trial.attempts
    killed = replace(attempt, status="lost", phase_seconds={"train": 900.0, "lost": 50.0})
    resumed = replace(trial, attempts=(killed, replace(attempt, number=2, phase_seconds={"train": 100.0})))
    budget = Budget(1.0, replace(record, trials=(resumed,)))
    assert budget.forecast(trial.strategy, trial.proposal) == pytest.approx(1000.0)


def test_a_trial_that_has_ended_is_shown_before_the_next_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    publish = MirrorProcess.publish

    def noted(mirror: MirrorProcess, record: StudyRecord, trials: Any, live_points: Any = None) -> None:
        seen.extend(("shown", trial.uuid) for trial in trials if trial.status in FINISHED_STATUSES)
        publish(mirror, record, trials, live_points)

    class Watcher(Quiet):
        def curve_point(self, trial: TrialRecord, point: CurvePoint) -> None:
            seen.append(("trains", trial.uuid))

    monkeypatch.setattr(MirrorProcess, "publish", noted)
    path, database = write(tmp_path, "{name: inline}"), f"sqlite:///{tmp_path}/x.db"
    with open_store(database) as store:
        run_study(load_study(path), store, observer=Watcher(), mirror_url=database)
    trained = list(dict.fromkeys(uuid for what, uuid in seen if what == "trains"))
    assert len(trained) > 3
    for before, after in itertools.pairwise(trained):
        assert seen.index(("shown", before)) < seen.index(("trains", after))
    assert ("shown", trained[-1]) in seen


class Meddling(Quiet):
    """Does `meddle` when the trial with that number of grid's first seed has begun, and waits until it is `mended`."""

    def __init__(self, number: int, meddle: Callable[[], object], mended: Callable[[], bool]) -> None:
        super().__init__()
        self._number = number
        self._meddle = meddle
        self._mended = mended

    def trial_started(self, trial: TrialRecord) -> None:
        super().trial_started(trial)
        if (trial.strategy, trial.seed, trial.number) == ("grid", 0, self._number):
            self._meddle()
            deadline = time.monotonic() + 60
            while not self._mended():
                assert time.monotonic() < deadline
                time.sleep(0.02)


@pytest.mark.slow
def test_an_attempt_that_nobody_runs_is_closed_while_the_study_runs_and_its_trial_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every lease period the ledger is looked through; here a finished attempt is made to look like a running one."""
    monkeypatch.setattr(conductor, "LEASE_SECONDS", 0.2)
    database = tmp_path / "x.db"

    def meddle() -> None:
        with closing(sqlite3.connect(database)) as connection, connection:
            first = "(SELECT t.id FROM lrsearch_trial t JOIN lrsearch_search s ON t.search_id = s.id WHERE number = 0 "
            first += "AND strategy = 'grid' AND seed = 0)"
            connection.execute(f"UPDATE lrsearch_trial SET status = 'running' WHERE id = {first}")  # noqa: S608
            past = "status = 'running', finished_at = NULL, lease_expires_at = '2020-01-01 00:00:00'"
            connection.execute(f"UPDATE lrsearch_attempt SET {past} WHERE trial_id = {first}")  # noqa: S608

    def is_closed() -> bool:
        with closing(sqlite3.connect(database)) as connection:
            return bool(connection.execute("SELECT 1 FROM lrsearch_attempt WHERE status = 'lost'").fetchone())

    watcher = Meddling(1, meddle, is_closed)
    record = run(write(tmp_path, "{name: inline}"), database, watcher)
    assert record.finished
    [trial] = [one for one in record.search("grid", 0) if len(one.attempts) > 1]
    assert [attempt.status for attempt in trial.attempts] == ["lost", "finished"]
    assert trial.attempts[0].estimated
    assert trial.attempts[0].charged_device_seconds > 0
    assert sum("grid, seed 0, trial 0 (attempt 1" in message for message in watcher.messages) == 1
    assert outcome(record) == outcome(run(tmp_path / "study.yaml", tmp_path / "other.db"))
    assert check_database(f"sqlite:///{database}").faults == []


def one_search(folder: Path) -> Path:
    """Return the file of a study with the CLR run alone, of one seed."""
    path = write(folder, "{name: inline}", epochs=1)
    path.write_text(re.sub(r"  (grid|tpe): .*\n", "", path.read_text()).replace("[0, 1]", "[0]"))
    return path


def test_a_result_that_waits_to_be_written_is_not_taken_for_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an outage of the database that was longer than a lease: who looks the ledger through may come first."""
    monkeypatch.setattr(conductor, "LEASE_SECONDS", 0.02)
    database = tmp_path / "x.db"
    looks, reconcile = [], Store.reconcile

    def noted(store: Store, *arguments: Any) -> list[LostAttempt]:
        lost = reconcile(store, *arguments)
        looks.append(lost)
        return lost

    monkeypatch.setattr(Store, "reconcile", noted)

    class Watcher(Quiet):
        def message(self, text: str) -> None:
            super().message(text)
            if "range test" in text:  # which is told between its end and its result's commit
                with closing(sqlite3.connect(database)) as connection, connection:
                    connection.execute("UPDATE lrsearch_attempt SET lease_expires_at = '2020-01-01 00:00:00'")
                enough, deadline = len(looks) + 2, time.monotonic() + 60
                while len(looks) < enough:
                    assert time.monotonic() < deadline
                    time.sleep(0.005)

    with open_store(f"sqlite:///{database}") as store:
        record = run_study(load_study(one_search(tmp_path)), store, observer=Watcher())
    assert [[attempt.status for attempt in trial.attempts] for trial in record.trials] == [["finished"]] * 2
    assert not any(looks)


def test_a_claim_whose_answer_comes_late_is_not_taken_for_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its commit was the last that the database did before an outage that was longer than a lease."""
    monkeypatch.setattr(conductor, "LEASE_SECONDS", 0.02)
    database, begin, reconcile = tmp_path / "x.db", Store.begin_trials, Store.reconcile
    looks: list[list[LostAttempt]] = []

    def noted(store: Store, *arguments: Any) -> list[LostAttempt]:
        looks.append(reconcile(store, *arguments))
        return looks[-1]

    def answered_late(store: Store, *arguments: Any, **named: Any) -> list[Begun]:
        begun = begin(store, *arguments, **named)
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE lrsearch_attempt SET lease_expires_at = '2020-01-01 00:00:00'")
        enough, deadline = len(looks) + 1, time.monotonic() + 0.2
        while len(looks) < enough and time.monotonic() < deadline:
            time.sleep(0.005)
        return begun

    monkeypatch.setattr(Store, "reconcile", noted)
    monkeypatch.setattr(Store, "begin_trials", answered_late)
    with open_store(f"sqlite:///{database}") as store:
        record = run_study(load_study(one_search(tmp_path)), store, observer=Quiet())
    assert [[attempt.status for attempt in trial.attempts] for trial in record.trials] == [["finished"]] * 2
    assert not any(looks)


def test_an_observer_that_raises_when_a_trial_begins_leaves_no_attempt_running(tmp_path: Path) -> None:
    class Watcher(Quiet):
        def trial_started(self, trial: TrialRecord) -> None:
            raise ValueError("a fault of its own")

    path, url = write(tmp_path, "{name: inline}"), f"sqlite:///{tmp_path}/x.db"
    with open_store(url) as store:
        with pytest.raises(ValueError, match="of its own"):
            run_study(load_study(path), store, observer=Watcher())
        [trial] = store.record("small").trials
    assert trial.status == "planned"
    assert [(attempt.status, attempt.estimated) for attempt in trial.attempts] == [("interrupted", False)]


def test_a_study_that_cannot_write_any_more_does_not_wait_for_its_database_again_and_again(tmp_path: Path) -> None:
    class Watcher(Quiet):
        def curve_point(self, trial: TrialRecord, point: CurvePoint) -> None:
            raise StorageError("It has been away for too long.")

    with open_store(f"sqlite:///{tmp_path}/x.db") as store:
        with pytest.raises(StorageError, match="too long"):
            run_study(load_study(write(tmp_path, "{name: inline}")), store, observer=Watcher())
        assert store.absence.is_given_up


def test_a_study_that_gives_its_database_up_does_not_wait_until_the_reconciler_does_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conductor, "LEASE_SECONDS", 0.01)
    under_way, waiting = threading.Event(), threading.Event()

    def waits(store: Store, study_id: int, kept: object, alive: object = None) -> list[LostAttempt]:
        if under_way.is_set():
            waiting.set()
            deadline = time.monotonic() + 10
            while not store.absence.is_given_up:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        return []

    class Watcher(Quiet):
        def curve_point(self, trial: TrialRecord, point: CurvePoint) -> None:
            under_way.set()
            assert waiting.wait(10)
            raise StorageError("It has been away for too long.")

    watcher = Watcher()
    monkeypatch.setattr(Store, "reconcile", waits)
    with open_store(f"sqlite:///{tmp_path}/x.db") as store, pytest.raises(StorageError, match="too long"):
        run_study(load_study(write(tmp_path, "{name: inline}")), store, observer=watcher)
    assert not any("was not looked through" in text for text in watcher.messages)


def test_who_presses_ctrl_c_again_waits_for_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what cannot be stored any more does not hide that the study was stopped."""

    def press(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    def press_again(store: Store, *_: object, **__: object) -> None:
        assert not store.absence.is_given_up
        press()
        assert store.absence.is_given_up
        away()

    def away(*_: object) -> None:
        raise StorageError("The database does not answer.")

    watcher = Quiet()
    monkeypatch.setattr(watcher, "curve_point", press)
    monkeypatch.setattr(Store, "interrupt_attempt", press_again)
    monkeypatch.setattr(Store, "release", away)
    with open_store(f"sqlite:///{tmp_path}/x.db") as store, pytest.raises(KeyboardInterrupt) as stopped:
        run_study(load_study(write(tmp_path, "{name: inline}")), store, observer=watcher)
    assert str(stopped.value.__cause__) == "The database does not answer."


@pytest.mark.slow
def test_what_somebody_deletes_in_the_dashboard_comes_back_while_the_study_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conductor, "LEASE_SECONDS", 0.2)
    database = tmp_path / "x.db"
    name = "small/grid/0"

    def has_come_back() -> bool:
        return name in optuna.get_all_study_names(storage=f"sqlite:///{database}")

    watcher = Meddling(2, lambda: optuna.delete_study(study_name=name, storage=f"sqlite:///{database}"), has_come_back)
    record = run(write(tmp_path, "{name: inline}"), database, watcher)
    assert record.finished
    assert check_database(f"sqlite:///{database}").notes == []
    shown = optuna.load_study(study_name=name, storage=f"sqlite:///{database}").trials
    assert sorted(one.user_attrs["uuid"] for one in shown) == sorted(t.uuid for t in record.search("grid", 0))
