"""A study as tables: one row per trial, curve point, attempt or rung of a range test.

Numbers are written in full, so that each one of the report can be computed again from these tables. Seconds are wall
seconds x devices held, times are UTC in ISO 8601, an empty cell is a value that does not exist. The columns:

- all tables: study, version, strategy, seed, trial (its number within the search), stage: range_test, train, or confirm
  for what a search chose, trained again with the fresh confirmation_seed; that is on nobody's bill.
- trials: uuid and status; the proposal's learning_rate, schedule with schedule_settings (JSON), base_lr, max_lr and
  model_guided; optimizer with optimizer_settings (JSON), batch_size and planned epochs; the last attempt's train_steps,
  diverged_step, validation_* and test_* (of the end of the run; `metric` names the metric), gang_size, device_*,
  peak_device_memory_bytes, energy_joules, error and last_attempt_seconds (charged). Over all attempts: attempts (how
  many), charged_device_seconds, one <phase>_seconds per phase, billed_device_seconds (what it really took, of trials
  that trained together its share; the charged ones are what each would have taken alone), core_seconds (empty where an
  attempt cannot say), estimated (whether any seconds were read off a heartbeat), started_at of the first and
  finished_at of the last.
  The rest is what `lrsearch analyze` needs to compute the report's tables from this one: target, higher_is_better,
  chance, price (USD per device hour), seconds_to_target (charged seconds of the trial until an evaluation first met the
  target); evaluations: JSON [epoch, charged seconds of the trial so far, validation value], all of the run that its
  search chose, of other runs those that were better than all before and the first at or after 10, 20, 30, 40 and 50 %
  of the epochs (the table curves has them all); range_test_points: JSON, the plan and of each rung [learning rate,
  training loss, validation loss, validation value]; attempt_records: JSON, each attempt with its times, device,
  versions, seconds by phase and the number of the process that ran it, counted through the table; and study_record, in
  the first row alone: JSON, the study file with its defaults, what is known of the workload, whether the study is
  finished, and the events of its ledger.
- attempts: the same of each attempt, with its own number, status (finished, interrupted, lost, running) and owner.
- curves: the points of the attempt that finished; train_loss is the mean since the point before,
  charged_device_seconds is cumulative within the attempt, cycle_end says whether a cycle of the rate ends there.
- range_tests: the rungs; validation_* belong to the model after the step at learning_rate, train_loss is that of the
  following batch.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any, Literal, TextIO

from lrsearch.analysis.anytime import improving
from lrsearch.analysis.cost import price_of, sum_if_known
from lrsearch.analysis.details import early_points
from lrsearch.analysis.searches import evaluations_of, higher_is_better, searches, target_value
from lrsearch.analysis.target import meets
from lrsearch.trial import (
    CHARGED_PHASES,
    PHASES,
    AttemptRecord,
    CurvePoint,
    DeviceInfo,
    RangeTestPoint,
    StudyRecord,
    TrialRecord,
)

TableName = Literal["trials", "curves", "attempts", "range_tests"]

_TRIAL = ("study", "version", "strategy", "seed", "trial", "stage", "confirmation_seed")
_SECONDS = ("charged_device_seconds", *(f"{phase}_seconds" for phase in PHASES), "core_seconds", "estimated")
_DEVICE = ("gang_size", "device_kind", "device_name", "device_count", "device_threads")
_TIMES = ("started_at", "finished_at")
COLUMNS: Mapping[TableName, tuple[str, ...]] = {
    "trials": (
        *_TRIAL,
        *("uuid", "status", "learning_rate", "schedule", "schedule_settings", "base_lr", "max_lr", "model_guided"),
        *("optimizer", "optimizer_settings", "batch_size", "epochs"),
        *("train_steps", "diverged_step", "metric"),
        *("validation_loss", "validation_metric", "test_loss", "test_metric"),
        "attempts",
        "billed_device_seconds",
        *_SECONDS,
        *_DEVICE,
        *("peak_device_memory_bytes", "energy_joules"),
        *_TIMES,
        "error",
        *("target", "higher_is_better", "chance", "price", "last_attempt_seconds", "seconds_to_target"),
        *("evaluations", "range_test_points", "attempt_records", "study_record"),
    ),
    "attempts": (*_TRIAL, "attempt", "status", "owner", *_SECONDS, *_DEVICE, *_TIMES, "versions", "error"),
    "curves": (*_TRIAL, "attempt", *CurvePoint.__dataclass_fields__),
    "range_tests": (*_TRIAL, "attempt", *RangeTestPoint.__dataclass_fields__),
}


class Rows(list[dict[str, Any]]):
    """The rows of a table, which keeps its columns when it has none."""

    def __init__(self, columns: tuple[str, ...], rows: Iterator[dict[str, Any]]) -> None:
        super().__init__({column: row[column] for column in columns} for row in rows)
        self.columns = columns


def export_rows(record: StudyRecord, table: TableName, *, without: Collection[str] = ()) -> Rows:
    """Return the table's rows in the order of the trials; the columns are `COLUMNS[table]` but for those `without`."""
    chosen = {one.trial.uuid for key in record.strategies for s in searches(record, key) if (one := s.incumbent)}
    owners = {attempt.owner: None for trial in _all_trials(record) for attempt in trial.attempts}
    processes = {owner: str(number) for number, owner in enumerate(owners, start=1)}
    makers: Mapping[TableName, Callable[[StudyRecord, TrialRecord], Iterator[dict[str, Any]]]] = {
        "trials": partial(_trial_rows, chosen=chosen, processes=processes, without=without),
        "attempts": _attempt_rows,
        "curves": _curve_rows,
        "range_tests": _range_test_rows,
    }
    columns = tuple(column for column in COLUMNS[table] if column not in without)
    return Rows(columns, (row for trial in _all_trials(record) for row in makers[table](record, trial)))


