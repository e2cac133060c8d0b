"""What the service adds to the bare loop of the same engine, in percent of an epoch with its evaluation.

`python -m benchmarks.service` takes some ten minutes (reckoned from shorter runs); `--only quick` runs one.
lrsearch and the bare loop train in one process, an epoch each by turns, and the median of the ratios of neighbours
counts: a machine that others share is faster now and slower then, by more than what is to be found out. The control
has the bare loop on both sides.

What the ledger takes for a trial is not in it: `python -m benchmarks.fixed_costs --only ledger`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks import tasks
from benchmarks.harness import Report, Run, Side, alternate, counted, parser, program, rates, spreads
from benchmarks.tasks import Options

WORK = {
    "lenet": Options("lenet", 8_000, 128, 25, "float32", 0, [0.05]),
    "quick": Options("quick", 2_500, 128, 12, "float32", 0, [0.001]),
    "digits": Options("digits", 1_438, 32, 200, "float32", 0, [0.05]),
    "digits gang": Options("digits", 1_438, 32, 60, "float32", 0, rates(1e-3, 0.1, 16)),
}


def sides(name: str, epochs: int | None = None) -> list[Side]:
    """Return lrsearch beside the bare loop, and the bare loop beside itself."""
    work = WORK[name]
    told = ["--task", work.task, "--images", work.images, "--batch-size", work.batch_size]
    command = program("in_turn", *told, "--epochs", epochs or work.epochs, "--rates", *work.rates)
    return [Side(name, command), Side(f"{name}, control", [*command, "--control"])]


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("--only", choices=list(WORK), nargs="+", default=list(WORK))
    command.add_argument("--epochs", type=int)
    chosen = command.parse_args(arguments)
    tasks.main(sorted({WORK[name].task for name in chosen.only}))
    made = [side for name in chosen.only for side in sides(name, chosen.epochs)]
    runs = alternate(made, chosen.repeats, chosen.threads)
    title = f"What the service adds to the bare loop, {counted(chosen.threads)}"
    report = Report("service", title, vars(chosen), runs)
    found = spreads(runs, _percent)
    for side, spread in found.items():
        report.add(side, spread, "% of an epoch")
    return report.finish(found, "% of an epoch", chosen.results)


def _percent(run: Run) -> float:
    return float(run.values["more_percent"])


if __name__ == "__main__":
    sys.exit(main())
