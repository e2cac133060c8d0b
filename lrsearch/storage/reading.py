"""Rows of the ledger to records and back."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, Connection, Row, Select, Subquery

from lrsearch.storage.schema import attempt, curve_point, event, phase, range_test_point, search, trial
from lrsearch.timing import collector_at_rest
from lrsearch.trial import (
    FINISHED_STATUSES,
    AttemptRecord,
    CurvePoint,
    DeviceInfo,
    Event,
    Proposal,
    RangeTestPoint,
    StudyRecord,
    TrialRecord,
    TrialResult,
    WorkloadFacts,
)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_PROPOSAL = TypeAdapter(Proposal)
_FACTS = TypeAdapter(WorkloadFacts)


def proposal_columns(proposal: Proposal) -> dict[str, Any]:
    return {
        "stage": proposal.stage,
        "proposal": _PROPOSAL.dump_python(proposal, mode="json"),
        "schedule": proposal.schedule.name if proposal.schedule else None,
        "learning_rate": proposal.learning_rate,
        "base_lr": proposal.base_lr,
        "max_lr": proposal.max_lr,
    }


def result_columns(result: TrialResult, verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the trial's columns; those that belong to its attempt are `attempt_columns`."""
    return {
        "status": result.status,
        "validation_loss": number(result.validation_loss),
        "validation_metric": number(result.validation_metric),
        "test_loss": number(result.test_loss),
        "test_metric": number(result.test_metric),
        "train_steps": result.train_steps,
        "diverged_step": result.diverged_step,
        "verdict": verdict,
        "facts": facts_to_json(result.facts),
        "error": result.error,
        "traceback": result.traceback,
    }


def attempt_columns(result: TrialResult) -> dict[str, Any]:
    return {
        "device_kind": result.device.kind,
        "device_name": result.device.name,
        "device_count": result.device.count,
        "device_threads": result.device.threads,
        "gang_size": result.gang_size,
        "core_seconds": result.core_seconds,
        "peak_device_memory_bytes": result.peak_device_memory_bytes,
        "energy_joules": result.energy_joules,
        "billed_phase_seconds": None if result.billed_phase_seconds is None else dict(result.billed_phase_seconds),
        "error": result.error,
    }


def point_rows(attempt_id: int, points: Sequence[CurvePoint | RangeTestPoint]) -> list[dict[str, Any]]:
    """Return the rows of points: in both tables the columns beside the attempt are a point's fields, in their order."""
    return [
        {"attempt_id": attempt_id, **vars(point), **{name: number(getattr(point, name)) for name in _MEASURED}}
        for point in points
    ]


_MEASURED = ("train_loss", "validation_loss", "validation_metric")