def write_rows(rows: Rows, format: Literal["csv", "json"], stream: TextIO) -> None:  # noqa: A002  the user's word
    """Write the rows as CSV with a header, or as one JSON array of objects."""
    if format == "json":
        json.dump(rows, stream, indent=1, ensure_ascii=False, allow_nan=False)
        stream.write("\n")
        return
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(rows.columns)
    table.writerows([_cell(row[column]) for column in rows.columns] for row in rows)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, bool | dict | list) else value


def _trial_rows(
    record: StudyRecord,
    trial: TrialRecord,
    *,
    chosen: Collection[str],
    processes: Mapping[str, str],
    without: Collection[str],
) -> Iterator[dict[str, Any]]:
    proposal, result = trial.proposal, trial.result
    facts = (result.facts if result else None) or record.facts
    training: Mapping[str, Any] = record.config["training"]
    optimizer = {**training["optimizer"]}
    if proposal.optimizer is not None:
        optimizer = {"name": proposal.optimizer.name, **proposal.optimizer.settings}
    yield {
        **_trial(record, trial),
        **_phases(trial.phase_seconds),
        **_device(result.device if result else None),
        **{column: getattr(result, column, None) for column in _OF_RESULT},
        "uuid": trial.uuid,
        "status": trial.status,
        "learning_rate": proposal.learning_rate,
        "schedule": proposal.schedule.name if proposal.schedule else None,
        "schedule_settings": dict(proposal.schedule.settings) if proposal.schedule else None,
        "base_lr": proposal.base_lr,
        "max_lr": proposal.max_lr,
        "model_guided": proposal.model_guided,
        "optimizer": optimizer.pop("name"),
        "optimizer_settings": optimizer,
        "batch_size": proposal.batch_size or (facts.batch_size if facts else None),
        "epochs": None if proposal.range_test else proposal.epochs or training["epochs"],
        "metric": facts.metric if facts else None,
        "attempts": len(trial.attempts),
        "billed_device_seconds": trial.billed_device_seconds,
        "core_seconds": sum_if_known(attempt.core_seconds for attempt in trial.attempts),
        "estimated": any(attempt.estimated for attempt in trial.attempts),
        "started_at": _time(trial.attempts[0].started_at) if trial.attempts else None,
        "finished_at": _time(trial.attempts[-1].finished_at) if trial.attempts else None,
        "target": target_value(record),
        "higher_is_better": higher_is_better(record),
        "chance": record.facts.chance if record.facts else None,
        "price": price_of(record),
        "last_attempt_seconds": trial.attempts[-1].charged_device_seconds if result else None,
        "seconds_to_target": _seconds_to_target(record, trial),
        "evaluations": None if "evaluations" in without else _evaluations(record, trial, trial.uuid in chosen),
        "range_test_points": None if "range_test_points" in without else _range_test(trial),
        "attempt_records": [_attempt_record(attempt, processes) for attempt in trial.attempts],
        "study_record": _study_record(record) if trial is next(_all_trials(record)) else None,
    }


def _all_trials(record: StudyRecord) -> Iterator[TrialRecord]:
    return chain(record.trials, record.confirmations)


