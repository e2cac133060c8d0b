"""What a worker does: get ready for a study, and run trials, alone or together.

Who only asks for it, by these functions, need not import torch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lrsearch.interfaces import Channel
from lrsearch.trial import Choice, Preparation, TrainingPlan, TrialResult, TrialSpec, likeness


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
    """How many there are at once."""
    epochs: float
    """Of all of them together, in the whole study."""


def prepare_all(
    variants: Sequence[tuple[Choice, TrainingPlan]], seed: int, gangs: Sequence[GangRequest] = ()
) -> Preparation:
    """Prepare each variant and return the first's preparation, with the seconds of all and the choice of gangs."""
    from lrsearch.training import prepare

    prepared = [prepare(workload, training, seed) for workload, training in variants]
    seconds, chosen = sum(one.seconds for one in prepared), {}
    if gangs:
        from lrsearch.gang import choose

        began = time.perf_counter()
        for request in gangs:
            steps = round(request.epochs * prepared[0].facts.steps_per_epoch)
            kind = likeness(request.workload, request.training)
            chosen[kind] = choose(request.workload, request.training, seed, most=request.most, search_steps=steps)
        seconds += time.perf_counter() - began
    return replace(prepared[0], seconds=seconds, gangs=chosen)
