from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.tuner.lr_finder import _LRFinder
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lrsearch.errors import UsageError
from lrsearch.integrations.lightning import RangeTestCallback, ScheduleCallback, lr_range_test
from lrsearch.range_test import find_bounds, ladder
from lrsearch.schedules import one_cycle, one_cycle_momentum, triangular2
from tests.integrations.digits import TRAIN_COUNT, arrays

pytestmark = pytest.mark.integrations


def module_of(library: Any, **options: Any) -> Any:
    """Return a module, of `lightning` or `pytorch_lightning`, with all that has a state."""

    class Digits(library.LightningModule):  # type: ignore[misc, name-defined, unused-ignore]  # the base is Any
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1))
            self.head = nn.Linear(32, 10)
            self.accuracy = MulticlassAccuracy(10, average="micro")
            self.losses: list[float] = []
            self.rates: list[list[float]] = []
            self.automatic_optimization = options.get("automatic", True)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, targets = batch
            loss = nn.functional.cross_entropy(self.head(self.body(inputs)), targets)
            self.losses.append(loss.item())
            self.rates.append([float(group["lr"]) for group in self.trainer.optimizers[0].param_groups])
            self.log("loss", loss)
            return {"loss": loss}

        def validation_step(self, batch: Any) -> None:
            self.accuracy(self.head(self.body(batch[0])), batch[1])
            self.log_dict({"accuracy": self.accuracy, "fixed": 0.5})

        def configure_optimizers(self) -> Any:
            groups = [{"params": self.body.parameters(), "lr": 0.05}, {"params": self.head.parameters(), "lr": 0.01}]
            optimizer = torch.optim.SGD(groups, momentum=0.9)
            if options.get("scheduler"):
                return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]
            return optimizer

    return Digits()


def loaders() -> tuple[Any, Any]:
    data = TensorDataset(*map(torch.from_numpy, arrays()))
    parts = [torch.utils.data.Subset(data, part) for part in (range(TRAIN_COUNT), range(TRAIN_COUNT, len(data)))]
    return DataLoader(parts[0], 32, shuffle=True), DataLoader(parts[1], 200)


