"""Trials alone and together before the study: what a step takes, and whether together they compute the same."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import cast

import numpy as np
import torch

from lrsearch.contents import Contents
from lrsearch.gang_check import (
    COMPARED_RATE,
    LARGEST_IN_DOUBLE,
    ROUNDED,
    FewEvaluations,
    FewRows,
    History,
    InDouble,
    begun_anew,
    difference,
    difference_in_double,
    shake,
    state,
)
from lrsearch.interfaces import BLOCK_STEPS, PROBE_SHARE, LoadedWorkload, Split
from lrsearch.stacked_run import CannotGangError, StackedRun, what_stops
from lrsearch.timing import synchronizer
from lrsearch.training import (
    GRAPH_STEPS,
    MUST_SAVE,
    TOLERANCE,
    Run,
    hold_batches,
    is_out_of_memory,
    may_multiply_faster,
    new_run,
    one_line,
    pick_precision,
    reads_examples,
    repeat_seed,
)
from lrsearch.trial import CompiledGang, SoloCost, TrainingPlan

LARGEST_GANG = 16
SMALLEST_GANG = 2
GLANCE_BLOCKS = 2
"""Of steps of a trial alone, for a first look."""
SOLO_BLOCKS = 7
"""Blocks of steps of a trial alone that are timed at least, by all processes: more than 50 steps together,"""
SOLO_SHARE = PROBE_SHARE / 8
"""and more while they take no more than this share of the study; as much for evaluations"""
SOLO_SECONDS = 2.0
"""and no more than so long: a machine that others share is now faster, now slower."""
SOLO_EVALUATIONS = 3
"""Of each split; fewer where that share of the study has passed, but one, of the validation split when preparing."""
SOON = 0.02
"""Seconds within which that many are made in any study: one alone says nothing where a moment of another program may
take ten times as long."""
GANG_STEPS = (2, 4)
"""Steps of a gang that are timed at least, where they take more time than the study leaves and where not,"""
GANG_SECONDS = (0.01, 0.5)
"""and more for so long at least and at most, as the study leaves time for it."""
HOPELESS = 1.25
"""Times what a step takes alone: where the first steps of a gang take so much for each member, it does not pay."""
CLEARLY = 1.5
"""Times more than that, and two steps are enough to see it."""
LONGEST = 200
"""Of what an error says, characters."""
CHECKED_RATE = 1e-4
"""Of the steps after which a stacked model is compared with the model alone."""


def block_of(step: Callable[[], None]) -> Callable[[], None]:
    """Return what takes a block of steps."""

    def block() -> None:
        for _ in range(BLOCK_STEPS):
            step()

    return block


class Solo:
    """A trial alone: its first losses, what a step takes at a glance, and its cost once that is asked for."""

    def __init__(
        self,
        loaded: LoadedWorkload,
        training: TrainingPlan,
        device: torch.device,
        seed: int,
        search_steps: int,
        slots: int,
    ) -> None:
        self.training, self.search_steps = training, search_steps
        self._fewest_blocks = max(GLANCE_BLOCKS + 1, math.ceil(SOLO_BLOCKS / slots))
        self._loaded, self._device, self._seed = loaded, device, seed
        self._wait = wait = synchronizer(device)
        self._new_run()  # what is imported at the first use is on nobody's bill
        wait()
        began = time.perf_counter()
        run = self._new_run()  # which is gone before gangs need its memory
        wait()
        self._setup = time.perf_counter() - began
        began = time.perf_counter()
        batches = run.batches
        self._losses = _first_losses(run)
        self._first_seconds = time.perf_counter() - began
        held, run.batches, block = run.batches, batches, block_of(partial(run.step, 0.0))
        self._blocks = call_seconds(block, wait, GLANCE_BLOCKS)
        self.glance = min(self._blocks) / BLOCK_STEPS
        """Seconds of a step."""
        self.reading = 0.0
        """Of these, for reading a batch in Python."""
        if reads_examples(loaded):
            run.batches = held
            self.reading = max(0.0, self.glance - min(call_seconds(block, wait, GLANCE_BLOCKS)) / BLOCK_STEPS)
        self._fastest = math.inf

    def _new_run(self) -> Run:
        return new_run(begun_anew(self._loaded), self.training, self._device, self._seed)

    def rehearsal(self) -> Rehearsal:
        """Return what tries gangs of such trials."""
        return Rehearsal(self._loaded, self.training, self._device, self._seed, [self._losses], self.reading)

    def step_beside(self, measured: Sequence[tuple[int, float]]) -> float:
        """Return the seconds of a step: a glance is enough beside gangs that take far more for each member."""
        self.note(measured)
        hopeless = all(each > HOPELESS * self.glance for _, each in measured)
        return self.glance if hopeless else self.step

    def note(self, measured: Sequence[tuple[int, float]]) -> None:
        """Take note of what members of gangs take for a step: the faster they are, the shorter is the study."""
        self._fastest = min((each for _, each in measured), default=math.inf)

    @cached_property
    def step(self) -> float:
        """Seconds of a step, as exactly as there is time for."""
        run = self._new_run()
        batches = run.batches
        _first_losses(run)
        run.batches = batches
        block = block_of(partial(run.step, 0.0))
        self._blocks += call_seconds(block, self._wait, self._fewest_blocks - GLANCE_BLOCKS)
        seconds = self._share(statistics.median(self._blocks) / BLOCK_STEPS)
        self._blocks += call_seconds(block, self._wait, 0, min(SOLO_SECONDS, seconds) - sum(self._blocks))
        return statistics.median(self._blocks) / BLOCK_STEPS

    def _share(self, step: float) -> float:
        return SOLO_SHARE * self.search_steps * min(step, self._fastest)

    @cached_property
    def range_test_seconds(self) -> float:
        """Seconds of an evaluation of the `range_test` split."""
        return self._evaluation("range_test")

    def _evaluation(self, split: Split) -> float:
        evaluate, seconds = partial(self._new_run().evaluate, split), self._share(self.step) / 2
        found = call_seconds(evaluate, self._wait, 1, seconds, most=SOLO_EVALUATIONS)
        if sum(found) < SOON:
            found += call_seconds(evaluate, self._wait, SOLO_EVALUATIONS - len(found))
        return statistics.median(found)

    def cost(self, validation_seconds: float) -> SoloCost:
        """Return what all of a trial takes; an evaluation of so many seconds has been made, if more than 0."""
        step, range_test = self.step, self.range_test_seconds
        if validation_seconds > self._share(step) / 2:
            # That was the first one, which may have made or read what later ones find: by its rows it takes no longer.
            rows = self._loaded.facts.validation_count / max(1, self._loaded.facts.range_test_count)
            validation = min(validation_seconds, rows * range_test)
        else:
            validation = self._evaluation("validation")
        recorded = self.training.compile == "graphs"
        warmup = max(0.0, self._first_seconds - checked_steps(self.training) * step) if recorded else 0.0
        blocks = tuple(seconds / BLOCK_STEPS for seconds in self._blocks)
        return SoloCost(self._setup, step, validation, range_test, warmup, blocks)


def call_seconds(
    work: Callable[[], object], wait: Callable[[], None], fewest: int, seconds: float = 0.0, most: float = math.inf
) -> list[float]:
    """Return the seconds of each of some calls, `fewest` at least and more, but no more than `most`, while another one
    like the last fits into `seconds` together.
    """
    found: list[float] = []
    wait()
    while len(found) < fewest or (len(found) < most and sum(found) + sum(found[-1:]) < seconds):
        began = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - began)
    return found


@dataclass
class Rehearsal:
    """Tries gangs of one kind before the study."""

    loaded: LoadedWorkload
    training: TrainingPlan
    device: torch.device
    seed: int
    alone: list[list[float]]
    """By crowd, the losses of its first steps alone."""
    reading: float = 0.0
    """Seconds of a step alone for reading its batch in Python, which those of a crowd share."""
    spent: float = 0.0
    """Seconds of checks and timings so far."""
    onednn: int = 0
    """So many members or more multiply by oneDNN; 0: none."""

    def times(self, most: int, crowds: int, left: float, glance: float) -> tuple[tuple[tuple[int, float], ...], str]:
        """Return sizes with seconds per member, and why there are none; `glance`: what a step alone takes, about.

        They halve from the largest on, until no seconds are `left` to spend; the smallest comes last.
        """
        measured: list[tuple[int, float]] = []
        too_large = ""
        hopeless, began = HOPELESS * glance, time.perf_counter()
        ends = began + left
        try:
            for size in _candidates(most):
                seconds = (ends - time.perf_counter()) / 6
                try:
                    each = self.seconds_per_member(size, crowds, seconds=seconds, hopeless=hopeless)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    too_large = what_stops(error)
                    continue  # with a smaller one
                measured.append((size, each))
                ends = min(ends, began + left * measured[-1][1] / glance)
                if time.perf_counter() >= ends or (len(measured) > 1 and measured[-1][1] > measured[-2][1]):
                    break
            if measured and measured[-1][0] > SMALLEST_GANG:  # far cheaper than the others
                measured.append((SMALLEST_GANG, self.seconds_per_member(SMALLEST_GANG, crowds, hopeless=hopeless)))
            (largest, first), *_ = measured or [(0, 0.0)]
            if min((each for _, each in measured), default=1.0) < MUST_SAVE * min(first, glance):
                # Smaller ones save: the largest came first, when its memory was new, and may do as well.
                measured[0] = (largest, min(first, self.seconds_per_member(largest, crowds)))
        except Exception as error:  # whatever the model does when it is stacked, alone it can be trained
            return tuple(measured), "" if measured else what_stops(error)
        finally:
            self.spent += time.perf_counter() - began
        return tuple(measured), "" if measured else too_large

    def with_onednn(
        self, measured: tuple[tuple[int, float], ...], crowds: int, glance: float
    ) -> tuple[tuple[int, float], ...]:
        """Return the sizes with what the largest takes by oneDNN, if that is less: then all that are larger than half
        of it multiply so from now on.
        """
        (largest, each), *others = measured
        if self.onednn or each > HOPELESS * glance or not may_multiply_faster(self.training, self.device):
            return measured
        began = time.perf_counter()
        try:
            # The first step, which makes code for each shape, says nothing about those to come.
            briefly = largest * each > GANG_SECONDS[0]
            other = replace(self, onednn=largest).seconds_per_member(largest, crowds, briefly=briefly)
        except Exception:  # as it is, it is known to train
            return measured
        finally:
            self.spent += time.perf_counter() - began
        if other > MUST_SAVE * each:
            return measured
        self.onednn = largest // 2 + 1
        return ((largest, other), *others)

    def look(self, size: int, glance: float) -> float | None:
        """Return the seconds of a step by the size of a gang, from two or three steps; None where there are none.

        Where it does not pay as it is, it may by oneDNN.
        """
        began = time.perf_counter()
        try:
            each = self.seconds_per_member(size, 1, hopeless=glance, briefly=True)
            if each > MUST_SAVE * glance and may_multiply_faster(self.training, self.device):
                other = replace(self, onednn=size)
                each = min(each, other.seconds_per_member(size, 1, hopeless=glance, briefly=True))
            return each
        except Exception:  # `check` says why
            return None
        finally:
            self.spent += time.perf_counter() - began

    def check(self, crowds: int, size: int = SMALLEST_GANG, compiled: CompiledGang | None = None) -> str:
        """Return how a gang trains or evaluates otherwise than its members alone; nothing where it does not.

        Each time, as the user's code may be another by now; and so that what torch imports at the first step of a gang
        is on no trial's bill.
        """
        began = time.perf_counter()
        try:
            told = None if compiled else self._difference_in_double(crowds, size)
            rounds = pick_precision(self.training.precision, self.device) != "float32"
            if told is None or (not told and rounds):
                told = self._difference(crowds, size, compiled, None if told is None else FewRows(self.loaded))
            # Convolutions of a GPU round in float32, too: to TF32.
            if not told and (rounds or self.device.type == "cuda") and not compiled:
                told = self._spoils(crowds)
            return told
        except Exception as error:  # whatever the model does when it is stacked, alone it can be trained
            return what_stops(error)
        finally:
            self.spent += time.perf_counter() - began

    def _difference_in_double(self, crowds: int, size: int) -> str | None:
        """Return in what the members differ in float64; None where that cannot be told."""
        if self.loaded.facts.parameter_count > LARGEST_IN_DOUBLE:
            return None
        try:
            double = InDouble(self.loaded)
            training = replace(self.training, precision="float32")  # without autocast, that is
            few = replace(self, loaded=cast(LoadedWorkload, double), training=training, alone=[])
            histories, _ = few._histories(crowds, size, double)
            if double.losing_precision.noticed:
                return None
            for member, (found, expected) in enumerate(histories):
                if difference_in_double(found, expected):
                    shaken = few._other_history(crowds, size, member, double, shaken=True)
                    if reason := difference_in_double(found, expected, shaken):
                        return reason
        except Exception:  # what it cannot do together, float32 tells
            return None
        return ""

    def _difference(
        self, crowds: int, size: int, compiled: CompiledGang | None = None, fewer: FewEvaluations | None = None
    ) -> str:
        """Return in what the members differ in the study's own precision.

        What counts as rounding is how a trial alone in bfloat16 differs from the same in float32, and one in float32
        from one whose weights have other last digits. With `fewer` float64 has told no difference.
        """
        is_told, fewer = fewer is not None, fewer or FewEvaluations(self.loaded)
        few = other = replace(self, loaded=cast(LoadedWorkload, fewer))
        histories, run = few._histories(crowds, size, fewer, compiled)
        if compiled and run.why_not_compiled:
            return run.why_not_compiled
        precision = pick_precision(self.training.precision, self.device)
        if precision != "float32":
            other = replace(few, training=replace(self.training, precision="float32"))
        for member, (found, expected) in enumerate(histories):
            if difference(found, expected, precision):
                rounded = other._other_history(crowds, size, member, fewer, shaken=precision == "float32")
                if reason := difference(found, expected, precision, rounded, is_told=is_told):
                    return reason
        return ""

    def _spoils(self, crowds: int) -> str:
        """Return that a member without finite weights makes those beside it so; nothing where it does not.

        Kernels that take numbers in pairs do so by multiplying them with 0: see convolution.py.
        """
        few = replace(self, loaded=cast(LoadedWorkload, FewRows(self.loaded)))
        with self._leaving_no_trace():
            run, rates = few._begun(self._places(3, crowds), None)
            parameters = [one for one in run.stacked.parameters.values() if one.is_floating_point()]
            others = [one.detach()[::2].isfinite() for one in parameters]
            with torch.no_grad():
                for one in parameters:
                    one[1] = math.nan
            try:
                for _ in range(2):
                    run.step(rates)
            except Exception as error:  # such as a decomposition that finds no finite numbers
                return f"a trial that diverges stops those that train together with it: {what_stops(error)[:LONGEST]}"
            for one, before in zip(parameters, others, strict=True):
                if not bool((one.detach()[::2].isfinite() | ~before).all()):
                    return "a trial that diverges spoils those that train together with it"
        return ""

    def _histories(
        self, crowds: int, size: int, fewer: FewEvaluations, compiled: CompiledGang | None = None
    ) -> tuple[list[tuple[History, History]], StackedRun]:
        """Return of each member what it becomes together and alone, and what they are together."""
        places, rates = self._places(size, crowds), _compared_rates(size)
        with self._leaving_no_trace():
            expected = [
                self._history_alone(self._new_run(place), rate, fewer)
                for place, rate in zip(places, rates, strict=True)
            ]
            run, _ = self._begun(places, compiled)
            found = self._history_together(run, rates, evaluates=fewer.evaluates)
        return list(zip(found, expected, strict=True)), run

    def _other_history(self, crowds: int, size: int, member: int, fewer: FewEvaluations, *, shaken: bool) -> History:
        """Return what a member becomes alone once more, `shaken` from weights that are other in their last digits."""
        with self._leaving_no_trace():
            run = self._new_run(self._places(size, crowds)[member])
            if shaken:
                shake(run.model)
            return self._history_alone(run, _compared_rates(size)[member], fewer)

    def _blocks(self) -> tuple[int, int]:
        """Return after how many steps to evaluate, and after how many more again."""
        return 2, checked_steps(self.training)

    def _history_alone(self, run: Run, rate: float, fewer: FewEvaluations) -> History:
        history = History(state(run.model.named_parameters()), state(run.model.named_buffers()))
        for steps in self._blocks():
            with fewer.watching:
                for _ in range(steps):
                    run.step(rate)
            history.evaluations += fewer.evaluated(run)
        history.end(state(run.model.named_parameters()), state(run.model.named_buffers()))
        return history

    def _history_together(self, run: StackedRun, rates: Sequence[float], *, evaluates: bool) -> list[History]:
        def rows(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            return [state((name, one[row]) for name, one in tensors.items()) for row in range(len(rates))]

        begun = zip(rows(run.stacked.parameters), rows(run.stacked.buffers), strict=True)
        histories = [History(*own) for own in begun]
        for steps in self._blocks():
            for _ in range(steps):
                run.step(run.numbers(rates))
            found = run.evaluate("range_test") if evaluates else []
            for history, (loss, _) in zip(histories, found, strict=evaluates):
                history.evaluations.append(loss)
        for history, last, buffers in zip(
            histories, rows(run.stacked.parameters), rows(run.stacked.buffers), strict=True
        ):
            history.end(last, buffers)
        return histories

    def seconds_per_member(
        self,
        size: int,
        crowds: int,
        compiled: CompiledGang | None = None,
        seconds: float | None = None,
        hopeless: float = math.inf,
        *,
        briefly: bool = False,
    ) -> float:
        """Return the seconds of a gang's step by its size, timed for so many `seconds` within the limits, if given.

        Three steps are enough where all take longer for each member than what is `hopeless`, two where clearly so, or
        where others do not and it is to be told `briefly`; of short ones, which another program may delay all of, there
        are more.
        Raises CannotGangError when it computes wrongly, or is not compiled although it was to be.
        """
        reading = self.reading * min(size, crowds) / size
        with self._leaving_no_trace():
            return reading + self._seconds_per_member(
                size, crowds, compiled, seconds, hopeless - reading, briefly=briefly
            )

    def _seconds_per_member(
        self,
        size: int,
        crowds: int,
        compiled: CompiledGang | None,
        seconds: float | None,
        hopeless: float,
        *,
        briefly: bool,
    ) -> float:
        wait = synchronizer(self.device)
        places = self._places(size, crowds)
        alone = [self._alone(place) for place in places]
        run, rates = self._begun(places, compiled, holds_batches=True)
        first = call_seconds(lambda: run.step(rates), wait, checked_steps(self.training))
        if run.why_not_compiled:
            raise CannotGangError(f"the step could not be compiled: {run.why_not_compiled}")
        tolerance = TOLERANCE[pick_precision(self.training.precision, self.device)]
        shaken = cache(partial(self._losses_alone, shaken=True))
        for losses, own, place in zip(run.take_losses(), alone, places, strict=True):
            for number, (found, expected) in enumerate(zip(losses, own, strict=True)):
                if not math.isfinite(expected):
                    raise CannotGangError(
                        f"the loss of a trial alone is {expected} after {number} steps, so that nothing can be compared"
                    )
                slack = tolerance * max(1.0, abs(expected))
                if not abs(found - expected) <= slack:  # batch norm of few rows may make as much of rounding
                    slack += ROUNDED * abs(shaken(place)[number] - expected)
                if not abs(found - expected) <= slack:
                    raise CannotGangError(f"together the model gives the loss {found:.6g}, alone {expected:.6g}")
        fastest = min(first) / size
        least, longest = GANG_SECONDS
        if hopeless < fastest and (fastest <= CLEARLY * hopeless or size * fastest < least):
            fastest = min(fastest, min(call_seconds(lambda: run.step(rates), wait, 1, least)) / size)
        if fastest > hopeless or briefly:
            return fastest
        step = partial(run.step, torch.zeros_like(rates))
        if self.device.type == "cuda":  # where waiting after each step takes as long as a small one
            _, *blocks = call_seconds(block_of(step), wait, 3, GANG_SECONDS[0])
            return statistics.median(blocks) / BLOCK_STEPS / size
        few, some = GANG_STEPS
        fewest = some if seconds is None or some * size * fastest <= seconds else few
        times = call_seconds(step, wait, fewest, max(least, min(seconds or 0.0, longest)))
        return statistics.median_low(times) / size  # of two the second, where the first still makes its memory

    def evaluation_seconds(self, crowds: int) -> float:
        """Return the seconds of an evaluation of the `range_test` split by the smallest gang of several crowds, by its
        size; what each member of a larger one takes is no more.
        """
        with self._leaving_no_trace():
            run, _ = self._begun(self._places(SMALLEST_GANG, crowds), None)
            _, *times = call_seconds(partial(run.evaluate, "range_test"), synchronizer(self.device), 2, GANG_SECONDS[0])
        return min(times) / SMALLEST_GANG

    def compiled(self, size: int) -> tuple[float, str]:
        """Return the seconds of a compiled gang's step by its size, and why it cannot be."""
        whole = CompiledGang(size, size)
        try:
            return self.seconds_per_member(size, 1, whole), self.check(1, size, whole)
        except Exception as error:  # whatever stops the compiler, they train without it
            return math.inf, one_line(error)

    @contextmanager
    def _leaving_no_trace(self) -> Iterator[None]:
        """Put back what model and loss hold: what comes out of vmap is of no use to a trial alone."""
        kept = Contents(self._new_run(0).model, self.loaded.loss, copies=True)
        try:
            yield
        finally:
            kept.restore()

    def _places(self, size: int, crowds: int) -> list[int]:
        """Return the crowd of each member, as evenly as that goes."""
        return [member * min(size, crowds) // size for member in range(size)]

    def _begun(
        self, places: Sequence[int], compiled: CompiledGang | None, *, holds_batches: bool = False
    ) -> tuple[StackedRun, torch.Tensor]:
        """Return a gang and the rates with which it is tried."""
        runs: list[Run] = []
        for place in range(places[-1] + 1):
            runs.append(self._new_run(place))
            if holds_batches:
                hold_batches(runs[-1:], checked_steps(self.training))
        size, settings = len(places), self.training.optimizer.settings
        run = StackedRun([runs[place] for place in places], [settings] * size, compiled, self.onednn)
        return run, run.numbers([CHECKED_RATE] * size)

    def _alone(self, place: int) -> list[float]:
        while len(self.alone) <= place:
            self.alone.append(self._losses_alone(len(self.alone)))
        return self.alone[place]

    def _losses_alone(self, place: int, *, shaken: bool = False) -> list[float]:
        """Return the first losses of a trial alone, `shaken` from weights that are other in their last digits."""
        run = self._new_run(place)
        if shaken:
            shake(run.model)
        return _first_losses(run)

    def _new_run(self, place: int) -> Run:
        """Return a run with other weights and another data order for each crowd; repeats stand for seeds, too."""
        return new_run(begun_anew(self.loaded), self.training, self.device, repeat_seed(self.seed, place))


def _first_losses(run: Run) -> list[float]:
    hold_batches([run], checked_steps(run.training))
    for _ in range(checked_steps(run.training)):
        run.step(CHECKED_RATE)
    return run.take_losses()


def _candidates(most: int) -> Iterator[int]:
    """Yield sizes from the largest on, halving."""
    size = min(most, LARGEST_GANG)
    while size >= SMALLEST_GANG:
        yield size
        size //= 2


def _compared_rates(size: int) -> list[float]:
    rates: list[float] = np.linspace(COMPARED_RATE, 2 * COMPARED_RATE, size).tolist()
    return rates


def checked_steps(training: TrainingPlan) -> int:
    """Return how many steps are compared: the second is the first after an update, and replayed ones come later."""
    return GRAPH_STEPS if training.compile == "graphs" else 2
