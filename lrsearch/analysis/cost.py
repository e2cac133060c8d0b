"""What trials cost: seconds by phase, what of it was wasted, money, energy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lrsearch.analysis.plain import plain_number
from lrsearch.errors import UsageError, did_you_mean
from lrsearch.trial import PHASES, StudyRecord, TrialRecord, charged_seconds

OTHER_SECONDS = ("charged_device_seconds", "billed_device_seconds", "core_seconds", "last_attempt_seconds")
"""Columns of the exported table that are no phases."""
WASTED_STATUSES = ("diverged", "failed", "pruned")


class DeviceModel(NamedTuple):
    """What makes seconds comparable: the same kind and model of device."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})"


@dataclass(frozen=True)
class Charge:
    """What one trial puts on a bill, in plain values."""

    phase_seconds: Mapping[str, float]
    """Wall seconds x devices held; keys from PHASES."""
    wasted_seconds: float = 0.0
    """Charged seconds among them that gave no finished model."""
    devices: tuple[DeviceModel, ...] = ()
    core_seconds: float | None = None
    energy_joules: float | None = None


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
    energy_joules: float | None = None
    """None where a trial could not say: no meter, or an attempt that was killed."""

    @property
    def charged_device_seconds(self) -> float:
        return charged_seconds(self.phase_seconds)

    @property
    def wasted_share(self) -> float | None:
        charged = self.charged_device_seconds
        return self.wasted_seconds / charged if charged else None


Phases = StudyRecord | Mapping[str, float | None] | Iterable[TrialRecord | Charge | Mapping[str, Any]]


def bill(phases: Phases, price: float | Mapping[str, Any] | None = None) -> Bill:
    """Add up what trials cost: every phase of every attempt, whatever became of the trial (docs/method.md, section 2).

    `phases` is a study, its trials, Charges, a mapping of phase to seconds, or rows as the trials table exports them:
    seconds under the phase's name or `<phase>_seconds`, and, where known, `status`, `device_kind`, `device_name`,
    `core_seconds` and `energy_joules`. `price` is in USD per device hour, or as the study file has it:
    usd = charged seconds / 3600 x price. Wasted are the seconds of diverged, failed and pruned trials and the phase
    `lost`. What one trial cannot say (energy, core seconds) is unknown for all: None, never 0.

    Raises UsageError for trials of several models of device, whose seconds are never added together, and for a phase
    that does not exist.

    >>> bill({"range_test": 1.0, "train": 8.0, "lost": 1.0, "data": 5.0}, price=3600.0).usd
    10.0
    """
    charges = _charges(phases)
    devices = list(dict.fromkeys(device for charge in charges for device in charge.devices))
    if len(devices) > 1:
        raise UsageError(
            f"Seconds of different devices are never added together, got {', '.join(map(str, devices))}; "
            "bill each device by itself."
        )
    seconds = {phase: sum(charge.phase_seconds.get(phase, 0.0) for charge in charges) for phase in PHASES}
    per_hour = price.get("usd_per_device_hour") if isinstance(price, Mapping) else price
    return Bill(
        device=devices[0] if devices else None,
        phase_seconds=seconds,
        wasted_seconds=sum(charge.wasted_seconds for charge in charges),
        core_seconds=sum_if_known(charge.core_seconds for charge in charges),
        usd=None if per_hour is None else charged_seconds(seconds) / 3600 * float(per_hour),
        energy_joules=sum_if_known(charge.energy_joules for charge in charges),
    )


def _charges(phases: Phases) -> list[Charge]:
    if isinstance(phases, StudyRecord):
        phases = phases.trials
    if isinstance(phases, Mapping):
        seconds = _phase_seconds(phases)
        return [Charge(seconds, seconds["lost"])]
    return [_charge(one) for one in phases]


def _charge(one: TrialRecord | Charge | Mapping[str, Any]) -> Charge:
    if isinstance(one, Charge):
        return one
    if not isinstance(one, TrialRecord):
        return _charge_of_row(one)
    alone = len(one.attempts) == 1  # the energy of an attempt that was killed is not known
    return Charge(
        one.phase_seconds,
        wasted_seconds(one),
        tuple(device_models([one])),
        sum_if_known(attempt.core_seconds for attempt in one.attempts),
        one.result.energy_joules if one.result and alone else None,
    )


def _charge_of_row(row: Mapping[str, Any]) -> Charge:
    seconds = _phase_seconds({key: row[key] for key in row if _phase_of(key) in PHASES or _is_seconds(key)})
    kind = row.get("device_kind")
    return Charge(
        seconds,
        charged_seconds(seconds) if row.get("status") in WASTED_STATUSES else seconds["lost"],
        (DeviceModel(str(kind), str(row.get("device_name") or "unnamed")),) if kind else (),
        plain_number(row.get("core_seconds")),
        plain_number(row.get("energy_joules")) if (plain_number(row.get("attempts")) or 1) == 1 else None,
    )


def _phase_seconds(named: Mapping[str, Any]) -> dict[str, float]:
    seconds = dict.fromkeys(PHASES, 0.0)
    for key, value in named.items():
        phase = _phase_of(key)
        if phase not in PHASES:
            raise UsageError(f"Unknown phase {phase!r}; known: {', '.join(PHASES)}.{did_you_mean(phase, PHASES)}")
        seconds[phase] += plain_number(value) or 0.0
    return seconds


def _phase_of(key: str) -> str:
    return key.removesuffix("_seconds")


def _is_seconds(key: str) -> bool:
    return key.endswith("_seconds") and key not in OTHER_SECONDS


def sum_if_known(values: Iterable[float | None]) -> float | None:
    """Return the sum; None when there is nothing to add or something is unknown."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if known and len(known) == len(found) else None


def wasted_seconds(trial: TrialRecord) -> float:
    """Return the charged seconds of `trial` that gave no finished model."""
    return trial.charged_device_seconds if trial.status in WASTED_STATUSES else trial.phase_seconds["lost"]


def device_models(trials: Iterable[TrialRecord]) -> list[DeviceModel]:
    """Return the models of device that `trials` ran on, in order of appearance."""
    devices = (attempt.device for trial in trials for attempt in trial.attempts)
    return list(dict.fromkeys(DeviceModel(device.kind, device.name) for device in devices if device is not None))


def price_of(record: StudyRecord) -> float | None:
    """Return the study file's price of a device hour in USD, or None."""
    price = record.config.get("price")
    return None if price is None else float(price["usd_per_device_hour"])