def number(value: float | None) -> float | None:
    """Return a plain float; None for one that is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def facts_to_json(facts: WorkloadFacts | None) -> dict[str, Any] | None:
    return None if facts is None else _FACTS.dump_python(facts, mode="json")


def facts_from_json(stored: Mapping[str, Any] | None) -> WorkloadFacts | None:
    return None if stored is None else _FACTS.validate_python(stored)


Points = Literal["all", "hits"]
"""Which points of curves and range tests are read: `hits` are the first point of each curve that meets the target."""


def read_study(connection: Connection, row: Row[Any], points: Points = "all") -> StudyRecord:
    """Return the study of a row of lrsearch_study, by six statements however many trials it has.

    With the `hits` alone, every cost to the study's target is that of the whole record; what needs curves is not there.
    """
    place = {key: position for position, key in enumerate(row.config["strategies"])}
    facts = facts_from_json(row.facts)
    only = None if points == "all" else _first_hits(row.config.get("target"), facts)
    with collector_at_rest():
        trials = read_trials(connection, search.c.study_id == row.id, only)
    trials.sort(key=lambda trial: (trial.seed, place.get(trial.strategy, len(place)), trial.number))
    events = connection.execute(sa.select(event).where(event.c.study_id == row.id).order_by(event.c.id))
    return StudyRecord(
        name=row.name,
        version=row.version,
        created_at=row.created_at,
        config=row.config,
        facts=facts,
        finished=row.finished_at is not None,
        trials=tuple(trial for trial in trials if not trial.is_confirmation),
        confirmations=tuple(trial for trial in trials if trial.is_confirmation),
        events=tuple(Event(row.at, row.kind, row.data) for row in events),
    )


def _first_hits(target: Mapping[str, Any] | None, facts: WorkloadFacts | None) -> Subquery:
    """Return (attempt_id, step) of the first point of each attempt that meets `target`; without one, of none."""
    value = curve_point.c.validation_metric
    hit: ColumnElement[bool] = sa.false()
    if target is not None:
        hit = value >= target["value"] if facts is None or facts.higher_is_better else value <= target["value"]
    first = sa.select(curve_point.c.attempt_id, sa.func.min(curve_point.c.step).label("step")).where(hit)
    return first.group_by(curve_point.c.attempt_id).subquery()


def read_trials(connection: Connection, where: ColumnElement[bool], only: Subquery | None = None) -> list[TrialRecord]:
    """Return the trials that `where` (on search, trial) selects; with `only`, of points just those that it names."""

    def rows(columns: sa.Table, join: Callable[[Select[Any]], Select[Any]]) -> Sequence[Row[Any]]:
        return connection.execute(
            join(sa.select(columns).select_from(columns)).where(where).order_by(*columns.primary_key)
        ).all()

    def of_attempt(statement: Select[Any]) -> Select[Any]:
        return statement.join(attempt).join(trial).join(search)

    def of_finished(statement: Select[Any]) -> Select[Any]:
        return of_attempt(statement).where(attempt.c.status == "finished")

    attempts = _grouped(rows(attempt, lambda statement: statement.join(trial).join(search)), lambda r: r.trial_id)
    phases = _grouped(rows(phase, of_attempt), lambda r: r.attempt_id)

    def of_hits(statement: Select[Any]) -> Select[Any]:
        assert only is not None
        place = sa.and_(curve_point.c.attempt_id == only.c.attempt_id, curve_point.c.step == only.c.step)
        return of_finished(statement.join(only, place))

    curves = _grouped(rows(curve_point, of_finished if only is None else of_hits), lambda r: r.attempt_id)
    tests = rows(range_test_point, of_finished) if only is None else ()
    range_tests = _grouped(tests, lambda r: r.attempt_id)
    trials = sa.select(trial, search.c.strategy, search.c.seed).select_from(trial).join(search).where(where)
    return [
        _trial_record(row, attempts[row.id], phases, curves, range_tests) for row in connection.execute(trials).all()
    ]


def _grouped(rows: Sequence[V], key: Callable[[V], K]) -> defaultdict[K, list[V]]:
    groups: defaultdict[K, list[V]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


_RowsById = Mapping[int, Sequence[Row[Any]]]


def _trial_record(
    row: Row[Any], attempts: Sequence[Row[Any]], phases: _RowsById, curves: _RowsById, range_tests: _RowsById
) -> TrialRecord:
    records = tuple(_attempt_record(one, phases.get(one.id, ())) for one in attempts)
    result = None
    if row.status in FINISHED_STATUSES:
        last = attempts[-1]
        result = _result(row, last, records[-1], curves.get(last.id, ()), range_tests.get(last.id, ()))
    return TrialRecord(
        uuid=row.uuid,
        strategy=row.strategy,
        seed=row.seed,
        number=row.number,
        status=row.status,
        proposal=_PROPOSAL.validate_python(row.proposal),
        attempts=records,
        result=result,
        verdict=row.verdict,
    )


def _attempt_record(row: Row[Any], phases: Sequence[Row[Any]]) -> AttemptRecord:
    device = None
    if row.device_kind is not None:
        device = DeviceInfo(row.device_kind, row.device_name, row.device_count, row.device_threads)
    return AttemptRecord(
        number=row.number,
        status=row.status,
        owner=row.owner,
        started_at=row.started_at,
        finished_at=row.finished_at,
        phase_seconds={one.name: one.seconds for one in phases},
        core_seconds=row.core_seconds,
        estimated=row.estimated,
        device=device,
        gang_size=row.gang_size,
        versions=row.versions,
        error=row.error,
        billed_phase_seconds=row.billed_phase_seconds,
    )


def _result(
    row: Row[Any], last: Row[Any], record: AttemptRecord, curve: Sequence[Row[Any]], range_test: Sequence[Row[Any]]
) -> TrialResult:
    assert record.device is not None, "a finished attempt has its device"
    return TrialResult(
        uuid=row.uuid,
        status=row.status,
        device=record.device,
        train_steps=row.train_steps,
        phase_seconds=record.phase_seconds,
        core_seconds=last.core_seconds,
        validation_loss=row.validation_loss,
        validation_metric=row.validation_metric,
        test_loss=row.test_loss,
        test_metric=row.test_metric,
        curve=tuple(CurvePoint(*tuple(point)[1:]) for point in curve),
        range_test=tuple(RangeTestPoint(*tuple(point)[1:]) for point in range_test),
        diverged_step=row.diverged_step,
        gang_size=last.gang_size,
        billed_phase_seconds=last.billed_phase_seconds,
        peak_device_memory_bytes=last.peak_device_memory_bytes,
        energy_joules=last.energy_joules,
        error=row.error,
        traceback=row.traceback,
        facts=facts_from_json(row.facts),
    )
