"""Trials in processes of their own: equal to those inline, and what dies there takes one attempt with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lrsearch.errors import LrsearchError, StorageError, UsageError, WorkerDiedError, WorkloadError
from lrsearch.executors.process import Process, ProcessExecutor
from lrsearch.interfaces import Channel, Watched
from lrsearch.trial import CheckpointPlan, Choice, CurvePoint, DeviceInfo, TrialResult, TrialSpec
from tests.resuming import UUID, spec

TRIAL = spec(Choice("digits", {}))
CPU = DeviceInfo("cpu", "a processor")


class Listener:
    def __init__(self, stop_after: int = 100) -> None:
        self.points: list[CurvePoint] = []
        self._stop_after = stop_after

    def report(self, uuid: str, point: CurvePoint) -> bool:
        self.points.append(point)
        return len(self.points) < self._stop_after


@dataclass(frozen=True)
class Does:
    """Instead of training, does something in the worker; stands for run_trials and for a preparation."""

    what: str

    def __call__(self, specs: Any = (), channel: Channel | None = None) -> Any:
        return getattr(self, f"_{self.what}")(specs, channel)

    def _environment(self, specs: Any, channel: Channel | None) -> dict[str, str]:
        return dict(os.environ)

    def _pid(self, specs: Any, channel: Channel | None) -> int:
        return os.getpid()

    def _points(self, specs: tuple[TrialSpec, ...], channel: Channel) -> list[TrialResult]:
        for step in range(10):
            if not channel.report(UUID, CurvePoint(step, 0.0, 0.1, None, None, 0.5, 0.0)):
                return [TrialResult(UUID, "pruned", CPU, step, {}, 0.0)]
        return [TrialResult(UUID, "completed", CPU, 10, {}, 0.0)]

    def _segfault(self, specs: Any, channel: Channel | None) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def _exit(self, specs: Any, channel: Channel | None) -> None:
        os._exit(3)

    def _hang(self, specs: Any, channel: Channel | None) -> None:
        time.sleep(600)

    def _slow(self, specs: Any, channel: Channel) -> str:
        assert isinstance(channel, Watched)
        for _ in range(8):
            time.sleep(0.25)
            channel.progressed()
        return "done"

    def _full(self, specs: Any, channel: Channel | None) -> None:
        raise StorageError("The disk is full.")

    def _unusable(self, specs: Any, channel: Channel | None) -> None:
        raise WorkloadError("The model is no model.")

    def _fault(self, specs: Any, channel: Channel | None) -> None:
        raise KeyError("of our own")

    def _prints(self, specs: Any, channel: Channel | None) -> None:
        print("the user's own words")  # noqa: T201


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessExecutor]:
    started = Process(slots=2, threads_per_slot=1, patience_seconds=1.5).start("cpu")
    started.prepare(Does("pid"))
    yield started
    started.close()


def do(executor: ProcessExecutor, what: str, slot: int = 0, channel: Channel | None = None) -> Any:
    return executor.submit(Does(what), [TRIAL], channel or Listener(), slot).result(timeout=60)


def test_each_slot_has_a_process_and_keeps_it(executor: ProcessExecutor) -> None:
    pids = [do(executor, "pid", slot) for slot in (0, 1, 0, 1)]
    assert pids[:2] == pids[2:] == executor.pids
    assert len({*pids, os.getpid()}) == 3


def test_threads_are_set_before_the_process_starts(executor: ProcessExecutor) -> None:
    found = do(executor, "environment")
    assert [found[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")] == ["1", "1"]


def test_points_come_back_and_the_answer_stops_the_trial(executor: ProcessExecutor) -> None:
    all_of_them, some = Listener(), Listener(stop_after=4)
    assert do(executor, "points", channel=all_of_them)[0].status == "completed"
    assert len(all_of_them.points) == 10
    assert do(executor, "points", channel=some)[0].status == "pruned"
    assert [point.step for point in some.points] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("segfault", r"was ended by SIGSEGV: a fault in compiled code"),
        ("exit", r"ended by itself with exit code 3"),
        ("hang", r"no progress for 2 s and was stopped as hung; executor\.patience_seconds"),
    ],
)
def test_a_process_that_dies_or_hangs_is_told_and_another_takes_its_place(
    executor: ProcessExecutor, what: str, told: str
) -> None:
    other = do(executor, "pid", 1)
    with pytest.raises(WorkerDiedError, match=told) as error:
        do(executor, what)
    assert not error.value.from_outside
    assert isinstance(do(executor, "pid", 0), int)
    assert do(executor, "pid", 1) == other


def test_a_process_that_is_killed_from_outside_is_told(executor: ProcessExecutor) -> None:
    victim = do(executor, "pid")
    threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
    with pytest.raises(WorkerDiedError, match="was ended by SIGKILL; where memory is short") as error:
        do(executor, "hang")
    assert error.value.from_outside


def test_progress_is_what_counts_not_the_time_that_a_trial_takes(executor: ProcessExecutor) -> None:
    assert do(executor, "slow") == "done", "2 s of work under a patience of 1.5 s"


def test_errors_of_ours_come_back_as_they_are(executor: ProcessExecutor) -> None:
    with pytest.raises(StorageError, match=r"^The disk is full\.$"):
        do(executor, "full")
    with pytest.raises(WorkloadError, match="no model"):
        executor.prepare(Does("unusable"))
    with pytest.raises(LrsearchError, match="KeyError"):
        do(executor, "fault")


def test_a_preparation_that_takes_its_process_down_is_the_users_to_mend() -> None:
    executor = Process(slots=1).start("cpu")
    with pytest.raises(WorkloadError, match=r"model or the data cannot be used: its process was ended by SIGSEGV"):
        executor.prepare(Does("segfault"))
    executor.close()


def test_what_the_users_code_prints_is_no_part_of_our_output(
    executor: ProcessExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    do(executor, "prints")
    assert capfd.readouterr().out == ""


def test_closing_ends_a_process_whatever_it_does() -> None:
    executor = Process(slots=1).start("cpu")
    executor.prepare(Does("pid"))
    [pid] = executor.pids
    future = executor.submit(Does("hang"), [TRIAL], Listener())
    time.sleep(0.2)
    executor.close()
    assert isinstance(future.exception(timeout=10), WorkerDiedError)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


ORPHANS = """
import os, time
from lrsearch.executors.process import Process
from tests.executors.test_process import Does, Listener, TRIAL
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
        parent.kill()
    deadline = time.monotonic() + 10
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_trial_in_a_process_gives_what_it_gives_here(tmp_path: Path) -> None:
    import torch

    from lrsearch.training import prepare_all, run_trials

    trial = replace(spec(Choice("digits", {"batch_size": 128})), checkpoint=CheckpointPlan(str(tmp_path), 60.0))
    executor = Process(slots=1, threads_per_slot=torch.get_num_threads()).start("cpu")
    listener = Listener()
    try:
        prepared = executor.prepare(partial(prepare_all, [(trial.workload, trial.training)], trial.seed))
        [there] = executor.submit(run_trials, [trial], listener).result(timeout=120)
    finally:
        executor.close()
    [here] = run_trials([trial], Listener())
    assert prepared.device.threads == torch.get_num_threads()
    assert (there.test_loss, there.validation_loss) == (here.test_loss, here.validation_loss)
    assert [point.step for point in listener.points] == [point.step for point in here.curve]
    assert there.phase_seconds["data"] < 1, "its imports and first decoding came before"


def test_slots_get_cuda_devices_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    base = {"CUDA_VISIBLE_DEVICES": "4,GPU-a1b2,7", "PATH": "/bin"}
    environments = Process(slots=2).environments("auto", base)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments] == ["4", "GPU-a1b2"]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in Process(slots=3).environments("cuda", {})] == ["0", "1", "2"]
    with pytest.raises(UsageError, match=r"slots is 4, but only 3 CUDA devices .*charged twice"):
        Process(slots=4).environments("cuda", base)
    with pytest.raises(UsageError, match=r"'cuda:1' names one device"):
        Process(slots=1).environments("cuda:1", base)
