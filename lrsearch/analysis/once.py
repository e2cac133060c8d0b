"""Numbers of a whole study that several parts of a report need: computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar, cast

from lrsearch.trial import StudyRecord

P = ParamSpec("P")
T = TypeVar("T")


def once_per_record(function: Callable[Concatenate[StudyRecord, P], T]) -> Callable[Concatenate[StudyRecord, P], T]:
    """Return `function` such that a record, which is frozen, keeps its answers, as `cached_property` would."""

    @wraps(function)
    def kept(record: StudyRecord, /, *others: P.args, **named: P.kwargs) -> T:
        answers: dict[object, object] = vars(record).setdefault("_answers", {})
        key = function.__module__, function.__qualname__, others, *named.items()
        if key not in answers:
            answers[key] = function(record, *others, **named)
        return cast(T, answers[key])

    return kept
