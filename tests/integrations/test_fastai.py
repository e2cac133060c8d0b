from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fastai.callback.schedule  # noqa: F401  # gives learners their lr_find
import numpy as np
import pytest
import torch
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam, OptimWrapper, ranger
from torch import nn

from lrsearch.errors import UsageError
from lrsearch.integrations.fastai import RangeTestCallback, ScheduleCallback, lr_range_test
from lrsearch.schedules import one_cycle, one_cycle_momentum, triangular2
from tests.integrations.digits import TRAIN_COUNT, arrays

pytestmark = pytest.mark.integrations


class Body(nn.Sequential):
    """Two parts, as fine-tuning has them."""


def halves(model: Any) -> list[list[Any]]:
    return [list(model[0].parameters()), list(model[1].parameters())]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Any]:
    def make_learner(opt_func: Any = SGD, **more: Any) -> Any:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        inputs, targets = map(torch.from_numpy, arrays())
        examples = list(zip(inputs, targets, strict=True))
        train = DataLoader(examples[:TRAIN_COUNT], bs=32, shuffle=True)
        model = Body(Body(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1)), nn.Linear(32, 10))
        options = {"loss_func": nn.CrossEntropyLoss(), "metrics": accuracy, "path": tmp_path, **more}
        learn = Learner(
            DataLoaders(train, DataLoader(examples[TRAIN_COUNT:], bs=200)), model, opt_func=opt_func, **options
        )
        learn.remove_cb(learn.progress) if hasattr(learn, "progress") else None
        learn.logger = lambda *_: None
        return learn

    return make_learner


def train(learn: Any, epochs: int = 1, **options: Any) -> list[float]:
    """Return fastai's smoothed loss at each batch; equal ones mean equal losses."""
    learn.fit(epochs, options.pop("lr", 0.05), **options)
    return [float(loss) for loss in learn.recorder.losses]


OPTIMIZERS = {
    "sgd": partial(SGD, mom=0.9),
    "adam": Adam,
    "lookahead": ranger,
    "torch": partial(OptimWrapper, opt=torch.optim.AdamW),
}
CALLBACKS: dict[str, Callable[[], list[Any]]] = {
    "none": list,
    "half precision and clipping": lambda: [MixedPrecision(), GradientClip(0.5)],
    "accumulation": lambda: [GradientAccumulation(64)],
}


class TestRangeTest:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_training_is_bitwise_the_one_without_a_test(self, make: Any, name: str) -> None:
        expected = train(make(OPTIMIZERS[name]))
        learn = make(OPTIMIZERS[name])
        assert lr_range_test(learn, metric=accuracy).verdict.status == "ok"
        assert learn.opt is None
        first = train(learn)
        assert first == expected
        after = train(learn)
        other = make(OPTIMIZERS[name])
        train(other)
        lr_range_test(other, steps=40)  # in the middle: with optimizer state
        assert train(other) == after

    @pytest.mark.parametrize("name", CALLBACKS)
    def test_the_learners_own_callbacks_take_part(self, make: Any, name: str) -> None:
        expected = train(make(cbs=CALLBACKS[name]()))
        learn = make(cbs=CALLBACKS[name]())
        lr_range_test(learn, steps=40)
        assert train(learn) == expected

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_exception_in_between_leaves_nothing_behind(self, make: Any, error: type[BaseException]) -> None:
        expected = train(make())

        class Breaks(nn.CrossEntropyLoss):
            left = 10**6

            def forward(self, *inputs: Any) -> torch.Tensor:
                self.left -= 1
                if not self.left:
                    raise error("as in a user's own loss")
                return super().forward(*inputs)

        learn = make(loss_func=Breaks())
        learn.loss_func.left = 30
        with pytest.raises(error):
            lr_range_test(learn)
        assert learn.loss_func.left == 30
        learn.loss_func.left = 10**6
        assert train(learn) == expected

    def test_the_verdict_is_on_accuracy_or_on_the_loss(self, make: Any) -> None:
        judged = lr_range_test(make(partial(SGD, mom=0.9)), metric=accuracy)
        assert judged.verdict.signal == "validation_metric"
        assert judged.setting == "SGD(mom=0.9), 32 samples a step"
        unjudged = lr_range_test(make(partial(SGD, mom=0.9)))
        assert unjudged.verdict.signal == "train_loss"
        for found in (judged, unjudged):
            assert found.verdict.max_lr is not None
            assert 0.05 < found.verdict.max_lr < 2

    def test_a_metric_without_validation_batches_says_so(self, make: Any) -> None:
        learn = make()
        learn.dls.loaders[1] = learn.dls.valid.new([])
        with pytest.raises(UsageError, match="There are no validation batches for the metric"):
            lr_range_test(learn, metric=accuracy)

    def test_rates_are_the_heads_and_other_groups_keep_their_ratio(self, make: Any) -> None:
        learn, seen = make(splitter=halves), []
        learn.lr = slice(0.001, 0.1)
        learn.add_cb(Spy(lambda: seen.append([hypers["lr"] for hypers in learn.opt.hypers])))
        found = lr_range_test(learn, steps=25, high=0.1)
        assert [head for _, head in seen] == [point.learning_rate for point in found.curve]
        assert [body / head for body, head in seen] == pytest.approx([0.01] * 25)

    def test_as_a_callback_it_ends_the_fit_and_training_goes_on_as_without(self, make: Any) -> None:
        expected = train(make())
        learn, test = make(cbs=SaveModelCallback()), RangeTestCallback()
        shown: list[str] = []
        learn.logger = shown.append
        learn.fit(5, cbs=test)
        assert str(test.result) in shown
        assert not list((learn.path / learn.model_dir).glob("*"))  # nothing saved: trackers keep out, as of lr_find
        learn.remove_cb(SaveModelCallback)
        assert train(learn) == expected

    def test_fastais_own_test_changes_the_training_that_follows(self, make: Any) -> None:
        """A contrast: https://github.com/fastai/fastai/issues/3013. When this fails, fastai has mended it."""
        expected = train(make())
        learn = make()
        learn.lr_find(show_plot=False)
        assert train(learn) != expected


