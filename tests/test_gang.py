"""Trials that are trained together give what each gives alone, and their two bills add up."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrsearch import checkpoint, gang, stacked_run, training
from lrsearch.engine import run_trials
from lrsearch.errors import DeviceFaultError, StorageError
from lrsearch.gang import check_alike, run_gang
from lrsearch.gang_choice import choose
from lrsearch.interfaces import Channel, Split
from lrsearch.stacked_run import CannotGangError, StackedRun
from lrsearch.training import run_trial
from lrsearch.trial import (
    CheckpointPlan,
    Choice,
    CurvePoint,
    ParameterGroup,
    Proposal,
    RangeTestPlan,
    SoloCost,
    TrainingPlan,
    TrialResult,
    TrialSpec,
    charged_seconds,
    likeness,
)
from tests.clock import Clock
from tests.records import some

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


def test_the_bill_says_what_each_would_have_taken_alone_and_the_other_what_was_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Clock(monkeypatch, gang).charge(StackedRun, "step", 0.2)
    specs = [spec(0, 0.01, epochs=1), spec(1, 0.01, epochs=2)]
    short, long = run_gang(specs, Listener())
    for result, epochs in ((short, 1), (long, 2)):
        own = charged_seconds(result.phase_seconds)
        assert own == pytest.approx(COST.setup_seconds + result.train_steps * 0.5 + epochs * COST.validation_seconds)
        assert result.curve[-1].charged_device_seconds == pytest.approx(own)
    both = [some(one.billed_phase_seconds) for one in (short, long)]
    assert [one["train"] for one in both] == pytest.approx([17 * 0.1, 17 * 0.1 + 17 * 0.2])
    assert short.core_seconds > 0


def test_telling_points_is_idle_as_it_is_alone_and_who_stays_pays_for_who_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch, gang, training)
    clock.charge(Listener, "report", 1.0)
    clock.charge(StackedRun, "keep", 8.0)
    specs = [spec(0, 0.01), spec(1, 0.01, epochs=3)]
    results, expected = run_gang(specs, Listener()), alone(specs)
    for one, lonely in zip(results, expected, strict=True):
        assert one.phase_seconds["idle"] == lonely.phase_seconds["idle"] == len(one.curve)
        told = [[point.charged_device_seconds for point in result.curve] for result in (one, lonely)]
        assert told[0] == pytest.approx(told[1])
    assert [some(one.billed_phase_seconds)["train"] for one in results] == [0.0, 8.0]
    assert not any(some(one.billed_phase_seconds)["test_evaluation"] for one in results)


def test_a_trial_alone_in_such_a_study_is_charged_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, training).charge(training.Run, "step", 0.1)
    trial = spec(0, 0.01)
    [priced], [plain] = run_trials([trial], Listener()), run_trials([replace(trial, solo=None)], Listener())
    expected = 34 * COST.step_seconds + 2 * COST.validation_seconds + COST.setup_seconds
    own = charged_seconds(priced.phase_seconds)
    assert own == pytest.approx(expected)
    assert [point.charged_device_seconds for point in priced.curve] == [
        pytest.approx(COST.setup_seconds + epoch * (17 * COST.step_seconds + COST.validation_seconds))
        for epoch in (1, 2)
    ]
    assert priced.gang_size == 1
    assert plain.billed_phase_seconds is None
    assert some(priced.billed_phase_seconds).keys() == plain.phase_seconds.keys() - {"idle"}
    assert some(priced.billed_phase_seconds)["train"] == pytest.approx(3.3), "the first step is its warm-up"
    assert charged_seconds(plain.phase_seconds) == pytest.approx(3.4)


def test_a_range_test_alone_in_such_a_study_is_charged_alike() -> None:
    test = Proposal("range_test", range_test=RangeTestPlan(1e-4, 1e-2, epochs=1.0, min_steps=20))
    [result] = run_trials([replace(spec(0, 0.01), proposal=test)], Listener())
    evaluations = sum(point.validation_loss is not None for point in result.range_test)
    expected = result.train_steps * COST.step_seconds + evaluations * COST.range_test_seconds
    assert result.phase_seconds["range_test"] == pytest.approx(expected)
    assert result.train_steps == 20 >= evaluations > 5


def test_a_trial_that_could_not_begin_is_charged_what_that_took(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, training)
    lost = replace(spec(0, 0.01), workload=Choice("digits", {"batch_size": 64, "model": "mlp", "folds": 3}))
    [result] = run_trials([lost], Listener())
    assert (result.status, result.billed_phase_seconds) == ("failed", None)
    assert charged_seconds(result.phase_seconds) == 0.0


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


def own_gradient_in(folder: Path) -> Choice:
    """Return a workload whose module is written into that folder."""
    module = "gangs_own_gradient"
    (folder / f"{module}.py").write_text(OWN_GRADIENT)
    return Choice(
        "callable", {"batch_size": 16, "model": f"{module}:model", "data": f"{module}:data", "python_path": str(folder)}
    )


def test_a_model_that_goes_by_its_data_trains_alone_and_the_choice_says_why(tmp_path: Path) -> None:
    own_gradient = own_gradient_in(tmp_path)
    specs = [replace(spec(n, 0.01 * (n + 1)), workload=own_gradient) for n in range(2)]
    with pytest.raises(CannotGangError):
        run_gang(specs, Listener())
    assert [one.gang_size for one in run_trials(specs, Listener())] == [1, 1]
    chosen = choose(own_gradient, specs[0].training, 0, most=4, search_steps=10**6)
    assert chosen.size == 1
    assert "control flow" in chosen.reason or "vmap" in chosen.reason


DICING = """
import torch
import torch.nn.functional as F
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last, self.seen = torch.nn.Linear(5, 16), torch.nn.Linear(16, 2), 0
    def forward(self, inputs):
        self.seen += 1
        return self.last(F.dropout(torch.relu(self.first(inputs)), 0.3, training=True)) / (1 + 0.001 * self.seen)
