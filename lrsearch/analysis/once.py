"""Numbers of a whole study that several parts of a report need: computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar, cast

from lrsearch.trial import StudyRecord

T = TypeVar("T")


def once_per_record(function: Callable[[StudyRecord], T]) -> Callable[[StudyRecord], T]:
    """Return `function` such that a record, which is frozen, keeps its answer, as `cached_property` would."""

    @wraps(function)
    def kept(record: StudyRecord) -> T:
        answers: dict[str, object] = vars(record).setdefault("_answers", {})
        key = f"{function.__module__}.{function.__qualname__}"
        if key not in answers:
            answers[key] = function(record)
        return cast(T, answers[key])

    return kept