def _study_record(record: StudyRecord) -> dict[str, Any]:
    """Return, as plain values, all that a study's record holds beside its trials."""
    rest = {"config": record.config, "facts": record.facts and asdict(record.facts), "finished": record.finished}
    events = [{"at": event.at.isoformat(), "kind": event.kind, "data": event.data} for event in record.events]
    return dict(json.loads(json.dumps({**rest, "events": events}, default=str)))


def _attempt_record(attempt: AttemptRecord, processes: Mapping[str, str]) -> dict[str, Any]:
    """Return an attempt as plain values; its process by number, because pages are shown to those who need no host."""
    times = {"started_at": _time(attempt.started_at), "finished_at": _time(attempt.finished_at)}
    return {**asdict(attempt), **times, "owner": processes[attempt.owner]}


def _range_test(trial: TrialRecord) -> dict[str, Any] | None:
    plan, points = trial.proposal.range_test, trial.result.range_test if trial.result else ()
    if plan is None or not points:
        return None
    fields = ("learning_rate", "train_loss", "validation_loss", "validation_metric")
    return {"plan": asdict(plan), "points": [[getattr(point, field) for field in fields] for point in points]}


def _seconds_to_target(record: StudyRecord, trial: TrialRecord) -> float | None:
    target, lower = target_value(record), not higher_is_better(record)
    hits = (cost for cost, p in evaluations_of(trial) if meets(p.validation_metric, target, lower_is_better=lower))
    return next(hits, None)


def _evaluations(record: StudyRecord, trial: TrialRecord, is_chosen: bool) -> list[list[float | None]]:
    """Return (epoch, cost, value) of all evaluations of a chosen run, of another one's those that numbers rest on."""
    measured = evaluations_of(trial)
    values = ((point, point.validation_metric) for _, point in measured)
    better = (point for point, _ in improving(values, lower_is_better=not higher_is_better(record)))
    telling = {id(point) for point in (*early_points(record, trial), *better) if point}
    shown = [(cost, point) for cost, point in measured if is_chosen or id(point) in telling]
    return [[point.epoch, cost, point.validation_metric] for cost, point in shown]


_OF_RESULT = (
    *("train_steps", "diverged_step", "validation_loss", "validation_metric", "test_loss", "test_metric"),
    *("gang_size", "peak_device_memory_bytes", "energy_joules", "error"),
)


def _attempt_rows(record: StudyRecord, trial: TrialRecord) -> Iterator[dict[str, Any]]:
    for attempt in trial.attempts:
        yield {
            **_trial(record, trial),
            **_phases(attempt.phase_seconds),
            **_device(attempt.device),
            "attempt": attempt.number,
            "status": attempt.status,
            "owner": attempt.owner,
            "core_seconds": attempt.core_seconds,
            "estimated": attempt.estimated,
            "gang_size": attempt.gang_size,
            "started_at": _time(attempt.started_at),
            "finished_at": _time(attempt.finished_at),
            "versions": dict(attempt.versions),
            "error": attempt.error,
        }


def _curve_rows(record: StudyRecord, trial: TrialRecord) -> Iterator[dict[str, Any]]:
    for point in trial.result.curve if trial.result else ():
        yield {**_trial(record, trial), "attempt": trial.attempts[-1].number, **asdict(point)}


def _range_test_rows(record: StudyRecord, trial: TrialRecord) -> Iterator[dict[str, Any]]:
    for point in trial.result.range_test if trial.result else ():
        yield {**_trial(record, trial), "attempt": trial.attempts[-1].number, **asdict(point)}


def _trial(record: StudyRecord, trial: TrialRecord) -> dict[str, Any]:
    return {
        "study": record.name,
        "version": record.version,
        "strategy": trial.strategy,
        "seed": trial.seed,
        "trial": trial.number,
        "stage": "confirm" if trial.is_confirmation else trial.stage,
        "confirmation_seed": trial.proposal.confirmation_seed,
    }


def _phases(phase_seconds: Mapping[str, float]) -> dict[str, float]:
    seconds = {f"{phase}_seconds": phase_seconds.get(phase, 0.0) for phase in PHASES}
    return {**seconds, "charged_device_seconds": sum(seconds[f"{phase}_seconds"] for phase in CHARGED_PHASES)}


def _device(device: DeviceInfo | None) -> dict[str, Any]:
    keys = {"kind": "device_kind", "name": "device_name", "count": "device_count", "threads": "device_threads"}
    return {column: getattr(device, key, None) for key, column in keys.items()}


def _time(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None
