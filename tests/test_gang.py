"""Trials that are trained together give what each gives alone, and their two bills add up."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrsearch import gang
from lrsearch.cache import remember
from lrsearch.engine import run_trials
from lrsearch.errors import StorageError
from lrsearch.gang import CannotGangError, StackedRun, check_alike, choose, run_gang
from lrsearch.interfaces import Split
from lrsearch.training import Run, load
from lrsearch.trial import (
    CheckpointPlan,
    Choice,
    CurvePoint,
    DeviceInfo,
    GangChoice,
    ParameterGroup,
    Preparation,
    Proposal,
    RangeTestPlan,
    SoloCost,
    TrainingPlan,
    TrialResult,
    TrialSpec,
    charged_seconds,
    likeness,
    pooled,
)
from tests.records import FACTS

SGD = Choice("sgd", {"momentum": 0.9, "weight_decay": 5e-4})
DIGITS = Choice("digits", {"batch_size": 64, "model": "mlp"})
COST = SoloCost(setup_seconds=0.25, step_seconds=0.5, validation_seconds=2.0, range_test_seconds=1.0)


class Listener:
    """Collects the points of each trial; stops those in `stopped` at their second one."""

    def __init__(self, stopped: Sequence[str] = ()) -> None:
        self.points: dict[str, list[CurvePoint]] = {}
        self._stopped = stopped

    def report(self, uuid: str, point: CurvePoint) -> bool:
        self.points.setdefault(uuid, []).append(point)
        return uuid not in self._stopped or len(self.points[uuid]) < 2


CONSTANT = Choice("constant")


def spec(number: int, rate: float, schedule: Choice = CONSTANT, **training: Any) -> TrialSpec:
    base_lr, max_lr = (None, None) if schedule == CONSTANT else (rate / 4, rate)
    plan = replace(TrainingPlan(epochs=2, optimizer=SGD, device="cpu"), **training)
    return TrialSpec(
        f"00000000-0000-0000-0000-{number:012d}",
        "s",
        "w",
        0,
        number,
        Proposal("train", schedule, rate, base_lr, max_lr),
        DIGITS,
        plan,
        solo=COST,
    )


def alone(specs: Sequence[TrialSpec], listener: Listener | None = None) -> list[TrialResult]:
    return [run_trials([one], listener or Listener())[0] for one in specs]


def assert_equal(together: Sequence[TrialResult], alone: Sequence[TrialResult]) -> None:
    """Compare all but times; numbers to what float32's rounding does over a short run."""
    for found, expected in zip(together, alone, strict=True):
        for name in ("uuid", "status", "train_steps", "diverged_step", "error", "device"):
            assert getattr(found, name) == getattr(expected, name), name
        assert len(found.curve) == len(expected.curve)
        for point, wanted in zip((*found.curve, found), (*expected.curve, expected), strict=True):
            for key, value in dataclasses.asdict(wanted).items():  # type: ignore[call-overload]
                if isinstance(value, float) and "seconds" not in key:
                    slack = 3 / 288 if "metric" in key else 3e-3  # rounding may turn an answer or two of 288
                    assert getattr(point, key) == pytest.approx(value, rel=2e-4, abs=slack), key


CASES: dict[str, list[TrialSpec]] = {
    "rates": [spec(0, 0.001), spec(1, 0.01), spec(2, 0.03)],
    "momenta and decays": [
        spec(0, 0.01, optimizer=Choice("sgd", {"momentum": 0.0, "weight_decay": 0.1})),
        spec(1, 0.01, optimizer=Choice("sgd", {"momentum": 0.9, "weight_decay": 0.0})),
    ],
    "schedules of different lengths": [
        spec(0, 0.03, Choice("triangular2", {"cycles": 1})),
        spec(1, 0.02, epochs=3),
        spec(2, 0.01, epochs=1),
        spec(3, 0.02, Choice("triangular", {"cycles": 3}), epochs=3),
    ],
    "momentum that is scheduled": [
        spec(n, 0.01 * (n + 1), Choice("one_cycle", {"base_momentum": 0.8, "max_momentum": 0.95})) for n in range(2)
    ],
    "adamw, clipped, in groups": [
        spec(
            n,
            0.001 * (n + 1),
            optimizer=Choice("adamw", {"weight_decay": 0.1}),
            gradient_clip_norm=0.5,
            groups=(ParameterGroup("*.bias", 2.0, 0.0), ParameterGroup("1.weight", 0.0)),
        )
        for n in range(3)
    ],
    "in bfloat16": [spec(n, 0.01 * (n + 1), precision="bfloat16", epochs=1) for n in range(2)],
}


