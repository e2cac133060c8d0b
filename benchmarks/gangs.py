"""Trials together and alone: how many times one trial's steps the steps of a whole gang take.

`python -m benchmarks.gangs --threads 1 --cases mlp_32x16` takes about 40 s on two cores for each case and number of
threads. The name says model, batch and members. Each side is a fresh process: `alone` trains one member through
run_trials, `gang` all of them through run_gang. Evaluations are left out of the ratio; how far the members' validation
values are from those of the trials alone stands beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from benchmarks import tasks
from benchmarks.harness import Report, Side, alternate, counted, parser, rates, ratios, spreads


class Case(NamedTuple):
    """What is trained."""

    task: str
    model: str
    batch_size: int
    members: int
    images: int
    epochs: int
    precision: str = "float32"


CASES = {
    "mlp_32x16": Case("digits", "mlp", 32, 16, 1_438, 10),
    "mlp_8x8": Case("digits", "mlp", 8, 8, 1_438, 5),
    "small_cnn_32x8": Case("digits", "small_cnn", 32, 8, 1_438, 4),
    "lenet_128x8": Case("lenet", "lenet", 128, 8, 8_000, 1),
    "lenet_bf16_128x8": Case("lenet", "lenet", 128, 8, 8_000, 1, "bfloat16"),
}
HIGHEST_RATE = 0.03
"""Above the edge of stability nothing comes out twice."""


def measure(case: Case, side: str, epochs: int | None) -> None:
    """Train one member alone, or all of them together, and print the milliseconds of a step of all that was trained."""
    from benchmarks.programs.ours import Silence, checked, specs
    from lrsearch.engine import run_trials
    from lrsearch.training import keep_freed_memory

    keep_freed_memory()  # as preparing a study does
    grid = rates(1e-3, HIGHEST_RATE, case.members)
    chosen = tasks.Options(case.task, case.images, case.batch_size, epochs or case.epochs, case.precision, 0, grid)
    made = [
        replace(spec, workload=replace(spec.workload, settings={**spec.workload.settings, "model": case.model}))
        for spec in specs(chosen)
    ]
    if side == "alone":
        results = [checked(run_trials([made[0]], Silence())[0])]
        train = results[0].phase_seconds["train"]
        steps = results[0].train_steps - 1  # the first is the warm-up
    else:
        from lrsearch.gang import run_gang
        from lrsearch.trial import SoloCost

        unknown = SoloCost(0.0, 0.0, 0.0, 0.0)  # a bill that nobody reads here
        results = [checked(one) for one in run_gang([replace(spec, solo=unknown) for spec in made], Silence())]
        billed: list[Any] = [one.billed_phase_seconds for one in results]
        train = sum(one.get("train", 0.0) for one in billed)
        steps = results[0].train_steps - (1 if any(one.get("warmup") for one in billed) else 0)
    tasks.tell(
        step_ms=1000 * train / steps,
        members=len(results),
        accuracy=[one.validation_metric for one in results],
        loss=[one.validation_loss for one in results],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    command.add_argument("--epochs", type=int, help="instead of each case's own")
    command.add_argument("--measure", choices=["alone", "gang"], help="run this side of one case here and print JSON")
    chosen = command.parse_args(arguments)
    if chosen.measure:
        measure(CASES[chosen.cases[0]], chosen.measure, chosen.epochs)
        return 0
    tasks.main(sorted({CASES[name].task for name in chosen.cases}))
    epochs = ["--epochs", str(chosen.epochs)] if chosen.epochs else []
    runs = alternate(
        [
            Side(
                f"{name} {side}",
                [sys.executable, "-m", __spec__.name, "--measure", side, "--cases", name, *epochs],
            )
            for name in chosen.cases
            for side in ("alone", "gang")
        ],
        chosen.repeats,
        chosen.threads,
    )
    report = Report("gangs", f"Gangs, {counted(chosen.threads)}: steps of a gang over those of one", vars(chosen), runs)
    bars = {}
    for name in chosen.cases:
        own = [run for run in runs if run.side.startswith(f"{name} ")]
        for side, spread in spreads(own, lambda run: float(run.values["step_ms"])).items():
            report.add(f"{side}: a step", spread, "ms")
        found = ratios(own, lambda run: float(run.values["step_ms"]), f"{name} alone").get(f"{name} gang")
        if found is None:
            continue
        gap = max(abs(run.values["loss"][0] - own[0].values["loss"][0]) for run in own if not run.error)
        members = CASES[name].members
        report.add(f"{name}: {members} together over one alone", found, f"times; losses of member 0 within {gap:.1e}")
        bars[name] = found
    return report.finish(bars, "times one trial's step", chosen.results)


if __name__ == "__main__":
    sys.exit(main())
