"""How many trials train together is timed, remembered and told; what does not pay or cannot be trains alone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrsearch import gang_choice, rehearsal, stacked_run, training
from lrsearch.batches import Batches
from lrsearch.cache import remember
from lrsearch.gang_choice import choose
from lrsearch.interfaces import Split
from lrsearch.rehearsal import Rehearsal, Solo
from lrsearch.training import Run, load
from lrsearch.trial import (
    Choice,
    DeviceInfo,
    GangChoice,
    Preparation,
    SoloCost,
    TrainingPlan,
    pooled,
)
from lrsearch.workloads._examples import LoadedExamples
from tests.clock import Clock
from tests.records import FACTS
from tests.test_gang import COST, DIGITS, OWN_GRADIENT, SGD, own_gradient_in

FIRST_GANG = """
import sys
import torch
from lrsearch import gang, gang_choice
from lrsearch.cache import remember
from tests.test_gang import SGD, Choice, Listener, TrainingPlan, replace, spec
plan = TrainingPlan(epochs=20, optimizer=SGD, device="cpu")
own = Choice("callable", {{"model": "own:model", "data": "own:data", "batch_size": 16, "python_path": {folder!r}}})
gang_choice.MUST_SAVE = 1e9
if {remembered}:
    remember("gangs", [*gang_choice._circumstances(own, plan, torch.device("cpu")), 2], {{"size": 2}})
assert gang_choice.choose(own, plan, 0, most=2, search_steps=10**6).size == 2
before = set(sys.modules)
results = gang.run_together([replace(spec(n, 0.01), workload=own) for n in range(2)], Listener())
assert [one.gang_size for one in results] == [2, 2]
print([name for name in set(sys.modules) - before if name.startswith(("torch", "sympy"))])
"""

READ = """
import torch
from torch.utils.data import Dataset

class Noisy(Dataset):
    def __len__(self):
        return 160

    def __getitem__(self, row):
        return {"x": torch.randn(4)}, row % 2

class Model(torch.nn.Linear):
    def forward(self, batch):
        return super().forward(batch.pop("x"))

def model():
    return Model(4, 2)

def data():
    return Noisy(), Noisy(), Noisy()
