"""What a node of a Ray cluster does for a slot, without Ray: answers may be lost, and nothing is done or told twice."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

from lrsearch.executors.ray_node import PIECE_BYTES, _Line, remove_left_folders
from tests.executors.contract import TRIAL, Does

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def fence_seconds() -> float:
    """Longer than a busy machine holds up a test."""
    return 60.0


@pytest.fixture
def line(tmp_path: Path, fence_seconds: float) -> Iterator[_Line]:
    (tmp_path / "node").mkdir()
    line = _Line({**os.environ, "PYTHONPATH": str(ROOT)}, tmp_path / "node", fence_seconds=fence_seconds)
    yield line
    line.stop()


def order(message: Any) -> tuple[str, bytes]:
    return "wire", bytes(ForkingPickler.dumps(message))


def told(messages: list[tuple[Any, ...]]) -> list[Any]:
    return [ForkingPickler.loads(content[0]) if kind == "wire" else (kind, *content) for kind, *content in messages]


def wait_for(line: _Line, kind: str, taken: int, *, busy: bool = True) -> list[tuple[Any, ...]]:
    """Ask until a message of that kind is there; return all from number `taken` on."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        messages = line.exchange(10**6, [], taken, 0.5, busy=busy)
        if any(one[0] == kind for one in messages):
            return messages
    raise AssertionError(f"no {kind}")


def test_what_is_sent_again_is_done_once_and_what_is_asked_for_again_is_told_again(line: _Line) -> None:
    orders = [order(("call", Does("pid"))), order(("call", Does("pid")))]
    for _ in range(3):
        line.exchange(0, orders, 0, 0.0, busy=True)
    line.exchange(1, orders[1:], 0, 0.0, busy=True)
    deadline = time.monotonic() + 60
    while len(messages := line.exchange(2, [], 0, 0.5, busy=True)) < 2:
        assert time.monotonic() < deadline
    time.sleep(0.5)
    assert line.exchange(2, [], 0, 0.0, busy=True) == messages, (
        "two orders, two answers, as often as they are asked for"
    )
    assert told(messages) == [("done", line._process.pid)] * 2
    assert line.exchange(2, [], 1, 0.0, busy=True) == messages[1:]
    assert line.exchange(2, [], 2, 0.0, busy=True) == []


@pytest.mark.parametrize("fence_seconds", [2.0])
def test_a_process_at_work_ends_when_it_is_asked_for_no_more_and_an_idle_one_stays(line: _Line) -> None:
    line.exchange(0, [order(("call", Does("pid")))], 0, 0.0, busy=True)
    wait_for(line, "wire", 0)
    line.exchange(1, [], 1, 0.0, busy=False)
    time.sleep(3.5)
    assert line._process.is_alive(), "nobody waits for it"
    began = time.monotonic()
    line.exchange(1, [order(("run", Does("hang"), [TRIAL]))], 1, 0.0, busy=True)
    while line._process.is_alive():
        assert time.monotonic() - began < 60
        time.sleep(0.1)
    assert time.monotonic() - began > 2.0
    assert told(wait_for(line, "ended", 1)) == [("ended", -9)]


def test_checkpoints_go_out_in_pieces_the_newest_alone_and_before_the_end_is_told(line: _Line) -> None:
    def keep(step: int, content: bytes) -> str:
        path = line.folder / f"6f1c8a52-0f4e-4b0e-9c39-0c2a5f4f7d11.{step:012d}.ckpt"
        path.write_bytes(content)
        return path.name

    line.exchange(0, [("keep", keep(1, b""), b"came with the order")], 0, 0.0, busy=True)
    keep(2, b"old")
    time.sleep(0.01)
    large = os.urandom(2 * PIECE_BYTES + 5)
    newest = keep(3, large)
    line._process.kill()
    arrived, taken = b"", 0
    for expected_last in (False, False, True):
        [(kind, name, piece, last)] = wait_for(line, "checkpoint", taken)
        assert (kind, name, last) == ("checkpoint", newest, expected_last)
        arrived, taken = arrived + piece, taken + 1
    assert arrived == large
    assert wait_for(line, "ended", taken) == [("ended", -9)]
    line.exchange(1, [("forget",)], taken, 0.0, busy=True)
    assert not list(line.folder.glob("*.ckpt"))


def test_of_trials_that_train_together_each_has_its_checkpoint_told_in_turn(line: _Line) -> None:
    trials = [f"6f1c8a52-0f4e-4b0e-9c39-0c2a5f4f7d1{number}" for number in range(3)]

    def keep(step: int) -> None:
        for trial in trials:
            (line.folder / f"{trial}.{step:012d}.ckpt").write_bytes(b"state")

    def next_name(taken: int) -> str:
        [(kind, name, piece, last)] = wait_for(line, "checkpoint", taken)
        assert (kind, piece, last) == ("checkpoint", b"state", True)
        return str(name)

    keep(1)
    told = [next_name(0)]
    keep(2)  # before the others have had their turn
    told += [next_name(taken) for taken in range(1, 4)]
    assert {name.partition(".")[0] for name in told[:3]} == set(trials)
    assert [int(name.split(".")[1]) for name in told] == [1, 2, 2, 2]
    assert line.exchange(10**6, [], 4, 0.0, busy=True) == []
    line._process.kill()
    assert wait_for(line, "ended", 4) == [("ended", -9)]


def test_what_a_killed_one_left_is_removed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with subprocess.Popen(["true"]) as ended:
        pass
    names = [
        f"lrsearch-node-{ended.pid}-x",
        f"lrsearch-node-{os.getpid()}-x",
        "lrsearch-node-1-x",
        "lrsearch-node-mine-x",
    ]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "7.ckpt").touch()
    remove_left_folders()
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])
