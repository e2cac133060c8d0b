"""What the check before a study tells apart: in float64 another computation from another rounding."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import mobilenet_v3_small

from lrsearch.gang_check import FewEvaluations, FewRows, History, InDouble, difference, shake
from lrsearch.rehearsal import Rehearsal
from lrsearch.stacked_run import CannotGangError, StackedRun
from lrsearch.trial import Choice, Precision, TrainingPlan
from lrsearch.workloads import models
from tests.test_gang import SGD
from tests.test_gang_across_seeds import ADAMW, CPU, WithModel
from tests.test_gang_models import Evaluated, Net

IMAGE = (3, 16, 16)


def rehearsal(
    build: Callable[[], nn.Module],
    kind: Callable[..., WithModel] = WithModel,
    optimizer: Any = SGD,
    precision: Any = "float32",
) -> Rehearsal:
    plan = TrainingPlan(epochs=1, optimizer=optimizer, device="cpu", precision=precision)
    return Rehearsal(kind(3, build, torch.float32), plan, CPU, 3, [])


class Normed(Net):
    """Normalises each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(hidden))


@pytest.mark.parametrize("name", ["stacked_loss", "random_sources", "channels_last"])
@pytest.mark.parametrize("kind", [FewEvaluations, FewRows, InDouble])
def test_what_a_workload_can_do_beside_is_found_in_the_one_that_is_checked(
    kind: type[FewEvaluations], name: str
) -> None:
    class More(WithModel):
        pass

    without, more = WithModel(3, Net, torch.float32), More(3, Net, torch.float32)
    setattr(More, name, property(lambda loaded: name))
    assert inspect.getattr_static(kind(without), name, None) is None
    assert inspect.getattr_static(kind(more), name) == name


def scaled_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    step = StackedRun.step
    monkeypatch.setattr(StackedRun, "step", lambda run, rates, momentum=None: step(run, rates * 1.00002, momentum))


def moved_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(run: StackedRun, *given: Any, own: Callable[..., None] = StackedRun.step) -> None:
        own(run, *given)
        run.stacked.buffers["norm.running_mean"].mul_(1.00002)

    monkeypatch.setattr(StackedRun, "step", step)


