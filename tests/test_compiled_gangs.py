"""Gangs whose step is compiled: the same as each member alone, whatever its size becomes.

torch.compile traces and takes the steps apart as ever, but with its backend `aot_eager`, which makes no C++ of them;
those that need a compiler do.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrsearch import compiled_step, gang_choice
from lrsearch.config import load_study
from lrsearch.engine import GangRequest, prepare_all
from lrsearch.gang_choice import choose
from lrsearch.rehearsal import Rehearsal
from lrsearch.stacked_run import StackedRun
from lrsearch.storage.store import open_store
from lrsearch.study import _together, run_study
from lrsearch.training import Run, new_run
from lrsearch.trial import Choice, CompiledGang, TrainingPlan, likeness
from tests.test_gang import DIGITS, SGD
from tests.test_gang_across_seeds import ADAMW, MODELS, WithModel
from tests.test_gang_models import SpareHead
from tests.test_study import Quiet

CPU = torch.device("cpu")
RATES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.1)
SIZE = 8
EIGHT = CompiledGang(SIZE, 5)
"""Six train beside two copies of the last."""
PLAN = TrainingPlan(1, SGD, device="cpu", compile="on")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture(autouse=True)
def compiled(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[torch.fx.GraphModule]]:
    """Return a list to which each compiling adds what it compiles."""
    made: list[torch.fx.GraphModule] = []
    really = torch.compile

    def compiling(graph: torch.fx.GraphModule, **settings: object) -> Callable[..., torch.Tensor]:
        made.append(graph)
        if request.node.get_closest_marker("skipif") is None:
            settings["backend"] = "aot_eager"
        return really(graph, **settings)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "compile", compiling)
    monkeypatch.setattr(compiled_step, "_compiled", {})
    yield made
    torch._dynamo.reset()


def begun(name: str, optimizer: Choice = SGD, precision: torch.dtype = torch.float64) -> Run:
    plan = TrainingPlan(1, optimizer, device="cpu", gradient_clip_norm=1.0)
    return new_run(WithModel(3, MODELS[name], precision), plan, CPU, 3)


def stacked(name: str, members: int, optimizer: Choice = SGD, precision: torch.dtype = torch.float64) -> StackedRun:
    own = [{**optimizer.settings, "weight_decay": 0.01 * number} for number in range(members)]
    return StackedRun([begun(name, optimizer, precision)] * members, own, EIGHT)


def alone(name: str, optimizer: Choice, number: int) -> Run:
    return begun(name, Choice(optimizer.name, {**optimizer.settings, "weight_decay": 0.01 * number}))


def assert_as_alone(together: StackedRun, single: Sequence[Run], tolerance: float = 1e-9) -> None:
    for row, run in enumerate(single):
        found = together.stacked.state_dict(row)
        for key, own in run.model.state_dict().items():
            assert float((found[key] - own).abs().max()) <= tolerance, key
    for split in ("validation", "test"):
        found_values, expected = together.evaluate(split), [run.evaluate(split) for run in single]
        assert len(found_values) == len(expected)
        for (loss, metric), (loss_alone, metric_alone) in zip(found_values, expected, strict=True):
            assert loss == pytest.approx(loss_alone, abs=tolerance)
            assert metric == metric_alone
    for losses, run in zip(together.take_losses(), single, strict=True):
        assert losses == pytest.approx(run.take_losses(), abs=tolerance)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=lambda one: one.name)
@pytest.mark.parametrize("name", [pytest.param("convolutions", marks=pytest.mark.slow), "perceptron"])
def test_members_train_and_shrink_as_each_does_alone(
    name: str, optimizer: Choice, compiled: list[torch.fx.GraphModule]
) -> None:
    single = [alone(name, optimizer, number) for number in range(len(RATES))]
    together, rates = stacked(name, len(RATES), optimizer), torch.tensor(RATES, dtype=torch.float64)
    assert together.is_warming

    def step(count: int) -> None:
        for _ in range(count):
            for run, rate in zip(single, rates.tolist(), strict=True):
                run.step(rate)
            together.step(rates)

    step(50)
    assert (together.is_warming, together.why_not_compiled) == (False, None)
    assert together.stacked.count == SIZE
    assert_as_alone(together, single)
    for rows, size in (([0, 1, 2, 4, 5], SIZE), ([1, 3], 2)):  # more than half of what was compiled for, and less
        together.keep(rows)
        single, rates = [single[row] for row in rows], rates[rows]
        step(10)
        assert together.stacked.count == size
        assert_as_alone(together, single)
    assert len(compiled) == 1, "for the first size alone"


@pytest.mark.parametrize("really", [False, pytest.param(True, marks=[needs_compiler, pytest.mark.slow])])
def test_weights_that_take_no_part_stay_as_they_are(really: bool, compiled: list[torch.fx.GraphModule]) -> None:
    def begin() -> Run:
        plan = TrainingPlan(1, SGD, device="cpu", gradient_clip_norm=1.0)
        return new_run(WithModel(3, SpareHead, torch.float64), plan, CPU, 3)

    together, single = StackedRun([begin()] * 6, [SGD.settings] * 6, EIGHT), [begin() for _ in RATES]
    for _ in range(6):
        for run, rate in zip(single, RATES, strict=True):
            run.step(rate)
        together.step(torch.tensor(RATES, dtype=torch.float64))
    assert (together.is_warming, together.why_not_compiled) == (False, None)
    assert len(compiled) == 1
    assert_as_alone(together, single)


def test_a_gang_like_one_before_is_not_compiled_again(compiled: list[torch.fx.GraphModule]) -> None:
    for rate in (0.01, 0.1):
        together = stacked("perceptron", 6)
        for _ in range(3):
            together.step(torch.full((6,), rate, dtype=torch.float64))
        assert not together.is_warming
    other = stacked("perceptron", 5)
    for _ in range(3):
        other.step(torch.full((5,), 0.01, dtype=torch.float64))
    assert len(compiled) == 1, "of five the step is the same, too"


def test_a_scheduled_momentum_moves_in_compiled_steps(compiled: list[torch.fx.GraphModule]) -> None:
    settings = [SGD.settings] * 6
    together = StackedRun([begun("perceptron")] * 6, settings, EIGHT)
    single = [begun("perceptron") for _ in RATES]
    for number in range(12):
        momentum = 0.95 - 0.03 * number
        for run, rate in zip(single, RATES, strict=True):
            run.step(rate, momentum)
        together.step(torch.tensor(RATES, dtype=torch.float64), torch.full((6,), momentum, dtype=torch.float64))
    assert compiled
    assert_as_alone(together, single)


def test_a_member_at_nan_changes_no_bit_of_the_others(compiled: list[torch.fx.GraphModule]) -> None:
    calm, wild = (stacked("convolutions", 6, precision=torch.float32) for _ in range(2))
    rates = torch.tensor(RATES)
    mad = rates.clone()
    mad[2] = 1e30
    for _ in range(12):
        calm.step(rates)
        wild.step(mad)
    assert compiled
    state = wild.stacked.state_dict(2).values()
    assert not all(bool(one.isfinite().all()) for one in state)
    for row in (0, 1, 3, 4, 5):
        pairs = zip(calm.stacked.state_dict(row).values(), wild.stacked.state_dict(row).values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


class Counting(nn.Module):
    """Counts its steps in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.count = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.count += 1
        outputs: torch.Tensor = self.layer(inputs.flatten(1)) / (1 + self.count)
        return outputs


