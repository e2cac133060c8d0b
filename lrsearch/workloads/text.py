"""Language modelling: predict each token of a text file from those before it.

The text is cut into sequences of `sequence_length` tokens and the token after them; no two share a token. The last
tenth of them is the test set, always the same. A contiguous stretch of the rest, `validation_fraction` long and
elsewhere for each seed, is the validation split. Tokens are bytes (256 of them) or the characters that the text has.

The loss is cross-entropy per token and the metric perplexity, its exponential: the lower the better, 1 is perfect.
Chance is the perplexity of always answering the token frequencies of the training split, measured on that split.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lrsearch.workloads._settings import WorkloadSettings

if TYPE_CHECKING:
    import torch

    from lrsearch.interfaces import LoadedWorkload


class Text(WorkloadSettings):
    """Any text file, or the data set descriptions that come with scikit-learn (43 kB of English): no download.

    A split's outputs are held at once, four bytes for each token and each symbol it may be: 1 GB for 1 MB of bytes.
    """

    name: Literal["text"] = "text"
    path: Path | None = None
    tokens: Literal["bytes", "characters"] = "bytes"
    sequence_length: int = Field(default=64, ge=1)
    batch_size: int = Field(default=16, ge=1)
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    model: Literal["gru", "transformer"] = "gru"

    @property
    def measures(self) -> str:
        return "perplexity"

    def load(self, device: torch.device, seed: int) -> LoadedWorkload:
        from lrsearch.workloads._text import load_text

        return load_text(self, device, seed)
