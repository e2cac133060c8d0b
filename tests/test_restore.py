from __future__ import annotations

import copy
import random
import weakref
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Sampler, TensorDataset

from lrsearch import untouched
from lrsearch.errors import UsageError
from lrsearch.restore import LARGEST_COLLECTION, find, find_among, find_generators
from tests.fingerprint import fingerprint


class Net(nn.Module):
    """Tied weights, batch norm, dropout, a buffer that is replaced, one that is expanded, and plain attributes."""

    replaced: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.register_buffer("replaced", torch.zeros(1), persistent=False)
        self.register_buffer("expanded", torch.arange(3.0).expand(4, 3))
        self.calls = 0
        self.seen: list[torch.Tensor] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.replaced = self.replaced + 1
        hidden = self.drop(self.norm(self.frozen(self.first(inputs))))
        self.seen.append(hidden.detach())
        result: torch.Tensor = self.last(hidden)
        return result


def trained(make: str = "adam", steps: int = 3) -> tuple[Net, torch.optim.Optimizer, torch.amp.GradScaler]:
    """Return a model that has trained a little: its optimizer has state, some gradients are None, others are not."""
    torch.manual_seed(0)
    model = Net()
    groups: list[dict[str, Any]] = [{"params": model.first.parameters()}, {"params": [model.last.bias], "lr": 0.01}]
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(groups, lr=0.1) if make == "adam" else torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    )
    scaler = torch.amp.GradScaler("cpu", growth_interval=2)
    for _ in range(steps):
        train_step(model, optimizer, scaler)
    model.norm.eval()
    model.last.bias.grad = None
    return model, optimizer, scaler


