"""Trials together and alone: how many times one trial's steps the steps of a whole gang take.

`python -m benchmarks.gangs --threads 1 --cases mlp_32x16` takes about a minute on two cores for each case and number of
threads. The name says model, batch and members. Each side is a fresh process: `alone` trains one member through
run_trials, `gang` all of them through run_gang, `gang-compiled` too, with a compiled step (with a C++ compiler;
compiling is not timed), both by oneDNN where timing finds that faster, as in a study. Evaluations are left out of the
ratio; how far the members' validation values are from those of the trials alone stands beside it.

`--device cuda` takes the cases of a GPU, gangs of 4 to 32, and for each also both sides with their steps replayed as
CUDA graphs: all ratios are over one trial alone that is not replayed. All of them are 480 processes; `--cases` and
`--repeats 1` make a look of it. It has not been run yet.
"""

from __future__ import annotations

import math
import shutil
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
GPU_MODELS = {
    "mlp": ("digits", 32, 1_438, 40),
    "lenet": ("lenet", 128, 20_000, 3),
    "cifar10_quick": ("quick", 128, 20_000, 3),
    "torchvision/resnet18": ("quick", 128, 20_000, 1),
    "resnet9": ("quick", 512, 20_000, 2),
}
"""Task, batch size, images and epochs."""
GPU_CASES = {
    f"{model.rpartition('/')[2]}_{precision}_{batch_size}x{members}": Case(
        task, model, batch_size, members, images, epochs, precision
    )
    for model, (task, batch_size, images, epochs) in GPU_MODELS.items()
    for precision in ("float32", "bfloat16")
    for members in (4, 8, 16, 32)
}
HIGHEST_RATE = 0.03
"""Above the edge of stability nothing comes out twice."""


SIDES = {"cpu": ("alone", "gang", "gang-compiled"), "cuda": ("alone", "gang", "alone-graphs", "gang-graphs")}
HOW = {"-graphs": "replayed", "-compiled": "compiled"}


def measure(case: Case, side: str, epochs: int | None, device: str) -> None:
    """Train one member alone, or all of them together, and print the milliseconds of a step of all that was trained."""
    from benchmarks.programs.ours import Silence, checked, specs
    from lrsearch.compiled_step import UNCOMPILED_STEPS
    from lrsearch.engine import run_trials
    from lrsearch.graphs import UNRECORDED_STEPS
    from lrsearch.training import keep_freed_memory, load, pick_device

    keep_freed_memory()  # as preparing a study does
    grid = rates(1e-3, HIGHEST_RATE, case.members)
    chosen = tasks.Options(case.task, case.images, case.batch_size, epochs or case.epochs, case.precision, 0, grid)
    kind, _, how = side.partition("-")
    made = [
        replace(
            spec,
            workload=replace(spec.workload, settings={**spec.workload.settings, "model": case.model}),
            training=replace(spec.training, device=device, compile="graphs" if how == "graphs" else "off"),
        )
        for spec in specs(chosen)
    ]
    if kind == "alone":
        results = [checked(run_trials([made[0]], Silence())[0])]
        train = results[0].phase_seconds["train"]
        steps = results[0].train_steps - (UNRECORDED_STEPS + 1 if how else 1)  # the others are the warm-up
    else:
        from lrsearch.gang import run_gang
        from lrsearch.rehearsal import Rehearsal
        from lrsearch.trial import CompiledGang, SoloCost

        unknown = SoloCost(0.0, 0.0, 0.0, 0.0)  # a bill that nobody reads here
        compiled = CompiledGang(case.members, case.members) if how == "compiled" else None
        plain, on = replace(made[0].training, compile="off"), pick_device(device)
        rehearsal = Rehearsal(load(made[0].workload, on, 0), plain, on, 0, [])
        rehearsal.with_onednn(((case.members, rehearsal.seconds_per_member(case.members, 1)),), 1, math.inf)
        told = [replace(spec, solo=unknown, compiled=compiled, onednn=rehearsal.onednn) for spec in made]
        once = [replace(spec, training=replace(spec.training, epochs=1e-9)) for spec in told]
        run_gang(once, Silence())  # one step: what the first gang of a process does is on nobody's bill
        results = [checked(one) for one in run_gang(told, Silence())]
        billed: list[Any] = [one.billed_phase_seconds for one in results]
        train = sum(one.get("train", 0.0) for one in billed)
        warmup = {"graphs": UNRECORDED_STEPS + 1, "compiled": UNCOMPILED_STEPS + 1}.get(how, 0)
        steps = results[0].train_steps - warmup
    tasks.tell(
        step_ms=1000 * train / steps,
        members=len(results),
        accuracy=[one.validation_metric for one in results],
        loss=[one.validation_loss for one in results],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("--cases", nargs="+", choices=[*CASES, *GPU_CASES], metavar="CASE", help="default: all")
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    command.add_argument("--epochs", type=int, help="instead of each case's own")
    command.add_argument(
        "--measure", choices={*SIDES["cpu"], *SIDES["cuda"]}, help="run this side of one case here and print JSON"
    )
    chosen = command.parse_args(arguments)
    cases = CASES | GPU_CASES
    chosen.cases = chosen.cases or list(GPU_CASES if chosen.device == "cuda" else CASES)
    if chosen.measure:
        measure(cases[chosen.cases[0]], chosen.measure, chosen.epochs, chosen.device)
        return 0
    tasks.main(sorted({cases[name].task for name in chosen.cases}))
    of_device = ["--device", chosen.device]
    epochs = ["--epochs", str(chosen.epochs)] if chosen.epochs else []
    runs = alternate(
        [
            Side(
                f"{name} {side}",
                [sys.executable, "-m", __spec__.name, "--measure", side, "--cases", name, *epochs, *of_device],
            )
            for name in chosen.cases
            for side in SIDES[chosen.device]
            if side != "gang-compiled" or shutil.which("g++")
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
        found = ratios(own, lambda run: float(run.values["step_ms"]), f"{name} alone")
        gap = max((abs(run.values["loss"][0] - own[0].values["loss"][0]) for run in own if not run.error), default=0.0)
        for side, ratio in found.items():
            what = f"{cases[name].members} together" if " gang" in side else "one"
            how = next((f", {word}," for end, word in HOW.items() if side.endswith(end)), "")
            report.add(f"{name}: {what}{how} over one alone", ratio, f"times; member 0's losses within {gap:.1e}")
            bars[side.replace(" gang", "")] = ratio
    return report.finish(bars, "times one trial's step", chosen.results)


if __name__ == "__main__":
    sys.exit(main())
