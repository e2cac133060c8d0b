"""Puts a model, its optimizer and all sources of chance back as they were, bit for bit, whatever happened meanwhile."""

from __future__ import annotations

import random
import signal
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType, UnionType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from lrsearch import chance
from lrsearch.errors import UsageError
from lrsearch.interrupts import deferred

T = TypeVar("T")
Undo = Callable[[], object]

GENERATORS = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
LARGEST_COLLECTION = 1000
"""Generators are not looked for in longer lists: those are data."""
DEEPEST_MEMBER = 8
"""Nor further down: loader, data set, transform, list of transforms, transform, its generator are six."""


@contextmanager
def untouched(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    scaler: torch.amp.GradScaler | None = None,
    generators: Iterable[object] = (),
    keep_copies_on: torch.device | str | None = None,
) -> Iterator[None]:
    """Undo everything that the block does to these, also when it ends in an exception or by Ctrl-C.

    Put back, bit for bit and in the same tensor objects: parameters, buffers, `.grad`, requires_grad, train flags and
    attributes of all modules, with what lists, dicts, sets, deques and numpy arrays among them hold; state and groups
    of the optimizer; the scaler; the generators of torch, CUDA, MPS, numpy and python. Of each of `generators` the
    same: a torch, numpy or random generator, or a DataLoader, whose own generator, samplers and data set are searched
    for them. Copies lie on the device of their originals, or on `keep_copies_on`. Not seen: what lies outside these
    objects, what an attribute of another class of yours holds, and batches taken from a one-shot iterator.
    """
    snapshot = Snapshot(model, optimizer, scaler, generators=generators, keep_copies_on=keep_copies_on)
    try:
        yield
    finally:
        snapshot.restore()


class Snapshot:
    """The state of some things at one moment; `restore` brings it back. Taking one changes nothing."""

    def __init__(
        self,
        *things: object,
        generators: Iterable[object] = (),
        keep_copies_on: torch.device | str | None = None,
    ) -> None:
        self._copies_on = keep_copies_on
        self._seen: dict[int, object] = {}  # holds what it names, so that no id is given twice
        self._undo: list[Undo] = []
        self._keep(things)
        sources = list(generators)
        for source in sources:
            self._keep_samplers(source)
        own = find_among(sources, GENERATORS)
        self._undo.append(partial(chance.restore, chance.snapshot(own), own))

    def restore(self) -> None:
        """Bring everything back. A Ctrl-C that comes meanwhile is answered afterwards; a second call does nothing."""
        with deferred(signal.SIGINT), torch.no_grad():
            for undo in self._undo:
                undo()
            self._undo = []

    def undo_after(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, and bring everything back, at whatever point a Ctrl-C may strike."""
        try:
            try:
                return work()
            finally:
                self.restore()
        finally:  # again: the first may have been interrupted before it began
            self.restore()

    def _keep(self, thing: object) -> None:
        """Remember tensors and arrays by content, modules, optimizers and collections by members, all else by name."""
        waiting = [thing]
        while waiting:
            item = waiting.pop()
            if id(item) in self._seen:
                continue
            self._seen[id(item)] = item
            if isinstance(item, torch.Tensor):
                waiting.append(self._keep_tensor(item))
            else:
                waiting.extend(self._keep_members(item))

    def _keep_members(self, item: object) -> Sequence[object]:
        """Remember which members `item` has, and return them."""
        if isinstance(item, nn.Module):
            self._undo.append(partial(setattr, item, "training", item.training))
            return [vars(item), *item.parameters(recurse=False), *item.buffers(recurse=False)]
        if isinstance(item, torch.optim.Optimizer | torch.amp.GradScaler):
            return [vars(item)]
        if type(item) in (dict, OrderedDict, defaultdict, Counter):
            assert isinstance(item, dict)
            self._undo.append(partial(_refill_dict, item, dict(item)))
            return list(item.values())
        if type(item) is list:
            self._undo.append(partial(_refill_list, item, list(item)))
        elif isinstance(item, set | deque):
            self._undo.append(partial(_refill, item, list(item)))
        elif type(item) is np.ndarray and item.flags.writeable:
            self._undo.append(partial(np.copyto, item, item.copy()))
        return list(item) if isinstance(item, list | tuple | set | deque) else ()

    def _keep_tensor(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Remember content, requires_grad and grad, and return the grad."""
        if nn.parameter.is_lazy(tensor):
            raise UsageError(
                "The model has lazy parameters without a shape yet; pass one batch through it first: model(inputs)."
            )
        distinct = _distinct(tensor.detach())
        copy = distinct.clone() if self._copies_on is None else distinct.to(self._copies_on, copy=True)
        self._undo.append(partial(_restore_content, tensor, copy))
        if not tensor.is_leaf:
            return None
        self._undo.append(partial(_restore_gradient, tensor, tensor.grad, tensor.requires_grad))
        return tensor.grad

    def _keep_samplers(self, source: object) -> None:
        """Remember the attributes of a loader's samplers, such as a counter of epochs, but not their content."""
        if isinstance(source, DataLoader):
            inner = getattr(source.batch_sampler, "sampler", None)
            for sampler in (source.sampler, source.batch_sampler, inner):
                if hasattr(sampler, "__dict__"):
                    self._undo.append(partial(_refill_dict, vars(sampler), dict(vars(sampler))))


def find_generators(source: object) -> list[object]:
    return find(source, GENERATORS)


def find(source: object, kinds: type | UnionType) -> list[Any]:
    """Return what of these kinds `source` is or holds: in its attributes, in lists, tuples, deques and dicts, and
    around functions.
    """
    return find_among([source], kinds)


def find_among(sources: Iterable[object], kinds: type | UnionType) -> list[Any]:
    """Return what of these kinds any of `sources` is or holds, each once, as `find` does of one."""
    found: list[object] = []
    seen: dict[int, object] = {}
    level = list(sources)
    for _ in range(DEEPEST_MEMBER):
        new = {id(item): item for item in level if id(item) not in seen}
        seen |= new
        level = []
        for item in new.values():
            with suppress(Exception):  # it cannot be looked at, such as a weak proxy of what is gone
                found += [item] if isinstance(item, kinds) else []
                level += _members(item)
    return found


def seed_generators(seed: int, others: Iterable[object] = ()) -> None:
    """Seed the generators of torch, CUDA, MPS, numpy and python, and of `others` those of torch.

    Unlike `torch.manual_seed` it leaves no call waiting for a CUDA that has not been used yet.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch: untyped
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    for other in others:
        if isinstance(other, torch.Generator):
            other.manual_seed(seed)


# --- tensors and collections ---------------------------------------------------------------------------------------


def _distinct(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view without the repetitions of an expanded tensor: those lie in one place and cannot be written."""
    if tensor.layout != torch.strided or 0 not in tensor.stride():
        return tensor
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]


