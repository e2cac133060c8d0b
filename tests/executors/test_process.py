"""Trials in processes of their own: equal to those inline, and what dies there takes one attempt with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from lrsearch import worker
from lrsearch.environment import DECODERS_VARIABLE
from lrsearch.errors import UsageError, WorkerDiedError, WorkloadError
from lrsearch.executors.process import Process, ProcessExecutor
from lrsearch.forked import Forker
from lrsearch.trial import CheckpointPlan, Choice
from tests.executors.contract import PATIENCE_SECONDS, TRIAL, Does, Listener, SlotsContract, do
from tests.processes import children, lives
from tests.resuming import spec


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRSEARCH_DATABASE", "postgresql://somewhere")
        started = Process(slots=2, threads_per_slot=1, patience_seconds=PATIENCE_SECONDS).start("cpu")
        started.prepare(Does("pid"))
        yield started
        started.close()


class TestProcess(SlotsContract):
    """Nothing special."""


def test_each_slot_has_a_process_and_keeps_it(executor: ProcessExecutor) -> None:
    pids = [do(executor, "pid", slot) for slot in (0, 1, 0, 1)]
    assert pids[:2] == pids[2:] == executor.pids
    assert len({*pids, os.getpid()}) == 3


def test_a_preparation_that_takes_its_process_down_is_the_users_to_mend() -> None:
    executor = Process(slots=1).start("cpu")
    with pytest.raises(WorkloadError, match=r"model or the data cannot be used: its process was ended by SIGSEGV"):
        executor.prepare(Does("segfault"))
    executor.close()


def test_closing_ends_a_process_whatever_it_does() -> None:
    executor = Process(slots=1).start("cpu")
    executor.prepare(Does("pid"))
    [pid] = executor.pids
    future = executor.submit(Does("hang"), [TRIAL], Listener())
    time.sleep(0.2)
    executor.close()
    assert isinstance(future.exception(timeout=60), WorkerDiedError)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_process_that_workers_are_forked_from_comes_again_as_they_do() -> None:
    others = set(children(os.getpid()))
    executor = Process(slots=2, threads_per_slot=1).start("cpu")
    with closing(executor):
        executor.prepare(Does("pid"))
        [forker] = set(children(os.getpid())) - others
        workers = executor.pids
        assert sorted(children(forker)) == sorted(workers)
        os.kill(forker, signal.SIGKILL)
        while any(lives(worker) for worker in workers):  # which die with it a moment later
            time.sleep(0.01)
        pids = [do(executor, "pid", slot) for slot in (0, 1)]
        [forker] = set(children(os.getpid())) - others
        assert sorted(children(forker)) == sorted(pids) == sorted(executor.pids)
    assert set(children(os.getpid())) == others


def test_a_process_that_cannot_begin_is_told_with_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('this torch is broken')")
    monkeypatch.syspath_prepend(tmp_path)
    with closing(Process(slots=1).start("cpu")) as executor, pytest.raises(WorkloadError, match="with exit code 1"):
        executor.prepare(os.getpid)


def test_a_sign_of_progress_to_a_study_that_has_died_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at that moment, the study would leave a traceback of its worker, which dies with it."""
    monkeypatch.setattr(worker, "PROGRESS_SECONDS", 0.01)
    ours, theirs = socket.socketpair()
    channel = worker.WireChannel(Connection(theirs.detach()))
    ours.close()
    teller = threading.Thread(target=channel.tell_progress, args=(threading.Event(),))
    teller.start()
    while teller.is_alive():  # a warning of its thread would fail this test
        channel.progressed()
        time.sleep(0.01)


def test_a_process_that_begins_when_the_study_has_died_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    forker = Forker(os.environ)
    ours, theirs = socket.socketpair()
    status, told = os.pipe()
    os.close(status)
    with closing(forker), ours:
        forker._ask(b"{}", [theirs.fileno(), told])
        theirs.close()
        os.close(told)
        assert ours.recv(1) == b"", "it has ended"
    assert capfd.readouterr().err == ""


def test_slots_share_the_processors_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert {one["OMP_NUM_THREADS"] for one in Process(slots=2).environments("cpu", {})} == {"3"}