@pytest.mark.parametrize("case", CASES)
def test_trials_that_train_together_give_what_each_gives_alone(case: str) -> None:
    specs, listener = CASES[case], Listener()
    together = run_gang(specs, listener)
    assert_equal(together, alone(specs))
    assert [one.gang_size for one in together] == [len(specs)] * len(specs)
    assert [tuple(listener.points[one.uuid]) for one in together] == [one.curve for one in together]


def test_one_that_diverges_or_is_pruned_leaves_and_changes_no_bit_of_the_others() -> None:
    healthy = [spec(0, 0.01), spec(1, 0.02)]
    calm = run_gang([*healthy, spec(2, 0.005), spec(3, 0.005)], Listener())
    wild = [*healthy, spec(2, 1e30, epochs=4), spec(3, 0.01, epochs=4)]
    results = run_gang(wild, Listener(stopped=[wild[3].uuid]))
    assert [one.status for one in results] == ["completed", "completed", "diverged", "pruned"]
    assert results[2].diverged_step == alone(wild[2:3])[0].diverged_step
    assert results[2].test_metric is None
    assert results[3].test_metric is not None
    assert len(results[3].curve) == 2
    for beside, before in zip(results[:2], calm[:2], strict=True):
        assert (beside.curve[0].validation_loss, beside.curve[0].train_loss) == (
            before.curve[0].validation_loss,
            before.curve[0].train_loss,
        )
        assert beside.test_metric == before.test_metric


def test_the_bill_says_what_each_would_have_taken_alone_and_the_other_what_was_taken() -> None:
    specs = [spec(0, 0.01, epochs=1), spec(1, 0.01, epochs=2)]
    short, long = run_gang(specs, Listener())
    for result, epochs in ((short, 1), (long, 2)):
        own = charged_seconds(result.phase_seconds)
        assert own == pytest.approx(COST.setup_seconds + result.train_steps * 0.5 + epochs * COST.validation_seconds)
        assert result.curve[-1].charged_device_seconds == pytest.approx(own)
    assert short.billed_phase_seconds is not None
    assert long.billed_phase_seconds is not None
    assert 0 < short.billed_phase_seconds["train"] < long.billed_phase_seconds["train"] < 5.0
    assert short.core_seconds > 0


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (spec(1, 0.1, gradient_clip_norm=1.0), "differ in more"),
        (spec(1, 0.1, optimizer=Choice("sgd", {"momentum": 0.9, "nesterov": True})), "differ in more"),
        (replace(spec(1, 0.1), solo=None), "not measured"),
        (replace(spec(1, 0.1), proposal=Proposal("range_test", range_test=RangeTestPlan(1e-4, 1.0))), "range test"),
    ],
)
def test_trials_that_differ_in_more_are_refused_and_then_run_alone(other: TrialSpec, reason: str) -> None:
    specs = [spec(0, 0.1), other]
    with pytest.raises(CannotGangError, match=reason):
        check_alike(specs)
    results = run_trials(specs, Listener())
    assert [one.gang_size for one in results] == [1, 1]
    assert [one.status for one in results] == ["completed", "completed"]


def test_an_optimizer_that_is_not_written_for_several_is_refused() -> None:
    adagrad = [spec(n, 0.1, optimizer=Choice("adagrad", {})) for n in range(2)]
    with pytest.raises(CannotGangError, match="adagrad"):
        check_alike(adagrad)


OWN_GRADIENT = """
import torch

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        return inputs * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(5, 2)

    def forward(self, inputs):
        return self.layer(Doubled.apply(inputs) if inputs.sum() > -1e9 else inputs)

def model():
    return Net()

def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 5, generator=generator)
    targets = (inputs[:, 0] > 0).long()
    return (inputs[:300], targets[:300]), (inputs[300:], targets[300:])
"""


@pytest.fixture
def own_gradient(tmp_path: Path) -> Choice:
    (tmp_path / "gangs_own_gradient.py").write_text(OWN_GRADIENT)
    module = "gangs_own_gradient"
    return Choice(
        "callable",
        {"batch_size": 16, "model": f"{module}:model", "data": f"{module}:data", "python_path": str(tmp_path)},
    )


