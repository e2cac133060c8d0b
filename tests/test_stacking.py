"""A stacked model computes, for each copy, what that copy alone computes: outputs, gradients, buffers, optimiser steps.

In float64, so that what differs is a wrong formula and not rounding.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap

from lrsearch import stacking
from lrsearch.as_alone import LossesAsAlone
from lrsearch.stacked_optimizers import StackedOptimizer
from lrsearch.stacking import SLOW_IN_VMAP, StackedModel
from lrsearch.training import OPTIMIZERS
from lrsearch.workloads import models
from tests.processes import modules_after

COPIES = 3


class Hand(nn.Module):
    """A net in the way people write them: functions, views, branches, sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.last = nn.Linear(4 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.first(x))
        y = y + self.grouped(y) * self.scale
        y = F.max_pool2d(self.norm(y), 2)
        y = y.view(y.size(0), -1)
        if self.training:
            y = F.dropout(y, 0.0)
        left, right = y.chunk(2, 1)
        return F.log_softmax(self.last(torch.cat([right, left], dim=1)), dim=1)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.hidden = nn.Linear(8, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.gelu(self.hidden(self.norm(self.embedding(x)).mean(1))))  # type: ignore[no-any-return]


class Branching(nn.Module):
    """Goes by the data: torch.fx cannot trace it, vmap can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x if len(x) > 2 else -x)  # type: ignore[no-any-return]


class Own(nn.Module):
    """Writes to buffers and attributes of its own while it computes."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.first, self.last, self.what, self.calls = nn.Linear(6, 8), nn.Linear(8, 5), what, 0
        self.counts, self.counter = {"calls": 0}, SimpleNamespace(calls=0)
        self.list: list[torch.Tensor] = []
        self.statistics = [torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)]
        self.queue: deque[torch.Tensor] = deque(maxlen=2)
        self.mean: torch.Tensor
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        if self.what == "changes a buffer" and self.training:
            self.mean.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        elif self.what == "replaces a buffer" and self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        elif self.what == "counts":
            self.calls += 1
            hidden = hidden * min(1.0, self.calls / 3)
        elif self.what == "keeps a value":
            self.kept = hidden.relu()
        elif self.what == "draws" and self.training:
            hidden = hidden + torch.randn(8, dtype=hidden.dtype)
        elif self.what == "adds to what it makes":
            hidden = self.first(torch.ones(7, 6, dtype=torch.float64).add_(x))
        elif self.what == "changes what it makes between two uses":
            made = torch.zeros(6, dtype=torch.float64)
            hidden = self.first(x + made)
            made.add_(1)
            hidden = hidden + self.first(x * made)
        elif self.what == "adds to a list of what it makes":
            made = torch.zeros(7, 6, dtype=torch.float64)
            torch._foreach_add_([made], [x])
            hidden = self.first(made)
        elif self.what == "seldom writes into what it makes":
            made = torch.zeros(7, 6, dtype=torch.bool)
            same = made
            made |= x > 1.5
            hidden = self.first(x * ~same)
        elif self.what == "writes into a view of what it makes":
            made = torch.zeros(2, 7, 6, dtype=torch.float64)
            torch.max(x, 1, keepdim=True, out=(made[0, :, :1], torch.zeros(7, 1, dtype=torch.long)))
            hidden = self.first(made.sum(0) + x)
        elif self.what == "keeps statistics in a list":
            mean, variance = (one[:6] for one in self.statistics)
            hidden = self.first(F.batch_norm(x, mean, variance, training=self.training))
        elif self.what == "scales by a tensor of its own":
            if self.training:
                self.statistics[1].data.mul_(0.9)
            hidden = hidden * (self.statistics[1] + 1)
        elif self.what == "masks in its inputs' type":
            hidden = self.first(x) + torch.ones(7, 8).triu(1).to(hidden)
        elif self.what == "makes what is no number":
            hidden = hidden.where(torch.full((8,), torch.nan, dtype=torch.float64).isnan(), 0.0)
        elif self.what == "sets some of what it makes":
            made = torch.zeros(7, 6, dtype=torch.float64)
            made[x > 0] = 1.0
            hidden = self.first(made + x)
        elif self.what == "has its sum put into what it makes":
            made = torch.zeros(7, 6, dtype=torch.float64)
            torch.add(made, x, out=made)
            hidden = self.first(made)
        elif self.what == "makes a tensor of numbers":
            hidden = hidden * torch.arange(8, dtype=torch.float64).div(3) + torch.eye(7, 8)
        elif self.what == "makes a tensor of what changes":
            self.calls += 1
            hidden = hidden * torch.full((8,), min(1.0, self.calls / 3), dtype=torch.float64)
        elif self.what == "counts in a dictionary":
            self.counts["calls"] += 1
            hidden = hidden * min(1.0, self.counts["calls"] / 3)
        elif self.what == "counts in an object":
            self.counter.calls += 1
            hidden = hidden * min(1.0, self.counter.calls / 3)
        elif self.what == "keeps a list":
            self.list.append(hidden.relu())
        elif self.what == "keeps a queue":
            self.queue.append(hidden.relu())
        elif self.what == "trains its last layer alone":
            with torch.no_grad():
                hidden = self.first(x)
        elif self.what == "replaces a buffer in evaluation" and not self.training:
            self.mean = self.mean + 1.0
        return self.last(torch.relu(hidden - self.mean))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Attends with torch's own module, in each way that it can be asked."""

    far: torch.Tensor

    def __init__(self, what: str, **settings: Any) -> None:
        super().__init__()
        self.what = what
        self.attention = nn.MultiheadAttention(6, 2, **{"batch_first": True, **settings})
        self.other, self.last = nn.Linear(6, self.attention.kdim), nn.Linear(6, 5)
        self.register_buffer("far", torch.tensor([[0.0, 0.5, -1.0, 2.0]] * 3 + [[-torch.inf, 0.0, 0.0, 1.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, hidden, later = self.other(x), x[:, :, 0] > 1, self.far.isinf()
        if self.what == "to others":
            found = self.attention(x[:, :3], y, y)[0]
        elif self.what == "to keys of others":
            found = self.attention(x, y, y - 1, need_weights=False)[0]
        elif self.what == "with weights":
            found, weights = self.attention(y, y, y, hidden)
            found = found + weights.sum(1, keepdim=True)[..., :1].mean(1, keepdim=True) ** 2
        elif self.what == "with weights of each head":
            found, weights = self.attention(y, y, y, attn_mask=self.far, average_attn_weights=False)
            found = found + weights[:, 0].mean(2, keepdim=True) ** 2
        elif self.what == "masked":
            found = self.attention(y, y, y, hidden, False, later)[0]
        elif self.what == "masked wholly":
            found = self.attention(y, y, y, (x[:, :1, 0] > 0).expand(-1, 4), need_weights=False)[0]
        elif self.what == "masked by each row and head":
            of_each = (y @ y.transpose(1, 2)).repeat_interleave(2, 0)
            found = self.attention(y, y, y, need_weights=False, attn_mask=of_each)[0]
        elif self.what == "causal":
            found = self.attention(y, y, y, need_weights=False, attn_mask=later, is_causal=True)[0]
        elif self.what == "rows alone":
            found = self.attention(y[0], y[0], y[0])[0].unsqueeze(0) + x
        else:
            found = self.attention(y, y, y, need_weights=False)[0]
        return self.last(found.mean(1))  # type: ignore[no-any-return]


def norming_its_weights() -> nn.Module:
    model = Attention("plain")
    nn.utils.parametrizations.weight_norm(model.attention.out_proj)
    return model


ATTENTION_CASES: dict[str, Callable[[], nn.Module]] = {
    **{
        f"attention {what}": partial(Attention, what)
        for what in (
            *("plain", "to others", "to keys of others", "with weights", "with weights of each head", "masked"),
            *("masked wholly", "masked by each row and head", "causal", "rows alone"),
        )
    },
    **{
        f"attention {what}, {setting}": partial(Attention, what, **{setting: value})
        for what in ("plain", "with weights", "causal", "masked wholly")
        for setting, value in (("dropout", 0.5), ("batch_first", False), ("bias", False), ("add_bias_kv", True))
        if not (what != "plain" and setting in ("batch_first", "add_bias_kv"))  # which have other keys
    },
    "attention, weights normed": norming_its_weights,
    "attention to others, kdim": partial(Attention, "to others", kdim=4, vdim=4),
}


class Recurrent(nn.Module):
    """Reads rows of steps, and answers by what came out and what was kept; if `branching`, vmap has it all."""

    def __init__(self, kind: Callable[..., nn.RNNBase], begins: bool, branching: bool, **settings: Any) -> None:
        super().__init__()
        self.layers = kind(6, 8, **settings)
        self.ways = 1 + self.layers.bidirectional
        self.last, self.begins, self.branching = nn.Linear(16 * self.ways, 5), begins, branching

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.branching and len(x) > 2:
            x = -x
        first = 0.1 * torch.ones(self.layers.num_layers * self.ways, x.shape[0], 8, dtype=x.dtype)
        both = isinstance(self.layers, nn.LSTM)
        steps = x if self.layers.batch_first else x.transpose(0, 1)
        given = ((first, 2 * first) if both else first,) if self.begins else ()
        outputs, ended = self.layers(steps, *given)
        kept = (ended[0] + ended[1] if both else ended)[-self.ways :].transpose(0, 1).flatten(1)
        return self.last(torch.cat([outputs.mean(1 if self.layers.batch_first else 0), kept], 1))  # type: ignore[no-any-return]


class Cells(nn.Module):
    """Goes through the steps itself."""

    def __init__(self, kind: Callable[..., nn.Module], **settings: Any) -> None:
        super().__init__()
        self.cell, self.last = kind(6, 8, **settings), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.last(state[0] if isinstance(state, tuple) else state)  # type: ignore[no-any-return]


RECURRENT: dict[str, dict[str, Any]] = {
    "one layer": {},
    "begun": {"begins": True, "batch_first": True},
    "both ways": {"bidirectional": True, "bias": False},
    "deep": {"num_layers": 3, "bidirectional": True, "dropout": 0.3, "batch_first": True, "begins": True},
    "deep, of vmap": {"num_layers": 2, "bidirectional": True, "dropout": 0.3, "branching": True},
    "begun, of vmap": {"begins": True, "batch_first": True, "branching": True, "bias": False},
}
RECURRENT_CASES: dict[str, Callable[[], nn.Module]] = {
    **{
        f"{kind.__name__}: {how}": partial(Recurrent, kind, **{"begins": False, "branching": False, **settings})
        for kind in (nn.RNN, nn.GRU, nn.LSTM)
        for how, settings in RECURRENT.items()
    },
    "RNN: rectified": partial(Recurrent, nn.RNN, begins=False, branching=False, nonlinearity="relu"),
    "RNNCell: rectified": partial(Cells, nn.RNNCell, nonlinearity="relu"),
    **{
        f"{kind.__name__}: {'with' if bias else 'no'} bias": partial(Cells, kind, bias=bias)
        for kind in (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
        for bias in (True, False)
    },
}


class Shapes(nn.Module):
    """Turns, cuts and reduces its values in the ways that people write it in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)
        self.place, self.scale = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.ones(()))
        self.norm, self.plain = nn.LayerNorm((4, 8), bias=False), nn.LayerNorm(8, elementwise_affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.first(x) + self.place) * self.scale
        left, right = y.split(2, dim=1)
        first, second = torch.chunk(y.transpose(1, 2), 2, dim=-1)
        y = torch.cat([left, right], 1) + torch.cat([first, second], 2).permute(0, 2, 1).contiguous()
        weights = F.softmax(torch.matmul(y, torch.transpose(y, -1, -2)), dim=-1) - torch.softmax(y[..., :4], 1)
        y = self.plain(weights @ y) + y[:, :1] - y[:, None, -1] + torch.permute(y, (0, 1, 2))[:, 0].unsqueeze(1)
        y = y + y.mean((1, 2), keepdim=True) - torch.sum(y, 1, keepdim=True) / 4 + y.mean()
        rows = y.split(3)[0].sum(0) + x[0].sum() + x.mean(0).mean()
        return self.last((y + rows).log_softmax(dim=2).mean(dim=1))  # type: ignore[no-any-return]


class Text(nn.Module):
    """A small transformer of one's own, with each kind of mask."""

    bias: nn.Parameter | None
    below: torch.Tensor

    def __init__(self, mask: str) -> None:
        super().__init__()
        self.mask = mask
        self.embedding, self.place = nn.Embedding(11, 8, padding_idx=0), nn.Parameter(torch.randn(4, 8))
        self.norm, self.inner, self.outer, self.last = (
            nn.LayerNorm(8),
            nn.Linear(8, 24),
            nn.Linear(8, 8),
            nn.Linear(8, 5),
        )
        self.bias = nn.Parameter(torch.randn(2, 4, 4)) if mask == "of each head" else None
        self.register_buffer("below", torch.ones(4, 4).tril().bool())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.place
        query, key, value = (one.view(-1, 4, 2, 4).transpose(1, 2) for one in self.inner(self.norm(x)).split(8, dim=-1))
        if self.mask == "causal":
            y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        elif self.mask == "of each head":
            y = F.scaled_dot_product_attention(query, key, value, self.bias, scale=0.5)
        elif self.mask == "of each row":
            y = F.scaled_dot_product_attention(query, key, value, attn_mask=(tokens != 3)[:, None, None, :])
        elif self.mask == "with dropout":
            y = F.scaled_dot_product_attention(query, key, value, self.below, 0.5 if self.training else 0.0)
        else:
            y = F.scaled_dot_product_attention(query, key, value, self.below)
        x = x + self.outer(y.transpose(1, 2).reshape(-1, 4, 8))
        return self.last(x[:, -1])  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """torch's own transformer, with a mask of what is padded, one of what comes later, or both."""

    def __init__(self, mask: str, norm: nn.Module | None = None, **settings: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, **{"batch_first": True, **settings})
        self.mask = mask
        self.embedding, self.last = nn.Embedding(11, 8), nn.Linear(8, 5)
        self.encoder = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        later = torch.full((4, 4), float("-inf"), dtype=torch.float64).triu(1)
        if self.mask == "later":
            x = self.encoder(x, later)
        elif self.mask == "said to be later":
            x = self.encoder(x, mask=later, is_causal=True)
        elif self.mask == "padded":
            x = self.encoder(x, src_key_padding_mask=tokens == 10)
        elif self.mask == "padded and hidden":
            x = self.encoder(x, mask=later.bool(), src_key_padding_mask=tokens == 10)
        elif self.mask == "padded and later":
            x = self.encoder(x, mask=later, src_key_padding_mask=(tokens == 10).double() * -3)
        else:
            x = self.encoder(x)
        return self.last(x.mean(1))  # type: ignore[no-any-return]


def sharing_dropout() -> nn.Module:
    model = Encoder("plain", dropout=0.5)
    for layer in model.encoder.layers:
        layer.dropout1 = layer.dropout2 = layer.dropout
    return model


def _half_block(layer: Any, x: torch.Tensor) -> torch.Tensor:
    half: torch.Tensor = 0.5 * layer.linear2(layer.linear1(x).sin())
    return half


def with_another_method() -> nn.Module:
    model = Encoder("plain", batch_first=False)
    for layer in model.encoder.layers:
        layer._ff_block = MethodType(_half_block, layer)
    return model


ENCODER_CASES: dict[str, Callable[[], nn.Module]] = {
    **{f"encoder, {mask}": partial(Encoder, mask) for mask in ("plain", "later", "said to be later")},
    "encoder, padded and later": partial(Encoder, "padded and later", norm_first=True, activation="gelu"),
    "encoder, without dropout": lambda: Encoder("plain", nn.LayerNorm(8), dropout=0.0, norm_first=True, bias=False),
    "encoder, by length": lambda: Encoder("plain", nn.BatchNorm1d(4), batch_first=False, activation=nn.Softplus()),
    "encoder, one dropout": sharing_dropout,
    "encoder, another method": with_another_method,
    "encoder, a function": partial(Encoder, "later", activation=torch.sin, dropout=0.5),
}


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    model[0].register_forward_hook(lambda module, inputs, output: 1.5 * output)
    return model


class _Counted(nn.Module):
    """A weight that grows with each look at it."""

    looks: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("looks", torch.zeros(()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.looks += 1
        return weight * (1 + 0.1 * self.looks)


def counted() -> nn.Module:
    layer = nn.Linear(6, 5)
    nn.utils.parametrize.register_parametrization(layer, "weight", _Counted())
    return layer


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 5))


WRITES = (
    *("changes a buffer", "replaces a buffer", "counts", "keeps a value", "draws", "counts in a dictionary"),
    *("counts in an object", "keeps a list", "keeps a queue", "replaces a buffer in evaluation"),
    *("adds to what it makes", "sets some of what it makes", "has its sum put into what it makes"),
    *("makes a tensor of numbers", "makes a tensor of what changes", "changes what it makes between two uses"),
    *("adds to a list of what it makes", "seldom writes into what it makes", "writes into a view of what it makes"),
    *("keeps statistics in a list", "scales by a tensor of its own", "masks in its inputs' type"),
    "makes what is no number",
)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(7, *shape, dtype=torch.float64)


class Slopes(nn.Module):
    """PReLU as a layer and as a function, of images and of one long row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.slopes, self.last = nn.Conv2d(1, 4, 3), nn.PReLU(4), nn.Linear(4, 5)
        self.slope = nn.Parameter(torch.tensor([0.1]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = F.prelu(self.slopes(input=self.slopes(self.first(inputs))), self.slope)
        pooled = hidden.mean((2, 3)) - 0.1
        return self.last(F.prelu(pooled.flatten(), self.slope).view_as(pooled))  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "mlp": (lambda: models.build("mlp", (1, 8, 8), 5), lambda: images(1, 8, 8)),
    "small_cnn": (lambda: models.build("small_cnn", (1, 8, 8), 5), lambda: images(1, 8, 8)),
    "lenet": (lambda: models.build("lenet", (1, 28, 28), 5), lambda: images(1, 28, 28)),
    "cifar10_quick": (lambda: models.build("cifar10_quick", (3, 32, 32), 5), lambda: images(3, 32, 32)),
    "cifar10_full": (lambda: models.build("cifar10_full", (3, 32, 32), 5), lambda: images(3, 32, 32)),
    "resnet9": (lambda: models.build("resnet9", (3, 8, 8), 5), lambda: images(3, 8, 8)),
    "torchvision/resnet18": (lambda: models.build("torchvision/resnet18", (3, 32, 32), 5), lambda: images(3, 32, 32)),
    "by hand": (Hand, lambda: images(1, 8, 8)),
    "tied tokens": (Tokens, lambda: torch.randint(11, (7, 4))),
    "branching": (Branching, lambda: images(6)),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 5)),
        lambda: images(6),
    ),
    "dropout of channels": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(0.5), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, 5)),
        lambda: images(1, 8, 8),
    ),
    "batch norm of rows": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)),
        lambda: images(6),
    ),
    **{what: (partial(Own, what), lambda: images(6)) for what in WRITES},
    **{name: (build, lambda: images(4, 6)) for name, build in ATTENTION_CASES.items()},
    **{name: (build, lambda: images(4, 6)) for name, build in RECURRENT_CASES.items()},
    "shapes": (Shapes, lambda: images(4, 6)),
    "slopes of channels": (Slopes, lambda: images(1, 8, 8)),
    "a slope of rows": (lambda: nn.Sequential(nn.Linear(6, 8), nn.PReLU(), nn.Linear(8, 5)), lambda: images(6)),
    "slopes of what all share": (
        lambda: nn.Sequential(nn.PReLU(6), nn.Linear(6, 8), nn.PReLU(8), nn.Linear(8, 5)),
        lambda: images(6),
    ),
    **{
        f"text, masked {mask}": (partial(Text, mask), lambda: torch.randint(11, (7, 4)))
        for mask in ("causal", "of each head", "of each row", "below", "with dropout")
    },
    **{name: (build, lambda: torch.randint(11, (7, 4))) for name, build in ENCODER_CASES.items()},
    "hooked": (hooked, lambda: images(6)),
    "counted": (counted, lambda: images(6)),
    "weight normed": (weight_normed, lambda: images(6)),
    "frozen": (lambda: frozen_first(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))), lambda: images(6)),
}


def frozen_first(model: nn.Sequential) -> nn.Sequential:
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    return model


def shaken(stacked: StackedModel) -> list[nn.Module]:
    """Give every copy weights of its own, and return the copies as models of their own."""
    with torch.no_grad():
        for parameter in stacked.parameters.values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    alone = [copy.deepcopy(stacked.model) for _ in range(stacked.count)]
    for row, model in enumerate(alone):
        model.load_state_dict(stacked.state_dict(row))
    return alone


@pytest.mark.filterwarnings(f"ignore:{SLOW_IN_VMAP}")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "torchvision/resnet18" else []) for name in CASES]
)
@pytest.mark.parametrize("training", [True, False])
def test_each_copy_of_a_stacked_model_computes_what_it_computes_alone(name: str, training: bool) -> None:
    torch.manual_seed(0)
    build, make_inputs = CASES[name]
    model = build().double().train(training)
    if name != "by hand":  # whose view does not take this layout
        model = model.to(memory_format=torch.channels_last)
    inputs, targets = make_inputs(), torch.randint(5, (7,))
    stacked = StackedModel(model, COPIES)
    alone = shaken(stacked)
    trained = [key for key, parameter in stacked.parameters.items() if parameter.requires_grad]

    torch.manual_seed(1)
    outputs = stacked(inputs)
    loss = sum(F.cross_entropy(one, targets) for one in outputs)
    gradients = torch.autograd.grad(loss, [stacked.parameters[key] for key in trained])  # type: ignore[arg-type]
    for row, single in enumerate(alone):
        torch.manual_seed(1)
        expected = single(inputs)
        torch.testing.assert_close(outputs[row], expected, rtol=1e-9, atol=1e-9)
        own = dict(single.named_parameters())
        expected_gradients = torch.autograd.grad(F.cross_entropy(expected, targets), [own[key] for key in trained])
        for found, wanted in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(found[row], wanted, rtol=1e-8, atol=1e-9)
        for key, tensor in stacked.state_dict(row).items():
            torch.testing.assert_close(tensor, single.state_dict()[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("what", WRITES)
def test_what_a_model_does_at_each_step_is_done_at_each_step(what: str) -> None:
    model = Own(what).double()
    stacked = StackedModel(model, COPIES)
    alone = shaken(stacked)
    batches = [images(6) for _ in range(5)]
    torch.manual_seed(1)
    together = [stacked(batch).detach() for batch in batches]
    for row, single in enumerate(alone):
        torch.manual_seed(1)
        for outputs, batch in zip(together, batches, strict=True):
            torch.testing.assert_close(outputs[row], single(batch), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(stacked.state_dict(row)["mean"], single.mean, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(value, torch.fx.Proxy) for part in model.modules() for value in vars(part).values())


@pytest.mark.parametrize("name", ["encoder, later", "makes a tensor of numbers", "attention with weights"])
def test_a_model_that_is_written_out_needs_no_vmap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacking, "functional_call", None)
    build, make_inputs = CASES[name]
    StackedModel(build().double(), COPIES)(make_inputs())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("norm", [None, nn.LayerNorm(8)], ids=["", "normed"])
@pytest.mark.parametrize("mask", ["padded", "padded and hidden"])
@pytest.mark.parametrize("begin", [1, 2])
def test_an_encoder_leaves_out_what_is_padded_as_alone(begin: int, mask: str, norm: nn.Module | None) -> None:
    """At the end of rows, that is, and with no other mask; elsewhere it computes something there."""
    model = Encoder(mask, norm, dropout=0.0).double()
    model.encoder.use_nested_tensor = True
    stacked = StackedModel(model, COPIES)
    alone = shaken(stacked)
    tokens = torch.randint(10, (7, 4))
    tokens[:4, begin : begin + 2] = 10
    for mode in (True, False):
        model.train(mode)
        with torch.inference_mode(not mode):
            outputs = stacked(tokens)
            for row, single in enumerate(alone):
                torch.testing.assert_close(outputs[row], single.train(mode)(tokens), rtol=1e-9, atol=1e-9)


def test_what_a_model_computes_without_gradients_has_none_in_a_gang() -> None:
    model = Own("trains its last layer alone").double()
    stacked = StackedModel(model, COPIES)
    loss = stacked(images(6)).square().sum()
    first, last = (stacked.parameters[f"{part}.weight"] for part in ("first", "last"))
    without, some = torch.autograd.grad(loss, [first, last], allow_unused=True)
    assert without is None
    assert some is not None


def test_a_buffer_that_evaluation_replaces_stays_so_and_training_goes_on() -> None:
    stacked = StackedModel(Own("replaces a buffer in evaluation").double().eval(), COPIES)
    with torch.inference_mode():
        for _ in range(3):
            stacked(images(6))
    assert stacked.state_dict(1)["mean"].tolist() == [3.0] * 8
    stacked.model.train()
    torch.autograd.grad(stacked(images(6)).square().sum(), stacked.parameters["last.weight"])


@pytest.mark.parametrize("where", ["module", "parameter", "accumulated"])
def test_a_model_with_hooks_on_its_gradients_is_refused(where: str) -> None:
    model = nn.Linear(6, 5)
    if where == "module":
        model.register_full_backward_hook(lambda module, inputs, outputs: None)
    elif where == "parameter":
        model.weight.register_hook(lambda gradient: 2 * gradient)  # type: ignore[no-untyped-call]  # torch: untyped
    else:
        model.weight.register_post_accumulate_grad_hook(lambda parameter: None)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="hooks on its gradients"):
        StackedModel(model, COPIES)


def test_a_model_that_draws_chance_in_python_is_refused_before_its_first_step() -> None:
    class Skips(Own):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if random.random() < 0.5 else 2 * x)

    state = random.getstate()
    with pytest.raises(ValueError, match="dice in Python"):
        StackedModel(Skips("nothing").double(), COPIES)(images(6))
    assert random.getstate() == state


def test_a_copy_s_state_has_the_versions_that_its_parts_look_at() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    assert vars(StackedModel(model, COPIES).state_dict(0))["_metadata"] == vars(model.state_dict())["_metadata"]


def test_copies_that_stay_keep_their_weights_buffers_and_memory_layout() -> None:
    torch.manual_seed(0)
    model = models.build("resnet9", (3, 8, 8), 5).double().to(memory_format=torch.channels_last)
    stacked = StackedModel(model, COPIES)
    alone = shaken(stacked)
    stacked.keep([2, 0])
    assert stacked.count == 2
    inputs = images(3, 8, 8)
    for row, single in enumerate([alone[2], alone[0]]):
        torch.testing.assert_close(stacked(inputs)[row], single(inputs), rtol=1e-9, atol=1e-9)
    weight = stacked.parameters["0.weight"]
    assert weight.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


SGD = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
ADAM = {"betas": (0.8, 0.99), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False}
SETTINGS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "sgd": ("sgd", [SGD] * 3),
    "sgd with momenta of their own": ("sgd", [{**SGD, "momentum": m} for m in (0.0, 0.5, 0.9)]),
    "sgd with decays of their own": ("sgd", [{**SGD, "momentum": 0.9, "weight_decay": w} for w in (0.0, 0.01, 0.1)]),
    "nesterov": ("sgd", [{**SGD, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}] * 3),
    "dampened": ("sgd", [{**SGD, "momentum": 0.9, "dampening": 0.3}] * 3),
    "adam": ("adam", [ADAM] * 3),
    "adam with decays of their own": ("adam", [{**ADAM, "weight_decay": w} for w in (0.0, 0.01, 0.1)]),
    "adamw": ("adamw", [{**ADAM, "weight_decay": w} for w in (0.0, 0.01, 0.1)]),
}


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("how", ["by numbers", "as tensors", "as on a GPU"])
def test_each_copy_steps_as_torch_s_optimizer_does(case: str, scheduled: bool, how: str) -> None:
    name, settings = SETTINGS[case]
    if scheduled and case == "dampened":
        pytest.skip("says nothing new")
    generator = torch.Generator().manual_seed(0)
    shapes, multipliers = [(4, 3), (4,), (2, 3, 2, 2)], [(1.0, 1.0), (2.0, 0.0), (0.5, 3.0)]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    parameters = [draw(3, *shape) for shape in shapes]
    parameters[0] = parameters[0].mT.contiguous().mT  # lies otherwise than its gradients
    alone = [[parameter[row].clone() for parameter in parameters] for row in range(3)]
    stacked = StackedOptimizer(name, settings, parameters, multipliers, how == "as tensors")
    if how == "as on a GPU":  # whose kernel gets the rates where they lie
        stacked._reads_rates = False
    optimizers = [
        torch_optimizer(name, own, tensors, multipliers) for own, tensors in zip(settings, alone, strict=True)
    ]
    for step in range(6):
        rates, momenta = draw(3).exp() * 0.01, 0.5 + 0.4 * torch.rand(3, dtype=torch.float64, generator=generator)
        momenta[step % 3] = 0.0  # as a schedule may come to
        gradients = [draw(3, *shape) for shape in shapes]
        if step == 3:
            rows = torch.tensor([2, 0])
            optimizers, alone = [optimizers[2], optimizers[0]], [alone[2], alone[0]]
            stacked.keep(rows, [parameter[rows] for parameter in stacked.parameters])
        if step >= 3:
            rates, momenta, gradients = rates[rows], momenta[rows], [gradient[rows] for gradient in gradients]
        stacked.step(gradients, rates, momenta if scheduled else None)
        for row, optimizer in enumerate(optimizers):
            for group, tensor, gradient in zip(optimizer.param_groups, alone[row], gradients, strict=True):
                tensor.grad = gradient[row].clone()
                group["lr"] = float(rates[row]) * group["by"]
                if scheduled and name == "sgd":
                    group["momentum"] = float(momenta[row])
                elif scheduled:
                    group["betas"] = (float(momenta[row]), group["betas"][1])
            optimizer.step()
            for tensor, found in zip(alone[row], stacked.parameters, strict=True):
                torch.testing.assert_close(found[row], tensor, rtol=1e-11, atol=1e-12)
    for row, optimizer in enumerate(optimizers):
        wanted, found_state = optimizer.state_dict()["state"], stacked.state_of(row)
        for index, entries in wanted.items():
            for key, value in entries.items():
                if value is not None:
                    torch.testing.assert_close(found_state[index][key], value, check_dtype=False)


def torch_optimizer(
    name: str, settings: dict[str, Any], tensors: list[torch.Tensor], multipliers: list[tuple[float, float]]
) -> torch.optim.Optimizer:
    decay = settings["weight_decay"]
    groups = [
        {"params": [tensor], "by": by, "weight_decay": decay * times}
        for tensor, (by, times) in zip(tensors, multipliers, strict=True)
    ]
    optimizer: torch.optim.Optimizer = OPTIMIZERS[name](groups, lr=1.0, **settings)  # type: ignore[call-arg]
    return optimizer


def test_a_copy_that_is_not_finite_changes_nothing_in_the_others() -> None:
    def trained(poisoned: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        stacked = StackedModel(models.build("resnet9", (3, 8, 8), 5), 3)
        parameters = list(stacked.parameters.values())
        optimizer = StackedOptimizer("sgd", [{**SGD, "momentum": 0.9}] * 3, parameters, [(1.0, 1.0)] * len(parameters))
        if poisoned:
            with torch.no_grad():
                parameters[0][1] = float("nan")
        for _ in range(3):
            outputs = stacked(torch.randn(6, 3, 8, 8))
            loss = torch.stack([one.square().mean() for one in outputs]).sum()
            optimizer.step(torch.autograd.grad(loss, parameters), torch.full((3,), 0.01))
        return [parameter.detach()[[0, 2]] for parameter in parameters]

    for clean, beside in zip(trained(poisoned=False), trained(poisoned=True), strict=True):
        assert torch.equal(clean, beside)


@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 6, 5, 3), (4, 5)], ids=str)
@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(),
        lambda outputs, targets: F.cross_entropy(target=targets, input=outputs),
        lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=0.1),
        lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum"),
        lambda outputs, targets: F.cross_entropy(outputs, targets, ignore_index=2),
        lambda outputs, targets: F.cross_entropy(outputs, targets, torch.arange(1.0, 6.0).double()),
        nn.CrossEntropyLoss(torch.arange(1.0, 6.0).double(), ignore_index=2, label_smoothing=0.1),
    ],
    ids=["function", "module", "keywords", "smoothed", "sum", "ignored", "weighted", "weighted and smoothed"],
)
@pytest.mark.parametrize("own", [False, True], ids=["same targets", "own targets"])
def test_cross_entropy_of_each_copy_is_that_of_it_alone(
    loss: Callable[..., Any], shape: tuple[int, ...], *, own: bool
) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 5, (*shape[1:2], *shape[3:]) if len(shape) > 2 else ())
    if targets.ndim:
        targets.flatten()[0] = -100 if loss is F.cross_entropy else 1
    of_all = torch.stack([targets.roll(int(own) * copy) for copy in range(len(outputs))])
    expected = torch.stack([loss(*one) for one in zip(outputs, of_all, strict=True)])
    with LossesAsAlone():
        found = vmap(loss, in_dims=(0, 0 if own else None))(outputs, of_all if own else targets)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(one.sum(), outputs)[0] for one in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        partial(F.cross_entropy, label_smoothing=0.1),
        lambda outputs, targets: F.cross_entropy(target=targets, input=outputs, reduction="sum"),
        lambda outputs, targets: F.nll_loss(F.log_softmax(outputs, 1), targets),
        lambda outputs, targets: F.hinge_embedding_loss(outputs[:, 0], targets.sign()),
        lambda outputs, targets: F.mse_loss(outputs[:, 0], targets.float()),
        lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs[:, 0], targets / 10),
        lambda outputs, targets: F.poisson_nll_loss(outputs[:, 0], targets.float()),
        lambda outputs, targets: F.cosine_embedding_loss(outputs[:, :5], outputs[:, 5:], target=targets.sign() * 2 - 1),
    ],
    ids=["cross_entropy", "smoothed", "keywords", "nll", "hinge", "mse", "binary", "poisson", "cosine"],
)
def test_losses_of_copies_under_autocast_are_those_of_each_alone(loss: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(3, 64, 10, dtype=torch.bfloat16), torch.randint(0, 10, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.stack([loss(one, targets) for one in outputs])
        with LossesAsAlone():
            found = vmap(lambda one: loss(one, targets))(outputs)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "keywords", [{}, {"full": True, "eps": 0.5}, {"reduction": "sum"}, {"reduction": "none"}, {"var": 0.7}], ids=str
)
@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 5)], ids=str)
def test_gaussian_losses_of_copies_are_those_of_each_alone(shape: tuple[int, ...], keywords: dict[str, Any]) -> None:
    torch.manual_seed(0)
    outputs, variances = (torch.randn(3, *own, dtype=torch.float64).requires_grad_() for own in ((6, 5), shape))
    targets = torch.randn(6, 5, dtype=torch.float64)

    def loss(mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        return nn.functional.gaussian_nll_loss(mean, targets, **{"var": spread.square(), **keywords})

    expected = torch.stack([loss(*own) for own in zip(outputs, variances, strict=True)])
    with LossesAsAlone():
        found = vmap(loss)(outputs, variances)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(one.sum(), (outputs, variances), allow_unused="var" in keywords)
        for one in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_a_gaussian_loss_of_a_variance_below_zero_is_no_number_for_that_copy_alone() -> None:
    variances = torch.tensor([[1.0, 2.0], [1.0, -2.0]])
    with LossesAsAlone():
        losses = vmap(lambda var: F.gaussian_nll_loss(torch.zeros(2), torch.zeros(2), var))(variances)
    assert losses.isnan().tolist() == [False, True]


def test_cross_entropy_of_copies_does_not_import_what_torch_s_compiler_needs() -> None:
    program = (
        "import torch, torch.nn.functional as F\n"
        "from torch.func import vmap\n"
        "from lrsearch.as_alone import LossesAsAlone\n"
        "outputs, targets = torch.randn(2, 3, 4), torch.tensor([0, 1, 2])\n"
        "with LossesAsAlone(): vmap(lambda one: F.cross_entropy(one, targets))(outputs)"
    )
    loaded = modules_after(program)
    assert "torch" in loaded
    assert "sympy" not in loaded