class Spy(RangeTestCallback.__base__):  # type: ignore[misc, name-defined, unused-ignore]  # fastai's Callback: Any
    """Calls a function in each training batch, after the rate was set."""

    order, run_valid = 70, False

    def __init__(self, look: Callable[[], object]) -> None:
        super().__init__()
        self.look = look

    def before_batch(self) -> None:
        self.look()


class TestSchedule:
    def test_each_batch_has_the_rate_and_momentum_of_its_number(self, make: Any) -> None:
        schedule, momentum = one_cycle(max_lr=0.1, total_steps=88), one_cycle_momentum(total_steps=88)
        learn = make(partial(SGD, mom=0.9))
        train(learn, epochs=2, cbs=ScheduleCallback(schedule, momentum=momentum))
        assert learn.recorder.lrs == [schedule(step) for step in range(88)]
        assert learn.recorder.hps == {
            "lr": [schedule(step) for step in range(88)],
            "mom": [momentum(step) for step in range(88)],
        }

    def test_groups_keep_the_ratio_to_the_head_that_fit_was_given(self, make: Any) -> None:
        schedule, seen = triangular2(base_lr=0.01, max_lr=0.1, cycle_steps=20), []
        learn = make(splitter=halves)
        learn.add_cb(Spy(lambda: seen.append([hypers["lr"] for hypers in learn.opt.hypers])))
        train(learn, lr=slice(0.001, 0.1), cbs=ScheduleCallback(schedule))
        assert [head for _, head in seen] == [schedule(step) for step in range(44)]
        assert [body / head for body, head in seen] == pytest.approx([0.01] * 44)

    def test_a_run_goes_on_from_a_saved_epoch_with_the_rates_of_its_place(self, make: Any) -> None:
        schedule = triangular2(base_lr=0.01, max_lr=0.1, cycle_steps=60)
        learn = make()
        train(learn, epochs=1, cbs=ScheduleCallback(schedule))
        learn.save("half")
        other = make()
        other.create_opt()
        other.load("half")
        train(other, epochs=2, start_epoch=1, cbs=ScheduleCallback(schedule))
        assert other.recorder.lrs == [schedule(step) for step in range(44, 88)]

    def test_found_bounds_go_into_a_named_schedule_that_ends_with_a_whole_cycle(self, make: Any) -> None:
        learn = make(partial(SGD, mom=0.9))
        found = lr_range_test(learn)
        train(learn, epochs=2, cbs=ScheduleCallback({"name": "triangular", "stepsize_epochs": 0.75}, bounds=found))
        assert len(learn.recorder.lrs) == 66  # the one cycle of 2 x 0.75 epochs that fits
        assert (min(learn.recorder.lrs), max(learn.recorder.lrs)) == (found.verdict.base_lr, found.verdict.max_lr)
