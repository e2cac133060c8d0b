from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Literal, TypeVar

from lrsearch.errors import DeviceFaultError, StudyFailedError
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
        try:
            future.set_result(run_trials(specs, channel))
        except DeviceFaultError as error:
            trial = f"{specs[0].strategy}, seed {specs[0].seed}, trial {specs[0].number}"
            raise StudyFailedError(
                f"{trial} cannot end, nor can others in this process: {error}. With `executor: {{name: process}}` it "
                "takes no other with it, and counts as failed."
            ) from error
        return future

    def close(self) -> None:
        pass
