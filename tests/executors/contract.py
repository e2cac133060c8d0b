"""What every executor promises whose trials run in processes of their own: what dies there takes one attempt with it.

A member's test class inherits SlotsContract and gives a started `executor` of two slots with one thread each and a
patience of PATIENCE_SECONDS, while LRSEARCH_DATABASE is postgresql://somewhere.
"""

from __future__ import annotations

import importlib
import os
import signal
import struct
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lrsearch import checkpoint
from lrsearch.environment import SECRETS
from lrsearch.errors import DeviceFaultError, LrsearchError, StorageError, WorkerDiedError, WorkloadError
from lrsearch.interfaces import Channel, Executor, Watched
from lrsearch.trial import CheckpointPlan, Choice, CurvePoint, DeviceInfo, TrialResult, TrialSpec
from tests.resuming import UUID, spec

TRIAL = spec(Choice("digits", {}))
CPU = DeviceInfo("cpu", "a processor")
LARGE = b"a state" * 1_500_000
PATIENCE_SECONDS = 4.0
"""Longer than a busy machine holds up a process that has little to do."""


class Listener:
    """Collects points; stops a trial after `stop_after` of them."""

    def __init__(self, stop_after: int = 100) -> None:
        self.points: list[CurvePoint] = []
        self._stop_after = stop_after

    def report(self, uuid: str, point: CurvePoint) -> bool:
        self.points.append(point)
        return len(self.points) < self._stop_after


class Killer(Listener):
    """Kills the process when that has something to report."""

    def __init__(self, victim: int) -> None:
        super().__init__()
        self._victim = victim

    def report(self, uuid: str, point: CurvePoint) -> bool:
        os.kill(self._victim, signal.SIGKILL)
        return super().report(uuid, point)


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

    def _speaks_half(self, specs: Any, channel: Channel) -> None:
        """Die in the middle of a message that is longer than what a socket takes at once."""
        wire: Any = channel
        os.write(wire._connection.fileno(), struct.pack("!i", 1_000_000) + b"its beginning")
        os._exit(3)

    def _hang(self, specs: Any, channel: Channel | None) -> None:
        time.sleep(600)

    def _begins_and_hangs(self, specs: Any, channel: Channel) -> None:
        channel.report(UUID, CurvePoint(0, 0.0, 0.1, None, None, 0.5, 0.0))
        time.sleep(600)

    def _slow(self, specs: Any, channel: Channel) -> str:
        assert isinstance(channel, Watched)
        for _ in range(16):
            time.sleep(PATIENCE_SECONDS / 12)
            channel.progressed()
        return "done"

    def _full(self, specs: Any, channel: Channel | None) -> None:
        raise StorageError("The disk is full.")

    def _unusable(self, specs: Any, channel: Channel | None) -> None:
        raise WorkloadError("The model is no model.")

    def _fault(self, specs: Any, channel: Channel | None) -> None:
        raise KeyError("of our own")

    def _module(self, specs: Any, channel: Channel | None) -> tuple[str, str]:
        module = importlib.import_module("inside.shipped")
        return str(module.__file__), module.WORD

    def _keeps(self, specs: tuple[TrialSpec, ...], channel: Channel) -> None:
        assert specs[0].checkpoint
        folder = Path(specs[0].checkpoint.folder)
        checkpoint.write(folder, checkpoint.Header(UUID, 1, 5, {"train": 1.0}), lambda file: file.write(LARGE))
        self._slow(specs, channel)  # so that there is time for it to come back

    def _goes_on(self, specs: tuple[TrialSpec, ...], channel: Channel) -> bool:
        assert specs[0].checkpoint
        found = checkpoint.newest(Path(specs[0].checkpoint.folder), UUID)
        return found is not None and bytes(found[1]) == LARGE

    def _broken(self, specs: Any, channel: Channel | None) -> None:
        raise DeviceFaultError("its device failed: device-side assert triggered")

    def _prints(self, specs: Any, channel: Channel | None) -> None:
        print("the user's own words")  # noqa: T201


def do(executor: Executor, what: str, slot: int = 0, channel: Channel | None = None, trial: TrialSpec = TRIAL) -> Any:
    return executor.submit(Does(what), [trial], channel or Listener(), slot).result(timeout=60)


class SlotsContract:
    def test_threads_are_set_before_the_process_starts_and_no_secret_reaches_it(self, executor: Executor) -> None:
        found = do(executor, "environment")
        assert [found[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")] == ["1", "1"]
        assert os.environ["LRSEARCH_DATABASE"] == "postgresql://somewhere", "the fixture sets it"
        assert not set(SECRETS) & set(found)

    def test_points_come_back_and_the_answer_stops_the_trial(self, executor: Executor) -> None:
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
            ("speaks_half", r"ended by itself with exit code 3"),
            ("broken", r"^its device failed: device-side assert triggered$"),
            ("hang", r"no progress for 4 s and was stopped as hung; executor\.patience_seconds"),
        ],
    )
    def test_a_process_that_dies_or_hangs_is_told_and_another_takes_its_place(
        self, executor: Executor, what: str, told: str
    ) -> None:
        dies, other = do(executor, "pid", 0), do(executor, "pid", 1)
        with pytest.raises(WorkerDiedError, match=told) as error:
            do(executor, what)
        assert not error.value.from_outside
        assert do(executor, "pid", 0) not in (dies, other)
        assert do(executor, "pid", 1) == other

    def test_a_process_that_is_killed_from_outside_is_told(self, executor: Executor) -> None:
        with pytest.raises(WorkerDiedError, match="was ended by SIGKILL; where memory is short") as error:
            do(executor, "begins_and_hangs", channel=Killer(do(executor, "pid")))
        assert error.value.from_outside

    def test_progress_is_what_counts_not_the_time_that_a_trial_takes(self, executor: Executor) -> None:
        assert do(executor, "slow") == "done", "a third longer than the patience"

    def test_errors_of_ours_come_back_as_they_are(self, executor: Executor) -> None:
        with pytest.raises(StorageError, match=r"^The disk is full\.$"):
            do(executor, "full")
        with pytest.raises(WorkloadError, match="no model"):
            executor.prepare(Does("unusable"))
        with pytest.raises(LrsearchError, match="KeyError"):
            do(executor, "fault")
        executor.prepare(Does("pid"))

    def test_what_the_users_code_prints_is_no_part_of_our_output(
        self, executor: Executor, capfd: pytest.CaptureFixture[str]
    ) -> None:
        do(executor, "prints")
        assert capfd.readouterr().out == ""

    def test_a_checkpoint_is_where_the_ledger_looks_for_it_and_goes_to_any_slot(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        trial = replace(TRIAL, checkpoint=CheckpointPlan(str(tmp_path / "kept"), 60.0))
        assert not do(executor, "goes_on", trial=trial)
        do(executor, "keeps", trial=trial)
        found = checkpoint.newest(tmp_path / "kept", UUID)
        assert found is not None
        assert found[0].step == 5
        assert bytes(found[1]) == LARGE
        assert do(executor, "goes_on", slot=1, trial=trial)
