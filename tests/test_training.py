from __future__ import annotations

import importlib
import inspect
import itertools
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lrsearch import training
from lrsearch.engine import GangRequest, prepare_all, run_trials, time_step
from lrsearch.errors import (
    DataError,
    DeviceFaultError,
    MissingExtraError,
    StudyFailedError,
    UsageError,
    WorkloadError,
)
from lrsearch.executors.inline import Inline
from lrsearch.gang_choice import timings
from lrsearch.optimizers import OPTIMIZERS as SETTINGS
from lrsearch.range_test import evaluation_count
from lrsearch.strategies.default_rate import USUAL_RATES
from lrsearch.training import (
    LEARNING_RATE_FREE,
    OPTIMIZERS,
    climb,
    optimizer_class,
    pick_device,
    prepare,
    probe,
)
from lrsearch.trial import (
    CHARGED_PHASES,
    Choice,
    CurvePoint,
    ParameterGroup,
    Proposal,
    RangeTestPlan,
    TrainingPlan,
    TrialResult,
    TrialSpec,
)
from lrsearch.workloads import WORKLOADS
from tests.executors.contract import Listener
from tests.records import some

SGD = Choice("sgd", {"momentum": 0.9, "weight_decay": 5e-4})
DIGITS = Choice("digits", {"batch_size": 32, "model": "mlp"})


def spec(
    learning_rate: float = 0.1,
    schedule: str = "constant",
    *,
    epochs: float = 2,
    optimizer: Choice = SGD,
    **changes: Any,
) -> TrialSpec:
    return replace(
        TrialSpec(
            uuid="u",
            study="s",
            strategy="w",
            seed=0,
            number=0,
            proposal=Proposal("train", Choice(schedule), learning_rate),
            workload=DIGITS,
            training=TrainingPlan(epochs=epochs, optimizer=optimizer, device="cpu"),
        ),
        **changes,
    )


def run(trial: TrialSpec, listener: Listener | None = None) -> TrialResult:
    [result] = run_trials([trial], listener or Listener())
    return result


