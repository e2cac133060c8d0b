from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Literal, TypeVar

from lrsearch.interfaces import Channel, RunTrials, Settings
from lrsearch.trial import TrialResult, TrialSpec

T = TypeVar("T")


class Inline(Settings):
    """Trials run in the orchestrator's own process, one after another."""

    name: Literal["inline"] = "inline"

    @property
    def asynchronous(self) -> bool:
        return False

    def start(self, device: str, code: Path | None = None) -> InlineExecutor:
        return InlineExecutor()


class InlineExecutor:
    """Runs each submission at once and returns a future that is done."""

    slot_count = 1

    def prepare(self, work: Callable[[], T]) -> list[T]:
        return [work()]

    def submit(
        self, run_trials: RunTrials, specs: Sequence[TrialSpec], channel: Channel, slot: int = 0
    ) -> Future[Sequence[TrialResult]]:
        future: Future[Sequence[TrialResult]] = Future()
        future.set_result(run_trials(specs, channel))
        return future

    def close(self) -> None:
        pass
