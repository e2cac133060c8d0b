"""Torch is imported by another process while a study file is still being read, for the workers that it asks for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from lrsearch import ahead
from lrsearch.environment import importing_alike
from lrsearch.executors import Process
from lrsearch.forked import IS_SAFE
from tests.executors.contract import Does, do
from tests.processes import children, lives

NO_NUMBERS: list[Any] = [0, -1, True, 1.5, "two", [2], {}]

forks = pytest.mark.skipif(not IS_SAFE, reason="workers are not forked here")


def environment(settings: Process) -> dict[str, str]:
    return importing_alike(settings.environments("cpu", os.environ)[0])


@forks
def test_where_no_process_can_be_started_that_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(environment: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr("lrsearch.ahead.Forker", fail)
    ahead.begin({})
    assert not ahead.is_under_way()


@forks
def test_workers_are_forked_from_the_process_that_imports_ahead() -> None:
    others, settings = set(children(os.getpid())), Process(slots="auto")
    layout = settings.layouts("cpu", 3)[0]
    with ahead.ended_at_last():
        ahead.begin(environment(layout))
        [process] = set(children(os.getpid())) - others
        ahead.begin(environment(layout))
        assert set(children(os.getpid())) - others == {process}, "which is the right one"
        with closing(layout.start("cpu")) as executor:
            executor.prepare(Does("pid"))
            assert sorted(children(process)) == sorted(executor.pids)
            assert set(children(os.getpid())) - others == {process}
        assert set(children(os.getpid())) == others
    assert set(children(os.getpid())) == others


@forks
def test_a_process_for_nobody_or_for_another_environment_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    others = set(children(os.getpid()))
    with ahead.ended_at_last():
        ahead.begin(environment(Process(slots=1)))
        [process] = set(children(os.getpid())) - others
        monkeypatch.setenv("SOMETHING_ELSE", "by now")
        with closing(Process(slots=1).start("cpu")) as executor:
            assert do(executor, "pid", 0) not in children(process)
            assert not lives(process)
    for after in (None, {"PATH": os.environ["PATH"]}):
        with ahead.ended_at_last():
            ahead.begin(environment(Process(slots=1)))
            [process] = set(children(os.getpid())) - others
            assert ahead.is_under_way()
            ahead.begin(after)
            assert not lives(process)
            assert ahead.is_under_way() == (after is not None)
        assert not ahead.is_under_way()
    assert set(children(os.getpid())) == others


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"slots": 1},
        {"slots": 3},
        {"slots": 3, "threads_per_slot": 2},
        {"threads_per_slot": 1, "asynchronous": True},
        {"slots": "auto"},
        {"slots": "auto", "threads_per_slot": 1},
        {"slots": "auto", "threads_per_slot": 1000},
    ],
)
def test_the_first_guess_is_what_the_executor_will_have(written: dict[str, Any]) -> None:
    executor = {"name": "process", **written}
    guess = ahead.first_guess({"executor": executor, "training": {"device": "cpu"}}, None)
    assert guess == environment(Process.model_validate(executor).layouts("cpu", 1000)[0])
    assert guess == ahead.first_guess({"executor": executor, "training": {"device": "cuda"}}, "cpu")


@pytest.mark.parametrize(
    "values",
    [
        None,
        "text",
        [],
        {},
        {"executor": None},
        {"executor": "process"},
        {"executor": {"name": "inline"}},
        {"executor": {"name": "ray", "slots": 2}},
        {"executor": {"name": ["process"]}},
        *(
            {"executor": {"name": "process", key: value}, "training": {"device": "cpu"}}
            for key in ("slots", "threads_per_slot")
            for value in NO_NUMBERS
        ),
    ],
)
def test_nothing_is_guessed_where_trials_run_elsewhere_or_what_is_written_makes_no_sense(values: Any) -> None:
    assert ahead.first_guess(values, None) is None


def test_nothing_is_guessed_where_only_torch_knows_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "devices_are_known", lambda device: device == "cpu")
    values = {"executor": {"name": "process"}}
    assert ahead.first_guess(values, None) is None
    assert ahead.first_guess(values, "cpu") is not None
    assert ahead.first_guess({**values, "training": {"device": "cpu"}}, None) is not None
    assert ahead.first_guess({**values, "training": []}, None) is None


STUDY = """\
version: 1
name: small
workload: {name: digits, model: mlp}
training: {epochs: 1}
executor: {name: process, slots: 1}
strategies:
  grid: {name: grid, points: 1, schedule: {name: constant}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


@pytest.mark.parametrize(
    ("arguments", "slots"),
    [
        (["run-study", "FILE"], 1),
        (["run-study", "--fresh", "FILE", "--json"], 1),
        (["run-study", "FILE", "--device", "cpu"], 1),
        (["run-study", "--device=cpu", "FILE"], 1),
        (["run-study", "FILE", "--device", "cuda"], None),
        (["run-study", "--device=cuda", "FILE"], None),
        (["run-study", "FILE", "--device"], 1),
        (["run-study", "FILE", "--dry-run"], None),
        (["run-study", "FILE", "--help"], None),
        (["run-study", "FILE", "FILE"], None),
        (["run-study", "no.yaml"], None),
        (["run-study"], None),
        (["validate", "FILE"], None),
        (["--version"], None),
        ([], None),
    ],
)
def test_a_glance_at_the_command_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], slots: int | None
) -> None:
    monkeypatch.setattr(ahead, "devices_are_known", lambda device: device in ("cpu", "auto"))
    expected = None if slots is None else environment(Process(slots=slots))
    assert ahead.glance([str(file) if one == "FILE" else one for one in arguments]) == expected


def test_a_file_that_cannot_be_read_is_for_those_who_tell_so(file: Path) -> None:
    for text in ("executor: {name: process", "", "\x00"):
        file.write_text(text)
        assert ahead.glance(["run-study", str(file)]) is None


def with_mark(mark: str) -> list[int]:
    """Return the processes whose environment has it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


@forks
def test_what_has_begun_ends_with_a_command_that_goes_wrong(file: Path) -> None:
    file.write_text(STUDY.replace("epochs: 1", "epochs: minus one"))
    mark = f"MARK={os.getpid()}-{time.monotonic_ns()}"
    name, _, value = mark.partition("=")
    command = [sys.executable, "-m", "lrsearch", "run-study", str(file)]
    with subprocess.Popen(command, env={**os.environ, name: value}, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(with_mark(mark)) < 2:
            time.sleep(0.005)
        assert len(with_mark(mark)) == 2, "torch is being imported"
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"{file}:4:20: training.epochs" in said
    assert "Traceback" not in said
    assert with_mark(mark) == []