"""


@pytest.fixture
def read(tmp_path: Path) -> Choice:
    """Return a workload whose batches are read in Python; its model takes them apart."""
    (tmp_path / "gangs_read.py").write_text(READ)
    names = {"model": "gangs_read:model", "data": "gangs_read:data"}
    return Choice("callable", {**names, "batch_size": 16, "python_path": str(tmp_path)})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rehearsal, "SOLO_SECONDS", 0.2)
    monkeypatch.setattr(training, "is_faster", lambda: False)  # test_products.py has what follows where it is


@pytest.fixture
def always_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang_choice, "MUST_SAVE", 1e9)
    monkeypatch.setattr(rehearsal, "HOPELESS", 1e9)
    monkeypatch.setattr(gang_choice, "HOPELESS", 1e9)


@pytest.mark.usefixtures("always_pays")
def test_what_was_chosen_is_remembered_and_the_cost_alone_measured_anew() -> None:
    plan = TrainingPlan(epochs=20, optimizer=SGD, device="cpu")
    first = choose(DIGITS, plan, 0, most=6, search_steps=10**5)
    assert first.measured[0][0] == 6
    assert first.measured[-1][0] == 2
    assert first.size in (2, 3, 6)
    assert 2 <= first.smallest <= first.size
    assert not first.reason
    again = choose(DIGITS, replace(plan, epochs=7), 0, most=6, search_steps=10**5)
    assert again.size == first.size
    assert again.measured == first.measured, "to the last digit: not measured again"
    assert again.solo is not None
    assert 0 < again.solo.step_seconds < 1
    assert again.solo != first.solo


def test_a_choice_that_a_trial_alone_makes_hopeless_is_made_again() -> None:
    """It was made in a moment when something else kept the machine busy."""
    plan = TrainingPlan(20, SGD, device="cpu")
    where = gang_choice._circumstances(DIGITS, plan, torch.device("cpu"))
    remember("gangs", [*where, 4], {"size": 4, "measured": [[4, 9.0], [2, 99.0]]})
    again = choose(DIGITS, plan, 0, most=4, search_steps=100)
    assert again.measured
    assert max(each for _, each in again.measured) < 1


def test_where_gangs_cost_more_trials_train_alone_and_that_is_known_from_few_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest_step, alone, together = Run.step, [], []
    honest_gang_step = stacked_run.StackedRun.step

    def counted(run: Run, rate: float, momentum: float | None = None) -> None:
        alone.append(rate)
        honest_step(run, rate, momentum)

    def slow(run: stacked_run.StackedRun, rates: torch.Tensor, momentum: torch.Tensor | None = None) -> None:
        together.append(len(rates))
        honest_gang_step(run, rates, momentum)
        time.sleep(0.2)

    monkeypatch.setattr(Run, "step", counted)
    monkeypatch.setattr(stacked_run.StackedRun, "step", slow)
    first = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, most=4, search_steps=100)
    assert first.size == 1
    assert "of a step alone for each" in first.reason
    assert [size for size, _ in first.measured] == [4, 2]
    assert first.solo is None
    assert (together.count(2), together.count(4)) == (6, 2), "four to compare with trials alone"
    assert len(alone) < 56
    alone.clear()
    again = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, most=4, search_steps=100)
    assert again == first
    assert not alone


@pytest.mark.parametrize(
    ("each", "steps", "tried", "reason", "auto"),
    [
        (1.1, 5_000, [4] * 3, "a step of 4 together takes 1.10 of a step alone for each", False),
        (1.1, 5_000, [4] * 3, "a step of 4 together takes 1.10 of a step alone for each", True),
        (
            0.9,
            500,
            [4] * 2,
            "trying gangs takes longer than they save in the 500 steps of a process's training runs",
            False,
        ),
        (0.5, 240, [], "trying gangs takes longer than they save in the 240 steps of a process's training runs", False),
        (0.9, 5_000, [4] * 2 + [2] * 4 + [12] * 4, "", False),
        (1.1, 10**5, [2] * 4 + [12] * 5 + [6], "a step of 12 together takes 1.10 of a step alone for each", False),
    ],
)
def test_gangs_of_long_steps_are_tried_only_as_far_as_the_study_can_repay_that(
    each: float, steps: int, tried: list[int], reason: str, auto: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def seconds(run: stacked_run.StackedRun, rates: torch.Tensor, *_: Any) -> float:
        sizes.append(len(rates))
        return each * 0.01 * len(rates)

    clock = Clock(monkeypatch, rehearsal)
    clock.charge(Run, "step", 0.01)
    clock.charge(stacked_run.StackedRun, "step", seconds)
    plan = TrainingPlan(20, SGD, device="cpu", compile="gangs" if auto else "off")  # as asked for with compile: auto
    chosen = choose(DIGITS, plan, 0, most=12, search_steps=steps, compiling_must_pay=auto)
    assert (chosen.size > 1, chosen.reason) == (not reason, reason)
    assert sizes[:10] == tried, "two steps each tell, or three; before the largest gang two trials are compared"


def test_short_steps_that_another_program_delays_do_not_tell_that_gangs_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def seconds(run: stacked_run.StackedRun, rates: torch.Tensor, *_: Any) -> float:
        steps.append(len(rates))
        return (5e-4 if steps.count(12) <= 2 else 5e-5) * len(rates)

    clock = Clock(monkeypatch, rehearsal)
    clock.charge(Run, "step", 1e-4)
    clock.charge(stacked_run.StackedRun, "step", seconds)
    chosen = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, most=12, search_steps=10**6)
    assert chosen.size == 12
    assert dict(chosen.measured)[12] == pytest.approx(5e-5)


@pytest.mark.parametrize("reading", [1e-3, 1e-2])
def test_a_gang_pays_by_sharing_what_reading_takes_and_the_start_of_those_who_read_is_no_part_of_that(
    read: Choice, monkeypatch: pytest.MonkeyPatch, reading: float
) -> None:
    """As with a DataLoader of two workers, each of which brings its first batch late."""
    clock = Clock(monkeypatch, rehearsal)
    clock.charge(Batches, "__next__", lambda batches: 1.0 if batches._taken <= 2 else reading)
    clock.charge(Run, "step", 1e-3)
    clock.charge(stacked_run.StackedRun, "step", lambda run, rates, *_: 1e-3 * len(rates))
    chosen = choose(read, TrainingPlan(20, SGD, device="cpu"), 0, most=8, search_steps=150)
    assert (chosen.size, chosen.reason) == (8, "")
    assert dict(chosen.measured)[8] == pytest.approx(reading / 8 + 1e-3)


def test_ways_to_step_are_compared_without_what_reading_takes(read: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    device, plan = torch.device("cpu"), TrainingPlan(20, SGD, device="cpu")
    loaded = load(read, device, 0)
    clock = Clock(monkeypatch, training)
    clock.charge(Batches, "__next__", 1.0)
    clock.charge(Run, "step", 1e-3)
    honest, begun = LoadedExamples.train_batches, list[object]()

    def noted(*arguments: Any) -> Any:
        begun.append(arguments)
        return honest(*arguments)

    monkeypatch.setattr(LoadedExamples, "train_batches", noted)
    runs = [training.new_run(loaded, plan, device, 0) for _ in range(2)]
    assert training.step_seconds(runs, lambda: None) == pytest.approx([1e-3, 1e-3])
    assert len(begun) == 1


def test_a_model_may_take_its_batches_apart(read: Choice) -> None:
    plan = TrainingPlan(20, SGD, device="cpu")
    assert training.prepare(read, plan, 0, times_reading=True).reading is not None


def test_batches_that_cannot_be_copied_are_read_as_ever(read: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    device, plan = torch.device("cpu"), TrainingPlan(20, SGD, device="cpu")
    run = training.new_run(load(read, device, 0), plan, device, 0)
    computed = [torch.ones(1, requires_grad=True) * number for number in range(4)]
    monkeypatch.setattr(run, "batches", iter(computed))
    training.hold_batches([run], 2)
    assert list(map(id, run.batches)) == list(map(id, computed))


def test_a_gang_that_a_glance_at_a_trial_alone_does_not_show_to_save_is_compared_with_more_of_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The glance is the faster of two blocks, and what is chosen by it would be remembered."""
    steps: list[float] = []

    def seconds(run: Run, rate: float, *_: Any) -> float:
        steps.append(rate)
        return 0.0009 if len(steps) <= 18 else 0.001

    clock = Clock(monkeypatch, rehearsal)
    clock.charge(Run, "step", seconds)
    clock.charge(stacked_run.StackedRun, "step", lambda run, rates, *_: 0.00093 * len(rates))
    chosen = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, most=2, search_steps=100)
    assert (chosen.size, chosen.reason) == (2, "")


