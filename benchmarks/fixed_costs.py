"""What lrsearch costs before and around the training: start-up, workers, decoding, a trial's own cost, the ledger.

`python -m benchmarks.fixed_costs` takes about three minutes on two cores; `--only help worker` runs some. Each figure
is of a fresh process:

    help        `lrsearch --help`, exec to exit; beside it `import torch`, which is the floor of what follows
    first_step  exec of `lrsearch run-study` (digits) to the end of its first training step; beside it the tutorial
    worker      the first worker of the process executor and one that takes its place, each until it has answered
    jpeg        60,000 JPEG images (CIFAR-10): decoded, and taken from the cache afterwards
    trial       a trial of one step, less its step and its evaluations
    ledger      seconds per trial of a study of all but empty trials: with and without the mirror, less the trials alone
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ledger_scale, tasks
from benchmarks.harness import Report, Run, Side, Spread, alternate, counted, parser, program

DIGITS = tasks.Options("digits", 1_438, 32, 1, "float32", 0, (0.05,))


def worker() -> None:
    """Print the seconds until the first worker has answered, and until a further one has."""
    from lrsearch.executors.process import Process
    from lrsearch.training import pick_device

    pick_device("cpu")  # torch is imported here by then
    seconds = []
    began = time.perf_counter()
    executor = Process(slots=1).start("cpu")
    executor.prepare(partial(pick_device, "cpu"))
    first = time.perf_counter() - began
    for _ in range(5):
        os.kill(executor.pids[0], signal.SIGKILL)
        time.sleep(0.2)
        began = time.perf_counter()
        executor.prepare(partial(pick_device, "cpu"))
        seconds.append(time.perf_counter() - began)
    executor.close()
    tasks.tell(**{"a first worker, s": first, "a further worker, s": statistics.median(seconds)})


def jpeg() -> None:
    """Print the seconds of the first reading, with an empty cache, and of a later one."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LRSEARCH_CACHE"] = folder
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            images = tasks.read("quick")
            seconds.append(time.perf_counter() - began)
    count = len(images.train_images) + len(images.test_images)
    tasks.tell(**{f"{count} JPEG files first, s": seconds[0], f"{count} JPEG files afterwards, s": seconds[1]})


def trial() -> None:
    """Print the milliseconds of a trial of one step, of a step, and of what is neither step nor evaluation."""
    from benchmarks.programs.ours import Silence, checked, specs
    from lrsearch.engine import run_trials
    from lrsearch.training import probe

    spec = specs(DIGITS)[0]
    one_step = replace(spec, training=replace(spec.training, epochs=1e-9))
    whole, fixed = [], []
    for _ in range(25):
        began = time.perf_counter()
        result = checked(run_trials([one_step], Silence())[0])
        whole.append(time.perf_counter() - began)
        measured = ("warmup", "train", "evaluate", "test_evaluation")  # the one step is the warm-up
        fixed.append(whole[-1] - sum(result.phase_seconds.get(phase, 0.0) for phase in measured))
    step = probe(spec.workload, spec.training, spec.seed).step_seconds
    tasks.tell(
        **{
            "a trial of one step, ms": 1000 * statistics.median(whole[5:]),
            "a step, ms": 1000 * step,
            "a trial's fixed cost, ms": 1000 * statistics.median(fixed[5:]),
        }
    )


