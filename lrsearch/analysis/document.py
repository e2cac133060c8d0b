"""Every number of a report as one JSON document, and beside them its words that say numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any

from lrsearch.analysis import details
from lrsearch.analysis.held import held_time, sentence
from lrsearch.analysis.problems import problems
from lrsearch.analysis.strip import strip, strip_lines
from lrsearch.analysis.summary import summarise
from lrsearch.analysis.table import columns
from lrsearch.analysis.threats import threats
from lrsearch.trial import StudyRecord


def study_document(record: StudyRecord) -> dict[str, Any]:
    """Return the numbers as JSON values: "infinite" for never and for an interval without an end, null for unknown."""
    summary = summarise(record)
    held, shown = held_time(record), columns(summary)
    return {
        **plain(summary),
        "cells": {
            row.key: {column.title: [cell.text, *cell.notes] for column in shown for cell in [column.cell(row)]}
            for row in summary.ways
        },
        "strip": {**plain(found := strip(record)), "lines": dict(strip_lines(found))},
        "threats": threats(record, summary),
        "held_time": None if held is None else {**plain(held), "share": held.share, "line": sentence(held)},
        "problems": plain(problems(record)),
        "events": plain(record.events),
        "ways": {row.key: _row(row) for row in summary.ways},
        "cross_table": [
            {"origin": cell.origin, "schedule": cell.schedule, "ways": [row.key for row in cell.ways]}
            for cell in details.cross_table(record)
        ],
        "target_ladder": plain(details.target_ladder(record)),
        "expected_best": plain(details.random_best(record)),
        "grid_orders": {
            key: {str(seed): plain(order) for seed, order in orders}
            for key, orders in details.grid_orders(record).items()
        },
        "equal_budget": plain(details.budgets(record)),
        "early_clue": plain(details.early_clues(record)),
        "hindsight_premium": plain(details.premiums(record)),
        "improvement": [
            {"way": way, "over": other, **plain(duel)} for (way, other), duel in details.duels(record).items()
        ],
        "leaderboard": plain(details.leaderboard(record)),
    }


def _row(row: Any) -> dict[str, Any]:
    bill = row.bill
    totals = {"charged_device_seconds": bill.charged_device_seconds, "wasted_share": bill.wasted_share} if bill else {}
    return {**plain(row), "bill": {**plain(bill), **plain(totals)} if bill else None}


def plain(value: Any) -> Any:
    """Return dataclasses, mappings and sequences as JSON values.

    >>> plain({"never": math.inf, "unknown": math.nan, "pair": (1, 2.5)})
    {'never': 'infinite', 'unknown': None, 'pair': [1, 2.5]}
    """
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "infinite" if value > 0 else "minus infinite"
    return value
