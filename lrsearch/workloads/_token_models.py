"""Language models: from token ids, (rows, length), to values for what comes next, (rows, length, symbols).

Initial weights are torch's own, drawn from its global generator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Gru(nn.Module):
    """An embedding of 64, one layer of 128 gated recurrent units (Cho et al., 2014), a linear answer."""

    def __init__(self, symbol_count: int, sequence_length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbol_count, 64)
        self.recurrent = nn.GRU(64, 128, batch_first=True)
        self.head = nn.Linear(128, symbol_count)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.recurrent(self.embedding(tokens))[0])
        return outputs


class Transformer(nn.Module):
    """Two causal pre-norm blocks (Vaswani et al., 2017) of width 64 with four heads, learned positions, no dropout."""

    def __init__(self, symbol_count: int, sequence_length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbol_count, 64)
        self.positions = nn.Parameter(torch.randn(sequence_length, 64) * 0.02)  # deviation as in GPT-2
        block = nn.TransformerEncoderLayer(
            64, 4, 256, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 2, nn.LayerNorm(64), enable_nested_tensor=False)
        self.head = nn.Linear(64, symbol_count)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        outputs: torch.Tensor = self.head(
            self.blocks(self.embedding(tokens) + self.positions[:length], mask=mask, is_causal=True)
        )
        return outputs


TOKEN_MODELS: dict[str, Callable[[int, int], nn.Module]] = {"gru": Gru, "transformer": Transformer}