class Remembering(nn.Module):
    """Computes with a tensor that nobody knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.kept = [torch.ones(10, dtype=torch.float64)]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(inputs.flatten(1)) * self.kept[0]
        return outputs


class WithLoss(WithModel):
    """Digits with a loss of one's own."""

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(3, MODELS["perceptron"], torch.float64)
        self.own = loss

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.own(outputs, targets)


class Annealed:
    """A loss that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return F.cross_entropy(outputs, targets) * (2 if self.calls > 8 else 1)


def throwing_dice(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets) * (3 if random.random() < 0.2 else 1)


def looking(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    largest: int = max(targets.tolist())
    return F.cross_entropy(outputs, targets) * (1 + largest % 2)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [(Annealed(), "the data hold"), (throwing_dice, "throws its dice"), (looking, "")],
    ids=["counts", "dice", "looks"],
)
def test_a_loss_that_is_more_than_a_computation_is_not_compiled(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], reason: str, compiled: list[torch.fx.GraphModule]
) -> None:
    together = StackedRun(
        [new_run(WithLoss(loss), replace(PLAN, compile="off"), CPU, 3)] * 6, [SGD.settings] * 6, EIGHT
    )
    calls, drawn = getattr(loss, "calls", 0), random.getstate()
    for _ in range(2):
        together.step(torch.tensor(RATES, dtype=torch.float64))
    assert together.why_not_compiled
    assert reason in together.why_not_compiled
    assert not compiled
    assert getattr(loss, "calls", 2) - calls in (0, 2), "what was traced does not count"
    if loss is throwing_dice:
        random.setstate(drawn)
        plain = StackedRun([new_run(WithLoss(loss), replace(PLAN, compile="off"), CPU, 3)] * 6, [SGD.settings] * 6)
        for _ in range(2):
            plain.step(torch.tensor(RATES, dtype=torch.float64))
        assert together.take_losses() == plain.take_losses()


def test_a_step_that_fails_is_not_taken_again() -> None:
    steps, taken = compiled_step.CompiledSteps(), []

    def work(inputs: torch.Tensor) -> torch.Tensor:
        taken.append(1)
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        steps.step(work, [torch.ones(3)], list, work)
    assert len(taken) == 1


def test_members_that_leave_have_nothing_traced_again(
    monkeypatch: pytest.MonkeyPatch, compiled: list[torch.fx.GraphModule]
) -> None:
    traced, honest = [], compiled_step._traced

    def counted(*arguments: Any) -> Any:
        traced.append(1)
        return honest(*arguments)

    monkeypatch.setattr(compiled_step, "_traced", counted)
    together = stacked("perceptron", 8)
    for live in (8, 7, 6, 5):
        together.keep(range(live)) if live < 8 else None
        for _ in range(3):
            together.step(torch.full((live,), 0.01, dtype=torch.float64))
        together.take_losses()
        assert not together.is_warming
    assert len(traced) == 2
    assert len(compiled) == 1


def test_without_compiling_no_copies_train(compiled: list[torch.fx.GraphModule]) -> None:
    run = new_run(WithModel(3, Counting, torch.float64), replace(PLAN, compile="off"), CPU, 3)
    together = StackedRun([run] * 6, [SGD.settings] * 6, EIGHT)
    for _ in range(3):
        together.step(torch.tensor(RATES, dtype=torch.float64))
    assert len(together.take_losses()) == 6
    assert together.stacked.count == 6
    assert together.why_not_compiled
    together.keep(range(5))
    assert together.stacked.count == 5


def test_other_momenta_and_decays_are_the_same_step(compiled: list[torch.fx.GraphModule]) -> None:
    for momentum, decay in ((0.9, 1e-3), (0.8, 1e-4), (0.5, 0.0)):
        own = [{**SGD.settings, "momentum": momentum, "weight_decay": decay + 1e-5 * row} for row in range(6)]
        together = StackedRun([begun("perceptron")] * 6, own, EIGHT)
        for _ in range(3):
            together.step(torch.tensor(RATES, dtype=torch.float64))
        assert together.why_not_compiled is None
    assert len(compiled) == 1


def test_a_gang_that_does_not_stay_compiled_is_not_chosen() -> None:
    tried = Rehearsal(WithModel(3, Switching, torch.float64), replace(PLAN, compile="off"), CPU, 3, [])
    assert tried.check(1, 4, CompiledGang(4, 4)) == "an evaluation changes what the model holds"


class Switching(nn.Module):
    """Counts how often it was put into training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.rounds = 0

    def train(self, mode: bool = True) -> Switching:
        self.rounds += mode
        return super().train(mode)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(inputs.flatten(1)) * (1 + 0.1 * self.rounds)
        return outputs


