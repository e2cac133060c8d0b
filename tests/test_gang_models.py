"""Models as people write them: in a gang each trains and is evaluated as alone, or is refused; never otherwise."""

from __future__ import annotations

import gc
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap
from torch.nn.utils import parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence
from torch.overrides import _get_current_function_mode_stack

from lrsearch.errors import WorkloadError
from lrsearch.interfaces import Batch, Split
from lrsearch.rehearsal import Rehearsal
from lrsearch.stacked_run import CannotGangError, StackedRun
from lrsearch.stacking import SLOW_IN_VMAP, StackedModel
from lrsearch.training import Run, new_run
from lrsearch.trial import Choice, TrainingPlan
from tests.test_gang import SGD
from tests.test_gang_across_seeds import ADAMW, CPU, WithModel, farthest

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(weight_norm|jit.script).* is deprecated:FutureWarning",
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",  # torch 2.11's
    f"ignore:{SLOW_IN_VMAP}",
    "ignore:The PyTorch API of nested tensors:UserWarning",
)


class Net(nn.Module):
    """Two layers, with a place between and behind them for what a model may do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden)

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.behind(self.last(self.between(self.first(inputs.flatten(1)))))


class Cooling(Net):
    """Its temperature falls in each step, and evaluations use it."""

    temperature = 1.0

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.temperature *= 0.9
        return outputs / self.temperature


class Switching(Net):
    """Counts how often it was put into training."""

    rounds = 0

    def train(self, mode: bool = True) -> Switching:
        self.rounds += mode
        return super().train(mode)

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs * (1 + 0.1 * self.rounds)


class NumbersFirst(Net):
    """Its first parameter is a frozen table of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        table = nn.Parameter(torch.arange(16, dtype=torch.int8), requires_grad=False)
        self._parameters = {"table": table, **self._parameters}

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden + self.table * 0.01)  # type: ignore[operator]


class Transposed(Net):
    """Drops what does not lie in memory as it is counted."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.dropout(hidden.view(-1, 4, 4).transpose(1, 2), 0.5, self.training).flatten(1)


class Pooling(Net):
    """Pools rows of features, where images have rows of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, 1, 1)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.pool(hidden.view(-1, 4, 4)).flatten(1)  # type: ignore[no-any-return]


class DroppingInPlace(Net):
    """Uses what its dropout has been given once more."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5, inplace=True)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + 1
        return self.drop(hidden) + hidden  # type: ignore[no-any-return]


class Scaling(Net):
    """Has parameters of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.power = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(1.2))

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.relu(input=hidden).add(0.1).pow(self.power)

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs * self.scale


class Frozen(Net):
    """Trains its last layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)


class Boxed(Net):
    """Keeps the weights of its last layer within a box, in a loop over them."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for weight in self.last.parameters():
                weight.copy_(weight.clamp(-0.1, 0.1))
        return torch.relu(hidden)


class BoxedByData(Net):
    """Does so as older code does."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        self.last.weight.data.clamp_(-0.1, 0.1)
        return torch.relu(hidden) * (1 + 0.1 * hidden.data.sign())


class Collecting(Net):
    """Writes what it computes into tensors that it has made of numbers alone."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        found, total = torch.zeros(hidden.shape, dtype=hidden.dtype), torch.ones_like(hidden.new_zeros(16))
        for column in range(16):
            found[:, column] = torch.relu(hidden[:, column])
        total.index_add_(0, torch.arange(16), hidden.mean(0))
        found += total
        return F.dropout(found, 0.2, self.training)


class Hiding(Net):
    """Trains what it puts in the place of some of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.linspace(0, 1, 64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        shown = inputs.flatten(1).clone()
        shown[::3] = self.token
        return super().forward(shown)


class Following(Net):
    """Has a layer that follows another one slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Linear(64, 16).requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                for slow, fast in zip(self.slow.parameters(), self.first.parameters(), strict=True):
                    slow.mul_(0.9).add_(fast, alpha=0.1)
        hidden = inputs.flatten(1)
        return self.last(torch.relu(self.first(hidden) + self.slow(hidden)))  # type: ignore[no-any-return]


class Limited(Net):
    """Divides by the size of a weight, which it finds among its parameters."""

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        sizes = [weight.detach().norm() for name, weight in self.named_parameters() if name == "last.weight"]
        return outputs / torch.stack(sizes).prod()


class TensorCooling(Net):
    """Its temperature is a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = torch.tensor(1.0, dtype=torch.float64)

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.temperature.mul_(0.9)
        return outputs / self.temperature


class ArrayCooling(Net):
    """Its temperature is an array."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = np.ones(1)

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.temperature *= 0.9
        return outputs / float(self.temperature[0])


class _Slotted:
    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps = 0


class SlotCounting(Net):
    """Counts its steps in a slot, and later computes otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.counter: Any = _Slotted()

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        self.counter.steps += self.training
        return outputs if self.counter.steps <= 12 else 2 * outputs


class ClosureCounting(Net):
    """Counts its steps in a function."""

    def __init__(self) -> None:
        super().__init__()
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return steps

        self.count = count

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return 2 * outputs if self.training and self.count() > 12 else outputs


class DroppingExpanded(Net):
    """Drops of what is the same for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(0.1 * torch.ones(1, 16))

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        places = F.dropout(self.place.unsqueeze(0).expand(len(hidden[:, 0]), 4, -1), 0.5, self.training)
        return torch.relu(hidden + places.mean(1))


class RectifyingReshaped(Net):
    """Changes in place what it has reshaped, and uses what that was made of no more."""

    def __init__(self) -> None:
        super().__init__()
        self.rectify = nn.ReLU(inplace=True)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.rectify(hidden.view(-1, 4, 4)).flatten(1)  # type: ignore[no-any-return]


class _Listed(list[int]):
    """A list with something of its own."""

    steps = 0


class ListCounting(SlotCounting):
    """Counts its steps in an attribute of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.counter: Any = _Listed()


class DataCooling(TensorCooling):
    """Its temperature is a tensor whose changes torch does not count."""

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.temperature.data.mul_(0.9)
        return outputs / self.temperature


class Accumulating(Net):
    """Adds to what is the same for all members."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.ones(64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flat = inputs.flatten(1).clone()
        flat -= self.place
        outputs = torch.zeros_like(flat[:, :10])
        outputs += super().forward(flat)
        return outputs


class AddingInPlace(Net):
    """Adds to what has another name, too."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv2d(1, 2, 3, padding=1)
        self.factor = nn.Parameter(torch.ones(2, 4, 4))

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        filtered = kept = self.filter(hidden.view(-1, 1, 4, 4))
        filtered += self.factor
        filtered *= 2
        first, second = filtered[:, 0], filtered[:, 1]
        first -= 0.5
        return (torch.relu(filtered).mean(1) + kept.sum(1) + second).flatten(1)  # type: ignore[no-any-return]


class AddingToAShape(Net):
    """Computes with numbers in place."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        sides = hidden.shape[1]
        sides //= 4
        return torch.relu(hidden.view(-1, sides, 4)).flatten(1)