@pytest.mark.usefixtures("always_pays")
def test_the_longer_a_study_the_more_steps_alone_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest, steps = Run.step, []

    def counted(run: Run, rate: float, momentum: float | None = None) -> None:
        steps.append(rate)
        honest(run, rate, momentum)

    monkeypatch.setattr(Run, "step", counted)
    monkeypatch.setattr(rehearsal, "SOLO_SECONDS", 1e9)
    clock = Clock(monkeypatch, rehearsal)
    clock.charge(Run, "step", 1e-3)
    clock.charge(stacked_run.StackedRun, "step", lambda run, rates, *_: 1e-3 * len(rates))
    choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, most=2, search_steps=100)
    short = len(steps)
    choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, most=2, search_steps=2 * 10**5)
    assert 56 <= short < 70
    assert 250 < len(steps) - short < 280, "an eighth of a hundredth is 250; others are compared with those of gangs"
    steps.clear()
    choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, most=2, search_steps=100, slots=3)
    assert 24 <= len(steps) < 38, "three processes time 72 of them"


@pytest.mark.parametrize(("known", "steps"), [(0.0, 0), (1e-9, 0), (1e9, 100), (1e-9, 10**5)])
def test_an_evaluation_that_takes_longer_than_there_is_time_for_is_not_made_again(
    known: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, splits = Run.evaluate, []

    def noted(run: Run, split: Split) -> tuple[float | None, float | None]:
        splits.append(split)
        return honest(run, split)

    monkeypatch.setattr(Run, "evaluate", noted)
    plan = TrainingPlan(20, SGD, device="cpu")
    found = choose(DIGITS, plan, 0, most=2, search_steps=steps, forecasts=True, validation_seconds=known)
    assert found.solo is not None
    is_made_again = known == 0 or steps == 10**5
    assert ("validation" in splits) == is_made_again
    if not is_made_again:  # the two splits of digits have the same number of rows
        assert found.solo.validation_seconds == min(known, found.solo.range_test_seconds)


def test_a_moment_of_another_program_is_on_no_range_tests_bill_however_short_the_study(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Split] = []

    def seconds(run: Run, split: Split) -> float:
        seen.append(split)
        return 1e-3 if seen.count(split) > 1 else 0.9 * rehearsal.SOON

    Clock(monkeypatch, rehearsal).charge(Run, "evaluate", seconds)
    device, plan = torch.device("cpu"), TrainingPlan(20, SGD, device="cpu")
    cost = Solo(load(DIGITS, device, 0), plan, device, 0, search_steps=0, slots=1).cost(1.0)
    assert seen == ["range_test"] * 3
    assert cost.validation_seconds == cost.range_test_seconds == pytest.approx(1e-3)


def test_what_several_processes_find_out_about_a_trial_alone_is_taken_together() -> None:
    here, other = DeviceInfo("cpu", "here"), DeviceInfo("cpu", "another machine of the cluster")
    cost = replace(COST, blocks=(0.5, 0.5, 0.7))

    def prepared(device: DeviceInfo, solo: SoloCost | None, size: int = 2) -> Preparation:
        return Preparation(FACTS, device, "float32", "off", "auto", 1.0, {"kind": GangChoice(size, solo=solo)})

    slower = SoloCost(0.75, 9.0, 4.0, 3.0, 0.5, blocks=(9.0, 0.9, 0.8, 0.6))
    found = pooled(
        [
            prepared(here, cost),
            prepared(here, slower, 8),
            prepared(here, None),
            prepared(other, replace(cost, blocks=())),
        ]
    )
    assert found == prepared(here, SoloCost(0.5, 0.7, 3.0, 2.0, 0.25))
    assert pooled([prepared(here, None), prepared(here, cost)]) == prepared(here, None)


@pytest.mark.usefixtures("always_pays")
def test_gangs_across_seeds_are_timed_beside_and_remembered() -> None:
    counts: dict[str, Any] = {"most": 2, "most_across": 8, "crowds": 3, "search_steps": 10**5}
    first = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, **counts)
    assert (first.size, first.reason, first.reason_across) == (2, "", "")
    assert first.across in (2, 4, 8)
    assert first.enough == first.across, "they always pay here"
    again = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, **counts)
    assert replace(again, solo=first.solo) == first
    assert again.solo != first.solo
    lonely = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, **counts | {"most": 1})
    assert lonely.size == 1
    assert lonely.across > 1