def timeless(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    return [replace(point, charged_device_seconds=0.0) for point in points]


@pytest.fixture
def callable_workload(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the user's module and return the workload that uses it."""

    def make(source: str, **settings: Any) -> Choice:
        name = f"user_{abs(hash(source)) % 10**8}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        return Choice("callable", {"batch_size": 16, "model": f"{name}:model", "data": f"{name}:data", **settings})

    return make


TABLE = """
import torch

def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 5, generator=generator)
    targets = (inputs[:, 0] + inputs[:, 1] > 0).long()
    return (inputs[:300], targets[:300]), (inputs[300:], targets[300:])

def model():
    return torch.nn.Linear(5, 2)
"""


def test_a_trial_reports_a_point_per_epoch_and_learns_digits() -> None:
    listener = Listener()
    result = run(spec(epochs=3), listener)
    assert result.status == "completed"
    assert result.error is None
    assert result.facts is not None
    steps = result.facts.steps_per_epoch
    assert [point.step for point in result.curve] == [steps, 2 * steps, 3 * steps]
    assert listener.points == list(result.curve)
    assert result.train_steps == 3 * steps
    assert result.validation_metric is not None
    assert result.validation_metric > 0.8
    assert result.test_metric is not None
    assert result.test_metric > 0.8
    assert result.validation_metric == result.curve[-1].validation_metric


def test_the_same_trial_twice_gives_the_same_curve() -> None:
    torch.manual_seed(1)
    first = run(spec())
    torch.manual_seed(2)
    second = run(spec())
    assert timeless(first.curve) == timeless(second.curve)
    assert first.test_metric == second.test_metric


def test_trials_of_one_seed_differ_in_their_rate_alone() -> None:
    """At rate 0 nothing moves, so the first losses of two different rates start from the same weights and data."""
    still = run(spec(1e-12, epochs=1)), run(spec(1e-11, epochs=1))
    losses = [result.curve[0].train_loss for result in still]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    other_seed = run(spec(1e-12, epochs=1, seed=1)).curve[0].train_loss
    assert other_seed != pytest.approx(losses[0], rel=1e-6)


def test_a_diverging_trial_is_a_result_with_its_step_and_its_cost() -> None:
    result = run(spec(1e4))
    assert result.status == "diverged"
    assert result.diverged_step is not None
    assert 1 <= result.diverged_step <= result.train_steps
    assert result.validation_metric is None
    assert result.test_metric is None
    assert result.curve[-1].train_loss is None
    assert result.phase_seconds["train"] > 0


def test_every_second_belongs_to_a_phase() -> None:
    result = run(spec())
    assert set(result.phase_seconds) <= {*CHARGED_PHASES, "data", "test_evaluation"}
    assert {"setup", "warmup", "train", "evaluate", "test_evaluation"} <= set(result.phase_seconds)
    cumulative = [point.charged_device_seconds for point in result.curve]
    assert cumulative == sorted(cumulative)
    assert cumulative[0] > 0
    assert result.core_seconds > 0


def test_a_stopped_trial_is_pruned_after_its_last_point() -> None:
    result = run(spec(epochs=5), Listener(stop_after=2))
    assert result.status == "pruned"
    assert len(result.curve) == 2
    assert result.test_metric is not None


def test_stopping_at_the_last_point_changes_nothing() -> None:
    assert run(spec(epochs=2), Listener(stop_after=2)).status == "completed"


def test_a_cyclical_run_is_evaluated_at_every_cycle_end() -> None:
    proposal = Proposal("train", Choice("triangular2", {"cycles": 3}), base_lr=0.01, max_lr=0.2)
    result = run(spec(epochs=2, proposal=proposal))
    ends = [point.step for point in result.curve if point.cycle_end]
    assert len(ends) == 3
    assert ends[-1] == result.train_steps
    assert max(point.learning_rate for point in result.curve) <= 0.2


def test_a_range_test_visits_the_ladder_and_keeps_the_values_of_each_rung() -> None:
    plan = RangeTestPlan(1e-5, 10.0)
    result = run(spec(proposal=Proposal("range_test", range_test=plan)))
    assert result.status == "completed"
    assert result.test_metric is None
    points = result.range_test
    assert points[0].learning_rate == pytest.approx(1e-5)
    ratios = [b.learning_rate / a.learning_rate for a, b in itertools.pairwise(points)]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-9)
    measured = [point for point in points if point.validation_metric is not None]
    assert len(measured) >= 30
    assert max(point.validation_metric or 0.0 for point in measured) > 0.6
    assert points[-1].train_loss is None, "the loss after the last rung was never computed"
    assert result.phase_seconds["range_test"] > 0


def test_the_first_loss_of_a_range_test_belongs_to_the_rung_before_it() -> None:
    """With a single tiny rate everywhere the losses are those of the constant run, one step late."""
    plan = RangeTestPlan(1e-12, 2e-12, min_steps=100, epochs=0.1)
    losses = [point.train_loss for point in run(spec(proposal=Proposal("range_test", range_test=plan))).range_test]
    constant = run(spec(1e-12, epochs=1)).curve[0].train_loss
    assert constant is not None
    steps = len(losses)
    assert steps == 100
    assert losses[-1] is None
    first_epoch = losses[: run(spec(epochs=1)).train_steps - 1]
    # The constant run's mean has one more term, the first: the two means differ by at most that term's weight.
    assert math.fsum(loss or 0.0 for loss in first_epoch) / len(first_epoch) == pytest.approx(constant, rel=0.02)


def need(name: str) -> None:
    """Skip the test when the optimizer's package is not installed."""
    if name in LEARNING_RATE_FREE:
        pytest.importorskip(LEARNING_RATE_FREE[name][0])


def test_a_study_file_may_name_just_the_optimizers_that_train() -> None:
    assert set(SETTINGS) == {*OPTIMIZERS, *LEARNING_RATE_FREE} == set(USUAL_RATES)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_the_settings_of_an_optimizer_and_their_defaults_are_the_optimizers_own(name: str) -> None:
    need(name)
    settings = SETTINGS[name].model_validate({"name": name}).model_dump(exclude={"name"})
    theirs = inspect.signature(optimizer_class(name)).parameters
    assert settings == {key: theirs[key].default for key in settings}
    if name in LEARNING_RATE_FREE:
        assert theirs["lr"].default == USUAL_RATES[name]


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_optimizer_trains(name: str) -> None:
    need(name)
    rate = {"sgd": 0.1, "adagrad": 0.05, "rmsprop": 1e-3, "adadelta": 1.0}.get(name, 3e-3)
    rate = USUAL_RATES[name] if name in LEARNING_RATE_FREE else rate
    result = run(spec(rate, optimizer=Choice(name)))
    assert result.status == "completed"
    assert result.validation_metric is not None
    assert result.validation_metric > 0.5


def losses_of_an_epoch(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Any]) -> list[float]:
    """Train by a loop written by hand."""
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch: backward is untyped
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_sgd_equals_a_loop_written_by_hand() -> None:
    result = run(spec(0.1, epochs=1))
    loaded = WORKLOADS["digits"](name="digits", **DIGITS.settings).load(torch.device("cpu"), 0)
    torch.manual_seed(0)
    model = loaded.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    losses = losses_of_an_epoch(model, optimizer, loaded.train_batches(torch.Generator().manual_seed(0)))
    assert result.curve[0].train_loss == pytest.approx(math.fsum(losses) / len(losses), rel=1e-6)


