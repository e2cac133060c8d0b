"""The range test and the schedules as fastai callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Unpack

import torch

from lrsearch.errors import MissingExtraError, UsageError
from lrsearch.finder import RangeTest, TestOptions, plan_test
from lrsearch.integrations._run_plan import Bounds, ScheduleLike, check_schedule, plan_run, stops_at
from lrsearch.interfaces import Schedule
from lrsearch.restore import Snapshot
from lrsearch.training import Climb, finite

try:
    from fastai.callback.core import Callback, CancelFitException, CancelValidException
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] != "fastai":
        raise
    raise MissingExtraError("lrsearch.integrations.fastai", "fastai") from error

Metric = Callable[..., Any]
"""(predictions, targets) of a batch -> a number or tensor, such as fastai's `accuracy`."""


def lr_range_test(learn: Any, *, metric: Metric | None = None, **options: Unpack[TestOptions]) -> RangeTest:
    """Run a range test with the learner's own callbacks, and leave it as it was, however it ends.

    In the place of `learn.lr_find()`; see `RangeTestCallback`.
    """
    test = RangeTestCallback(metric=metric, show=False, **options)
    undo = _undo_of(learn, learn.cbs)
    try:
        with learn.no_logging(), learn.removed_cbs([cb for cb in learn.cbs if cb.name == "progress"]):
            learn.fit(10**6, cbs=test)
    finally:
        test.restore()
        undo()
    assert test.result is not None, "set when a fit ends"
    return test.result


class RangeTestCallback(Callback):
    """Turns a `fit` into a range test: `result` is its verdict; model, optimizer and chance are afterwards as before.

    The rate rises from batch to batch; `fit` ends when the test is through or the loss runs away, at the latest after
    its own epochs. `metric`, such as fastai's `accuracy`, is measured on the whole validation set, 75 times or so, as
    the mean over batches, and judged if it lies between 0 and 1. Without it the training loss is judged. `options` are
    those of `lrsearch.lr_range_test`; by default the test lasts two epochs, and at least 100 steps. Rates are those of
    the last parameter group, the head; other groups keep their ratio to it. Callbacks that keep out of `lr_find`, such
    as SaveModelCallback, keep out of this too. After an exception `restore` puts things back; `lr_range_test` does so
    by itself.
    """

    order, run_valid = 60, False
    name = "lr_finder"  # by this name fastai's trackers and loggers know a test

    def __init__(self, *, metric: Metric | None = None, show: bool = True, **options: Unpack[TestOptions]) -> None:
        super().__init__()
        self.result: RangeTest | None = None
        self._metric, self._show, self._options = metric, show, options
        self._undo: list[Callable[[], object]] = []

    def before_fit(self) -> None:
        learn = self.learn
        self._plan = plan_test(_optimizer_name(learn), len(learn.dls.train), **self._options)
        self._ratios = _ratios(learn.opt)
        self._setting = _setting(learn)
        self._undo = [_undo_of(learn)]
        self._losses: list[torch.Tensor] = []
        self._climb = Climb(self._plan.rates, self._take_losses, self._evaluate)

    def before_batch(self) -> None:
        self.learn.opt.set_hypers(lr=[self._climb.rate * ratio for ratio in self._ratios])

    def after_batch(self) -> None:
        self._losses.append(self.learn.loss.detach().float().reshape(()))
        if not self._climb.goes_on():
            raise CancelFitException

    def before_validate(self) -> None:
        raise CancelValidException

    def after_fit(self) -> None:
        self.result = self._plan.conclude(self._climb.points(), self._setting)
        self.restore()
        if self._show:
            self.learn.logger(str(self.result))

    def restore(self) -> None:
        """Put everything back; a second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def _take_losses(self) -> list[float]:
        losses: list[float] = torch.stack(self._losses).tolist() if self._losses else []
        self._losses = []
        return losses

    def _evaluate(self) -> tuple[float | None, float | None]:
        """Return loss and metric over the validation set, without the learner's callbacks."""
        if self._metric is None:
            return None, None
        modes = [(module, module.training) for module in self.learn.model.modules()]
        self.learn.model.eval()
        with torch.no_grad():
            sums = sum(self._sums(batch) for batch in self.learn.dls.valid)
        for module, mode in modes:
            module.training = mode
        if not isinstance(sums, torch.Tensor):
            raise UsageError("There are no validation batches for the metric; give some, or leave it out.")
        loss, metric = (sums[:2] / sums[2]).tolist()
        return finite(loss), finite(metric)

    def _sums(self, batch: Any) -> torch.Tensor:
        """Return the sums of loss and metric over a batch, and its size."""
        learn = self.learn
        batch = learn._set_device(batch)
        inputs = getattr(learn.dls, "n_inp", 1 if len(batch) == 1 else len(batch) - 1)
        outputs, targets, size = learn.model(*batch[:inputs]), batch[inputs:], len(batch[0])
        assert self._metric is not None, "asked for by _evaluate"
        values = (learn.loss_func(outputs, *targets), self._metric(outputs, *targets))
        return torch.tensor([*(float(value) * size for value in values), size], dtype=torch.float64)