def test_a_model_that_goes_by_its_data_trains_alone_and_the_choice_says_why(own_gradient: Choice) -> None:
    specs = [replace(spec(n, 0.01 * (n + 1)), workload=own_gradient) for n in range(2)]
    with pytest.raises(CannotGangError):
        run_gang(specs, Listener())
    assert [one.gang_size for one in run_trials(specs, Listener())] == [1, 1]
    chosen = choose(own_gradient, specs[0].training, 0, most=4, search_steps=10**6)
    assert chosen.size == 1
    assert "control flow" in chosen.reason or "vmap" in chosen.reason


def test_members_of_a_gang_that_breaks_down_train_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One has ended by then and keeps what it has; the others tell no point twice."""
    specs = [replace(spec(0, 0.01), training=replace(spec(0, 0.01).training, epochs=1)), spec(1, 0.02), spec(2, 0.05)]
    step, steps, reports = StackedRun.step, 0, Reports()

    def breaks(run: StackedRun, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 30:  # of two epochs of 17
            raise RuntimeError("something broke")
        step(run, *arguments)

    monkeypatch.setattr(StackedRun, "step", breaks)
    results = run_gang(specs, reports)
    assert [result.status for result in results] == ["completed"] * 3
    assert_equal(results, alone(specs))
    assert results[0].gang_size == 3
    for result in results[1:]:
        assert [point.step for point in reports.points[result.uuid]] == [point.step for point in result.curve]
        assert result.gang_size == 1
        own, billed = result.phase_seconds, result.billed_phase_seconds or {}
        assert billed["train"] > own["train"], "what the gang took of it is billed too"
    assert [uuid for uuid, _ in reports.said] == [result.uuid for result in results[1:]]
    assert "broke down (RuntimeError: something broke)" in reports.said[0][1]


class Reports(Listener):
    """Hears what trials have to say, too."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, str]] = []

    def message(self, uuid: str, text: str) -> None:
        self.said.append((uuid, text))


