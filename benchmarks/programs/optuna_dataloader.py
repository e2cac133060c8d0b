"""Optuna around the loop of torch's tutorials.

After https://github.com/optuna/optuna-examples/blob/main/pytorch/pytorch_simple.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import optuna

from benchmarks.programs.dataloader import train
from benchmarks.tasks import Options, TrainClock, options, tell_search


def search(train: Callable[[Options, float, TrainClock], float]) -> None:
    chosen = options()
    began = time.perf_counter()

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("lr", min(chosen.rates), max(chosen.rates), log=True)
        return train(chosen, rate, TrainClock())

    sampler = optuna.samplers.GridSampler({"lr": list(chosen.rates)})
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=len(chosen.rates))
    found = {trial.params["lr"]: trial.value or 0.0 for trial in study.trials}
    tell_search(time.perf_counter() - began, found)


if __name__ == "__main__":
    search(train)