NORMALISED = TABLE.replace(
    "return torch.nn.Linear(5, 2)",
    "return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), "
    "torch.nn.Linear(8, 2))",
)


def test_schedule_free_equals_a_loop_written_by_hand_after_its_readme(callable_workload: Any) -> None:
    """Training losses prove that evaluating moved neither weights nor data nor chance; the loop evaluates only once."""
    schedulefree = pytest.importorskip("schedulefree")
    workload = callable_workload(NORMALISED)
    result = run(spec(0.5, workload=workload, optimizer=Choice("schedulefree_sgd", {"weight_decay": 1e-3})))
    loaded = WORKLOADS["callable"](name="callable", **workload.settings).load(torch.device("cpu"), 0)
    torch.manual_seed(0)
    model = loaded.build_model()
    optimizer = schedulefree.SGDScheduleFree(model.parameters(), lr=0.5, weight_decay=1e-3)
    optimizer.train()
    order = torch.Generator().manual_seed(0)
    _, losses = (losses_of_an_epoch(model, optimizer, loaded.train_batches(order)) for _ in range(2))
    assert result.curve[1].train_loss == pytest.approx(math.fsum(losses) / len(losses), rel=1e-6)

    optimizer.eval()
    order = torch.Generator().manual_seed(0)
    epochs = itertools.chain.from_iterable(loaded.train_batches(order) for _ in itertools.count())
    with torch.no_grad():
        for inputs, _ in itertools.islice(epochs, 50):
            model(inputs)
        model.eval()
        batches = list(loaded.evaluation_batches("validation"))
        outputs, targets = torch.cat([model(one) for one, _ in batches]), torch.cat([one for _, one in batches])
    expected = torch.nn.functional.cross_entropy(outputs, targets).item()
    # What the statistics were before has the weight 0.9^50 = 0.005, and only there the two differ.
    assert result.validation_loss == pytest.approx(expected, rel=2e-3)


NOISY = (
    TABLE.replace("torch.nn.Linear(5, 2)", "torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))")
    + """
import random
import numpy as np

class Noisy(torch.utils.data.Dataset):
    def __init__(self, examples):
        self.inputs, self.targets = examples
        self.own = np.random.default_rng(0)
    def __len__(self):
        return len(self.inputs)
    def __getitem__(self, index):
        return self.inputs[index] + np.random.rand() + random.random() + self.own.random(), self.targets[index]

def noisy():
    train, test = data()
    return Noisy(train), torch.utils.data.TensorDataset(*test), torch.utils.data.TensorDataset(*test)
"""
)


