"""The models of several trials as one that steps and evaluates; each sees what it would alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from traceback import walk_tb
from types import MethodType
from typing import Any

import torch
from torch.func import vmap

from lrsearch import chance
from lrsearch.as_alone import DRAWS_OTHERWISE, LOSS_WITH_WEIGHTS, LossesAsAlone, Without
from lrsearch.batches import Batches
from lrsearch.compiled_step import CompiledSteps
from lrsearch.contents import Contents, is_equal
from lrsearch.errors import LrsearchError
from lrsearch.graphs import Replayed
from lrsearch.interfaces import Batch, FitsMetric, HasOwnChance, HasStackedLoss, LoadedWorkload, Split
from lrsearch.products import by_onednn, is_exact
from lrsearch.stacked_optimizers import StackedOptimizer
from lrsearch.stacked_values import side_by_side
from lrsearch.stacking import ModelContents, StackedModel
from lrsearch.training import (
    Run,
    autocast,
    comes_of_divergence,
    finite,
    is_out_of_memory,
    one_line,
    own_generators,
    random_sources,
    whole,
)
from lrsearch.trial import OF_EACH_MEMBER, CompiledGang, TrialResult


class CannotGangError(LrsearchError):
    """These trials, or this model, cannot be trained together; the text says why."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.so_far: Mapping[str, TrialResult] = {}
        """By trial, what it has cost until then, if they had begun."""


class UnevenError(CannotGangError):
    """All of them cannot, but those that are evaluated after the same steps may."""

    def __init__(self, text: str, ends: Mapping[str, tuple[int, ...]] | None = None) -> None:
        super().__init__(text)
        self.ends = ends or {}
        """By trial, these steps, as far as they are known where it is raised."""


class OutOfDeviceMemoryError(CannotGangError):
    """So many cannot, but fewer may."""


MODE_WITH_WEIGHTS = "the model computes with its weights or buffers when it changes its mode"
DATA_WITH_WEIGHTS = "the data are made with weights of a model that they know, and not with each trial's own"
METRIC_WITH_WEIGHTS = "the metric computes with weights of a model that it knows, and not with each trial's own"
GOES_BY_NUMBERS = (
    "the model or the loss goes by numbers that it has computed, as its control flow or by .item(), and each trial has "
    "others"
)
SHARED_BY_TRIALS = "the model or the loss writes what it has computed into a tensor, or a view, that all trials share"
IN_OUR_WORDS = {
    "ninitialized parameter": "the model has lazy layers, which make their weights in the first pass",
    "escaped from inside a function being vmapped": (
        "the model or the loss keeps what it has computed, which is of all trials at once"
    ),
    "it must override the setup_context staticmethod": (
        "an autograd.Function serves one trial only, as it has no setup_context and generate_vmap_rule = True "
        "(https://pytorch.org/docs/stable/notes/extending.func.html), nor have torch's own of Beta and Dirichlet "
        "distributions and of checkpoint(use_reentrant=True)"
    ),
    "attempting to call Tensor.requires_grad_()": (
        "the model or the loss says that a tensor needs gradients, which it may to one trial only"
    ),
    **dict.fromkeys(
        ("Cannot access data pointer", "Cannot access storage"),
        "the model or the loss takes what it has computed out of torch, as .numpy() and copy.deepcopy() do, which "
        "serves one trial only",
    ),
    "same randomness with a batched tensor": DRAWS_OTHERWISE,
    "data-dependent control flow": GOES_BY_NUMBERS,
    "calling .item() on a Tensor": GOES_BY_NUMBERS,
    "dynamic shape": (
        "the model or the loss makes tensors whose size goes by numbers that it has computed, as in x[x > 0]"
    ),
    "is not possible because there exists a Tensor": SHARED_BY_TRIALS,
    "match the broadcast shape": SHARED_BY_TRIALS,
    "view size is not compatible": (
        "the model or the loss takes a view of what lies otherwise in memory than alone, where .reshape() serves both"
    ),
    "`.data` under vmap": "the model puts another tensor in the place of .data, which .data.copy_() need not",
    "does not require grad and does not have a grad_fn": (
        "the model or the loss asks torch.autograd for gradients, which serves one trial only, unlike torch.func.grad"
    ),
    "_nested_tensor_from_mask_left_aligned": (
        "an encoder leaves out what is padded when it is evaluated, which it does for one trial only unless it is made "
        "with enable_nested_tensor=False"
    ),
    "must only return Tensors": (
        "in training the model returns something else than tensors, alone or in tuples, lists and dictionaries"
    ),
    **dict.fromkeys(
        ("from the 'Sparse", "for sparse tensors", "unsupported for Sparse"),
        "the model or the loss computes with sparse tensors, or has sparse gradients, which serve one trial only",
    ),
    "cannot register a hook": "the model has hooks on its gradients, which only a model alone calls",
}
"""Of what torch says that stops a gang."""