def _restore_content(tensor: torch.Tensor, copy: torch.Tensor) -> None:
    with torch.inference_mode(tensor.is_inference()):  # only there can a tensor be changed that was made there
        _distinct(tensor.data).copy_(copy)  # .data: a graph that is waiting for its backward does not see a change


def _restore_gradient(tensor: torch.Tensor, grad: torch.Tensor | None, requires_grad: bool) -> None:
    if tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)
    if tensor.grad is not grad:
        tensor.grad = grad


def _refill_dict(container: dict[Any, Any], before: dict[Any, Any]) -> None:
    if not _same_members([*container, *container.values()], [*before, *before.values()]):
        container.clear()
        container.update(before)


def _refill_list(container: list[Any], before: list[Any]) -> None:
    if not _same_members(container, before):
        container[:] = before


def _refill(container: set[Any] | deque[Any], before: list[Any]) -> None:
    if not _same_members(list(container), before):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(before)


def _same_members(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(one is other for one, other in zip(now, before, strict=True))


# --- generators ----------------------------------------------------------------------------------------------------


def _members(item: object) -> Iterable[object]:
    """Return what may hold a generator in turn: not models, arrays and long collections, which are data."""
    if isinstance(item, nn.Module | torch.Tensor | np.ndarray | type | ModuleType | GENERATORS):
        return ()
    if isinstance(item, DataLoader):
        return item.dataset, item.sampler, item.batch_sampler, item.generator, item.collate_fn
    if isinstance(item, Mapping | list | tuple | deque):
        short = len(item) <= LARGEST_COLLECTION
        return () if not short else item.values() if isinstance(item, Mapping) else item
    if isinstance(item, partial):
        return item.func, item.args, item.keywords
    if isinstance(item, MethodType):
        return item.__self__, item.__func__
    if isinstance(item, FunctionType):
        return *_around(item), *vars(item).values()
    return getattr(item, "__dict__", {}).values()


def _around(function: FunctionType) -> Iterator[object]:
    """Yield what the function has from around it."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # there is nothing in it yet
            yield cell.cell_contents
