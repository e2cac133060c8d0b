"""The range test and the schedules as Lightning callbacks; for `lightning` and for `pytorch_lightning`."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict
from importlib import import_module
from typing import Any, Unpack

from lrsearch import finder
from lrsearch.errors import MissingExtraError, UsageError
from lrsearch.finder import RangeTest, TestOptions
from lrsearch.integrations._run_plan import Bounds, ScheduleLike, check_schedule, plan_run, stops_at
from lrsearch.interfaces import Schedule
from lrsearch.range_test import RangeTestVerdict
from lrsearch.restore import untouched
from lrsearch.torch_schedule import torch_scheduler
from lrsearch.trial import RangeTestPoint

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError:
    try:
        from pytorch_lightning.callbacks import Callback
    except ModuleNotFoundError as error:
        raise MissingExtraError("lrsearch.integrations.lightning", "lightning") from error


def lr_range_test(
    trainer: Any,
    module: Any,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: Any = None,
    *,
    metric: str | None = None,
    **options: Unpack[TestOptions],
) -> RangeTest:
    """Run a range test and no training: what `Tuner(trainer).lr_find(module)` is for.

    Everything is put back, however it ends; `trainer.fit` goes on from there. See `RangeTestCallback`.
    """
    test = RangeTestCallback(metric=metric, show=False, **options)
    test.only = True
    trainer.callbacks.append(test)
    try:
        with untouched(module):
            trainer.fit(module, train_dataloaders, val_dataloaders, datamodule)
    finally:
        trainer.callbacks.remove(test)
    if test.result is None:
        raise UsageError("The trainer has nothing to train: its max_epochs, max_steps or limit_train_batches is 0.")
    return test.result


class RangeTestCallback(Callback):  # type: ignore[no-redef, unused-ignore]
    """Runs a range test before training starts; `result` is what it says, and training is bitwise as without it.

    The test takes its steps itself: `training_step` on the trainer's training data, with its precision, accumulation
    and clipping, and the hooks that move a batch. Nothing is logged, no other callback or hook is called. `metric`
    names what `validation_step` logs; it is measured on all validation batches, 75 times or so, and judged if it lies
    between 0 and 1 and should be high. Without it the training loss is judged. `options` are those of
    `lrsearch.lr_range_test`. A run that is resumed takes `result` from its checkpoint. Raises UsageError for manual
    optimization and more than one device.
    """

    def __init__(self, *, metric: str | None = None, show: bool = True, **options: Unpack[TestOptions]) -> None:
        self.result: RangeTest | None = None
        self.only = False
        self._metric, self._show, self._options = metric, show, options
        self._resumed = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._resumed:
            self._resumed = False
            return
        _check(trainer, pl_module)
        with _unlogged(trainer, pl_module) as logged:
            self.result = self._test(trainer, pl_module, logged)
        if self._show:
            _part_of(trainer, "utilities").rank_zero_info(str(self.result))
        if self.only:
            raise _part_of(trainer, "utilities.exceptions")._TunerExitException

    def state_dict(self) -> dict[str, Any]:
        return {} if self.result is None else {"result": asdict(self.result)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state := dict(state_dict.get("result", {})):
            verdict = RangeTestVerdict(**state.pop("verdict"))
            curve = tuple(RangeTestPoint(**point) for point in state.pop("curve"))
            self.result, self._resumed = RangeTest(verdict, curve, **state), True

    def _test(self, trainer: Any, module: Any, logged: _Logged) -> RangeTest:
        batches = _Batches(trainer)
        validation = _Validation(trainer, logged, self._metric) if self._metric is not None else None
        clip = "clip_value" if trainer.gradient_clip_algorithm == "value" else "clip_norm"
        limits: dict[str, Any] = {clip: trainer.gradient_clip_val or None}
        return finder.lr_range_test(
            module,
            trainer.optimizers[0],
            None,
            batches,
            forward=_TrainingStep(trainer),
            evaluate=validation,
            accumulate=trainer.accumulate_grad_batches,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            generators=batches.loaders,
            **limits,
            **self._options,
        )


class ScheduleCallback(Callback):  # type: ignore[no-redef, unused-ignore]
    """Gives each optimizer step the rate of its number; all parameter groups keep their ratio to the first.

    `schedule` is a function from step to rate, with `momentum` another for the momentum or Adam's beta 1; or, with
    `bounds`, the name of a schedule or what a study file says of one, such as {"name": "triangular2",
    "stepsize_epochs": 2}, which ends training with a whole cycle. `bounds` is (base_lr, max_lr), what `lr_range_test`
    returned, or the RangeTestCallback in front of this callback. Steps are the trainer's: a run that is resumed from a
    checkpoint goes on where it was. `configure_optimizers` must give no scheduler of its own.
    """

    def __init__(
        self, schedule: ScheduleLike, *, bounds: Bounds | None = None, momentum: Schedule | None = None
    ) -> None:
        check_schedule(schedule, bounds, momentum)
        self._schedule, self._bounds, self._momentum = schedule, bounds, momentum

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.lr_scheduler_configs:
            raise UsageError("configure_optimizers gives a scheduler too: return the optimizer alone.")
        _check(trainer, pl_module)
        epoch_steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        total = trainer.estimated_stepping_batches
        planned = plan_run(self._schedule, self._bounds, self._momentum, total_steps=total, epoch_steps=epoch_steps)
        [optimizer] = trainer.optimizers
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
        done = trainer.global_step
        self._scheduler = torch_scheduler(optimizer, planned.rate, momentum=planned.momentum, last_step=done - 1)
        self._last = stops_at(planned, self._schedule)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step > self._scheduler.last_epoch:
            self._scheduler.step()
        if trainer.global_step >= self._last:
            trainer.should_stop = True


class _TrainingStep:
    """(model, batch) -> loss, as the trainer's own loop has it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._numbers = itertools.count()

    def __call__(self, module: Any, batch: Any) -> Any:
        batch = _on_device(self._trainer, batch)
        with self._trainer.precision_plugin.train_step_context():
            output = _call(module.training_step, batch, next(self._numbers))
        return output["loss"] if isinstance(output, Mapping) else output


