"""What trials cost: seconds by phase, what of it was wasted, money."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lrsearch.errors import UsageError
from lrsearch.trial import PHASES, StudyRecord, TrialRecord, charged_seconds

WASTED_STATUSES = ("diverged", "failed", "pruned")


class DeviceModel(NamedTuple):
    """What makes seconds comparable: the same kind and model of device."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})"


@dataclass(frozen=True)
class Bill:
    """The cost of some trials on one model of device."""

    device: DeviceModel | None
    """None when no attempt lived long enough to name its device."""
    phase_seconds: Mapping[str, float]
    """All phases, those shown apart included."""
    wasted_seconds: float
    """Charged seconds that gave no finished model: diverged, failed and pruned trials, and all lost attempts."""
    core_seconds: float | None
    """Processor time; None where an attempt could not say (it was killed)."""
    usd: float | None
    """None without a price."""

    @property
    def charged_device_seconds(self) -> float:
        return charged_seconds(self.phase_seconds)

    @property
    def wasted_share(self) -> float | None:
        charged = self.charged_device_seconds
        return self.wasted_seconds / charged if charged else None


def bill(trials: StudyRecord | Iterable[TrialRecord], usd_per_device_hour: float | None = None) -> Bill:
    """Add up what `trials` cost: every phase of every attempt, whatever became of the trial (METHOD section 2).

    usd = charged seconds / 3600 x price. Raises UsageError for trials of several models of device: their seconds are
    never added together; take `bills`.
    """
    trials = tuple(trials.trials if isinstance(trials, StudyRecord) else trials)
    devices = device_models(trials)
    if len(devices) > 1:
        raise UsageError(
            f"Seconds of different devices are never added together, got {', '.join(map(str, devices))}; "
            "bill each device by itself."
        )
    phases = {phase: sum(trial.phase_seconds[phase] for trial in trials) for phase in PHASES}
    cores = [attempt.core_seconds for trial in trials for attempt in trial.attempts]
    charged = charged_seconds(phases)
    return Bill(
        device=devices[0] if devices else None,
        phase_seconds=phases,
        wasted_seconds=sum(wasted_seconds(trial) for trial in trials),
        core_seconds=None if None in cores else sum(core for core in cores if core is not None),
        usd=None if usd_per_device_hour is None else charged / 3600 * usd_per_device_hour,
    )


def wasted_seconds(trial: TrialRecord) -> float:
    """Return the charged seconds of `trial` that gave no finished model."""
    if trial.status in WASTED_STATUSES:
        return trial.charged_device_seconds
    unfinished = (attempt for attempt in trial.attempts if attempt.status in ("lost", "interrupted"))
    return sum(charged_seconds(attempt.phase_seconds) for attempt in unfinished)


def device_models(trials: Iterable[TrialRecord]) -> list[DeviceModel]:
    """Return the models of device that `trials` ran on, in order of appearance."""
    devices = (attempt.device for trial in trials for attempt in trial.attempts)
    return list(dict.fromkeys(DeviceModel(device.kind, device.name) for device in devices if device is not None))


def price_of(record: StudyRecord) -> float | None:
    """Return the study file's price of a device hour in USD, or None."""
    price = record.config.get("price")
    return None if price is None else float(price["usd_per_device_hour"])
