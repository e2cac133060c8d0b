from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from lrsearch.errors import UsageError
from lrsearch.integrations.keras import CyclicLR, RangeTestCallback, ScheduleCallback, lr_range_test
from lrsearch.schedules import one_cycle, one_cycle_momentum, triangular2
from tests.integrations.digits import TRAIN_COUNT, arrays

pytestmark = pytest.mark.integrations

X, Y = arrays()
TRAIN, VALIDATION = (X[:TRAIN_COUNT], Y[:TRAIN_COUNT]), (X[TRAIN_COUNT:], Y[TRAIN_COUNT:])


def make_model(optimizer: Any = None, built: bool = True, dropout: float = 0.2) -> Any:
    """Return a model with all that has a state: dropout seeds, batch statistics, momentum, metrics."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(32, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(dropout),
    ]
    model = keras.Sequential([*([keras.Input((64,))] if built else []), *layers, keras.layers.Dense(10)])
    model.compile(
        optimizer=keras.optimizers.SGD(0.1, momentum=0.9) if optimizer is None else optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(model: Any, epochs: int = 1, **options: Any) -> list[float]:
    """Return the loss of each batch."""
    losses: list[float] = []
    keep = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs["loss"]))
    callbacks = [*options.pop("callbacks", []), keep]
    model.fit(*TRAIN, batch_size=32, epochs=epochs, verbose=0, callbacks=callbacks, **options)
    return losses


def state_of(model: Any) -> list[Any]:
    return [np.copy(keras.ops.convert_to_numpy(v)) for v in [*model.variables, *model.optimizer.variables]]


class TestRangeTest:
    @pytest.mark.parametrize("built", [True, False])
    def test_training_is_bitwise_the_one_without_a_test(self, built: bool) -> None:
        expected = train(make_model(built=built))
        model = make_model(built=built)
        found = lr_range_test(model, *TRAIN, fit_options={"batch_size": 32})
        assert found.verdict.status == "ok"
        assert train(model) == expected

    def test_a_trained_model_is_left_as_it_was(self) -> None:
        model = make_model()
        train(model)
        before, history = state_of(model), model.history
        lr_range_test(model, *TRAIN, steps=40)
        assert all(np.array_equal(a, b) for a, b in zip(before, state_of(model), strict=True))
        assert model.history is history

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_exception_in_between_leaves_nothing_behind(self, error: type[BaseException]) -> None:
        class Breaks(keras.layers.Layer):  # type: ignore[misc, unused-ignore]  # the base is Any
            left = 10**6

            def call(self, inputs: Any) -> Any:
                Breaks.left -= 1
                if not Breaks.left:
                    raise error("as in a user's own layer")
                return inputs

        model = keras.Sequential([keras.Input((64,)), Breaks(), keras.layers.Dense(10)])
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.optimizer.build(model.trainable_variables)
        before = state_of(model)
        Breaks.left = 30
        with pytest.raises(error):
            lr_range_test(model, *TRAIN)
        assert all(np.array_equal(a, b) for a, b in zip(before, state_of(model), strict=True))

    def test_accuracy_on_validation_data_is_judged(self) -> None:
        validation = (VALIDATION[0][:200], VALIDATION[1][:200])
        found = lr_range_test(make_model(), *TRAIN, validation_data=validation, evaluation_count=200, chance=0.1)
        assert found.verdict.signal == "validation_metric"
        assert found.verdict.max_lr is not None
        assert 0.05 < found.verdict.max_lr < 2
        assert found.setting == "SGD(momentum=0.9)"

    def test_losses_are_those_of_single_batches_at_the_ladders_rates(self) -> None:
        model = make_model(dropout=0.0)
        found = lr_range_test(model, *TRAIN, steps=25, low=1e-4, high=1e-2, fit_options={"shuffle": False})
        losses = []
        for point in found.curve:
            batch = slice(32 * point.step, 32 * (point.step + 1))
            model.optimizer.learning_rate = point.learning_rate
            losses.append(float(model.train_on_batch(TRAIN[0][batch], TRAIN[1][batch])[0]))
            model.reset_metrics()
        assert [point.train_loss for point in found.curve[:-1]] == pytest.approx(losses[1:], rel=1e-5)

    def test_as_a_callback_it_ends_the_fit_and_leaves_the_model_as_it_was(self, capsys: Any) -> None:
        model = make_model()
        model.optimizer.build(model.trainable_variables)
        before, test = state_of(model), RangeTestCallback()
        losses = train(model, epochs=3, callbacks=[test])
        assert len(losses) <= 100
        assert all(np.array_equal(a, b) for a, b in zip(before, state_of(model), strict=True))
        assert test.result is not None
        assert str(test.result) in capsys.readouterr().out

    def test_too_few_epochs_are_refused(self) -> None:
        with pytest.raises(UsageError, match="takes 100 steps, got 2 epochs of 44"):
            train(make_model(), epochs=2, callbacks=[RangeTestCallback()])

    def test_what_a_test_has_of_its_own_cannot_be_given(self) -> None:
        with pytest.raises(UsageError, match="fit_options cannot have callbacks, epochs"):
            lr_range_test(make_model(), *TRAIN, fit_options={"epochs": 3, "callbacks": []})

    def test_a_metric_that_is_not_measured_is_refused(self) -> None:
        with pytest.raises(UsageError, match="without a metric 'recall'; it has accuracy, loss"):
            lr_range_test(make_model(), *TRAIN, validation_data=TRAIN, metric="recall")
        with pytest.raises(UsageError, match="'accuracy' is measured on validation_data="):
            lr_range_test(make_model(), *TRAIN, metric="accuracy")

    def test_an_optimizer_with_a_schedule_of_its_own_is_refused(self) -> None:
        decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
        with pytest.raises(UsageError, match="schedule of its own"):
            lr_range_test(make_model(keras.optimizers.SGD(decay)), *TRAIN)


def clr(step: int, base_lr: float, max_lr: float, step_size: float, scale: Callable[[float, int], float]) -> float:
    """Return the rate by the formula of bckenstler's callback; `scale` is given cycle and step."""
    cycle = math.floor(1 + step / (2 * step_size))
    x = abs(step / step_size - 2 * cycle + 1)
    return base_lr + (max_lr - base_lr) * max(0.0, 1 - x) * scale(cycle, step)


