"""training.compile: graphs. What a CUDA graph does is done on the processor by tests/recording.py."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lrsearch import graphs, stacked_run, training
from lrsearch.config import load_study
from lrsearch.engine import prepare_all, run_trials
from lrsearch.errors import UsageError, WorkloadError
from lrsearch.gang import run_gang
from lrsearch.gang_choice import choose
from lrsearch.interfaces import Batch
from lrsearch.training import GRAPH_STEPS, Run, load, new_run
from lrsearch.trial import CheckpointPlan, Choice, Compiling, ParameterGroup, TrainingPlan, TrialSpec
from tests import recording
from tests.clock import Clock
from tests.test_compiling import FILE
from tests.test_gang import DIGITS, SGD, Listener, Reports, alone, assert_equal, spec
from tests.test_gang_across_seeds import ADAMW, MODELS, RATES, SEEDS, WithModel

CPU = torch.device("cpu")
CNN = Choice("digits", {"model": "small_cnn"})
PLAN = TrainingPlan(1, SGD, device="cpu", compile="graphs")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Let the processor record; return a list to which each recording adds a word."""
    made = []

    def record(work: Callable[[], torch.Tensor], stream: object) -> tuple[Callable[[], object], torch.Tensor]:
        done = recording.record(work, stream)
        made.append("recorded")
        return done

    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path))
    monkeypatch.setattr(graphs, "can_record", lambda device: True)
    monkeypatch.setattr(graphs, "record", record)
    return made


def after(run: Run, steps: int) -> tuple[list[float], list[torch.Tensor]]:
    """Return losses and state after so many steps at rising rates, with an evaluation half-way."""
    for step in range(steps):
        if step == steps // 2:
            run.evaluate("validation")
        run.step(0.01 * (step + 1) / steps)
    return run.take_losses(), list(run.model.state_dict().values())


@pytest.mark.parametrize("more", [{}, {"gradient_clip_norm": 0.5}, {"precision": "bfloat16"}], ids=str)
@pytest.mark.parametrize("workload", [DIGITS, CNN], ids=["mlp", "cnn"])
def test_replayed_steps_of_sgd_are_bit_for_bit_those_that_are_not(
    recorded: list[str], workload: Choice, more: dict[str, Any]
) -> None:
    found = []
    for compiling in ("off", "graphs"):
        plan = replace(PLAN, compile=compiling, groups=(ParameterGroup("*bias", 2.0),), **more)
        found.append(after(new_run(load(workload, CPU, 0), plan, CPU, 0), 40))
    assert recorded == ["recorded"]
    [losses, state], [losses_again, state_again] = found
    assert losses == losses_again
    assert all(map(torch.equal, state, state_again))


@pytest.mark.parametrize("optimizer", [Choice("adam", {"weight_decay": 0.01}), ADAMW], ids=lambda one: one.name)
def test_replayed_steps_of_adam_differ_by_the_rounding_of_the_rate(recorded: list[str], optimizer: Choice) -> None:
    found = []
    for compiling in ("off", "graphs"):
        plan = replace(PLAN, compile=compiling, optimizer=optimizer)
        found.append(after(new_run(load(DIGITS, CPU, 0), plan, CPU, 0), 40)[0])
    assert recorded
    assert found[0] == pytest.approx(found[1], rel=1e-5)


class Dropping(nn.Sequential):
    """Draws chance in each step."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))


class Counting(nn.Sequential):
    """Does something that is no computation on a device: each step multiplies by another number."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.steps = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        return super().forward(inputs) * (1 + self.steps)  # type: ignore[no-any-return, no-untyped-call]


class Looking(nn.Sequential):
    """Waits for the device in each step."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
        return outputs * 2 if float(outputs.detach().mean()) > 1e9 else outputs


class Averaging(nn.Sequential):
    """Puts another tensor in the place of its buffer in each step, as one's own statistics are often written."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.mean: torch.Tensor
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.flatten(1).mean(0)
            return super().forward(inputs)  # type: ignore[no-any-return, no-untyped-call]
        return super().forward(inputs - self.mean.view(1, 8, 8))  # type: ignore[no-any-return, no-untyped-call]


class OnlyTrainsTraced(nn.Sequential):
    """Can be written out for a gang while it trains, and not while it is evaluated."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training and len(inputs) < 0:
            return inputs
        return super().forward(inputs)  # type: ignore[no-any-return, no-untyped-call]


class Ragged(WithModel):
    """Ends each epoch with a smaller batch, as a loader of the user's own may."""

    def train_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        for number, (inputs, targets) in enumerate(super().train_batches(generator)):
            yield (inputs[:7], targets[:7]) if number % 5 == 4 else (inputs, targets)


