"""Examples in parts, with functions for model, loss and metric: what `callable`, `diabetes` and `text` load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lrsearch.interfaces import Batch, Split
from lrsearch.restore import find_generators
from lrsearch.trial import WorkloadFacts
from lrsearch.workloads._user_data import Examples, LoaderPart, TensorPart

SAMPLED_ROWS = 64


@dataclass(frozen=True)
class Splits:
    """The examples as one seed splits them."""

    train: Examples | LoaderPart
    validation: Examples
    range_test: Examples
    test: Examples


class LoadedExamples:
    """Implements `LoadedWorkload`, `HasOwnChance`, `ReadsExamples` and `SamplesItsData`."""

    def __init__(
        self,
        facts: WorkloadFacts,
        splits: Splits,
        device: torch.device,
        *,
        build: Callable[[], torch.nn.Module],
        loss: Callable[[Any, Any], torch.Tensor],
        metric: Callable[[Any, Any], float],
    ) -> None:
        """`build` may return the model on any device."""
        self.facts = facts
        self._splits = splits
        self._device = device
        self._build = build
        self.loss = loss
        self.metric = metric

    def build_model(self) -> torch.nn.Module:
        return self._build().to(self._device)

    def train_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        return self._splits.train.shuffled(self.facts.batch_size, generator, self._device)

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        part: Examples = getattr(self._splits, split)
        return part.in_order(self.facts.batch_size, self._device)

    @property
    def reads_examples(self) -> bool:
        return not isinstance(self._splits.train, TensorPart)

    @property
    def data_sample(self) -> Sequence[float]:
        """Means of some rows; of inputs that may be others at each reading none, nor of such a training part."""
        of_evaluation = [part.targets for part in (self._splits.validation, self._splits.test)]
        kept = [part for part in (self._splits.train, self._splits.test) if isinstance(part, TensorPart)]
        inputs = [part.inputs[part.rows[:: max(1, len(part.rows) // SAMPLED_ROWS)]] for part in kept]
        targets = [every[:: max(1, len(every) // SAMPLED_ROWS)] for every in of_evaluation]
        rows = [one.flatten(1) if one.ndim > 1 else one[:, None] for one in (*inputs, *targets)]
        return [mean for one in rows if not one.is_complex() for mean in one.double().mean(1).tolist()]

    @property
    def random_sources(self) -> Sequence[object]:
        parts = (self._splits.train, self._splits.validation, self._splits.test)
        return [*(source for part in parts for source in part.random_sources), *find_generators(self.loss)]
