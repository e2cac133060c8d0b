"""A study back from its exported table of trials: what `lrsearch analyze` computes a report's numbers from.

The columns are those of storage/export.py. Only strategy, seed, validation_metric and charged_device_seconds are
needed; what a table lacks counts as unknown (`notes_on` says what), so that one written by hand or by another program
can be analysed too. Its ways are then known by how their names begin (see `ORIGINS`), or by having run a range test.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TextIO, cast, get_args

from lrsearch.analysis.plain import plain_number
from lrsearch.analysis.strip import UNKNOWN_TIME
from lrsearch.errors import UsageError
from lrsearch.trial import (
    CHARGED_PHASES,
    FINISHED_STATUSES,
    PHASES,
    SAME_ON_BOTH_BILLS,
    AttemptRecord,
    Choice,
    CurvePoint,
    DeviceInfo,
    Event,
    Proposal,
    RangeTestPlan,
    RangeTestPoint,
    StudyRecord,
    TrialRecord,
    TrialResult,
    TrialStatus,
    WorkloadFacts,
    charged_seconds,
)

NEEDED = ("strategy", "seed", "validation_metric", "charged_device_seconds")
NEEDED_SETTINGS = ("strategies", "seeds", "training", "rates")
ORIGINS = {
    "grid": "grid",
    "random": "random_search",
    "tpe": "optuna_search",
    "optuna": "optuna_search",
    "clr": "range_tested",
    "range_test": "range_tested",
    "default": "default_rate",
}
"""What a way does whose settings the table lacks, by the beginning of its name; else it is some search over rates."""
TIMES = ("started_at", "finished_at")
STATUSES: tuple[TrialStatus, ...] = get_args(TrialStatus)
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError)
"""What cells that do not fit may raise."""
Row = Mapping[str, Any]


def read_rows(stream: TextIO) -> list[Row]:
    """Return the rows of a CSV table."""
    csv.field_size_limit(2**31 - 1)  # the evaluations of a long run are one cell
    return list(csv.DictReader(stream))


def read_trials(stream: TextIO) -> StudyRecord:
    """Return the study whose trials `stream` holds as CSV. Raises UsageError, see `record_of_rows`."""
    return record_of_rows(read_rows(stream))


def notes_on(rows: Sequence[Row]) -> list[str]:
    """Return, a line each, what a report has and these rows cannot give."""
    notes: list[str] = []
    if not any(row.get("study_record") for row in rows):
        notes.append(
            "The table does not say what the study file plans (column study_record): its ways, seeds and settings are "
            "taken to be those that have rows."
        )
    trained = [row for row in rows if row.get("stage") != "range_test" and row.get("status") != "planned"]
    if trained and not any(row.get("evaluations") for row in trained):
        notes.append(
            "The table has no evaluations within runs (column evaluations): values count from the end of their run, "
            "or where seconds_to_target says that the target was met; there are no learning curves and no early clue."
        )
    tests = [row for row in rows if row.get("stage") == "range_test"]
    if tests and not any(row.get("range_test_points") for row in tests):
        notes.append("The table has no points of range tests (column range_test_points): their verdicts are left out.")
    if not any(row.get("attempt_records") for row in rows):
        notes.append(
            "The table does not tell one attempt from another (column attempt_records): versions are unknown, and how "
            "much of the time that the device was held is accounted for."
        )
    return notes


def record_of_rows(rows: Sequence[Row]) -> StudyRecord:
    """Return the study that the rows of a table of trials describe, as far as the report's tables need it.

    Raises UsageError for a table without rows, of several studies, that lacks a column, or whose cells do not fit.
    """
    if not rows:
        raise UsageError("The table has no trials; export one with `lrsearch export STUDY --table trials`.")
    lacking = [column for column in NEEDED if column not in rows[0]]
    if lacking:
        raise UsageError(f"The table lacks the column {lacking[0]}; needed are {', '.join(NEEDED)}.")
    studies = sorted({(str(row.get("study") or "trials"), str(row.get("version") or 1)) for row in rows})
    if len(studies) > 1:
        names = ", ".join(f"{name} version {version}" for name, version in studies)
        raise UsageError(f"The table holds several studies ({names}); analyse each by itself.")
    records: list[TrialRecord] = []
    seen: set[tuple[Any, ...]] = set()
    for line, row in enumerate(rows, start=2):
        try:
            record = _trial(row, len(records))
            key = (record.strategy, record.seed, record.number, record.proposal.confirmation_seed)
            if key in seen:  # as in a table of curves
                raise ValueError(f"trial {key[2]} of {key[0]}, seed {key[1]}, is in it twice; a row must be a trial")
            seen.add(key)
            records.append(record)
        except UNREADABLE as error:
            raise UsageError(f"Line {line} of the table cannot be read: {error}.") from error
    try:
        version = int(studies[0][1])
        told = _study_record(rows) or {"config": _config(rows), "facts": _facts(rows), "finished": True, "events": ()}
    except UNREADABLE as error:
        raise UsageError(f"Line 2 of the table cannot be read: {error}.") from error
    place = {key: position for position, key in enumerate(told["config"]["strategies"])}
    records.sort(key=lambda one: (one.seed, place.get(one.strategy, len(place)), one.number))
    return StudyRecord(
        name=studies[0][0],
        version=version,
        created_at=UNKNOWN_TIME,
        config=told["config"],
        facts=told["facts"],
        finished=told["finished"],
        trials=tuple(record for record in records if not record.is_confirmation),
        confirmations=tuple(record for record in records if record.is_confirmation),
        events=told["events"],
    )


def _study_record(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return config, facts, finished and events of the study; None where the table is silent. Raises UsageError."""
    cell = next((row["study_record"] for row in rows if row.get("study_record")), None)
    if cell is None:
        return None
    try:
        told = _json(cell)
        if lacking := [key for key in NEEDED_SETTINGS if not told["config"].get(key)]:
            raise KeyError(*lacking)
        return {
            "config": told["config"],
            "facts": _facts_of(told["facts"]),
            "finished": bool(told["finished"]),
            "events": tuple(map(_event, told["events"])),
        }
    except UNREADABLE as error:
        raise UsageError(f"The table's cell study_record cannot be read: {error!r}. Export the study again.") from error