def test_where_schedule_free_looks_at_training_batches_to_evaluate_no_later_one_is_another(
    callable_workload: Any,
) -> None:
    workload = callable_workload(NOISY)
    workload = replace(workload, settings={**workload.settings, "data": f"{workload.settings['data'][:-4]}noisy"})
    device, losses = torch.device("cpu"), []
    for evaluates in (False, True):
        plan = TrainingPlan(1, Choice("schedulefree_sgd"), device="cpu")
        one = training.new_run(training.load(workload, device, 0), plan, device, 0)
        for step in range(4):
            one.step(0.1)
            if step == 1 and evaluates:
                one.evaluate("validation")
        losses.append(one.take_losses())
    assert losses[0] == losses[1]


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)  # what Python itself does for a module that cannot be imported
    with pytest.raises(
        MissingExtraError, match=r"'prodigy' needs the 'lrfree' extra: pip install 'lrsearch\[lrfree\]'"
    ):
        prepare(DIGITS, TrainingPlan(1, Choice("prodigy"), device="cpu"), 0)


def test_prodigy_trains_frozen_and_quiet_where_it_decays_weights(capfd: pytest.CaptureFixture[str]) -> None:
    need("prodigy")
    plan = replace(
        WITH_GROUPS, optimizer=Choice("prodigy", {"weight_decay": 0.01}), groups=(ParameterGroup("1.*", 0.0),)
    )
    prepare(DIGITS, plan, 0)
    assert run(spec(1.0, training=plan)).status == "completed"
    assert capfd.readouterr().out == ""


GROUPS = (ParameterGroup("1.*", 0.1), ParameterGroup("*.bias", 2.0, 0.0), ParameterGroup("5.weight", 1.0, 250.0))
WITH_GROUPS = TrainingPlan(epochs=1, optimizer=SGD, device="cpu", groups=GROUPS)


@pytest.fixture
def stepped_rates() -> Iterator[list[list[float]]]:
    """The rates of all parameter groups at each step that any optimizer takes."""
    rates: list[list[float]] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        rates.append([group["lr"] for group in optimizer.param_groups])

    handle = register_optimizer_step_pre_hook(note)
    yield rates
    handle.remove()


@pytest.mark.parametrize(
    "proposal",
    [
        Proposal("train", Choice("constant"), 0.05),
        Proposal("train", Choice("linear_to_zero", {"warmup_epochs": 0.3}), 0.1),
        Proposal("train", Choice("triangular2", {"cycles": 2}), base_lr=0.01, max_lr=0.1),
        Proposal("train", Choice("one_cycle"), max_lr=0.1),
        Proposal("range_test", range_test=RangeTestPlan(1e-5, 0.01, epochs=0.5)),
    ],
    ids=lambda proposal: proposal.schedule.name if proposal.schedule else "range test",
)
def test_groups_keep_their_ratios_at_every_step(proposal: Proposal, stepped_rates: list[list[float]]) -> None:
    result = run(spec(proposal=proposal, training=WITH_GROUPS))
    assert result.status == "completed"
    assert len(stepped_rates) == result.train_steps
    rates = [rest for rest, *_ in stepped_rates]
    assert stepped_rates == [[rate, 0.1 * rate, 2 * rate, rate] for rate in rates]
    if proposal.range_test:
        assert rates == [point.learning_rate for point in result.range_test]
    else:
        assert rates[-1] == result.curve[-1].learning_rate


def test_groups_equal_a_loop_with_parameter_groups_written_by_hand() -> None:
    result = run(spec(0.05, training=WITH_GROUPS))
    loaded = WORKLOADS["digits"](name="digits", **DIGITS.settings).load(torch.device("cpu"), 0)
    torch.manual_seed(0)
    model = loaded.build_model()
    own = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [own["3.weight"]]},
        {"params": [own["1.weight"], own["1.bias"]], "lr": 0.005},
        {"params": [own["3.bias"], own["5.bias"]], "lr": 0.1, "weight_decay": 0.0},
        {"params": [own["5.weight"]], "weight_decay": 0.125},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=5e-4)
    losses = losses_of_an_epoch(model, optimizer, loaded.train_batches(torch.Generator().manual_seed(0)))
    assert result.curve[0].train_loss == pytest.approx(math.fsum(losses) / len(losses), rel=1e-6)
    assert result.curve[0].train_loss != pytest.approx(run(spec(0.05, epochs=1)).curve[0].train_loss, rel=1e-3)


