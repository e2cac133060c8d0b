"""Multi-head attention (Vaswani et al., 2017) of several copies at once, K of them, as `nn.MultiheadAttention` has it.

N rows, H heads, L queries, S keys. The heads of all copies are those of K * N rows; the projections of each copy are
one of K products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from lrsearch.linear import linear


def multi_head_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    own: Mapping[str, torch.Tensor],
    *,
    heads: int,
    mask: torch.Tensor | None,
    is_causal: bool,
    dropout: float,
    tells_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what the heads have found, (K, N, L, features), and how they weigh the keys, (K, N, H, L, S), if asked.

    Queries, keys and values are (K, N, L or S, features); what is one tensor is projected at once. `own` are the
    module's parameters by name, one row per copy. `mask`, (K or 1, N or 1, H or 1, L or 1, S), is added to the scores;
    where `is_causal`, there is none. Every copy drops the weights that one alone would, and what is found lies in
    memory as that of a copy alone: by L before N.
    """
    count, rows, length, features = query.shape
    queries, keys, values = (
        one.view(count * rows, -1, heads, features // heads).transpose(1, 2)
        for one in _projected(query, key, value, own)
    )
    if mask is not None:
        mask = mask.expand(count, rows, *mask.shape[2:]).flatten(0, 1)
    weights = None
    if tells_weights or dropout:
        scores = (queries * math.sqrt(heads / features)) @ keys.mT
        if is_causal:
            mask = torch.full(scores.shape[-2:], -math.inf, dtype=scores.dtype, device=scores.device).triu(1)
        if mask is None:
            weights = scores.softmax(-1)
        elif tells_weights:
            weights = (scores + mask).softmax(-1)
        else:  # who sees no key finds 0 here
            sees_none = mask.isneginf().all(-1, keepdim=True)
            weights = (scores + mask.masked_fill(sees_none, 0.0)).softmax(-1).masked_fill(sees_none, 0.0)
        weights = weights.view(count, rows, *scores.shape[1:])
        if dropout:
            weights = weights * torch.dropout(torch.ones_like(weights[0]), dropout, True)
        found = weights.flatten(0, 1).to(values.dtype) @ values
    else:
        found = F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=is_causal)
    found = found.view(count, rows, heads, length, -1).permute(0, 3, 1, 2, 4).reshape(count, length * rows, features)
    outputs = linear(found, own["out_proj.weight"], own.get("out_proj.bias")).view(count, length, rows, features)
    return outputs.transpose(1, 2), weights if tells_weights else None


def _projected(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, own: Mapping[str, torch.Tensor]
) -> Sequence[torch.Tensor]:
    """Return queries, keys and values, (K, N * length, features) each."""
    weight, bias = own["in_proj_weight"], own.get("in_proj_bias")
    if query is key is value:
        return linear(query.flatten(1, 2), weight, bias).chunk(3, -1)
    weights, biases = weight.chunk(3, 1), [None] * 3 if bias is None else bias.chunk(3, 1)
    inputs = (one.flatten(1, 2) for one in (query, key, value))
    return [linear(*one) for one in zip(inputs, weights, biases, strict=True)]