class Filling(Net):
    """Fills a tensor with noise that lies otherwise than in rows."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        noise = hidden.detach().t().clone().normal_() if self.training else torch.zeros(())
        return torch.relu(hidden + 0.1 * noise.t())


class AddingToItself(Net):
    """Adds in place to what a layer passes on as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.drop = nn.Identity(), nn.Dropout(0.1)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        other, dropped = self.same(hidden), self.drop(hidden)
        other += 0.1
        dropped += 0.1  # in an evaluation that is `hidden`, too
        return torch.sin(hidden + other + dropped)


class FreezingAlways(Net):
    """Keeps a part as it is, whenever it is put into training."""

    def __init__(self) -> None:
        super().__init__()
        self.train()

    def train(self, mode: bool = True) -> FreezingAlways:
        super().train(mode)
        for parameter in self.first.parameters():
            parameter.requires_grad = False
        return self


class SpareHead(Net):
    """Has weights that take no part."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Sequential(nn.Linear(16, 3), nn.BatchNorm1d(3))

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        self.spare(torch.ones(2, 16, dtype=outputs.dtype))
        return outputs


class Joining(Net):
    """Has weights that take part in some steps only."""

    joins = staticmethod(lambda steps: steps > 4)

    def __init__(self) -> None:
        super().__init__()
        self.further, self.steps = nn.Linear(16, 16), 0

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        hidden = torch.relu(hidden)
        return hidden + self.further(hidden) if self.joins(self.steps) else hidden


class Leaving(Joining):
    """The other way round."""

    joins = staticmethod(lambda steps: steps <= 4)


class Averaging(Net):
    """Averages the statistics of all its batches alike."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.image_norm = nn.BatchNorm1d(16, momentum=None), nn.BatchNorm2d(1, momentum=None, affine=False)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.image_norm(self.norm(hidden).view(-1, 1, 4, 4))).flatten(1)


class Gating(Net):
    """Draws gates that open as often as a layer says, which nothing teaches."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 16)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        odds = torch.sigmoid(self.gate(hidden))
        turned = odds.t() * 0.5
        drawn = torch.bernoulli(odds) + turned.bernoulli().t() if self.training else odds
        return torch.relu(hidden * drawn)


class Choosing(Net):
    """Draws features by what they are."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        odds = hidden.softmax(1)
        if self.training:
            hidden = hidden.gather(1, torch.multinomial(odds, 16)) + hidden.gather(1, odds.multinomial(1))
            hidden = hidden + hidden.gather(0, torch.multinomial(input=odds.t(), num_samples=1).t())
        return torch.relu(hidden)


class Reading(Net):
    """Reads its features in steps, and drops of what it hands on."""

    kind: Callable[..., nn.RNNBase] = nn.GRU

    def __init__(self) -> None:
        super().__init__()
        self.layers = self.kind(4, 8, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.layers(hidden.view(-1, 4, 4))[0], 0.2, self.training).mean(1)


class ReadingLong(Reading):
    kind = nn.LSTM