def test_a_multiplier_of_0_freezes_and_the_rest_trains(callable_workload: Any) -> None:
    source = TABLE.replace("return torch.nn.Linear(5, 2)", "MODELS.append(layers()); return MODELS[-1]") + (
        "MODELS = []\n\ndef layers():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))\n"
    )
    workload = callable_workload(source)
    plan = replace(WITH_GROUPS, groups=(ParameterGroup("0.*", 0.0),))
    assert run(spec(0.1, workload=workload, training=plan)).status == "completed"
    user = importlib.import_module(workload.settings["model"].partition(":")[0])
    torch.manual_seed(0)
    before, after = user.layers().state_dict(), user.MODELS[-1].state_dict()
    assert {name for name in before if torch.equal(before[name], after[name])} == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (("head.*",), r"groups\.0\.pattern 'head\.\*' matches no parameter .* left are: 1\.weight, 1\.bias, 3\.weight"),
        (("*.bias", "1.bias"), r"groups\.1\.pattern '1\.bias' matches no parameter that earlier patterns left"),
        (("*", "1.*"), r"groups\.1\.pattern .* left are: none"),
        (("*",), "freezes every parameter"),
    ],
)
def test_groups_that_match_or_train_nothing_stop_before_the_first_trial(groups: Sequence[str], message: str) -> None:
    plan = replace(WITH_GROUPS, groups=tuple(ParameterGroup(pattern, 0.0) for pattern in groups))
    with pytest.raises(UsageError, match=message):
        prepare(DIGITS, plan, 0)


def test_clipping_bounds_what_a_huge_gradient_does(callable_workload: Any) -> None:
    workload = callable_workload(TABLE)
    free = run(spec(1e20, epochs=1, workload=workload))
    plan = TrainingPlan(epochs=1, optimizer=Choice("sgd"), device="cpu", gradient_clip_norm=1e-20)
    clipped = run(spec(1e20, workload=workload, training=plan))
    assert clipped.status == "completed"
    assert free.validation_loss != clipped.validation_loss


def test_bfloat16_trains_close_to_float32() -> None:
    plan = TrainingPlan(epochs=3, optimizer=SGD, device="cpu", precision="bfloat16")
    result = run(spec(0.1, training=plan))
    assert result.validation_metric is not None
    assert result.validation_metric > 0.8


UNEVEN = {
    "a layer that begins later": """
    class Growing(torch.nn.Sequential):
        steps = 0
        def forward(self, inputs):
            self.steps += self.training
            return self[1](inputs + self[0](inputs) if self.steps > 3 else inputs)
    return Growing(torch.nn.Linear(5, 5), torch.nn.Linear(5, 2))""",
    "sparse gradients": """
    class Counted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(5, 2, sparse=True)
        def forward(self, inputs):
            return inputs @ self.table(torch.arange(5))
    return Counted()""",
    "complex weights": """
    class Spectral(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3, 2, dtype=torch.cfloat))
        def forward(self, inputs):
            return (torch.fft.rfft(inputs) @ self.weight).real
    return Spectral()""",
}


