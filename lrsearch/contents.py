"""What the user's model, loss and data hold: has a step, or looking at one, changed it, and how was it before?"""

from __future__ import annotations

import functools
import operator
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

DEEPEST = 5
"""Levels that are looked at: a list in an object in a dictionary of the module."""
LARGEST_COLLECTION = 1_000
"""Into longer ones is not looked: those are data."""
LARGEST_COPY = 2**16
"""Numbers of a tensor or array; of larger ones no copy is kept."""
LIBRARIES = ("site-packages", "dist-packages")
PLAIN = (list, deque, set, dict, tuple, torch.Tensor, np.ndarray, nn.Module, FunctionType, type)
"""Into what a function has from around it is looked where it is one of these, or of the user's own classes: not into
open files and the like."""


class Contents:
    """What a model's modules and `others` hold, and what these things hold in turn.

    That is: members of lists, sets and dictionaries, attributes, also those of the user's own classes, what functions
    have from around them, and which tensors and arrays have other numbers. With `copies` small ones can be restored.
    """

    def __init__(self, model: nn.Module, *others: object, copies: bool = False) -> None:
        self._kept: list[tuple[Any, Any]] = []
        seen: dict[int, object] = {}  # holds what it names, so that no id is given twice
        level: list[Any] = [*model.modules(), *others]
        for _ in range(DEEPEST):
            new = {id(thing): thing for one in level for thing in _places(one) if id(thing) not in seen}
            seen |= new
            level = []
            for thing in new.values():
                held = _read(thing, copies)
                self._kept.append((thing, held))
                level += _members(thing, held)

    def is_still(self, other: Contents) -> bool:
        """Whether what is held is the same; the flags of training and evaluation apart."""

        def bare(one: Any) -> Any:
            return {key: value for key, value in one.items() if key != "training"} if isinstance(one, dict) else one

        return len(self._kept) == len(other._kept) and all(
            a is b and _is_same(bare(before), bare(after))
            for (a, before), (b, after) in zip(self._kept, other._kept, strict=True)
        )

    def restore(self) -> bool:
        """Put all back as it was, and return whether anything was not."""
        changed = False
        for thing, before in self._kept:
            now = _read(thing, copies=False)
            if not _is_same(now, before):
                changed = True
                _write(thing, before, now)
        return changed


class _Numbers:
    """Those in a tensor or an array."""

    def __init__(self, version: object, copy: Any) -> None:
        self.version, self.copy = version, copy


def _places(value: Any) -> Iterator[Any]:
    """Yield that in which a value has what it holds."""
    if isinstance(value, (list, deque, set, dict, tuple, torch.Tensor, np.ndarray)):
        yield value
    elif isinstance(value, partial):
        yield from (*_places(value.func), value.args, value.keywords)
    elif isinstance(value, MethodType):
        yield from (*_places(value.__self__), *_places(value.__func__))
    elif isinstance(value, (staticmethod, classmethod)):
        yield from _places(value.__func__)
    elif isinstance(value, property):
        yield from _places(value.fget)
    elif isinstance(value, (FunctionType, type)):
        if not _is_of_library(value.__module__):
            yield value
    elif not isinstance(value, (ModuleType, BuiltinFunctionType)):
        if isinstance(own := getattr(value, "__dict__", None), dict):
            yield own
        if _slots(type(value)):
            yield value
        yield from _places(type(value))


def _read(thing: Any, copies: bool) -> Any:
    if isinstance(thing, torch.Tensor):
        version = None if thing.is_inference() else thing._version
        small = copies and thing.numel() <= LARGEST_COPY
        return _Numbers(version, thing.detach().clone() if small else None)
    if isinstance(thing, np.ndarray):
        copy = thing.copy() if thing.size <= LARGEST_COPY and not thing.dtype.hasobject else None
        return _Numbers(None if copy is None else copy.tobytes(), copy)
    if isinstance(thing, FunctionType):
        cells = {number: _content(cell) for number, cell in enumerate(thing.__closure__ or ())}
        around = {name: thing.__globals__[name] for name in _names(thing.__code__) if name in thing.__globals__}
        return {**cells, **around}
    if isinstance(thing, type):
        return dict(vars(thing))
    if isinstance(thing, (list, deque, set, dict)):
        return thing.copy()
    if isinstance(thing, tuple):
        return thing
    return {name: getattr(thing, name) for name in _slots(type(thing)) if hasattr(thing, name)}


def _write(thing: Any, before: Any, now: Any) -> None:
    """Put back what `_read` has read; `now` is what it reads now."""
    if isinstance(thing, torch.Tensor):
        if before.copy is not None:
            with torch.no_grad():
                thing.data.copy_(before.copy)
    elif isinstance(thing, np.ndarray):
        thing[...] = before.copy
    elif isinstance(thing, (set, dict)):
        thing.clear()
        thing.update(before)
    elif isinstance(thing, (list, deque)):
        thing.clear()
        thing.extend(before)
    else:
        for name in now.keys() | before.keys():
            if now.get(name) is not before.get(name):
                _put(thing, name, before)


def _put(thing: Any, name: Any, before: dict[Any, Any]) -> None:
    if isinstance(thing, FunctionType):
        if isinstance(name, int):
            assert thing.__closure__ is not None, "that is a place in it"
            thing.__closure__[name].cell_contents = before[name]
        elif name in before:
            thing.__globals__[name] = before[name]
    elif name in before:
        setattr(thing, name, before[name])
    else:
        delattr(thing, name)


def _members(thing: Any, held: Any) -> Iterable[Any]:
    """Return what is looked into next."""
    if isinstance(held, _Numbers) or len(held) > LARGEST_COLLECTION:
        return ()
    members = list(held.values() if isinstance(held, dict) else held)
    if isinstance(thing, FunctionType):
        members = [one for one in members if isinstance(one, PLAIN) or not _is_of_library(type(one).__module__)]
        members += [thing.__defaults__, thing.__kwdefaults__]
    return members


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, _Numbers):
        return bool(one.version == other.version)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(one[key] is other[key] for key in one)
    if isinstance(one, set):
        return bool(one == other)
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # there is nothing in it yet
        return None


def _slots(kind: type) -> tuple[str, ...]:
    """Return the slots of the user's classes among `kind` and those that it is made of."""
    own = [vars(one).get("__slots__", ()) for one in kind.__mro__ if not _is_of_library(one.__module__)]
    return tuple(name for some in own for name in ([some] if isinstance(some, str) else some) if name[:2] != "__")


@functools.cache
def _names(code: CodeType) -> frozenset[str]:
    """Return the names that a function, and those inside of it, have from outside or look up in objects."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(code.co_names).union(*map(_names, inner))


@functools.cache
def _is_of_library(name: str | None) -> bool:
    """Whether a module is lrsearch's, Python's or an installed one, none of which a training step changes."""
    top = (name or "").partition(".")[0]
    file = getattr(sys.modules.get(name or ""), "__file__", None) or ""
    return (
        top in ("", "lrsearch")
        or top in sys.stdlib_module_names - {"__main__"}
        or any(library in file for library in LIBRARIES)
    )