def test_chance_is_drawn_in_each_replayed_step_and_small_batches_are_not_replayed(recorded: list[str]) -> None:
    found = []
    for compiling in ("off", "graphs"):
        loaded = Ragged(0, Dropping, torch.float32)
        found.append(after(new_run(loaded, replace(PLAN, compile=compiling), CPU, 0), 30))
    assert recorded == ["recorded"]
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (Counting, "comes to another loss: it does something in its steps that is no computation"),
        (Averaging, "comes to another buffer mean"),
        (Looking, "cannot be recorded: operation not permitted"),
    ],
)
def test_what_cannot_be_replayed_is_refused_before_the_first_trial(
    recorded: list[str], build: Callable[[], nn.Module], told: str
) -> None:
    with pytest.raises(WorkloadError, match=told):
        training.check_graphs(WithModel(0, build, torch.float32), PLAN, CPU, 0)
    run = new_run(WithModel(0, build, torch.float32), replace(PLAN, compile="graphs"), CPU, 0)
    losses, _ = after(run, GRAPH_STEPS)
    assert len(losses) == GRAPH_STEPS


class Never(WithModel):
    """Begins each epoch with a batch of its own size."""

    def train_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        for number, (inputs, targets) in enumerate(super().train_batches(generator)):
            yield (inputs[:7], targets[:7]) if number == 0 else (inputs, targets)


