"""What a training step takes on this machine: alone and in gangs, in both precisions, in one process and in several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from lrsearch.config import StudyConfig
from lrsearch.executors import Inline
from lrsearch.executors.process import Process
from lrsearch.interfaces import ExecutorSettings
from lrsearch.timing import processors

GANG_SIZES = (2, 4, 8, 16)


@dataclass(frozen=True)
class Timing:
    """One way of running a study's trials."""

    precision: str
    processes: int
    threads: int
    """Of torch, in each process."""
    gang_size: int
    step_seconds: float
    """Wall seconds of one training step of one trial, when all processes and members train at the same time."""


@dataclass(frozen=True)
class Survey:
    """All timings, and what could not be timed."""

    device: str
    timings: tuple[Timing, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> Timing:
        return min(self.timings, key=lambda timing: timing.step_seconds)


def survey(config: StudyConfig) -> Survey:
    """Time the study's own model, batch and device. Raises what preparing the study raises."""
    from lrsearch import training
    from lrsearch.gang import timings

    workload, plan, seed = config.workload_choice(), config.training_plan(), config.seeds[0]
    device = training.pick_device(plan.device)
    precisions: list[Literal["float32", "bfloat16"]] = ["float32"]
    if training.pick_precision("auto", device) == "bfloat16":
        precisions.append("bfloat16")
    found, notes = [], []
    for executor, processes in _layouts(device.type):
        with closing(executor.start(plan.device)) as started:
            for precision in precisions:
                variant = replace(plan, precision=precision)
                prepared = started.prepare(partial(training.prepare, workload, variant, seed))
                solo, gangs, note = started.prepare(partial(timings, workload, variant, seed, GANG_SIZES))
                by_size = {1: solo.step_seconds, **gangs}
                found += [
                    Timing(precision, processes, prepared.device.threads, size, seconds / processes)
                    for size, seconds in by_size.items()
                ]
                if note and note not in notes:
                    notes.append(note)
    info = training.device_info(device)
    return Survey(f"{info.name} ({info.kind})", tuple(found), tuple(notes))


def _layouts(device_kind: str) -> Iterator[tuple[ExecutorSettings, int]]:
    """Yield executors with their number of processes: one, and on the processor one for each of its cores."""
    yield Inline(), 1
    cores = processors()
    if device_kind == "cpu" and cores > 1:
        yield Process(slots=cores, threads_per_slot=1), cores
