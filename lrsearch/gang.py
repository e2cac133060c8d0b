"""Trials that differ in rates and seeds, trained together as one stacked model: what each gave, and both its bills.

Every member sees the same batches in the same order and draws the same chance as it would alone. A member that has
ended, was pruned or has diverged leaves, and the others go on without it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.func import vmap

from lrsearch import chance
from lrsearch.as_alone import DRAWS_OTHERWISE, LossesAsAlone, ModesOnly
from lrsearch.batches import Batches
from lrsearch.cache import recall, remember
from lrsearch.checkpoint import newest
from lrsearch.compiled_step import CompiledSteps
from lrsearch.contents import Contents
from lrsearch.errors import LrsearchError, StorageError
from lrsearch.gang_check import (
    COMPARED_RATE,
    LARGEST_IN_DOUBLE,
    FewEvaluations,
    FewRows,
    History,
    InDouble,
    difference,
    difference_in_double,
    shake,
    state,
)
from lrsearch.graphs import Replayed
from lrsearch.interfaces import (
    BLOCK_STEPS,
    PROBE_SHARE,
    Channel,
    FitsMetric,
    HasOwnChance,
    HasStackedLoss,
    LoadedWorkload,
    Split,
    Told,
    Watched,
)
from lrsearch.schedules.plan import PlannedSchedule
from lrsearch.stacked_optimizers import STACKABLE, StackedOptimizer
from lrsearch.stacking import StackedModel, side_by_side
from lrsearch.timing import DeviceStopwatch, synchronizer
from lrsearch.training import (
    COMPILING_SECONDS,
    GRAPH_STEPS,
    MUST_SAVE,
    TOLERANCE,
    Climb,
    EnergyMeter,
    Outcome,
    Run,
    autocast,
    device_info,
    finite,
    first_non_finite,
    has_compiler,
    load,
    new_run,
    one_line,
    own_generators,
    peak_memory,
    pick_device,
    pick_precision,
    plan_of,
    range_test_rates,
    repeat_seed,
    run_trial,
    segment_ends,
    write_checkpoint,
)
from lrsearch.trial import (
    COMPILES_GANGS,
    OF_EACH_MEMBER,
    Choice,
    CompiledGang,
    CurvePoint,
    GangChoice,
    RangeTestPlan,
    SoloCost,
    TrainingPlan,
    TrialResult,
    TrialSpec,
    charged_seconds,
    likeness,
)

GENERATION = 11
"""Raised when gangs become faster or slower than those that were timed before."""
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
GANG_SHARE = PROBE_SHARE / 4
GANG_STEPS = (2, 4)
"""Steps of a gang that are timed at least, where they take more time than the study leaves and where not,"""
GANG_SECONDS = (0.01, 0.5)
"""and more for so long at least and at most, as the study leaves time for it."""
HOPELESS = 1.25
"""Times what a step takes alone: where the first steps of a gang take so much for each member, it does not pay."""
CLEARLY = 1.5
"""Times more than that, and two steps are enough to see it."""
GANG_MUST_SAVE = 0.95
"""Of what a step takes alone, or in a larger gang, the most that it may take in one: what is timed so shortly is not
known better."""
LAYOUT_BLOCKS = 3
"""Of a trial alone, where numbers of processes are compared."""
PROBED_STEPS = 50_000
"""So many does a study have, of which `timings` knows nothing."""
CHECKED_RATE = 1e-4
"""Of the steps after which a stacked model is compared with the model alone."""


class CannotGangError(LrsearchError):
    """These trials, or this model, cannot be trained together; the text says why."""


class OutOfDeviceMemoryError(CannotGangError):
    """So many cannot, but fewer may."""


def _why_alone(training: TrainingPlan) -> str:
    """Return why no two trials of this training can train together; nothing where they can."""
    optimizer = training.optimizer
    if optimizer.name not in STACKABLE or optimizer.settings.get("amsgrad"):
        return f"the optimizer {optimizer.name!r} is not written for several models at once"
    return ""


def check_alike(specs: Sequence[TrialSpec]) -> None:
    """Raise CannotGangError unless the trials differ in seeds, rates, schedules, momentum and weight decay alone.

    Range tests differ in seeds and repeats alone, beside momentum and weight decay.
    """
    first = specs[0]
    optimizer = first.training.optimizer
    if reason := _why_alone(first.training):
        raise CannotGangError(reason)
    for spec in specs:
        if _test_of(spec) != _test_of(first):
            raise CannotGangError("a range test trains with others of the same rates and length only")
        if spec.solo is None:
            raise CannotGangError("what a trial costs alone was not measured")
        if likeness(spec.workload, spec.training) != likeness(first.workload, first.training):
            raise CannotGangError("they differ in more than seed, rate, schedule, momentum and weight decay")
        if optimizer.settings.get("dampening") and not spec.training.optimizer.settings.get("momentum"):
            raise CannotGangError("dampening without momentum has no effect alone, but would have one together")


def _test_of(spec: TrialSpec) -> RangeTestPlan | None:
    """Return what range tests that train together share; None for a training run."""
    plan = spec.proposal.range_test
    return None if plan is None else replace(plan, repeat=0)


@dataclass
class _Crowd:
    """The members that see the same data; they stand beside each other."""

    loaded: LoadedWorkload
    batches: Batches
    rows: slice


class StackedRun:
    """The models of several runs, each at its beginning, as one; knows how to step and to evaluate them all.

    `runs` has one for each member, with its optimiser `settings`. Members with the same run begin with the same weights
    and see the same data; they stand beside each other. Different runs are the same workload with different seeds.
    `compiled` says of how many members the step is compiled; never where the runs are several.
    Raises ValueError for models that cannot be stacked, CannotGangError for runs that cannot.
    """

    def __init__(
        self, runs: Sequence[Run], settings: Sequence[Mapping[str, Any]], compiled: CompiledGang | None = None
    ) -> None:
        self._compiled = compiled if all(own is runs[0] for own in runs) else None
        self._live = len(runs)
        copies = [-1] * self._copies()
        runs, settings = [*runs, *(runs[row] for row in copies)], [*settings, *(settings[row] for row in copies)]
        run, count = runs[0], len(runs)
        self.device, self.training, self.progressed = run.device, run.training, run.progressed
        self.stacked = StackedModel(run.model, count)
        self._crowds: list[_Crowd] = []
        first = 0
        for _, group in groupby(runs, key=id):
            own, *others = group
            rows = slice(first, first + 1 + len(others))
            self._crowds.append(_Crowd(own.loaded, own.batches, rows))
            if own is not run:
                self.stacked.begin_as(own.model, rows)
            first = rows.stop
        if len(self._crowds) > 1 and any(_has_own_chance(own) for own in runs):
            raise CannotGangError("model or data have chance of their own, which each seed draws for itself")
        self._chance = chance.snapshot(()) if len(self._crowds) > 1 else {}
        self._switch = run.switch
        names = {id(parameter): name for name, parameter in run.model.named_parameters()}
        groups = run.optimizer.param_groups
        placed = [(group, parameter) for group in groups for parameter in group["params"]]
        trained = [place for place, (_, parameter) in enumerate(placed) if parameter.requires_grad]
        self._places = trained  # in the optimiser, which has frozen ones too and no state for them
        self._names = [names[id(placed[place][1])] for place in trained]
        self._unused: list[str] | None = None
        """What has no part in the loss, and so no gradient; known after the first step."""
        multipliers = [
            (placed[place][0]["rate_multiplier"], placed[place][0]["weight_decay_multiplier"]) for place in trained
        ]
        if any(parameter.is_complex() for parameter in self._parameters()):
            raise CannotGangError("what it trains is complex")
        if len({parameter.dtype for parameter in self._parameters()}) > 1:
            raise CannotGangError("what it trains is of several number types")
        self._compiling = CompiledSteps() if self._compiled and self._compiled.fits(self._live) else None
        recurrent = (torch.nn.RNNBase, torch.nn.RNNCellBase)
        if self._compiling is not None and any(isinstance(part, recurrent) for part in run.model.modules()):
            # A GRU of 64 steps takes the compiler more than two minutes on a processor.
            self._compiling.give_up("the model has recurrent layers, whose loop takes long to compile")
        self._optimizer = StackedOptimizer(
            self.training.optimizer.name, settings, self._parameters(), multipliers, self._compiling is not None
        )
        self._groups = run.optimizer.state_dict()["param_groups"]
        self._replayed = self._new_replayed()
        self.why_not_compiled: str | None = None
        """Why steps that were to be compiled could not be; None where they were, or have not been tried."""
        self._losses: list[torch.Tensor] = []
        self._metrics: list[Callable[[Any, Any], float] | None] = [None] * count

    @property
    def is_warming(self) -> bool:
        """Whether the steps to come are still to be recorded or compiled."""
        return any(one is not None and one.is_warming for one in (self._replayed, self._compiling))

    def _new_replayed(self) -> Replayed | None:
        return Replayed(self.device) if self.training.compile == "graphs" else None

    def _copies(self) -> int:
        """Return how many copies of the last member are to train beside the members."""
        return self._compiled.copies(self._live) if self._compiled else 0

    def _parameters(self) -> list[torch.Tensor]:
        return [self.stacked.parameters[name] for name in self._names]

    def step(self, rates: torch.Tensor, momentum: torch.Tensor | None = None) -> None:
        """Take one step of every model, each at its own of the `rates`, (models,), which lie on the device."""
        batches = [next(crowd.batches) for crowd in self._crowds]
        inputs, targets = zip(*batches, strict=True)
        if copies := self.stacked.count - self._live:
            rates = torch.cat([rates, rates[-1:].expand(copies)])
            momentum = None if momentum is None else torch.cat([momentum, momentum[-1:].expand(copies)])
        if self._replayed is not None and self.stacked.replaces_buffers:
            self._replayed.give_up("the model's buffers are other tensors after a step or an evaluation")
        own = [rates] if momentum is None else [rates, momentum]
        if self._replayed is not None and self._replayed.why_not is None:
            losses = self._replayed.step(self._recorded_step, *inputs, *targets, *own)
        elif self._compiling is not None:
            losses = self._compiled_step([*inputs, *targets, *own])
        else:
            losses = self._train_on(inputs, targets, rates, momentum)
        self._check_chance(self._chance.keys() & {"torch", "cuda"})  # the others, which take longer, at evaluations
        self._losses.append(losses)
        self.progressed()

    def _recorded_step(self, *arguments: torch.Tensor) -> torch.Tensor:
        count = len(self._crowds)
        inputs, targets, (rates, *momentum) = arguments[:count], arguments[count : 2 * count], arguments[2 * count :]
        return self._train_on(inputs, targets, rates, momentum[0] if momentum else None)

    def _compiled_step(self, arguments: Sequence[Any]) -> torch.Tensor:
        assert self._compiling is not None, "it is asked for"
        count, loaded = len(arguments), self._crowds[0].loaded
        if self.stacked.replaces_buffers:
            self._compiling.give_up("the model's buffers are other tensors after a step or an evaluation")

        def traceable(*tensors: torch.Tensor) -> torch.Tensor:
            held, contents = self._held(), Contents(self.stacked.model, loaded)
            self._put(tensors[count:])
            try:
                losses = self._recorded_step(*tensors[:count])
            finally:
                self._put(held)
                changed = contents.restore()
            if changed:
                raise ValueError("a step changes what the model or the data hold")
            return losses

        losses = self._compiling.step(self._recorded_step, arguments, self._held, traceable)
        self.why_not_compiled = self._compiling.why_not
        return losses

    def _held(self) -> list[torch.Tensor]:
        """Return all tensors beside the batches and rates that a step reads or writes."""
        stacked = self.stacked
        return [*stacked.parameters.values(), *stacked.buffers.values(), *self._optimizer.tensors()]

    def _put(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put other tensors in the place of those that are held."""
        stacked, places = self.stacked, iter(tensors)
        stacked.parameters = {name: next(places) for name in stacked.parameters}
        stacked.buffers = {name: next(places) for name in stacked.buffers}
        self._optimizer.parameters = self._parameters()
        self._optimizer.put(list(places))

    def _train_on(
        self, inputs: Sequence[Any], targets: Sequence[Any], rates: torch.Tensor, momentum: torch.Tensor | None
    ) -> torch.Tensor:
        """Take one step with the batches of the crowds and return the losses before it, (models,)."""
        with self._autocast():
            losses = self._loss(self.stacked(self._inputs(inputs)), targets)
        gradients = self._gradients(losses)
        if self.training.gradient_clip_norm is not None:
            gradients = _clipped(gradients, self.training.gradient_clip_norm)
        self._optimizer.step(gradients, rates, momentum)
        return losses.detach()

    def _gradients(self, losses: torch.Tensor) -> list[torch.Tensor]:
        """Return those of what is trained: all that has a part in the loss of the first step, and then always."""
        trained, unused = self._optimizer.parameters, [self.stacked.parameters[name] for name in self._unused or ()]
        found = torch.autograd.grad(losses.sum(), [*trained, *unused], allow_unused=True)
        gradients = [gradient for gradient in found if gradient is not None]
        if self._unused is None:
            without = {index for index, gradient in enumerate(found) if gradient is None}
            self._unused = [name for index, name in enumerate(self._names) if index in without]
            self._names = [name for index, name in enumerate(self._names) if index not in without]
            self._places = [place for index, place in enumerate(self._places) if index not in without]
            self._optimizer.leave_out(without)
        elif len(gradients) < len(trained) or any(gradient is not None for gradient in found[len(trained) :]):
            raise CannotGangError("some parameters have a part in the loss of some steps only")
        return gradients

    def _inputs(self, own: Sequence[Any]) -> Any:
        """Return the inputs of the crowds as the stacked model takes them; of one crowd they are shared by all."""
        return own[0] if len(own) == 1 else side_by_side(self._of_each(own))

    def _loss(self, outputs: torch.Tensor, own: Sequence[Any]) -> torch.Tensor:
        """Return each model's loss, (models,); `own` are the targets of the crowds."""
        loaded, shared = self._crowds[0].loaded, len(own) == 1
        if isinstance(loaded, HasStackedLoss):
            targets = own[0].expand(len(outputs), *own[0].shape) if shared else torch.stack(self._of_each(own))
            return loaded.stacked_loss(outputs, targets)
        losses: torch.Tensor
        with LossesAsAlone():
            if shared:
                losses = vmap(lambda one: loaded.loss(one, own[0]), randomness="same")(outputs)
            else:
                losses = vmap(loaded.loss, randomness="same")(outputs, torch.stack(self._of_each(own)))
        return losses

    def _of_each(self, own: Sequence[Any]) -> list[torch.Tensor]:
        """Return for each member what its crowd has."""
        if not all(isinstance(one, torch.Tensor) for one in own):
            raise CannotGangError("the batches of several seeds are put side by side, and these are no tensors")
        if len({one.shape for one in own}) > 1:
            raise CannotGangError("the batches are of other shapes with another seed")
        crowds = zip(self._crowds, own, strict=True)
        return [one for crowd, one in crowds for _ in range(crowd.rows.start, crowd.rows.stop)]

    def _check_chance(self, sources: Collection[str] = ()) -> None:
        """Raise CannotGangError where several crowds have drawn from a generator, of which each has its own."""
        if self._chance and chance.has_drawn(self._chance, sources):
            raise CannotGangError("the model draws chance, which each seed draws for itself")

    def take_losses(self) -> list[list[float]]:
        """Return each model's losses since the last call."""
        losses: list[list[float]] = torch.stack(self._losses, 1)[: self._live].tolist()
        self._losses.clear()
        if self.why_not_compiled and self._compiling:
            self._compiled = self._compiling = None
            if self.stacked.count > self._live:
                self.keep(range(self._live))  # without copies
        return losses

    def evaluate(self, split: Split) -> list[tuple[float | None, float | None]]:
        """Return loss and metric of each model over its own split, as `Run.evaluate` does for one."""
        compiled = self._compiling is not None and not self._compiling.is_warming
        before = Contents(self.stacked.model) if compiled else None
        with ModesOnly(self.stacked.own):
            self._switch(training=False)
        self.stacked.look_again()
        found = [one for crowd in self._crowds for one in self._evaluate(crowd, split)]
        if len(self._crowds) > 1 and not self.stacked.is_still():
            raise CannotGangError("an evaluation changes what the model holds, which each seed has for itself")
        with ModesOnly(self.stacked.own):
            self._switch(training=True)
        self.stacked.look_again()
        if self._compiling is not None and before is not None and not before.is_still():
            self.why_not_compiled = "an evaluation changes what the model holds"
            self._compiling.give_up(self.why_not_compiled)
        self._check_chance()
        return found

    def _evaluate(self, crowd: _Crowd, split: Split) -> Iterator[tuple[float | None, float | None]]:
        loaded, outputs, targets = crowd.loaded, [], []
        rows = slice(crowd.rows.start, min(crowd.rows.stop, self._live))
        part = self.stacked if rows == slice(0, self.stacked.count) else self.stacked.part(rows)
        with torch.inference_mode(), self._autocast():
            for batch_inputs, batch_targets in loaded.evaluation_batches(split):
                outputs.append(part(batch_inputs))
                targets.append(batch_targets)
                self.progressed()
        self.stacked.take_buffers(part, rows)
        all_outputs, all_targets = torch.cat(outputs, 1).float(), torch.cat(targets)
        drawn, draws, nothing = chance.snapshot(()), False, torch.nn.Module()
        for row, own in enumerate(all_outputs, rows.start):
            if draws:  # alone, each would have drawn the same
                chance.restore(drawn, ())
            if isinstance(loaded, FitsMetric) and split != "test":
                self._metrics[row] = loaded.fit_metric(own, all_targets)
            metric = self._metrics[row] or loaded.metric
            held = Contents(nothing, loaded.loss) if row == rows.start else None
            loss = finite(float(loaded.loss(own, all_targets)))
            if held is not None and not held.is_still():
                raise CannotGangError("the loss of an evaluation changes what it holds, once for each member")
            yield loss, finite(metric(own, all_targets))
            draws = draws or (row == rows.start and chance.has_drawn(drawn))

    def state(self, row: int, losses: Sequence[float]) -> dict[str, Any]:
        """Return what `Run.state` of that model alone would; `losses` were taken since its last point."""
        model = self.stacked.state_dict(row)
        untaken = torch.stack([one[row] for one in self._losses]) if self._losses else torch.empty(0)
        return {
            "model": model,
            "buffers": {name: one[row].clone() for name, one in self.stacked.buffers.items() if name not in model},
            "optimizer": {"state": self._state_of(row), "param_groups": self._groups_of(row)},
            "losses": torch.cat([torch.tensor(losses, dtype=untaken.dtype), untaken.cpu()]),
            "batches": next(crowd for crowd in self._crowds if row < crowd.rows.stop).batches.position(),
        }

    def _groups_of(self, row: int) -> list[dict[str, Any]]:
        """Return the optimiser's groups with what each member has for itself: see trial.OF_EACH_MEMBER."""
        own = self._optimizer.settings[row]
        return [
            {
                **group,
                **{name: own[name] for name in OF_EACH_MEMBER if name in group},
                "weight_decay": own["weight_decay"] * group["weight_decay_multiplier"],
            }
            for group in self._groups
        ]

    def _state_of(self, row: int) -> dict[int, dict[str, torch.Tensor]]:
        """Return the optimiser's state, each tensor in its parameter's layout: torch's fused kernels count on that."""
        own = dict(self.stacked.model.named_parameters())
        like = [own[name] for name in self._names]
        return {
            self._places[index]: {
                key: torch.empty_like(like[index]).copy_(value) if value.shape == like[index].shape else value
                for key, value in entries.items()
            }
            for index, entries in self._optimizer.state_of(row).items()
        }

    def keep(self, rows: Sequence[int]) -> None:
        """Let the other models go; their losses must have been taken."""
        self._live = len(rows)
        rows = [*rows, *[rows[-1]] * self._copies()]
        self._replayed = self._new_replayed()  # what was recorded goes on with tensors that are no more
        if self._compiling is not None:
            if self._compiled and self._compiled.fits(self._live):
                self._compiling.renew()
            else:
                self._compiling = None
        self.stacked.keep(rows)
        self._optimizer.keep(torch.tensor(rows, device=self.device), self._parameters())
        self._metrics = [self._metrics[row] for row in rows]
        first, left = 0, []
        for crowd in self._crowds:
            count = sum(crowd.rows.start <= row < crowd.rows.stop for row in rows)
            if count:
                left.append(replace(crowd, rows=slice(first, first + count)))
            first += count
        self._crowds = left

    def keep_place(self) -> None:
        """Have the batches remember where they are, as `state` asks for."""
        for crowd in self._crowds:
            crowd.batches.keeps_place = True

    def numbers(self, values: Sequence[Any]) -> torch.Tensor:
        """Return them in the parameters' type, on their device."""
        return torch.tensor(values, dtype=torch.float64).to(self._optimizer.parameters[0])

    def _autocast(self) -> torch.autocast:
        return autocast(self.training, self.device)