@pytest.mark.parametrize("optimizer", [Choice("sgd", {"momentum": 0.9}), Choice("adam")], ids=["sgd", "adam"])
@pytest.mark.parametrize("case", UNEVEN)
def test_weights_that_one_kernel_refuses_train_all_the_same(
    callable_workload: Any, case: str, optimizer: Choice
) -> None:
    if (case, optimizer.name) == ("sparse gradients", "adam"):
        pytest.skip("torch's Adam takes none")
    workload = callable_workload(TABLE.replace("return torch.nn.Linear(5, 2)", UNEVEN[case]))
    result = run(spec(0.02, optimizer=optimizer, epochs=8, workload=workload))
    assert result.status == "completed", result.error
    assert result.validation_metric is not None
    assert result.validation_metric > 0.8


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_weight_that_is_a_part_of_another_tensor_trains_as_one_of_its_own(name: str) -> None:
    """One kernel would take what lies between its numbers for some of them."""
    settings = SETTINGS[name].model_validate({"name": name}).model_dump(exclude={"name"})
    plan = TrainingPlan(1, Choice(name, settings | ({"momentum": 0.9} if name == "sgd" else {})), device="cpu")
    part, own = torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(4, 3, bias=False)
    part.weight = torch.nn.Parameter(torch.randn(3, 8, generator=torch.Generator().manual_seed(0))[:, ::2])
    own.weight = torch.nn.Parameter(part.weight.detach().clone(memory_format=torch.contiguous_format))
    for model in (part, own):
        optimizer = training.build_optimizer(plan, model)
        for _ in range(3):
            optimizer.zero_grad()
            (model(torch.ones(2, 4)) * torch.arange(3)).square().sum().backward()
            optimizer.param_groups[0]["lr"] = 0.01
            optimizer.step()
    assert torch.allclose(part.weight, own.weight, rtol=1e-5, atol=1e-6)


def test_a_model_that_raises_is_a_failed_trial_that_names_the_users_line(callable_workload: Any) -> None:
    source = TABLE.replace(
        "return torch.nn.Linear(5, 2)",
        """
    class Broken(torch.nn.Linear):
        def forward(self, inputs):
            raise RuntimeError("no forward today")
    return Broken(5, 2)""",
    )
    result = run(spec(workload=callable_workload(source)))
    assert result.status == "failed"
    assert result.error is not None
    assert "no forward today" in result.error
    assert "in forward" in result.error
    assert result.traceback is not None
    assert "Broken" in result.traceback
    with pytest.raises(WorkloadError, match="no forward today"):
        prepare(callable_workload(source), TrainingPlan(1, SGD, device="cpu"), 0)


LATE = """
    class Late(torch.nn.Linear):
        seen = 0
        def forward(self, inputs):
            self.seen += self.training
            if self.seen > 4:
                raise KIND("no more steps today")
            return super().forward(inputs)
    return Late(5, 2)"""


def test_what_no_database_takes_is_escaped_in_what_a_model_raises(callable_workload: Any) -> None:
    """As where a file's name is no UTF-8; PostgreSQL takes no NUL either."""
    raises = LATE.replace("KIND", "FileNotFoundError").replace("no more steps today", r"caf\udce9\0")
    result = run(spec(workload=callable_workload(TABLE.replace("return torch.nn.Linear(5, 2)", raises))))
    assert result.error is not None
    assert result.error.startswith(r"FileNotFoundError: caf\udce9\x00 (")
    assert result.traceback is not None
    assert r"FileNotFoundError: caf\udce9\x00" in result.traceback


@pytest.mark.parametrize("kind", ["RuntimeError", "SystemExit"])
def test_what_a_workload_raises_while_its_steps_are_timed_is_no_fault_of_ours(
    callable_workload: Any, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path))
    workload = callable_workload(TABLE.replace("return torch.nn.Linear(5, 2)", LATE.replace("KIND", kind)))
    plan = TrainingPlan(1, SGD, device="cpu")
    timing: list[Callable[[], object]] = [
        partial(prepare_all, [(workload, plan)], 0, [GangRequest(workload, plan, 8, 8, 1, 1000.0)], 1000.0),
        partial(time_step, workload, plan, 0, 1),
        partial(timings, workload, plan, 0, (2,)),
        partial(probe, workload, plan, 0),
    ]
    for work in timing:
        with pytest.raises(
            WorkloadError, match=rf"first training steps: {kind}: no more steps today \(.*, in forward\)"
        ):
            work()


