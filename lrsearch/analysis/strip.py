"""The strip of a report: what ran, on what, when, with which versions; first as numbers, then in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from lrsearch.analysis import wording
from lrsearch.analysis.cost import DeviceModel, price_of
from lrsearch.analysis.summary import summarise
from lrsearch.trial import Event, StudyRecord

EXCLUSIVE_BELOW = 0.1  # processors kept busy by others, assumed: what an idle system's own services take
COUNTS = ("train_count", "validation_count", "test_count")
UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""Of attempts in a table that has no times."""


@dataclass(frozen=True)
class Together:
    """Trials that trained together, and their two bills in charged seconds."""

    trials: int
    largest: int
    """The most at a time."""
    billed_seconds: float
    """What they really took."""
    charged_seconds: float
    """What each would have taken alone."""
    step_seconds: tuple[float, ...]
    """What a step alone takes, of each kind of trials, by which all are charged; empty where nobody noted it."""


@dataclass(frozen=True)
class Strip:
    """What a study's numbers come from."""

    searches_done: int
    searches_planned: int
    ways: int
    seeds: int
    trials: int
    together: Together | None
    workload: str
    train_count: int | None
    """Examples of a search's training part; None where nobody noted it."""
    validation_count: int | None
    test_count: int | None
    devices: tuple[DeviceModel, ...]
    threads: tuple[int, ...]
    """That torch used for one operation; empty where nobody noted it."""
    precision: str
    """In what models computed."""
    processors: int | None
    """Of the machine that runs noted last."""
    busy_with_others: float | None
    """Of these processors, by other programs: the mean over runs by their length; None where nobody noted it."""
    began: datetime | None
    ended: datetime | None
    versions: Mapping[str, list[str]]
    """Of each package that attempts ran with, in order of appearance."""
    commits: tuple[str, ...]
    """Of the study file's folder."""
    usd_per_device_hour: float | None
    price_as_of: str | None


def strip(record: StudyRecord) -> Strip:
    """Return what ran."""
    summary = summarise(record)
    attempts = [attempt for trial in record.trials for attempt in trial.attempts]
    noted = _surroundings(record)
    return Strip(
        searches_done=sum(way.searches_done for way in summary.ways),
        searches_planned=sum(way.searches_planned for way in summary.ways),
        ways=len(summary.ways),
        seeds=len(record.seeds),
        trials=len(record.trials),
        together=_together(record),
        **{name: getattr(record.facts, name, 0) or None for name in COUNTS},
        workload=record.facts.description if record.facts else str(record.config["workload"]["name"]),
        devices=summary.devices,
        threads=tuple(sorted({one.device.threads for one in attempts if one.device and one.device.threads})),
        precision=_precision(record),
        processors=int(noted[-1].data.get("processors") or 1) if noted else None,
        busy_with_others=busy_with_others(record),
        began=min((one.started_at for one in attempts if one.started_at != UNKNOWN_TIME), default=None),
        ended=max((one.finished_at for one in attempts if one.finished_at), default=None),
        versions=package_versions(record),
        commits=tuple(dict.fromkeys(str(one.data["commit"]) for one in noted if one.data.get("commit"))),
        usd_per_device_hour=price_of(record),
        price_as_of=None if price_of(record) is None else str(record.config["price"].get("as_of", "an unknown day")),
    )


def _together(record: StudyRecord) -> Together | None:
    members = [trial for trial in record.trials if trial.gang_size > 1]
    if not members:
        return None
    return Together(
        len(members),
        max(trial.gang_size for trial in members),
        sum(trial.billed_device_seconds for trial in members),
        sum(trial.charged_device_seconds for trial in members),
        tuple(
            cost["step_seconds"]
            for event in record.events
            if event.kind == "charged_by"
            for cost in event.data["costs"].values()
        ),
    )


