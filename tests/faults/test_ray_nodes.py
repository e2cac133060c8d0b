"""Nodes of a Ray cluster that die or fall silent while a study runs on them; a study that dies on a Ray of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lrsearch import checkpoint
from lrsearch.config import load_study
from lrsearch.errors import StorageError
from lrsearch.storage.engine import parse_url, sqlite_path
from lrsearch.storage.store import open_store
from lrsearch.study import run_study
from lrsearch.trial import StudyRecord
from tests.faults.harness import on_sqlite, running_attempts, said, start, unbroken, write, write_together
from tests.processes import lives
from tests.ray_cluster import ROOT, Nodes, descendants, freeze, processes_of, running, thaw
from tests.records import some
from tests.test_study import Quiet, outcome

HEARD_WITHIN = 1.5
"""Seconds: a node answers once a second, and a busy machine is slow."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with running() as nodes:
        nodes.add()
        yield nodes


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    return unbroken(tmp_path_factory.mktemp("unbroken"), "{name: inline}", epochs=EPOCHS)


EPOCHS = 50
"""A trial takes three seconds, and keeps its state every 0.2 s: another node is there before the study ends."""
BUSY_SECONDS = 0.8
KEPT_SECONDS = 0.2


class Study:
    """A study on Ray, in a process of its own."""

    def __init__(self, folder: Path, settings: str, write: Callable[[Path, str, int], Path] = write) -> None:
        self.url = on_sqlite(folder)
        self.path = write(folder, f"{{name: ray, {settings}}}", EPOCHS)
        self.process = start(self.path, self.url)

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not what():
            assert self.process.poll() in (None, 0), self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def wait_until_busy(self, slots: int) -> None:
        """Wait until so many attempts have run for so long that each has a checkpoint."""
        assert self.becomes_busy(slots), self.log

    def becomes_busy(self, slots: int) -> bool:
        """Wait for that; return False when the study ended before."""
        self.wait_for(lambda: _busy(self.url) == self._kept() == slots or self.process.poll() == 0)
        return self.process.poll() is None

    def _kept(self) -> int:
        """Return how many of the running attempts have a checkpoint here of work that is worth keeping."""
        folder = load_study(self.path).checkpoint_folder(sqlite_path(parse_url(self.url)))
        count = 0
        for uuid, number in running_attempts(self.url):
            with contextlib.suppress(StorageError):  # the next one is taking its place
                kept = checkpoint.kept(folder, uuid, number)
                count += kept is not None and kept.charged["train"] > KEPT_SECONDS
        return count

    @property
    def log(self) -> str:
        return said(self.path.parent)

    def record(self) -> StudyRecord:
        assert self.process.wait(timeout=200) == 0, self.log
        assert "Traceback" not in self.log
        with open_store(self.url) as store:
            return store.record("small")


def _busy(url: str) -> int:
    now = datetime.now(UTC)
    return sum((now - began).total_seconds() > BUSY_SECONDS for began in running_attempts(url).values())