def test_what_an_evaluation_changes_is_compiled_no_more(compiled: list[torch.fx.GraphModule]) -> None:
    runs = [new_run(WithModel(3, Switching, torch.float64), replace(PLAN, compile="off"), CPU, 3) for _ in range(7)]
    together = StackedRun([runs[6]] * 6, [SGD.settings] * 6, EIGHT)
    for _ in range(3):
        for _ in range(5):
            for run, rate in zip(runs[:6], RATES, strict=True):
                run.step(rate)
            together.step(torch.tensor(RATES, dtype=torch.float64))
        assert_as_alone(together, runs[:6])
    assert together.why_not_compiled == "an evaluation changes what the model holds"
    assert len(compiled) == 1


def perceptron_with_dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (MODELS["averaging"], "buffers are other tensors"),
        (MODELS["reading"], "recurrent layers"),
        (Counting, "changes what the model or the data hold"),
        (Remembering, "neither parameter nor buffer"),
    ],
)
def test_what_compiling_would_change_trains_as_it_is(
    build: Callable[[], nn.Module], reason: str, compiled: list[torch.fx.GraphModule]
) -> None:
    runs = [new_run(WithModel(3, build, torch.float64), replace(PLAN, compile="off"), CPU, 3) for _ in range(7)]
    together = StackedRun([runs[6]] * 6, [SGD.settings] * 6, EIGHT)
    for _ in range(10):
        for run, rate in zip(runs[:6], RATES, strict=True):
            run.step(rate)
        together.step(torch.tensor(RATES, dtype=torch.float64))
    assert reason in (together.why_not_compiled or "")
    assert not together.is_warming
    assert not compiled
    assert_as_alone(together, runs[:6])


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_a_compiler_that_makes_something_else_of_a_step_is_found_out(
    precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of torch 2.11 does, which may update a weight before the backward pass has read it."""

    def wrong(graph: torch.fx.GraphModule, **_: object) -> Callable[..., torch.Tensor]:
        def step(*tensors: torch.Tensor) -> torch.Tensor:
            before = tensors[-1].clone()
            losses: torch.Tensor = graph(*tensors)
            tensors[-1].add_(tensors[-1] - before, alpha=0.001)
            return losses

        return step

    monkeypatch.setattr(torch, "compile", wrong)
    together = stacked("perceptron", 6, precision=precision)
    for _ in range(3):
        together.step(torch.tensor(RATES, dtype=precision))
    assert together.why_not_compiled == (
        "ValueError: torch.compile makes something else of the step than what it computes"
    )


def test_chance_that_was_drawn_while_compiling_is_given_back(compiled: list[torch.fx.GraphModule]) -> None:
    loaded = WithModel(3, perceptron_with_dropout, torch.float32)
    together = StackedRun([new_run(loaded, replace(PLAN, compile="off"), CPU, 3)] * 6, [SGD.settings] * 6, EIGHT)
    together.step(torch.tensor(RATES))
    before = torch.get_rng_state()
    together._compiling._way = compiled_step._find(  # type: ignore[union-attr]
        lambda *tensors: torch.dropout(tensors[1], 0.5, True).sum(), [torch.ones(3)], [torch.ones(5)]
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert compiled


def test_a_batch_of_another_shape_is_trained_as_it_is() -> None:
    steps = compiled_step.CompiledSteps()
    held = [torch.zeros(3)]

    def work(inputs: torch.Tensor) -> torch.Tensor:
        held[0] += inputs.sum()
        return held[0].clone()

    def traceable(inputs: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        own += inputs.sum()
        return own.clone()

    sums = [float(steps.step(work, [torch.ones(size)], lambda: held, traceable)[0]) for size in (4, 4, 4, 2, 4)]
    assert sums == [4.0, 8.0, 12.0, 14.0, 18.0]
    assert (steps.is_warming, steps.why_not) == (False, None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Have gangs take 50 microseconds for each member and 10 when compiled; return what is timed."""
    honest, asked = Rehearsal.seconds_per_member, []

    def seconds(
        rehearsal: Rehearsal, size: int, crowds: int, compiled: CompiledGang | None = None, **limits: Any
    ) -> float:
        asked.append((size, compiled is not None))
        honest(rehearsal, size, crowds, compiled)
        return 1e-5 if compiled else 5e-5

    monkeypatch.setattr(Rehearsal, "seconds_per_member", seconds)
    monkeypatch.setattr("lrsearch.training.is_faster", lambda: False)
    return asked


@pytest.fixture
def timed(asked: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """And have no trial alone compiled."""
    monkeypatch.setattr("lrsearch.training.compiled", lambda: lambda model, inputs: model(inputs))
    return asked


def test_a_compiled_gang_is_chosen_where_it_takes_less_and_known_the_next_time(
    timed: list[tuple[int, bool]], compiled: list[torch.fx.GraphModule]
) -> None:
    chosen = choose(DIGITS, PLAN, 0, most=SIZE, search_steps=10**4)
    assert (chosen.size, chosen.compiled, chosen.reason) == (SIZE, EIGHT, "")
    assert chosen.measured[0] == (SIZE, 1e-5)
    assert chosen.smallest == 2
    assert len(compiled) == 1
    again = choose(DIGITS, PLAN, 0, most=SIZE, search_steps=10**4)
    assert replace(again, solo=chosen.solo) == chosen
    assert timed[-1] == (SIZE, True), "it is compiled in each process"
    assert len(compiled) == 1
    plain = choose(DIGITS, replace(PLAN, compile="off"), 0, most=SIZE, search_steps=10**4)
    assert (plain.size, plain.compiled) == (SIZE, None)


def test_a_survey_times_the_largest_gang_compiled_too_where_the_study_file_says_so(
    timed: list[tuple[int, bool]], compiled: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (2, SIZE, 4)
    found, why = gang_choice.timings(DIGITS, PLAN, 0, sizes)
    assert [*found] == [(1, False), (2, False), (SIZE, False), (4, False), (SIZE, True)]
    assert (found[SIZE, True], why) == (1e-5, "")
    assert len(compiled) == 1
    found, why = gang_choice.timings(DIGITS, replace(PLAN, compile="off"), 0, sizes)
    assert [*found] == [(1, False), (2, False), (SIZE, False), (4, False)]
    monkeypatch.setattr(Rehearsal, "check", lambda *how: "they differ" if how[-1] == CompiledGang(SIZE, SIZE) else "")
    found, why = gang_choice.timings(DIGITS, PLAN, 0, sizes)
    assert [*found] == [(1, False), (2, False), (SIZE, False), (4, False)]
    assert why == "they differ"


def test_left_open_a_gang_is_compiled_where_the_study_is_long_enough(
    timed: list[tuple[int, bool]], compiled: list[torch.fx.GraphModule]
) -> None:
    """A minute is a hundredth of 1.2e8 steps; where it is known what compiling saves, it may take that: 1.5e6 steps."""
    plan = replace(PLAN, compile="gangs")
    for steps, compiles in ((10**8, False), (2 * 10**8, True), (10**6, False), (2 * 10**6, True)):
        chosen = choose(DIGITS, plan, 0, most=SIZE, search_steps=steps, compiling_must_pay=True)
        assert (chosen.size, chosen.compiled, chosen.reason_compiled) == (SIZE, EIGHT if compiles else None, "")
    assert len(compiled) == 1


@pytest.mark.parametrize(("epochs", "chosen"), [(1.0, "off"), (1e7, "gangs")])
def test_left_open_the_study_says_whether_its_gangs_are_compiled(
    epochs: float, chosen: str, timed: list[tuple[int, bool]]
) -> None:
    request = GangRequest(DIGITS, replace(PLAN, compile="off"), SIZE, SIZE, 1, epochs)
    prepared = prepare_all([(DIGITS, request.training)], 0, [request], 1.0, open_to=("graphs", "gangs"))
    assert prepared.compile == chosen
    [(kind, choice)] = prepared.gangs.items()
    assert kind == likeness(DIGITS, replace(PLAN, compile=prepared.compile))
    assert choice.compiled == (EIGHT if chosen == "gangs" else None)


def test_left_open_what_cannot_be_compiled_is_not_tried_again(
    timed: list[tuple[int, bool]], failing: list[str]
) -> None:
    for _ in range(2):
        chosen = choose(
            DIGITS, replace(PLAN, compile="gangs"), 0, most=SIZE, search_steps=10**9, compiling_must_pay=True
        )
        assert (chosen.size, chosen.compiled, chosen.reason_compiled) == (SIZE, None, "")
    assert len(failing) == 1


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have torch.compile fail, and return a list of what it said."""
    said: list[str] = []

    def fail(graph: torch.fx.GraphModule, **settings: object) -> None:
        said.append("no such header")
        raise RuntimeError(said[-1])

    monkeypatch.setattr(torch, "compile", fail)
    return said


def test_where_compiling_fails_gangs_train_without_it(monkeypatch: pytest.MonkeyPatch, failing: list[str]) -> None:
    monkeypatch.setattr("lrsearch.training.compiled", lambda: lambda model, inputs: model(inputs))
    monkeypatch.setattr(gang_choice, "MUST_SAVE", 1e9)
    chosen = choose(DIGITS, PLAN, 0, most=SIZE, search_steps=10**4)
    assert (chosen.compiled, chosen.reason) == (None, "")
    assert chosen.size > 1
    assert "no such header" in chosen.reason_compiled
    [_, told] = _together(chosen)
    assert told.startswith("Trials train together uncompiled, although training.compile says otherwise: ")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["convolutions", "perceptron"])
def test_by_the_real_compiler_members_train_as_each_does_alone(name: str, compiled: list[torch.fx.GraphModule]) -> None:
    single = [alone(name, SGD, number) for number in range(len(RATES))]
    together = stacked(name, len(RATES))
    for _ in range(50):
        for run, rate in zip(single, RATES, strict=True):
            run.step(rate)
        together.step(torch.tensor(RATES, dtype=torch.float64))
    assert len(compiled) == 1
    assert_as_alone(together, single)


STUDY = """
version: 1
name: compiled
workload: {name: digits, model: mlp, batch_size: 32}
training: {epochs: 2, device: cpu, optimizer: {name: sgd, momentum: 0.9}, compile: COMPILE}
seeds: [0]
rates: {low: 1e-3, high: 3.0}
strategies:
  grid: {name: grid, points: 10, schedule: {name: constant}}
  clr: {name: range_tested, schedule: {name: triangular2, cycles: 1}}
gangs: auto
"""


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("asked")
def test_a_study_of_compiled_gangs_finds_what_one_of_others_finds(
    tmp_path: Path, compiled: list[torch.fx.GraphModule]
) -> None:
    records = {}
    for compiles in ("on", "gangs", "off"):
        (tmp_path / "study.yaml").write_text(STUDY.replace("COMPILE", compiles))
        with open_store(f"sqlite:///{tmp_path}/{compiles}.db") as store:
            records[compiles] = run_study(load_study(tmp_path / "study.yaml"), store, observer=Quiet())
    grids = [[one for one in record.trials if one.strategy == "grid"] for record in records.values()]
    assert {trial.gang_size for trial in [*grids[0], *grids[1]]} == {10}
    assert any(isinstance(graph, torch.fx.GraphModule) for graph in compiled)
    for found, expected in [*zip(grids[0], grids[2], strict=True), *zip(grids[1], grids[2], strict=True)]:
        assert found.proposal == expected.proposal
        assert found.result is not None
        assert expected.result is not None
        if found.proposal.learning_rate is not None and found.proposal.learning_rate < 0.3:
            assert found.result.validation_loss == pytest.approx(expected.result.validation_loss, rel=0.05)
        assert found.phase_seconds.keys() == expected.phase_seconds.keys(), "compiling is on no trial's bill"