def scaled_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(
        run: StackedRun, split: Any, own: Callable[..., Any] = StackedRun.evaluate
    ) -> list[tuple[float | None, float | None]]:
        return [(None if loss is None else loss * 1.0001, metric) for loss, metric in own(run, split)]

    monkeypatch.setattr(StackedRun, "evaluate", evaluate)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (scaled_rates, "weights are trained otherwise"),
        (moved_statistics, "the model's buffer norm.running_mean"),
        (scaled_losses, "evaluated together"),
    ],
)
def test_what_float32_cannot_tell_from_rounding_is_found(
    wrong: Callable[..., None], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = rehearsal(Normed)
    assert own.check(1) == ""
    wrong(monkeypatch)
    assert own._difference(1, 2, None) == "", "float32 must take that for rounding"
    assert told in own.check(1)


class Weighted(nn.CrossEntropyLoss):
    """A loss that holds numbers in float32."""

    def __init__(self) -> None:
        super().__init__(weight=torch.linspace(0.5, 2.0, 10))


class WithWeights(WithModel):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.loss = Weighted()  # type: ignore[method-assign]


class Masking(Net):
    """Holds infinities, and what is no number."""

    def __init__(self) -> None:
        super().__init__()
        mask = torch.zeros(10)
        mask[-1] = -torch.inf
        self.register_buffer("mask", mask)
        self.register_buffer("unknown", torch.full((3,), torch.nan))

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs + self.mask.clamp(min=-5.0)  # type: ignore[operator]


@pytest.mark.parametrize("is_told", [True, False])
def test_a_member_that_spoils_the_others_keeps_them_from_training_together(
    monkeypatch: pytest.MonkeyPatch, *, is_told: bool
) -> None:
    own = rehearsal(Normed if is_told else AsSingle, precision="bfloat16")
    assert own._difference_in_double(1, 2) == ("" if is_told else None)
    assert own.check(1) == ""
    step = StackedRun.step

    def spoiling(run: StackedRun, *given: Any) -> None:
        step(run, *given)
        with torch.no_grad():
            for one in run.stacked.parameters.values():
                one[0] += 0 * one[1]

    monkeypatch.setattr(StackedRun, "step", spoiling)
    assert own.check(1) == "a trial that diverges spoils those that train together with it"


class AsSingle(Net):
    """Asks for float32, as root mean square norms do."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        single = hidden.float()
        return (single * torch.rsqrt(single.square().mean(-1, keepdim=True) + 1e-6)).type_as(hidden)


class Projecting(Net):
    """Multiplies with numbers in float32 that it does not tell torch of."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = torch.eye(16)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden @ self.turn)


@pytest.mark.parametrize(
    ("build", "kind", "is_told"),
    [
        (Net, WithModel, True),
        (Normed, WithModel, True),
        (Masking, WithModel, True),
        (Net, WithWeights, True),
        (AsSingle, WithModel, False),
        (Projecting, WithModel, False),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_where_float64_tells_nothing_float32_does(
    build: type[Net], kind: type[WithModel], is_told: bool, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = rehearsal(build, kind, precision=precision)
    assert own._difference_in_double(1, 2) == ("" if is_told else None)
    assert own._difference(1, 2, None) == ""
    assert own.check(1) == ""
    step = StackedRun.step
    monkeypatch.setattr(StackedRun, "step", lambda run, rates, momentum=None: step(run, 2 * rates, momentum))
    assert "weights are trained otherwise" in own._difference(1, 2, None)


class Images(WithModel):
    """Images instead of vectors."""

    def _as_images(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = batch
        return F.interpolate(inputs.reshape(-1, 1, 8, 8), IMAGE[1:]).expand(-1, *IMAGE).contiguous(), targets

    def train_batches(self, generator: torch.Generator) -> Any:
        return map(self._as_images, super().train_batches(generator))

    def evaluation_batches(self, split: Any) -> Any:
        return map(self._as_images, super().evaluation_batches(split))


class Gated(nn.Module):
    """Has a bias before a batch norm, whose gradient is nothing but rounding, of which Adam makes steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.gate = nn.BatchNorm2d(8), nn.Linear(8, 8)
        self.point, self.last_norm, self.last = nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = F.hardswish(self.norm(self.first(inputs)))
        hidden = hidden * torch.sigmoid(self.gate(hidden.mean((2, 3))))[:, :, None, None]
        hidden = hidden + self.deep(hidden)
        return self.last(F.relu6(self.last_norm(self.point(hidden))).amax((2, 3)))  # type: ignore[no-any-return]


def test_slopes_train_together_in_bfloat16() -> None:
    """Where they go through vmap, autocast does not see them."""

    def sloped() -> nn.Module:
        first, last = nn.Linear(8 * 14 * 14, 16), nn.Linear(16, 10)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Flatten(), first, nn.PReLU(), last)

    own = rehearsal(sloped, Images, precision="bfloat16")
    assert own.check(1) == ""
    assert own.check(2) == ""


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, partial(nn.InstanceNorm2d, track_running_stats=True)])
def test_what_is_normed_with_statistics_trains_together_in_bfloat16(norm: Callable[[int], nn.Module]) -> None:
    """Also where it goes through vmap, as a model with hooks does."""

    def normed() -> nn.Module:
        last = nn.Linear(8 * 14 * 14, 10)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.PReLU(), nn.Flatten(), last)
        model.register_forward_pre_hook(lambda *given: None)
        return model

    own = rehearsal(normed, Images, precision="bfloat16")
    assert own.check(1) == ""
    assert own.check(2) == ""


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_steps_made_of_rounding_are_no_difference(scale: float) -> None:
    class Scaled(Images):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return scale * super().loss(outputs, targets)

    own = rehearsal(Gated, Scaled, Choice("adam"))
    assert own._difference_in_double(1, 2) == ""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rounding_that_grows_is_no_difference(precision: Precision) -> None:
    own = rehearsal(partial(mobilenet_v3_small, num_classes=10), Images, Choice("adam"), precision)
    rows = FewRows(own.loaded)
    histories, _ = replace(own, loaded=rows)._histories(1, 2, rows)
    assert any(difference(found, alone, precision) for found, alone in histories), "it must round much"
    assert own._difference(1, 2, fewer=rows) == ""


def history(change: torch.Tensor, loss: float = 2.0, moved: torch.Tensor | float = 0.0) -> History:
    """Return what has changed a weight by `change` and a buffer by `moved`."""
    ones = torch.ones_like(change)
    made = History({"weight": ones}, {"buffer": ones}, evaluations=[2.0, loss])
    made.end({"weight": 1 + change}, {"buffer": 1 + moved * ones})
    return made


CHANGE, NOISE, OTHER_NOISE = 0.01 * torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)).double()
NOT_FAR = "times as far as alone"


@pytest.mark.parametrize(
    ("together", "rounded", "told", "told_beside_rounding"),
    [
        (history(CHANGE, 2.6), history(CHANGE, 2.3), "the loss 2.6", ""),
        (history(CHANGE, 3.5), history(CHANGE, 2.3), "the loss 3.5", "the loss 3.5"),
        (history(CHANGE, 2.6), history(CHANGE, math.nan), "the loss 2.6", "the loss 2.6"),
        (history(CHANGE, moved=NOISE), history(CHANGE, moved=OTHER_NOISE), "the model's buffer", ""),
        (history(CHANGE, moved=NOISE), history(CHANGE, moved=0.1 * OTHER_NOISE), "the model's buffer", "the model's"),
        (history(CHANGE, moved=NOISE), history(CHANGE, moved=math.nan), "the model's buffer", "the model's buffer"),
        (history(CHANGE, moved=math.nan), history(CHANGE, moved=OTHER_NOISE), "the model's buffer", "the model's"),
        (history(CHANGE + NOISE), history(CHANGE + OTHER_NOISE), "weights are trained otherwise", ""),
        (history(CHANGE + 9 * NOISE), history(CHANGE + OTHER_NOISE), "weights are trained", "weights are trained"),
        (history(CHANGE + NOISE), history(CHANGE * math.inf), "weights are trained", "weights are trained"),
        (history(CHANGE * math.nan), history(CHANGE + OTHER_NOISE), "weights are trained", "weights are trained"),
        *(
            (history(factor * CHANGE), history(CHANGE + OTHER_NOISE), "weights are trained otherwise", NOT_FAR)
            for factor in (-1.0, 0.0, 0.45, 1.55, 3.0)
        ),
        (
            history(CHANGE + NOISE),
            history(0.5 * CHANGE + OTHER_NOISE),
            "weights are trained",
            "rounding changes too much",
        ),
    ],
)
def test_what_rounding_changes_of_a_trial_alone_is_no_difference(
    together: History, rounded: History, told: str, told_beside_rounding: str
) -> None:
    alone = history(CHANGE)
    for reason, words in (
        (difference(together, alone, "bfloat16"), told),
        (difference(together, alone, "bfloat16", rounded), told_beside_rounding),
    ):
        assert (words in reason) if words else reason == ""


@pytest.mark.parametrize(("factor", "told"), [(1.0, ""), (0.5, ""), (-0.5, NOT_FAR), (3.0, NOT_FAR)])
def test_where_float64_has_told_no_difference_rounding_may_change_much(factor: float, told: str) -> None:
    alone, rounded = history(CHANGE), history(0.5 * CHANGE + OTHER_NOISE)
    reason = difference(history(factor * CHANGE + NOISE), alone, "bfloat16", rounded, is_told=True)
    assert (told in reason) if told else reason == ""


def test_an_evaluation_that_rounding_alone_lacks_is_compared_all_the_same() -> None:
    rounded = history(CHANGE)
    rounded.evaluations.clear()
    assert "the loss 9.0" in difference(history(CHANGE, 9.0), history(CHANGE), "bfloat16", rounded)


def test_what_is_frozen_keeps_its_last_digits() -> None:
    trained, frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    nn.init.constant_(frozen.bias, -torch.inf)
    before = [copy.deepcopy(one).state_dict() for one in (trained, frozen)]
    shake(nn.Sequential(trained, frozen))
    assert not torch.equal(trained.weight, before[0]["weight"])
    torch.testing.assert_close(trained.weight.data, before[0]["weight"], rtol=1e-5, atol=0)
    assert all(torch.equal(one, before[1][name]) for name, one in frozen.state_dict().items())


@pytest.mark.parametrize(
    ("factor", "told"), [(1.0, ""), (0.4, "weights are trained otherwise"), (2.0, "weights are trained otherwise")]
)
def test_what_is_computed_otherwise_in_bfloat16_alone_is_found(
    factor: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(run: StackedRun, rates: torch.Tensor, *given: Any, own: Callable[..., None] = StackedRun.step) -> None:
        own(run, rates * (factor if run.training.precision == "bfloat16" else 1.0), *given)

    monkeypatch.setattr(StackedRun, "step", step)
    own = rehearsal(Normed, precision="bfloat16")
    assert own._difference_in_double(1, 2) == ""
    assert (told in own.check(1)) if told else own.check(1) == ""


BACKBONE = nn.Sequential(nn.Linear(64, 16), nn.ReLU()).requires_grad_(False)
TABLE = nn.Parameter(torch.linspace(0.5, 1.5, 16), requires_grad=False)


class Shared(nn.Module):
    """Its frozen part is the same for all models."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.last = BACKBONE, nn.Linear(16, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        TABLE.data = TABLE.data.to(inputs.dtype)
        return self.last(self.backbone(inputs.flatten(1)) * TABLE)  # type: ignore[no-any-return]


def test_what_models_share_stays_in_float32() -> None:
    own = rehearsal(Shared)
    assert own.check(1) == ""
    assert {one.dtype for one in (*BACKBONE.parameters(), TABLE)} == {torch.float32}
    run = own._new_run(0)
    run.step(0.01)
    assert all(map(math.isfinite, run.take_losses()))


class Paired(WithModel):
    """Gives, beside vectors, something that has no rows."""

    def _cast(self, batches: Any) -> Any:
        for inputs, targets in super()._cast(batches):
            yield (inputs, torch.eye(5)), targets

    def metric(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        raise ValueError("too few")


class OfPair(Evaluated):
    def forward(self, inputs: Any) -> torch.Tensor:
        return super().forward(inputs[0])


def test_evaluations_are_compared_whatever_rows_inputs_and_metric_take(monkeypatch: pytest.MonkeyPatch) -> None:
    own = rehearsal(OfPair, Paired)
    assert own._difference_in_double(1, 2) == ""
    scaled_losses(monkeypatch)
    assert "evaluated together" in own.check(1)


class Counting(nn.Module):
    """A loss that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return F.cross_entropy(outputs, targets)


def test_a_loss_that_is_a_module_is_watched_and_put_back() -> None:
    class WithCounting(WithModel):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.loss = Counting()  # type: ignore[method-assign]

    own = rehearsal(Net, WithCounting)
    assert "the loss of an evaluation changes what it holds" in own.check(1)
    assert own.loaded.loss.calls == 0  # type: ignore[attr-defined]


def test_a_loss_that_is_no_number_for_a_trial_alone_is_said_to_be_that() -> None:
    class Huge(Net):
        def between(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden * 1e38 * 10

    with pytest.raises(CannotGangError, match=r"loss of a trial alone is (nan|inf) after . steps"):
        rehearsal(Huge)._seconds_per_member(2, 1, None, None, math.inf, briefly=True)


def test_a_model_that_needs_whole_batches_is_checked_in_float32() -> None:
    class Whole(Net):
        def between(self, hidden: torch.Tensor) -> torch.Tensor:
            if self.training and len(hidden) < 16:
                raise ValueError("too few")
            return torch.relu(hidden)

    own = rehearsal(Whole)
    assert own._difference_in_double(1, 2) is None
    assert own.check(1) == ""


def test_an_evaluation_of_few_rows_that_goes_well_once_is_no_reason_to_refuse() -> None:
    evaluated: list[int] = []

    class Once(Net):
        def behind(self, outputs: torch.Tensor) -> torch.Tensor:
            if not self.training:
                evaluated.append(len(outputs))
                if len(evaluated) > 2:  # batches, of the first evaluation
                    raise ValueError("too few")
            return outputs

    assert rehearsal(Once)._difference(1, 2, None) == ""


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "small_cnn", "lenet", "cifar10_quick", "cifar10_full"),
        pytest.param("resnet9", marks=pytest.mark.slow),
    ],
)
def test_float64_tells_of_every_model_that_comes_along(name: str, optimizer: Any) -> None:
    own = rehearsal(lambda: models.build(name, IMAGE, 10), Images, optimizer)
    assert own._difference_in_double(1, 2) == ""
