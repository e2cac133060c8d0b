"""What a worker does: get ready for a study, and run trials, alone or together.

Who only asks for it, by these functions, need not import torch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lrsearch.errors import WorkloadError
from lrsearch.interfaces import Channel
from lrsearch.timing import import_at_rest
from lrsearch.trial import Choice, Compiling, Preparation, TrainingPlan, TrialResult, TrialSpec, likeness


def run_trials(specs: Sequence[TrialSpec], channel: Channel) -> list[TrialResult]:
    """Run `specs` and return their results in order. What goes wrong inside a trial is its result, never an exception.

    Only a checkpoint that cannot be written or read raises: StorageError.
    Several are trained together where they can be (see gang.py); else one after another on the whole device.
    """
    from lrsearch.training import run_trial

    if len(specs) > 1:
        from lrsearch.gang import run_together

        return run_together(specs, channel)
    return [run_trial(spec, channel) for spec in specs]


@dataclass(frozen=True)
class GangRequest:
    """A kind of trials of which several may train together, if that pays."""

    workload: Choice
    training: TrainingPlan
    most: int
    """How many that see the same data there are at once."""
    most_across: int
    """How many there are at once of all seeds and repeats."""
    crowds: int
    """How many seeds and repeats there are at once."""
    epochs: float
    """That a slot will train of all of them together, in the whole study."""
    forecasts: bool = False
    """Whether what a trial alone costs is to be known also where none train together."""


def time_step(workload: Choice, training: TrainingPlan, seed: int, size: int) -> float:
    """Return the seconds of a training step of one of `size` trials together; infinity where that cannot be.

    Preparing must have shown that the trial runs.
    """
    from lrsearch.gang_choice import member_seconds
    from lrsearch.workloads.user_code import blamed_on_workload

    with blamed_on_workload(workload.name):
        return member_seconds(workload, training, seed, size)


def prepare_all(
    variants: Sequence[tuple[Choice, TrainingPlan]],
    seed: int,
    gangs: Sequence[GangRequest] = (),
    epochs: float = 0.0,
    *,
    open_to: Collection[Compiling] = (),
    evaluates: bool = True,
    slots: int = 1,
) -> Preparation:
    """Prepare each variant and return the first's preparation, with the seconds of all and the choice of gangs.

    Where memory format, precision and matmul are `auto`, they are chosen for the first variant, and all train so, in
    float32 where another one fails in bfloat16; so is what makes the steps faster, of what the study is `open_to`.
    `epochs` are those of this process in the whole study, which say how long timing may take; `slots` processes do the
    same. Without `evaluates` the first variant takes training steps alone. The gangs are asked for with `auto` and
    answered for as they train.
    Raises what `training.prepare` raises.
    """
    if "torch" not in sys.modules:
        import_at_rest("lrsearch.training")
    from lrsearch.workloads.user_code import blamed_on_workload

    with blamed_on_workload(variants[0][0].name):
        return _prepared(variants, seed, gangs, epochs, open_to, evaluates=evaluates, slots=slots)


def _prepared(
    variants: Sequence[tuple[Choice, TrainingPlan]],
    seed: int,
    gangs: Sequence[GangRequest],
    epochs: float,
    open_to: Collection[Compiling],
    *,
    evaluates: bool,
    slots: int,
) -> Preparation:
    from lrsearch.memory_format import faster_memory_format
    from lrsearch.precision import faster_matmul, faster_precision
    from lrsearch.training import RECORDABLE, fastest_compiling, prepare

    workload, training = variants[0]
    prepared = prepare(workload, training, seed, evaluates=evaluates, times_reading=evaluates)
    seconds, chosen, precision = prepared.seconds, {}, prepared.precision
    if precision == "float32":  # also where it was to be chosen, and bfloat16 failed
        training = replace(training, precision=precision)
    evaluated = (workload, training.optimizer)
    steps, began = round(epochs * prepared.facts.steps_per_epoch), time.perf_counter()
    most = max((request.most for request in gangs), default=1)
    memory_format = faster_memory_format(workload, training, seed, steps, most)
    training = replace(training, memory_format=memory_format)
    single = replace(training, precision="float32") if training.precision == "auto" else training
    matmul = faster_matmul(workload, single, seed, steps)
    if training.precision == "auto":
        precision = faster_precision(workload, replace(training, matmul=matmul), seed, steps, most)
    if precision != "float32":
        matmul = training.matmul
    training = replace(training, precision=precision, matmul=matmul)
    compiling = training.compile
    if any(training.optimizer.name not in RECORDABLE for _, training in variants):
        open_to = [one for one in open_to if one != "graphs"]
    if open_to:
        compiling = fastest_compiling(workload, training, seed, steps, open_to)
    seconds += time.perf_counter() - began
    try:
        for workload, training in variants[1:]:
            variant = replace(
                training, precision=precision, compile=compiling, memory_format=memory_format, matmul=matmul
            )
            try:
                seconds += prepare(workload, variant, seed).seconds
            except WorkloadError:
                if not open_to or compiling == "off":
                    raise
                compiling = "off"  # what holds for the first variant does not hold for this one
                seconds += prepare(workload, replace(variant, compile=compiling), seed).seconds
    except WorkloadError:
        if variants[0][1].precision != "auto" or precision == "float32":
            raise
        plain = [(one, replace(own, precision="float32")) for one, own in variants]
        prepared = _prepared(plain, seed, gangs, epochs, open_to, evaluates=evaluates, slots=slots)
        return replace(prepared, seconds=prepared.seconds + seconds)
    must_pay = compiling == "off" and "gangs" in open_to
    asked: Compiling = "gangs" if must_pay else compiling
    settle = partial(replace, precision=precision, compile=asked, memory_format=memory_format, matmul=matmul)
    gangs = [replace(one, training=settle(one.training)) for one in gangs]
    as_evaluated = (precision, memory_format, matmul) == (prepared.precision, prepared.memory_format, prepared.matmul)
    if gangs:
        from lrsearch.gang_choice import choose

        began = time.perf_counter()
        choices = [
            choose(
                request.workload,
                request.training,
                seed,
                most=request.most,
                search_steps=round(request.epochs * prepared.facts.steps_per_epoch),
                crowds=request.crowds,
                most_across=request.most_across,
                forecasts=request.forecasts,
                compiling_must_pay=must_pay,
                slots=slots,
                validation_seconds=prepared.validation_seconds
                if as_evaluated and evaluated == (request.workload, request.training.optimizer)
                else 0.0,
            )
            for request in gangs
        ]
        compiling = asked if any(choice.compiled for choice in choices) or not must_pay else "off"
        for request, choice in zip(gangs, choices, strict=True):
            chosen[likeness(request.workload, replace(request.training, compile=compiling))] = choice
        seconds += time.perf_counter() - began
    return replace(
        prepared,
        precision=precision,
        compile=compiling,
        memory_format=memory_format,
        matmul=matmul,
        seconds=seconds,
        gangs=chosen,
    )