def model():
    return Net()
def data():
    inputs = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    targets = (inputs[:, 0] > 0).long()
    return (inputs[:160], targets[:160]), (inputs[160:], targets[160:])
"""


SHRINKING = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(5, 16), torch.nn.Linear(16, 2)
    def forward(self, inputs):
        with torch.no_grad():
            self.last.weight.mul_(0.9)
        return self.last(torch.relu(self.first(inputs)))
def model():
    return Net()
"""
"""Takes from its weights in each pass, also when it is evaluated."""


def written_in(folder: Path, kind: str = "dicing", source: str = DICING) -> Choice:
    """Return the workload with the model of this module, and the data of DICING."""
    for name, text in (("dicing", DICING), (kind, source)):
        (folder / f"{name}.py").write_text(text)
    settings = {"model": f"{kind}:model", "data": "dicing:data", "batch_size": 16, "python_path": folder}
    return Choice("callable", settings)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("kind", ["dicing", "shrinking"])
def test_evaluations_that_change_something_are_made_where_each_makes_them_alone(
    tmp_path: Path, kind: str, *, pruned: bool
) -> None:
    """Those of the others, or a test evaluation of one that leaves, would change what its later steps go by."""
    workload = written_in(tmp_path, kind, {"dicing": DICING, "shrinking": SHRINKING}[kind])
    cyclic = CONSTANT if pruned else Choice("triangular2", {"cycles": 3})
    specs = [
        replace(spec(number, 0.02 * (number + 1), schedule, epochs=4), workload=workload)
        for number, schedule in enumerate((CONSTANT, cyclic, CONSTANT, cyclic))
    ]
    stopped = [specs[1].uuid] if pruned else []
    results = run_trials(specs, Listener(stopped))
    assert [one.status for one in results] == ["completed", "pruned" if pruned else "completed", *["completed"] * 2]
    assert {one.gang_size for one in results} == {4 if pruned else 2}
    assert_equal(results, alone(specs, Listener(stopped)))