class Listed(WithModel):
    """Gives its targets as lists."""

    def train_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        for inputs, targets in super().train_batches(generator):
            yield inputs, targets.tolist()

    def loss(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        return super().loss(outputs, torch.as_tensor(targets))


def test_the_batches_that_come_after_the_first_ones_decide_what_is_recorded(recorded: list[str]) -> None:
    training.check_graphs(Never(0, Dropping, torch.float32), PLAN, CPU, 0)
    assert recorded == ["recorded"]


def test_after_a_recording_that_failed_on_the_device_none_is_tried(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its allocator may not have come back from that."""
    monkeypatch.setattr(graphs, "FAILED", ["recording has failed before"])
    run = new_run(WithModel(0, Dropping, torch.float32), replace(PLAN, compile="graphs"), CPU, 0)
    after(run, GRAPH_STEPS)
    assert not recorded
    assert run.why_not_replayed == "recording has failed before"


def test_batches_that_are_no_tensors_are_not_recorded_and_told(recorded: list[str]) -> None:
    with pytest.raises(WorkloadError, match="cannot be recorded: the batches are no tensors"):
        training.check_graphs(Listed(0, Dropping, torch.float32), PLAN, CPU, 0)
    assert not recorded


def test_a_run_that_is_over_leaves_nothing_behind(recorded: list[str]) -> None:
    """Else its weights and the graph's memory would stay on the device beside the next trial."""
    gc.collect()
    gc.disable()
    try:
        run = new_run(load(DIGITS, CPU, 0), PLAN, CPU, 0)
        after(run, 10)
        model = weakref.ref(run.model)
        del run
        assert model() is None
        run = new_run(load(DIGITS, CPU, 0), PLAN, CPU, 0)
        stacked = stacked_run.StackedRun([run] * 2, [SGD.settings] * 2)
        for _ in range(10):
            stacked.step(torch.tensor([0.01, 0.02]))
        weights = weakref.ref(next(iter(stacked.stacked.parameters.values())))
        del run, stacked
        assert weights() is None
    finally:
        gc.enable()
    assert len(recorded) == 2


def test_a_gang_evaluates_with_the_statistics_of_its_last_step(recorded: list[str]) -> None:
    def trained(compiling: Compiling) -> stacked_run.StackedRun:
        run = new_run(WithModel(0, OnlyTrainsTraced, torch.float32), replace(PLAN, compile=compiling), CPU, 0)
        stacked = stacked_run.StackedRun([run] * 2, [SGD.settings] * 2)
        for _ in range(3):
            for _ in range(12):
                stacked.step(torch.tensor([0.01, 0.02]))
            stacked.evaluate("validation")
        return stacked

    plain, replayed = trained("off"), trained("graphs")
    assert recorded == ["recorded"]
    assert replayed.stacked.buffers["2.num_batches_tracked"].tolist() == [36, 36]
    for name, expected in plain.stacked.buffers.items():
        assert torch.equal(replayed.stacked.buffers[name], expected), name


def test_a_trial_with_graphs_gives_what_it_gives_without_and_records_in_its_warm_up(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, training).charge(Run, "step", 1.0)
    trial = replace(spec(0, 0.05, Choice("triangular2", {"cycles": 1})), solo=None)
    [plain] = run_trials([trial], Listener())
    [replayed] = run_trials([replace(trial, training=replace(trial.training, compile="graphs"))], Listener())
    assert recorded
    assert_equal([replayed], [plain])
    assert replayed.validation_loss == plain.validation_loss
    assert plain.phase_seconds["warmup"] == 1.0, "its first step"
    warm_up = replayed.phase_seconds["warmup"]
    assert 1.0 < warm_up <= GRAPH_STEPS, "it holds the first steps and recording"
    assert replayed.phase_seconds["train"] == replayed.train_steps - warm_up > 0


def test_a_scheduled_momentum_is_not_replayed_and_its_steps_are_no_warm_up(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, training).charge(Run, "step", 1.0)
    trial = replace(spec(0, 0.05, Choice("one_cycle", {"base_momentum": 0.85, "max_momentum": 0.95})), solo=None)
    [plain] = run_trials([trial], Listener())
    [replayed] = run_trials([replace(trial, training=replace(trial.training, compile="graphs"))], listener := Reports())
    assert not recorded
    assert_equal([replayed], [plain])
    assert replayed.phase_seconds["warmup"] == plain.phase_seconds["warmup"] == 1.0, "the first one"
    assert [text for _, text in listener.said] == [
        "its steps were not replayed as a CUDA graph: the momentum is scheduled, and would stay as it was recorded."
    ]


def test_a_trial_goes_on_from_its_checkpoint_with_other_tensors(recorded: list[str], tmp_path: Path) -> None:
    def run_to(steps: int, state: dict[str, Any] | None) -> Run:
        run = new_run(load(DIGITS, CPU, 0), PLAN, CPU, 0)
        run.batches.keeps_place = True
        if state is not None:
            run.set_state(state)
        for _ in range(steps):
            run.step(0.02)
        return run

    whole, first = run_to(20, None), run_to(9, None)
    torch.save(first.state(), tmp_path / "state")
    second = run_to(11, torch.load(tmp_path / "state", weights_only=True))
    assert recorded == ["recorded"] * 3
    assert second.take_losses() == whole.take_losses()
    assert all(map(torch.equal, second.model.state_dict().values(), whole.model.state_dict().values()))


@pytest.mark.parametrize("optimizer", [SGD, Choice("adam")], ids=lambda one: one.name)
def test_a_gang_is_recorded_again_when_members_leave_and_gives_what_each_gives_alone(
    recorded: list[str], optimizer: Choice
) -> None:
    longs = zip(RATES, (3, 1, 2), strict=False)
    specs = [spec(i, rate, optimizer=optimizer, epochs=epochs) for i, (rate, epochs) in enumerate(longs)]
    recordable = [replace(one, training=replace(one.training, compile="graphs")) for one in specs]
    together = run_gang(recordable, Listener())
    assert recorded == ["recorded"] * 3
    assert_equal(together, alone(specs))
    assert all((one.billed_phase_seconds or {})["warmup"] > 0 for one in together), "as long as it is to be recorded"


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=lambda one: one.name)
@pytest.mark.parametrize("name", MODELS)
def test_a_gang_across_seeds_is_recorded_unless_its_buffers_are_replaced(
    recorded: list[str], name: str, optimizer: Choice
) -> None:
    found = []
    for compiling in ("off", "graphs"):
        plan = replace(PLAN, optimizer=optimizer, compile=compiling, gradient_clip_norm=1.0)
        runs = {seed: new_run(WithModel(seed, MODELS[name], torch.float64), plan, CPU, seed) for seed in set(SEEDS)}
        stacked = stacked_run.StackedRun([runs[seed] for seed in SEEDS], [optimizer.settings] * len(SEEDS))
        for _ in range(12):
            stacked.step(torch.tensor(RATES, dtype=torch.float64))
        stacked.evaluate("validation")
        for _ in range(12):
            stacked.step(torch.tensor(RATES, dtype=torch.float64))
        found.append(stacked.stacked.parameters | stacked.stacked.buffers)
    assert recorded == ([] if name == "averaging" else ["recorded"])
    for key, expected in found[0].items():
        assert torch.equal(found[1][key], expected), key


def test_the_choice_of_gangs_looks_at_replayed_steps(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where replaying a gang goes wrong, that is found before the study."""

    def record(work: Callable[[], torch.Tensor], stream: object) -> tuple[Callable[[], object], torch.Tensor]:
        replay, result = recording.record(work, stream)
        return (lambda: None if result.ndim else replay()), result

    assert choose(DIGITS, PLAN, 0, most=4, search_steps=10**6).measured
    assert recorded
    monkeypatch.setattr(graphs, "record", record)
    choice = choose(DIGITS, replace(PLAN, gradient_clip_norm=9.0), 0, most=4, search_steps=10**6)
    assert choice.size == 1
    assert "trained otherwise than alone" in choice.reason


def test_a_device_or_an_optimizer_that_cannot_be_recorded_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"training\.compile is graphs, but a cpu device has no CUDA graphs"):
        prepare_all([(DIGITS, PLAN)], 0)
    monkeypatch.setattr(graphs, "can_record", lambda device: True)
    with pytest.raises(UsageError, match="steps of sgd, adam, adamw alone, and not of rmsprop"):
        prepare_all([(DIGITS, replace(PLAN, optimizer=Choice("rmsprop")))], 0)


@pytest.mark.parametrize(("faster", "chosen"), [(True, "graphs"), (False, "off")])
def test_left_open_steps_are_recorded_where_that_takes_less_time(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch, faster: bool, chosen: str
) -> None:
    monkeypatch.setattr(training, "step_seconds", lambda runs, wait: [1e-3, 0.9e-3 if faster else 1.1e-3][: len(runs)])
    plan = replace(PLAN, compile="off")
    prepared = prepare_all([(DIGITS, plan)], 0, epochs=10, open_to=("graphs", "on"))
    assert recorded
    assert prepared.compile == chosen
    recorded.clear()
    assert prepare_all([(DIGITS, plan)], 0, epochs=10, open_to=("graphs", "on")).compile == chosen
    assert not recorded, "it is known"


@pytest.mark.parametrize("other", [Choice("rmsprop"), Choice("prodigy"), ADAMW], ids=lambda one: one.name)
def test_left_open_the_steps_of_all_ways_must_be_recordable(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch, other: Choice
) -> None:
    monkeypatch.setattr(training, "step_seconds", lambda runs, wait: [1e-3, 0.9e-3][: len(runs)])
    plan = replace(PLAN, compile="off")
    variants = [(DIGITS, plan), (DIGITS, replace(plan, optimizer=other))]
    prepared = prepare_all(variants, 0, epochs=10, open_to=("graphs", "on"))
    assert prepared.compile == ("graphs" if other == ADAMW else "off")


def test_left_open_what_the_steps_of_one_way_do_not_take_is_not_chosen(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(loaded: object, plan: TrainingPlan, device: torch.device, seed: int) -> None:
        if plan.optimizer == ADAMW:
            raise WorkloadError("another loss")

    monkeypatch.setattr(training, "step_seconds", lambda runs, wait: [1e-3, 0.9e-3][: len(runs)])
    monkeypatch.setattr(training, "check_graphs", check)
    plan = replace(PLAN, compile="off")
    variants = [(DIGITS, plan), (DIGITS, replace(plan, optimizer=ADAMW))]
    open_to: tuple[Compiling, ...] = ("graphs",)
    assert prepare_all(variants, 0, epochs=10, open_to=open_to).compile == "off"
    with pytest.raises(WorkloadError, match="another loss"):
        prepare_all([(work, replace(one, compile="graphs")) for work, one in variants], 0)


def test_a_short_study_does_not_decide_whether_a_long_one_compiles(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "step_seconds", lambda runs, wait: [1e-3, 1.1e-3][: len(runs)])
    plan, asked = replace(PLAN, compile="off"), []
    assert training.fastest_compiling(DIGITS, plan, 0, 1_000, ("graphs", "on")) == "off"
    monkeypatch.setattr(training, "check_compiling", lambda plan, device: asked.append(plan.compile))
    assert training.fastest_compiling(DIGITS, plan, 0, 10**9, ("graphs", "on")) == "off"
    assert asked == ["on"]


def test_a_study_with_graphs_says_so_and_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(FILE.replace("COMPILE", ", compile: graphs"))
    study = load_study(path)
    assert study.training_plan().compile == "graphs"
    assert study.resolved()["training"]["compile"] == "graphs"


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", [SGD, Choice("adam"), ADAMW], ids=lambda one: one.name)
@pytest.mark.parametrize("workload", [DIGITS, CNN], ids=["mlp", "cnn"])
def test_on_a_gpu_replayed_steps_are_those_that_are_not(workload: Choice, optimizer: Choice) -> None:
    device, found = torch.device("cuda"), []
    for compiling in ("off", "graphs"):
        run = new_run(load(workload, device, 0), replace(PLAN, compile=compiling, optimizer=optimizer), device, 0)
        found.append(after(run, 40)[0])
        assert run.why_not_replayed is None
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.gpu
def test_on_a_gpu_a_gang_is_replayed(tmp_path: Path) -> None:
    def of(compiling: Compiling) -> list[TrialSpec]:
        plan = CheckpointPlan(str(tmp_path), 1e9)
        made = [replace(spec(number, rate), checkpoint=plan) for number, rate in enumerate(RATES)]
        return [replace(one, training=replace(one.training, device="cuda", compile=compiling)) for one in made]

    assert_equal(run_gang(of("graphs"), Listener()), alone(of("off")))