def test_where_memory_is_short_two_smaller_gangs_train(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(gang.StackedRun):
        def __init__(self, run: Any, settings: Sequence[Any], compiled: Any = None) -> None:
            if len(settings) > 2:
                raise torch.OutOfMemoryError("as many as this do not fit")
            super().__init__(run, settings, compiled)

    monkeypatch.setattr(gang, "StackedRun", Large)
    results = run_trials([spec(n, 0.01, epochs=1) for n in range(5)], Listener())
    assert [one.gang_size for one in results] == [2, 2, 1, 2, 2] or [one.gang_size for one in results] == [
        2,
        2,
        1,
        1,
        1,
    ]
    assert {one.status for one in results} == {"completed"}


class Cut(Listener):
    """Ends the gang, as if it was killed, at its second epoch."""

    def report(self, uuid: str, point: CurvePoint) -> bool:
        if point.epoch > 1.5:
            raise StorageError("cut short")
        return super().report(uuid, point)


@pytest.mark.parametrize(
    "settings",
    [
        [SGD, SGD],
        [Choice("sgd", {"momentum": momentum, "weight_decay": decay}) for momentum, decay in ((0.9, 0.0), (0.3, 0.1))],
        [Choice("adamw", {"weight_decay": decay}) for decay in (0.0, 0.3)],
    ],
    ids=["sgd", "sgd of their own", "adamw"],
)
def test_each_member_goes_on_alone_from_its_own_checkpoint(tmp_path: Path, settings: list[Choice]) -> None:
    groups = (ParameterGroup("*.bias", 2.0, 0.5),)
    specs = [
        replace(spec(n, 0.002 * (n + 1), epochs=3, optimizer=own), checkpoint=CheckpointPlan(str(tmp_path), 0.0))
        for n, own in enumerate(settings)
    ]
    specs = [replace(one, training=replace(one.training, groups=groups)) for one in specs]
    with pytest.raises(StorageError, match="cut short"):
        run_gang(specs, Cut())
    assert len(list(tmp_path.glob("*.ckpt"))) == 4
    again = [
        replace(one, checkpoint=CheckpointPlan(str(tmp_path), 1e9, attempt=2, charged_seconds=(100.0,)))
        for one in specs
    ]
    resumed = run_trials(again, Listener())
    assert [one.gang_size for one in resumed] == [1, 1]
    assert_equal(resumed, alone([replace(one, checkpoint=None) for one in specs]))
    for one in resumed:
        assert one.curve[0].charged_device_seconds < 0, "an earlier attempt reached it"


FIRST_GANG = """
import sys
import torch
from lrsearch import gang
from tests.test_gang import SGD, Choice, Listener, TrainingPlan, replace, spec
plan = TrainingPlan(epochs=20, optimizer=SGD, device="cpu")
own = Choice("callable", {{"model": "own:model", "data": "own:data", "batch_size": 16, "python_path": {folder!r}}})
gang.MUST_SAVE = gang.GANG_MUST_SAVE = 1e9
if {remembered}:
    gang.remember("gangs", [*gang._circumstances(own, plan, torch.device("cpu")), 2], {{"size": 2}})
assert gang.choose(own, plan, 0, most=2, search_steps=10**6).size == 2
before = set(sys.modules)
results = gang.run_together([replace(spec(n, 0.01), workload=own) for n in range(2)], Listener())
assert [one.gang_size for one in results] == [2, 2]
print([name for name in set(sys.modules) - before if name.startswith(("torch", "sympy"))])
"""


class TestChoice:
    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(gang, "SOLO_SECONDS", 0.2)

    @pytest.fixture
    def always_pays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("MUST_SAVE", "GANG_MUST_SAVE", "HOPELESS"):
            monkeypatch.setattr(gang, name, 1e9)

    @pytest.mark.usefixtures("always_pays")
    def test_what_was_chosen_is_remembered_and_the_cost_alone_measured_anew(self) -> None:
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

    def test_where_gangs_cost_more_trials_train_alone_and_that_is_known_from_few_steps(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest_step, alone, together = Run.step, [], []
        honest_gang_step = gang.StackedRun.step

        def counted(run: Run, rate: float, momentum: float | None = None) -> None:
            alone.append(rate)
            honest_step(run, rate, momentum)

        def slow(run: gang.StackedRun, rates: torch.Tensor, momentum: torch.Tensor | None = None) -> None:
            together.append(len(rates))
            honest_gang_step(run, rates, momentum)
            time.sleep(0.2)

        monkeypatch.setattr(Run, "step", counted)
        monkeypatch.setattr(gang.StackedRun, "step", slow)
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

    @pytest.mark.usefixtures("always_pays")
    def test_the_longer_a_study_the_more_steps_alone_are_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        honest, steps = Run.step, []

        def counted(run: Run, rate: float, momentum: float | None = None) -> None:
            steps.append(rate)
            honest(run, rate, momentum)

        monkeypatch.setattr(Run, "step", counted)
        monkeypatch.setattr(gang, "SOLO_SECONDS", 1e9)
        choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, most=2, search_steps=100)
        short = len(steps)
        choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, most=2, search_steps=2 * 10**5)
        assert 56 <= short < 70
        assert 75 < len(steps) - short < 1500, "an eighth of a hundredth is 250, where steps take as long as the first"
        steps.clear()
        choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, most=2, search_steps=100, slots=3)
        assert 24 <= len(steps) < 38, "three processes time 72 of them"

    @pytest.mark.parametrize(("known", "steps"), [(0.0, 0), (1e-9, 0), (1e9, 100), (1e-9, 10**5)])
    def test_an_evaluation_that_takes_longer_than_there_is_time_for_is_not_made_again(
        self, known: float, steps: int, monkeypatch: pytest.MonkeyPatch
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

    def test_what_several_processes_find_out_about_a_trial_alone_is_taken_together(self) -> None:
        here, other = DeviceInfo("cpu", "here"), DeviceInfo("cpu", "another machine of the cluster")
        cost = replace(COST, blocks=(0.5, 0.5, 0.7))

        def prepared(device: DeviceInfo, solo: SoloCost | None, size: int = 2) -> Preparation:
            return Preparation(FACTS, device, "float32", "off", 1.0, {"kind": GangChoice(size, solo=solo)})

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

    def test_gangs_across_seeds_are_timed_beside_and_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gang, "MUST_SAVE", 1e9)
        monkeypatch.setattr(gang, "GANG_MUST_SAVE", 1e9)
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
        self, monkeypatch: pytest.MonkeyPatch, seconds: float, *, pays: bool
    ) -> None:
        monkeypatch.setattr(gang._Rehearsal, "seconds_per_member", lambda *_, **limits: 1e-9)
        monkeypatch.setattr(gang._Rehearsal, "evaluation_seconds", lambda *_: seconds)
        counts: dict[str, Any] = {"most": 1, "most_across": 2, "crowds": 2, "search_steps": 1000}
        chosen = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, **counts)
        assert chosen.across == 2
        assert (chosen.most_evaluations > 1) == pays

    def test_where_no_gang_across_seeds_saves_anything_the_choice_says_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gang, "MUST_SAVE", 0.0)
        monkeypatch.setattr(gang, "GANG_MUST_SAVE", 0.0)
        counts: dict[str, Any] = {"most": 1, "most_across": 2, "crowds": 2, "search_steps": 10**5}
        chosen = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, **counts)
        assert (chosen.size, chosen.across) == (1, 1)
        assert "of a step alone" in chosen.reason_across

    @pytest.mark.parametrize(
        ("measured", "size"),
        [
            (((16, 0.50), (8, 0.48), (2, 0.9)), 16),
            (((16, 0.60), (8, 0.50), (4, 0.49), (2, 0.9)), 8),
            (((16, 0.96), (8, 0.93), (2, 1.2)), 8),  # the larger one saves too little
            (((16, 0.99), (8, 0.97), (2, 1.2)), 8),  # none saves enough
            (((6, 1.0),), 6),
        ],
    )
    def test_a_smaller_gang_must_save_more_than_timing_errs_by(
        self, measured: tuple[tuple[int, float], ...], size: int
    ) -> None:
        assert gang._best(measured, 1.0)[0] == size

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
        self, measured: tuple[tuple[int, float], ...], smallest: int
    ) -> None:
        assert gang._smallest(measured, 1.0) == smallest

    def test_a_model_that_cannot_be_stacked_any_more_trains_alone(self, own_gradient: Choice) -> None:
        plan = TrainingPlan(20, SGD, device="cpu")
        remember("gangs", [*gang._circumstances(own_gradient, plan, torch.device("cpu")), 4], {"size": 4})
        chosen = choose(own_gradient, plan, 0, most=4, search_steps=10**6)
        assert chosen.size == 1
        assert chosen.reason

    @pytest.mark.slow
    @pytest.mark.parametrize("remembered", [False, True])
    def test_what_torch_imports_for_a_gang_is_imported_before_its_clock_starts(
        self, remembered: bool, tmp_path: Path
    ) -> None:
        (tmp_path / "own.py").write_text(OWN_GRADIENT.replace("Net()", "torch.nn.Linear(5, 2)"))
        program = FIRST_GANG.format(remembered=remembered, folder=str(tmp_path))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "[]\n"

    def test_a_short_search_times_the_largest_and_the_smallest_size_only(self) -> None:
        chosen = choose(DIGITS, TrainingPlan(epochs=1, optimizer=SGD, device="cpu"), 0, most=16, search_steps=20)
        assert [size for size, _ in chosen.measured] == [16, 2]

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
        self, seconds: Sequence[float], measured: Sequence[tuple[int, float]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waiting, device = list(seconds), torch.device("cpu")
        monkeypatch.setattr(gang._Rehearsal, "seconds_per_member", lambda *_, **__: waiting.pop(0))
        plan = TrainingPlan(epochs=1, optimizer=SGD, device="cpu")
        rehearsal = gang._Rehearsal(load(DIGITS, device, 0), plan, device, 0, [])
        assert rehearsal.times(8, 1, 1e9, 1.0) == (measured, "")
        assert not waiting

    @pytest.mark.parametrize(
        ("most", "optimizer", "reason"), [(1, SGD, "one trial"), (8, Choice("adagrad", {}), "adagrad")]
    )
    def test_what_cannot_be_chosen_says_why(self, most: int, optimizer: Choice, reason: str) -> None:
        chosen = choose(DIGITS, TrainingPlan(1, optimizer, device="cpu"), 0, most=most, search_steps=10**6)
        assert chosen.size == 1
        assert reason in chosen.reason

    def test_a_stacked_model_that_computes_something_else_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        honest = gang.StackedRun.step

        def wrong(self: gang.StackedRun, rates: torch.Tensor, momentum: torch.Tensor | None = None) -> None:
            honest(self, rates * 1000, momentum)

        monkeypatch.setattr(gang.StackedRun, "step", wrong)
        chosen = choose(DIGITS, TrainingPlan(20, SGD, device="cpu"), 0, most=4, search_steps=10**6)
        assert chosen.size == 1
        assert "alone" in chosen.reason


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        (lambda plan: replace(plan, epochs=9), True),
        (lambda plan: replace(plan, optimizer=Choice("sgd", {"momentum": 0.5, "weight_decay": 0.1})), True),
        (lambda plan: replace(plan, optimizer=Choice("adam", {})), False),
        (lambda plan: replace(plan, precision="bfloat16"), False),
    ],
)
def test_likeness_goes_by_what_a_gang_must_share(change: Callable[[TrainingPlan], TrainingPlan], alike: bool) -> None:
    plan = TrainingPlan(epochs=2, optimizer=SGD)
    assert (likeness(DIGITS, plan) == likeness(DIGITS, change(plan))) is alike
