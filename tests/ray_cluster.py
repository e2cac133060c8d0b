"""A Ray cluster of several nodes on this machine, which asks for a token; needs the extra `ray`."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import children

ROOT = Path(__file__).parent.parent
TOKEN = "a-token-of-the-tests-0123456789abcdef"  # noqa: S105  # of clusters that live for a minute
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING": "0",
    "PYTHONPATH": str(ROOT),  # `tests` must be found on the nodes too
    "OMP_NUM_THREADS": "1",
    "LRSEARCH_DATABASE": "postgresql://somewhere",
}


class Nodes:
    """A head without CPUs, and as many nodes as are added."""

    def __init__(self, **settings: Any) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **_small(), **settings})

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, **settings: Any) -> Any:
        """Add a node with one CPU; return what `kill` and `freeze` take."""
        return self.cluster.add_node(**{"num_cpus": 1, **_small(), **settings})

    def kill(self, node: Any) -> None:
        """End all of its processes at once."""
        pids = processes_of(node)
        self.cluster.remove_node(node, allow_graceful=False)
        _signal(pids, signal.SIGKILL)

    def close(self) -> None:
        self.cluster.shutdown()


def _small() -> dict[str, Any]:
    return {"include_dashboard": False, "object_store_memory": 80_000_000}


def processes_of(node: Any) -> list[int]:
    """Return the raylet, Ray's workers and what they have started: all that would vanish with the machine."""
    [raylet] = [info.process.pid for info in node.all_processes["raylet"]]
    return [raylet, *descendants(raylet)]


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and they."""
    found: list[int] = []
    queue = [pid]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children(pid)
    return found[1:]


def freeze(pids: list[int]) -> None:
    _signal(pids, signal.SIGSTOP)


def thaw(pids: list[int]) -> None:
    _signal(pids, signal.SIGCONT)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[Nodes]:
    """Start a head, in whose environment tests then run; they and all nodes share a cache that is empty."""
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        for name, value in {**SETTINGS, "LRSEARCH_CACHE": cache}.items():
            patch.setenv(name, value)
        # Not before: it reads them when it is imported.
        pytest.importorskip("ray", reason="needs the extra ray: `make ray-test` installs it")
        nodes = Nodes(**settings)
        try:
            yield nodes
        finally:
            nodes.close()