def ledger(trials: int = 200) -> None:
    """Print the milliseconds of an all but empty trial: in a study, in a study without the mirror, and alone."""
    from benchmarks.programs.ours import Silence, checked
    from lrsearch.config import load_study
    from lrsearch.engine import run_trials
    from lrsearch.storage.store import open_store
    from lrsearch.study import run_study
    from lrsearch.trial import TrialSpec

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with_mirror = ledger_scale.per_trial(ledger_scale.run(folder, f"sqlite:///{folder}/with.db", trials).times)
        config = load_study(folder / "study.yaml")
        watch = ledger_scale.Stopwatch()
        with open_store(f"sqlite:///{folder}/without.db") as store:
            record = run_study(config, store, observer=watch)
        without = ledger_scale.per_trial(watch.times)
        alone = []
        for one in record.trials:
            spec = TrialSpec(
                one.uuid,
                config.name,
                one.strategy,
                one.seed,
                one.number,
                one.proposal,
                config.workload_choice(),
                config.training_plan(),
            )
            began = time.perf_counter()
            checked(run_trials([spec], Silence())[0])
            alone.append(time.perf_counter() - began)
    base = statistics.median(alone)
    tasks.tell(
        **{
            "an all but empty trial alone, ms": 1000 * base,
            "ledger adds per trial, ms": 1000 * (statistics.median(without) - base),
            "ledger and mirror add per trial, ms": 1000 * (statistics.median(with_mirror) - base),
        }
    )


MEASURES: dict[str, Callable[[], None]] = {"worker": worker, "jpeg": jpeg, "trial": trial, "ledger": ledger}


def sides(folder: Path) -> dict[str, list[Side]]:
    """Return the programs of each figure."""
    from benchmarks.grid_search import our_side

    lrsearch = [sys.executable, "-m", "lrsearch"]
    study = our_side("first_step", DIGITS, {"rates": {"low": 1e-4, "high": 1.0}}, folder)  # one rate: no gang
    tutorial = ["--task", "digits", "--images", 1_438, "--epochs", 1, "--batch-size", 32, "--rates", 0.05]
    own = {name: [Side(name, [sys.executable, "-m", __spec__.name, "--measure", name])] for name in MEASURES}
    return {
        "help": [
            Side("lrsearch --help", [*lrsearch, "--help"], read=lambda _: {}),
            Side("import torch", [sys.executable, "-c", "import torch"], read=lambda _: {}),
        ],
        "first_step": [
            replace(study, name="lrsearch run-study", read=partial(_first_step, folder / "first_step.db")),
            Side("the tutorial's loop", program("dataloader", *tutorial)),
        ],
        **own,
    }


def _first_step(database: Path, _: str) -> dict[str, Any]:
    """Return when the first training step had ended, in seconds since 1970, from the ledger; and remove the ledger."""
    from lrsearch.storage.store import open_store

    with open_store(f"sqlite:///{database}", must_exist=True) as store:
        attempt = store.record("benchmark").trials[0].attempts[0]
    for file in database.parent.glob(f"{database.name}*"):
        file.unlink()
    before = ("data", "setup", "warmup")
    return {
        "first_step_at": attempt.started_at.timestamp() + sum(attempt.phase_seconds.get(name, 0.0) for name in before)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("--measure", choices=list(MEASURES), help="measure here, once, and print JSON")
    command.add_argument("--only", nargs="+", choices=["help", "first_step", *MEASURES], metavar="FIGURE")
    chosen = command.parse_args(arguments)
    if chosen.measure:
        MEASURES[chosen.measure]()
        return 0
    with tempfile.TemporaryDirectory(prefix="benchmark-studies-") as folder:
        made = sides(Path(folder))
        some = [side for name in chosen.only or made for side in made[name]]
        runs = alternate(some, chosen.repeats, chosen.threads)
    report = Report("fixed_costs", f"Fixed costs, {counted(chosen.threads)}", vars(chosen), runs)
    bars, found = {}, [_figures(run) for run in runs]
    for label in dict.fromkeys(label for own in found for label in own):
        bars[label] = Spread.of([own[label] for own in found if label in own])
        report.add(label, bars[label])
    seconds = {label: spread for label, spread in bars.items() if label.endswith(", s")}
    return report.finish(seconds, "seconds", chosen.results)


def _figures(run: Run) -> dict[str, float]:
    """Return what a run says, by a label that ends in its unit."""
    if run.error:
        return {}
    if "first_step_at" in run.values:
        return {f"{run.side}: exec to first step, s": run.values["first_step_at"] - run.began}
    return dict(run.values) or {f"{run.side}, s": run.seconds}


if __name__ == "__main__":
    sys.exit(main())
