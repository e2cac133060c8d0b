"""Whether the time that a study held its device is on bills: the check that no second was left out."""

from __future__ import annotations

from dataclasses import dataclass

from lrsearch.analysis import wording
from lrsearch.trial import StudyRecord


@dataclass(frozen=True)
class HeldTime:
    """Where the seconds went that a study's processes held the device, really billed ones where trials were ganged."""

    held_seconds: float
    billed_seconds: float
    """On the bills of searches."""
    confirming_seconds: float
    """Training again what was chosen."""
    apart_seconds: float
    """Reading data and evaluating on the test set: on nobody's bill."""

    @property
    def share(self) -> float:
        """Of the held seconds, those that are accounted for."""
        return (self.billed_seconds + self.confirming_seconds + self.apart_seconds) / self.held_seconds


def held_time(record: StudyRecord) -> HeldTime | None:
    """Return the account of the held time; None where it is not known.

    A killed process leaves no record of how long it held the device.
    """
    runs = [float(event.data["held_seconds"]) for event in record.events if "held_seconds" in event.data]
    trials = (*record.trials, *record.confirmations)
    attempts = [attempt for trial in trials for attempt in trial.attempts]
    processes = {attempt.owner for trial in record.trials for attempt in trial.attempts}
    if not sum(runs) or "" in processes or len(processes) > len(runs):
        return None
    return HeldTime(
        held_seconds=sum(runs),
        billed_seconds=sum(trial.billed_device_seconds for trial in record.trials),
        confirming_seconds=sum(trial.billed_device_seconds for trial in record.confirmations),
        apart_seconds=sum(attempt.billed_seconds - attempt.billed_device_seconds for attempt in attempts),
    )


def sentence(held: HeldTime) -> str:
    """Return the account in one sentence."""
    again = (
        f", {wording.significant(held.confirming_seconds)} s went into training again what was chosen"
        if held.confirming_seconds
        else ""
    )
    return (
        f"Of {wording.significant(held.held_seconds, 4)} s that the process held the device, "
        f"{wording.significant(held.billed_seconds, 4)} s are on bills{again} and "
        f"{wording.significant(held.apart_seconds)} s are apart: {100 * held.share:.1f} % accounted for."
    )