class ReadingBranching(Reading):
    """The same where torch.fx cannot follow."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().between(hidden if len(hidden) else hidden + 1)


class Stepping(Net):
    """Goes through steps itself, as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.long = nn.GRUCell(4, 16), nn.LSTMCell(16, 16)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        first, second = None, None
        for step in range(hidden.shape[1] // 4):
            first = self.cell(hidden[:, 4 * step : 4 * step + 4], first)
            second = self.long(first, second)
        assert second is not None
        return second[0]  # type: ignore[no-any-return]


class Naming(Net):
    """Calls its layers by the names of what they take."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.attention = nn.LayerNorm(16), nn.Dropout(0.2), nn.MultiheadAttention(16, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.drop(input=self.norm(input=self.first(input=inputs.flatten(1)))).unsqueeze(0)
        attended, _ = self.attention(query=hidden, key=hidden, value=hidden, need_weights=False)
        return self.last(input=attended[0])  # type: ignore[no-any-return]


class Twice(Net):
    """Has a part that goes by two names, and an average of its own in it."""

    def __init__(self) -> None:
        super().__init__()
        part = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
        self.parts = nn.Sequential(part, nn.ReLU(), part)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.parts(hidden)  # type: ignore[no-any-return]


class Normed(Net):
    """Computes a weight before each call, by the older of torch's ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.weight_norm(self.first)


class Pruned(Net):
    def __init__(self) -> None:
        super().__init__()
        prune.random_unstructured(self.first, "weight", amount=0.3)  # type: ignore[no-untyped-call]


class SpectrallyNormed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.spectral_norm(self.first)
        nn.utils.parametrizations.spectral_norm(self.last)


class FeedingBack(Net):
    """Looks up what it has chosen itself, of which the padding is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(5, 16))

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden + F.embedding(hidden[:, :5].argmax(1), self.words, -4))


class NormingParts(Net):
    """Norms parts of its features by vmap, all with the same factors."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.ones(4))

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        def norm(part: torch.Tensor) -> torch.Tensor:
            return F.batch_norm(part, None, None, self.factors, training=True)

        return torch.relu(vmap(norm, in_dims=1, out_dims=1)(hidden.view(-1, 4, 4)).flatten(1))


class Calling(Net):
    """Is called in its own way."""

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().__call__(inputs - inputs.mean(0))  # type: ignore[no-any-return]


class Queueing(Net):
    """Has a queue with the place where it goes on, counts in a frozen weight, and begins with what it sees first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(24, 16))
        self.register_buffer("place", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("has_begun", torch.tensor(0))
        self.seen = nn.Parameter(torch.tensor(0.0), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(16))
        self.queue: torch.Tensor
        self.place: torch.Tensor
        self.has_begun: torch.Tensor

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1  # type: ignore[misc]  # torch: a parameter, in place
            place = int(self.place)
            with torch.no_grad():
                if not self.has_begun:
                    self.shift.copy_(-hidden.mean(0))
                    self.has_begun.fill_(1)
                self.queue[place : place + 8] = hidden[:8]
                self.place[0] = (place + 8) % 24
        factor = 1.0 if isinstance(self.last.weight, nn.Parameter) else 2.0
        return torch.relu(hidden + self.shift) * factor + self.queue.mean(0) / (1 + self.seen)


class Imaging(Net):
    """Computes with images in ways that are rare: as one without rows, channels last, as volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.drop = nn.Conv2d(4, 4, 3, padding=1), nn.AlphaDropout(0.2)
        self.norm = nn.BatchNorm3d(4, momentum=None)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        images = self.drop(self.convolution(hidden.view(-1, 4, 2, 2)))
        images = F.dropout(images.to(memory_format=torch.channels_last), 0.2, self.training)
        images = images.contiguous(memory_format=torch.channels_last) + self.convolution(images.mean(0))
        return self.norm(images.unsqueeze(2)).flatten(1)  # type: ignore[no-any-return]


class Seeding(Net):
    """Adds the same noise at each step, and leaves torch's generator where it was."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng([]):
            torch.manual_seed(5)
            noise = torch.randn(hidden.shape[1], dtype=torch.float64)
        return torch.relu(hidden) + noise.to(hidden)


@torch.fx.wrap
def _shifted(hidden: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """Write into the list, too, as torchvision's video Swin does."""
    steps[0] += hidden.shape[0]
    return hidden.roll(steps, [1])


class Shifting(Net):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return _shifted(torch.relu(hidden), [3])


class Masking(Net):
    """Takes of its features what a mask among its buffers says."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(4, 4).tril().bool())
        self.mask: torch.Tensor
        self.last = nn.Linear(10, 10)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.view(-1, 4, 4)[:, self.mask]


class MaskingBranching(Masking):
    """Does so where vmap has it as a whole, and writes there, too."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.view(-1, 4, 4).clone() if len(hidden) else hidden
        hidden[:, ~self.mask] = 0.5
        chosen = torch.zeros_like(hidden, dtype=torch.bool)
        chosen[:] = self.mask
        return super().between(hidden + hidden.transpose(1, 2) + chosen)


class Toggling(Net):
    """Looks at some rows without counting them in the statistics of its norm, as adversarial training does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.norm.eval()
            hidden = hidden + 0.1 * self.norm(hidden + 1)
            self.norm.train()
        return torch.relu(self.norm(hidden))


class Translating(Net):
    """Has a whole transformer of torch's, with rows that are padded."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(4, 2, 1, 1, 8, batch_first=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = self.first(inputs.flatten(1)).view(-1, 4, 4)
        padding = (inputs.flatten(1)[:, :4] > 99) | (torch.arange(4) > 2)
        return self.last(self.transformer(rows, rows, src_key_padding_mask=padding).flatten(1))  # type: ignore[no-any-return]


AGREE: tuple[type[Net], ...] = (
    *(Cooling, Switching, NumbersFirst, Transposed, Pooling, DroppingInPlace, Scaling, Frozen, Boxed, Following),
    *(BoxedByData, Collecting, Hiding, Toggling),
    *(Limited, TensorCooling, ArrayCooling, SlotCounting, ClosureCounting, DroppingExpanded, RectifyingReshaped),
    *(ListCounting, DataCooling, Accumulating, AddingInPlace, AddingToAShape),
    *(Filling, AddingToItself, FreezingAlways, SpareHead, Averaging, Gating, Choosing),
    *(Reading, ReadingLong, ReadingBranching, Stepping),
    *(Naming, Twice, Normed, Pruned, SpectrallyNormed, FeedingBack, NormingParts),
    *(Calling, Queueing, Shifting, Seeding),
)


BY_CHECK: tuple[type[Net], ...] = (Imaging, Translating, Masking, MaskingBranching)
"""What agrees, too, as far as the check before a study sees."""


class Hooking(Net):
    """Turns gradients round on their way."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: -0.5 * gradient)  # type: ignore[no-untyped-call]
        return torch.relu(hidden)


class _Annealing:
    """A schedule as an object that is called."""

    def __init__(self) -> None:
        self.value = 1.0

    def __call__(self) -> float:
        self.value *= 0.95
        return self.value


class Annealing(Net):
    """Asks an object for a number in each step, which is another each time."""

    def __init__(self) -> None:
        super().__init__()
        self.anneal = _Annealing()

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs * self.anneal()


COUNT = itertools.count(1)


class Counting(Net):
    """Asks something outside for a number in each step."""

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs * (1 + 0.1 * next(COUNT))


class Iterating(Net):
    """Asks an iterator of its own, and later computes otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = itertools.count(1)

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return 2 * outputs if self.training and next(self.steps) > 12 else outputs


class _Smoothed(nn.Module):
    """A parametrization with a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.register_buffer("mean", torch.zeros(16, 64))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * weight.detach()
        return weight - self.mean


class Remembering(Net):
    """Its first weight is seen through a parametrization with a memory."""

    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.first, "weight", _Smoothed())


class Writing(Net):
    """Writes into another view of what it has computed."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + 1
        hidden.view(-1).mul_(0.5)
        return hidden


class Rectifying(RectifyingReshaped):
    """Changes in place a part of what it has reshaped, and uses the whole once more."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + 0
        return self.rectify(hidden.view(-1, 4, 4)[:, :2]).repeat(1, 2, 1).flatten(1) + hidden  # type: ignore[no-any-return]


class Tied(Net):
    """Uses its first weight once more, which a list keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = [self.first.weight]

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden @ self.tied[0] @ self.tied[0].t() / 64 + hidden)


class Spectral(Net):
    """All that it trains is complex."""

    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.spectrum = nn.Parameter(torch.randn(9, dtype=torch.complex128))

    def _apply(self, function: Any, recurse: bool = True) -> Spectral:
        complex_ones = self._parameters.pop("spectrum")  # which torch would make real, with a warning
        super()._apply(function, recurse)  # type: ignore[no-untyped-call]
        self._parameters["spectrum"] = complex_ones
        return self

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        filtered: torch.Tensor = torch.fft.irfft(torch.fft.rfft(hidden) * self.spectrum)
        return filtered


class DroppingAcross(Net):
    """Draws for a tensor that does not lie in rows."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        kept: torch.Tensor = torch.native_dropout(torch.relu(hidden).t(), 0.5, True)[0]
        return kept.t()


class Mixed(Net):
    """Trains weights of two number types."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(16, dtype=torch.bfloat16))

    def _apply(self, function: Any, recurse: bool = True) -> Mixed:
        super()._apply(function, recurse)  # type: ignore[no-untyped-call]
        self.bias.data = self.bias.data.bfloat16()
        return self

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden + self.bias)


class AddingToACopy(Net):
    """Adds in place to what may be a copy, or the same."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        other = hidden.contiguous()
        other += 0.1
        return torch.sin(hidden + other)


class FreezingInside(Net):
    """Says in each step that a layer is not to be trained."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        self.first.bias.requires_grad = False
        return torch.relu(hidden)


class Sampling(Net):
    """Draws features with replacement, several of each row."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.gather(1, torch.multinomial(hidden.softmax(1), 16, replacement=True))


class Projecting(Net):
    """Has an LSTM whose states are narrower than its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(16, 20, proj_size=16, batch_first=True)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.layers(hidden.unsqueeze(1))[0][:, 0]  # type: ignore[no-any-return]


