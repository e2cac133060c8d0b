"""The range test and the schedules as Keras 3 callbacks, on any backend.

`CyclicLR` takes the arguments of the callback of the paper's companion repository, https://github.com/bckenstler/CLR,
which needs the Keras 2 that it was written for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np

from lrsearch.errors import MissingExtraError, UsageError
from lrsearch.finder import RangeTest, TestOptions, plan_test
from lrsearch.integrations._run_plan import Bounds, ScheduleLike, check_schedule, plan_run, stops_at
from lrsearch.restore import Snapshot
from lrsearch.schedules import cyclical
from lrsearch.schedules.cyclical import halved
from lrsearch.training import Climb, finite

try:
    import keras
    from keras.src.backend.common import global_state
    from keras.src.utils import io_utils
except ModuleNotFoundError as error:
    if error.name != "keras":  # keras is there, and its backend is not: its own message says which
        raise
    raise MissingExtraError("lrsearch.integrations.keras", "keras") from error

if TYPE_CHECKING:
    from lrsearch.interfaces import Schedule


def lr_range_test(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    validation_data: Any = None,
    metric: str | None = None,
    fit_options: dict[str, Any] | None = None,
    **options: Unpack[TestOptions],
) -> RangeTest:
    """Run a range test with `model.fit(x, y, **fit_options)`, and put everything back, however it ends.

    See `RangeTestCallback`, which does the work. Raises UsageError when there can be no test; what your own code
    raises comes through.
    """
    test = RangeTestCallback(validation_data=validation_data, metric=metric, show=False, **options)
    history = getattr(model, "history", None)
    given = {"verbose": 0, **(fit_options or {})}
    if taken := {"callbacks", "epochs", "validation_data"} & given.keys():
        raise UsageError(f"fit_options cannot have {', '.join(sorted(taken))}; a range test has its own.")
    try:
        model.fit(x, y, epochs=10**6, callbacks=[test], **given)
    finally:
        test.restore()
        model.history = history
    assert test.result is not None, "set when training ends"
    return test.result


class RangeTestCallback(keras.callbacks.Callback):
    """Turns a `fit` into a range test: `result` is its verdict, and the model is afterwards as it was before.

    Put back bit for bit: weights, optimizer and metric variables, seed generators, and the generators of python, numpy
    and torch. The rate rises from batch to batch; `fit` ends when it is through or the loss runs away, at the latest
    after its own epochs. `metric`, one of those that the model was compiled with (by default its accuracy, where it has
    one), is measured on `validation_data`, a fixed small set as `model.evaluate` takes it, 75 times or so, and judged
    if it lies between 0 and 1 and should be high. Without it the training loss is judged. `options` are those of
    `lrsearch.lr_range_test`; by default the test lasts two epochs, and at least 100 steps. An exception leaves the
    model as it is then: `restore` puts it back, and `lr_range_test` does so by itself.
    """

    def __init__(
        self,
        *,
        validation_data: Any = None,
        metric: str | None = None,
        show: bool = True,
        **options: Unpack[TestOptions],
    ) -> None:
        super().__init__()
        if metric is not None and validation_data is None:
            raise UsageError(f"The metric {metric!r} is measured on validation_data=; give some.")
        self.result: RangeTest | None = None
        self._validation_data, self._metric = validation_data, metric
        self._show, self._options = show, options
        self._undo: list[Callable[[], object]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        optimizer = _plain(self.model.optimizer)
        steps, epochs = self.params["steps"], self.params["epochs"]
        self._plan = plan_test(type(optimizer).__name__, steps, **self._options)
        if steps is not None and steps * epochs < self._plan.steps:
            raise UsageError(
                f"The range test takes {self._plan.steps} steps, got {epochs} epochs of {steps}; add some."
            )
        self._setting = _setting(optimizer)
        self._undo = [_undo_of(self.model)]
        self._losses: list[float] = []
        self._climb = Climb(self._plan.rates, self._take_losses, self._evaluate)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.reset_metrics()  # so that the loss is that of this batch, not the mean of the epoch
        _set_rate(self.model, self._climb.rate)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not logs or "loss" not in logs:
            raise UsageError("A range test needs the loss: train_step must return it as 'loss'.")
        self._losses.append(float(logs["loss"]))
        if not self._climb.goes_on():
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        self.result = self._plan.conclude(self._climb.points(), self._setting)
        self.restore()
        if self._show:
            io_utils.print_msg(str(self.result))

    def restore(self) -> None:
        """Put everything back; a second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def _take_losses(self) -> list[float]:
        losses, self._losses = self._losses, []
        return losses

    def _evaluate(self) -> tuple[float | None, float | None]:
        if self._validation_data is None:
            return None, None
        x, y, weights = keras.utils.unpack_x_y_sample_weight(self._validation_data)
        _sync(self.model)
        modes = _train_flags(self.model)
        values = self.model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
        for module, mode in modes:
            module.training = mode
        if self._metric is not None and self._metric not in values:
            raise UsageError(f"The model was compiled without a metric {self._metric!r}; it has {', '.join(values)}.")
        return finite(values["loss"]), finite(values.get(self._metric or "accuracy"))


