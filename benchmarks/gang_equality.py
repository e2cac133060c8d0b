"""How far the members of a gang are from the same trials alone, beside how far a trial alone is from itself.

`python -m benchmarks.gang_equality` takes half a minute, or two minutes with `--compiled`. After 50 steps (one in the
column `one step`) it prints the largest difference of any weight, relative to the largest weight of its tensor: between
a gang of four trials (two rates of each of two seeds) and the four alone, and between these with one thread and with
two, which is what rounding in another order does by itself (nothing where no operation is large enough to be divided
among threads). Nothing is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from benchmarks import tasks
from benchmarks.harness import parser
from lrsearch.optimizers import OPTIMIZERS
from lrsearch.stacked_run import StackedRun
from lrsearch.training import Run, load, new_run
from lrsearch.trial import Choice, CompiledGang, TrainingPlan

STEPS = 50
SEEDS = (0, 1)
CPU = torch.device("cpu")


class Case(NamedTuple):
    """What is trained."""

    task: str
    model: str
    batch_size: int
    optimizer: str
    rates: tuple[float, float]
    images: int = 2_000


CASES = (
    Case("digits", "mlp", 32, "sgd", (0.01, 0.03)),
    Case("digits", "mlp", 32, "adamw", (0.001, 0.003)),
    Case("digits", "small_cnn", 32, "sgd", (0.01, 0.03)),
    Case("lenet", "lenet", 128, "sgd", (0.01, 0.03)),
    Case("lenet", "lenet", 128, "adamw", (0.001, 0.003)),
)


def begun(case: Case, seed: int) -> Run:
    options = tasks.Options(case.task, case.images, case.batch_size, 1, "float32", 0, case.rates)
    settings = tasks.workload(options) | {"model": case.model}
    name = str(settings.pop("name"))
    own = OPTIMIZERS[case.optimizer].model_validate({"name": case.optimizer}).model_dump(exclude={"name"})
    if "momentum" in own:
        own["momentum"] = tasks.MOMENTUM
    plan = TrainingPlan(1, Choice(case.optimizer, own), precision="float32", device="cpu")
    return new_run(load(Choice(name, settings), CPU, seed), plan, CPU, seed)


Weights = list[dict[str, torch.Tensor]]
"""Of each member."""


def alone(case: Case, seeds: Sequence[int], steps: int, threads: int) -> Weights:
    torch.set_num_threads(threads)
    found = []
    for seed in seeds:
        for rate in case.rates:
            run = begun(case, seed)
            for _ in range(steps):
                run.step(rate)
            found.append({name: one.detach().clone() for name, one in run.model.state_dict().items()})
    torch.set_num_threads(1)
    return found


def together(case: Case, seeds: Sequence[int], steps: int, *, compiled: bool) -> Weights:
    torch.set_num_threads(1)
    runs = [begun(case, seed) for seed in seeds]
    members = [run for run in runs for _ in case.rates]
    settings = [run.training.optimizer.settings for run in members]
    gang = StackedRun(members, settings, CompiledGang(len(members), len(members)) if compiled else None)
    rates = gang.numbers([*case.rates] * len(seeds))
    for _ in range(steps):
        gang.step(rates)
    if compiled and gang.why_not_compiled:
        raise SystemExit(f"{case.model} was not compiled: {gang.why_not_compiled}")
    return [gang.stacked.state_dict(row) for row in range(len(members))]


def gap(one: Weights, other: Weights) -> float:
    """Return the largest difference of any weight, relative to the largest weight of its tensor."""
    return max(
        float((own[name] - theirs[name]).abs().max() / own[name].abs().max().clamp(min=1e-12))
        for own, theirs in zip(one, other, strict=True)
        for name in own
        if own[name].is_floating_point()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("--compiled", action="store_true", help="also gangs of one seed whose step is compiled")
    chosen = command.parse_args(arguments)
    tasks.main(sorted({case.task for case in CASES}))
    print(f"torch {torch.__version__}, float32; the gang has one thread")
    print(f"{'case':40} {'one step':>10} {f'{STEPS} steps':>10} {'threads':>10} {'ratio':>6}")
    ratios = []
    for case in CASES:
        kinds = [("two seeds", SEEDS, False), *([("compiled", SEEDS[:1], True)] if chosen.compiled else [])]
        for kind, seeds, compiled in kinds:
            first = gap(together(case, seeds, 1, compiled=False), alone(case, seeds, 1, 1))
            single = alone(case, seeds, STEPS, 1)
            found = gap(together(case, seeds, STEPS, compiled=compiled), single)
            floor = gap(alone(case, seeds, STEPS, 2), single)
            ratio = f"{found / floor:6.2f}" if floor else "     -"
            ratios += [found / floor] if floor else []
            name = f"{case.model}, batch {case.batch_size}, {case.optimizer}, {kind}"
            print(f"{name:40} {first:10.1e} {found:10.1e} {floor:10.1e} {ratio}", flush=True)
    print(f"largest ratio: {max(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