def test_a_device_that_stops_at_a_fault_is_no_result_and_ends_a_process_that_trains_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each call that waits for it raises again: no trial that comes after is to blame."""
    waits = 0

    def fails() -> None:
        nonlocal waits
        waits += 1
        if waits > 3:
            raise DeviceFaultError("its device failed: device-side assert triggered")

    monkeypatch.setattr(training, "synchronizer", lambda device: fails)
    with pytest.raises(
        StudyFailedError, match=r"w, seed 0, trial 0 cannot end, nor can others .* its device failed: .*"
    ):
        Inline().start("cpu").submit(run_trials, [spec()], Listener())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("the tokenizer is out of memory slots"), False),
    ],
)
def test_what_says_that_memory_is_short(error: Exception, expected: bool) -> None:
    assert training.is_out_of_memory(error) == expected


def test_a_model_that_exits_does_not_take_the_study_with_it(callable_workload: Any) -> None:
    source = TABLE.replace("return torch.nn.Linear(5, 2)", "raise SystemExit(3)")
    assert run(spec(workload=callable_workload(source))).status == "failed"
    exits = """
    class Exiting(torch.nn.Linear):
        def forward(self, inputs):
            if self.training:
                raise SystemExit(3)
            return super().forward(inputs)
    return Exiting(5, 2)"""
    workload = callable_workload(TABLE.replace("return torch.nn.Linear(5, 2)", exits))
    with pytest.raises(WorkloadError, match=r"cannot take one training step: SystemExit: 3 \(.*, in forward\)"):
        prepare(workload, TrainingPlan(1, SGD, device="cpu"), 0)


REFUSING = (
    TABLE.replace("torch.nn.Linear(5, 2)", "Layers()")
    + """