PAPER = (0.001, 0.006, 2000.0)
"""base_lr, max_lr and step_size of Smith 2017 on CIFAR-10: the callback's defaults too."""


class TestCyclicLR:
    @pytest.mark.parametrize(
        ("settings", "scale"),
        [
            ({"mode": "triangular"}, lambda cycle, step: 1.0),
            ({"mode": "triangular2"}, lambda cycle, step: 1 / 2.0 ** (cycle - 1)),
            ({"mode": "exp_range", "gamma": 0.99994}, lambda cycle, step: 0.99994**step),
            ({"scale_fn": lambda c: 0.5 * (1 + math.sin(c * math.pi / 2))}, None),
            ({"scale_fn": lambda s: 1 / 5 ** (s * 1e-4), "scale_mode": "iterations"}, None),
        ],
    )
    def test_values_are_those_of_the_formula_for_the_papers_settings(self, settings: Any, scale: Any) -> None:
        if scale is None:
            own, by_cycle = settings["scale_fn"], "scale_mode" not in settings
            scale = lambda cycle, step: own(cycle if by_cycle else step)  # noqa: E731
        callback = CyclicLR(*PAPER, **settings)
        for step in range(0, 20_000, 7):
            assert callback.rate(step) == pytest.approx(clr(step, *PAPER, scale), rel=1e-12)

    @pytest.mark.parametrize("step_size", [6, 5.5])
    def test_the_optimizer_trains_with_them_and_history_has_them(self, step_size: float) -> None:
        callback, seen = CyclicLR(0.01, 0.05, step_size, mode="triangular2"), []
        model = make_model()
        spy = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: seen.append(float(model.optimizer.learning_rate))
        )
        losses = train(model, epochs=2, callbacks=[callback, spy])
        expected = [clr(step, 0.01, 0.05, step_size, lambda cycle, step: 1 / 2.0 ** (cycle - 1)) for step in range(88)]
        assert seen == pytest.approx(expected, rel=1e-6)  # single precision
        assert callback.history["lr"] == pytest.approx(expected, rel=1e-12)
        assert callback.history["iterations"] == list(range(1, 89))
        assert callback.history["loss"] == losses
        assert len(callback.history["accuracy"]) == 88

    def test_a_second_fit_goes_on(self) -> None:
        whole, parts = CyclicLR(0.01, 0.05, 30), CyclicLR(0.01, 0.05, 30)
        train(make_model(), epochs=2, callbacks=[whole])
        model = make_model()
        train(model, callbacks=[parts])
        train(model, callbacks=[parts])
        assert parts.history["lr"] == whole.history["lr"]

    def test_a_reset_begins_the_first_cycle_anew(self) -> None:
        callback, model = CyclicLR(0.01, 0.05, 30, mode="triangular2"), make_model()
        train(model, callbacks=[callback])
        callback._reset(new_max_lr=0.09, new_step_size=4)
        train(model, callbacks=[callback])
        assert callback.history["lr"][44:50] == pytest.approx([0.01, 0.03, 0.05, 0.07, 0.09, 0.07])

    def test_wrong_modes_are_refused(self) -> None:
        with pytest.raises(UsageError, match="mode must be one of triangular, triangular2, exp_range"):
            CyclicLR(mode="cosine")  # type: ignore[arg-type]  # what a user may type
        with pytest.raises(UsageError, match="scale_mode must be cycle or iterations"):
            CyclicLR(scale_mode="epoch")  # type: ignore[arg-type]  # what a user may type


