"""Trials in the orchestrator's own process, one after another: the embedded default."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from lrsearch.interfaces import Channel, RunTrials
from lrsearch.trial import TrialResult, TrialSpec


class Inline:
    """Runs each submission at once and returns a future that is done."""

    slot_count = 1

    def submit(
        self, run_trials: RunTrials, specs: Sequence[TrialSpec], channel: Channel
    ) -> Future[Sequence[TrialResult]]:
        future: Future[Sequence[TrialResult]] = Future()
        future.set_result(run_trials(specs, channel))
        return future

    def close(self) -> None:
        pass