def test_a_worker_is_told_how_many_processors_all_slots_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    for settings, decoders in (
        (Process(slots=1), "6"),
        (Process(slots=4), "4"),
        (Process(slots=2, threads_per_slot=2), "4"),
        (Process(slots=4, threads_per_slot=4), "6"),
    ):
        assert {one[DECODERS_VARIABLE] for one in settings.environments("cpu", {})} == {decoders}


def test_after_its_end_an_executor_starts_no_process() -> None:
    others = set(children(os.getpid()))
    executor = Process(slots=1, threads_per_slot=1).start("cpu")
    executor.prepare(os.getpid)
    executor.close()
    assert executor._forker is not None
    with pytest.raises(WorkerDiedError, match="the study stops"):
        executor._forker.fork({})
    assert set(children(os.getpid())) == others


def test_what_a_model_says_when_it_ends_its_process_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    with closing(Process(slots=1, threads_per_slot=1).start("cpu")) as executor:
        for _ in range(5):
            future = executor.submit(Leaves("my last words"), [TRIAL], Listener())
            with pytest.raises(WorkerDiedError, match="by itself with exit code 1"):
                future.result(timeout=60)
    assert capfd.readouterr().err.count("my last words") == 5


@dataclass(frozen=True)
class Leaves:
    words: str

    def __call__(self, specs: Any, channel: Any) -> Any:
        sys.exit(self.words)


def test_an_executor_that_closes_before_its_workers_have_begun_leaves_nothing() -> None:
    others = set(children(os.getpid()))
    executor = Process(slots=2, threads_per_slot=1).start("cpu")
    while not set(children(os.getpid())) > others:
        time.sleep(0.001)
    executor.close()
    assert set(children(os.getpid())) == others
    executor.close()  # as whoever has started it does once more


ORPHANS = """
import os, time
from lrsearch.executors.process import Process
from tests.executors.contract import Does, Listener, TRIAL
executor = Process(slots=2).start("cpu")
executor.prepare(Does("pid"))
executor.submit(Does("hang"), [TRIAL], Listener(), 0)
print(*executor.pids, flush=True)
time.sleep(600)
"""


def test_processes_die_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        pids += children(parent.pid)
        assert len(pids) == 3, "and the one that they were forked from"
        parent.kill()
    deadline = time.monotonic() + 60
    while any(lives(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def test_a_trial_in_a_process_gives_what_it_gives_here(tmp_path: Path) -> None:
    import torch

    from lrsearch.engine import prepare_all, run_trials

    trial = replace(spec(Choice("digits", {"batch_size": 128})), checkpoint=CheckpointPlan(str(tmp_path), 60.0))
    executor = Process(slots=1, threads_per_slot=torch.get_num_threads()).start("cpu")
    listener = Listener()
    try:
        [prepared] = executor.prepare(partial(prepare_all, [(trial.workload, trial.training)], trial.seed))
        [there] = executor.submit(run_trials, [trial], listener).result(timeout=120)
    finally:
        executor.close()
    [here] = run_trials([trial], Listener())
    assert prepared.device.threads == torch.get_num_threads()
    assert (there.test_loss, there.validation_loss) == (here.test_loss, here.validation_loss)
    assert [point.step for point in listener.points] == [point.step for point in here.curve]
    assert there.phase_seconds["data"] < prepared.seconds / 2, "its imports and first decoding came before"


def test_slots_get_cuda_devices_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("lrsearch.environment.DRIVER_FILES", ["/dev/null"])
    base = {"CUDA_VISIBLE_DEVICES": "4,GPU-a1b2,7", "PATH": "/bin"}
    environments = Process(slots=2).environments("auto", base)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments] == ["4", "GPU-a1b2"]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in Process(slots=3).environments("cuda", {})] == ["0", "1", "2"]
    with pytest.raises(UsageError, match=r"slots is 4, but only 3 CUDA devices .*charged twice"):
        Process(slots=4).environments("cuda", base)
    with pytest.raises(UsageError, match=r"'cuda:1' names one device"):
        Process(slots=1).environments("cuda:1", base)