def test_what_a_gang_took_that_had_to_begin_again_is_billed_and_not_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be idle seconds, which are on both bills."""
    clock = Clock(monkeypatch, gang, training)
    for run, seconds in ((StackedRun, 3.0), (training.Run, 2.0)):
        clock.charge(run, "step", seconds)
    monkeypatch.setattr(gang, "UNEVEN", set())
    workload = written_in(tmp_path)
    specs = [
        replace(spec(number, 0.02, schedule, epochs=2), workload=workload)
        for number, schedule in enumerate((CONSTANT, Choice("triangular", {"cycles": 3})))
    ]
    results = run_trials(specs, Listener())
    assert [one.gang_size for one in results] == [1, 1]
    steps = [one.train_steps for one in results]
    assert clock.seconds > 2 * sum(steps), "they were tried together first"
    assert sum(one.billed_seconds for one in results) == pytest.approx(clock.seconds)
    assert [one.phase_seconds["train"] for one in results] == [COST.step_seconds * own for own in steps]


def test_trials_of_other_schedules_that_are_evaluated_after_the_same_steps_stay_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next such trials are not tried together first."""
    workload = written_in(tmp_path)
    schedules = (CONSTANT, Choice("triangular", {"cycles": 3}), CONSTANT, Choice("triangular2", {"cycles": 3}))
    specs = [
        replace(spec(number, 0.02 * (number + 1), schedule, epochs=4), workload=workload)
        for number, schedule in enumerate(schedules)
    ]
    sizes: list[int] = []
    evaluate = StackedRun.evaluate

    def noting(run: StackedRun, *arguments: Any, **keywords: Any) -> Any:
        sizes.append(run.live)
        return evaluate(run, *arguments, **keywords)

    monkeypatch.setattr(StackedRun, "evaluate", noting)
    for tried in (1, 0):
        sizes.clear()
        results = run_trials(specs, Listener())
        assert {one.gang_size for one in results} == {2}
        assert sizes.count(4) == tried
    assert_equal(results, alone(specs))


def test_members_of_a_gang_that_breaks_down_train_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One has ended by then and keeps what it has; the others tell no point twice."""
    specs = [replace(spec(0, 0.01), training=replace(spec(0, 0.01).training, epochs=1)), spec(1, 0.02), spec(2, 0.05)]
    step, steps, reports = StackedRun.step, 0, Reports()
    stacked: list[weakref.ref[StackedRun]] = []

    def breaks(run: StackedRun, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        stacked.append(weakref.ref(run))
        if steps == 30:  # of two epochs of 17
            raise RuntimeError("something broke")
        step(run, *arguments)

    taken: list[Mapping[str, float]] = []

    def noting(trial: TrialSpec, channel: Channel) -> TrialResult:
        gc.collect()
        assert stacked[0]() is None, "its memory is needed"
        result = run_trial(trial, channel)
        taken.append(some(result.billed_phase_seconds))
        return result

    monkeypatch.setattr(StackedRun, "step", breaks)
    monkeypatch.setattr(gang, "run_trial", noting)
    results = run_gang(specs, reports)
    assert [result.status for result in results] == ["completed"] * 3
    assert_equal(results, alone(specs))
    assert results[0].gang_size == 3
    for result, alone_took in zip(results[1:], taken, strict=True):
        assert [point.step for point in reports.points[result.uuid]] == [point.step for point in result.curve]
        assert result.gang_size == 1
        assert result.phase_seconds["train"] == pytest.approx(2 * 17 * COST.step_seconds)
        billed = some(result.billed_phase_seconds)
        assert billed["train"] > alone_took["train"], "what the gang took of it is billed too"
        assert "idle" not in billed
    assert [uuid for uuid, _ in reports.said] == [result.uuid for result in results[1:]]
    assert "broke down (RuntimeError: something broke)" in reports.said[0][1]


EXITING = """
import torch
from dicing import data
class Net(torch.nn.Linear):
    seen = 0
    def forward(self, inputs):
        self.seen += self.training
        if self.seen > 3:
            raise SystemExit(3)
        return super().forward(inputs)
