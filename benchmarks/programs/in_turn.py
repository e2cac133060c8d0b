"""lrsearch and a bare loop of the same engine in one process, an epoch each by turns: what the epochs of each take.

One rate trains alone, beside benchmarks.programs.bare_loop; several train as a gang, beside a loop that does nothing
but step and evaluate such a gang. With `--control` the bare loop stands on both sides: what is found then is the error
of the method.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.programs import bare_loop
from benchmarks.programs.ours import checked, specs
from benchmarks.tasks import Options, TrainClock, options, tell
from lrsearch.engine import run_trials
from lrsearch.stacked_run import StackedRun
from lrsearch.training import keep_freed_memory, load, new_run, pick_device
from lrsearch.trial import CurvePoint, SoloCost

ENDLESS = 10**6
"""Epochs of the bare loop, which is left when lrsearch is done."""


class Turns:
    """A channel: at the end of an epoch the bare loop takes one, too."""

    def __init__(self, other: Iterator[object], reports: int) -> None:
        self._other = other
        self._reports = reports
        self._left = reports
        self._began = time.perf_counter()
        self.ratios: list[float] = []
        """Of seconds of each epoch, to those of the bare loop's."""

    def report(self, uuid: str, point: CurvePoint) -> bool:
        self._left -= 1
        if not self._left:
            self.take()
            self._left = self._reports
        return True

    def take(self) -> None:
        """Note an epoch and have the bare loop take one."""
        half = time.perf_counter()
        next(self._other)
        end = time.perf_counter()
        self.ratios.append((half - self._began) / (end - half))
        self._began = time.perf_counter()


def bare(chosen: Options) -> Iterator[object]:
    """Yield after each epoch of the shortest loop that trains and evaluates, alone or as a gang."""
    size, spec, device = len(chosen.rates), specs(chosen)[0], pick_device("cpu")
    if size == 1:
        yield from bare_loop.epochs(chosen._replace(epochs=ENDLESS), chosen.rates[0], TrainClock())
        return
    loaded = load(spec.workload, device, spec.seed)
    run = new_run(loaded, spec.training, device, spec.seed)
    gang = StackedRun([run] * size, [spec.training.optimizer.settings] * size)
    rates = gang.numbers(chosen.rates)
    while True:
        for _ in range(loaded.facts.steps_per_epoch):
            gang.step(rates)
        gang.take_losses()
        yield gang.evaluate("validation")


def main() -> None:
    control = "--control" in sys.argv
    chosen = options([one for one in sys.argv[1:] if one != "--control"])
    keep_freed_memory()  # as preparing a study does
    turns = Turns(bare(chosen), len(chosen.rates))
    if control:
        for _ in bare(chosen):
            turns.take()
            if len(turns.ratios) == chosen.epochs:
                break
    else:
        trials = specs(chosen)
        if len(trials) > 1:  # in a gang each is charged what it would cost alone; here nobody looks at that
            trials = [replace(trial, solo=SoloCost(0.0, 0.0, 0.0, 0.0)) for trial in trials]
        for result in run_trials(trials, turns):
            checked(result)
    ratios = turns.ratios[1:]  # in the first, both warm up
    tell(more_percent=100 * statistics.median(ratios) - 100, epochs=len(ratios))


if __name__ == "__main__":
    main()
