"""The same with fastai's Learner around torch's DataLoaders. Its bars and logs are off, as they cost.

After https://docs.fast.ai/examples/migrating_pytorch.html.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from fastai.torch_core import set_seed

from benchmarks.tasks import MOMENTUM, SEED, Options, TrainClock, loaders, new_model, options, tell_trial


class Clock(Callback):
    def __init__(self, clock: TrainClock) -> None:
        self.clock = clock

    def before_train(self) -> None:
        self.clock.begin()

    def after_batch(self) -> None:
        if self.training:
            self.clock.stepped()

    def after_train(self) -> None:
        self.clock.end()


def train(chosen: Options, rate: float, clock: TrainClock) -> float:
    """Train once, with an evaluation after each epoch and one of the test set, and return the validation accuracy."""
    train_loader, validation_loader, test_loader = loaders(chosen)
    set_seed(SEED)
    learner = Learner(
        DataLoaders(train_loader, validation_loader),
        new_model(chosen.task),
        loss_func=F.cross_entropy,
        opt_func=partial(SGD, mom=MOMENTUM),
        metrics=accuracy,
        cbs=[Clock(clock)],
    )
    with learner.removed_cbs(learner.cbs.filter(lambda one: isinstance(one, ProgressCallback))), learner.no_logging():
        learner.fit(chosen.epochs, rate)
        found = float(learner.validate()[1])
        learner.validate(dl=test_loader)
    return found


if __name__ == "__main__":
    chosen, clock = options(), TrainClock()
    tell_trial(clock, train(chosen, chosen.rates[0], clock), chosen)