def what_stops(error: BaseException) -> str:
    """Return what stops a gang, in a line."""
    if isinstance(error, CannotGangError) or (type(error) is ValueError and _is_ours(error)):
        return str(error)
    return next((ours for words, ours in IN_OUR_WORDS.items() if words in str(error)), one_line(error))


def _is_ours(error: BaseException) -> bool:
    """Whether lrsearch has raised it."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).startswith("lrsearch.")


def cannot_gang(error: BaseException) -> CannotGangError:
    if isinstance(error, CannotGangError):
        return error
    return (OutOfDeviceMemoryError if is_out_of_memory(error) else CannotGangError)(what_stops(error))


@dataclass
class _Crowd:
    """The members that see the same data; they stand beside each other."""

    loaded: LoadedWorkload
    batches: Batches
    rows: slice
    has_own_data: bool
    """Whether the batches are made by the user's code."""


class _Before:
    """What an evaluation may change of what later steps go by: chance, weights, buffers, and what else is held.

    Weights can be put back where it is known that evaluations write to them.
    """

    def __init__(self, stacked: StackedModel, crowds: Sequence[_Crowd], *, writes_weights: bool) -> None:
        self._stacked = stacked
        self._versions = None if writes_weights else stacked.versions()
        self._own = [one for crowd in crowds for one in own_generators(crowd.loaded, stacked.model)]
        self._chance = chance.snapshot(self._own)
        numbers = stacked.parameters | stacked.buffers if writes_weights else stacked.buffers
        self._numbers = {name: one.detach().clone() for name, one in numbers.items()}
        others = [thing for crowd in crowds for thing in (crowd.loaded.loss, random_sources(crowd.loaded))]
        self._contents = ModelContents(stacked.model, *others, copies=True)

    def is_still(self) -> bool:
        own = self._stacked.parameters | self._stacked.buffers
        return (
            self._contents.is_still()
            and chance.is_alike(self._chance, chance.snapshot(self._own))
            and self._versions in (None, self._stacked.versions())
            and all(is_equal(own[name], before) for name, before in self._numbers.items())
        )

    def restore(self) -> None:
        """Raises CannotGangError for what cannot be put back."""
        if self._versions not in (None, self._stacked.versions()):
            raise CannotGangError("an evaluation writes to the model's weights, which those before it did not")
        chance.restore(self._chance, self._own)
        own = self._stacked.parameters | self._stacked.buffers
        with torch.no_grad():
            for name, before in self._numbers.items():
                own[name].copy_(before)
        self._contents.restore()
        if self._contents.has_moved_on:
            raise CannotGangError("an evaluation asks an iterator for another value, which only a model alone may")