def _has_own_chance(run: Run) -> bool:
    """Whether the data may draw from whatever they like, or the model has generators of its own."""
    sources = run.loaded.random_sources if isinstance(run.loaded, HasOwnChance) else ()
    return bool(sources) or bool(own_generators(run.loaded, run.model))


def _clipped(gradients: Sequence[torch.Tensor], limit: float) -> list[torch.Tensor]:
    """Return the gradients with each model's norm at most `limit`, as torch.nn.utils.clip_grad_norm_ does for one."""
    squares = torch.stack([gradient.reshape(len(gradient), -1).square().sum(1) for gradient in gradients])
    factors = (limit / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    return [gradient * factors.view(-1, *[1] * (gradient.ndim - 1)) for gradient in gradients]


@dataclass(kw_only=True, eq=False)
class _Member:
    """One trial of the gang."""

    spec: TrialSpec
    outcome: Outcome
    billed: dict[str, float] = field(default_factory=dict)
    core_seconds: float = 0.0
    evaluations: int = 0
    ended: bool = False
    """Whether it has left the gang with all its values."""

    def solo_seconds(self) -> dict[str, float]:
        """Return what the trial would have taken alone up to now, by phase."""
        solo = self.spec.solo
        assert solo is not None, "see check_alike"
        return {
            "data": self.billed.get("data", 0.0),
            "setup": solo.setup_seconds,
            **({"warmup": solo.warmup_seconds} if solo.warmup_seconds else {}),
            **self._phases(solo, self.outcome.train_steps * solo.step_seconds),
            "test_evaluation": self.billed.get("test_evaluation", 0.0),
            "idle": self.billed.get("idle", 0.0),
        }

    def _phases(self, solo: SoloCost, stepping: float) -> dict[str, float]:
        """Return what steps, which would have taken `stepping` seconds, and evaluations would have taken."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class _Trained(_Member):
    """A training run."""

    planned: PlannedSchedule
    ends: list[int]
    """The numbers of steps after which it is evaluated."""
    losses: list[float] = field(default_factory=list)
    """Since its last point."""

    @classmethod
    def of(cls, spec: TrialSpec, loaded: LoadedWorkload) -> _Trained:
        planned = plan_of(spec, loaded.facts)
        assert planned is not None, "see check_alike"
        ends = segment_ends(planned, loaded.facts.steps_per_epoch)
        return cls(spec=spec, outcome=Outcome(facts=loaded.facts), planned=planned, ends=ends)

    def _phases(self, solo: SoloCost, stepping: float) -> dict[str, float]:
        return {"train": stepping, "evaluate": self.evaluations * solo.validation_seconds}


@dataclass(kw_only=True, eq=False)
class _Climber(_Member):
    """A range test."""

    climb: Climb = field(init=False)

    def __post_init__(self) -> None:
        plan, facts = self.spec.proposal.range_test, self.outcome.facts
        assert plan is not None, "see check_alike"
        assert facts is not None, "a member has a workload"
        rates = range_test_rates(plan, facts.steps_per_epoch)
        self.climb = Climb(rates, lambda: self._losses, lambda: self._found)

    def look(self, losses: list[float], found: tuple[float | None, float | None]) -> None:
        """Take the losses since the last look, and what its evaluation gave."""
        self._losses, self._found = losses, found
        self.evaluations += 1

    def end(self) -> None:
        self.outcome.range_test = self.climb.points()
        self.outcome.train_steps = len(self.outcome.range_test)
        self.outcome.status = "completed"
        self.ended = True

    def _phases(self, solo: SoloCost, stepping: float) -> dict[str, float]:
        return {"range_test": stepping + self.evaluations * solo.range_test_seconds}


class _Bill:
    """Divides what the stopwatch counts among the members that are there at the time."""

    def __init__(self, watch: DeviceStopwatch) -> None:
        self._watch = watch
        self._told: dict[str, float] = {}
        self._core_told = 0.0

    def share(self, members: Sequence[_Member]) -> None:
        """Charge these members for all since the last call."""
        self._watch.lap()
        now, core = dict(self._watch.phase_seconds), self._watch.core_seconds
        for member in members:
            for phase, seconds in now.items():
                spent = (seconds - self._told.get(phase, 0.0)) / len(members)
                member.billed[phase] = member.billed.get(phase, 0.0) + spent
            member.core_seconds += (core - self._core_told) / len(members)
        self._told, self._core_told = now, core


def run_together(specs: Sequence[TrialSpec], channel: Channel) -> list[TrialResult]:
    """Run the trials as one gang; as two where the device has not the memory for one; else one after another.

    A trial that goes on from a checkpoint does so alone.
    """
    resumed = {spec.uuid for spec in specs if spec.checkpoint and newest(Path(spec.checkpoint.folder), spec.uuid)}
    together = [spec for spec in specs if spec.uuid not in resumed]
    results = {spec.uuid: run_trial(spec, channel) for spec in specs if spec.uuid in resumed}
    results |= {result.uuid: result for result in _in_gangs(together, channel)}
    return [results[spec.uuid] for spec in specs]


def _in_gangs(specs: Sequence[TrialSpec], channel: Channel) -> list[TrialResult]:
    if len(specs) <= 1:
        return [run_trial(spec, channel) for spec in specs]
    try:
        return run_gang(specs, channel)
    except OutOfDeviceMemoryError:
        half = len(specs) // 2
        return [*_in_gangs(specs[:half], channel), *_in_gangs(specs[half:], channel)]
    except CannotGangError:
        crowds = _by_crowd(specs).values()
        if len(crowds) == 1:
            return [run_trial(spec, channel) for spec in specs]
        return [result for crowd in crowds for result in _in_gangs(crowd, channel)]


def run_gang(specs: Sequence[TrialSpec], channel: Channel) -> list[TrialResult]:
    """Train the trials together and return their results in order.

    What goes wrong later sends those that are still there to train alone, from their checkpoint or from the start.
    Raises CannotGangError before anything was reported when that cannot be; StorageError as `run_trials` does.
    """
    check_alike(specs)
    crowds = _by_crowd(specs)
    device = pick_device(specs[0].training.device)
    meter, watch = EnergyMeter(device), DeviceStopwatch(synchronizer(device))
    bill = _Bill(watch)
    watch.start("data")
    loaded = {(seed, repeat): load(specs[0].workload, device, seed) for seed, repeat in crowds}
    watch.switch("setup")
    placed = [(spec, loaded[crowd]) for crowd, own in crowds.items() for spec in own]
    members: Sequence[_Member]
    if specs[0].proposal.range_test is None:
        trained = [_Trained.of(spec, own) for spec, own in placed]
        members, work = trained, partial(_train, trained)
    else:
        climbers = [_Climber(spec=spec, outcome=Outcome(facts=own.facts)) for spec, own in placed]
        members, work = climbers, partial(_climb, climbers)
    told = _Reported(channel)
    broken, kept = "", None
    try:
        runs = {crowd: new_run(loaded[crowd], specs[0].training, device, repeat_seed(*crowd)) for crowd in crowds}
        kept = Contents(next(iter(runs.values())).model, *(own.loss for own in loaded.values()), copies=True)
        run = StackedRun(
            [runs[crowd] for crowd, own in crowds.items() for _ in own],
            [member.spec.training.optimizer.settings for member in members],
            specs[0].compiled,
        )
        del runs  # the models are copied, and only the first is used
        if isinstance(channel, Watched):
            run.progressed = channel.progressed
        work(run, watch, bill, told)
    except StorageError:
        raise
    except Exception as error:
        if kept is not None:  # what is left of a gang is of no use to a trial alone
            kept.restore()
        if not told.anything:
            raise _cannot(error) from error
        broken = _why(error)
    left = [member for member in members if not member.ended]
    bill.share(left or members[:1])
    watch.stop()
    joules, billed = meter.joules(), sum(sum(member.billed.values()) for member in members)
    memory = peak_memory(device)
    results = [
        _result(
            member,
            TrialResult(
                uuid=member.spec.uuid,
                status=member.outcome.status,
                device=device_info(device),
                train_steps=member.outcome.train_steps,
                phase_seconds=member.solo_seconds(),
                core_seconds=member.core_seconds,
                gang_size=len(specs),
                billed_phase_seconds={phase: spent for phase, spent in member.billed.items() if phase != "idle"},
                peak_device_memory_bytes=memory,
                energy_joules=None if joules is None else joules * sum(member.billed.values()) / billed,
            ),
        )
        for member in members
    ]
    ended = {
        member.spec.uuid: result if member.ended else _alone(member, result, channel, broken)
        for member, result in zip(members, results, strict=True)
    }
    return [ended[spec.uuid] for spec in specs]


def _by_crowd(specs: Sequence[TrialSpec]) -> dict[tuple[int, int], list[TrialSpec]]:
    """Return the trials that see the same data, by seed and repeat."""
    crowds: dict[tuple[int, int], list[TrialSpec]] = {}
    for spec in specs:
        test = spec.proposal.range_test
        crowds.setdefault((spec.seed, test.repeat if test else 0), []).append(spec)
    return crowds


def _alone(member: _Member, so_far: TrialResult, channel: Channel, reason: str) -> TrialResult:
    """Train a member alone whose gang broke down; what the gang took of it is billed beside what it takes alone."""
    if isinstance(channel, Told):
        channel.message(member.spec.uuid, f"what trained together broke down ({reason}); it trains alone now")
    curve = member.outcome.curve
    result = run_trial(member.spec, _Rest(channel, curve[-1].step if curve else 0))
    billed = dict(so_far.billed_phase_seconds or {})
    for phase, seconds in result.phase_seconds.items():
        if phase != "idle":
            billed[phase] = billed.get(phase, 0.0) + seconds
    joules = [one.energy_joules for one in (so_far, result) if one.energy_joules is not None]
    return replace(
        result,
        core_seconds=result.core_seconds + so_far.core_seconds,
        billed_phase_seconds=billed,
        energy_joules=sum(joules) if joules else None,
    )


class _Rest:
    """A channel over which the points up to a step have gone already."""

    def __init__(self, channel: Channel, step: int) -> None:
        self._channel, self._step = channel, step

    def report(self, uuid: str, point: CurvePoint) -> bool:
        return point.step <= self._step or self._channel.report(uuid, point)

    def progressed(self) -> None:
        if isinstance(self._channel, Watched):
            self._channel.progressed()

    def message(self, uuid: str, text: str) -> None:
        if isinstance(self._channel, Told):
            self._channel.message(uuid, text)


IN_OUR_WORDS = {
    "escaped from inside a function being vmapped": (
        "the model or the loss keeps what it has computed, which is of all trials at once"
    ),
    "it must override the setup_context staticmethod": (
        "an autograd.Function serves one trial only, as it has no setup_context and generate_vmap_rule = True "
        "(https://pytorch.org/docs/stable/notes/extending.func.html)"
    ),
    "same randomness with a batched tensor": DRAWS_OTHERWISE,
}
"""Of what torch says that stops a gang."""


def _why(error: Exception) -> str:
    """Return what stops a gang, in a line."""
    if isinstance(error, CannotGangError):
        return str(error)
    return next((ours for words, ours in IN_OUR_WORDS.items() if words in str(error)), one_line(error))


def _cannot(error: Exception) -> CannotGangError:
    if isinstance(error, CannotGangError):
        return error
    # The processor's allocator raises a plain RuntimeError.
    no_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
    return (OutOfDeviceMemoryError if no_memory else CannotGangError)(_why(error))


def _result(member: _Member, so_far: TrialResult) -> TrialResult:
    outcome = member.outcome
    return replace(
        so_far,
        validation_loss=outcome.validation_loss,
        validation_metric=outcome.validation_metric,
        test_loss=outcome.test_loss,
        test_metric=outcome.test_metric,
        curve=tuple(outcome.curve),
        range_test=tuple(outcome.range_test),
        diverged_step=outcome.diverged_step,
        error=outcome.error,
        traceback=outcome.traceback,
        facts=outcome.facts,
    )


class _Reported:
    """The channel, and whether anything has gone over it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.anything = False

    def report(self, uuid: str, point: CurvePoint) -> bool:
        self.anything = True
        return self._channel.report(uuid, point)


def _train(members: Sequence[_Trained], run: StackedRun, watch: DeviceStopwatch, bill: _Bill, told: _Reported) -> None:
    """Train until the last member has ended."""
    live = list(members)
    keeper = _Keeper([member.spec for member in members], watch, bill)
    if keeper.writes:
        run.keep_place()
    step = 0
    for end in sorted({end for member in members for end in member.ends}):
        if not live:
            return
        watch.switch("warmup" if run.is_warming else "train")
        _step_to(end, step, live, run, keeper, watch)
        step = end
        watch.switch("evaluate")
        for member, losses in zip(live, run.take_losses(), strict=True):
            member.losses += losses
        found = run.evaluate("validation")
        bill.share(live)
        leaving = [
            row for row, member in enumerate(live) if end in member.ends and not _goes_on(member, end, found[row], told)
        ]
        if leaving:
            watch.switch("test_evaluation")
            _judge_leaving([live[row] for row in leaving], leaving, run)
            for row in leaving:
                live[row].ended = True
            bill.share([live[row] for row in leaving])
            stay = [row for row in range(len(live)) if row not in leaving]
            live = [live[row] for row in stay]
            if live:
                run.keep(stay)


class _Keeper:
    """Writes a checkpoint of each member every so often: each can go on alone from its own."""

    def __init__(self, specs: Sequence[TrialSpec], watch: DeviceStopwatch, bill: _Bill) -> None:
        self._watch, self._bill = watch, bill
        plans = [spec.checkpoint for spec in specs if spec.checkpoint]
        self.writes = len(plans) == len(specs)
        self._every = min((plan.every_seconds for plan in plans), default=math.inf)
        self._due = time.monotonic() + self._every

    def after_step(self, live: Sequence[_Trained], run: StackedRun, step: int) -> None:
        """Write if it is time. Raises StorageError."""
        if not self.writes or time.monotonic() < self._due:
            return
        self._watch.switch("idle")
        self._bill.share(live)
        for row, member in enumerate(live):
            assert member.spec.checkpoint is not None, "all have a plan"
            member.outcome.train_steps = step
            state = run.state(row, member.losses)
            write_checkpoint(member.spec.uuid, member.spec.checkpoint, dict(member.billed), state, member.outcome)
        self._watch.switch("train")
        self._due = time.monotonic() + self._every


def _step_to(
    end: int, step: int, live: Sequence[_Trained], run: StackedRun, keeper: _Keeper, watch: DeviceStopwatch
) -> None:
    """Take the steps up to `end`; the rates of all of them go to the device at once."""
    planned = [member.planned for member in live]
    rates = run.numbers([[one.rate(at) for one in planned] for at in range(step, end)])
    momenta: Sequence[torch.Tensor | None] = [None] * (end - step)
    schedules = [one.momentum for one in planned if one.momentum is not None]
    if schedules:
        if len(schedules) != len(planned):
            raise CannotGangError("only some of them schedule their momentum")
        table = [[schedule(at) for schedule in schedules] for at in range(step, end)]
        momenta = list(run.numbers(table))
    warming = run.is_warming
    for at in range(end - step):
        run.step(rates[at], momenta[at])
        if warming and not run.is_warming:
            watch.switch("train")
            warming = False
        keeper.after_step(live, run, step + at + 1)
    for member in live:
        member.outcome.train_steps = end


def _goes_on(member: _Trained, end: int, found: tuple[float | None, float | None], told: _Reported) -> bool:
    """Note and tell how the member does after `end` steps; return whether it is to train on."""
    outcome, losses = member.outcome, member.losses
    assert outcome.facts is not None, "a member has a workload"
    loss, metric = found
    member.losses = []
    member.evaluations += 1
    outcome.diverged_step = first_non_finite(losses, end)
    alive = outcome.diverged_step is None
    outcome.validation_loss, outcome.validation_metric = found if alive else (None, None)
    point = CurvePoint(
        step=end,
        epoch=end / outcome.facts.steps_per_epoch,
        learning_rate=member.planned.rate(end - 1),
        train_loss=finite(math.fsum(losses) / len(losses)) if alive else None,
        validation_loss=loss,
        validation_metric=metric if alive else None,
        charged_device_seconds=charged_seconds(member.solo_seconds()),
        cycle_end=end in member.planned.cycle_ends,
    )
    outcome.curve.append(point)
    go_on = told.report(member.spec.uuid, point)
    if not alive:
        outcome.status = "diverged"
        return False
    outcome.status = "completed" if go_on or end == member.planned.train_steps else "pruned"
    return go_on and end < member.planned.train_steps


def _judge_leaving(leaving: Sequence[_Member], rows: Sequence[int], run: StackedRun) -> None:
    """Give each that leaves alive its values on the test split."""
    if all(member.outcome.status == "diverged" for member in leaving):
        return
    found = run.evaluate("test")
    for member, row in zip(leaving, rows, strict=True):
        if member.outcome.status != "diverged":
            member.outcome.test_loss, member.outcome.test_metric = found[row]


def _climb(members: Sequence[_Climber], run: StackedRun, watch: DeviceStopwatch, bill: _Bill, told: _Reported) -> None:
    """Raise the rate of all range tests rung by rung; one whose loss ran away leaves.

    Nothing is told of a range test before its end, and no state of it is kept.
    """
    live, rates = list(members), members[0].climb.rates
    if any(member.climb.rates != rates for member in members):
        raise CannotGangError("with another seed the range test has another length")
    watch.switch("range_test")
    for rate in run.numbers(rates):
        run.step(rate.repeat(len(live)))
        if live[0].climb.is_due:
            for member, losses, found in zip(live, run.take_losses(), run.evaluate("range_test"), strict=True):
                member.look(losses, found)
        leaving = [member for member in live if not member.climb.goes_on()]
        if leaving:
            bill.share(live)
            for member in leaving:
                member.end()
            stay = [row for row, member in enumerate(live) if not member.ended]
            live = [live[row] for row in stay]
            if not live:
                return
            run.keep(stay)


# The choice


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
    solo = _Solo(load(workload, device, seed), training, device, seed, search_steps, slots)
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
    if reason := _why_alone(training):
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
    solo: _Solo,
    circumstances: list[object],
    most: int,
    widely: list[object] | None,
    most_across: int,
    crowds: int,
    compiling_must_pay: bool,
) -> GangChoice:
    """Return the choice; what was chosen before is compared with trials alone again."""
    rehearsal, alone = solo.rehearsal(), GangChoice(1)
    if reason := rehearsal.check(1):
        return replace(alone, reason=reason)
    seconds = GANG_SHARE * solo.search_steps * solo.glance
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
    alone: GangChoice, solo: _Solo, rehearsal: _Rehearsal, circumstances: list[object], most: int, seconds: float
) -> GangChoice:
    """Return the choice for trials that see the same data; timing it may take so many seconds."""
    if (known := _recall_choice(circumstances, None)) is not None:
        return known
    measured, reason = rehearsal.times(most, 1, seconds, solo.glance)
    if reason:
        return replace(alone, reason=reason)
    one = solo.step_beside(measured)
    size, each = _best(measured, one) if measured else (1, one)
    if each > GANG_MUST_SAVE * one and measured:
        size, reason = 1, f"a step of {size} together takes {each / one:.2f} of a step alone for each"
    smallest = _smallest(measured, one)
    found: dict[str, Any] = {"size": size, "measured": measured, "reason": reason, "smallest": smallest}
    remember("gangs", circumstances, found)
    return replace(alone, **found)