def worker_of(node: Any) -> int:
    """Return the process in which the node's trials run."""
    [worker] = [pid for pid in processes_of(node) if b"lrsearch.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return worker


def check(record: StudyRecord, expected: StudyRecord, fault: datetime) -> None:
    """The same results, one attempt lost, and charged to within a heartbeat of the fault."""
    assert outcome(record) == outcome(expected)
    attempts = [attempt for trial in record.trials for attempt in trial.attempts]
    assert all([a.status for a in trial.attempts].count("finished") == 1 for trial in record.trials)
    [lost] = [attempt for attempt in attempts if attempt.status == "lost"]
    truth = (fault - lost.started_at).total_seconds()
    assert sum(lost.phase_seconds.values()) == pytest.approx(truth, abs=HEARD_WITHIN)
    assert lost.phase_seconds["train"] > KEPT_SECONDS, (
        "its checkpoints had come back, and the next attempt went on from the last"
    )
    [event] = [event for event in record.events if event.kind == "run"]
    explained = sum(sum(trial.phase_seconds.values()) for trial in record.trials)
    assert explained == pytest.approx(event.data["held_seconds"], rel=0.02)
    assert event.data["seconds_out_of_reach"] > 0


@pytest.mark.ray
def test_a_node_that_dies_costs_one_attempt_and_another_takes_its_place(
    nodes: Nodes, expected: StudyRecord, tmp_path: Path
) -> None:
    victim = nodes.add()
    study = Study(tmp_path, f"address: '{nodes.address}', lost_after_seconds: 4")
    study.wait_until_busy(2)
    died = datetime.now(UTC)
    nodes.kill(victim)
    study.wait_for(lambda: "runs again: its Ray worker on the node" in study.log)
    another = nodes.add()
    study.wait_until_busy(2)
    record = study.record()
    nodes.kill(another)
    check(record, expected, died)


@pytest.mark.ray
def test_a_node_that_falls_silent_is_given_up_and_what_it_still_does_counts_no_more(
    nodes: Nodes, expected: StudyRecord, tmp_path: Path
) -> None:
    """It is frozen with all its processes, and wakes up, still at work on its trial, when that runs elsewhere."""
    silent = nodes.add()
    study = Study(tmp_path, f"address: '{nodes.address}', lost_after_seconds: 4")
    study.wait_until_busy(2)
    processes, worker = processes_of(silent), worker_of(silent)
    frozen = datetime.now(UTC)
    freeze(processes)
    study.wait_for(lambda: "has not answered for 4 s" in study.log)
    assert (datetime.now(UTC) - frozen).total_seconds() < 4 + 2 * HEARD_WITHIN
    thaw(processes)
    study.wait_for(lambda: not Path(f"/proc/{worker}").exists())
    record = study.record()
    nodes.kill(silent)
    check(record, expected, frozen)


@pytest.fixture(scope="module")
def together(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    """A study whose trials train together, on one slot."""
    folder = tmp_path_factory.mktemp("together")
    path = write_together(folder, "{name: process, slots: 1, threads_per_slot: 1}", EPOCHS)
    with open_store(on_sqlite(folder)) as store:
        return run_study(load_study(path), store, observer=Quiet())


@pytest.mark.ray_long
@pytest.mark.parametrize("what", ["process", "node"])
def test_what_dies_under_trials_that_train_together_costs_each_an_attempt_and_they_go_on_alone(
    nodes: Nodes, together: StudyRecord, tmp_path: Path, what: str
) -> None:
    victim = nodes.add()
    study = Study(tmp_path, f"address: '{nodes.address}', lost_after_seconds: 4", write_together)
    study.wait_for(lambda: 3 < _busy(study.url) == len(running_attempts(study.url)))
    running = {uuid for uuid, _ in running_attempts(study.url)}
    study.wait_for(lambda: all(list((tmp_path / "states").glob(f"{uuid}.*.ckpt")) for uuid in running))
    died = datetime.now(UTC)
    if what == "node":
        nodes.kill(victim)
    else:
        os.kill(worker_of(victim), signal.SIGKILL)
    record = study.record()
    if what == "process":
        nodes.kill(victim)
    broken = [trial for trial in record.trials if len(trial.attempts) > 1]
    assert len(broken) > 1
    for trial in broken:
        lost, finished = trial.attempts
        assert trial.uuid in running
        assert (lost.status, finished.status, trial.gang_size) == ("lost", "finished", 1)
        spent = lost.billed_seconds * len(broken)
        assert spent == pytest.approx((died - lost.started_at).total_seconds(), abs=HEARD_WITHIN)
        assert lost.phase_seconds["train"] > 0, "its checkpoint had come back, and its next attempt went on from it"
    assert any(trial.gang_size > 1 for trial in record.trials)
    for trial, other in zip(record.trials, together.trials, strict=True):
        assert (trial.strategy, trial.seed, trial.number) == (other.strategy, other.seed, other.number)
        assert trial.status == other.status
        if other.status == "completed":
            found, expected = some(trial.result).validation_loss, some(other.result).validation_loss
            assert found == pytest.approx(expected, rel=1e-3), "up to rounding"
    [event] = [event for event in record.events if event.kind == "run"]
    billed = sum(attempt.billed_seconds for trial in record.trials for attempt in trial.attempts)
    assert billed == pytest.approx(event.data["held_seconds"], rel=0.02)


@pytest.mark.ray_long
def test_when_all_nodes_are_lost_the_study_stops_and_the_same_command_goes_on(
    nodes: Nodes, expected: StudyRecord, tmp_path: Path
) -> None:
    [only] = nodes.cluster.worker_nodes
    settings = f"slots: 1, address: '{nodes.address}'"
    study = Study(tmp_path, f"{settings}, wait_seconds: 10")
    study.wait_until_busy(1)
    nodes.kill(only)
    assert study.process.wait(timeout=60) == 9, study.log
    assert "Ray has had no others for 10 s" in study.log.replace("\n", " ")
    assert "the same command continues when they are back" in study.log.replace("\n", " ")
    nodes.add()
    assert outcome(Study(tmp_path, settings).record()) == outcome(expected)


# On a Ray of its own


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.ray),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.ray_long),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.ray_long),
    ],
)
def test_a_study_that_is_stopped_or_killed_leaves_no_process_and_goes_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C reaches the terminal's whole foreground group, in which Ray's own processes are too."""
    path, url = write(tmp_path, "{name: ray}", EPOCHS), on_sqlite(tmp_path)
    command = [sys.executable, "-m", "lrsearch", "run-study", str(path), "--database", url]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    main_side, terminal = pty.openpty()
    process = subprocess.Popen(
        [*command, "--report", str(tmp_path / "report.html")],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    os.close(terminal)
    shown: list[bytes] = []
    reader = threading.Thread(target=_read_all, args=(main_side, shown))
    reader.start()
    deadline = time.monotonic() + 120
    while _busy(url) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Ray's two agents, which do nothing by themselves, notice an end by SIGKILL only some minutes later.
    children = [pid for pid in descendants(process.pid) if b"Agent" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(children) > 5, "Ray's processes, and two of ours"
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    assert process.wait(timeout=60) == code
    deadline = time.monotonic() + 60
    while left := [pid for pid in children if lives(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    reader.join()
    os.close(main_side)
    said = re.sub(rb"\s+", b" ", b"".join(shown))
    assert b"Traceback" not in said
    with open_store(url) as store:
        attempts = [attempt for trial in store.record("small").trials for attempt in trial.attempts]
    if number == signal.SIGKILL:
        assert [one.status for one in attempts].count("running") == 2
        return
    assert b"To continue: lrsearch run-study" in said
    assert [one.status for one in attempts].count("interrupted") == 2


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.ray_long),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.ray),
    ],
)
def test_a_study_that_is_stopped_while_ray_starts_leaves_no_process(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    path, url = write(tmp_path, "{name: ray}", EPOCHS), on_sqlite(tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "lrsearch", "run-study", str(path), "--database", url],
            cwd=tmp_path,
            stderr=said,
            env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
    deadline = time.monotonic() + 60
    while not any(b"agent" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(process.pid)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = descendants(process.pid)
    process.send_signal(number)
    assert process.wait(timeout=60) == code, (tmp_path / "said").read_text()
    assert "Stopped; what has finished is stored" in (tmp_path / "said").read_text()
    deadline = time.monotonic() + 60
    while left := [pid for pid in children if lives(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _read_all(descriptor: int, into: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # its other side is closed
        while part := os.read(descriptor, 65536):
            into.append(part)