class Layers(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    def forward(self, inputs):
        if WHERE == "model" and not self[0].weight.isfinite().all():
            raise ValueError("no such weights")
        return super().forward(inputs)
def loss(outputs, targets):
    if WHERE == "loss":
        return -torch.distributions.Categorical(logits=outputs).log_prob(targets).mean()
    return torch.nn.functional.cross_entropy(outputs, targets)
"""
)


def test_what_raises_before_any_weight_has_moved_is_an_error_also_beside_numbers_that_are_none(
    callable_workload: Any,
) -> None:
    masked = """
    class Masked(torch.nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs).masked_fill(torch.tensor([False, True]), float("-inf"))
    return Masked(5, 2)"""
    source = TABLE.replace("return torch.nn.Linear(5, 2)", masked) + (
        "calls = []\n"
        "def loss(outputs, targets):\n"
        "    calls.append(0)\n"
        "    if len(calls) > 1:\n"
        "        raise TypeError('a mistake')\n"
        "    return outputs[:, 0].square().mean()\n"
    )
    workload = callable_workload(source)
    loss = str(workload.settings["model"]).replace(":model", ":loss")
    workload = replace(workload, settings={**workload.settings, "loss": loss})
    with pytest.raises(WorkloadError, match="TypeError: a mistake"):
        prepare(workload, TrainingPlan(1, SGD, device="cpu"), 0)


@pytest.mark.parametrize("where", ["model", "loss"])
def test_where_model_or_loss_refuse_what_is_no_number_a_trial_that_diverges_is_still_a_result(
    callable_workload: Any, where: str
) -> None:
    workload = callable_workload(REFUSING.replace("WHERE", repr(where)))
    loss = str(workload.settings["model"]).replace(":model", ":loss")
    workload = replace(workload, settings={**workload.settings, "loss": loss})
    result = run(spec(1e20, workload=workload))
    assert (result.status, result.error, len(result.curve)) == ("diverged", None, 1), result.error
    assert result.diverged_step in (2, 3)
    plan = RangeTestPlan(1e19, 1e20)
    test = run(replace(spec(workload=workload), proposal=Proposal("range_test", range_test=plan)))
    assert test.status == "completed", test.error
    assert 0 < len(test.range_test) < plan.min_steps
    assert test.range_test[-1].validation_loss is None


@pytest.mark.parametrize(
    ("refusing", "rate", "said"),
    [
        ("torch.distributions.Normal(outputs, outputs.exp()).mean", 1e6, "ValueError: Expected parameter scale"),
        (
            "outputs + torch.linalg.cholesky(torch.eye(2) * (10 - self.weight.detach().abs().max()))[0, 0]",
            1e4,
            "_LinAlgError: ",
        ),
    ],
    ids=["scale", "decomposition"],
)
def test_what_torch_raises_for_numbers_alone_is_divergence_also_where_weights_are_still_numbers(
    callable_workload: Any, refusing: str, rate: float, said: str
) -> None:
    refusing_layer = f"""
    class Refusing(torch.nn.Linear):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            return {refusing}
    return Refusing(5, 2)"""
    workload = callable_workload(TABLE.replace("return torch.nn.Linear(5, 2)", refusing_layer))
    result = run(spec(rate, workload=workload))
    assert result.status == "diverged"
    if rate == 1e4:  # where weights are numbers in any case: those of the data may do that, too
        assert some(result.error).startswith(said)
        assert "in forward)" in some(result.error)
    test = run(replace(spec(workload=workload), proposal=Proposal("range_test", range_test=RangeTestPlan(1e-3, 1e7))))
    assert test.status == "completed"
    assert (test.error or said).startswith(said), "or its weights are no numbers any more"
    assert test.range_test[-1].learning_rate < 1e7


def test_missing_data_stop_the_preparation_with_their_own_error(tmp_path: Any) -> None:
    workload = Choice("image_folder", {"data_root": str(tmp_path / "nowhere"), "batch_size": 8, "model": "lenet"})
    with pytest.raises(DataError, match="nowhere"):
        prepare(workload, TrainingPlan(1, SGD, device="cpu"), 0)


def test_preparing_tells_the_facts_and_a_probe_times_one_step() -> None:
    plan = TrainingPlan(1, SGD, device="cpu")
    preparation = prepare(DIGITS, plan, 0)
    assert preparation.facts.train_count + preparation.facts.validation_count + preparation.facts.test_count == 1797
    assert preparation.device.kind == "cpu"
    assert preparation.device.threads == torch.get_num_threads()
    measured = probe(DIGITS, plan, 0)
    assert 0 < measured.step_seconds < 1
    assert measured.validation_seconds > 0


def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(UsageError, match="must be auto"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="0 CUDA devices"):
            pick_device("cuda:7")


@pytest.mark.gpu
def test_a_trial_on_a_gpu_agrees_with_the_processor() -> None:
    on_gpu = run(spec(training=TrainingPlan(3, SGD, device="cuda")))
    on_cpu = run(spec(training=TrainingPlan(3, SGD, device="cpu")))
    assert on_gpu.device.kind == "cuda"
    assert on_gpu.peak_device_memory_bytes
    assert on_gpu.validation_metric == pytest.approx(on_cpu.validation_metric, abs=0.05)


FAULTS = """
import resource, sys, torch
from lrsearch.training import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
found = 0
for size in (1_000_000, 2_000_000, 5_000_000, 10_000_000, 16_000_000):
    for _ in range(3):
        torch.ones(size)
    found -= faults()
    for _ in range(5):
        torch.ones(size)
    found += faults()
print(found)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_large_tensors_find_the_memory_of_those_before_them() -> None:
    def pages(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)

    assert pages("kept") < pages("given back") / 2


@pytest.mark.parametrize("steps", [20, 100, 112, 113, 187, 1000])
def test_a_range_test_is_evaluated_as_often_as_is_said(steps: int) -> None:
    rates, evaluated = [1e-4 + step * 1e-5 for step in range(steps)], []

    def evaluate() -> tuple[float, float]:
        evaluated.append(steps)
        return 1.0, 0.5

    climb(rates, lambda rate: None, list, evaluate)
    assert len(evaluated) == evaluation_count(steps)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "image_folder", "multi_label_images"])
def test_data_where_no_path_can_lead_are_no_fault_of_ours(name: str) -> None:
    """As in a folder that may not be entered, which stops nobody who is root."""
    workload = Choice(name, {"data_root": "x" * 300, "model": "small_cnn", "batch_size": 8})
    with pytest.raises(DataError, match=rf"^The workload '{name}' cannot read its data: .* Mend the path"):
        prepare(workload, TrainingPlan(1, SGD, device="cpu"), 0)
