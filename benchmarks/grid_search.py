"""A grid of 16 learning rates from exec to exit: `lrsearch run-study` and the usual ways, each in a fresh process.

`python -m benchmarks.grid_search --task lenet --against optuna_dataloader` takes about three minutes on two cores for
one of optuna_dataloader, optuna_lightning and keras_tuner_grid, five for ray_tune_grid, 14 for all; with
`--task digits` all take about five. Every side trains the same 16 models, evaluates the validation split after each
epoch and the test set once per trial, and chooses by the validation accuracy at the end.

lrsearch also runs with other settings: `--also NAME=YAML` merges YAML into its study file. Those of OURS are there
already; `auto` leaves to lrsearch what it can choose by itself.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from benchmarks import tasks
from benchmarks.harness import Report, Run, Side, alternate, counted, parser, program, rates, spreads
from lrsearch.storage.store import open_store


class Default(NamedTuple):
    """The work of a task's 16 trials."""

    images: int
    batch_size: int
    epochs: int
    low: float
    high: float


DEFAULTS = {"lenet": Default(8_000, 128, 2, 1e-4, 1.0), "digits": Default(1_438, 32, 20, 1e-4, 1.0)}
PEERS = {
    "optuna_dataloader": ("optuna", "torchvision"),
    "optuna_lightning": ("optuna", "lightning", "torchvision"),
    "keras_tuner_grid": ("keras", "keras_tuner"),
    "ray_tune_grid": ("ray", "pyarrow", "torchvision"),
}
OURS = {
    "lenet": [
        "bf16={training: {precision: bfloat16}}",
        "auto={gangs: auto, training: {precision: auto}, executor: {name: process, slots: auto}}",
    ],
    "digits": ["gangs={gangs: auto}", "processes={gangs: auto, executor: {name: process}}"],
}
"""What else lrsearch runs with by default, beside a study file in float32 without further settings."""


def study(work: tasks.Options, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study file that does this work, with `more` merged into it."""
    made: dict[str, Any] = {
        "version": 1,
        "name": "benchmark",
        "workload": tasks.workload(work),
        "training": {
            "epochs": work.epochs,
            "optimizer": {"name": "sgd", "momentum": tasks.MOMENTUM},
            "precision": work.precision,
            "device": "cpu",
        },
        "seeds": [tasks.SEED],
        "rates": {"low": min(work.rates), "high": max(work.rates)},
        "strategies": {"grid": {"name": "grid", "learning_rates": list(work.rates), "schedule": {"name": "constant"}}},
    }
    return merged(made, more)


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `more`, block by block.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    together = dict(base)
    for key, value in more.items():
        old = together.get(key)
        together[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return together


def our_side(name: str, work: tasks.Options, more: Mapping[str, Any], folder: Path) -> Side:
    """Return `lrsearch run-study` on the study file with `more`; each run has an empty database."""
    path, database = folder / f"{name}.yaml", folder / f"{name}.db"
    YAML(typ="safe").dump(study(work, more), path)
    url = f"sqlite:///{database}"
    command = [sys.executable, "-m", "lrsearch", "run-study", str(path), "--database", url]

    def read(_: str) -> dict[str, Any]:
        with open_store(url, must_exist=True) as store:
            record = store.record("benchmark")
        for file in folder.glob(f"{database.name}*"):
            file.unlink()
        results = {one.proposal.learning_rate: one.result for one in record.trials if one.result is not None}
        values = {rate: found.validation_metric for rate, found in results.items() if rate and found.validation_metric}
        best = tasks.best_rate(values)
        return {
            "search_seconds": sum(event.data["seconds"] for event in record.events if event.kind == "surroundings"),
            "rate": best,
            "accuracy": values[best],
            "trials": len(record.trials),
            "gang_size": max(found.gang_size for found in results.values()),
        }

    return Side(name, [*command, "--report", str(folder / f"{name}.html")], read=read)


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("--task", choices=list(DEFAULTS), default="lenet")
    command.add_argument("--against", choices=list(PEERS), nargs="*", default=list(PEERS))
    command.add_argument("--also", nargs="+", default=[], metavar="NAME=YAML", help="further settings for lrsearch")
    command.add_argument("--without-bf16", action="store_true", help="leave out lrsearch in bfloat16")
    command.add_argument("--images", type=int, help="before a fifth becomes the validation split")
    command.add_argument("--epochs", type=int)
    command.add_argument("--trials", type=int, default=16)
    chosen = command.parse_args(arguments)
    default = DEFAULTS[chosen.task]
    images, epochs = chosen.images or default.images, chosen.epochs or default.epochs
    grid = rates(default.low, default.high, chosen.trials)
    work = tasks.Options(chosen.task, images, default.batch_size, epochs, "float32", 0, grid)
    told = ["--task", chosen.task, "--images", images, "--epochs", epochs, "--batch-size", work.batch_size]
    tasks.main([chosen.task])
    named = [one for one in OURS[chosen.task] if not (chosen.without_bf16 and one.startswith("bf16="))]
    also = [*named, *chosen.also]
    with tempfile.TemporaryDirectory(prefix="benchmark-studies-") as folder:
        ours = [our_side("ours", work, {}, Path(folder))]
        for text in also:
            name, _, settings = text.partition("=")
            more = YAML(typ="safe").load(io.StringIO(settings))
            ours.append(our_side(f"ours, {name}", work, more, Path(folder)))
        peers = [Side(name, program(name, *told, "--rates", *grid), PEERS[name]) for name in chosen.against]
        runs = alternate([*ours, *peers], chosen.repeats, chosen.threads)
    title = f"{tasks.TASKS[chosen.task].title}, {counted(chosen.threads)}: {chosen.trials} rates, {epochs} epochs each"
    report = Report(f"grid_search-{chosen.task}", title, vars(chosen), runs)
    seconds = spreads(runs, lambda run: run.seconds)
    searches = spreads(runs, _search_seconds)
    for side, spread in seconds.items():
        last = next(run.values for run in reversed(runs) if run.side == side and not run.error)
        winners = sorted({float(run.values["rate"]) for run in runs if run.side == side and not run.error})
        report.add(
            f"{side}, exec to exit",
            spread,
            f"s; best rate {' or '.join(map(str, winners))}, accuracy {last['accuracy']:.3f}",
        )
        report.add(f"{side}, search", searches[side], "s")
    for own in ours:
        report.add_ratios(lambda run: run.seconds, own.name, chosen.against, "exec to exit")
        report.add_ratios(_search_seconds, own.name, chosen.against, "search")
    return report.finish(seconds, "seconds from exec to exit", chosen.results)


def _search_seconds(run: Run) -> float:
    return float(run.values["search_seconds"])


if __name__ == "__main__":
    sys.exit(main())