class TestSchedule:
    def test_any_schedule_gives_each_step_its_rate(self) -> None:
        schedule = one_cycle(max_lr=0.1, total_steps=44)
        callback = ScheduleCallback(schedule)
        train(make_model(), callbacks=[callback])
        assert callback.history["lr"] == [schedule(step) for step in range(44)]

    def test_a_saved_and_loaded_model_goes_on_bitwise_in_the_middle_of_a_cycle(self, tmp_path: Path) -> None:
        schedule = triangular2(base_lr=0.01, max_lr=0.05, cycle_steps=60)
        model = make_model(dropout=0.0)  # Keras does not save the state of its seeds
        train(model, callbacks=[ScheduleCallback(schedule)], shuffle=False)
        model.save(tmp_path / "model.keras")
        expected = train(model, callbacks=[ScheduleCallback(schedule)], shuffle=False)
        loaded, callback = keras.models.load_model(tmp_path / "model.keras"), ScheduleCallback(schedule)
        assert train(loaded, callbacks=[callback], shuffle=False) == expected
        assert callback.history["lr"] == [schedule(step) for step in range(44, 88)]

    def test_a_run_that_backup_and_restore_brings_back_goes_on(self, tmp_path: Path) -> None:
        class Crash(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                if epoch == 2:
                    raise RuntimeError("crash")

        def callbacks(*more: Any) -> tuple[Any, list[Any]]:
            schedule = ScheduleCallback("triangular2", bounds=(0.01, 0.05))
            return schedule, [schedule, keras.callbacks.BackupAndRestore(tmp_path), *more]

        whole, _ = callbacks()
        train(make_model(), epochs=3, callbacks=[whole])
        first, given = callbacks(Crash())
        with pytest.raises(RuntimeError, match="crash"):
            train(make_model(), epochs=3, callbacks=given)
        second, given = callbacks()
        train(make_model(), epochs=3, callbacks=given)
        assert first.history["lr"] + second.history["lr"] == whole.history["lr"]

    def test_found_bounds_go_into_a_named_schedule_that_ends_with_a_whole_cycle(self) -> None:
        model = make_model()
        found = lr_range_test(model, *TRAIN)
        callback = ScheduleCallback({"name": "triangular", "stepsize_epochs": 0.75}, bounds=found)
        train(model, epochs=2, callbacks=[callback])
        assert len(callback.history["lr"]) == 66  # the one cycle of 2 x 0.75 epochs that fits
        assert max(callback.history["lr"]) == found.verdict.max_lr
        assert min(callback.history["lr"]) == found.verdict.base_lr

    @pytest.mark.parametrize("nesterov", [False, True])
    def test_the_momentum_follows_its_own_schedule(self, nesterov: bool) -> None:
        """One weight w with loss w^2, by hand: v = m v - rate 2 w; w += v, or with Nesterov w += m v - rate 2 w."""
        rate = one_cycle(max_lr=0.1, total_steps=40)
        momentum = one_cycle_momentum(base_momentum=0.6, max_momentum=0.95, total_steps=40)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9, nesterov=nesterov), "mse")
        callback = ScheduleCallback(rate, momentum=momentum)
        model.fit(np.ones((40, 1)), np.zeros((40, 1)), batch_size=1, verbose=0, callbacks=[callback])
        weight, velocity = 1.0, 0.0
        for step in range(40):
            push = rate(step) * 2 * weight
            velocity = momentum(step) * velocity - push
            weight += momentum(step) * velocity - push if nesterov else velocity
        assert float(model.get_weights()[0].item()) == pytest.approx(weight, rel=1e-4)
        assert callback.history["momentum"] == [momentum(step) for step in range(40)]

    def test_a_named_schedule_may_say_its_momentum_and_adams_is_beta_1(self) -> None:
        named = {"name": "triangular", "cycles": 2, "base_momentum": 0.8, "max_momentum": 0.95}
        seen: list[float] = []
        model = make_model(keras.optimizers.Adam(0.01))
        watch = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: seen.append(model.optimizer.beta_1)
        )
        callback = ScheduleCallback(named, bounds=(0.001, 0.01))
        train(model, callbacks=[callback, watch])
        assert seen == callback.history["momentum"]
        assert (seen[0], len(seen)) == (0.95, 44)
        assert min(seen) == pytest.approx(0.8)
        mirrored = [0.95 - 0.15 * (lr - 0.001) / 0.009 for lr in callback.history["lr"]]
        assert seen == pytest.approx(mirrored)

    def test_momentum_schedules_that_cannot_be_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        callback = ScheduleCallback(lambda step: 0.1, momentum=lambda step: 0.9)
        with pytest.raises(UsageError, match="SGD has no momentum to schedule"):
            train(make_model(keras.optimizers.SGD(0.1)), callbacks=[callback])
        with pytest.raises(UsageError, match="momentum= goes with a function"):
            ScheduleCallback("triangular", bounds=(0.1, 0.2), momentum=lambda step: 0.9)
        monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
        with pytest.raises(UsageError, match="run_eagerly=True"):
            train(make_model(), callbacks=[callback])

    def test_accumulated_batches_share_a_rate(self) -> None:
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
        callback = ScheduleCallback(lambda step: 0.001 * (step + 1))
        train(make_model(optimizer), callbacks=[callback])
        assert callback.history["lr"] == [0.001 * (batch // 4 + 1) for batch in range(44)]