class StackedRun:
    """The models of several runs, each at its beginning, as one; knows how to step and to evaluate them all.

    `runs` has one for each member, with its optimiser `settings`. Members with the same run begin with the same weights
    and see the same data; they stand beside each other. Different runs are the same workload with different seeds.
    `compiled` says of how many members the step is compiled; never where the runs are several. So many
    members or more as `onednn` says multiply by oneDNN on a processor; 0: never.
    Raises ValueError for models that cannot be stacked, CannotGangError for runs that cannot.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        settings: Sequence[Mapping[str, Any]],
        compiled: CompiledGang | None = None,
        onednn: int = 0,
    ) -> None:
        self._compiled = compiled if all(own is runs[0] for own in runs) else None
        self.live = len(runs)
        """How many members are there."""
        copies = [-1] * self._copies()
        runs, settings = [*runs, *(runs[row] for row in copies)], [*settings, *(settings[row] for row in copies)]
        run, count = runs[0], len(runs)
        self.device, self.training, self.progressed = run.device, run.training, run.progressed
        self._by_onednn = 0 < onednn <= self.live and self.device.type == "cpu" and is_exact()
        """Also when some have left, so that these change no bit of the others."""
        self.stacked = StackedModel(run.model, count)
        self._crowds: list[_Crowd] = []
        first = 0
        for _, group in groupby(runs, key=id):
            own, *others = group
            rows = slice(first, first + 1 + len(others))
            self._crowds.append(_Crowd(own.loaded, own.batches, rows, isinstance(own.loaded, HasOwnChance)))
            if own is not run:
                self.stacked.begin_as(own.model, rows)
            first = rows.stop
        if len(self._crowds) > 1 and any(_has_own_chance(own) for own in runs):
            raise CannotGangError("model or data have chance of their own, which each seed draws for itself")
        self._chance = chance.snapshot(()) if len(self._crowds) > 1 else {}
        self._switch = run.switch
        self._shared_loss = None if isinstance(run.loaded.loss, MethodType) else run.loaded.loss
        """That of all seeds, with what it keeps: the others have copies of it, which see none of the steps."""
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
        self._compiling = CompiledSteps() if self._compiled and self._compiled.fits(self.live) else None
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
        self._writes_weights = False
        """Whether an evaluation has written to weights so far."""

    @property
    def is_warming(self) -> bool:
        """Whether the steps to come are still to be recorded or compiled."""
        return any(one is not None and one.is_warming for one in (self._replayed, self._compiling))

    def _new_replayed(self) -> Replayed | None:
        return Replayed(self.device) if self.training.compile == "graphs" else None

    def _copies(self) -> int:
        """Return how many copies of the last member are to train beside the members."""
        return self._compiled.copies(self.live) if self._compiled else 0

    def _parameters(self) -> list[torch.Tensor]:
        return [self.stacked.parameters[name] for name in self._names]

    def step(self, rates: torch.Tensor, momentum: torch.Tensor | None = None) -> None:
        """Take one step of every model, each at its own of the `rates`, (models,), which lie on the device."""
        batches = [self._next(crowd, crowd.batches) for crowd in self._crowds]
        inputs, targets = zip(*batches, strict=True)
        if copies := self.stacked.count - self.live:
            rates = torch.cat([rates, rates[-1:].expand(copies)])
            momentum = None if momentum is None else torch.cat([momentum, momentum[-1:].expand(copies)])
        if self._replayed is not None and self.stacked.replaces_buffers:
            self._replayed.give_up("the model's buffers are other tensors after a step or an evaluation")
        own = [rates] if momentum is None else [rates, momentum]
        with by_onednn(self._by_onednn):
            if self._replayed is not None and self._replayed.why_not is None:
                losses = self._replayed.step(self._recorded_step, *inputs, *targets, *own)
            elif self._compiling is not None:
                losses = self._compiled_step([*inputs, *targets, *own])
            else:
                losses = self._train_on(inputs, targets, rates, momentum)
        self._check_chance(self._chance.keys() & {"torch", "cuda"})  # the others, which take longer, at evaluations
        self._losses.append(losses)
        self.progressed()

    def _next(self, crowd: _Crowd, batches: Iterator[Batch]) -> Batch:
        """Return the next batch. Raises ValueError where the user's data are made with weights of the model."""
        if not crowd.has_own_data:
            return next(batches)
        with Without(self.stacked.own, DATA_WITH_WEIGHTS):
            return next(batches)

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
        with autocast(self.training, self.device):
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
        if isinstance(outputs, torch.Tensor):
            outputs = outputs.contiguous()  # as convolutions give them alone: a loss may take a view of them
        losses: torch.Tensor
        loss = self._loss_of(loaded)
        with LossesAsAlone(self.stacked.own):
            if shared:
                losses = vmap(lambda one: loss(one, own[0]), randomness="same")(outputs)
            else:
                losses = vmap(loss, randomness="same")(outputs, torch.stack(self._of_each(own)))
        return losses

    def _loss_of(self, loaded: LoadedWorkload) -> Callable[[Any, Any], torch.Tensor]:
        return loaded.loss if self._shared_loss is None else self._shared_loss

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
        losses: list[list[float]] = torch.stack(self._losses, 1)[: self.live].tolist()
        self._losses.clear()
        if self.why_not_compiled and self._compiling:
            self._compiled = self._compiling = None
            if self.stacked.count > self.live:
                self.keep(range(self.live))  # without copies
        return losses

    def evaluate(self, split: Split, *, for_all: bool = True) -> list[tuple[float | None, float | None]]:
        """Return loss and metric of each model over its own split, as `Run.evaluate` does for one.

        Raises UnevenError where it is not `for_all` of them, some would not be evaluated here alone, and steps to come
        go by what it has changed.
        """
        untouched, versions = None if for_all else self._before(), self.stacked.versions()
        compiled = self._compiling is not None and not self._compiling.is_warming
        before = Contents(self.stacked.model) if compiled else None
        with Without(self.stacked.own, MODE_WITH_WEIGHTS):
            self._switch(training=False)
        self.stacked.look_again()
        found = [one for crowd in self._crowds for one in self._evaluate(crowd, split)]
        self._writes_weights |= versions != self.stacked.versions()
        if len(self._crowds) > 1 and not self.stacked.is_still():
            raise CannotGangError("an evaluation changes what the model holds, which each seed has for itself")
        with Without(self.stacked.own, MODE_WITH_WEIGHTS):
            self._switch(training=True)
        self.stacked.look_again()
        if self._compiling is not None and before is not None and not before.is_still():
            self.why_not_compiled = "an evaluation changes what the model holds"
            self._compiling.give_up(self.why_not_compiled)
        self._check_chance()
        if untouched is not None and not untouched.is_still():
            raise UnevenError(
                "an evaluation draws chance or changes something, and alone they have theirs at other steps"
            )
        return found

    def _before(self) -> _Before:
        return _Before(self.stacked, self._crowds, writes_weights=self._writes_weights)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Have an evaluation inside leave nothing behind that steps to come go by."""
        before = self._before()
        yield
        before.restore()

    def _evaluate(self, crowd: _Crowd, split: Split) -> Iterator[tuple[float | None, float | None]]:
        loaded, outputs, targets = crowd.loaded, [], []
        rows = slice(crowd.rows.start, min(crowd.rows.stop, self.live))
        part = self.stacked if rows == slice(0, self.stacked.count) else self.stacked.part(rows)
        with torch.no_grad(), autocast(self.training, self.device), by_onednn(self._by_onednn):
            for batch_inputs, batch_targets in self._evaluation_batches(crowd, split):
                outputs.append(part(batch_inputs).detach())
                targets.append(batch_targets)
                self.progressed()
        self.stacked.take_buffers(part, rows)
        all_outputs = whole(outputs, "outputs", split, 1).float()
        drawn, draws, nothing = chance.snapshot(()), False, torch.nn.Module()
        for row, own in enumerate(all_outputs, rows.start):
            if draws:  # alone, each would have drawn the same
                chance.restore(drawn, ())
            all_targets = whole(targets, "targets", split)  # anew: loss and metric may write into them, as alone
            if isinstance(loaded, FitsMetric) and split != "test":
                self._metrics[row] = loaded.fit_metric(own, all_targets)
            metric = self._metrics[row] or loaded.metric
            held = Contents(nothing, self._loss_of(loaded)) if row == rows.start else None
            with Without(self.stacked.own, LOSS_WITH_WEIGHTS):
                loss = self._loss_alone(loaded, own, all_targets)
            if held is not None and not held.is_still():
                raise CannotGangError("the loss of an evaluation changes what it holds, once for each member")
            with Without(self.stacked.own, METRIC_WITH_WEIGHTS):
                value = finite(metric(own, all_targets))
            yield loss, value
            draws = draws or (row == rows.start and chance.has_drawn(drawn))

    def _loss_alone(self, loaded: LoadedWorkload, outputs: torch.Tensor, targets: torch.Tensor) -> float | None:
        """Return the loss of one of them, None where not finite, as `Run.evaluate` does."""
        try:
            return finite(float(self._loss_of(loaded)(outputs, targets)))
        except Exception as error:
            if not comes_of_divergence(error, [outputs]):
                raise
            return None

    def _evaluation_batches(self, crowd: _Crowd, split: Split) -> Iterator[Batch]:
        batches = iter(crowd.loaded.evaluation_batches(split))
        with suppress(StopIteration):
            while True:
                yield self._next(crowd, batches)

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
        self.live = len(rows)
        rows = [*rows, *[rows[-1]] * self._copies()]
        self._replayed = self._new_replayed()  # what was recorded goes on with tensors that are no more
        if self._compiling is not None:
            if self._compiled and self._compiled.fits(self.live):
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


def _has_own_chance(run: Run) -> bool:
    """Whether the data may draw from whatever they like, or the model has generators of its own."""
    return bool(random_sources(run.loaded)) or bool(own_generators(run.loaded, run.model))


def _clipped(gradients: Sequence[torch.Tensor], limit: float) -> list[torch.Tensor]:
    """Return the gradients with each model's norm at most `limit`, as torch.nn.utils.clip_grad_norm_ does for one."""
    norms = torch.stack([_norms(gradient) for gradient in gradients])
    factors = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    return [gradient * factors.view(-1, *[1] * (gradient.ndim - 1)) for gradient in gradients]


def _norms(gradient: torch.Tensor) -> torch.Tensor:
    """Return that of each model's part, as it lies: a copy of a transposed one takes far longer."""
    dimensions = tuple(range(1, gradient.ndim))
    return torch.linalg.vector_norm(gradient, dim=dimensions) if dimensions else gradient.abs()
