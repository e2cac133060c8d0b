"""Runs a small study in processes of its own, kills them at random, and compares what is left with an unbroken run."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import optuna
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from lrsearch.config import load_study
from lrsearch.storage import schema
from lrsearch.storage.engine import make_engine, parse_url, sqlite_path
from lrsearch.storage.store import open_store
from lrsearch.study import run_study
from lrsearch.trial import AttemptRecord, StudyRecord
from tests.processes import workers_of
from tests.test_study import Quiet, outcome

USER = """
import time

import torch

def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(160, 4, generator=generator)
    targets = (inputs.sum(1) > 0).long()
    return (inputs[:120], targets[:120]), (inputs[120:], targets[120:])

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 2))

    def forward(self, inputs):
        if self.training:
            time.sleep(0.004)  # a trial takes its time, but not the processor's
        return self.layers(inputs)

def model():
    return Model()
"""
FILE = """
version: 1
name: small
workload: {{name: callable, model: 'slow_user:model', data: 'slow_user:data', batch_size: 8, python_path: .}}
training: {{epochs: {epochs}, device: cpu, optimizer: {{name: sgd, momentum: 0.9}}}}
seeds: [0, 1]
rates: {{low: 1e-3, high: 1.0}}
strategies:{ways}
executor: {executor}
checkpoint: {{every_seconds: 0.2, folder: states}}
"""
WAYS = """
  grid: {name: grid, points: 2, schedule: {name: constant}}
  tpe: {name: optuna_search, sampler: tpe, trials: 2, startup_trials: 1}
  clr: {name: range_tested, min_steps: 20, range_epochs: 1, schedule: {name: triangular2, cycles: 2}}"""
GRID = """
  grid: {name: grid, points: 3, schedule: {name: constant}}"""
TOGETHER = """
  grid: {name: grid, points: 3, schedule: {name: constant}}
  random: {name: random_search, trials: 2, schedule: {name: constant}}
  tpe: {name: optuna_search, sampler: tpe, trials: 2, startup_trials: 1}"""
INLINE = "{name: inline}"
PROCESSES = "{name: process, slots: 2, threads_per_slot: 1}"


def write(folder: Path, executor: str = PROCESSES, epochs: int = 16, ways: str = WAYS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "slow_user.py").write_text(USER)
    path = folder / "study.yaml"
    path.write_text(FILE.format(executor=executor, epochs=epochs, ways=ways))
    return path


def write_together(folder: Path, executor: str, epochs: int = 16) -> Path:
    """Write a study whose trials train together: so the model, which mostly sleeps, sleeps once for all of them."""
    path = write(folder, executor, epochs, TOGETHER)
    path.write_text(f"{path.read_text()}gangs: auto\n")
    return path


def unbroken(folder: Path, executor: str = PROCESSES, epochs: int = 16, ways: str = WAYS) -> StudyRecord:
    path = write(folder, executor, epochs, ways)
    with open_store(f"sqlite:///{folder / 'unbroken.db'}") as store:
        return run_study(load_study(path), store, observer=Quiet())


def on_sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'broken.db'}"


def start(path: Path, url: str, **variables: str) -> subprocess.Popen[bytes]:
    """Start the study; what it says is appended to a file beside the study's."""
    command = [sys.executable, "-m", "lrsearch", "run-study", str(path)]
    with (path.parent / "broken.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--report", str(path.parent / "report.html")],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1", "LRSEARCH_DATABASE": url, **variables},
        )


def said(folder: Path) -> str:
    """Return all that the studies that were started in `folder` have said."""
    return (folder / "broken.log").read_text()


def running_attempts(url: str) -> dict[tuple[str, int], datetime]:
    """Return trial and number of the attempts that run, and when they began."""
    file = sqlite_path(parse_url(url))
    if file is not None and not file.exists():
        return {}
    trials, attempts = schema.trial.c, schema.attempt.c
    of_running = (attempts.status == "running", attempts.trial_id == trials.id)
    running = sa.select(trials.uuid, attempts.number, attempts.started_at).where(*of_running)
    try:
        with _engine(url).connect() as connection:
            return {(uuid, number): began for uuid, number, began in connection.execute(running)}
    except DBAPIError:  # its tables are not made yet
        return {}
    finally:
        _engine(url).dispose()  # connections of an engine that is forgotten are no test's business to close


@functools.lru_cache(maxsize=1)
def _engine(url: str) -> sa.Engine:
    return make_engine(parse_url(url))


@dataclass
class Kill:
    of: str
    at: datetime
    running: dict[tuple[str, int], datetime]
    """The attempts inside which it landed."""


