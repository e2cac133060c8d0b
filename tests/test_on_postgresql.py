"""Whole studies on a real PostgreSQL, by the real program: the same results as on SQLite, whatever the server does.

`LRSEARCH_OUTAGES` (default 3) is how often the server goes away in the middle of each study; `make outages` sets 30.
"""

from __future__ import annotations

import csv
import itertools
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, LiteralString

import psycopg
import pytest

from lrsearch.storage.export import TableName, export_rows
from lrsearch.storage.store import open_store
from lrsearch.storage.upkeep import LEASE_SECONDS
from tests.postgresql import PASSWORD, USER, Server

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(3600)]

OUTAGES = int(os.environ.get("LRSEARCH_OUTAGES", "3"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STUDY = """\
version: 1
name: everything
workload: {name: digits, batch_size: 64, train_limit: 400}
training: {epochs: 1, optimizer: {name: sgd, momentum: 0.9}, device: cpu}
seeds: [0]
rates: {low: 1e-4, high: 100}
target: {metric: accuracy, value: 0.5}
strategies:
  grid: {name: grid, points: 3}
  tpe: {name: optuna_search, trials: 4, search: {momentum: {low: 0.5, high: 0.99}}}
  halving: {name: successive_halving, trials: 4}
  clr: {name: range_tested, schedule: {name: triangular2, cycles: 1}}
  default: {name: default_rate}
"""
LONG = f"""\
version: 1
name: long
workload: {{name: digits, batch_size: 32}}
training: {{epochs: 25, optimizer: {{name: sgd, momentum: 0.9}}, device: cpu}}
seeds: [0]
rates: {{low: 1e-4, high: 1}}
strategies:
  grid: {{name: grid, points: {5 * OUTAGES}}}
"""
"""Enough trials of one to two seconds for one in the middle of which each outage falls."""
WEARING = """
import pathlib, time, torch

def data():
    inputs = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    targets = (inputs.sum(1) > 0).long()
    return (inputs[:120], targets[:120]), (inputs[120:], targets[120:])

class Model(torch.nn.Linear):
    calls = 0

    def forward(self, inputs):
        self.calls += 1
        if self.calls > 20 and pathlib.Path(__file__).with_name("worn").exists():
            raise RuntimeError("worn out")
        time.sleep(0.004)
        return super().forward(inputs)

def model():
    return Model(4, 2)
"""
"""A user's module whose models fail in their trials, not while these are prepared, for as long as a file lies there."""
WEARING_STUDY = """\
version: 1
name: wearing
workload: {name: callable, model: 'wearing:model', data: 'wearing:data', batch_size: 8, python_path: .}
training: {epochs: 30, device: cpu, optimizer: {name: sgd}}
gangs: off
seeds: [0]
rates: {low: 1e-3, high: 1.0}
strategies:
  grid: {name: grid, points: 10}
"""
PREPARATION_SECONDS = 40
"""What a busy machine may need to import torch and to get ready: less than a lease less 10 s."""
OTHERS: LiteralString = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
"""Who is connected to the same database."""
DRAWN = re.compile(
    r"uuid|_records?$|_seconds$|seconds_to_target|evaluations|started_at|finished_at|owner|energy|peak_device"
)
"""Columns that differ from run to run."""


BOTH, NEWEST = [15, 18], [pytest.param(15, marks=pytest.mark.postgres_long), 18]
"""What is about leases rather than about SQL runs on the older version only where there is time for it."""


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(request.param)
    yield server
    server.close()


def lrsearch(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "lrsearch", *arguments],
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr
    return done


def exported(url: str, study: str) -> Mapping[str, list[dict[str, Any]]]:
    """Return the four tables of `lrsearch export`, without what differs from run to run."""
    with open_store(url, must_exist=True) as store:
        record = store.record(study)
    tables: tuple[TableName, ...] = ("trials", "attempts", "curves", "range_tests")
    return {
        table: [
            {key: value for key, value in row.items() if not DRAWN.search(key)} for row in export_rows(record, table)
        ]
        for table in tables
    }


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The database of both studies, run without a fault on SQLite."""
    folder = tmp_path_factory.mktemp("sqlite")
    for text in (STUDY, LONG):
        (folder / "study.yaml").write_text(text)
        lrsearch(folder, "run-study", "study.yaml")
    return f"sqlite:///{folder / 'lrsearch.db'}"


@pytest.mark.parametrize("server", BOTH, indirect=True)
def test_a_study_is_the_same_on_sqlite_and_on_postgresql(server: Server, on_sqlite: str, tmp_path: Path) -> None:
    """Run, continue, export, report, show and list, with the password from libpq's password file."""
    url = server.new_database()
    database = url.rpartition("/")[2]
    secret = tmp_path / "pgpass"
    secret.write_text(f"127.0.0.1:{server.port}:{database}:{USER}:{PASSWORD}\n")
    secret.chmod(0o600)
    here = {
        "PGPASSFILE": str(secret),
        "LRSEARCH_DATABASE": f"postgresql://{USER}@127.0.0.1:{server.port}/{database}",
    }
    (tmp_path / "study.yaml").write_text(STUDY)
    lrsearch(tmp_path, "run-study", "study.yaml", **here)
    assert "is finished" in lrsearch(tmp_path, "run-study", "study.yaml", **here).stderr
    found = exported(url, "everything")
    assert found == exported(on_sqlite, "everything")
    assert len(found["trials"]) > 10
    assert found["range_tests"] != []
    table = csv.DictReader(lrsearch(tmp_path, "export", "everything", "--table", "trials", **here).stdout.splitlines())
    assert [float(row["train_steps"]) for row in table] == [row["train_steps"] for row in found["trials"]]
    assert "everything" in lrsearch(tmp_path, "ls", **here).stdout
    assert "tpe" in lrsearch(tmp_path, "show", "everything", **here).stdout
    lrsearch(tmp_path, "report", "everything", **here)
    assert PASSWORD not in (tmp_path / "reports" / "everything.html").read_text()


@pytest.mark.parametrize("server", BOTH, indirect=True)
def test_a_study_outlives_its_database(server: Server, on_sqlite: str, tmp_path: Path) -> None:
    """The server stops, crashes and is killed in the middle of trials, and is away for 2 to 10 s, once for 30 s."""
    url = server.new_database()
    (tmp_path / "study.yaml").write_text(LONG)
    draw = random.Random(server.major)
    ways = itertools.islice(itertools.cycle(("fast", "immediate", "kill")), OUTAGES)
    heard = tmp_path / "heard.txt"
    with heard.open("w") as file:
        process = _start(tmp_path, url, stderr=file)
    for number, how in enumerate(ways):
        assert _wait_until_a_trial_runs(url, process), f"ended before outage {number}: {heard.read_text()}"
        time.sleep(draw.uniform(0, 0.2))
        server.kill() if how == "kill" else server.stop(how)
        time.sleep(draw.uniform(2, 10) if number != 3 else 30)
        server.start()
        _wait_until_it_says("Database away for ", number + 1, heard)
    assert process.wait(timeout=3000) == 0, heard.read_text()
    said = heard.read_text()
    assert said.count("Database away for ") == OUTAGES, said
    assert "Traceback" not in said
    assert PASSWORD not in said
    assert exported(url, "long") == exported(on_sqlite, "long")


@pytest.mark.parametrize("server", NEWEST, indirect=True)
def test_a_killed_study_goes_on_on_postgresql(server: Server, on_sqlite: str, tmp_path: Path) -> None:
    url = server.new_database()
    (tmp_path / "study.yaml").write_text(LONG)
    landed = 0
    for pause in (0.3, 0.6):
        process = _start(tmp_path, url)
        assert _wait_until_a_trial_runs(url, process)
        time.sleep(pause)
        process.kill()
        process.communicate()
        time.sleep(1)  # after which it has not just begun any more
        with psycopg.connect(url, autocommit=True) as connection:  # else it would see the same others again
            while _count(connection, OTHERS):  # what the server was committing when its client died may still come
                time.sleep(0.1)
            landed += _count(connection, "SELECT count(*) FROM lrsearch_attempt WHERE status = 'running'")
    process = _start(tmp_path, url)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    found, expected = exported(url, "long"), exported(on_sqlite, "long")
    statuses = [row["status"] for row in found["attempts"]]
    assert statuses.count("lost") == landed > 0
    assert statuses.count("finished") == len(expected["attempts"])
    ended = ("attempts", "attempt", "estimated")
    for table in ("trials", "curves"):
        assert _without(found[table], ended) == _without(expected[table], ended)


@pytest.mark.parametrize("server", BOTH, indirect=True)
def test_four_processes_that_begin_a_study_at_once_all_end_well(server: Server, on_sqlite: str, tmp_path: Path) -> None:
    """One of them runs it, three wait for it."""
    url = server.new_database()
    (tmp_path / "study.yaml").write_text(STUDY)
    processes = [_start(tmp_path, url) for _ in range(4)]
    said = [process.communicate(timeout=900)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert ["Waiting until it ends" in text for text in said].count(True) == 3, said
    assert "Traceback" not in "".join(said)
    with open_store(url) as store:
        assert [study.version for study in store.studies()] == [1]
        assert all(len(trial.attempts) == 1 for trial in store.record("everything").trials)
    assert exported(url, "everything") == exported(on_sqlite, "everything")


@pytest.mark.parametrize("on", ["this machine", "another machine"])
@pytest.mark.parametrize("server", NEWEST, indirect=True)
def test_when_the_process_that_runs_a_study_is_killed_another_takes_it_over(
    server: Server, on_sqlite: str, tmp_path: Path, on: str
) -> None:
    """Within one lease; at once on the same machine, where the others see that it is dead."""
    unshare = (
        ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"] if on == "another machine" else []
    )
    if unshare and (os.geteuid() != 0 or subprocess.run([*unshare, "true"]).returncode != 0):
        pytest.skip("a process under another host's name needs a namespace, which only root may make")
    url = server.new_database()
    (tmp_path / "study.yaml").write_text(LONG)
    first = _start(tmp_path, url, *unshare)
    assert _wait_until_a_trial_runs(url, first)
    others = [_start(tmp_path, url) for _ in range(3)]
    assert [_line_with(process, "Waiting until it ends") for process in others] == [True] * 3
    assert _wait_until_a_trial_runs(url, first)
    first.kill()
    killed_at = datetime.now(UTC)
    first.communicate()
    said = [process.communicate(timeout=900)[1] for process in others]
    assert [process.returncode for process in others] == [0] * 3, said
    assert "Traceback" not in "".join(said)
    assert "Continuing after a kill" in "".join(said)
    with open_store(url) as store:
        trials = store.record("long").trials
    [broken] = [trial for trial in trials if len(trial.attempts) > 1]
    lost, finished = broken.attempts
    assert (lost.status, lost.estimated, finished.status) == ("lost", True, "finished")
    waited = (finished.started_at - killed_at).total_seconds()
    assert waited < (LEASE_SECONDS if unshare else 10) + PREPARATION_SECONDS
    if unshare:
        assert waited > LEASE_SECONDS - 5, "nobody can see that it is dead"
    for table in ("trials", "curves"):
        ended = ("attempts", "attempt", "estimated")
        assert _without(exported(url, "long")[table], ended) == _without(exported(on_sqlite, "long")[table], ended)


@pytest.mark.parametrize("server", NEWEST, indirect=True)
def test_who_waited_for_a_study_that_fails_says_so_and_runs_nothing(server: Server, tmp_path: Path) -> None:
    """And whoever then types the command again, the cause mended, has the trials that were not tried."""
    url = server.new_database()
    (tmp_path / "study.yaml").write_text(WEARING_STUDY)
    (tmp_path / "wearing.py").write_text(WEARING)
    worn = tmp_path / "worn"
    first = _start(tmp_path, url)
    assert _wait_until_a_trial_runs(url, first)
    others = [_start(tmp_path, url) for _ in range(3)]
    assert [_line_with(process, "Waiting until it ends") for process in others] == [True] * 3
    assert first.poll() is None
    worn.touch()
    said = [" ".join(process.communicate(timeout=900)[1].split()) for process in (first, *others)]
    assert [process.returncode for process in (first, *others)] == [5] * 4, said
    assert "Stopped after 3 trials in a row failed in the same way: RuntimeError: worn out" in said[0]
    for text in said[1:]:
        assert "Study 'wearing' has failed in the process that was waited for." in text
        assert "Stopped after 3 trials in a row failed in the same way: RuntimeError: worn out" in text
        assert "start a new version with --fresh" in text
    tried = exported(url, "wearing")["trials"]
    assert [row["status"] for row in tried].count("failed") == 3
    worn.unlink()
    lrsearch(tmp_path, "run-study", "study.yaml", LRSEARCH_DATABASE=url)
    trials = exported(url, "wearing")["trials"]
    assert len(trials) == 10
    assert trials[: len(tried)] == tried
    assert {row["status"] for row in trials[len(tried) :]} == {"completed"}


def _line_with(process: subprocess.Popen[str], words: str) -> bool:
    """Read what the process says up to the line that has these words; return False when it never comes."""
    assert process.stderr is not None
    return any(words in line for line in process.stderr)


def _count(connection: psycopg.Connection[Any], statement: LiteralString) -> int:
    row = connection.execute(statement).fetchone()
    return int(row[0]) if row else 0


def _without(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in columns} for row in rows]


def _start(folder: Path, url: str, *prefix: str, stderr: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "lrsearch", "run-study", "study.yaml"],
        cwd=folder,
        env={**ENVIRONMENT, "LRSEARCH_DATABASE": url},
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
    )


def _wait_until_it_says(words: str, times: int, heard: Path) -> None:
    """Wait until a study has said these words so often: it has noticed that its database was away, and is back."""
    deadline = time.monotonic() + 120
    while heard.read_text().count(words) < times:
        assert time.monotonic() < deadline, f"not said {times} times: {words!r} in {heard.read_text()}"
        time.sleep(0.05)


def _wait_until_a_trial_runs(url: str, process: subprocess.Popen[Any]) -> bool:
    """Return True once a trial has just begun, False when the study has ended."""
    running: LiteralString = (
        "SELECT count(*) FROM lrsearch_attempt WHERE status = 'running' AND now() - started_at < interval '0.5 s'"
    )
    while process.poll() is None:
        try:
            with psycopg.connect(url) as connection:
                if _count(connection, running) == 1:
                    return True
        except psycopg.Error:  # the study has not made its tables yet
            pass
        time.sleep(0.05)
    return False
