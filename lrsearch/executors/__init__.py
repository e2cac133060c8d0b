"""Where trials run. To add a place: one file with its settings and an Executor, and its entry here."""

from __future__ import annotations

from collections.abc import Mapping

from lrsearch.executors.inline import Inline
from lrsearch.executors.process import Process
from lrsearch.executors.ray import Ray
from lrsearch.interfaces import ExecutorSettings

EXECUTORS: Mapping[str, type[ExecutorSettings]] = {"inline": Inline, "process": Process, "ray": Ray}
"""inline: in the orchestrator's own process, one after another. process: in persistent processes beside it. ray: in
persistent processes on the machines of a cluster."""

__all__ = ["EXECUTORS", "Inline", "Process", "Ray"]