def model():
    return Net(5, 2)
"""


def test_a_model_that_exits_in_a_gang_fails_as_it_does_alone(tmp_path: Path) -> None:
    workload = written_in(tmp_path, "exiting", EXITING)
    specs = [replace(spec(n, 0.01), workload=workload) for n in range(2)]
    results = run_trials(specs, Listener())
    assert [one.status for one in results] == ["failed"] * 2
    assert some(results[0].error).startswith("SystemExit: 3 (")


UNSURE = """
import torch
from dicing import data as classes
def model():
    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1), torch.nn.Sigmoid())
def data():
    return [(inputs, targets.float().unsqueeze(1)) for inputs, targets in classes()]
loss = torch.nn.BCELoss()
def metric(outputs, targets):
    return float(((outputs > 0.5) == (targets > 0.5)).float().mean())
"""


def test_one_that_diverges_leaves_where_the_loss_takes_probabilities_alone(tmp_path: Path) -> None:
    """On a processor torch's own raises for what is no number, and so would a gang with one such member."""
    (tmp_path / "dicing.py").write_text(DICING)
    (tmp_path / "unsure.py").write_text(UNSURE)
    own = {name: f"unsure:{name}" for name in ("model", "data", "loss", "metric")}
    workload = Choice("callable", {**own, "batch_size": 16, "python_path": tmp_path})
    specs = [replace(spec(n, rate), workload=workload) for n, rate in enumerate((0.1, 1e20, 0.2))]
    results = run_trials(specs, Listener())
    assert [one.gang_size for one in results] == [3] * 3
    assert [one.status for one in results] == ["completed", "diverged", "completed"]
    assert_equal(results, alone(specs))


