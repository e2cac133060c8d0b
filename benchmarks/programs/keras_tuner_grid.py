"""Keras Tuner's GridSearch over a Keras model on torch; the data are arrays in memory, as Keras has them.

After https://keras.io/keras_tuner/guides/getting_started/ and .../custom_tuner/ (a HyperModel with its own `fit`).
"""

from __future__ import annotations

import math
import time
from typing import Any

import keras
import keras_tuner

from benchmarks.tasks import EVALUATION_BATCH, MOMENTUM, SEED, arrays, options, tell_search


def like_torch(fan_in: int) -> dict[str, Any]:
    """Return the first weights that torch gives a layer of so many inputs: uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    uniform = keras.initializers.RandomUniform
    return {"kernel_initializer": uniform(-bound, bound), "bias_initializer": uniform(-bound, bound)}


def lenet() -> list[Any]:
    layers = keras.layers
    return [
        keras.Input((28, 28, 1)),
        layers.Conv2D(6, 5, padding="same", activation="relu", **like_torch(25)),
        layers.MaxPooling2D(),
        layers.Conv2D(16, 5, activation="relu", **like_torch(150)),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(120, activation="relu", **like_torch(400)),
        layers.Dense(84, activation="relu", **like_torch(120)),
        layers.Dense(10, **like_torch(84)),
    ]


def mlp() -> list[Any]:
    layers = keras.layers
    return [
        keras.Input((8, 8, 1)),
        layers.Flatten(),
        layers.Dense(128, activation="relu", **like_torch(64)),
        layers.Dense(64, activation="relu", **like_torch(128)),
        layers.Dense(10, **like_torch(64)),
    ]


MODELS = {"lenet": lenet, "digits": mlp}


def main() -> None:
    chosen = options()
    if chosen.task not in MODELS or chosen.precision != "float32":
        raise SystemExit(f"written for {', '.join(MODELS)} in float32 alone")
    began = time.perf_counter()
    # Keras has the channels last.
    train, validation, test = ((inputs.transpose(0, 2, 3, 1), targets) for inputs, targets in arrays(chosen))

    class Model(keras_tuner.HyperModel):
        def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
            keras.utils.set_random_seed(SEED)
            model = keras.Sequential(MODELS[chosen.task]())
            model.compile(
                optimizer=keras.optimizers.SGD(hp.Choice("lr", list(chosen.rates)), momentum=MOMENTUM),
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )
            return model

        def fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **settings: Any) -> Any:
            history = model.fit(*args, **settings)
            model.evaluate(*test, batch_size=EVALUATION_BATCH, verbose=0)
            # The value at the end decides, as everywhere here; Keras Tuner by itself takes the best epoch's.
            return history.history["val_accuracy"][-1]

    objective = keras_tuner.Objective("val_accuracy", "max")
    tuner = keras_tuner.GridSearch(Model(), objective=objective, directory="tuner", overwrite=True)
    tuner.search(*train, validation_data=validation, epochs=chosen.epochs, batch_size=chosen.batch_size, verbose=0)
    best = tuner.oracle.get_best_trials(len(chosen.rates))
    found = {trial.hyperparameters.get("lr"): trial.score for trial in best}
    tell_search(time.perf_counter() - began, found)


if __name__ == "__main__":
    main()
