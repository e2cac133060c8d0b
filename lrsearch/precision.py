"""The precision in which a study's trials train faster, and what multiplies in float32, where it leaves that open."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from lrsearch.cache import recall, remember
from lrsearch.interfaces import PROBE_SHARE
from lrsearch.products import ratio
from lrsearch.timing import synchronizer
from lrsearch.training import (
    HELD_BATCHES,
    TIMED_BLOCKS,
    Run,
    hold_batches,
    load,
    machine_of,
    may_multiply_faster,
    new_run,
    pick_device,
    pick_precision,
    step_seconds,
)
from lrsearch.trial import Choice, Matmul, Precision, TrainingPlan, likeness

FEWEST_BLOCKS = 2
"""Of steps in each precision, where there is no time for TIMED_BLOCKS; the first one warms up."""
MOST_STEPS = 2
"""Of a block at most, where precisions are compared."""
SHARE = PROBE_SHARE / 8
"""Of the study, what more than one step of a block may take."""
MADE_UP = 1.4
"""Times as long as in float32, what a step alone may take in bfloat16 and yet be faster in a gang, where all trials
share the cost of each call: a recurrent model was seen at 1.15 alone and 0.79 with 8."""
LARGEST_TRIED = 8
"""Of gangs that are tried in both precisions, by two steps,"""
TOGETHER_SHARE = 2 * PROBE_SHARE
"""for which there is more time, as they can save far more."""
PRODUCT_SIDE, CLEARLY_SLOWER = 512, 1.25
"""Of two matrices, and times what their product takes in float32: from there on no model gains from bfloat16."""

FEWEST_PRODUCTS, MOST_PRODUCTS = 5, 16
"""Steps by each library at least, of which the first makes code, and at most, while they take no more than SHARE."""
FAR_SLOWER = 1.25
"""Times what a step takes by torch's default: where the second by oneDNN does, that is enough to know."""
CLEARLY = 0.9
"""Of what a step takes by torch's default, the most that it may take by oneDNN: chance changes no last digits."""


def faster_precision(
    workload: Choice, training: TrainingPlan, seed: int, search_steps: int, most: int = 1
) -> Precision:
    """Return the precision in which the training takes less time, `float32` or `bfloat16`.

    It is float32 where the device multiplies matrices slower in bfloat16. Else both are timed, once for each model and
    machine, unless that takes more than PROBE_SHARE of `search_steps`, the training steps of this process in the
    study, or compiles the model twice: then it is bfloat16. Where `most` trials may train together and bfloat16 is a
    little slower alone, gangs are timed as well; where it is faster alone, it is taken to be so in gangs.
    """
    device = pick_device(training.device)
    if pick_precision("auto", device) == "float32" or _faster_product(device) == "float32":
        return "float32"  # no step gains where not even a product of matrices does
    count = TIMED_BLOCKS if PROBE_SHARE * search_steps >= 2 * TIMED_BLOCKS else FEWEST_BLOCKS
    if training.compile == "on" or PROBE_SHARE * search_steps < 2 * count:
        return "bfloat16"
    block = max(1, min(MOST_STEPS, int(SHARE * search_steps / (2 * count))))
    size = min(most, LARGEST_TRIED, int(TOGETHER_SHARE * search_steps / 4))
    circumstances = [likeness(workload, training), size, count, *machine_of(device)]
    known: Precision | None = recall("precisions", circumstances)
    if known is not None:
        return known
    names: tuple[Precision, Precision] = ("float32", "bfloat16")
    variants = [replace(training, precision=name) for name in names]
    loaded = load(workload, device, seed)
    runs = [new_run(loaded, variant, device, seed) for variant in variants]
    seconds = step_seconds(runs, synchronizer(device), block, count)
    if 1 < seconds[1] / seconds[0] < MADE_UP and size > 1:
        del runs
        seconds[1] = min(seconds[1], seconds_together(workload, variants[1], seed, size))
        if seconds[1] < seconds[0]:  # else float32 is faster anyway
            seconds[0] = min(seconds[0], seconds_together(workload, variants[0], seed, size))
    chosen: Precision = "bfloat16" if seconds[1] < seconds[0] else "float32"
    remember("precisions", circumstances, chosen)
    return chosen


def faster_matmul(workload: Choice, training: TrainingPlan, seed: int, search_steps: int) -> Matmul:
    """Return `onednn` where training steps in float32 take clearly less time so, and what the training has where not.

    Both are timed, once a week for each model and machine, by FEWEST_PRODUCTS steps each, which must fit into
    PROBE_SHARE of `search_steps`, the training steps of this process in the study, and more while all are no more than
    SHARE of them; not where that compiles the model twice. Gangs choose for themselves.
    """
    device, enough = pick_device(training.device), PROBE_SHARE * search_steps >= 2 * FEWEST_PRODUCTS
    if training.matmul != "auto" or training.compile == "on" or not enough:
        return training.matmul
    count = max(FEWEST_PRODUCTS, min(MOST_PRODUCTS, int(SHARE * search_steps) // 2))
    if not may_multiply_faster(training, device):
        return "auto"
    circumstances = [likeness(workload, training), count, *machine_of(device)]
    known: Matmul | None = recall("matmuls", circumstances)
    if known == "auto":
        return known

    def seconds(run: Run) -> float:
        began = time.perf_counter()
        run.step(0.0)
        return time.perf_counter() - began

    loaded = load(workload, device, seed)
    try:
        runs = [new_run(loaded, replace(training, matmul="onednn"), device, seed)]
        if known is not None:
            seconds(runs[0])  # it makes code for each shape, on nobody's bill
            return known
        runs.append(new_run(loaded, training, device, seed))
        hold_batches(runs, HELD_BATCHES)
        found: list[list[float]] = []
        for number in range(count):
            found.append([seconds(run) for run in runs])
            if number == 1 and found[1][0] > FAR_SLOWER * found[1][1]:
                return "auto"
    except Exception:  # whatever it is, the trials will tell
        return "auto"
    other, own = map(min, zip(*found[1:], strict=True))  # other programs only make it longer
    chosen: Matmul = "onednn" if other <= CLEARLY * own else "auto"
    remember("matmuls", circumstances, chosen)
    return chosen


def seconds_together(workload: Choice, training: TrainingPlan, seed: int, size: int) -> float:
    """Return what two steps of `size` trials together show a step of one to take; infinity where that cannot be."""
    from lrsearch.gang_choice import member_seconds

    return member_seconds(workload, training, seed, size, briefly=True)


def _faster_product(device: torch.device) -> Precision:
    """Return `float32` where a product of matrices is clearly slower in bfloat16; on a GPU it is not.

    There are processors whose instructions for bfloat16 take twice as long as those for float32.
    """
    if device.type != "cpu":
        return "bfloat16"
    circumstances = machine_of(device)
    known: Precision | None = recall("products", circumstances)
    if known is not None:
        return known
    single, half = (torch.ones(PRODUCT_SIDE, PRODUCT_SIDE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    chosen: Precision = (
        "float32" if ratio(lambda: half @ half, lambda: single @ single) > CLEARLY_SLOWER else "bfloat16"
    )
    remember("products", circumstances, chosen)
    return chosen
