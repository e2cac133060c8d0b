"""What searches chose, trained again with fresh seeds: the winner's own score carries the winner's curse."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from statistics import fmean, variance

from lrsearch.analysis.compare import cut, t_quantile
from lrsearch.analysis.searches import Search, metric_range, searches
from lrsearch.analysis.ways import ways
from lrsearch.trial import FINISHED_STATUSES, Proposal, StudyRecord, TrialRecord, charged_seconds

FIRST_FRESH_SEED = 1_000_000
"""Far from the seeds that people give, so that seeds added later are seldom among the fresh ones."""


@dataclass(frozen=True)
class Confirmed:
    """The test value of a way's choices over fresh seeds."""

    value: float
    low: float | None
    """The 95 % interval; None with a single fresh seed."""
    high: float | None
    searches: int
    seeds: int
    runs: int
    """Fewer than searches x seeds where several searches chose the same setting: it is trained once."""
    device_seconds: float
    """What it took, apart from every bill."""


def fresh_seeds(record: StudyRecord, number: int) -> list[int]:
    """Return `number` seeds with which no search of the study ran."""
    seeds = (seed for seed in count(FIRST_FRESH_SEED) if seed not in record.seeds)
    return [next(seeds) for _ in range(number)]


def confirmations_wanted(record: StudyRecord, number: int) -> list[tuple[str, int, Proposal]]:
    """Return (strategy, seed, proposal) of every run that is still lacking, each setting of a way once per seed."""
    wanted: list[tuple[str, int, Proposal]] = []
    done = [(one.strategy, one.proposal) for one in record.confirmations if one.status in FINISHED_STATUSES]
    for way in ways(record):
        for search in searches(record, way.key):
            for proposal in _proposals(search, fresh_seeds(record, number)):
                if (way.key, proposal) not in done:
                    done.append((way.key, proposal))
                    wanted.append((way.key, search.seed, proposal))
    return wanted


def confirmed(record: StudyRecord, strategy: str) -> Confirmed | None:
    """Return the mean test value of what the way's searches chose; None unless all of it was confirmed.

    Searches and fresh seeds cross: every choice is trained with every seed. The variance of the mean is taken as that
    of the searches' means / n plus that of the seeds' means / K: this counts the noise of single runs twice and errs to
    the wide side, where the unbiased estimate for two crossed random effects would subtract it. Degrees of freedom
    after Satterthwaite (1946). The interval is cut where the metric ends, as that of `mean_of`. A run without a test
    value (it diverged) leaves the way unconfirmed.
    """
    seeds = fresh_seeds(record, record.config.get("confirmation_seeds") or 0)
    found = [search for search in searches(record, strategy) if search.done]
    runs = [one for one in record.confirmations if one.strategy == strategy]
    table = [[_run_of(runs, proposal) for proposal in _proposals(search, seeds)] for search in found]
    values = [[value for run in row if (value := _test_value(run)) is not None] for row in table]
    if not seeds or not values or any(len(row) < len(seeds) for row in values):
        return None
    columns = list(zip(*values, strict=True))
    half = _half_width([fmean(row) for row in values], [fmean(column) for column in columns])
    mean = fmean(value for row in values for value in row)
    low, high = (None, None) if half is None else cut(mean - half, mean + half, metric_range(record))
    return Confirmed(
        mean,
        low,
        high,
        len(values),
        len(seeds),
        len({run.uuid for row in table for run in row if run}),
        confirmation_seconds(runs),
    )


def confirmation_seconds(runs: Sequence[TrialRecord]) -> float:
    """Return the device seconds of confirmation runs, all attempts."""
    return sum(charged_seconds(run.phase_seconds) for run in runs)


def _proposals(search: Search, seeds: Sequence[int]) -> Iterator[Proposal]:
    incumbent = search.incumbent
    if incumbent is not None:
        for seed in seeds:
            yield replace(incumbent.trial.proposal, model_guided=None, confirmation_seed=seed)


def _run_of(runs: Sequence[TrialRecord], proposal: Proposal) -> TrialRecord | None:
    return next((run for run in runs if run.proposal == proposal and run.status == "completed"), None)


def _test_value(run: TrialRecord | None) -> float | None:
    return run.result.test_metric if run and run.result else None


def _half_width(rows: Sequence[float], columns: Sequence[float]) -> float | None:
    """Return the half width of the interval of the mean of a table with these row and column means."""
    if len(columns) < 2:
        return None
    parts = [(variance(means) / len(means), len(means) - 1) for means in (rows, columns) if len(means) > 1]
    total = sum(part for part, _ in parts)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(part**2 / degrees for part, degrees in parts)
    return t_quantile(0.95, freedom) * math.sqrt(total)
