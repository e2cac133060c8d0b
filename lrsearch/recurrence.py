"""Recurrent layers of several copies at once, K of them, for which vmap has no rule.

T steps, N rows. As in torch's own the inputs' part in the gates of all steps is one product. Measured with 8 copies
of one layer on a core, T = N = 32, 64 features: per copy a GRU takes 0.45 of its time alone, an RNN 0.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from lrsearch.linear import linear

States = tuple[torch.Tensor, ...]
"""What a step hands to the next: hidden states and, of an LSTM, cells; the first is what it gives."""


def recurrent(
    kind: str,
    inputs: torch.Tensor,
    states: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    *,
    layers: int,
    directions: int,
    dropout: float,
    training: bool,
    by_copy: bool = False,
) -> tuple[torch.Tensor, States]:
    """Return the outputs, (K, T, N, features), of inputs of that shape, and the last states.

    The `kind` is a module's `mode`; `states` are (K, layers * directions, N, features), and `weights` lie as in a
    module's `_flat_weights`. With `by_copy` torch has each layer of an LSTM copy by copy, which on a processor is
    faster: alone it is one call of oneDNN. Between layers every copy drops what one alone would on a processor; raises
    ValueError on another device, where that is not so.
    """
    dropping = dropout if training and layers > 1 else 0.0
    if dropping and inputs.device.type != "cpu":
        raise ValueError("a recurrent layer drops what it hands to the next, which it draws otherwise alone")
    each = len(weights) // layers
    last: list[States] = []
    for layer in range(layers):
        if last and dropping:
            inputs = inputs * torch.dropout(torch.ones_like(inputs[0]), dropping, True)
        own = weights[layer * each : (layer + 1) * each]
        first = tuple(one[:, layer * directions : (layer + 1) * directions] for one in states)
        if by_copy:
            inputs, ended = _lstm_by_copy(inputs, first, own, training=training)
        else:
            inputs, ended = _layer(kind, inputs, first, own)
        last.append(ended)
    return inputs, tuple(torch.cat(parts, 1) for parts in zip(*last, strict=True))


def recurrent_of_one(
    kind: str,
    inputs: torch.Tensor,
    states: Any,
    weights: Sequence[torch.Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    """Return what torch.gru and the like do. Raises ValueError for an LSTM with `proj_size`."""
    if len(weights) != layers * (1 + bidirectional) * (2 + 2 * has_biases):
        raise ValueError("an LSTM with proj_size trains alone only")
    first = states if isinstance(states, (list, tuple)) else (states,)
    outputs, last = recurrent(
        kind,
        (inputs.transpose(0, 1) if batch_first else inputs).unsqueeze(0),
        [one.unsqueeze(0) for one in first],
        [one.unsqueeze(0) for one in weights],
        layers=layers,
        directions=1 + bidirectional,
        dropout=dropout,
        training=training,
    )
    return outputs[0].transpose(0, 1) if batch_first else outputs[0], *(one[0] for one in last)


def cell_of_one(
    kind: str,
    inputs: torch.Tensor,
    states: Any,
    of_inputs: torch.Tensor,
    of_states: torch.Tensor,
    inputs_bias: torch.Tensor | None = None,
    states_bias: torch.Tensor | None = None,
) -> Any:
    """Return what torch.gru_cell and the like do."""
    first = states if isinstance(states, (list, tuple)) else (states,)
    own, seen = F.linear(inputs, of_inputs, inputs_bias), F.linear(first[0], of_states, states_bias)
    sizes = _sizes(kind, own.shape[-1])
    (own_gates, *own_new), (seen_gates, *seen_new) = (torch.split_with_sizes(one, sizes, -1) for one in (own, seen))
    found = STEPS[kind](own_gates + seen_gates, *own_new, *seen_new, *first)
    return found if len(found) > 1 else found[0]


def _lstm_by_copy(
    inputs: torch.Tensor, states: States, weights: Sequence[torch.Tensor], *, training: bool
) -> tuple[torch.Tensor, States]:
    ways = states[0].shape[1]
    settings = (len(weights) > 2 * ways, 1, 0.0, training, ways > 1, False)
    own_states, own_weights = (zip(*map(torch.unbind, some), strict=True) for some in (states, weights))
    copies = zip(inputs.unbind(), own_states, own_weights, strict=True)
    each = [torch.lstm(own, first, some, *settings) for own, first, some in copies]
    outputs, *ended = (torch.stack(parts) for parts in zip(*each, strict=True))
    return outputs, tuple(ended)


def _layer(
    kind: str, inputs: torch.Tensor, states: States, weights: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, States]:
    ways = states[0].shape[1]
    each = len(weights) // ways
    found = [
        _one_way(
            kind,
            inputs,
            tuple(one[:, way] for one in states),
            weights[way * each : (way + 1) * each],
            backwards=way == 1,
        )
        for way in range(ways)
    ]
    ended = zip(*(one for _, one in found), strict=True)
    return torch.cat([outputs for outputs, _ in found], -1), tuple(torch.stack(parts, 1) for parts in ended)


def _one_way(
    kind: str, inputs: torch.Tensor, states: States, weights: Sequence[torch.Tensor], *, backwards: bool
) -> tuple[torch.Tensor, States]:
    of_inputs, of_states, *biases = weights
    count, steps, rows, _ = inputs.shape
    sizes = _sizes(kind, of_states.shape[-2])
    (gates_weight, *new_weight), bias, new_bias = torch.split_with_sizes(of_states, sizes, 1), None, None
    if biases:
        gates_bias, *new_biases = torch.split_with_sizes(biases[1], sizes, -1)
        bias = biases[0] + F.pad(gates_bias, (0, sum(sizes) - sizes[0]))
        new_bias = new_biases[0] if new_biases else None
    every_own = linear(inputs.flatten(1, 2), of_inputs, bias).view(count, steps, rows, -1)
    each_own = list(zip(*(part.unbind(1) for part in torch.split_with_sizes(every_own, sizes, -1)), strict=True))
    outputs = []
    for own_gates, *own_new in reversed(each_own) if backwards else each_own:
        gates = torch.baddbmm(own_gates, states[0], gates_weight.mT)
        seen_new = [linear(states[0], one, new_bias) for one in new_weight]
        states = STEPS[kind](gates, *own_new, *seen_new, *states)
        outputs.append(states[0])
    return torch.stack(outputs[::-1] if backwards else outputs, 1), states


def _sizes(kind: str, rows: int) -> list[int]:
    """Return how many of the gates' rows are sums of what inputs and state give, and how many are apart."""
    return [2 * rows // 3, rows // 3] if kind == "GRU" else [rows]


def _gru(gates: torch.Tensor, own_new: torch.Tensor, seen_new: torch.Tensor, hidden: torch.Tensor) -> States:
    reset, keep = gates.sigmoid().chunk(2, -1)
    new = torch.addcmul(own_new, reset, seen_new).tanh()
    return (torch.addcmul(new, keep, hidden - new),)


def _lstm(gates: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor) -> States:
    enter, keep, new, leave = gates.chunk(4, -1)
    cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cell.tanh(), cell


STEPS: dict[str, Callable[..., States]] = {
    "GRU": _gru,
    "LSTM": _lstm,
    "RNN_TANH": lambda gates, hidden: (gates.tanh(),),
    "RNN_RELU": lambda gates, hidden: (gates.relu(),),
}
"""How the next states come from the gates, what inputs and state give apart, and the states."""
