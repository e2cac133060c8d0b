"""What is left to timing: how many processes, and in which precision; and that a study keeps to what it began with."""

from __future__ import annotations

import itertools
import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lrsearch import engine, gang_choice, precision, probing, rehearsal, stacked_run, training
from lrsearch.cli import app
from lrsearch.config import StudyConfig, load_study
from lrsearch.errors import WorkloadError
from lrsearch.executors import Inline, Process, process
from lrsearch.range_test_run import run_range_test
from lrsearch.storage.store import open_store
from lrsearch.study import forecast, run_study
from lrsearch.trial import Choice, GangChoice, TrainingPlan
from lrsearch.workloads.callable import CallableWorkload
from tests.clock import Clock
from tests.test_study import Quiet

FILE = """
version: 1
name: automatic
workload: {name: digits, model: mlp, batch_size: 128}
training: {epochs: 2, device: cpu, precision: auto, optimizer: {name: sgd, momentum: 0.9}}
seeds: [0]
rates: {low: 1e-3, high: 0.1}
executor: {name: process, slots: auto}
strategies:
  grid: {name: grid, points: 4}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    path = tmp_path / "study.yaml"
    path.write_text(FILE)
    return load_study(path)


def layouts(monkeypatch: pytest.MonkeyPatch, cores: int, most: int, device: str = "cpu", **settings: Any) -> list[Any]:
    monkeypatch.setattr(process, "processors", lambda: cores)
    found = Process(slots="auto", **settings).layouts(device, most)
    return [(one.slots, one.threads_per_slot) for one in found]


def test_a_survey_is_a_table_with_the_fastest_way_as_lines_for_the_study_file(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = probing.Timing("float32", "auto", 1, 2, 1, False, 8e-4)
    together = probing.Timing("float32", "auto", 2, 1, 16, False, 2e-4)
    compiled = replace(together, compiled=True, step_seconds=1e-4)
    found = [probing.Survey("a processor (cpu)", (alone, together), ("it would not",))]
    monkeypatch.setattr(probing, "survey", lambda config: found[-1])
    command = ["probe", str(config.folder / "study.yaml")]
    said = CliRunner().invoke(app, command).output
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "float32 2 1 16 0.2 4.00" in lines
    assert "float32 1 2 1 0.8 1.00" in lines
    assert "Not everything could be timed: it would not" in lines
    assert "slots: 2, threads_per_slot: 1}, training.precision: float32, gangs: auto. Gangs" in said
    found.append(probing.Survey("a processor (cpu)", (alone, together, compiled), ()))
    said = CliRunner().invoke(app, command).output
    assert "float32 2 1 16, compiled 0.1 8.00" in [" ".join(line.split()) for line in said.splitlines()]
    assert "training.precision: float32, gangs: auto, training.compile: gangs. Gangs" in said
    best = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)["best"]
    assert (best["gang_size"], best["compiled"]) == (16, True)
    found.append(probing.Survey("a processor (cpu)", (replace(alone, memory_format="channels_last"),), ()))
    said = CliRunner().invoke(app, command).output
    assert "float32, channels last 1 2 1 0.8 1.00" in [" ".join(line.split()) for line in said.splitlines()]
    assert "training.precision: float32, training.memory_format: channels_last, gangs: off. Gangs" in said
    found.append(probing.Survey("a processor (cpu)", (replace(alone, matmul="onednn"),), ()))
    said = CliRunner().invoke(app, command).output
    assert "float32, oneDNN 1 2 1 0.8 1.00" in [" ".join(line.split()) for line in said.splitlines()]
    assert "training.precision: float32, training.matmul: onednn, gangs: off. Gangs" in said


def test_the_processor_is_divided_by_halves_down_to_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert layouts(monkeypatch, 8, most=100) == [(8, 1), (4, 2), (2, 4), (1, 8)]
    assert layouts(monkeypatch, 6, most=100) == [(6, 1), (3, 2), (1, 6)]
    assert layouts(monkeypatch, 1, most=100) == [(1, 1)]


def test_there_are_no_more_slots_than_trials_that_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert layouts(monkeypatch, 8, most=3) == [(3, 2), (2, 4), (1, 8)]
    assert layouts(monkeypatch, 8, most=1) == [(1, 8)]


def test_given_threads_leave_nothing_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert layouts(monkeypatch, 8, most=100, threads_per_slot=2) == [(4, 2)]
    assert layouts(monkeypatch, 2, most=100, threads_per_slot=4) == [(1, 4)]


def test_each_cuda_device_is_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_cuda_devices", lambda environment: ["0", "1", "2"])
    assert layouts(monkeypatch, 8, most=100, device="auto") == [(3, None)]
    assert layouts(monkeypatch, 8, most=2, device="cuda") == [(2, None)]
    assert layouts(monkeypatch, 8, most=100, device="mps") == [(1, None)]
    assert Process(slots=5).layouts("cuda", 100) == [Process(slots=5)]


@pytest.mark.slow
@pytest.mark.parametrize(("slow", "fast"), [(2, 1), (1, 2)])
def test_the_fastest_number_of_processes_is_chosen_and_known_the_next_time(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch, slow: int, fast: int
) -> None:
    """The processes are real; only the seconds that they measure are made up."""
    monkeypatch.setattr(process, "processors", lambda: 2)
    monkeypatch.setattr(probing, "LAYOUT_SHARE", 1e9)
    really = process.ProcessExecutor.prepare
    timed: list[int] = []

    def prepare(executor: process.ProcessExecutor, work: Any) -> Any:
        found = really(executor, work)
        if work.func is not engine.time_step:
            return found
        assert min(found) > 0
        timed.append(executor.slot_count)
        return [1.0 if executor.slot_count == slow else 1e-6] * executor.slot_count

    monkeypatch.setattr(process.ProcessExecutor, "prepare", prepare)
    said: list[str] = []
    for _ in range(2):
        settled, executor = probing.start_executor(config, None, said.append)
        with closing(executor):
            assert executor.slot_count == fast
            assert settled.executor == Process(slots=fast, threads_per_slot=2 // fast)
    assert timed == [2, 1], "once for both"
    assert len(said) == 1
    assert f"Running {fast} process" in said[0]


@pytest.mark.slow
def test_a_study_keeps_to_what_was_chosen_when_it_began(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    monkeypatch.setattr(process, "processors", lambda: 2)
    with open_store(url) as store:
        begun = run_study(config, store, observer=(watcher := Quiet()))
    assert begun.config["executor"]["slots"] == 2
    precision = begun.config["training"]["precision"]
    assert precision in ("float32", "bfloat16")
    [told] = [text for text in watcher.messages if text.startswith("Timing chose ")]
    assert f"precision: {precision}" in told
    monkeypatch.setattr(process, "processors", lambda: 1)
    longer = tmp_path / "longer.yaml"
    longer.write_text(FILE.replace("seeds: [0]", "seeds: [0, 1]"))
    with open_store(url) as store:
        again = run_study(config, store, observer=Quiet())
        assert again.config == begun.config, "the same file is finished"
        extended = run_study(load_study(longer), store, observer=(watcher := Quiet()), extend=True)
    assert not [text for text in watcher.messages if text.startswith("Timing chose ")], "it was chosen before"
    assert {key: extended.config[key] for key in ("executor", "training")} == {
        key: begun.config[key] for key in ("executor", "training")
    }
    assert len(extended.trials) == 8


def test_a_layout_is_timed_alone_and_together() -> None:
    plan = TrainingPlan(1.0, Choice("sgd", {"momentum": 0.9}), device="cpu")
    digits = Choice("digits", {"model": "mlp", "batch_size": 32})
    alone, four = (engine.time_step(digits, plan, 0, size) for size in (1, 4))
    assert 0 < four < math.inf
    assert 0 < alone < math.inf
    other = replace(plan, optimizer=Choice("rmsprop", {}))
    assert engine.time_step(digits, other, 0, 4) == math.inf, "it is not written for several models"


@pytest.mark.slow
@pytest.mark.parametrize("share", [1e9, 1e-3])
def test_another_layout_is_started_only_where_the_study_is_long_enough(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    asked: list[tuple[int, int]] = []
    really = process.ProcessExecutor.prepare

    def prepare(executor: process.ProcessExecutor, work: Any) -> Any:
        found = really(executor, work)
        if work.func is engine.time_step:
            asked.append((executor.slot_count, work.args[-1]))
            return found if executor.slot_count == 2 else [seconds / 1e6 for seconds in found]
        return found

    monkeypatch.setattr(process, "processors", lambda: 2)
    monkeypatch.setattr(process.ProcessExecutor, "prepare", prepare)
    monkeypatch.setattr(probing, "LAYOUT_SHARE", share)
    monkeypatch.setattr(probing, "TIMED_STEPS", 0)
    together = config.model_copy(update={"gangs": "auto"})
    _, executor = probing.start_executor(together, None, lambda text: None)
    executor.close()
    assert asked == ([(2, 1), (2, 2), (1, 1), (1, 4)] if share > 1 else [(2, 1)])
    assert executor.slot_count == (1 if share > 1 else 2)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> tuple[Choice, TrainingPlan, int]:
    """On a processor that has instructions for bfloat16, or says so."""
    monkeypatch.setattr(training, "_processor_flags", lambda: frozenset(["avx512_bf16"]))
    plan = TrainingPlan(1.0, Choice("sgd", {"momentum": 0.9}), precision="auto", device="cpu")
    return Choice("digits", {"model": "mlp", "batch_size": 32}), plan, 0


@pytest.mark.parametrize("slow", ["float32", "bfloat16"])
@pytest.mark.parametrize(("steps", "taken"), [(1_000_000, 16), (800, 8), (400, 4)])
def test_the_faster_precision_is_chosen_and_known_the_next_time(
    work: tuple[Choice, TrainingPlan, int], monkeypatch: pytest.MonkeyPatch, slow: str, steps: int, taken: int
) -> None:
    count = itertools.count()

    def seconds(run: training.Run, *_: Any) -> float:
        next(count)
        return 0.02 if run.training.precision == slow else 0.001

    Clock(monkeypatch, training).charge(training.Run, "step", seconds)
    monkeypatch.setattr(precision, "_faster_product", lambda device: "bfloat16")
    [fast] = {"float32", "bfloat16"} - {slow}
    assert precision.faster_precision(*work, steps) == fast
    assert next(count) == taken
    if taken == 4:
        assert precision.faster_precision(*work, 800) == fast
        assert next(count) == taken + 1 + 8, "what a short study has found is none of a longer one's business"
    monkeypatch.setattr(precision, "new_run", None)
    assert precision.faster_precision(*work, steps) == fast


@pytest.mark.parametrize(
    ("alone", "together", "steps", "fast", "tried"),
    [
        ((0.04, 0.05), (0.4, 0.1), 1_000_000, "bfloat16", ["bfloat16", "float32"]),
        ((0.04, 0.05), (0.16, 0.1), 1_000_000, "bfloat16", ["bfloat16", "float32"]),
        ((0.04, 0.05), (0.08, 0.1), 1_000_000, "float32", ["bfloat16", "float32"]),
        ((0.04, 0.05), (0.64, 0.24), 900, "float32", ["bfloat16"]),  # no time for gangs of more than four
        ((0.04, 0.05), (0.16, 0.4), 1_000_000, "float32", ["bfloat16"]),  # where float32's gangs decide nothing
        ((0.02, 0.06), (0.16, 0.0), 1_000_000, "float32", []),  # so far behind that gangs are not tried
        ((0.05, 0.02), (0.0, 0.16), 1_000_000, "bfloat16", []),
    ],
)
def test_a_precision_that_is_faster_in_gangs_alone_is_chosen_where_there_are_gangs(
    work: tuple[Choice, TrainingPlan, int],
    monkeypatch: pytest.MonkeyPatch,
    alone: tuple[float, float],
    together: tuple[float, float],
    steps: int,
    fast: str,
    tried: list[str],
) -> None:
    """`alone` and `together` are what steps take in float32 and bfloat16, those of a gang for all members."""
    of_gangs: list[str] = []

    def seconds_together(run: stacked_run.StackedRun, *_: Any) -> float:
        of_gangs.append(run.training.precision)
        return together[run.training.precision == "bfloat16"]

    clock = Clock(monkeypatch, training, rehearsal)
    clock.charge(training.Run, "step", lambda run, *_: alone[run.training.precision == "bfloat16"])
    clock.charge(stacked_run.StackedRun, "step", seconds_together)
    monkeypatch.setattr(precision, "_faster_product", lambda device: "bfloat16")
    assert precision.faster_precision(*work, steps, 16) == fast
    assert list(dict.fromkeys(of_gangs)) == tried
    assert precision.faster_precision(*work, steps) == ("bfloat16" if alone[1] < alone[0] else "float32")
    monkeypatch.setattr(precision, "new_run", None)
    assert precision.faster_precision(*work, steps, 16) == fast, "it is known the next time"


@pytest.mark.parametrize(("ratio", "fast"), [(0.5, "bfloat16"), (1.2, "bfloat16"), (2.0, "float32")])
def test_what_would_take_too_long_to_time_goes_by_a_matrix_product(
    work: tuple[Choice, TrainingPlan, int], monkeypatch: pytest.MonkeyPatch, ratio: float, fast: str
) -> None:
    monkeypatch.setattr(precision, "new_run", None)
    monkeypatch.setattr(precision, "ratio", lambda *_: ratio)
    assert precision.faster_precision(*work, 399) == fast
    monkeypatch.setattr(precision, "ratio", None)
    assert precision.faster_precision(*work, 399) == fast, "it is known the next time"
    if fast == "float32":
        assert precision.faster_precision(*work, 1_000_000) == fast, "and no step is timed"
    monkeypatch.setattr(training, "_processor_flags", lambda: frozenset())
    assert precision.faster_precision(*work, 1_000_000) == "float32"


@pytest.mark.parametrize("evaluates", [True, False])
def test_the_evaluation_that_tries_a_model_is_known_where_trials_of_that_model_are_timed(
    work: tuple[Choice, TrainingPlan, int], monkeypatch: pytest.MonkeyPatch, *, evaluates: bool
) -> None:
    workload, plan, seed = work
    plan = replace(plan, precision="float32")
    known: list[float] = []

    def choose(*_: Any, validation_seconds: float, **settings: Any) -> GangChoice:
        known.append(validation_seconds)
        return GangChoice(1)

    monkeypatch.setattr(gang_choice, "choose", choose)
    kinds = (workload, plan), (workload, replace(plan, optimizer=Choice("adam")))
    requests = [engine.GangRequest(*kind, most=4, most_across=4, crowds=1, epochs=1.0) for kind in kinds]
    prepared = engine.prepare_all(kinds, seed, requests, 1.0, evaluates=evaluates)
    assert known == [prepared.validation_seconds, 0.0]
    assert (0.0 < prepared.validation_seconds < prepared.seconds) if evaluates else prepared.validation_seconds == 0.0
    known.clear()
    monkeypatch.setattr("lrsearch.precision.faster_precision", lambda *_: "float32")
    automatic = [(workload, replace(plan, precision="auto"))]
    engine.prepare_all(automatic, seed, [replace(requests[0], training=automatic[0][1])], 1.0, evaluates=evaluates)
    assert known == [0.0], "that one was in another precision"


IN_FLOAT32_ALONE = """
import torch

