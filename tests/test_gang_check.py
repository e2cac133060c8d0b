"""What the check before a study tells apart: in float64 another computation from another rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrsearch.gang import StackedRun, _Rehearsal
from lrsearch.trial import TrainingPlan
from lrsearch.workloads import models
from tests.test_gang import SGD
from tests.test_gang_across_seeds import ADAMW, CPU, WithModel
from tests.test_gang_models import Net

IMAGE = (3, 16, 16)


def rehearsal(
    build: Callable[[], nn.Module], kind: Callable[..., WithModel] = WithModel, optimizer: Any = SGD
) -> _Rehearsal:
    plan = TrainingPlan(epochs=1, optimizer=optimizer, device="cpu")
    return _Rehearsal(kind(3, build, torch.float32), plan, CPU, 3, [])


class Normed(Net):
    """Normalises each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(hidden))


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
def test_where_float64_tells_nothing_float32_does(build: type[Net], kind: type[WithModel], is_told: bool) -> None:
    own = rehearsal(build, kind)
    assert own._difference_in_double(1, 2) == ("" if is_told else None)
    assert own._difference(1, 2, None) == ""
    assert own.check(1) == ""


def test_a_model_that_needs_whole_batches_is_checked_in_float32() -> None:
    class Whole(Net):
        def between(self, hidden: torch.Tensor) -> torch.Tensor:
            if self.training and len(hidden) < 16:
                raise ValueError("too few")
            return torch.relu(hidden)

    own = rehearsal(Whole)
    assert own._difference_in_double(1, 2) is None
    assert own.check(1) == ""


class Images(WithModel):
    """Images instead of vectors."""

    def _as_images(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = batch
        return F.interpolate(inputs.reshape(-1, 1, 8, 8), IMAGE[1:]).expand(-1, *IMAGE).contiguous(), targets

    def train_batches(self, generator: torch.Generator) -> Any:
        return map(self._as_images, super().train_batches(generator))

    def evaluation_batches(self, split: Any) -> Any:
        return map(self._as_images, super().evaluation_batches(split))


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