def _compiled(
    choice: GangChoice, solo: _Solo, rehearsal: _Rehearsal, circumstances: list[object], size: int
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
    choice: GangChoice, solo: _Solo, rehearsal: _Rehearsal, circumstances: list[object], size: int
) -> GangChoice:
    """Return the choice as `_compiled` does, silent where it stays as it is; what share a step takes is remembered."""
    found = _compiled(choice, solo, rehearsal, circumstances, size)
    each = min(each for _, each in choice.measured)
    remember("gangs_compiled_share", circumstances, found.measured[0][1] / each if found.compiled else 1.0)
    return replace(found, reason_compiled="")


def _of_several_crowds(
    choice: GangChoice,
    solo: _Solo,
    rehearsal: _Rehearsal,
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
    one, found = solo.step_beside(measured), dict[str, Any]()
    size, each = _best(measured, one)
    if each <= GANG_MUST_SAVE * one:
        better = [own for own, own_each in choice.measured if each > MUST_SAVE * own_each]
        found = {"across": size, "enough": min(better, default=size), "smallest_across": _smallest(measured, one)}
        of_tests = min(crowds, size)
        [(_, step)] = _gang_steps(measured, [of_tests], one)
        dearer = rehearsal.evaluation_seconds(crowds) - GANG_MUST_SAVE * solo.range_test_seconds
        if dearer > 0:
            found["most_evaluations"] = (GANG_MUST_SAVE * one - step / of_tests) / dearer
    else:
        found = {"reason_across": f"a step of {size} together takes {each / one:.2f} of a step alone for each"}
    remember("gangs_across", circumstances, found)
    return replace(choice, **found)


def _best(measured: Sequence[tuple[int, float]], one: float) -> tuple[int, float]:
    """Return the largest of the sizes, which come from the largest on, over which no other saves enough.

    It saves enough itself over `one`, the seconds of a step alone, or none does: then it is the fastest.
    """
    fastest = min(measured, key=lambda timed: timed[1])
    enough = (timed for timed in measured if timed[1] <= GANG_MUST_SAVE * one)
    return next((timed for timed in enough if fastest[1] > GANG_MUST_SAVE * timed[1]), fastest)


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
    solo = _Solo(loaded, training, device, seed, PROBED_STEPS, slots=1)
    rehearsal, found = solo.rehearsal(), {(1, False): solo.step}
    if sizes and (reason := _why_alone(training) or rehearsal.check(1)):
        return found, reason
    try:
        for size in sizes:
            found[size, False] = rehearsal.seconds_per_member(size, 1)
    except Exception as error:  # as in `choose`
        return found, _why(error)
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
        return statistics.median(_timed(_block(run), synchronizer(device), LAYOUT_BLOCKS)) / BLOCK_STEPS
    if _why_alone(training):
        return math.inf
    try:
        hopeless = 0.0 if briefly else math.inf
        return _Rehearsal(loaded, training, device, seed, []).seconds_per_member(size, 1, hopeless=hopeless)
    except Exception:  # as in `choose`, which says why
        return math.inf


def _block(run: Run) -> Callable[[], None]:
    """Return what takes a block of steps that change nothing."""

    def block() -> None:
        for _ in range(BLOCK_STEPS):
            run.step(0.0)

    return block


def _candidates(most: int) -> Iterator[int]:
    """Yield sizes from the largest on, halving."""
    size = min(most, LARGEST_GANG)
    while size >= SMALLEST_GANG:
        yield size
        size //= 2


class _Solo:
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
        self.training, self.search_steps, self._facts = training, search_steps, loaded.facts
        self._fewest_blocks = max(GLANCE_BLOCKS + 1, math.ceil(SOLO_BLOCKS / slots))
        self._new_run = partial(new_run, loaded, training, device, seed)
        self._rehearsal = partial(_Rehearsal, loaded, training, device, seed)
        self._wait = wait = synchronizer(device)
        self._new_run()  # what is imported at the first use is on nobody's bill
        wait()
        began = time.perf_counter()
        run = self._new_run()  # which is gone before gangs need its memory
        wait()
        self._setup = time.perf_counter() - began
        began = time.perf_counter()
        self._losses = self._first_losses(run)
        self._first_seconds = time.perf_counter() - began
        self._blocks = _timed(_block(run), wait, GLANCE_BLOCKS)
        self.glance = min(self._blocks) / BLOCK_STEPS
        """Seconds of a step."""
        self._fastest = math.inf

    def _first_losses(self, run: Run) -> list[float]:
        for _ in range(_checked_steps(self.training)):
            run.step(CHECKED_RATE)
        return run.take_losses()

    def rehearsal(self) -> _Rehearsal:
        """Return what tries gangs of such trials."""
        return self._rehearsal([self._losses])

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
        self._first_losses(run)
        block = _block(run)
        self._blocks += _timed(block, self._wait, self._fewest_blocks - GLANCE_BLOCKS)
        seconds = self._share(statistics.median(self._blocks) / BLOCK_STEPS)
        self._blocks += _timed(block, self._wait, 0, min(SOLO_SECONDS, seconds) - sum(self._blocks))
        return statistics.median(self._blocks) / BLOCK_STEPS

    def _share(self, step: float) -> float:
        return SOLO_SHARE * self.search_steps * min(step, self._fastest)

    @cached_property
    def range_test_seconds(self) -> float:
        """Seconds of an evaluation of the `range_test` split."""
        return self._evaluation("range_test")

    def _evaluation(self, split: Split) -> float:
        evaluate, seconds = partial(self._new_run().evaluate, split), self._share(self.step) / 2
        return statistics.median(_timed(evaluate, self._wait, 1, seconds, most=SOLO_EVALUATIONS))

    def cost(self, validation_seconds: float) -> SoloCost:
        """Return what all of a trial takes; an evaluation of so many seconds has been made, if more than 0."""
        step, range_test = self.step, self.range_test_seconds
        if validation_seconds > self._share(step) / 2:
            # That was the first one, which may have made or read what later ones find: by its rows it takes no longer.
            rows = self._facts.validation_count / max(1, self._facts.range_test_count)
            validation = min(validation_seconds, rows * range_test)
        else:
            validation = self._evaluation("validation")
        recorded = self.training.compile == "graphs"
        warmup = max(0.0, self._first_seconds - _checked_steps(self.training) * step) if recorded else 0.0
        blocks = tuple(seconds / BLOCK_STEPS for seconds in self._blocks)
        return SoloCost(self._setup, step, validation, range_test, warmup, blocks)


def _timed(
    work: Callable[[], object], wait: Callable[[], None], fewest: int, seconds: float = 0.0, most: float = math.inf
) -> list[float]:
    """Return the seconds of each of some calls, `fewest` at least and more, but no more than `most`, until they have
    taken `seconds` together.
    """
    found: list[float] = []
    wait()
    while len(found) < fewest or (len(found) < most and sum(found) < seconds):
        began = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - began)
    return found