@dataclass
class Figures:
    kills: list[Kill] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    """Seconds from the start of a process to its first running attempt."""
    studies: int = 0
    lost_attempts: int = 0
    errors: list[float] = field(default_factory=list)
    """By how many seconds the cost of an attempt, whose orchestrator was killed, differs from the truth."""
    resumed: int = 0
    """Trials that went on from a checkpoint."""

    def __str__(self) -> str:
        landed = sum(len(kill.running) > 0 for kill in self.kills)
        by = {name: sum(kill.of == name for kill in self.kills) for name in ("orchestrator", "worker")}
        restarts, errors = sorted(self.restarts), sorted(map(abs, self.errors))
        return (
            f"{len(self.kills)} kills {by}, {landed} inside running attempts, {self.studies} studies, "
            f"{self.lost_attempts} lost attempts, {self.resumed} resumed from a checkpoint; restart to running median "
            f"{restarts[len(restarts) // 2]:.1f} s, longest {restarts[-1]:.1f} s; cost off by at most "
            f"{errors[-1] if errors else 0:.2f} s"
        )


def run_with_kills(folder: Path, url: str, chance: random.Random, kills: int, figures: Figures) -> StudyRecord:
    """Run one study to its end, killing orchestrator or worker up to `kills` times while attempts run."""
    path = write(folder)
    done = 0
    while True:
        process, began = start(path, url), time.monotonic()
        known = set(running_attempts(url))
        if await_attempt(process, url, known):
            figures.restarts.append(time.monotonic() - began)
        while done < kills and process.poll() is None:
            time.sleep(chance.uniform(0.05, 1.2))
            victims = [("orchestrator", process.pid), *(("worker", pid) for pid in workers_of(process.pid))]
            name, pid = chance.choice(victims[1:] if victims[1:] and chance.random() < 0.6 else victims[:1])
            running = running_attempts(url)
            if not running or process.poll() is not None:
                if process.poll() is None:
                    await_attempt(process, url, set())
                continue
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            figures.kills.append(Kill(name, datetime.now(UTC), running))
            done += 1
            if name == "orchestrator":
                process.wait()
            else:
                await_attempt(process, url, set(running))
        code = process.wait(timeout=300)
        if code == 0:
            break
        assert code == -signal.SIGKILL, said(folder)
    figures.studies += 1
    with open_store(url) as store:
        return store.record("small")


def await_attempt(process: subprocess.Popen[bytes], url: str, known: set[tuple[str, int]]) -> bool:
    """Wait until an attempt runs that was not `known`; return False when the study ended before."""
    deadline = time.monotonic() + 240
    while process.poll() is None:
        if set(running_attempts(url)) - known:
            return True
        assert time.monotonic() < deadline, "no attempt began"
        time.sleep(0.02)
    return False


def check(record: StudyRecord, expected: StudyRecord, folder: Path, url: str, figures: Figures) -> None:
    """Nothing lost, nothing twice, the same results, the cost within a heartbeat, nothing left behind."""
    assert record.finished
    assert outcome(record) == outcome(expected)
    for trial in record.trials:
        assert [attempt.status for attempt in trial.attempts].count("finished") == 1, trial.attempts
        assert trial.attempts[-1].status == "finished"
        assert [attempt.number for attempt in trial.attempts] == list(range(1, len(trial.attempts) + 1))
        figures.resumed += any(_kept(attempt) for attempt in trial.attempts[:-1])
    numbers = [(trial.strategy, trial.seed, trial.number) for trial in record.trials]
    assert len(set(numbers)) == len(numbers)
    attempts = {(t.uuid, a.number): a for t in record.trials for a in t.attempts}
    figures.lost_attempts += sum(attempt.status == "lost" for attempt in attempts.values())
    _check_costs(attempts, figures)
    _check_mirror(record, url)
    assert "Traceback" not in said(folder), said(folder)
    assert not list((folder / "states").glob("*")), "no checkpoint outlives its trial"


def _kept(attempt: AttemptRecord) -> bool:
    return attempt.phase_seconds.get("train", 0.0) > 0


def _check_costs(attempts: dict[tuple[str, int], AttemptRecord], figures: Figures) -> None:
    for kill in figures.kills:
        for key, began in kill.running.items():
            attempt = attempts.get(key)
            if kill.of != "orchestrator" or attempt is None or not attempt.estimated:
                continue
            truth = (kill.at - began).total_seconds()
            figures.errors.append(sum(attempt.phase_seconds.values()) - truth)


def _check_mirror(record: StudyRecord, url: str) -> None:
    storage = optuna.storages.RDBStorage(parse_url(url).render_as_string(hide_password=False))
    for strategy in record.strategies:
        for seed in record.seeds:
            shown = optuna.load_study(study_name=f"small/{strategy}/{seed}", storage=storage).trials
            assert {one.user_attrs["uuid"] for one in shown} == {t.uuid for t in record.search(strategy, seed)}
            assert len(shown) == len(record.search(strategy, seed))
            assert all(one.state.is_finished() for one in shown)
    storage.remove_session()
    storage.engine.dispose()
