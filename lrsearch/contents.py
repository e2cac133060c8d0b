"""What the user's model, loss and data hold: has a step, or looking at one, changed it, and how was it before?"""

from __future__ import annotations

import functools
import itertools
import operator
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, GeneratorType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

DEEPEST = 5
"""Levels that are looked at: a list in an object in a dictionary of the module."""
LARGEST_COLLECTION = 1_000
"""Into longer ones is not looked: those are data."""
MOST_THINGS = 50_000
"""So many are looked at."""
MOST_NUMBERS = 2**20
"""So many of arrays, and of tensors, are copied together; changes in further arrays are not seen."""
LIBRARIES = ("site-packages", "dist-packages")
ATOMS = frozenset((bool, int, float, complex, str, bytes, type(None)))
PLAIN = (list, deque, set, dict, tuple, torch.Tensor, np.ndarray, nn.Module, FunctionType, type, SimpleNamespace)
"""What a function has from around it is looked into where it is one of these or of the user's own classes. What is of
neither, such as a queue, is never put back: it may wait for somebody."""


class Contents:
    """What a model's modules and `others` hold, and what these things hold in turn.

    That is: members of lists, sets and dictionaries, attributes, also those of the user's own classes and modules, what
    functions have from around them, and which tensors and arrays have other numbers. With `copies` tensors, too, can be
    restored.
    """

    def __init__(self, model: nn.Module, *others: object, copies: bool = False) -> None:
        self._kept: list[tuple[Any, Any]] = []
        self._foreign: set[int] = set()
        """What objects of a library's classes hold."""
        self.has_moved_on = False
        """Whether `restore` has found an iterator that has moved on, which cannot be put back."""
        seen: dict[int, object] = {}  # holds what it names, so that no id is given twice
        level: list[tuple[Any, bool]] = [(one, False) for one in (*model.modules(), *others)]
        left = MOST_NUMBERS
        for _ in range(DEEPEST):
            members: list[tuple[Any, bool]] = []
            for one, held_by_foreign in level:
                for thing, owner in _places(one) if len(seen) < MOST_THINGS else ():
                    foreign = held_by_foreign or not (isinstance(owner, PLAIN) or _is_users(type(owner)))
                    if id(thing) not in seen:
                        seen[id(thing)] = thing
                        held = _read(thing, left if copies or isinstance(thing, np.ndarray) else 0)
                        left -= _count(held)
                        self._kept.append((thing, held))
                        if foreign:
                            self._foreign.add(id(thing))
                        members += [(member, foreign) for member in _members(thing, held)]
            level = members

    def is_still(self) -> bool:
        """Whether what is held now is the same; the flags of training and evaluation apart.

        What is held newly is held by something that held less, so that nothing need be walked again.
        """

        def bare(one: Any) -> Any:
            return {key: value for key, value in one.items() if key != "training"} if isinstance(one, dict) else one

        def is_still(thing: Any, before: Any) -> bool:
            if type(thing) not in (dict, OrderedDict):  # others may answer as they like
                return _is_same(bare(before), bare(_read(thing, _count(before))))
            if not (thing and before):  # as most of what a model holds
                return not (thing or before)
            if thing.keys() != before.keys():
                return False
            others = sum(map(operator.is_not, map(thing.get, before), before.values()))
            return others == (thing.get("training") is not before.get("training"))

        return all(is_still(thing, before) for thing, before in self._kept)

    def restore(self) -> bool:
        """Put all back as it was, as far as that goes, and return whether anything was not."""
        changed = False
        for thing, before in self._kept:
            now = _read(thing, _count(before))
            if not _is_same(now, before):
                changed = True
                self.has_moved_on |= isinstance(before, _Position)
                if id(thing) not in self._foreign:
                    with suppress(Exception):  # what does not let itself be put back
                        _write(thing, before, now)
        return changed


class _Numbers(NamedTuple):
    """Those in a tensor or an array."""

    version: object
    copy: Any


class _Position(NamedTuple):
    """Where an iterator is."""

    at: object


ITERATORS = (GeneratorType, itertools.count)