def train_step(model: Net, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    optimizer.zero_grad()
    loss: torch.Tensor = model(torch.randn(8, 6)).square().mean()
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch: backward is untyped
    scaler.step(optimizer)
    scaler.update()


def set_scale(scaler: torch.amp.GradScaler) -> None:
    scaler.scale(torch.ones(1))
    scaler.update(1024.0)


def replace_parameter(model: Net) -> None:
    model.first.bias = nn.Parameter(torch.ones(6))


def set_plain_attribute(model: Net) -> None:
    model.invented = torch.ones(2)


def add_one(tensors: Any) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(1)


Vandal = Callable[[Net, torch.optim.Optimizer, torch.amp.GradScaler], object]
VANDALS: dict[str, Vandal] = {
    "trains": train_step,
    "writes into parameters": lambda model, optimizer, scaler: add_one(model.parameters()),
    "writes NaN": lambda model, optimizer, scaler: model.first.weight.data.fill_(torch.nan),
    "writes into batch norm": lambda model, optimizer, scaler: add_one([model.norm.running_mean]),
    "zeroes gradients in place": lambda model, optimizer, scaler: optimizer.zero_grad(set_to_none=False),
    "drops gradients": lambda model, optimizer, scaler: model.zero_grad(set_to_none=True),
    "replaces a parameter": lambda model, optimizer, scaler: replace_parameter(model),
    "adds a buffer": lambda model, optimizer, scaler: model.norm.register_buffer("new", torch.ones(1)),
    "adds an attribute": lambda model, optimizer, scaler: set_plain_attribute(model),
    "changes modes": lambda model, optimizer, scaler: model.train(not model.training),
    "thaws": lambda model, optimizer, scaler: model.frozen.requires_grad_(True),
    "freezes": lambda model, optimizer, scaler: model.first.requires_grad_(False),
    "empties the optimizer": lambda model, optimizer, scaler: optimizer.state.clear(),
    "moves the rate": lambda model, optimizer, scaler: optimizer.param_groups[0].update(lr=9.0, extra="key"),
    "adds a group": lambda model, optimizer, scaler: optimizer.add_param_group(
        {"params": [nn.Parameter(torch.ones(1))]}
    ),
    "writes into the state": lambda model, optimizer, scaler: add_one(
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ),
    "sets the scale": lambda model, optimizer, scaler: set_scale(scaler),
    "draws": lambda model, optimizer, scaler: (torch.rand(3), np.random.rand(3), random.random()),
    "seeds": lambda model, optimizer, scaler: (torch.manual_seed(9), np.random.seed(9), random.seed(9)),
}


@given(
    names=st.lists(st.sampled_from(sorted(VANDALS)), max_size=8),
    make=st.sampled_from(["adam", "sgd"]),
    steps=st.integers(0, 3),
    ending=st.sampled_from([None, ValueError, KeyboardInterrupt, SystemExit]),
)
@settings(max_examples=60, deadline=None)
def test_nothing_that_is_done_inside_outlives_the_block(
    names: list[str], make: str, steps: int, ending: type[BaseException] | None
) -> None:
    model, optimizer, scaler = trained(make, steps)
    before = fingerprint(model, optimizer, scaler)
    calls, seen = model.calls, list(model.seen)
    with suppress(Exception, KeyboardInterrupt, SystemExit), untouched(model, optimizer, scaler=scaler):
        for name in names:
            VANDALS[name](model, optimizer, scaler)
        if ending is not None:
            raise ending()
    assert fingerprint(model, optimizer, scaler) == before
    assert model.calls == calls
    assert [id(kept) for kept in model.seen] == [id(kept) for kept in seen]


def test_what_a_model_counts_in_collections_and_arrays_is_put_back() -> None:
    held: dict[str, Any] = {
        "counts": Counter(a=1),
        "seen": {1, 2},
        "last": deque([1, 2], maxlen=3),
        "usage": np.arange(3.0),
        "fixed": np.zeros(2),
    }
    held["fixed"].flags.writeable = False
    model = nn.Linear(2, 2)
    vars(model).update(held)
    before = copy.deepcopy(held)
    with untouched(model):
        held["counts"].update("ab")
        held["seen"].add(3)
        held["last"].extend([3, 4])
        held["usage"] += 1
    assert all(getattr(model, name) is one for name, one in held.items())
    assert {**held, "usage": held["usage"].tolist(), "fixed": 0} == {**before, "usage": [0.0, 1.0, 2.0], "fixed": 0}


@pytest.mark.parametrize("name", sorted(VANDALS))
def test_the_fingerprint_sees_each_kind_of_damage(name: str) -> None:
    """Otherwise the test above could not fail."""
    model, optimizer, scaler = trained()
    before = fingerprint(model, optimizer, scaler)
    VANDALS[name](model, optimizer, scaler)
    assert fingerprint(model, optimizer, scaler) != before


def test_a_scaler_that_was_never_used_is_fresh_again() -> None:
    model, optimizer, scaler = trained(steps=0)
    with untouched(model, optimizer, scaler=scaler):
        train_step(model, optimizer, scaler)
    assert scaler._scale is None
    assert not scaler._per_optimizer_states


def test_what_ends_the_block_comes_through() -> None:
    with pytest.raises(KeyboardInterrupt), untouched(nn.Linear(1, 1)):
        raise KeyboardInterrupt


def test_copies_can_lie_elsewhere() -> None:
    model, optimizer, scaler = trained()
    before = fingerprint(model, optimizer, scaler)
    with untouched(model, optimizer, scaler=scaler, keep_copies_on="cpu"):
        train_step(model, optimizer, scaler)
    assert fingerprint(model, optimizer, scaler) == before


def test_a_tensor_made_in_inference_mode_and_kept_by_the_model_is_no_obstacle() -> None:
    model, optimizer, scaler = trained()
    with torch.inference_mode():
        model.cache = torch.ones(2)
    with untouched(model, optimizer, scaler=scaler):
        train_step(model, optimizer, scaler)
        with torch.inference_mode():
            model.cache.add_(1)
    assert model.cache.tolist() == [1, 1]


def test_an_optimizer_inside_an_optimizer_is_put_back_too() -> None:
    """As in SAM: the outer one shares the groups, the inner one holds the state."""

    class Outer(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {"lr": 0.1})
            self.inner = torch.optim.Adam(self.param_groups)

        def step(self, closure: Any = None) -> Any:
            return self.inner.step()

    model = Net()
    optimizer = Outer([model.first.weight])
    with untouched(model, optimizer):
        model(torch.randn(4, 6)).sum().backward()
        optimizer.step()
        assert optimizer.inner.state
    assert not optimizer.inner.state


def test_a_lazy_model_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match="pass one batch through it"), untouched(nn.LazyLinear(3)):
        pass