class _Validation:
    """Model -> what `validation_step` logs as `name`: the mean over all batches, or what a torchmetrics metric says."""

    def __init__(self, trainer: Any, logged: _Logged, name: str) -> None:
        self._trainer, self._logged, self._name = trainer, logged, name

    def __call__(self, module: Any) -> float:
        self._logged.values.clear()
        loaders = self._trainer.val_dataloaders
        if not isinstance(loaders, Iterable):
            raise UsageError(f"There are no validation batches for the metric {self._name!r}; give some.")
        for number, batch in enumerate(loaders):
            batch = _on_device(self._trainer, batch)
            with self._trainer.precision_plugin.val_step_context():
                _call(module.validation_step, batch, number)
        return self._logged.mean(self._name)


class _Logged:
    """Takes the place of a module's `log` during a test, and keeps what was given."""

    def __init__(self) -> None:
        self.values: dict[str, list[tuple[Any, int]]] = {}

    def log(self, name: str, value: Any, *_: Any, batch_size: int | None = None, **__: Any) -> None:
        self.values.setdefault(name, []).append((value, batch_size or 1))

    def log_dict(self, dictionary: Mapping[str, Any], *_: Any, batch_size: int | None = None, **__: Any) -> None:
        for name, value in dictionary.items():
            self.log(name, value, batch_size=batch_size)

    def mean(self, name: str) -> float:
        if name not in self.values:
            known = ", ".join(self.values) or "nothing"
            raise UsageError(f"validation_step logs no {name!r}; it logs {known}.")
        [*_, (last, _)] = self.values[name]
        if hasattr(last, "compute"):
            value = float(last.compute())
            last.reset()
            return value
        return sum(float(value) * size for value, size in self.values[name]) / sum(
            size for _, size in self.values[name]
        )


class _Batches:
    """The trainer's training batches, epoch by epoch, from loaders of their own."""

    def __init__(self, trainer: Any) -> None:
        self._combined = trainer.fit_loop._combined_loader
        self.loaders = list(self._combined.flattened)

    def __len__(self) -> int:
        return len(self._combined)  # raises TypeError where nobody knows, as len does

    def __iter__(self) -> Iterator[Any]:
        combined = copy(self._combined)
        combined._iterator = None
        combined.flattened = [finder.own_loader(loader) for loader in self.loaders]
        for batch, _, _ in combined:
            yield batch


def _on_device(trainer: Any, batch: Any) -> Any:
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _call(step: Any, batch: Any, number: int) -> Any:
    """Call a step of the module, which may take the number of the batch or not."""
    return step(batch, number) if len(inspect.signature(step).parameters) > 1 else step(batch)


@contextmanager
def _unlogged(trainer: Any, module: Any) -> Iterator[_Logged]:
    """Keep what the block logs from the trainer and its loggers."""
    logged, loggers = _Logged(), trainer.loggers
    dummy = _part_of(trainer, "loggers.logger").DummyLogger
    vars(module).update(log=logged.log, log_dict=logged.log_dict)
    trainer.loggers = [dummy() for _ in loggers]
    try:
        yield logged
    finally:
        trainer.loggers = loggers
        del vars(module)["log"], vars(module)["log_dict"]


def _part_of(trainer: Any, name: str) -> Any:
    """Return a module of the library that the trainer is of: there are two with the same content."""
    library = type(trainer.fit_loop).__module__.partition(".loops")[0]
    return import_module(f"{library}.{name}")


def _check(trainer: Any, module: Any) -> None:
    if not module.automatic_optimization:
        raise UsageError(
            "With manual optimization the steps are yours: use lrsearch.lr_range_test and torch_scheduler."
        )
    if trainer.world_size > 1:
        raise UsageError(f"This works on one device, got {trainer.world_size}: run the range test with devices=1.")
