"""One row of a report's table: everything that a study says of one way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lrsearch.analysis.compare import Mean, Ratio, mean_of, speed_up
from lrsearch.analysis.confirm import Confirmed, confirmed
from lrsearch.analysis.cost import Bill, bill, device_models, price_of
from lrsearch.analysis.pace import range_test_price, working_seconds
from lrsearch.analysis.searches import Search, metric_range, searches, target_value
from lrsearch.analysis.target import Outcome, ReachSummary, reach_summary
from lrsearch.analysis.ways import Way, clr_way, ways
from lrsearch.trial import FINISHED_STATUSES, StudyRecord, TrialRecord


@dataclass(frozen=True)
class WaySummary:
    """All numbers of one way. Means are over its finished searches; None where there is nothing to average."""

    way: Way
    searches_done: int
    searches_planned: int
    models: int
    """Finished searches that gave a model at all."""
    trials: Mapping[str, int]
    """Number of trials by final status, and of those `unfinished`; range tests included."""
    lost_attempts: int
    bill: Bill | None
    """Everything that the way cost, unfinished searches included; None when devices of several models ran it."""
    charged: Mean | None
    """Charged device seconds of a whole search."""
    billed: Mean | None
    """What a whole search really took, by the share of each trial in its gang; None where none trained together."""
    charged_costs: tuple[float, ...]
    """The same of each search."""
    usd: Mean | None
    energy: Mean | None
    """Joules of a whole search by the device's own counter; None where any attempt's are unknown: never 0."""
    overhead: Mean | None
    """Charged seconds of the search over those of the chosen training run alone, but those that it lost."""
    validation: Mean | None
    """Validation value of the chosen model."""
    test: Mean | None
    """Test value of the model that validation chose."""
    reach: ReachSummary | None
    """Against the study's target; None without one."""
    edges: int
    """Searches whose best rate is the lowest or the highest that they tried."""
    outcomes: tuple[Outcome, ...] = ()
    """What each finished search cost to the target; without a target, what the whole search cost."""
    repriced: tuple[Outcome, ...] = ()
    """The same with range tests at what they took beside training runs; empty where that is what they are charged."""
    tests: tuple[float, ...] = ()
    """Test value of each finished search with a model."""
    confirmed: Confirmed | None = None
    """Test value of the chosen settings over fresh seeds; None without confirmation runs."""
    speed_up: Ratio | None = None
    """How many times as much as the CLR run this way costs to the target; None for the CLR run itself."""

    @property
    def key(self) -> str:
        return self.way.key


def summarise_ways(record: StudyRecord) -> list[WaySummary]:
    """Return a row per way in the order of the file, each compared with the CLR run where the study has one."""
    comparable = len(device_models(record.trials)) <= 1
    rows = [_row(record, way, searches(record, way.key), comparable) for way in ways(record)]
    clr = next((row for row in rows if row.way == clr_way(record)), None)
    if clr is None or not clr.outcomes:
        return rows
    return [
        replace(row, speed_up=speed_up(row.outcomes, clr.outcomes)) if row is not clr and row.outcomes else row
        for row in rows
    ]


def _row(record: StudyRecord, way: Way, found: Sequence[Search], comparable: bool) -> WaySummary:
    trials = [trial for search in found for trial in search.trials]
    done = [search for search in found if search.done]
    paid = [search for search in done if comparable and search.charged_device_seconds > 0]
    chosen = [incumbent for search in done if (incumbent := search.incumbent)]
    tests = tuple(value for search in done if (value := search.test_value) is not None)
    outcomes = tuple(_outcome(search, target_value(record)) for search in paid)
    charged = tuple(search.charged_device_seconds for search in paid)
    price, test_price = price_of(record), range_test_price(record)
    return WaySummary(
        way=way,
        searches_done=len(done),
        searches_planned=len(found),
        models=len(chosen),
        trials=_status_counts(trials),
        lost_attempts=sum(attempt.status in ("lost", "interrupted") for trial in trials for attempt in trial.attempts),
        bill=bill(trials, price) if comparable else None,
        charged=mean_of(charged),
        billed=_mean_billed(paid),
        charged_costs=charged,
        usd=None if price is None else mean_of([seconds / 3600 * price for seconds in charged]),
        energy=_mean_energy(paid),
        overhead=mean_of([ratio for search in paid if (ratio := _overhead(search)) is not None]),
        validation=mean_of([one.validation_value for one in chosen], within=metric_range(record)),
        test=mean_of(tests, within=metric_range(record)),
        reach=reach_summary(outcomes) if outcomes and target_value(record) is not None else None,
        edges=sum(one.edge is not None for one in chosen),
        outcomes=outcomes,
        repriced=_repriced(paid, outcomes, test_price) if test_price != 1 else (),
        tests=tests,
        confirmed=confirmed(record, way.key),
    )


def _outcome(search: Search, target: float | None) -> Outcome:
    if target is None:
        return Outcome("reached", search.charged_device_seconds, search.charged_device_seconds)
    return search.outcome(target)


def _repriced(found: Sequence[Search], outcomes: Sequence[Outcome], test_price: float) -> tuple[Outcome, ...]:
    """Return what the searches would have cost with range tests, which come first, at this multiple of their charge."""
    more = [(test_price - 1) * _test_seconds(search) for search in found]
    return tuple(
        replace(one, cost=one.cost + seconds, spent=one.spent + seconds)
        for one, seconds in zip(outcomes, more, strict=True)
    )


def _test_seconds(search: Search) -> float:
    tests = [trial for trial in search.billed if trial.stage == "range_test"]
    return sum(working_seconds(attempt.phase_seconds) for trial in tests for attempt in trial.attempts)


def _status_counts(trials: Sequence[TrialRecord]) -> dict[str, int]:
    counts = Counter(trial.status if trial.status in FINISHED_STATUSES else "unfinished" for trial in trials)
    return {status: counts[status] for status in (*FINISHED_STATUSES, "unfinished")}


def _overhead(search: Search) -> float | None:
    """Return what the search cost over what its chosen training run cost without interruptions."""
    run = search.incumbent.trial if search.incumbent else None
    alone = run.charged_device_seconds - run.phase_seconds["lost"] if run else 0.0
    return search.charged_device_seconds / alone if alone else None


def _mean_billed(paid: Sequence[Search]) -> Mean | None:
    """Return None where both bills are the same. In a study with gangs what trains alone has two as well."""
    attempts = (attempt for search in paid for trial in search.billed for attempt in trial.attempts)
    if all(attempt.billed_phase_seconds is None for attempt in attempts):
        return None
    return mean_of([sum(trial.billed_device_seconds for trial in search.billed) for search in paid])


def _mean_energy(paid: Sequence[Search]) -> Mean | None:
    """A lost attempt's energy is known to nobody, so that its search's is not either."""
    found: list[float] = []
    for search in paid:
        joules = [trial.result.energy_joules if trial.result else None for trial in search.billed]
        known = [one for one in joules if one is not None]
        if len(known) < len(joules) or any(len(trial.attempts) > 1 for trial in search.billed):
            return None
        found.append(sum(known))
    return mean_of(found)