class NoisyWeights(Net):
    """Draws noise for each weight, which vmap sees lie otherwise."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        noisy = self.last.weight + 0.1 * torch.randn_like(self.last.weight)
        return hidden + noisy.mean() if hidden.shape[1] else hidden


class DroppingWeights(Net):
    """Drops weights, which changes nothing in the first steps: the check before a study does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.between_both = nn.Linear(16, 16)
        self.share = 0.0

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        dropped = F.linear(hidden, F.dropout(self.between_both.weight, 0.5, self.training))
        return torch.relu(hidden) + self.share * dropped


REFUSED: dict[type[Net], str] = {
    NoisyWeights: "draws chance",
    DroppingWeights: "draws chance",
    Writing: "writes into what it has reshaped",
    Rectifying: "writes into what it has reshaped",
    Tied: "a weight that something else holds",
    Mixed: "several number types",
    Spectral: "complex",
    DroppingAcross: "lies in memory",
    Hooking: "asks whether a tensor needs gradients",
    Counting: "something else at each call",
    Iterating: "asks an iterator",
    Remembering: "replaces its buffers",
    AddingToACopy: "writes into what it has reshaped",
    FreezingInside: "asks whether a tensor needs gradients",
    Sampling: "numbers that it has computed",
    Projecting: "an LSTM with proj_size",
}


def begun(
    build: Callable[[], nn.Module], seed: int = 3, optimizer: Choice = SGD, kind: type[WithModel] = WithModel
) -> Run:
    plan = TrainingPlan(epochs=1, optimizer=optimizer, device="cpu", gradient_clip_norm=1.0)
    return new_run(kind(seed, build, torch.float64), plan, CPU, seed)


RATES = (0.01, 0.03, 0.02)


def histories(
    build: Callable[[], nn.Module], optimizer: Choice = SGD, kind: type[WithModel] = WithModel
) -> tuple[StackedRun, list[Run], list[Any], list[Any]]:
    """Train three together, two of them to the end, and each alone; return evaluations, too."""
    single = []
    alone: list[Any] = []
    for row, rate in enumerate(RATES):
        run = begun(build, optimizer=optimizer, kind=kind)
        for rounds in range(3 if row != 1 else 2):
            for _ in range(8):
                run.step(rate)
            alone.append((rounds, row, run.evaluate("validation")))
        single.append(run)
    run = begun(build, optimizer=optimizer, kind=kind)
    stacked, rows = StackedRun([run] * 3, [optimizer.settings] * 3), [0, 1, 2]
    together: list[Any] = []
    for rounds in range(3):
        for _ in range(8):
            stacked.step(stacked.numbers([RATES[row] for row in rows]))
        found = stacked.evaluate("validation")
        together += [(rounds, row, one) for row, one in zip(rows, found, strict=True)]
        if rounds == 1:
            stacked.keep([0, 2])
            rows = [0, 2]
    return stacked, [single[0], single[2]], sorted(together), sorted(alone)


def assert_agree(together: list[Any], alone: list[Any]) -> None:
    assert len(together) == len(alone) == 8
    for (*place, found), (*expected_place, expected) in zip(together, alone, strict=True):
        assert place == expected_place
        assert found[0] == pytest.approx(expected[0], abs=1e-9)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=lambda one: one.name)
@pytest.mark.parametrize("build", [*AGREE, Annealing], ids=lambda one: one.__name__)
def test_each_member_trains_and_is_evaluated_as_alone(build: type[Net], optimizer: Choice) -> None:
    stacked, single, together, alone = histories(build, optimizer)
    assert farthest(stacked, single) <= 1e-9
    assert_agree(together, alone)
    splits: tuple[Split, ...] = ("validation", "test")
    for split in splits:  # with no step between
        for found, run in zip(stacked.evaluate(split), single, strict=True):
            assert found[0] == pytest.approx(run.evaluate(split)[0], abs=1e-9)


class WithNames(WithModel):
    """Gives its inputs a name."""

    def _cast(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for inputs, targets in super()._cast(batches):
            yield {"pixels": inputs}, targets


class ByName(Net):
    def forward(self, inputs: Any) -> torch.Tensor:
        return super().forward(inputs["mask"] if inputs.get("mask") is not None else inputs.pop("pixels"))


def test_a_model_that_takes_a_dictionary_trains_together() -> None:
    stacked, single, together, alone = histories(ByName, kind=WithNames)
    assert farthest(stacked, single) <= 1e-9
    assert_agree(together, alone)


class Found(NamedTuple):
    """What a model with a second head gives while it is trained, as torchvision's GoogLeNet does."""

    outputs: torch.Tensor
    others: torch.Tensor


class TwoHeaded(Net):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(64, 10)

    def forward(self, inputs: torch.Tensor) -> Any:
        outputs = super().forward(inputs)
        return Found(outputs, self.other(inputs.flatten(1))) if self.training else outputs


class OfBothHeads(WithModel):
    def loss(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        both = outputs if isinstance(outputs, Found) else [outputs]
        return torch.stack([F.cross_entropy(one, targets) for one in both]).sum()


def test_a_model_that_gives_a_named_tuple_trains_together() -> None:
    stacked, single, together, alone = histories(TwoHeaded, kind=OfBothHeads)
    assert farthest(stacked, single) <= 1e-9
    assert_agree(together, alone)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=lambda one: one.name)
def test_weights_that_take_no_part_have_no_state_in_a_checkpoint_as_alone(optimizer: Choice) -> None:
    stacked, (single, _), *_ = histories(SpareHead, optimizer)
    together, alone = stacked.state(0, [])["optimizer"], single.state()["optimizer"]
    assert together["state"].keys() == alone["state"].keys()
    assert len(alone["state"]) == 4


@pytest.mark.parametrize("build", [Joining, Leaving])
def test_weights_that_take_part_in_some_steps_only_end_the_gang(build: type[Net]) -> None:
    with pytest.raises(CannotGangError, match="in the loss of some steps only"):
        histories(build)


@pytest.mark.parametrize("build", REFUSED, ids=lambda one: one.__name__)
def test_what_would_be_otherwise_than_alone_is_refused_at_the_first_step(build: type[Net]) -> None:
    run, rates = begun(build), torch.tensor([0.01, 0.02], dtype=torch.float64)
    with pytest.raises((CannotGangError, ValueError), match=REFUSED[build]):  # when it is made, or steps first
        StackedRun([run] * 2, [SGD.settings] * 2).step(rates)


class Viewing(Net):
    """Looks at its weights by another way."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Any = self.view(self.first.weight.data)

    def view(self, weight: torch.Tensor) -> Any:
        return [weight[2:5].T]

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs + torch.as_tensor(self.seen[0]).sum()


class ViewingAsArray(Viewing):
    def view(self, weight: torch.Tensor) -> Any:
        return {0: weight.numpy()}


class ViewingAsBuffer(Viewing):
    def __init__(self) -> None:
        super().__init__()
        self.seen = None
        self.register_buffer("window", self.last.weight.data[:1])

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs + self.get_buffer("window").sum()


KNOWN = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


class BegunFromKnown(Net):
    """Takes what the whole program knows for its first weights, as embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.first.weight = nn.Parameter(KNOWN.T)
        self.recurrent, self.tied, self.ones = nn.LSTM(16, 16), [self.last.weight], torch.ones(1).expand(16)


class Interleaved(Net):
    """Has buffers that lie between each other, and one mask seen twice, none of which changes."""

    def __init__(self) -> None:
        super().__init__()
        cosine, sine = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).double().unbind(1)
        mask = torch.ones(4, 4).tril().double()
        for name, buffer in {"cosine": cosine, "sine": sine, "mask": mask, "seen": mask.view(1, 4, 4)}.items():
            self.register_buffer(name, buffer)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden * self.get_buffer("cosine") + self.get_buffer("sine")) * self.get_buffer("seen").mean()