class ScheduleCallback(keras.callbacks.Callback):
    """Gives each optimizer step the rate of its number.

    `schedule` is a function from step to rate, with `momentum` another for the momentum (Adam: beta 1); or, with
    `bounds`, the name of a schedule or what a study file says of one, such as {"name": "triangular2",
    "stepsize_epochs": 2}, which ends training with a whole cycle. `bounds` is (base_lr, max_lr) or what
    `lr_range_test` returned.

    Steps are counted by `optimizer.iterations`, less `first_step`: a model that was saved whole and loaded, or that
    BackupAndRestore brought back, goes on where it was. `history` has the rate of each step beside its logs, and its
    momentum where that is scheduled. Keras holds the momentum as a number, which other backends than torch compile
    into the training step: there it can change only in a model that was compiled with run_eagerly=True.
    """

    def __init__(
        self,
        schedule: ScheduleLike,
        *,
        bounds: Bounds | None = None,
        momentum: Schedule | None = None,
        first_step: int = 0,
    ) -> None:
        super().__init__()
        check_schedule(schedule, bounds, momentum)
        self.first_step = first_step
        self.history: dict[str, list[float]] = {}
        self._schedule, self._bounds, self._momentum = schedule, bounds, momentum
        self._batches: int | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        optimizer = _plain(self.model.optimizer)
        self._accumulation = optimizer.gradient_accumulation_steps or 1
        steps, epochs = self.params["steps"], self.params["epochs"]
        epoch_steps = None if steps is None else steps / self._accumulation
        total = None if epoch_steps is None else epoch_steps * epochs
        self._planned = plan_run(
            self._schedule, self._bounds, self._momentum, total_steps=total, epoch_steps=epoch_steps
        )
        self._last = stops_at(self._planned, self._schedule)
        self._momentum_name = None if self._planned.momentum is None else _momentum_name(self.model)
        self._batches = None

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._batches is None:  # read here: by now BackupAndRestore has brought it back
            self._batches = int(_plain(self.model.optimizer)._iterations)
        self._set = {"lr": self.rate(self.step)}
        _set_rate(self.model, self._set["lr"])
        if self._planned.momentum is not None and self._momentum_name is not None:
            self._set["momentum"] = self._planned.momentum(self.step)
            setattr(_plain(self.model.optimizer), self._momentum_name, self._set["momentum"])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        assert self._batches is not None, "set when the batch began"
        self._batches += 1
        for name, value in {**(logs or {}), **self._set, "iterations": self.step}.items():
            self.history.setdefault(name, []).append(value)
        if self.step >= self._last:
            self.model.stop_training = True

    @property
    def step(self) -> int:
        """The number of the next optimizer step, counted from where the schedule began."""
        return (self._batches or 0) // self._accumulation - self.first_step

    def rate(self, step: int) -> float:
        """Return the rate of a step."""
        return self._planned.rate(step)