@dataclass
class _Rehearsal:
    """Tries gangs of one kind before the study."""

    loaded: LoadedWorkload
    training: TrainingPlan
    device: torch.device
    seed: int
    alone: list[list[float]]
    """By crowd, the losses of its first steps alone."""
    spent: float = 0.0
    """Seconds of checks and timings so far."""

    def times(self, most: int, crowds: int, left: float, glance: float) -> tuple[tuple[tuple[int, float], ...], str]:
        """Return sizes with seconds per member, and why there are none; `glance`: what a step alone takes, about.

        They halve from the largest on, until no seconds are `left` to spend; the smallest comes last.
        """
        measured: list[tuple[int, float]] = []
        hopeless, began = HOPELESS * glance, time.perf_counter()
        ends = began + left
        try:
            for size in _candidates(most):
                seconds = (ends - time.perf_counter()) / 6
                measured.append((size, self.seconds_per_member(size, crowds, seconds=seconds, hopeless=hopeless)))
                ends = min(ends, began + left * measured[-1][1] / glance)
                if time.perf_counter() >= ends or (len(measured) > 1 and measured[-1][1] > measured[-2][1]):
                    break
            if measured and measured[-1][0] > SMALLEST_GANG:  # far cheaper than the others
                measured.append((SMALLEST_GANG, self.seconds_per_member(SMALLEST_GANG, crowds, hopeless=hopeless)))
            (largest, first), *_ = measured or [(0, 0.0)]
            if min((each for _, each in measured), default=1.0) < GANG_MUST_SAVE * min(first, glance):
                # Smaller ones save: the largest came first, when its memory was new, and may do as well.
                measured[0] = (largest, min(first, self.seconds_per_member(largest, crowds)))
        except Exception as error:  # whatever the model does when it is stacked, alone it can be trained
            return tuple(measured), "" if measured else _why(error)
        finally:
            self.spent += time.perf_counter() - began
        return tuple(measured), ""

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
            if not told and rounds and not compiled:
                told = self._spoils(crowds)
            return told
        except Exception as error:  # whatever the model does when it is stacked, alone it can be trained
            return _why(error)
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
            for _ in range(2):
                run.step(rates)
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
        return 2, _checked_steps(self.training)

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
    ) -> float:
        """Return the seconds of a gang's step by its size, timed for so many `seconds` within the limits, if given.

        Three steps are enough where all take longer for each member than what is `hopeless`, two where clearly so.
        Raises CannotGangError when it computes wrongly, or is not compiled although it was to be.
        """
        with self._leaving_no_trace():
            return self._seconds_per_member(size, crowds, compiled, seconds, hopeless)

    def _seconds_per_member(
        self, size: int, crowds: int, compiled: CompiledGang | None, seconds: float | None, hopeless: float
    ) -> float:
        wait = synchronizer(self.device)
        places = self._places(size, crowds)
        alone = [self._alone(place) for place in places]
        run, rates = self._begun(places, compiled)
        first = _timed(lambda: run.step(rates), wait, _checked_steps(self.training))
        if run.why_not_compiled:
            raise CannotGangError(f"the step could not be compiled: {run.why_not_compiled}")
        tolerance = TOLERANCE[pick_precision(self.training.precision, self.device)]
        for losses, own in zip(run.take_losses(), alone, strict=True):
            for found, expected in zip(losses, own, strict=True):
                if not abs(found - expected) <= tolerance * max(1.0, abs(expected)):
                    raise CannotGangError(f"together the model gives the loss {found:.6g}, alone {expected:.6g}")
        fastest = min(first) / size
        if hopeless < fastest <= CLEARLY * hopeless:
            fastest = min(fastest, _timed(lambda: run.step(rates), wait, 1)[0] / size)
        if fastest > hopeless:
            return fastest
        step = partial(run.step, torch.zeros_like(rates))
        few, some = GANG_STEPS
        fewest = some if seconds is None or some * size * fastest <= seconds else few
        least, longest = GANG_SECONDS
        times = _timed(step, wait, fewest, max(least, min(seconds or 0.0, longest)))
        return statistics.median_low(times) / size  # of two the second, where the first still makes its memory

    def evaluation_seconds(self, crowds: int) -> float:
        """Return the seconds of an evaluation of the `range_test` split by the smallest gang of several crowds, by its
        size; what each member of a larger one takes is no more.
        """
        with self._leaving_no_trace():
            run, _ = self._begun(self._places(SMALLEST_GANG, crowds), None)
            _, *times = _timed(partial(run.evaluate, "range_test"), synchronizer(self.device), 3)
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

    def _begun(self, places: Sequence[int], compiled: CompiledGang | None) -> tuple[StackedRun, torch.Tensor]:
        """Return a gang and the rates with which it is tried."""
        runs, settings = [self._new_run(place) for place in range(places[-1] + 1)], self.training.optimizer.settings
        size = len(places)
        run = StackedRun([runs[place] for place in places], [settings] * size, compiled)
        return run, run.numbers([CHECKED_RATE] * len(places))

    def _alone(self, place: int) -> list[float]:
        while len(self.alone) <= place:
            run = self._new_run(len(self.alone))
            for _ in range(_checked_steps(self.training)):
                run.step(CHECKED_RATE)
            self.alone.append(run.take_losses())
        return self.alone[place]

    def _new_run(self, place: int) -> Run:
        """Return a run with other weights and another data order for each crowd; repeats stand for seeds, too."""
        return new_run(self.loaded, self.training, self.device, repeat_seed(self.seed, place))


def _compared_rates(size: int) -> list[float]:
    rates: list[float] = np.linspace(COMPARED_RATE, 2 * COMPARED_RATE, size).tolist()
    return rates


def _checked_steps(training: TrainingPlan) -> int:
    """Return how many steps are compared: the second is the first after an update, and replayed ones come later."""
    return GRAPH_STEPS if training.compile == "graphs" else 2


def _circumstances(workload: Choice, training: TrainingPlan, device: torch.device) -> list[object]:
    where = [GENERATION, device_info(device).name, torch.get_num_threads(), torch.__version__]
    return [likeness(workload, training), *where]