class FrozenView(Net):
    def __init__(self) -> None:
        super().__init__()
        self.known = torch.randn(5, 16)
        self.table = nn.Embedding.from_pretrained(self.known)  # type: ignore[no-untyped-call]  # torch's


class ChangingView(Net):
    """Counts in a buffer what it reads by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3, dtype=torch.float64))
        self.seen = [self.get_buffer("count")[1:]]

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.get_buffer("count").add_(1.0)
        return outputs * (1 + 0.01 * self.seen[0].sum())


@pytest.mark.parametrize("build", [BegunFromKnown, Interleaved, FrozenView])
def test_memory_that_no_weight_shares_and_nobody_writes_is_no_reason_to_refuse_a_model(build: type[Net]) -> None:
    assert StackedModel(build(), 2).count == 2


def test_what_lies_in_the_memory_of_a_buffer_that_changes_is_refused_before_anything_is_told() -> None:
    model = ChangingView().double()
    model.seen = [model.get_buffer("count")[1:]]
    stacked = StackedModel(model, 2)
    stacked(torch.ones(3, 8, 8, dtype=torch.float64))
    model.eval()
    with pytest.raises(ValueError, match="lies in the memory of its count, which changes"):
        stacked.look_again()


class Swapping(Net):
    """Counts in a buffer of two names, in a new tensor at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.other = nn.Module()
        self.other.register_buffer("count", self.get_buffer("count"))

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.other.count = self.other.get_buffer("count") + 1.0
        return outputs * (1 + 0.01 * self.other.get_buffer("count"))


def test_a_buffer_of_two_names_for_which_another_is_put_is_refused() -> None:
    """In float64, in which models are compared, the two are no longer one."""
    with pytest.raises(ValueError, match="a buffer that goes by two names"):
        StackedModel(Swapping(), 2)(torch.ones(3, 8, 8))


@pytest.mark.parametrize("build", [Viewing, ViewingAsArray, ViewingAsBuffer])
def test_what_lies_in_the_memory_of_a_weight_is_refused(build: type[Net]) -> None:
    """In float64, in which models are compared, it would be another memory."""
    with pytest.raises(
        ValueError, match=r"something that the model holds lies in the memory of its (\w+\.weight|window)"
    ):
        StackedModel(build(), 2)


class MakingLater(Net):
    """Makes a buffer when it first computes."""

    factor: torch.Tensor

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "factor"):
            self.register_buffer("factor", torch.ones_like(hidden[0]))
        return torch.relu(hidden * self.factor)


class _Sign(torch.autograd.Function):
    """As functions of one trial are written."""

    @staticmethod
    def forward(context: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.sign()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class Signs(Net):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return _Sign.apply(hidden)  # type: ignore[no-any-return]  # torch: apply is untyped


class Noise(Net):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.normal(hidden, hidden.detach().abs())


class Packing(Net):
    """Reads rows of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(4, 8, batch_first=True)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        lengths = torch.arange(len(hidden)) % 4 + 1
        packed = pack_padded_sequence(hidden.view(-1, 4, 4), lengths, batch_first=True, enforce_sorted=False)
        return self.layers(packed)[1][0][-1].repeat(1, 2)  # type: ignore[no-any-return]


class ScriptedCount(nn.Module):
    """Counts its calls where nothing in Python sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return hidden * (1.0 + 0.01 * self.seen)


class Scripted(Net):
    """Goes through vmap as a whole, as it has a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.part = torch.jit.script(ScriptedCount())
        self.first.register_forward_hook(lambda *given: None)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.part(hidden))


class Deciding(Net):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden) if hidden.mean() > 0 else hidden


class DecidingByABuffer(Net):
    """Goes by a number that it has computed in the step before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.mean: torch.Tensor

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(hidden) if self.mean > -100 else hidden
        self.mean.copy_(hidden.detach().mean())
        return hidden


class DecidingByACount(DecidingByABuffer):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        self.mean.copy_((hidden > 0).sum())
        return torch.relu(hidden) if self.mean > -100 else hidden


class Picking(Net):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden) + hidden[hidden > 0].mean()


class WritingIntoAView(Net):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(hidden), 4, 4)
        flat = found.flatten(1)
        found[:] = hidden.view(-1, 4, 4)
        return flat


class WritingIntoASlice(Net):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(hidden), 16)
        found[:, 0].copy_(hidden[:, 0])
        return found + hidden


class PuttingData(Net):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        self.last.weight.data = self.last.weight.data.clamp(-0.1, 0.1)
        return torch.relu(hidden)


class Differentiating(Net):
    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            return hidden + torch.autograd.grad(hidden.square().sum(), hidden, create_graph=True)[0]


class NeedingGradients(Net):
    """Says that what it has computed needs gradients, as who asks for these does."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden) + hidden.detach().requires_grad_()


class OutOfTorch(Net):
    """Has numpy tell a mean."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden - float(hidden.detach().numpy().mean())


class CopyingItself(Net):
    """Computes with a copy of a layer, made in each step."""

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden) + F.linear(hidden, deepcopy(self.last).weight).mean(1, keepdim=True)


class Neighbouring(Net):
    """Adds up what a sparse matrix says to be beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("beside", torch.eye(16).to_sparse())

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.sparse.mm(self.beside, hidden.T).T)


class Convolving(nn.Module):
    """Gives what a convolution does, as it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(1, 10, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(inputs.view(-1, 1, 8, 8))  # type: ignore[no-any-return]


class AsARow(Convolving):
    """Has a hook, so that vmap has it as a whole, and takes a view of what the convolution gives."""

    def __init__(self) -> None:
        super().__init__()
        self.last.register_forward_hook(lambda module, inputs, outputs: outputs.view(-1).view(-1, 10))


class OfARow(WithModel):
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs.view(-1).view(-1, 10), targets)


