"""A whole record written into a database by bulk statements, for tests of reading at scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import Connection

from lrsearch.storage.engine import make_engine, parse_url, transact, writer
from lrsearch.storage.migrate import ensure_schema
from lrsearch.storage.reading import (
    attempt_columns,
    facts_to_json,
    point_rows,
    proposal_columns,
    result_columns,
)
from lrsearch.storage.schema import attempt, curve_point, phase, range_test_point, search, study, trial
from lrsearch.storage.statements import insert_rows
from lrsearch.trial import AttemptRecord, StudyRecord, TrialRecord

AT_ONCE = 500


def write_record(url: str, record: StudyRecord) -> None:
    """Store a finished study, trials and points and all."""
    engine = make_engine(parse_url(url))
    ensure_schema(engine, create=True)
    transact(writer(engine), lambda connection: _write(connection, record))
    engine.dispose()


def _write(connection: Connection, record: StudyRecord) -> None:
    values = {"name": record.name, "version": record.version, "config": record.config, "created_at": record.created_at}
    identity = {"id": 1, "uuid": str(uuid4()), "fingerprint": "0", "token": 0}
    facts = facts_to_json(record.facts)
    connection.execute(sa.insert(study).values(**identity, **values, facts=facts, finished_at=record.created_at))
    pairs = list(dict.fromkeys((one.strategy, one.seed) for one in record.trials))
    searches = {pair: number for number, pair in enumerate(pairs, start=1)}
    rows = [{"id": id_, "study_id": 1, "strategy": pair[0], "seed": pair[1]} for pair, id_ in searches.items()]
    insert_rows(connection, search, rows)
    numbered = list(enumerate(record.trials, start=1))
    for first in range(0, len(numbered), AT_ONCE):
        _write_trials(connection, numbered[first : first + AT_ONCE], searches)


def _write_trials(
    connection: Connection, numbered: Sequence[tuple[int, TrialRecord]], searches: dict[tuple[str, int], int]
) -> None:
    insert_rows(connection, trial, [_trial_row(id_, one, searches) for id_, one in numbered])
    insert_rows(connection, attempt, [_attempt_row(id_, one, one.attempts[-1]) for id_, one in numbered])
    insert_rows(connection, phase, [row for id_, one in numbered for row in _phase_rows(id_, one)])
    curves = [row for id_, one in numbered if one.result for row in point_rows(id_, one.result.curve)]
    insert_rows(connection, curve_point, curves)
    tests = [row for id_, one in numbered if one.result for row in point_rows(id_, one.result.range_test)]
    insert_rows(connection, range_test_point, tests)


def _trial_row(id_: int, one: TrialRecord, searches: dict[tuple[str, int], int]) -> dict[str, Any]:
    assert one.result is not None, "the trials have ended"
    place = {"id": id_, "uuid": str(uuid4()), "search_id": searches[one.strategy, one.seed], "number": one.number}
    return {**place, **proposal_columns(one.proposal), **result_columns(one.result, None)}


def _attempt_row(id_: int, one: TrialRecord, last: AttemptRecord) -> dict[str, Any]:
    assert one.result is not None
    times = dict.fromkeys(("lease_expires_at", "heartbeat_at", "started_at", "finished_at"), last.started_at)
    identity = {"id": id_, "trial_id": id_, "number": 1, "status": "finished", "owner": last.owner, "token": str(id_)}
    return {
        **identity,
        **times,
        "estimated": False,
        "versions": dict(last.versions),
        **attempt_columns(one.result),
    }


def _phase_rows(id_: int, one: TrialRecord) -> Iterator[dict[str, Any]]:
    for name, seconds in one.attempts[-1].phase_seconds.items():
        yield {"attempt_id": id_, "name": name, "seconds": seconds}