class CyclicLR(ScheduleCallback):
    """The cyclical rate of bckenstler's callback of this name, with its arguments, its formula and its `history`.

    `step_size` is half a cycle in steps. `mode` is triangular, triangular2 (each cycle half as high) or exp_range
    (height x gamma^step). `scale_fn` takes the place of the mode; it is given the number of the cycle from 1, or with
    `scale_mode="iterations"` that of the step from 0. For steps and resuming see `ScheduleCallback`.
    """

    def __init__(
        self,
        base_lr: float = 0.001,
        max_lr: float = 0.006,
        step_size: float = 2000.0,
        mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[Any], float] | None = None,
        scale_mode: Literal["cycle", "iterations"] = "cycle",
        *,
        first_step: int = 0,
    ) -> None:
        modes: dict[str, tuple[Callable[[Any], float], str]] = {
            "triangular": (lambda cycle: 1.0, "cycle"),
            "triangular2": (halved, "cycle"),
            "exp_range": (lambda step: gamma**step, "iterations"),
        }
        if scale_fn is None and mode not in modes:
            raise UsageError(f"mode must be one of {', '.join(modes)}, got {mode!r}.")
        if scale_mode not in ("cycle", "iterations"):
            raise UsageError(f"scale_mode must be cycle or iterations, got {scale_mode!r}.")
        self.base_lr, self.max_lr, self.step_size = base_lr, max_lr, step_size
        self._scale, self._scale_mode = modes[mode] if scale_fn is None else (scale_fn, scale_mode)
        self._cycles = self._new_cycles()
        super().__init__(self.rate, first_step=first_step)

    def _reset(
        self, new_base_lr: float | None = None, new_max_lr: float | None = None, new_step_size: float | None = None
    ) -> None:
        """Begin the first cycle anew with the next step, with other settings where given."""
        self.base_lr = self.base_lr if new_base_lr is None else new_base_lr
        self.max_lr = self.max_lr if new_max_lr is None else new_max_lr
        self.step_size = self.step_size if new_step_size is None else new_step_size
        self._cycles = self._new_cycles()
        if self._batches is not None:
            self.first_step += self.step

    def rate(self, step: int) -> float:
        """Return the rate of a step, before training too."""
        return self._cycles(step)

    def _new_cycles(self) -> Schedule:
        return cyclical(
            base_lr=self.base_lr,
            max_lr=self.max_lr,
            cycle_steps=2 * self.step_size,
            scale=self._scale,
            scale_mode="cycle" if self._scale_mode == "cycle" else "iteration",
        )


def _plain(optimizer: Any) -> Any:
    """Return the optimizer inside a loss-scaling one. Raises UsageError where nobody can set its rate."""
    plain = getattr(optimizer, "inner_optimizer", optimizer)
    if not isinstance(getattr(plain, "_learning_rate", None), keras.Variable):
        raise UsageError("The optimizer has a schedule of its own; compile the model with a number as learning_rate.")
    return plain


def _set_rate(model: keras.Model, rate: float) -> None:
    _sync(model)
    _plain(model.optimizer).learning_rate = rate


def _momentum_name(model: keras.Model) -> str:
    """Return what the optimizer calls its momentum. Raises UsageError where that cannot change from step to step."""
    optimizer = _plain(model.optimizer)
    name = next((name for name in ("momentum", "beta_1") if getattr(optimizer, name, 0)), None)
    if name is None:
        raise UsageError(f"{type(optimizer).__name__} has no momentum to schedule; give it one, such as momentum=0.9.")
    if keras.backend.backend() != "torch" and not model.run_eagerly:
        raise UsageError(
            f"Keras's backend {keras.backend.backend()} compiles the momentum into the training step: compile the "
            "model with run_eagerly=True, or schedule the rate alone."
        )
    return name


def _sync(model: keras.Model) -> None:
    """Bring variables up to date: during `fit` the JAX backend keeps their values elsewhere, and reads them anew."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def _undo_of(model: keras.Model) -> Callable[[], None]:
    """Return what brings all that a training step changes back to what it is now."""
    seeds = global_state.get_global_attribute("global_seed_generator")
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    variables += [] if seeds is None else [seeds.state]
    values = [(variable, np.copy(keras.ops.convert_to_numpy(variable))) for variable in variables]
    modules = [model] if keras.backend.backend() == "torch" else []  # buffers, gradients and flags of torch's own
    snapshot = Snapshot(*modules)

    def undo() -> None:
        _sync(model)
        for variable, value in values:
            variable.assign(value)
        snapshot.restore()

    return undo


def _train_flags(model: keras.Model) -> list[tuple[Any, bool]]:
    """Return the modules of the torch backend with their modes."""
    return [(m, m.training) for m in model.modules()] if keras.backend.backend() == "torch" else []


def _setting(optimizer: Any) -> str:
    """Return what the bounds hold for, in words."""
    known = {name: getattr(optimizer, name, None) for name in ("momentum", "beta_1", "weight_decay")}
    texts = [f"{name}={value}" for name, value in known.items() if value]
    return f"{type(optimizer).__name__}({', '.join(texts)})"