def _facts_of(told: Mapping[str, Any] | None) -> WorkloadFacts | None:
    return None if told is None else WorkloadFacts(**{**told, "input_shape": tuple(told["input_shape"])})


def _event(told: Mapping[str, Any]) -> Event:
    return Event(datetime.fromisoformat(told["at"]), str(told["kind"]), told["data"])


def _config(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the study file's settings as far as numbers depend on them and rows tell them."""
    first = rows[0]
    target, price = plain_number(first.get("target")), plain_number(first.get("price"))
    seeds = list(dict.fromkeys(int(row["seed"]) for row in rows))
    fresh = {row["confirmation_seed"] for row in rows if row.get("confirmation_seed") not in (None, "")}
    return {
        "seeds": seeds,
        "target": None if target is None else {"metric": first.get("metric") or "metric", "value": target},
        "price": None if price is None else {"usd_per_device_hour": price},
        "training": {
            "epochs": max(plain_number(row.get("epochs")) or 1.0 for row in rows),
            "optimizer": {"name": next((row["optimizer"] for row in rows if row.get("optimizer")), "sgd")},
        },
        "confirmation_seeds": len(fresh),
        "strategies": {str(key): _settings(str(key), rows) for key in dict.fromkeys(row["strategy"] for row in rows)},
    }


def _settings(strategy: str, rows: Iterable[Row]) -> dict[str, Any]:
    own = [row for row in rows if row["strategy"] == strategy]
    tested = any(row.get("stage") == "range_test" for row in own)
    schedule = next((row["schedule"] for row in own if row.get("schedule")), "constant")
    known = (origin for beginning, origin in ORIGINS.items() if strategy.startswith(beginning))
    return {"name": "range_tested" if tested else next(known, "search"), "schedule": {"name": schedule}}


def _facts(rows: Sequence[Row]) -> WorkloadFacts:
    metric = next((str(row["metric"]) for row in rows if row.get("metric")), "metric")
    return WorkloadFacts.of_metric(
        metric,
        higher_is_better=rows[0].get("higher_is_better") in (None, "", "true", True),
        chance=plain_number(rows[0].get("chance")),
    )


def _trial(row: Row, place: int) -> TrialRecord:
    proposal = _proposal(row)
    status = cast(TrialStatus, row.get("status") or ("failed" if row["validation_metric"] == "" else "completed"))
    if status not in STATUSES:
        raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
    phases, device = _phase_seconds(row), _device(row)
    attempts = _attempts(row, status, phases, device)
    result = None
    if status in FINISHED_STATUSES:
        result = TrialResult(
            uuid=str(row.get("uuid") or place),
            status=status,
            device=device or DeviceInfo("unknown", "unknown"),
            train_steps=int(plain_number(row.get("train_steps")) or 0),
            phase_seconds=attempts[-1].phase_seconds if attempts else {},
            core_seconds=plain_number(row.get("core_seconds")) or 0.0,
            validation_metric=_finite(row["validation_metric"]),
            test_metric=_finite(row.get("test_metric")),
            curve=_curve(row, attempts),
            range_test=_rungs(row),
            diverged_step=_whole(row.get("diverged_step")),
            error=row.get("error") or None,
            energy_joules=plain_number(row.get("energy_joules")),
        )
    return TrialRecord(
        uuid=str(row.get("uuid") or place),
        strategy=str(row["strategy"]),
        seed=int(row["seed"]),
        number=int(plain_number(row.get("trial")) or 0) if row.get("trial") not in (None, "") else place,
        status=status,
        proposal=proposal,
        attempts=attempts,
        result=result,
    )


def _proposal(row: Row) -> Proposal:
    guided, test = _json(row.get("model_guided")), _json(row.get("range_test_points"))
    return Proposal(
        stage="range_test" if row.get("stage") == "range_test" else "train",
        schedule=_choice(row, "schedule"),
        learning_rate=plain_number(row.get("learning_rate")),
        base_lr=plain_number(row.get("base_lr")),
        max_lr=plain_number(row.get("max_lr")),
        range_test=RangeTestPlan(**test["plan"]) if test else None,
        model_guided=guided if isinstance(guided, bool) else None,
        optimizer=_choice(row, "optimizer"),
        batch_size=_whole(row.get("batch_size")),
        epochs=plain_number(row.get("epochs")),
        confirmation_seed=_whole(row.get("confirmation_seed")),
    )


def _choice(row: Row, column: str) -> Choice | None:
    name = row.get(column)
    return Choice(str(name), _json(row.get(f"{column}_settings")) or {}) if name else None


def _finite(value: Any) -> float | None:
    """Return None for what is not finite, as a trial's result has it."""
    number = plain_number(value)
    return None if number is None or math.isinf(number) else number


def _whole(value: Any) -> int | None:
    number = plain_number(value)
    return None if number is None else int(number)


def _phase_seconds(row: Row) -> dict[str, float]:
    """Return seconds by phase; all of them training where the table has only their sum."""
    seconds = {phase: plain_number(row.get(f"{phase}_seconds")) or 0.0 for phase in PHASES}
    if not any(seconds[phase] for phase in CHARGED_PHASES):
        seconds["train"] = plain_number(row["charged_device_seconds"]) or 0.0
    if not all(0 <= one < math.inf for one in seconds.values()):
        raise ValueError(f"seconds must be finite and from 0 up, got {seconds}")
    return seconds


def _device(row: Row) -> DeviceInfo | None:
    kind = row.get("device_kind")
    name, threads = str(row.get("device_name") or "unnamed"), _whole(row.get("device_threads")) or 0
    return DeviceInfo(str(kind), name, _whole(row.get("device_count")) or 1, threads) if kind else None


def _attempts(
    row: Row, status: str, phases: Mapping[str, float], device: DeviceInfo | None
) -> tuple[AttemptRecord, ...]:
    told = _json(row.get("attempt_records"))
    return _summed_attempts(row, status, phases, device) if told is None else tuple(map(_attempt_of, told))


def _attempt_of(told: Mapping[str, Any]) -> AttemptRecord:
    times = {name: datetime.fromisoformat(told[name]) if told[name] else None for name in TIMES}
    return AttemptRecord(**{**told, **times, "device": told["device"] and DeviceInfo(**told["device"])})


def _summed_attempts(
    row: Row, status: str, phases: Mapping[str, float], device: DeviceInfo | None
) -> tuple[AttemptRecord, ...]:
    """Return the attempts of a table that has their number and their sums, the seconds of the lost ones as a phase."""
    count = _whole(row.get("attempts"))
    count = (0 if status == "planned" else 1) if count is None else count
    estimated = row.get("estimated") in ("true", True)
    began, ended = (datetime.fromisoformat(row[name]) if row.get(name) else None for name in TIMES)
    rest = {phase: seconds for phase, seconds in phases.items() if phase != "lost" or count < 2}
    lost = [
        AttemptRecord(
            number=number,
            status="lost",
            owner="",
            started_at=began or UNKNOWN_TIME,
            finished_at=None,
            phase_seconds={"lost": phases["lost"] if number == 1 else 0.0},
            core_seconds=None if estimated else 0.0,
            estimated=estimated and number == 1,
            device=None,
        )
        for number in range(1, count)
    ]
    last = AttemptRecord(
        number=count,
        status="running" if status == "running" else "finished",
        owner="",
        started_at=began or UNKNOWN_TIME,
        finished_at=ended,
        phase_seconds=rest,
        core_seconds=plain_number(row.get("core_seconds")),
        estimated=False,
        device=device,
    )
    size, billed = _whole(row.get("gang_size")) or 1, plain_number(row.get("billed_device_seconds"))
    if billed is not None and (size > 1 or not math.isclose(billed, charged_seconds(phases))):
        # Their sum is all that the table has; it is taken to have gone where what is charged has.
        charged = {phase: phases.get(phase, 0.0) for phase in CHARGED_PHASES if phase not in SAME_ON_BOTH_BILLS}
        undivided, total = sum(phases.get(phase, 0.0) for phase in SAME_ON_BOTH_BILLS), sum(charged.values())
        factor = max(0.0, billed - undivided) / total if total else 0.0
        own = {phase: factor * seconds for phase, seconds in charged.items()}
        last = replace(last, gang_size=size, billed_phase_seconds=own)
    return (*lost, last) if count else ()


def _curve(row: Row, attempts: Sequence[AttemptRecord]) -> tuple[CurvePoint, ...]:
    """Return the evaluations that the table tells of; without them, where it says so the one that met the target, and
    that of the end of the run. Their epoch is then 0: not known.
    """
    told = _json(row.get("evaluations"))
    before = sum(attempt.charged_device_seconds for attempt in attempts[:-1])
    if told is None:
        end, hit = sum(attempt.charged_device_seconds for attempt in attempts), row.get("seconds_to_target")
        hits = [[0.0, hit, row.get("target")]] if hit not in (None, "") else []
        told = [] if row.get("stage") == "range_test" else [*hits, [0.0, end, row["validation_metric"]]]
    return tuple(
        CurvePoint(0, float(epoch), 0.0, None, None, _finite(value), float(cost) - before)
        for epoch, cost, value in told
    )


def _rungs(row: Row) -> tuple[RangeTestPoint, ...]:
    told = _json(row.get("range_test_points"))
    return tuple(RangeTestPoint(step, *values) for step, values in enumerate(told["points"] if told else ()))


def _json(cell: Any) -> Any:
    """Return a JSON cell's value; None for an empty one."""
    return json.loads(cell) if isinstance(cell, str) and cell else cell or None