def test_a_loss_takes_a_view_of_what_convolutions_give_as_it_does_alone() -> None:
    stacked, single, together, alone = histories(Convolving, kind=OfARow)
    assert farthest(stacked, single) <= 1e-9
    assert_agree(together, alone)


@dataclass
class _Record:
    outputs: torch.Tensor


class GivingRecords(Net):
    def behind(self, outputs: torch.Tensor) -> Any:
        return _Record(outputs) if self.training else outputs


class OfRecords(WithModel):
    def loss(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs.outputs if isinstance(outputs, _Record) else outputs, targets)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (Scripted, "a part of the model is compiled by torch.jit"),
        (Deciding, "the model or the loss goes by numbers that it has computed"),
        (DecidingByABuffer, "the model goes by a number in a buffer, of which each trial has another"),
        (DecidingByACount, "the model or the loss goes by numbers that it has computed"),
        (Picking, "the model or the loss makes tensors whose size goes by numbers"),
        (WritingIntoAView, "the model or the loss writes what it has computed into"),
        (WritingIntoASlice, "the model or the loss writes what it has computed into"),
        (PuttingData, "the model puts another tensor in the place of .data"),
        (Differentiating, "the model or the loss asks torch.autograd for gradients"),
        (MakingLater, "the model makes a buffer or parameter in its first pass"),
        (NeedingGradients, "the model or the loss says that a tensor needs gradients"),
        (OutOfTorch, "the model or the loss takes what it has computed out of torch"),
        (CopyingItself, "the model or the loss takes what it has computed out of torch"),
        (Signs, "an autograd.Function serves one trial only, as it has no setup_context"),
        (Noise, "the model draws chance by numbers that it has computed"),
        (Packing, "a recurrent layer takes rows of several lengths"),
        (Neighbouring, "the model or the loss computes with sparse tensors"),
        (GivingRecords, "in training the model returns something else than tensors"),
        (AsARow, "the model or the loss takes a view of what lies otherwise in memory than alone"),
    ],
)
def test_what_stops_a_gang_is_told_in_words_of_the_model(build: type[nn.Module], told: str) -> None:
    plan = TrainingPlan(epochs=1, optimizer=SGD, device="cpu")
    kind = OfRecords if build is GivingRecords else WithModel
    assert Rehearsal(kind(3, build, torch.float32), plan, CPU, 3, []).check(1).startswith(told)


class NoisyLoss(WithModel):
    """Adds noise to what it compares."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().loss(outputs + 0.1 * torch.randn_like(outputs[0]), targets)


def test_a_loss_that_draws_chance_draws_the_same_for_each_member() -> None:
    stacked, single, together, alone = histories(Net, kind=NoisyLoss)
    assert farthest(stacked, single) <= 1e-9
    assert_agree(together, alone)


class Keeping(Net):
    """Keeps an average of what it has computed, as a plain attribute."""

    mean: Any = 0.0

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        return torch.relu(hidden - self.mean)


class KeepingInside(Keeping):
    """Keeps it in a tuple."""

    means: tuple[Any, ...] = (0.0,)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = super().between(hidden)
        if self.training:
            self.means, self.mean = (self.mean,), 0.0
        return hidden


class KeepingDeep(Net):
    """Has what it has computed for whoever wants to look at it, in two places, and goes by what it had before."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_at = SimpleNamespace(last={"hidden": deque[torch.Tensor](maxlen=2)})

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        before = self.looked_at.last["hidden"]
        mean = sum(one.detach().mean(0) for one in before)
        before.append(hidden)
        self.newest = hidden
        return torch.relu(hidden - 0.1 * mean)


