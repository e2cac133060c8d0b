"""A study as the table of its report and of the terminal: a row per way, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from lrsearch.analysis import wording
from lrsearch.analysis.cost import DeviceModel, device_models, price_of
from lrsearch.analysis.once import once_per_record
from lrsearch.analysis.searches import higher_is_better, metric_name, metric_range, target_value
from lrsearch.analysis.verdict import Terms, Verdict, judge_ways
from lrsearch.analysis.way_summary import WaySummary, summarise_ways
from lrsearch.analysis.ways import clr_way
from lrsearch.trial import StudyRecord


@dataclass(frozen=True)
class StudySummary:
    """What a study says."""

    name: str
    version: int
    finished: bool
    metric: str
    higher_is_better: bool
    target: float | None
    """The validation value that counts as good enough."""
    usd_per_device_hour: float | None
    devices: tuple[DeviceModel, ...]
    """More than one: their seconds are not comparable, and no row has costs."""
    ways: tuple[WaySummary, ...]
    """In the order of the file."""
    clr: str | None
    """Key of the way that stands for the CLR run."""
    verdict: Verdict

    @property
    def seconds(self) -> str:
        """What a charged second is called: "processor seconds" or "device seconds"."""
        return wording.seconds_noun(self.devices[0].kind if len(self.devices) == 1 else None)

    @property
    def is_processor_time(self) -> bool:
        return any(device.kind == "cpu" for device in self.devices)

    def way(self, key: str) -> WaySummary:
        return next(way for way in self.ways if way.key == key)


@once_per_record
def summarise(record: StudyRecord) -> StudySummary:
    """Compute every number of the report's table; docs/method.md defines them."""
    devices = tuple(device_models(record.trials))
    rows, clr = summarise_ways(record), clr_way(record)
    terms = Terms(
        metric_name(record),
        higher_is_better(record),
        target_value(record),
        wording.seconds_noun(devices[0].kind if devices else None),
        metric_range(record),
    )
    return StudySummary(
        name=record.name,
        version=record.version,
        finished=record.finished,
        metric=terms.metric,
        higher_is_better=terms.higher_is_better,
        target=terms.target,
        usd_per_device_hour=price_of(record),
        devices=devices,
        ways=tuple(rows),
        clr=clr.key if clr else None,
        verdict=judge_ways(
            rows,
            next((row for row in rows if row.way == clr), None),
            terms,
            finished=record.finished,
            device_count=len(devices),
        ),
    )