def _precision(record: StudyRecord) -> str:
    """Return in what the models computed; runs of one study may differ when `auto` found another device."""
    found = dict.fromkeys(str(event.data["precision"]) for event in record.events if "precision" in event.data)
    training = record.config["training"]
    faster = {
        "on": ", compiled by torch.compile",
        "gangs": ", steps of gangs compiled by torch.compile",
        "graphs": ", steps replayed as CUDA graphs",
    }
    precision = " and ".join(found or [str(training.get("precision", "not recorded"))])
    layout = ", weights channels last" if training.get("memory_format") == "channels_last" else ""
    layout += ", matrices multiplied by oneDNN where exact" if training.get("matmul") == "onednn" else ""
    return precision + layout + faster.get(str(training.get("compile")), "")


def _surroundings(record: StudyRecord) -> list[Event]:
    return [event for event in record.events if event.kind == "surroundings"]


def busy_with_others(record: StudyRecord) -> float | None:
    """Return how many processors other programs kept busy, the mean over runs by their length; None if not recorded."""
    known = [one.data for one in _surroundings(record) if one.data.get("busy_with_others") is not None]
    seconds = sum(one["seconds"] for one in known)
    return sum(one["busy_with_others"] * one["seconds"] for one in known) / seconds if seconds else None


def package_versions(record: StudyRecord) -> dict[str, list[str]]:
    """Return the versions of each package that attempts ran with, in order of appearance."""
    found: dict[str, dict[str, None]] = {}
    for trial in record.trials:
        for attempt in trial.attempts:
            for name, version in attempt.versions.items():
                found.setdefault(name, {})[version] = None
    return {name: list(versions) for name, versions in found.items()}


def strip_lines(found: Strip) -> list[tuple[str, str]]:
    """Return the strip in words: the name of each fact, and the fact."""
    ended = f"{wording.moment(found.began)} to {wording.moment(found.ended)}" if found.began and found.ended else ""
    lines = [
        (
            "Searches",
            f"{found.searches_done} of {found.searches_planned} done, "
            f"{wording.counted(found.ways, 'way')} × {wording.counted(found.seeds, 'seed')}",
        ),
        ("Trials", str(found.trials)),
        *_trained_together(found.together),
        ("Workload", found.workload),
        *_examples(found),
        ("Device", ", ".join(map(str, found.devices)) or "not known yet"),
        ("Threads", ", ".join(map(str, found.threads))),
        ("Precision", found.precision),
        ("Shared with others?", _sharing(found)),
        ("Ran", ended),
        ("Versions", ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.versions.items())),
        ("Commit of the study's folder", ", ".join(found.commits) or "not recorded"),
    ]
    if found.usd_per_device_hour is not None:
        price = f"{wording.usd(found.usd_per_device_hour)} per device hour, as of {found.price_as_of}"
        lines.append(("Price", price))
    return [(name, text or "–") for name, text in lines]


def _trained_together(together: Together | None) -> list[tuple[str, str]]:
    """Return, where trials trained together, how many and which of their two bills the page is about."""
    if together is None:
        return []
    text = (
        f"{together.trials} trials, up to {together.largest} at a time, in "
        f"{wording.significant(together.billed_seconds)} s; all costs below charge what each takes alone, "
        f"{wording.significant(together.charged_seconds)} s"
    )
    if together.step_seconds:
        steps = " or ".join(f"{wording.significant(1e3 * seconds)}" for seconds in together.step_seconds)
        text += f", by {steps} ms a step, timed before the study"
    return [("Trained together", text)]


def _examples(found: Strip) -> list[tuple[str, str]]:
    counts = (found.train_count, found.validation_count, found.test_count)
    if None in counts:
        return []
    return [("Examples", "{} to train, {} for validation, {} to test".format(*counts))]


def _sharing(found: Strip) -> str:
    """Return whether other programs worked on the machine."""
    if found.busy_with_others is None:
        return "not recorded"
    kind = "exclusive" if found.busy_with_others < EXCLUSIVE_BELOW else "shared"
    processors = wording.counted(found.processors or 1, "processor")
    only = "" if all(one.kind == "cpu" for one in found.devices) else "; of the accelerator: not recorded"
    return f"{kind}: other programs kept {wording.significant(found.busy_with_others, 2)} of {processors} busy{only}"