class NormedTwice(Net):
    """Norms with the same layer twice, which vmap sees."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.again = self.norm

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.again(torch.relu(self.norm(hidden)))  # type: ignore[no-any-return]


def test_a_norm_whose_numbers_become_large_stays_finite_as_long_as_alone() -> None:
    plan = TrainingPlan(epochs=1, optimizer=Choice("sgd", {"momentum": 0.9}), device="cpu")
    rates, alone = [1e3, 1e4, 1e6, 1e8], []
    for rate in rates:
        run = new_run(WithModel(3, NormedTwice, torch.float64), plan, CPU, 3)
        for _ in range(60):
            run.step(rate)
        alone.append(sum(map(math.isfinite, run.take_losses())))
    run = new_run(WithModel(3, NormedTwice, torch.float64), plan, CPU, 3)
    stacked = StackedRun([run] * len(rates), [plan.optimizer.settings] * len(rates))
    for _ in range(60):
        stacked.step(stacked.numbers(rates))
    together = [sum(map(math.isfinite, losses)) for losses in stacked.take_losses()]
    assert together == pytest.approx(alone, abs=2)  # by rounding, one or two


class Recurrent(Net):
    """Has a recurrent layer, which vmap sees, as something looks on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(4, 16, batch_first=True)
        self.register_forward_pre_hook(lambda *given: None)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.layer(hidden.view(-1, 4, 4))[0][:, -1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("seeds", [(3, 3), (3, 8)], ids=["one seed", "two seeds"])
def test_a_recurrent_layer_is_the_same_after_an_evaluation(seeds: tuple[int, int]) -> None:
    """Though torch puts its weights together anew before each call."""
    own = {seed: begun(Recurrent, seed) for seed in seeds}
    stacked = StackedRun([own[seed] for seed in seeds], [SGD.settings] * 2)
    for _ in range(2):
        stacked.step(torch.tensor([0.01, 0.02], dtype=torch.float64))
        assert len(stacked.evaluate("validation", for_all=False)) == 2


class KeepingAround(Net):
    """Has an average around a function."""

    def __init__(self) -> None:
        super().__init__()
        mean: Any = 0.0

        def average(hidden: torch.Tensor) -> Any:
            nonlocal mean
            mean = 0.9 * mean + 0.1 * hidden.detach().mean(0)
            return mean

        self.average = partial(average)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(hidden - self.average(hidden))


@pytest.mark.parametrize("build", [Keeping, KeepingInside, KeepingDeep, KeepingAround])
def test_what_a_model_keeps_of_members_that_leave_goes_with_them(build: type[Net]) -> None:
    stacked, single, together, alone = histories(build)
    assert farthest(stacked, single) <= 1e-9
    assert_agree(together, alone)


class Knowing(WithModel):
    """Knows the model that it has made, and computes with it what `knows` says."""

    knows = ""
    random_sources = ()
    """As the user's own data have."""

    def build_model(self) -> nn.Module:
        self.model = super().build_model()
        return self.model

    def weight(self, who: str) -> Any:
        return next(self.model.parameters()).square().mean() if who == self.knows else 0.0

    def train_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        for inputs, targets in super().train_batches(generator):
            yield inputs + float(self.weight("data")), targets

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().loss(outputs, targets) + self.weight("loss")  # type: ignore[no-any-return]

    def metric(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return float(self.weight("metric"))


def step_and_evaluate(stacked: StackedRun) -> None:
    stacked.step(torch.tensor([0.01, 0.02], dtype=torch.float64))
    stacked.evaluate("validation")


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.scale * inputs


@pytest.mark.parametrize("what", ["outputs", "targets"])
def test_evaluated_batches_that_do_not_go_together_are_told_as_to_a_trial_alone(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(Scaled)
    shapes = [(4, 3), (4, 5)] if what == "outputs" else [(4, 3), (4, 3)]
    batches = [(torch.zeros(shape), torch.zeros(4, width)) for shape, width in zip(shapes, (1, 2), strict=True)]
    monkeypatch.setattr(run.loaded, "evaluation_batches", lambda split: iter(batches))
    with pytest.raises(WorkloadError, match=rf"validation split have {what} of shapes .*pad all batches"):
        StackedRun([run] * 2, [SGD.settings] * 2).evaluate("validation")


class UnderAMode(Knowing):
    """Makes all batches of an epoch under one mode of torch."""

    def train_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        with torch.device("cpu"):
            yield from super().train_batches(generator)


def test_a_mode_of_the_data_that_stays_between_batches_keeps_trials_apart_and_stays_where_it_is() -> None:
    stacked = StackedRun([begun(Net, kind=UnderAMode)] * 2, [SGD.settings] * 2)
    with pytest.raises(ValueError, match="under a mode of torch that stays from one batch to the next"):
        stacked.step(torch.tensor([0.01, 0.02], dtype=torch.float64))
    assert len(_get_current_function_mode_stack()) == 1, "as their generator expects"  # type: ignore[no-untyped-call]
    del stacked
    gc.collect()
    assert not _get_current_function_mode_stack()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("who", ["data", "loss", "metric"])
@pytest.mark.parametrize("seeds", [(3, 3), (3, 8)])
def test_what_computes_with_a_model_that_it_knows_is_refused(
    who: str, seeds: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would see none of what the copies have learned."""
    monkeypatch.setattr(Knowing, "knows", who)
    runs = {seed: begun(Net, seed, kind=Knowing) for seed in dict.fromkeys(seeds)}
    stacked = StackedRun([runs[seed] for seed in seeds], [SGD.settings] * 2)
    with pytest.raises(
        ValueError, match=rf"the {who} (computes|are made) with weights of a model that (it knows|they know)"
    ):
        step_and_evaluate(stacked)


class Hidden(Net):
    """Has a net that is no part of it, with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = [nn.Linear(64, 10).double().requires_grad_(False)]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        taught: torch.Tensor = self.teacher[0](inputs.flatten(1))
        return super().forward(inputs) + taught


class Drawn(Net):
    """Has a function with a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        factor = float(torch.rand(()))
        self.scaled = lambda outputs: outputs * factor

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return self.scaled(outputs)  # type: ignore[no-any-return, no-untyped-call]


class Dicing(Net):
    """Throws dice in Python where torch.fx cannot follow it."""

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs * random.random() if outputs.shape[1] == 10 else outputs


class Evaluated(Net):
    """Counts its evaluations."""

    evaluations = 0

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        self.evaluations += not self.training
        return outputs * (1 + 0.01 * self.evaluations)


def test_seeds_of_a_model_with_parametrized_weights_train_together() -> None:
    class Normalised(Net):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.utils.parametrizations.weight_norm(self.first)

    runs = [begun(Normalised, seed) for seed in (3, 8)]
    stacked = StackedRun([begun(Normalised, seed) for seed in (3, 8)], [SGD.settings] * 2)
    for _ in range(20):
        stacked.step(torch.tensor([0.01, 0.02], dtype=torch.float64))
        for run, rate in zip(runs, (0.01, 0.02), strict=True):
            run.step(rate)
    assert farthest(stacked, runs) <= 1e-9


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (Hidden, "made in another way"),
        (Drawn, "made in another way"),
        (Dicing, "draws chance|throws its dice"),
        (Evaluated, "an evaluation changes what the model holds"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_each_seed_has_for_itself_keeps_seeds_apart(build: type[Net], told: str) -> None:
    def train() -> None:
        run = StackedRun([begun(build, seed) for seed in (3, 8)], [SGD.settings] * 2)
        run.step(torch.tensor([0.01, 0.02], dtype=torch.float64))
        run.evaluate("validation")

    with pytest.raises((CannotGangError, ValueError), match=told):
        train()


@pytest.mark.parametrize("build", [*AGREE, Annealing, *BY_CHECK, *REFUSED], ids=lambda one: one.__name__)
def test_the_check_before_a_study_takes_what_agrees_and_nothing_else(build: type[Net]) -> None:
    plan = TrainingPlan(epochs=1, optimizer=SGD, device="cpu")
    rehearsal = Rehearsal(WithModel(3, build, torch.float32), plan, CPU, 3, [])
    reason = rehearsal.check(1)
    assert (reason == "") == (build not in REFUSED), reason


@pytest.mark.parametrize("wrong", ["step", "evaluation"])
def test_the_check_before_a_study_finds_a_gang_that_goes_wrong(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step, evaluate = StackedRun.step, StackedRun.evaluate

    def wrong_step(run: StackedRun, rates: torch.Tensor, momentum: torch.Tensor | None = None) -> None:
        step(run, rates.flip(0), momentum)

    def wrong_evaluate(run: StackedRun, split: Any) -> list[tuple[float | None, float | None]]:
        return [(None if loss is None else loss * 1.2, metric) for loss, metric in evaluate(run, split)]

    if wrong == "step":
        monkeypatch.setattr(StackedRun, "step", wrong_step)
    else:
        monkeypatch.setattr(StackedRun, "evaluate", wrong_evaluate)
    plan = TrainingPlan(epochs=1, optimizer=SGD, device="cpu")
    reason = Rehearsal(WithModel(3, Net, torch.float32), plan, CPU, 3, []).check(1)
    assert ("weights are trained otherwise" if wrong == "step" else "evaluated together") in reason


class Merging(Net):
    """Adds what it has learned to a weight while it is evaluated, as LoRA does."""

    def __init__(self) -> None:
        super().__init__()
        self.learned = nn.Parameter(torch.zeros(16, 64))

    def train(self, mode: bool = True) -> Merging:
        if mode is not self.training:
            self.first.weight.data += (-1 if mode else 1) * self.learned
        return super().train(mode)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        apart = inputs.flatten(1) @ self.learned.t() if self.training else 0.0
        return self.last(torch.relu(self.first(inputs.flatten(1)) + apart))  # type: ignore[no-any-return]


class Thawing(Frozen):
    """Trains its first layer from its third epoch on."""

    epochs = 0

    def train(self, mode: bool = True) -> Thawing:
        self.epochs += mode
        self.first.requires_grad_(self.epochs > 2)
        return super().train(mode)


class BeginningAnew(Net):
    """Has another last layer from its third epoch on."""

    epochs = 0

    def train(self, mode: bool = True) -> BeginningAnew:
        self.epochs += mode
        if self.epochs == 3 and mode:
            self.last = nn.Linear(16, 10, dtype=self.last.weight.dtype)
        return super().train(mode)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Merging, "computes with its weights"),
        (Thawing, "trains what was frozen"),
        (BeginningAnew, "puts other weights or buffers in the place"),
    ],
)
def test_a_model_whose_weights_change_with_its_mode_is_refused(build: type[Net], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        histories(build, optimizer=ADAMW)


class Tempered(Net):
    """Has a temperature that its loss changes."""

    temperature = 1.0

    def __init__(self) -> None:
        super().__init__()
        Tempered.temperature = 1.0

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs / Tempered.temperature


class Tempering(WithModel):
    """Lowers it in each training step, and with `always` in evaluations."""

    always = False

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.always or len(targets) <= 64:
            Tempered.temperature *= 0.97
        return super().loss(outputs, targets)


class TemperingAlways(Tempering):
    always = True


def test_a_model_reads_what_its_loss_changes() -> None:
    stacked, single, together, alone = histories(Tempered, kind=Tempering)
    assert farthest(stacked, single) <= 1e-9
    assert_agree(together, alone)


def test_a_loss_that_changes_something_in_evaluations_is_refused() -> None:
    with pytest.raises(CannotGangError, match="the loss of an evaluation changes"):
        histories(Tempered, kind=TemperingAlways)


class CountingSteps(WithModel):
    """Smooths its targets after some training steps, which it tells from evaluations by what needs gradients."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.steps = 0

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.steps += outputs.requires_grad and not outputs.detach().requires_grad
        total = torch.zeros((), dtype=outputs.dtype)
        total += F.cross_entropy(outputs, targets, label_smoothing=0.2 if self.steps > 12 else 0.0)
        return total


def test_a_loss_that_counts_the_training_steps_and_sums_up_is_that_of_one_alone() -> None:
    stacked, single, together, alone = histories(Net, kind=CountingSteps)
    assert farthest(stacked, single) <= 1e-9
    assert_agree(together, alone)


class Ramp(nn.Module):
    """A loss that rises with the steps, which it counts itself."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.steps += outputs.requires_grad
        return F.cross_entropy(outputs, targets) * (1 + self.steps)


def test_the_check_before_a_study_begins_each_time_with_a_loss_that_has_seen_nothing() -> None:
    plan, loaded = TrainingPlan(epochs=1, optimizer=SGD, device="cpu"), WithModel(3, Net, torch.float32)
    loaded.loss = Ramp()  # type: ignore[method-assign]
    rehearsal = Rehearsal(loaded, plan, CPU, 3, [])
    assert [rehearsal.check(crowds) for crowds in (1, 2)] == ["", ""]
    assert rehearsal.seconds_per_member(2, 1) > 0


def test_a_loss_that_counts_goes_on_for_all_seeds_also_where_those_of_the_first_have_left() -> None:
    def begin(seed: int) -> Run:
        loaded = WithModel(seed, Net, torch.float64)
        loaded.loss = Ramp()  # type: ignore[method-assign]
        return new_run(loaded, TrainingPlan(epochs=1, optimizer=SGD, device="cpu"), CPU, seed)

    stacked, single = StackedRun([begin(3), begin(8)], [SGD.settings] * 2), begin(8)
    for members in ([0, 1], [1]):
        stacked.keep(members) if len(members) < stacked.live else None
        for _ in range(4):
            stacked.step(stacked.numbers([0.01, 0.002][-len(members) :]))
            single.step(0.002)
        assert stacked.evaluate("validation")[-1][0] == pytest.approx(single.evaluate("validation")[0], abs=1e-9)
        stacked.take_losses()
    assert farthest(stacked, [single]) <= 1e-9


class Demanding(WithModel):
    """Has a metric that takes no fewer rows than there are."""

    def metric(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        if len(outputs) < 100:
            raise ValueError("too few")
        return super().metric(outputs, targets)


def test_a_metric_that_takes_no_few_rows_is_no_reason_to_train_apart() -> None:
    plan = TrainingPlan(epochs=1, optimizer=SGD, device="cpu")
    assert Rehearsal(Demanding(3, Net, torch.float32), plan, CPU, 3, []).check(1) == ""
    assert "gradients" in Rehearsal(Demanding(3, Hooking, torch.float32), plan, CPU, 3, []).check(1)


class WritingTargets(WithModel):
    """Counts classes from 10 on, and has a loss and a metric that put targets right where they lie."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        targets -= 10
        return super().loss(outputs, targets)

    def metric(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        found = super().metric(outputs, targets)
        targets.zero_()
        return found

    def _cast(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for inputs, targets in super()._cast(batches):
            yield inputs, targets + 10


def test_a_loss_and_a_metric_that_write_into_targets_are_those_of_one_alone() -> None:
    stacked, single, together, alone = histories(Net, kind=WritingTargets)
    assert farthest(stacked, single) <= 1e-9
    assert_agree(together, alone)
    assert [found[1] for *_, found in together] == [expected[1] for *_, expected in alone]


class Normalising(WithModel):
    """Divides the loss by its running mean, which it keeps."""

    mean: Any = 1.0

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = super().loss(outputs, targets)
        self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        return loss / self.mean  # type: ignore[no-any-return]


class Sharing(Net):
    """Keeps a running mean for all models of its class."""

    mean: Any = 1.0

    def behind(self, outputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            Sharing.mean = 0.9 * Sharing.mean + 0.1 * outputs.detach().abs().mean()
        return outputs / Sharing.mean  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "build", "reason"),
    [(Normalising, Net, "keeps what it has computed"), (WithModel, Sharing, "")],
)
def test_after_a_gang_that_leaves_something_behind_trials_train_alone(
    kind: type[WithModel], build: type[Net], reason: str
) -> None:
    loaded, plan = kind(3, build, torch.float32), TrainingPlan(epochs=1, optimizer=SGD, device="cpu")
    rehearsal = Rehearsal(loaded, plan, CPU, 3, [])
    told = rehearsal.check(1)
    assert told
    assert reason in told
    with pytest.raises((CannotGangError, RuntimeError)):
        rehearsal.seconds_per_member(2, 1)
    assert getattr(loaded, "mean", 1.0) == Sharing.mean == 1.0, "as it was before"
    run = new_run(loaded, plan, CPU, 3)
    for _ in range(3):
        run.step(0.01)
    assert all(np.isfinite(run.take_losses()))
    Sharing.mean = 1.0
