"""Where trials run. To add a place: one file with an Executor and its entry here."""

from __future__ import annotations

from collections.abc import Callable

from lrsearch.executors.inline import Inline
from lrsearch.interfaces import Executor

EXECUTORS: dict[str, Callable[[], Executor]] = {"inline": Inline}
