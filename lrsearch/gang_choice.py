"""How many trials to train together, by what they take alone and together on this machine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from lrsearch.cache import recall, remember
from lrsearch.gang import why_alone
from lrsearch.interfaces import BLOCK_STEPS, PROBE_SHARE
from lrsearch.rehearsal import (
    GANG_STEPS,
    HOPELESS,
    LARGEST_GANG,
    SMALLEST_GANG,
    Rehearsal,
    Solo,
    block_of,
    call_seconds,
)
from lrsearch.stacked_run import what_stops
from lrsearch.timing import synchronizer
from lrsearch.training import COMPILING_SECONDS, MUST_SAVE, has_compiler, load, machine_of, new_run, pick_device
from lrsearch.trial import COMPILES_GANGS, Choice, CompiledGang, GangChoice, TrainingPlan, likeness
from lrsearch.workloads.user_code import blamed_on_workload

GENERATION = 13
"""Raised when gangs become faster or slower than those that were timed before."""
GANG_SHARE = PROBE_SHARE / 4
LAYOUT_BLOCKS = 3
"""Of a trial alone, where numbers of processes are compared."""
LOOK_SECONDS, LOOK_SIZE = 0.005, 4
"""Where a step alone takes so long, calls are a small part of it, and a gang of so many shows what any saves,"""
MORE_SAVED, MOST_SAVED = 0.1, 0.5
"""with so much more of a step alone in larger ones: of seven models a recurrent one saved more (0.23). At most they
saved half."""
TRYING_STEPS = 75
"""What it takes to try gangs after that, counted in steps, beside GANG_STEPS of the largest: comparing takes about 25,
the smallest 8, and a trial alone 42 more."""
PROBED_STEPS = 50_000
"""So many does a study have, of which `timings` knows nothing."""


def choose(
    workload: Choice,
    training: TrainingPlan,
    seed: int,
    *,
    most: int,
    search_steps: int,
    crowds: int = 1,
    most_across: int = 1,
    forecasts: bool = False,
    compiling_must_pay: bool = False,
    slots: int = 1,
    validation_seconds: float = 0.0,
) -> GangChoice:
    """Time trials alone and together, and return what costs least per trial.

    `most`: how many trials that see the same data there may be at once; `most_across`: how many of all `crowds`, which
    are seeds and repeats. `search_steps`: the training steps of all trials of this kind in this process; timing stops
    when it has taken about GANG_SHARE of what those would take. What was chosen is kept in the cache folder, so that
    only what a trial costs alone is measured again, and that only where some train together or for `forecasts`.
    With `compiling_must_pay` gangs are compiled only in a study for which that is a small part, or known to pay.
    `slots` processes do the same, and `trial.pooled` takes together what they find. `validation_seconds` are those of
    an evaluation that has been made of a trial alone, if one has: it is not made again where there is no time for that.
    """
    device, across = pick_device(training.device), min(crowds, most_across) >= SMALLEST_GANG
    circumstances = [*_circumstances(workload, training, device), min(most, LARGEST_GANG)]
    widely = [*circumstances, min(most_across, LARGEST_GANG), min(crowds, LARGEST_GANG)] if across else None
    alone = _known_alone(training, circumstances, most, widely, compiling_must_pay)
    if alone is not None and not forecasts:
        return alone
    solo = Solo(load(workload, device, seed), training, device, seed, search_steps, slots)
    chosen = alone or _chosen(solo, circumstances, most, widely, most_across, crowds, compiling_must_pay)
    solo.note(chosen.measured)
    if forecasts or max(chosen.size, chosen.across) > 1:
        return replace(chosen, solo=solo.cost(validation_seconds))
    return chosen


def _known_alone(
    training: TrainingPlan,
    circumstances: list[object],
    most: int,
    widely: list[object] | None,
    compiling_must_pay: bool,
) -> GangChoice | None:
    """Return the choice where it is known that trials train alone, without timing anything."""
    if reason := why_alone(training):
        return GangChoice(1, reason=reason)
    if most < SMALLEST_GANG and widely is None:
        return GangChoice(1, reason="there is only one trial at a time")
    known = _recall_choice(circumstances, widely)
    if known is None or max(known.size, known.across) > 1:
        return None
    if training.compile not in COMPILES_GANGS or most < SMALLEST_GANG or compiling_must_pay:
        return known
    compiled = recall("gangs_compiled", circumstances)
    return replace(known, reason_compiled=compiled) if compiled else None


def _chosen(
    solo: Solo,
    circumstances: list[object],
    most: int,
    widely: list[object] | None,
    most_across: int,
    crowds: int,
    compiling_must_pay: bool,
) -> GangChoice:
    """Return the choice; what was chosen before is compared with trials alone again."""
    rehearsal, alone = solo.rehearsal(), GangChoice(1)
    seconds = GANG_SHARE * solo.search_steps * solo.glance
    is_to_compile = solo.training.compile in COMPILES_GANGS and not compiling_must_pay
    if not is_to_compile and _recall_choice(circumstances, None) is None:
        if apart := _of_a_look(solo, rehearsal, most, seconds):
            return apart
        seconds -= rehearsal.spent
    if reason := rehearsal.check(1):
        return replace(alone, reason=reason)
    chosen = _of_one_crowd(alone, solo, rehearsal, circumstances, most, seconds)
    if solo.training.compile in COMPILES_GANGS and most >= SMALLEST_GANG:
        size = min(most, LARGEST_GANG)
        if not compiling_must_pay:
            chosen = _compiled(chosen, solo, rehearsal, circumstances, size)
        elif _may_compile(chosen, circumstances, solo.search_steps, rehearsal.device):
            chosen = _compiled_if_it_pays(chosen, solo, rehearsal, circumstances, size)
    if widely is None or chosen.reason:
        return chosen
    seconds -= rehearsal.spent
    if reason := rehearsal.check(SMALLEST_GANG):
        return replace(chosen, reason_across=reason)
    return _of_several_crowds(chosen, solo, rehearsal, widely, most_across, crowds, seconds)


def _of_a_look(solo: Solo, rehearsal: Rehearsal, most: int, seconds: float) -> GangChoice | None:
    """Return that trials train alone where trying gangs would take longer than what these can save in the study.

    None where it would not; unseen, where a step takes little time or the study leaves the `seconds` to time the
    largest.
    """
    one, largest = solo.glance, min(most, LARGEST_GANG) * max(GANG_STEPS)
    if most < SMALLEST_GANG or one < LOOK_SECONDS or seconds > largest * one:
        return None
    trying, alone = TRYING_STEPS + largest, GangChoice(1)
    where = f"the {solo.search_steps} steps of a process's training runs"
    few = replace(alone, reason=f"trying gangs takes longer than they save in {where}")
    if max(MOST_SAVED, solo.reading / one) * solo.search_steps < trying:
        return few
    size = min(most, LOOK_SIZE)
    each = rehearsal.look(size, one)
    if each is None:
        return None
    if each > one:
        # Not to be remembered: a moment of another program may be all of so short a look.
        reason = f"a step of {size} together takes {each / one:.2f} of a step alone for each"
        return replace(alone, reason=reason, measured=((size, each),))
    return few if (1 + MORE_SAVED - each / one) * solo.search_steps < trying else None


def _recall_choice(circumstances: list[object], widely: list[object] | None) -> GangChoice | None:
    """Return what was chosen before; None where that, or what holds `widely`, was not."""
    known = recall("gangs", circumstances)
    if known is None:
        return None
    choice = GangChoice(**{"size": 1, **known, "measured": tuple(map(tuple, known.get("measured", ())))})
    if widely is None or choice.reason:
        return choice
    across = recall("gangs_across", widely)
    return None if across is None else replace(choice, **across)


def _of_one_crowd(
    alone: GangChoice, solo: Solo, rehearsal: Rehearsal, circumstances: list[object], most: int, seconds: float
) -> GangChoice:
    """Return the choice for trials that see the same data; timing it may take so many seconds.

    It is the one that was made before, unless by what a trial alone takes now that is hopeless.
    """
    known = _recall_choice(circumstances, None)
    if known is not None and dict(known.measured).get(known.size, 0.0) <= HOPELESS * solo.glance:
        rehearsal.onednn = known.onednn
        return known
    measured, reason = rehearsal.times(most, 1, seconds, solo.glance)
    if reason:
        return replace(alone, reason=reason)
    if measured:
        measured = rehearsal.with_onednn(measured, 1, solo.glance)
    one = solo.step_beside(measured)
    size, each = _best(measured, one) if measured else (1, one)
    if each > MUST_SAVE * one and measured:
        size, reason = 1, f"a step of {size} together takes {each / one:.2f} of a step alone for each"
    smallest = _smallest(measured, one)
    found: dict[str, Any] = {"size": size, "measured": measured, "reason": reason, "smallest": smallest}
    found["onednn"] = rehearsal.onednn
    remember("gangs", circumstances, found)
    return replace(alone, **found)


def _compiled(
    choice: GangChoice, solo: Solo, rehearsal: Rehearsal, circumstances: list[object], size: int
) -> GangChoice:
    """Return the choice with a compiled step for `size` members, where that takes less than all else that was timed.

    It is compiled in each process that prepares the study, and compared with its members alone.
    """
    if known := recall("gangs_compiled", circumstances):
        return replace(choice, reason_compiled=known)
    each, reason = rehearsal.compiled(size)
    if reason:
        return replace(choice, reason_compiled=reason)
    one = solo.step
    otherwise = _gang_steps(choice.measured, range(size // 2 + 1, size + 1), one)
    fewest = [members for members, step in otherwise if size * each <= MUST_SAVE * min(step, members * one)]
    if not fewest:
        reason = f"a compiled step takes {1e3 * size * each:.3g} ms, others {1e3 * otherwise[-1][1]:.3g} ms"
        remember("gangs_compiled", circumstances, reason)
        return replace(choice, reason_compiled=reason)
    return replace(
        choice,
        size=size,
        compiled=CompiledGang(size, fewest[0]),
        measured=((size, each), *(timed for timed in choice.measured if timed[0] != size)),
        reason="",
        smallest=fewest[0] if choice.reason else min(fewest[0], choice.smallest),
    )


def _may_compile(choice: GangChoice, circumstances: list[object], search_steps: int, device: torch.device) -> bool:
    """Whether trying it is a small part of a study of gangs, or what it saves is known to be more than it takes."""
    if choice.size < SMALLEST_GANG or not has_compiler(device):
        return False
    study_seconds = search_steps * min(each for _, each in choice.measured)
    share: float | None = recall("gangs_compiled_share", circumstances)
    if share is None:
        return PROBE_SHARE * study_seconds > COMPILING_SECONDS
    return (1 - share) * study_seconds > COMPILING_SECONDS


def _compiled_if_it_pays(
    choice: GangChoice, solo: Solo, rehearsal: Rehearsal, circumstances: list[object], size: int
) -> GangChoice:
    """Return the choice as `_compiled` does, silent where it stays as it is; what share a step takes is remembered."""
    found = _compiled(choice, solo, rehearsal, circumstances, size)
    each = min(each for _, each in choice.measured)
    remember("gangs_compiled_share", circumstances, found.measured[0][1] / each if found.compiled else 1.0)
    return replace(found, reason_compiled="")


def _of_several_crowds(
    choice: GangChoice,
    solo: Solo,
    rehearsal: Rehearsal,
    circumstances: list[object],
    most: int,
    crowds: int,
    seconds: float,
) -> GangChoice:
    """Return the choice with what holds for trials that see different data; timing it may take so many seconds."""
    known = recall("gangs_across", circumstances)
    if known is not None:
        return replace(choice, **known)
    measured, reason = rehearsal.times(most, crowds, seconds, solo.glance)
    if reason:
        return replace(choice, reason_across=reason)
    measured = rehearsal.with_onednn(measured, crowds, solo.glance)
    one, found = solo.step_beside(measured), dict[str, Any]()
    size, each = _best(measured, one)
    if each <= MUST_SAVE * one:
        better = [own for own, own_each in choice.measured if each > MUST_SAVE * own_each]
        found = {"across": size, "enough": min(better, default=size), "smallest_across": _smallest(measured, one)}
        found["onednn"] = rehearsal.onednn
        of_tests = min(crowds, size)
        [(_, step)] = _gang_steps(measured, [of_tests], one)
        try:
            dearer = rehearsal.evaluation_seconds(crowds) - MUST_SAVE * solo.range_test_seconds
        except Exception as error:  # the user's metric has not seen a gang before
            return replace(choice, reason_across=what_stops(error))
        if dearer > 0:
            found["most_evaluations"] = (MUST_SAVE * one - step / of_tests) / dearer
    else:
        found = {"reason_across": f"a step of {size} together takes {each / one:.2f} of a step alone for each"}
    remember("gangs_across", circumstances, found)
    return replace(choice, **found)


def _best(measured: Sequence[tuple[int, float]], one: float) -> tuple[int, float]:
    """Return the largest of the sizes, which come from the largest on, over which no other saves enough.

    It saves enough itself over `one`, the seconds of a step alone, or none does: then it is the fastest.
    """
    fastest = min(measured, key=lambda timed: timed[1])
    enough = (timed for timed in measured if timed[1] <= MUST_SAVE * one)
    return next((timed for timed in enough if fastest[1] > MUST_SAVE * timed[1]), fastest)


def _smallest(measured: Sequence[tuple[int, float]], one: float) -> int:
    """Return the fewest members that take less together than each at its own step of `one` seconds.

    `measured` are sizes with seconds of a step per member.
    """
    sizes = [size for size, _ in measured]
    several = range(min(sizes, default=SMALLEST_GANG), max(sizes, default=SMALLEST_GANG))
    steps = _gang_steps(measured, several, one)
    return next((members for members, step in steps if step <= MUST_SAVE * one * members), several.stop)


def _gang_steps(measured: Sequence[tuple[int, float]], several: Sequence[int], one: float) -> list[tuple[int, float]]:
    """Return for each of several numbers of members the seconds of a step of all of them.

    Between two sizes that were timed it is taken to grow evenly; one member takes `one`.
    """
    timed = {1: one} | {size: size * each for size, each in sorted(measured)}
    if not measured:
        return [(members, members * one) for members in several]
    return list(zip(several, np.interp(several, list(timed), list(timed.values())).tolist(), strict=True))


def timings(
    workload: Choice, training: TrainingPlan, seed: int, sizes: Sequence[int]
) -> tuple[dict[tuple[int, bool], float], str]:
    """Time trials alone and in gangs of `sizes`, where `training.compile` says so also the largest compiled.

    Return the seconds of a step per member by size and whether the gang is compiled, and why some are not there.
    """
    device = pick_device(training.device)
    loaded = load(workload, device, seed)
    with blamed_on_workload(workload.name):
        solo = Solo(loaded, training, device, seed, PROBED_STEPS, slots=1)
        rehearsal, found = solo.rehearsal(), {(1, False): solo.step}
    if sizes and (reason := why_alone(training) or rehearsal.check(1)):
        return found, reason
    try:
        for size in sizes:
            found[size, False] = rehearsal.seconds_per_member(size, 1)
        if sizes:
            largest = max(sizes)
            timed = ((largest, found[largest, False]),)
            found[largest, False] = rehearsal.with_onednn(timed, 1, solo.step)[0][1]
    except Exception as error:  # as in `choose`
        return found, what_stops(error)
    if sizes and training.compile in COMPILES_GANGS:
        each, reason = rehearsal.compiled(max(sizes))
        if reason:
            return found, reason
        found[max(sizes), True] = each
    return found, ""


def member_seconds(workload: Choice, training: TrainingPlan, seed: int, size: int, *, briefly: bool = False) -> float:
    """Return the seconds of a step of one of `size` trials together, from few steps; infinity where that cannot be.

    With `briefly` two steps of a gang are enough. Preparing must have shown that a trial runs.
    """
    device = pick_device(training.device)
    loaded = load(workload, device, seed)
    if size < SMALLEST_GANG:
        run = new_run(loaded, training, device, seed)
        return (
            statistics.median(call_seconds(block_of(partial(run.step, 0.0)), synchronizer(device), LAYOUT_BLOCKS))
            / BLOCK_STEPS
        )
    if why_alone(training):
        return math.inf
    try:
        return Rehearsal(loaded, training, device, seed, []).seconds_per_member(size, 1, briefly=briefly)
    except Exception:  # as in `choose`, which says why
        return math.inf


def _circumstances(workload: Choice, training: TrainingPlan, device: torch.device) -> list[object]:
    return [likeness(workload, training), GENERATION, *machine_of(device)]