class ScheduleCallback(Callback):
    """Gives each training batch the rate of its number; all parameter groups keep their ratio to the last, the head.

    `schedule` is a function from step to rate, with `momentum` another for the momentum (Adam: beta 1); or, with
    `bounds`, the name of a schedule or what a study file says of one, such as {"name": "triangular2",
    "stepsize_epochs": 2}, which ends training with a whole cycle. `bounds` is (base_lr, max_lr) or what
    `lr_range_test` returned. Use it with `learn.fit(epochs, cbs=...)`; the rates given to `fit` count by their ratio.
    A run that goes on with `start_epoch=` has the rates of its place in the whole.
    """

    order, run_valid = 60, False

    def __init__(
        self, schedule: ScheduleLike, *, bounds: Bounds | None = None, momentum: Schedule | None = None
    ) -> None:
        super().__init__()
        check_schedule(schedule, bounds, momentum)
        self._schedule, self._bounds, self._momentum = schedule, bounds, momentum

    def before_fit(self) -> None:
        epoch_steps = len(self.learn.dls.train)
        total = self.learn.n_epoch * epoch_steps
        self._planned = plan_run(
            self._schedule, self._bounds, self._momentum, total_steps=total, epoch_steps=epoch_steps
        )
        self._last = stops_at(self._planned, self._schedule)
        self._ratios = _ratios(self.learn.opt)
        self._hps: dict[str, list[float]] = {"lr": [], "mom": []}

    def before_batch(self) -> None:
        rate = self._planned.rate(self.step)
        self.learn.opt.set_hypers(lr=[rate * ratio for ratio in self._ratios])
        if self._planned.momentum is not None:
            self.learn.opt.set_hypers(mom=self._planned.momentum(self.step))

    def after_batch(self) -> None:
        for name, values in self._hps.items():
            values.append(self.learn.opt.hypers[-1].get(name))
        if self.step + 1 >= self._last:
            raise CancelFitException

    def after_fit(self) -> None:
        if hasattr(self.learn, "recorder"):
            self.learn.recorder.hps = self._hps  # what learn.recorder.plot_sched() shows

    @property
    def step(self) -> int:
        """The number of the batch in the whole run."""
        return int(self.learn.epoch * len(self.learn.dls.train) + self.learn.iter)


def _ratios(optimizer: Any) -> list[float]:
    """Return each group's rate as a multiple of the last one's; equal ones where that is 0."""
    rates = [float(hypers["lr"]) for hypers in optimizer.hypers]
    return [rate / rates[-1] if rates[-1] else 1.0 for rate in rates]


def _undo_of(learn: Any, callbacks: Iterable[Any] = ()) -> Callable[[], None]:
    """Return what brings learner, model, optimizer, chance and the callbacks back to what they are now."""
    optimizer = learn.opt
    inner = getattr(optimizer, "opt", None)  # torch's in OptimWrapper, fastai's in Lookahead
    parts = [part for part in (optimizer, inner) if part is not None]
    states = [getattr(part, "state", None) for part in parts]
    hypers = [list(part.hypers) for part in parts if hasattr(part, "hypers")]
    copies = [list(group) for group in getattr(optimizer, "slow_weights", None) or ()]  # Lookahead's
    sources = [learn.dls.train, learn.dls.valid]
    snapshot = Snapshot(learn.model, learn.loss_func, *parts, states, hypers, copies, generators=sources)
    # Their attributes only: the members are data, or are dealt with above.
    owners = [learn, *parts, *sources, *callbacks]
    attributes = [(vars(owner), dict(vars(owner))) for owner in owners]

    def undo() -> None:
        for now, before in attributes:
            now.clear()
            now.update(before)
        snapshot.restore()

    return undo


def _optimizer_name(learn: Any) -> str:
    """Return SGD, Adam, ...: of torch's optimizer where one is wrapped, else of fastai's function."""
    inner = getattr(learn.opt, "opt", None)
    if isinstance(inner, torch.optim.Optimizer):
        return type(inner).__name__
    function = learn.opt_func.func if isinstance(learn.opt_func, partial) else learn.opt_func
    return str(getattr(function, "__name__", type(learn.opt).__name__))


def _setting(learn: Any) -> str:
    """Return what the bounds hold for, in words."""
    hypers = learn.opt.hypers[-1]
    texts = [f"{name}={hypers[name]}" for name in ("mom", "wd") if hypers.get(name)]
    return f"{_optimizer_name(learn)}({', '.join(texts)}), {learn.dls.train.bs} samples a step"