class Counting(Sampler[int]):
    """A sampler that goes another way in each epoch, with chance of its own."""

    def __init__(self) -> None:
        self.epoch = 0
        self.rng = np.random.default_rng(3)

    def __iter__(self) -> Any:
        self.epoch += 1
        return iter(self.rng.permutation(8).tolist())

    def __len__(self) -> int:
        return 8


class Noisy(TensorDataset):
    """A data set whose transform draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__(torch.arange(8.0))
        self.transforms: list[Any] = [
            {"jitter": random.Random(4)},
            torch.Generator().manual_seed(5),
            np.random.RandomState(6),
        ]

    def __getitem__(self, index: int) -> Any:
        jitter, noise, more = self.transforms
        return self.tensors[0][index] + torch.rand((), generator=noise) + jitter["jitter"].random() + more.rand()


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Noisy(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(1)),
        lambda: DataLoader(Noisy(), batch_size=2, sampler=Counting()),
        lambda: DataLoader(
            Noisy(), batch_size=2, sampler=RandomSampler(range(8), generator=torch.Generator().manual_seed(2))
        ),
    ],
    ids=["own generator", "own sampler", "sampler with generator"],
)
def test_a_loader_gives_the_same_batches_as_if_it_had_not_been_used(make: Callable[[], DataLoader[Any]]) -> None:
    fresh, used = make(), make()
    torch.manual_seed(0)
    expected = torch.cat(list(fresh))
    torch.manual_seed(0)
    with untouched(nn.Linear(1, 1), generators=[used]):
        for _ in range(2):
            list(used)
    assert torch.equal(torch.cat(list(used)), expected)
    assert getattr(used.sampler, "epoch", 1) == 1


def test_generators_are_found_where_they_are_and_data_are_not_searched() -> None:
    loader = DataLoader(Noisy(), sampler=Counting(), generator=torch.Generator())
    assert len(find_generators(loader)) == 5
    assert find_generators([object()] * 5000 + [random.Random()]) == []
    assert find_generators(random) == []
    assert len(find_generators(random.Random(1))) == 1
    around = torch.Generator()
    assert len(find_generators({"collate": partial(lambda rows, also: around, also=random.Random(1))})) == 2
    gone = weakref.proxy(partial(print))
    assert find_generators([lambda: gone, gone, around]) == [around], "what cannot be looked at is no error"
    circle: list[Any] = [torch.Generator()]
    circle.append(circle)
    assert len(find_generators(circle)) == 1


@pytest.mark.gpu
def test_on_a_gpu_dropout_half_precision_and_both_generators_are_put_back() -> None:
    model = Net().cuda()
    optimizer = torch.optim.Adam(model.parameters())
    scaler = torch.amp.GradScaler("cuda")

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = model(torch.randn(8, 6, device="cuda")).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return float(loss.detach())

    step()
    before = fingerprint(model, optimizer, scaler)
    for place in (None, "cpu"):
        with untouched(model, optimizer, scaler=scaler, keep_copies_on=place):
            for _ in range(5):
                step()
        assert fingerprint(model, optimizer, scaler) == before


def test_each_of_many_sources_is_looked_into_and_what_several_hold_is_found_once() -> None:
    """A single list that long is data."""
    sources: list[list[object]] = [[] for _ in range(LARGEST_COLLECTION + 1)]
    tensor = torch.zeros(1)
    sources[0], sources[-1] = [tensor], [{"again": tensor}]
    assert [id(one) for one in find_among(sources, torch.Tensor)] == [id(tensor)]
    assert find(sources, torch.Tensor) == []