def set_up(*callbacks: Any, library: Any = lightning, module: Any = None, **options: Any) -> tuple[Any, Any]:
    library.seed_everything(0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    given = {"max_epochs": 2, "enable_model_summary": False, **quiet, **options}
    return library.Trainer(callbacks=list(callbacks), **given), module or module_of(library)


def train(*callbacks: Any, ckpt_path: Path | None = None, **options: Any) -> tuple[Any, Any]:
    trainer, module = set_up(*callbacks, **options)
    trainer.fit(module, *loaders(), ckpt_path=ckpt_path)
    return trainer, module


class TestRangeTest:
    @pytest.mark.parametrize("library", [lightning, pytorch_lightning])
    def test_training_is_bitwise_the_one_without_a_test(self, library: Any) -> None:
        _, expected = train(library=library)
        test = RangeTestCallback(metric="accuracy", steps=60)
        _, module = train(test, library=library)
        assert test.result is not None
        assert test.result.verdict.signal == "validation_metric"
        assert module.losses == expected.losses

    @pytest.mark.parametrize("library", [lightning, pytorch_lightning])
    def test_a_test_alone_takes_the_place_of_the_tuner(self, library: Any) -> None:
        _, expected = train(library=library)
        trainer, module = set_up(library=library)
        found = lr_range_test(trainer, module, *loaders())
        assert found.verdict.max_lr is not None
        assert 0.05 < found.verdict.max_lr < 2
        assert "SGD(momentum=0.9), 32 samples a step" in str(found)
        assert module.losses == []
        trainer, module = set_up(library=library)
        lr_range_test(trainer, module, *loaders(), steps=40)
        trainer.fit(module, *loaders())
        assert module.losses == expected.losses

    @pytest.mark.parametrize(
        "options",
        [
            {"precision": "bf16-mixed"},
            {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5},
            {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        ],
    )
    def test_it_steps_as_the_trainer_does(self, options: Any) -> None:
        """At a rate that stays, the losses of a test are those of training."""
        trainer, module = set_up(**options)
        module.body[3].p = 0.0
        batches = DataLoader(TensorDataset(*map(torch.from_numpy, arrays())), 32)
        found = lr_range_test(trainer, module, batches, low=0.05, high=0.05 * (1 + 1e-9), steps=10)
        other_trainer, other = set_up(**options, max_steps=10)
        other.body[3].p = 0.0
        other_trainer.fit(other, batches)
        count = options.get("accumulate_grad_batches", 1)
        means = [sum(other.losses[i : i + count]) / count for i in range(0, 10 * count, count)]
        assert [point.train_loss for point in found.curve[:-1]] == pytest.approx(means[1:], rel=1e-4)

    def test_a_metric_that_is_not_logged_is_named(self) -> None:
        trainer, module = set_up()
        with pytest.raises(UsageError, match="validation_step logs no 'val_acc'; it logs accuracy, fixed"):
            lr_range_test(trainer, module, *loaders(), metric="val_acc")
        assert "log" not in vars(module)

    def test_manual_optimization_is_refused(self) -> None:
        trainer, module = set_up(module=module_of(lightning, automatic=False))
        with pytest.raises(UsageError, match="manual optimization"):
            lr_range_test(trainer, module, *loaders())


class TestSchedule:
    def test_each_step_has_the_rate_and_momentum_of_its_number(self) -> None:
        schedule, momentum = one_cycle(max_lr=0.1, total_steps=88), one_cycle_momentum(total_steps=88)
        trainer, module = train(ScheduleCallback(schedule, momentum=momentum))
        assert [first for first, _ in module.rates] == [schedule(step) for step in range(88)]
        assert [second / first for first, second in module.rates] == pytest.approx([0.2] * 88)
        assert trainer.optimizers[0].param_groups[0]["momentum"] == momentum(88)

    def test_found_bounds_go_into_a_named_schedule_that_ends_with_a_whole_cycle(self) -> None:
        test = RangeTestCallback(show=False)
        trainer, module = train(test, ScheduleCallback({"name": "triangular", "stepsize_epochs": 0.75}, bounds=test))
        assert test.result is not None
        assert trainer.global_step == 66  # the one cycle of 2 x 0.75 epochs that fits
        assert max(module.rates)[0] == pytest.approx(test.result.verdict.max_lr)
        assert min(module.rates)[0] == test.result.verdict.base_lr

    def test_a_run_that_is_resumed_in_the_middle_of_a_cycle_has_the_same_rates(self, tmp_path: Path) -> None:
        def callbacks() -> tuple[Any, Any]:
            test = RangeTestCallback(show=False, steps=60)
            return test, ScheduleCallback("triangular2", bounds=test)

        first, *_ = given = callbacks()
        trainer, whole = train(*given)
        saver = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=50, filename="at-50")
        train(*callbacks(), saver, enable_checkpointing=True)
        second, *_ = given = callbacks()
        _, rest = train(*given, ckpt_path=tmp_path / "at-50.ckpt")
        assert second.result == first.result
        assert rest.rates[-38:] == whole.rates[50:]
        assert trainer.global_step == 88

    def test_accumulated_batches_share_a_rate(self) -> None:
        schedule = triangular2(base_lr=0.01, max_lr=0.1, cycle_steps=8)
        _, module = train(ScheduleCallback(schedule), accumulate_grad_batches=4)
        assert [first for first, _ in module.rates] == [schedule(batch // 4) for batch in range(88)]

    def test_a_second_scheduler_is_refused(self) -> None:
        with pytest.raises(UsageError, match="configure_optimizers gives a scheduler too"):
            train(ScheduleCallback(lambda step: 0.1), module=module_of(lightning, scheduler=True))


def test_lightnings_own_suggestion_on_a_rippled_curve_is_a_thousand_times_too_small() -> None:
    """A contrast, https://github.com/Lightning-AI/pytorch-lightning/issues/21141; when this fails, it was mended."""
    rates = ladder(1e-7, 10.0, 100)
    xs = [math.log10(rate) for rate in rates]
    fall = [2.3 - 1.5 / (1 + math.exp(-4 * (x + 2.5))) + math.exp(6 * (x - 0.3)) for x in xs]
    losses = [loss + 0.02 * math.sin(9 * i) for i, loss in enumerate(fall)]
    theirs = _LRFinder("exponential", 1e-7, 10.0, len(rates))
    theirs.results = {"lr": rates, "loss": losses}
    suggested = theirs.suggestion(skip_begin=10, skip_end=1)
    ours = find_bounds(rates, losses, kind="loss")
    assert suggested is not None
    assert suggested < 1e-5
    assert ours.max_lr is not None
    assert ours.constant_lr is not None
    assert 3e-2 < ours.max_lr < 3
