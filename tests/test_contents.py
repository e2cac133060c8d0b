"""What a step, or a look at one, changes of what the user's objects hold, and how it is put back."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lrsearch import contents
from lrsearch.contents import Contents

STEPS = 0


@dataclass(frozen=True, slots=True)
class Frozen:
    steps: int = 0


class Private:
    __slots__ = ("__steps",)

    def __init__(self) -> None:
        self.__steps = 0

    def step(self) -> None:
        self.__steps += 1


class Holding(nn.Module):
    """Holds one thing."""

    shared = 0

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held
        self.register_buffer("buffer", torch.zeros(2))


class Sized(OrderedDict[str, int]):
    def __init__(self, size: int, name: str) -> None:
        super().__init__()
        self.size = size


def counting() -> Callable[[], int]:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return steps

    return count


def globally() -> None:
    global STEPS
    STEPS += 1


def set_item(holding: Holding, key: Any, value: Any) -> None:
    holding.held[key] = value


class Answering(dict[str, Any]):
    """Has something for every key, another thing each time."""

    def get(self, key: str, default: object = None) -> Any:
        return self.setdefault(key, object()) and object()


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Holding], object], Callable[[Holding], Any]]] = {
    "list": (lambda: [1], lambda one: one.held.append(2), lambda one: one.held),
    "deque": (lambda: deque([1], maxlen=1), lambda one: one.held.append(2), lambda one: list(one.held)),
    "Counter": (Counter, lambda one: one.held.update("a"), lambda one: dict(one.held)),
    "set": (lambda: {1}, lambda one: one.held.add(2), lambda one: one.held),
    "dictionary of its own kind": (
        lambda: Sized(3, "name"),
        lambda one: one.held.update(a=1),
        lambda one: (dict(one.held), one.held.size),
    ),
    "attribute of a list in an object": (
        lambda: SimpleNamespace(inner=[SimpleNamespace(steps=0)]),
        lambda one: setattr(one.held.inner[0], "steps", 1),
        lambda one: one.held.inner[0].steps,
    ),
    "frozen slots": (
        Frozen,
        lambda one: object.__setattr__(one.held, "steps", 1),
        lambda one: one.held.steps,
    ),
    "private slots": (Private, lambda one: one.held.step(), lambda one: one.held._Private__steps),
    "function": (counting, lambda one: one.held(), lambda one: one.held.__closure__[0].cell_contents),
    "function in part": (
        lambda: partial(counting()),
        lambda one: one.held(),
        lambda one: one.held.func.__closure__[0].cell_contents,
    ),
    "global": (lambda: globally, lambda one: one.held(), lambda one: STEPS),
    "class": (lambda: None, lambda one: setattr(Holding, "shared", 1), lambda one: Holding.shared),
    "array": (lambda: np.ones(3), lambda one: set_item(one, 0, 5), lambda one: one.held.tolist()),
    "tensor": (lambda: torch.ones(3), lambda one: one.held.mul_(2), lambda one: one.held.tolist()),
    "data of a tensor": (lambda: torch.ones(3), lambda one: one.held.data.mul_(2), lambda one: one.held.tolist()),
    "no number": (
        lambda: torch.full((2,), torch.nan),
        lambda one: one.held.fill_(1),
        lambda one: str(one.held.tolist()),
    ),
    "buffer": (lambda: None, lambda one: one.buffer.add_(1), lambda one: one.buffer.tolist()),  # type: ignore[operator]
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_seen_and_put_back(kind: str) -> None:
    make, change, read = CHANGES[kind]
    holding = Holding(make())
    before, as_it_was = Contents(holding, copies=True), str(read(holding))
    assert not Contents(holding, copies=True).restore()
    assert before.is_still()
    change(holding)
    assert str(read(holding)) != as_it_was
    assert not before.is_still()
    assert before.restore()
    assert str(read(holding)) == as_it_was


def generator() -> Iterator[int]:
    for number in range(5):  # noqa: UP028
        yield number


def test_what_is_asked_for_in_a_dictionary_of_its_own_kind_is_no_change() -> None:
    holding = Holding(Answering(a=1))
    before = Contents(holding)
    assert before.is_still()
    assert holding.held == {"a": 1}


@pytest.mark.parametrize("make", [itertools.count, generator], ids=["count", "generator"])
def test_an_iterator_that_has_moved_on_is_told(make: Callable[[], Iterator[int]]) -> None:
    holding = Holding(make())
    next(holding.held)
    before = Contents(holding)
    assert not before.restore()
    next(holding.held)
    assert before.restore()
    assert before.has_moved_on


def test_what_waits_in_a_queue_goes_on_waiting() -> None:
    orders: queue.Queue[int] = queue.Queue()
    answers: queue.Queue[int] = queue.Queue()

    def work() -> None:
        while (order := orders.get()) >= 0:
            answers.put(order + 1)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    holding = Holding((orders, answers))
    before = Contents(holding, copies=True)
    for number in range(3):
        orders.put(number)
        assert answers.get(timeout=60) == number + 1
        before.restore()
    orders.put(-1)
    worker.join(timeout=60)
    assert not worker.is_alive()


class Stubborn(dict[str, int]):
    def clear(self) -> None:
        raise TypeError("never emptied")


def test_what_cannot_be_put_back_hinders_nothing_else() -> None:
    expanded = torch.zeros(1).expand(4)
    holding = Holding([Stubborn(), expanded, [1]])
    before = Contents(holding, copies=True)
    holding.held[0]["a"] = 1
    expanded.data[0].add_(1)
    holding.held[2].append(2)
    assert before.restore()
    assert holding.held[2] == [1]


def test_copies_are_kept_of_so_many_numbers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MOST_NUMBERS", 10)
    holding = Holding([np.zeros(8), np.zeros(8), torch.zeros(8)])
    before = Contents(holding, copies=True)
    for one in holding.held:
        one += 1
    assert before.restore()
    assert [float(one.sum()) for one in holding.held] == [0.0, 8.0, 8.0]
