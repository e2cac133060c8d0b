"""The training batches of a run, in an order that its seed alone decides; they can be left and found again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lrsearch import chance
from lrsearch.interfaces import Batch, LoadedWorkload


class Batches:
    """An endless iterator over training batches, epoch after epoch.

    `own` are the generators that the data and the model have for themselves, beside the global ones.
    """

    def __init__(self, loaded: LoadedWorkload, seed: int, own: Sequence[object] = ()) -> None:
        self._loaded = loaded
        self._generator = torch.Generator().manual_seed(seed)
        self._own = own
        self._epoch: Iterator[Batch] = iter(())
        self._taken = 0
        self.keeps_place = False
        """Whether `position` may be asked for: then each epoch remembers how it began."""
        self._began: tuple[dict[str, Any], torch.Tensor] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._epoch, None)
        if batch is None:
            if self.keeps_place:
                self._began = chance.snapshot(self._own), self._generator.get_state()
            self._epoch, self._taken = self._loaded.train_batches(self._generator), 0
            batch = next(self._epoch)
        self._taken += 1
        return batch

    def position(self) -> dict[str, Any]:
        """Return where this is, and the state of all chance, as tensors, numbers and text."""
        began = None
        if self._began is not None:
            # Also at an epoch's end: torch's RandomSampler draws once more when it is asked for more than it has.
            began = {"chance": chance.encoded(self._began[0]), "generator": self._began[1]}
        return {
            "taken": self._taken,
            "began": began,
            "chance": chance.encoded(chance.snapshot(self._own)),
            "generator": self._generator.get_state(),
        }

    def go_to(self, position: dict[str, Any]) -> None:
        """Go on from where `position` was asked for: draw the epoch's batches again up to there, and throw them away.

        Raises ValueError when an epoch is too short for that, or the data or the model have other generators of their
        own than then.
        """
        self._epoch, self._taken = iter(()), position["taken"]
        began = position["began"]
        if began is not None:
            self._began = chance.decoded(began["chance"]), began["generator"]
            chance.restore(self._began[0], self._own)
            self._generator.set_state(began["generator"])
            self._epoch = self._loaded.train_batches(self._generator)
            for _ in range(self._taken):
                if next(self._epoch, None) is None:
                    raise ValueError("an epoch has fewer batches than then")
        chance.restore(chance.decoded(position["chance"]), self._own)
        self._generator.set_state(position["generator"])