@pytest.mark.parametrize(("seconds", "pays"), [(0.0, True), (100.0, False)])
def test_range_tests_of_several_seeds_go_by_their_evaluations_too(
    monkeypatch: pytest.MonkeyPatch, seconds: float, *, pays: bool
) -> None:
    monkeypatch.setattr(Rehearsal, "seconds_per_member", lambda *_, **limits: 1e-9)
    monkeypatch.setattr(Rehearsal, "evaluation_seconds", lambda *_: seconds)
    counts: dict[str, Any] = {"most": 1, "most_across": 2, "crowds": 2, "search_steps": 1000}
    chosen = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, **counts)
    assert chosen.across == 2
    assert (chosen.most_evaluations > 1) == pays


def test_seeds_whose_evaluations_cannot_be_made_together_train_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric is not asked before: it may take no few rows."""
    draws = Choice("digits", {"batch_size": 64, "model": "mlp"})
    metric = type(load(draws, torch.device("cpu"), 0)).metric

    def drawing(*arguments: Any) -> float:
        torch.rand(1)
        return metric(*arguments)

    monkeypatch.setattr(type(load(draws, torch.device("cpu"), 0)), "metric", drawing)
    monkeypatch.setattr(Rehearsal, "seconds_per_member", lambda *_, **limits: 1e-9)
    counts: dict[str, Any] = {"most": 2, "most_across": 4, "crowds": 2, "search_steps": 1000}
    chosen = choose(draws, TrainingPlan(20, SGD, device="cpu"), 0, **counts)
    assert (chosen.size, chosen.across) == (2, 1)
    assert "draws chance" in chosen.reason_across


def test_where_no_gang_across_seeds_saves_anything_the_choice_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang_choice, "MUST_SAVE", 0.0)
    counts: dict[str, Any] = {"most": 1, "most_across": 2, "crowds": 2, "search_steps": 10**5}
    chosen = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, **counts)
    assert (chosen.size, chosen.across) == (1, 1)
    assert "of a step alone" in chosen.reason_across


@pytest.mark.parametrize(
    ("measured", "size"),
    [
        (((16, 0.50), (8, 0.495), (2, 0.9)), 16),
        (((16, 0.60), (8, 0.50), (4, 0.495), (2, 0.9)), 8),
        (((16, 0.99), (8, 0.97), (2, 1.2)), 8),  # the larger one saves too little
        (((16, 1.01), (8, 0.99), (2, 1.2)), 8),  # none saves enough
        (((6, 1.0),), 6),
    ],
)
def test_a_smaller_gang_must_save_more_than_timing_errs_by(measured: tuple[tuple[int, float], ...], size: int) -> None:
    assert gang_choice._best(measured, 1.0)[0] == size


@pytest.mark.parametrize(
    ("measured", "smallest"),
    [
        (((16, 0.1), (8, 0.15), (2, 0.5)), 2),
        (((16, 0.1), (8, 0.15), (2, 1.02)), 3),  # steps of the gang: 2.04, 1.2 and 1.6 of one alone
        (((8, 0.5), (2, 1.1)), 3),  # 2.2 and 4.0: three are taken to need 2.5 of 2.94
        (((8, 0.9), (2, 1.4)), 6),  # 2.8 and 7.2: five 5.0 of 4.9, six 5.73 of 5.88
        (((4, 0.5),), 4),
        ((), 2),
    ],
)
def test_fewer_than_pay_are_found_between_the_sizes_that_were_timed(
    measured: tuple[tuple[int, float], ...], smallest: int
) -> None:
    assert gang_choice._smallest(measured, 1.0) == smallest


def test_a_model_that_cannot_be_stacked_any_more_trains_alone(tmp_path: Path) -> None:
    own_gradient = own_gradient_in(tmp_path)
    plan = TrainingPlan(20, SGD, device="cpu")
    remember("gangs", [*gang_choice._circumstances(own_gradient, plan, torch.device("cpu")), 4], {"size": 4})
    chosen = choose(own_gradient, plan, 0, most=4, search_steps=10**6)
    assert chosen.size == 1
    assert chosen.reason


@pytest.mark.slow
@pytest.mark.parametrize("remembered", [False, True])
def test_what_torch_imports_for_a_gang_is_imported_before_its_clock_starts(remembered: bool, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_GRADIENT.replace("Net()", "torch.nn.Linear(5, 2)"))
    program = FIRST_GANG.format(remembered=remembered, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_a_short_search_times_the_largest_and_the_smallest_size_only() -> None:
    chosen = choose(DIGITS, TrainingPlan(epochs=1, optimizer=SGD, device="cpu"), 0, most=16, search_steps=20)
    assert [size for size, _ in chosen.measured] == [16, 2]


@pytest.mark.parametrize(("fitting", "sizes", "told"), [(4, [4, 2], ""), (1, [], "OutOfMemoryError: of 2")])
def test_gangs_that_the_device_has_not_the_memory_for_are_passed_over(
    fitting: int, sizes: list[int], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(rehearsal: Rehearsal, size: int, crowds: int, **limits: Any) -> float:
        if size > fitting:
            raise torch.OutOfMemoryError(f"of {size}")
        return 1 / size

    device = torch.device("cpu")
    monkeypatch.setattr(Rehearsal, "seconds_per_member", timed)
    plan = TrainingPlan(epochs=1, optimizer=SGD, device="cpu")
    measured, reason = Rehearsal(load(DIGITS, device, 0), plan, device, 0, []).times(16, 1, 1e9, 1.0)
    assert ([size for size, _ in measured], reason) == (sizes, told)


@pytest.mark.parametrize(
    ("seconds", "measured"),
    [
        ((0.9, 0.6, 0.7, 0.5), ((8, 0.5), (4, 0.6), (2, 0.7))),
        ((0.9, 0.6, 0.7, 1.2), ((8, 0.9), (4, 0.6), (2, 0.7))),
        ((0.5, 0.6, 0.8), ((8, 0.5), (4, 0.6), (2, 0.8))),  # none saves over it
        ((1.3, 1.2, 1.1), ((8, 1.3), (4, 1.2), (2, 1.1))),  # none saves over a trial alone
    ],
)
def test_the_largest_gang_is_timed_again_where_a_smaller_one_saves(
    seconds: Sequence[float], measured: Sequence[tuple[int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, device = list(seconds), torch.device("cpu")
    monkeypatch.setattr(Rehearsal, "seconds_per_member", lambda *_, **__: waiting.pop(0))
    plan = TrainingPlan(epochs=1, optimizer=SGD, device="cpu")
    tried = Rehearsal(load(DIGITS, device, 0), plan, device, 0, [])
    assert tried.times(8, 1, 1e9, 1.0) == (measured, "")
    assert not waiting


@pytest.mark.parametrize(
    ("most", "optimizer", "reason"), [(1, SGD, "one trial"), (8, Choice("adagrad", {}), "adagrad")]
)
def test_what_cannot_be_chosen_says_why(most: int, optimizer: Choice, reason: str) -> None:
    chosen = choose(DIGITS, TrainingPlan(1, optimizer, device="cpu"), 0, most=most, search_steps=10**6)
    assert chosen.size == 1
    assert reason in chosen.reason


def test_a_stacked_model_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = stacked_run.StackedRun.step

    def wrong(self: stacked_run.StackedRun, rates: torch.Tensor, momentum: torch.Tensor | None = None) -> None:
        honest(self, rates * 1000, momentum)

    monkeypatch.setattr(stacked_run.StackedRun, "step", wrong)
    chosen = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, most=4, search_steps=10**6)
    assert chosen.size == 1
    assert "alone" in chosen.reason
