"""One training run: images per second of lrsearch, of the usual ways, and of the bare loop, which is the limit.

`python -m benchmarks.one_trial --task lenet` (about three minutes on two cores; quick, seven). The usual ways run in
float32, with --peers-in-bfloat16 the first two in bfloat16 too; with 0 or 2 DataLoader workers, whichever is faster in
one run each of the tutorial's loop, or as --workers says. The clock runs from the end of the first step on, evaluations
left out. What the service adds to the bare loop is less than two runs of one program differ by:
`python -m benchmarks.service` finds it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks import tasks
from benchmarks.harness import Report, Run, Side, Spread, alternate, counted, parser, program, ratios, run_once, spreads

BATCH = 128


class Default(NamedTuple):
    """Images, epochs and rate of a task."""

    images: int
    epochs: int
    rate: float


DEFAULTS = {"lenet": Default(16_000, 2, 0.05), "quick": Default(8_000, 2, 0.001)}
PEERS = {
    "dataloader": ("torchvision",),
    "lightning_trainer": ("torchvision", "lightning"),
    "fastai_learner": ("fastai",),
}


def sides(work: Sequence[object], workers: int, precisions: Sequence[str], bfloat16_peers: bool) -> list[Side]:
    """Return ours and the bare loop in each precision, and the usual ways."""
    made = [
        Side(f"{name} {precision}", program(name, *work, "--precision", precision))
        for precision in precisions
        for name in ("ours", "bare_loop")
    ]
    for name, needs in PEERS.items():
        for precision in ("float32", "bfloat16") if bfloat16_peers and name != "fastai_learner" else ("float32",):
            command = program(name, *work, "--precision", precision, "--workers", workers)
            made.append(Side(f"{name} {precision}", command, needs))
    return [*made, Side("roofline", program("roofline"))]


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("--task", choices=list(DEFAULTS), default="lenet")
    command.add_argument("--precision", choices=["float32", "bfloat16"], nargs="+", default=["float32", "bfloat16"])
    command.add_argument("--images", type=int, help="before a fifth becomes the validation split")
    command.add_argument("--epochs", type=int)
    command.add_argument("--workers", type=int, help="of each DataLoader; default: the better of 0 and 2")
    command.add_argument("--only", nargs="+", default=[], metavar="SIDE", help="beginnings of names of sides to run")
    command.add_argument("--peers-in-bfloat16", action="store_true", help="run dataloader and lightning in it too")
    chosen = command.parse_args(arguments)
    default = DEFAULTS[chosen.task]
    images, epochs = chosen.images or default.images, chosen.epochs or default.epochs
    tasks.main([chosen.task])
    work: list[object] = ["--task", chosen.task, "--images", images, "--epochs", epochs, "--batch-size", BATCH]
    work += ["--rates", default.rate]
    workers = better_workers(work, chosen.threads) if chosen.workers is None else chosen.workers
    made = sides(work, workers, chosen.precision, chosen.peers_in_bfloat16)
    if chosen.only:
        made = [side for side in made if side.name.startswith(tuple(chosen.only))]
    runs = alternate(made, chosen.repeats, chosen.threads)
    title = f"{tasks.TASKS[chosen.task].title}, batch {BATCH}, {counted(chosen.threads)}: images/s"
    report = Report(f"one_trial-{chosen.task}", title, {**vars(chosen), "workers": workers}, runs)
    trained = [run for run in runs if run.side != "roofline"]
    speeds = spreads(trained, _speed)
    accuracies = spreads(trained, lambda run: float(run.values["accuracy"]))
    for side, speed in speeds.items():
        report.add(side, speed, f"images/s, accuracy {accuracies[side].median:.3f}")
    for precision in chosen.precision:
        _compare(report, trained, precision)
    _add_roofline(report, chosen.task, runs, speeds)
    return report.finish(speeds, "images/s", chosen.results)


def better_workers(work: Sequence[object], threads: int) -> int:
    """Return whether the tutorial's loop is faster with 0 or with 2 workers, by one run each."""
    probes = [Side(str(count), program("dataloader", *work, "--workers", count)) for count in (0, 2)]
    speeds = {run.side: _speed(run) for run in (run_once(probe, 0, threads) for probe in probes) if not run.error}
    best = max(speeds, key=lambda side: speeds[side], default="0")
    print(f"DataLoader workers: {best} ({', '.join(f'{side}: {speed:.0f}/s' for side, speed in speeds.items())})")
    return int(best)


def _speed(run: Run) -> float:
    return float(run.values["images_per_second"])


def _compare(report: Report, runs: Sequence[Run], precision: str) -> None:
    """Add how much faster ours is than the fastest usual way, and than each."""
    ours = f"ours {precision}"
    peers = {side: found for side, found in spreads(runs, _speed).items() if side.startswith(tuple(PEERS))}
    over = ratios(runs, lambda run: 1 / _speed(run), ours)
    for side in peers:
        if side in over:
            report.add(f"{ours} against {side}", over[side], "times as fast")
    in_float32 = {side: found for side, found in peers.items() if "float32" in side and side in over}
    if in_float32:
        fastest = max(in_float32, key=lambda side: in_float32[side].median)
        report.add(f"{ours} against the fastest usual way in float32", over[fastest], f"times as fast ({fastest})")


def _add_roofline(report: Report, task: str, runs: Sequence[Run], speeds: Mapping[str, Spread]) -> None:
    """Add the rate of a large matrix product, and the share of it that the model's own operations reach in ours."""
    measured = [run for run in runs if run.side == "roofline"]
    operations = _operations(task)
    for precision in ("float32", "bfloat16"):
        for roof in spreads(measured, lambda run, name=precision: float(run.values[name])).values():  # type: ignore[misc]  # mypy: a default as a binding
            report.add(f"roofline: matrix product in {precision}", roof, "GFLOP/s")
            if speed := speeds.get(f"ours {precision}"):
                share = 100 * speed.median * operations / 1e9 / roof.median
                report.add(f"ours {precision}: the model's own operations, of that", share, "%")


def _operations(task: str) -> float:
    """Return the floating-point operations of training on one image, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = tasks.new_model(task)
    inputs = torch.zeros(1, *tasks.TASKS[task].input_shape)
    with FlopCounterMode(display=False) as counter:
        model(inputs).sum().backward()
    return float(counter.get_total_flops())


if __name__ == "__main__":
    sys.exit(main())