def test_one_that_was_to_stop_when_its_gang_broke_down_stops_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told so once, and is not asked again."""
    specs = [spec(n, 0.01 * (n + 1), epochs=3) for n in range(2)]
    evaluate = StackedRun.evaluate

    def breaks(run: StackedRun, split: Split, **keywords: Any) -> Any:
        if split == "test":
            raise torch.OutOfMemoryError("so many do not fit")
        return evaluate(run, split, **keywords)

    monkeypatch.setattr(StackedRun, "evaluate", breaks)
    results = run_gang(specs, Listener([specs[1].uuid]))
    assert [one.status for one in results] == ["completed", "pruned"]
    assert_equal(results, alone(specs, Listener([specs[1].uuid])))


def test_a_member_that_goes_on_from_its_gang_s_checkpoint_has_all_its_work_on_both_bills_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the checkpoints that it writes alone, from which its cost is known when it is killed."""
    steps, clock = 0, Clock(monkeypatch, gang, training)

    class Breaking(StackedRun):
        ended = False

        def step(self, *arguments: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == 40:  # of three epochs of 17
                Breaking.ended = True
                raise RuntimeError("something broke")
            super().step(*arguments)

    clock.charge(checkpoint, "write", lambda *_: 0.0 if Breaking.ended else 0.05)
    clock.charge(StackedRun, "step", 2e-3)
    clock.charge(training.Run, "step", 1e-3)
    monkeypatch.setattr(gang, "StackedRun", Breaking)
    cost = replace(COST, step_seconds=1e-3, setup_seconds=1e-3)
    specs = [
        replace(spec(n, 0.01, epochs=3), solo=cost, checkpoint=CheckpointPlan(str(tmp_path), 0.0)) for n in range(2)
    ]
    for one in run_gang(specs, Listener()):
        charged = [point.charged_device_seconds for point in one.curve]
        assert charged == sorted(charged)
        assert charged[-1] == pytest.approx(charged_seconds(one.phase_seconds))
        assert one.phase_seconds["idle"] == pytest.approx(38 * 0.05), "its half of the gang's 2 x 38 before the last"
        kept, billed = some(checkpoint.kept(tmp_path, one.uuid, 1)), some(one.billed_phase_seconds)
        assert kept.charged["train"] == one.phase_seconds["train"] == pytest.approx(51 * 1e-3)
        assert billed["train"] == pytest.approx(50e-3), "the first step is the gang's warm-up"
        assert some(kept.billed)["train"] == pytest.approx(billed["train"])


def test_a_device_that_stops_at_a_fault_is_of_no_more_use_to_a_gang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch says first, and what else fails on the way: the process has to end."""
    broken = False

    def synchronize() -> None:
        if broken:
            raise DeviceFaultError("its device failed: device-side assert triggered")

    def asserts(run: StackedRun, *arguments: Any) -> None:
        nonlocal broken
        broken = True
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(gang, "synchronizer", lambda device: synchronize)
    monkeypatch.setattr(StackedRun, "step", asserts)
    with pytest.raises(DeviceFaultError, match="its device failed"):
        run_trials([spec(0, 0.01), spec(1, 0.02)], Listener())


class Reports(Listener):
    """Hears what trials have to say, too."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, str]] = []

    def message(self, uuid: str, text: str) -> None:
        self.said.append((uuid, text))


def test_where_memory_is_short_two_smaller_gangs_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """By then nothing is left of the larger one, which would take the memory that they need."""
    failed: list[weakref.ref[Any]] = []

    class Large(stacked_run.StackedRun):
        def __init__(self, run: Any, settings: Sequence[Any], *others: Any) -> None:
            assert not any(one() for one in failed)
            super().__init__(run, settings, *others)

        def step(self, *arguments: Any) -> None:
            if len(arguments[0]) > 2:
                failed.append(weakref.ref(self))
                raise torch.OutOfMemoryError("as many as this do not fit")
            super().step(*arguments)

    monkeypatch.setattr(gang, "StackedRun", Large)
    results = run_trials([spec(n, 0.01, epochs=1) for n in range(5)], Listener())
    assert [one.gang_size for one in results] == [2, 2, 1, 2, 2]
    assert {one.status for one in results} == {"completed"}
    assert len(failed) == 2


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
    bills = [some(checkpoint.kept(tmp_path, one.uuid, 1)) for one in specs]
    for kept in bills:
        assert kept.charged["train"] == pytest.approx(34 * COST.step_seconds)
        assert 0 < some(kept.billed)["train"] < 10
    again = [
        replace(one, checkpoint=CheckpointPlan(str(tmp_path), 1e9, attempt=2, charged_seconds=(100.0,)))
        for one in specs
    ]
    resumed = run_trials(again, Listener())
    assert [one.gang_size for one in resumed] == [1, 1]
    assert_equal(resumed, alone([replace(one, checkpoint=None) for one in specs]))
    for one in resumed:
        assert one.curve[0].charged_device_seconds < 0, "an earlier attempt reached it"
        assert one.phase_seconds["train"] == pytest.approx((3 * 17 - 34) * COST.step_seconds), "the rest of its steps"


ADDING = """
import torch
from dicing import data
class Net(torch.nn.Linear):
    def get_extra_state(self):
        return {"made": "so"}
    def set_extra_state(self, state):
        assert state == {"made": "so"}
def model():
    return Net(5, 2)
"""


def test_members_whose_model_adds_to_its_state_have_checkpoints_too(tmp_path: Path) -> None:
    workload = written_in(tmp_path, "adding", ADDING)
    specs = [
        replace(spec(n, 0.01 * (n + 1), epochs=3), workload=workload, checkpoint=plan)
        for n, plan in enumerate([CheckpointPlan(str(tmp_path / "kept"), 0.0)] * 2)
    ]
    with pytest.raises(StorageError, match="cut short"):
        run_gang(specs, Cut())
    resumed = run_trials(specs, Listener())
    assert all(checkpoint.newest(tmp_path / "kept", one.uuid) for one in specs)
    assert_equal(resumed, alone([replace(one, checkpoint=None) for one in specs]))


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
