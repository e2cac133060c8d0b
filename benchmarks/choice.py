"""What lrsearch chooses by itself, beside every choice that it had, and what choosing takes.

`python -m benchmarks.choice --cases mlp lenet` takes about a minute on two cores for each case and round, three with
the largest nets. The study of a case is a grid of 16 rates with `gangs`, `precision` and `slots` left to lrsearch. Each
round has three fresh processes for each case: `choose` prepares that study with nothing remembered, `given` the same
with all of it said in the study file, and `survey` times every precision, number of processes and size of gang as
`lrsearch probe` does. Of the medians over all rounds it prints

- a step of one trial as chosen over the fastest that was surveyed, and over the fastest without gangs,
- what `choose` takes longer than `given`, as a share of what the whole study's steps take as chosen.

Each survey has its own mood of the machine: the fastest of many is fast by luck too, so that a ratio just above 1 is
what a right choice looks like.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from benchmarks import tasks
from benchmarks.harness import Report, Run, Side, Spread, alternate, parser, rates, spreads

TRIALS = 16
HOW = ("precision", "processes", "gang_size")


class Case(NamedTuple):
    """A model with its data; `epochs` of each trial."""

    workload: dict[str, Any]
    epochs: int
    optimizer: str = "sgd"


FASHION_MNIST = {"name": "fashion_mnist", "data_root": str(tasks.FASHION_MNIST), "batch_size": 128}
CIFAR10 = {"name": "image_folder", "data_root": str(tasks.CIFAR10), "batch_size": 128}
CASES = {
    "mlp": Case({"name": "digits", "model": "mlp", "batch_size": 32}, 100),
    "small_cnn": Case({"name": "digits", "model": "small_cnn", "batch_size": 32}, 50),
    "lenet": Case({**FASHION_MNIST, "model": "lenet"}, 10),
    "cifar10_quick": Case({**CIFAR10, "model": "cifar10_quick"}, 10),
    "cifar10_full": Case({**CIFAR10, "model": "cifar10_full"}, 10),
    "gru": Case({"name": "text", "model": "gru"}, 10, "adam"),
    "transformer": Case({"name": "text", "model": "transformer"}, 10, "adam"),
    "diabetes": Case({"name": "diabetes"}, 500),
    "resnet9": Case({**CIFAR10, "model": "resnet9", "batch_size": 32}, 5),
}


def study(case: Case, *, gangs: str, precision: str, slots: int | str) -> str:
    """Return the study file."""
    plan = {"epochs": case.epochs, "optimizer": {"name": case.optimizer}, "precision": precision, "device": "cpu"}
    grid = {"name": "grid", "learning_rates": rates(1e-4, 1.0, TRIALS), "schedule": {"name": "constant"}}
    text = io.StringIO()
    YAML(typ="safe").dump(
        {
            "version": 1,
            "name": "choice",
            "workload": case.workload,
            "training": plan,
            "seeds": [tasks.SEED],
            "rates": {"low": 1e-4, "high": 1.0},
            "executor": {"name": "process", "slots": slots},
            "gangs": gangs,
            "strategies": {"grid": grid},
        },
        text,
    )
    return text.getvalue()


def measure(case: Case, side: str) -> None:
    """Choose, prepare without choosing, or survey, and print what was found."""
    from lrsearch.config import load_study
    from lrsearch.environment import processors
    from lrsearch.probing import start_executor, survey
    from lrsearch.study import prepare

    os.environ["LRSEARCH_CACHE"] = str(tasks.UNPACKED / "choice-cache")  # what the user's own holds stays
    if side == "given":
        text = study(case, gangs="off", precision="float32", slots=processors())
    else:
        text = study(case, gangs="auto", precision="auto", slots="auto")
    file = Path("study.yaml")
    file.write_text(text)
    config = load_study(file)
    if side == "survey":
        timings = [{key: getattr(one, key) for key in (*HOW, "step_seconds")} for one in survey(config).timings]
        tasks.tell(timings=timings)
        return
    if side == "choose":
        _forget_choices()
    began = time.perf_counter()
    config, executor = start_executor(config, None, lambda text: None)
    with closing(executor):
        prepared = prepare(config, executor)
        seconds = time.perf_counter() - began
        tasks.tell(
            seconds=seconds,
            precision=prepared.precision,
            processes=executor.slot_count,
            gang_size=max((gang.size for gang in prepared.gangs.values()), default=1),
            steps=round(config.planned_epochs() * prepared.facts.steps_per_epoch),
        )


def _forget_choices() -> None:
    """Leave only decoded images in the cache folder, which is our own."""
    from lrsearch.cache import cache_folder

    for kept in cache_folder().iterdir() if cache_folder().exists() else ():
        if kept.is_dir() and kept.suffix != ".images":
            shutil.rmtree(kept)


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="default: all")
    command.add_argument("--measure", choices=["choose", "given", "survey"], help="run this side of one case here")
    chosen = command.parse_args(arguments)
    if chosen.measure:
        measure(CASES[chosen.cases[0]], chosen.measure)
        return 0
    runs = alternate(
        [
            Side(
                f"{name} {side}",
                [sys.executable, "-m", __spec__.name, "--measure", side, "--cases", name],
            )
            for name in chosen.cases
            for side in ("given", "choose", "survey")
        ],
        chosen.repeats,
        chosen.threads,
    )
    report = Report("choice", "What is chosen, over the fastest choice", vars(chosen), runs)
    bars = {}
    for name in chosen.cases:
        own = [run for run in runs if run.side.startswith(f"{name} ") and not run.error]
        bars.update(_judge(name, own, report))
    return report.finish(bars, "times a step of the fastest choice", chosen.results)


def _judge(name: str, runs: Sequence[Run], report: Report) -> dict[str, Spread]:
    """Report what was chosen in each round, and return how far it is from the best."""
    by_way: dict[tuple[Any, ...], list[float]] = {}
    for run in runs:
        for timing in run.values.get("timings", ()):
            if timing["processes"] * timing["gang_size"] > TRIALS:
                continue  # so many there are not
            by_way.setdefault(tuple(timing[key] for key in HOW), []).append(timing["step_seconds"])
    surveyed = {way: Spread.of(values) for way, values in by_way.items()}
    seconds = spreads([run for run in runs if "seconds" in run.values], lambda run: float(run.values["seconds"]))
    chosen = [run.values for run in runs if run.side.endswith(" choose")]
    ways = [tuple(values[key] for key in HOW) for values in chosen]
    for way in dict.fromkeys(ways):
        if way not in surveyed:
            report.lines.append(f"{name}: {_said(way)} was chosen, which no survey times")
    if not set(ways) <= surveyed.keys() or not ways or len(seconds) < 2:
        return {}
    best = min(surveyed, key=lambda way: surveyed[way].median)
    alone = min((way for way in surveyed if way[2] == 1), key=lambda way: surveyed[way].median)
    report.add(f"{name}: a step of one trial, {_said(best)}, the fastest", _milliseconds(surveyed[best]), "ms")
    report.add(f"{name}: a step of one trial, {_said(alone)}, the fastest alone", _milliseconds(surveyed[alone]), "ms")
    steps = [surveyed[way].median for way in ways]
    for way in dict.fromkeys(ways):
        report.add(
            f"{name}: {_said(way)}, chosen in {ways.count(way)} of {len(ways)}", _milliseconds(surveyed[way]), "ms"
        )
    over = Spread.of([step / surveyed[best].median for step in steps])
    report.add(f"{name}: chosen over fastest", over, "times")
    report.add(
        f"{name}: chosen over fastest alone", Spread.of([step / surveyed[alone].median for step in steps]), "times"
    )
    more = seconds[f"{name} choose"].median - seconds[f"{name} given"].median
    whole = chosen[0]["steps"] * steps[0]
    report.add(f"{name}: choosing", 100 * more / whole, f"% of the {whole:.0f} s of the study's steps ({more:.1f} s)")
    return {name: over}


def _said(way: tuple[Any, ...]) -> str:
    precision, processes, size = way
    together = f"gangs of {size}" if size > 1 else "alone"
    return f"{together}, {precision}, {processes} process{'es' if processes > 1 else ''}"


def _milliseconds(spread: Spread) -> Spread:
    return Spread(1e3 * spread.median, 1e3 * spread.low, 1e3 * spread.high)


if __name__ == "__main__":
    sys.exit(main())
