"""What a training step takes on this machine: alone and in gangs, in both precisions, in one process and in several."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from lrsearch.cache import recall, remember
from lrsearch.config import StudyConfig
from lrsearch.engine import prepare_all, time_step
from lrsearch.environment import devices_are_known, importing_alike, processors
from lrsearch.errors import UsageError, WorkloadError
from lrsearch.executors import Inline
from lrsearch.executors.process import Process
from lrsearch.interfaces import MOST_EPOCHS, PROBE_SHARE, Executor, ExecutorSettings
from lrsearch.timing import processor_name
from lrsearch.trial import likeness

GANG_SIZES = (2, 4, 8, 16)
TIMED_STEPS = 100
"""About as many as comparing takes of each process, counting each trial of a gang."""
LAYOUT_GENERATION = 2
"""Raised when layouts become faster or slower than those that were timed before."""
LAYOUT_SHARE = PROBE_SHARE / 4


@dataclass(frozen=True)
class Timing:
    """One way of running a study's trials."""

    precision: str
    memory_format: str
    """The faster of the study's own and, where that is `auto`, channels last."""
    processes: int
    threads: int
    """Of torch, in each process."""
    gang_size: int
    compiled: bool
    """Whether the gang's step is."""
    step_seconds: float
    """Wall seconds of one training step of one trial, when all processes and members train at the same time."""
    matmul: str = "auto"
    """Of a trial alone; gangs multiply by what is faster for them."""


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
    from lrsearch.gang_choice import timings

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
                try:
                    # Of so many a share is as long as timing needs.
                    prepared, *_ = started.prepare(
                        partial(prepare_all, [(workload, variant)], seed, epochs=MOST_EPOCHS)
                    )
                except WorkloadError as error:
                    if precision == "float32" or plan.precision == "bfloat16":
                        raise
                    if str(error) not in notes:
                        notes.append(str(error))
                    continue
                variant = replace(variant, memory_format=prepared.memory_format, matmul=prepared.matmul)
                (timed, note), *_ = started.prepare(partial(timings, workload, variant, seed, GANG_SIZES))
                found += [
                    Timing(
                        precision,
                        prepared.memory_format,
                        processes,
                        prepared.device.threads,
                        size,
                        compiled,
                        seconds / processes,
                        prepared.matmul if size == 1 else "auto",
                    )
                    for (size, compiled), seconds in timed.items()
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


def start_executor(config: StudyConfig, code: Path | None, tell: Callable[[str], None]) -> tuple[StudyConfig, Executor]:
    """Return the study with numbers in the place of `slots: auto`, and its executor, started.

    One layout after the other is timed, from many slots to few, until one is slower than another, or the last has
    taken LAYOUT_SHARE of what the study will. What was chosen among several is kept in the cache folder.
    """
    from lrsearch.analysis import wording

    settings, device = config.executor, config.training.device
    if not isinstance(settings, Process) or settings.slots != "auto":
        return config, settings.start(device, code)
    layouts = _possible(settings, config)
    if len(layouts) == 1:
        return config.settled(layouts[0]), layouts[0].start(device, code)
    timed = _timed(config, layouts, config.trials_at_once(), code)
    (_, layout, executor), *slower = timed
    for _, _, other in slower:
        other.close()
    compared = ""
    if slower:
        remember("layouts", _circumstances(config), layout.slots)
        compared = ": a step takes " + ", ".join(f"{1e3 * step:.3g} ms with {one.slots}" for step, one, _ in timed)
    processes = wording.counted(executor.slot_count, "process", "processes")
    tell(f"Running {processes} of {wording.counted(layout.threads_per_slot or 1, 'thread')}{compared}.")
    return config.settled(layout), executor


def likely_environment(config: StudyConfig) -> dict[str, str] | None:
    """Return what `ahead.first_guess` gives, by what is known: where slots are to be timed, of the first layout."""
    settings, device = config.executor, config.training.device
    if not isinstance(settings, Process) or not devices_are_known(device):
        return None
    with suppress(UsageError):  # which comes again
        return importing_alike(_possible(settings, config)[0].environments(device, os.environ)[0])
    return None


def _possible(settings: Process, config: StudyConfig) -> list[Process]:
    """Return the layouts to time, or the one that is known, or given."""
    layouts = settings.layouts(config.training.device, config.trials_at_once())
    known = recall("layouts", _circumstances(config)) if len(layouts) > 1 else None
    return [layout for layout in layouts if layout.slots == known] or layouts


def _circumstances(config: StudyConfig) -> list[object]:
    kind, side_by_side = likeness(config.workload_choice(), config.training_plan()), config.trials_at_once()
    machine = [processor_name(), processors(), version("torch")]
    return [LAYOUT_GENERATION, kind, config.gangs, side_by_side, *machine]


def _timed(
    config: StudyConfig, layouts: Sequence[Process], side_by_side: int, code: Path | None
) -> list[tuple[float, Process, Executor]]:
    """Return what was timed, the fastest first: wall seconds per step of one trial when all processes are busy."""
    workload, plan, seed = config.workload_choice(), config.training_plan(), config.seeds[0]
    timed: list[tuple[float, Process, Executor]] = []
    with ExitStack() as stack:
        for layout in layouts:
            began = time.perf_counter()
            executor = layout.start(config.training.device, code)
            stack.callback(executor.close)
            slots = executor.slot_count
            prepared, *_ = executor.prepare(partial(prepare_all, [(workload, plan)], seed, evaluates=False))
            share = LAYOUT_SHARE * config.planned_epochs() * prepared.facts.steps_per_epoch
            if share < slots * TIMED_STEPS:
                timed.append((float("inf"), layout, executor))
                break
            step_of = partial(time_step, workload, replace(plan, precision=prepared.precision), seed)
            step = statistics.mean(executor.prepare(partial(step_of, 1))) / slots
            size = min(GANG_SIZES[-1], math.ceil(side_by_side / slots))
            others = [other for other, _, _ in timed]
            alone_ends = time.perf_counter() - began > share * min([step, *others])
            if config.gangs == "auto" and size > 1 and (others or not alone_ends):  # else there is nothing to compare
                step = min(step, statistics.mean(executor.prepare(partial(step_of, size))) / slots)
            timed.append((step, layout, executor))
            best = min([step, *others])
            if step > best or time.perf_counter() - began > share * best:
                break
        stack.pop_all()
    return sorted(timed, key=lambda one: one[0])
