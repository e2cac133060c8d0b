"""What the ways of a study are, as its file says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lrsearch.trial import StudyRecord

TELLING = ("points", "trials", "sampler", "pruner", "policy", "repeats", "test", "reduction_factor", "cycles", "epochs")
"""The settings by which people know a way; the file has the rest."""
UNTOLD = (None, "none", "default", "per_seed", 1)
"""Values that say no more than the name alone."""
CYCLICAL = ("triangular", "triangular2", "exp_range", "exp_range_paper", "one_cycle", "cosine_restarts")


@dataclass(frozen=True)
class Way:
    """A strategy of the study file: where its rate comes from, and the schedule that it is put into."""

    key: str
    origin: str
    """The strategy's registry name, such as grid or range_tested."""
    schedule: str
    """The schedule's registry name; `constant` when the strategy names none."""
    description: str
    """Such as "range_tested, triangular2 (cycles 2)"."""
    bounds_given: bool = False
    """Whether a range-tested way has its bounds from the file: then no test is on its bill."""
    optimizer: str | None = None
    """The name of its own, where it has one instead of the study's."""

    @property
    def is_range_tested(self) -> bool:
        return self.origin == "range_tested" and not self.bounds_given

    @property
    def is_search(self) -> bool:
        """Whether the way looks for a rate by training with several: what CLR claims to save."""
        return self.origin not in ("range_tested", "default_rate")


def ways(record: StudyRecord) -> list[Way]:
    """Return the ways in the order of the file."""
    return [_way(key, settings) for key, settings in record.config["strategies"].items()]


def clr_way(record: StudyRecord) -> Way | None:
    """Return "the CLR run": the first range-tested way with a cyclical schedule, else the first of any shape."""
    range_tested = [way for way in ways(record) if way.is_range_tested]
    cyclical = [way for way in range_tested if way.schedule in CYCLICAL]
    return next(iter(cyclical + range_tested), None)


def _way(key: str, settings: Mapping[str, Any]) -> Way:
    schedule: Mapping[str, Any] = settings.get("schedule") or {"name": "constant"}
    origin, shape = str(settings["name"]), str(schedule["name"])
    bounds_given = settings.get("max_lr") is not None
    told = f"{origin}{' with bounds from the file' if bounds_given else _in_brackets(settings)}"
    optimizer: Mapping[str, Any] | None = settings.get("optimizer")
    own = str(optimizer["name"]) if optimizer else None
    trained = f", {own}" if own else ""
    return Way(key, origin, shape, f"{told}{trained}, {shape}{_in_brackets(schedule)}", bounds_given, own)


def _in_brackets(settings: Mapping[str, Any]) -> str:
    """Return the telling settings as " (points 8)", those that are off or left alone passed over."""
    told = {key: settings[key] for key in TELLING if settings.get(key) not in UNTOLD}
    shown = [f"{key} {str(value).replace('_', ' ')}" for key, value in told.items()]
    searched = ["searching learning_rate, " + ", ".join(settings["search"])] if settings.get("search") else []
    return f" ({', '.join(shown + searched)})" if shown or searched else ""