def _count(held: Any) -> int:
    """Return how many numbers were copied."""
    return int(np.prod(held.copy.shape)) if isinstance(held, _Numbers) and held.copy is not None else 0


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield that in which a value has what it holds, and whose it is."""
    if isinstance(value, (list, deque, set, dict, tuple, torch.Tensor, np.ndarray, *ITERATORS)):
        yield value, value
        if _is_users(type(value)) and isinstance(own := getattr(value, "__dict__", None), dict):
            yield own, value
    elif isinstance(value, partial):
        yield from (*_places(value.func), *_places(value.args), *_places(value.keywords))
    elif isinstance(value, MethodType):
        yield from (*_places(value.__self__), *_places(value.__func__))
    elif isinstance(value, (staticmethod, classmethod)):
        yield from _places(value.__func__)
    elif isinstance(value, property):
        yield from _places(value.fget)
    elif isinstance(value, (FunctionType, type)):
        if _is_users(value):
            yield value, value
    elif not isinstance(value, (ModuleType, BuiltinFunctionType)):
        if isinstance(own := getattr(value, "__dict__", None), dict):
            yield own, value
        if _slots(type(value)):
            yield value, value
        yield from _places(type(value))


def _read(thing: Any, most: int) -> Any:
    """Return what it holds now, with a copy of a tensor's or array's numbers if there are no more than `most`."""
    if isinstance(thing, torch.Tensor):
        version = None if thing.is_inference() else thing._version
        plain = thing.layout is torch.strided and not thing.is_quantized and thing.numel() <= most
        plain = plain and not torch._C._functorch.is_batchedtensor(thing)  # outside of vmap it is no tensor
        return _Numbers(version, thing.detach().clone() if plain and thing.numel() else None)
    if isinstance(thing, np.ndarray):
        return _Numbers(None, thing.copy() if 0 < thing.size <= most and not thing.dtype.hasobject else None)
    if isinstance(thing, GeneratorType):
        frame = thing.gi_frame
        return _Position(None if frame is None else (frame.f_lasti, {k: _said(v) for k, v in frame.f_locals.items()}))
    if isinstance(thing, itertools.count):
        return _Position(repr(thing))
    if isinstance(thing, FunctionType):
        return _around(thing)
    if isinstance(thing, (type, dict)):
        return dict(vars(thing) if isinstance(thing, type) else thing)
    if isinstance(thing, (list, deque, tuple)):
        return list(thing)
    if isinstance(thing, set):
        return set(thing)
    return {name: getattr(thing, name) for name in _slots(type(thing)) if hasattr(thing, name)}


def _said(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # it is the user's
        return ""


def _around(function: FunctionType) -> dict[Any, Any]:
    """Return what a function has from around it: by number, by name, or by the names of a module and in that."""
    held: dict[Any, Any] = {number: _content(cell) for number, cell in enumerate(function.__closure__ or ())}
    names, around = _names(function.__code__), function.__globals__
    for name in names:
        if name in around:
            held[name] = one = around[name]
            if isinstance(one, ModuleType) and not _is_of_library(one.__name__):
                held |= {(name, inner): vars(one)[inner] for inner in names if inner in vars(one)}
    return held


def _write(thing: Any, before: Any, now: Any) -> None:
    """Put back what `_read` has read; `now` is what it reads now."""
    if isinstance(thing, torch.Tensor):
        if before.copy is not None:
            with torch.no_grad():
                if thing.dtype is not before.copy.dtype:
                    thing.data = thing.data.to(before.copy.dtype)
                thing.data.copy_(before.copy)
    elif isinstance(thing, np.ndarray):
        thing[...] = before.copy
    elif isinstance(thing, (tuple, *ITERATORS)):
        pass  # it is what it was, or cannot be
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
            inside = vars(thing.__globals__[name[0]]) if isinstance(name, tuple) else thing.__globals__
            inside[name[1] if isinstance(name, tuple) else name] = before[name]
    elif isinstance(thing, type):
        setattr(thing, name, before[name]) if name in before else delattr(thing, name)
    elif name in before:
        object.__setattr__(thing, name, before[name])  # a frozen one, too
    else:
        object.__delattr__(thing, name)


def _members(thing: Any, held: Any) -> Iterable[Any]:
    """Return what is looked into next."""
    if isinstance(held, (_Numbers, _Position)) or len(held) > LARGEST_COLLECTION:
        return ()
    members = [one for one in (held.values() if isinstance(held, dict) else held) if type(one) not in ATOMS]
    if isinstance(thing, FunctionType):
        members = [one for one in members if isinstance(one, PLAIN) or _is_users(type(one))]
        members += [thing.__defaults__, thing.__kwdefaults__]
    return members


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, _Numbers):
        return bool(one.version == other.version) and is_equal(one.copy, other.copy)
    if isinstance(one, _Position):
        return bool(one == other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(one[key] is other[key] for key in one)
    if isinstance(one, set):
        return bool(one == other)
    return len(one) == len(other) and all(map(operator.is_, one, other))


def is_equal(one: Any, other: Any) -> bool:
    """Whether two copies hold the same, also where that is no number; True where there is none to compare."""
    if one is None or other is None:
        return True
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and bool(((one == other) | ((one != one) & (other != other))).all())
    )


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # there is nothing in it yet
        return None


def _slots(kind: type) -> tuple[str, ...]:
    """Return the slots of the user's classes among `kind` and those that it is made of."""
    own = [(one, vars(one).get("__slots__", ())) for one in kind.__mro__ if _is_users(one)]
    named = [(one, name) for one, some in own for name in ([some] if isinstance(some, str) else some)]
    return tuple(
        f"_{one.__name__.lstrip('_')}{name}" if name.startswith("__") else name
        for one, name in named
        if not name.endswith("__")
    )


@functools.cache
def _names(code: CodeType) -> frozenset[str]:
    """Return the names that a function, and those inside of it, have from outside or look up in objects."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(code.co_names).union(*map(_names, inner))


def _is_users(one: Any) -> bool:
    """Whether a class or function is the user's own."""
    return not _is_of_library(one.__module__)


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