class Graph(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, inputs):  # as graph nets do it: a linear layer gives bfloat16, what is added to is float32
        ends = torch.arange(len(inputs))
        return torch.zeros(len(inputs), 2).index_add(0, ends, self.layer(inputs))

def data():
    inputs = torch.randn(64, 4)
    part = inputs, (inputs[:, 0] > 0).long()
    return part, part
"""


def test_a_model_that_cannot_compute_in_bfloat16_trains_in_float32_where_that_is_open(
    work: tuple[Choice, TrainingPlan, int], config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan, seed = work
    (tmp_path / "graph_net.py").write_text(IN_FLOAT32_ALONE)
    settings = {"model": "graph_net:Graph", "data": "graph_net:data", "batch_size": 8, "python_path": tmp_path}
    workload = Choice("callable", settings)
    request = engine.GangRequest(workload, plan, most=4, most_across=4, crowds=1, epochs=1.0)
    assert engine.prepare_all([(workload, plan)], seed, [request], 1.0).precision == "float32"
    with pytest.raises(WorkloadError, match=r"one training step in bfloat16 \(training.precision\): .*graph_net.py:11"):
        training.prepare(workload, replace(plan, precision="bfloat16"), seed)
    of_it = config.model_copy(update={"workload": CallableWorkload(name="callable", **settings), "executor": Inline()})
    assert forecast(of_it).total_seconds > 0
    assert run_range_test(of_it, way=None, repeats=1, tell=lambda _: None).tests
    monkeypatch.setattr(probing, "processors", lambda: 1)
    monkeypatch.setattr(probing, "GANG_SIZES", (2,))
    found = probing.survey(of_it)
    assert {timing.precision for timing in found.timings} == {"float32"}
    assert "in bfloat16" in "".join(found.notes)


def test_so_does_a_study_of_which_one_way_alone_cannot(
    work: tuple[Choice, TrainingPlan, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan, seed = work
    monkeypatch.setattr("lrsearch.precision._faster_product", lambda _: "bfloat16")
    fails_of_16 = IN_FLOAT32_ALONE.replace("zeros(len(inputs), 2)", "zeros(len(inputs), 2, dtype=kind)").replace(
        "        ends =", "        kind = None if len(inputs) == 16 else self.layer(inputs).dtype\n        ends ="
    )
    (tmp_path / "graph_net_of_16.py").write_text(fails_of_16)
    settings = {"model": "graph_net_of_16:Graph", "data": "graph_net_of_16:data", "python_path": tmp_path}
    kinds = [(Choice("callable", {**settings, "batch_size": size}), plan) for size in (8, 16)]
    requests = [engine.GangRequest(*kind, most=4, most_across=4, crowds=1, epochs=1.0) for kind in kinds]
    assert engine.prepare_all(kinds[:1], seed, (), 1.0).precision == "bfloat16"
    prepared = engine.prepare_all(kinds, seed, requests, 1.0)
    assert prepared.precision == "float32"
    assert len(prepared.gangs) == 2
    with pytest.raises(WorkloadError, match="one training step in bfloat16"):
        engine.prepare_all([(one, replace(own, precision="bfloat16")) for one, own in kinds], seed)
