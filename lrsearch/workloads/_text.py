"""A text as sequences of tokens on a device; `text` says how it is cut."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lrsearch.errors import DataError
from lrsearch.trial import WorkloadFacts
from lrsearch.workloads._examples import LoadedExamples, Splits
from lrsearch.workloads._scikit_learn import datasets_folder
from lrsearch.workloads._splits import range_test_subset, steps_per_epoch
from lrsearch.workloads._token_models import TOKEN_MODELS
from lrsearch.workloads._user_data import TensorPart
from lrsearch.workloads._weights import origin, started
from lrsearch.workloads.text import Text

TEST_FRACTION = 0.1


def load_text(settings: Text, device: torch.device, seed: int) -> LoadedExamples:
    sequences, symbol_count = _sequences(settings.path, settings.tokens, settings.sequence_length)
    splits = _split(torch.from_numpy(sequences).to(device), settings.validation_fraction, seed)
    train_count = len(splits.train.targets)

    def build() -> torch.nn.Module:
        return TOKEN_MODELS[settings.model](symbol_count, settings.sequence_length)

    with torch.random.fork_rng(devices=[]):
        parameter_count = sum(parameter.numel() for parameter in build().parameters())
    facts = WorkloadFacts(
        metric=settings.measures,
        higher_is_better=False,
        chance=unigram_perplexity(splits.train.targets),
        train_count=train_count,
        validation_count=len(splits.validation.targets),
        test_count=len(splits.test.targets),
        range_test_count=len(splits.range_test.targets),
        steps_per_epoch=steps_per_epoch(train_count, settings.batch_size),
        batch_size=settings.batch_size,
        parameter_count=parameter_count,
        input_shape=(settings.sequence_length,),
        class_count=symbol_count,
        description=_describe(settings, len(sequences)),
    )
    return LoadedExamples(
        facts, splits, device, build=lambda: started(build(), settings), loss=token_cross_entropy, metric=perplexity
    )


def token_cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean over all tokens: (rows, length, symbols) against (rows, length)."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def perplexity(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the exponential of the loss per token; infinite where that overflows.

    Not torchmetrics': its softmax underflows, so that one badly missed token (e.g. 110 below the best) is infinite.
    """
    return float(token_cross_entropy(outputs, targets).exp())


def unigram_perplexity(targets: torch.Tensor) -> float:
    """Return the perplexity of answering these tokens by their own frequencies.

    >>> unigram_perplexity(torch.tensor([0, 1, 2, 3]))
    4.0
    """
    shares = torch.unique(targets, return_counts=True)[1].double() / targets.numel()
    return float(torch.exp(-(shares * shares.log()).sum()))


@lru_cache(maxsize=2)
def _sequences(path: Path | None, tokens: str, sequence_length: int) -> tuple[NDArray[np.int64], int]:
    """Return rows of `sequence_length` + 1 tokens, and how many symbols a token may be."""
    content = _read(path)
    if tokens == "bytes":
        every, symbol_count = np.frombuffer(content, np.uint8).astype(np.int64), 256
    else:
        symbols, every = np.unique(np.array(list(_decoded(content, path)), dtype=str), return_inverse=True)
        symbol_count = len(symbols)
    width = sequence_length + 1
    count = len(every) // width
    if count < 3:
        raise DataError(
            f"{path or 'The built-in text'} has {len(every)} tokens, but one sequence of {sequence_length} and the "
            f"token after it for each of training, validation and test need {3 * width}: give a longer text, or lower "
            "workload.sequence_length."
        )
    return every[: count * width].reshape(count, width), symbol_count


def _read(path: Path | None) -> bytes:
    """Return the file, or the data set descriptions of scikit-learn in the order of their names."""
    if path is None:
        return b"\n".join(entry.read_bytes() for entry in sorted((datasets_folder() / "descr").glob("*.rst")))
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"The text {path} cannot be read ({error.strerror or error}): point workload.path at a text file."
        ) from error


def _decoded(content: bytes, path: Path | None) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"The text {path} is not UTF-8 (byte {error.start}): convert it, or set workload.tokens to bytes."
        ) from error


def _split(sequences: torch.Tensor, validation_fraction: float, seed: int) -> Splits:
    generator, count = np.random.default_rng(seed), len(sequences)
    pool_count = count - max(1, round(count * TEST_FRACTION))
    held_back = min(max(1, round(pool_count * validation_fraction)), pool_count - 1)
    start = int(generator.integers(pool_count - held_back + 1))
    validation = np.arange(start, start + held_back)
    train = np.setdiff1d(np.arange(pool_count), validation, assume_unique=True)
    subset = range_test_subset(np.zeros(count, np.int64), validation, generator)
    whole = TensorPart(sequences[:, :-1], sequences[:, 1:], torch.arange(count, device=sequences.device))
    parts = [whole.subset(torch.from_numpy(rows)) for rows in (train, validation, subset, np.arange(pool_count, count))]
    return Splits(*parts)


def _describe(settings: Text, count: int) -> str:
    source = settings.path.name if settings.path else "data set descriptions of scikit-learn"
    cut = f"{count} sequences of {settings.sequence_length} {settings.tokens}"
    return f"{source}, {cut}, model {settings.model}{origin(settings)}"
