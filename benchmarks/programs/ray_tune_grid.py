"""Ray Tune's Tuner around the loop of torch's tutorials: as many trials at once as there are processors, one each.

After https://docs.ray.io/en/latest/tune/getting-started.html.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from benchmarks.programs.dataloader import train
from benchmarks.tasks import TrainClock, options, tell_search


def main() -> None:
    chosen = options()
    began = time.perf_counter()

    def trainable(config: dict[str, Any]) -> None:
        tune.report({"accuracy": train(chosen, config["lr"], TrainClock())})

    ray.init(address="local", include_dashboard=False, log_to_driver=False)  # never a cluster that is here already
    tuner = tune.Tuner(
        trainable,
        param_space={"lr": tune.grid_search(list(chosen.rates))},
        tune_config=tune.TuneConfig(metric="accuracy", mode="max"),
        run_config=tune.RunConfig(storage_path=str(Path("results").absolute()), verbose=0),
    )
    results = tuner.fit()
    found = {result.config["lr"]: result.metrics["accuracy"] for result in results if result.metrics}
    tell_search(time.perf_counter() - began, found)
    ray.shutdown()


if __name__ == "__main__":
    main()
