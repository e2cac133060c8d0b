"""How the weights of a model's convolutions lie in memory, where the study leaves that open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lrsearch.cache import recall, remember
from lrsearch.interfaces import PROBE_SHARE
from lrsearch.precision import LARGEST_TRIED, seconds_together
from lrsearch.timing import synchronizer
from lrsearch.training import Run, load, machine_of, memory_format_of, new_run, pick_device, step_seconds
from lrsearch.trial import Choice, MemoryFormat, TrainingPlan, likeness

CLEARLY = 0.95
"""Of what a step takes as the model has its weights, the most that it may take otherwise: chance changes no layout."""
CLEARLY_SLOWER = 1.1
"""From which ratio on gangs that lose are a reason against it: two steps of each tell no less."""
TRIED_STEPS, FEWEST_STEPS, MOST_STEPS = 4, 2, 16
"""What comparing takes, counted in steps; how many steps each way are timed, of which the first warms up."""
TOLERANCE = 1e-2
"""Of a weight's gradient, how much may differ: far above the rounding of single precision, far below a mistake,"""
FLOOR = 1e-4
"""and of the largest gradient: those of some weights are nothing but rounding."""


def faster_memory_format(
    workload: Choice, training: TrainingPlan, seed: int, search_steps: int, most: int = 1
) -> MemoryFormat:
    """Return `channels_last` where training steps take clearly less time so, and what the training has where not.

    Both are timed, once a week for each model and machine, by as many steps as PROBE_SHARE of `search_steps`, the
    training steps of this process in the study. Where `most` trials may train together and one alone is faster
    channels last, two steps of gangs are timed as well: some lose more than it gains. A model that is not the same
    function in both is left as it is, and so is one that fails, as `view` does where activations lie channels last.
    """
    count = min(MOST_STEPS, int(PROBE_SHARE * search_steps - TRIED_STEPS) // 2)
    if training.memory_format != "auto" or count < FEWEST_STEPS:
        return training.memory_format
    device = pick_device(training.device)
    if device.type == "cpu" and training.precision == "auto":
        training = replace(training, precision="float32")  # whether bfloat16 is faster is found out after this
    loaded = load(workload, device, seed)
    if memory_format_of(loaded, training) is not None:
        return "auto"
    size = min(most, LARGEST_TRIED, int(PROBE_SHARE * search_steps / 4))
    circumstances = [likeness(workload, training), size, count, *machine_of(device)]
    variants = [training, replace(training, memory_format="channels_last")]
    try:
        runs = [new_run(loaded, training, device, seed)]
        if not _can_change(runs[0].model):
            return "auto"
        runs.append(new_run(loaded, variants[1], device, seed))
        if not _are_alike(runs):  # in each study: the user's code may be another by now
            return "auto"
        known: MemoryFormat | None = recall("memory_formats", circumstances)
        if known is not None:
            return known
        seconds = step_seconds(runs, synchronizer(device), block=1, count=count)
        pays = seconds[1] <= CLEARLY * seconds[0]
        if pays and size > 1:
            runs.clear()
            own = min(seconds[0], seconds_together(workload, variants[0], seed, size))
            # Else it is no slower than a trial alone is channels last.
            if seconds[1] >= CLEARLY_SLOWER * own:
                pays = min(seconds[1], seconds_together(workload, variants[1], seed, size)) < CLEARLY_SLOWER * own
    except Exception:  # whatever it is, the model trains as it is
        return "auto"
    chosen: MemoryFormat = "channels_last" if pays else "auto"
    remember("memory_formats", circumstances, chosen)
    return chosen


def _can_change(model: torch.nn.Module) -> bool:
    """Whether there are weights that lie otherwise with channels last, and none that do so already."""
    images = [weight for weight in model.parameters() if weight.dim() == 4]
    return any(not weight.is_contiguous(memory_format=torch.channels_last) for weight in images) and all(
        weight.is_contiguous() for weight in images
    )


def _are_alike(runs: Sequence[Run]) -> bool:
    """Whether two models compute the same loss and gradients of their first batch, without chance, up to rounding."""
    (loss, gradients), (other_loss, others) = map(_evaluated, runs)
    if gradients.keys() != others.keys() or not torch.allclose(loss, other_loss, rtol=TOLERANCE, atol=FLOOR):
        return False
    largest = max((float(one.norm()) for one in gradients.values()), default=0.0)
    return all(
        float((others[name] - one).norm()) <= TOLERANCE * float(one.norm()) + FLOOR * largest
        for name, one in gradients.items()
    )


def _evaluated(run: Run) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return loss and gradients by name, in evaluation mode and single precision; the run then trains on."""
    inputs, targets = next(run.batches)
    run.model.eval()
    loss = run.loaded.loss(run.model(inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]  # torch: backward is untyped
    run.switch(training=True)
    found = {name: weight.grad for name, weight in run.model.named_parameters() if weight.grad is not None}
    return loss.detach(), found
