"""Trials on a Ray cluster of two nodes: equal to those on one slot, and what is lost there costs one attempt."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from lrsearch.errors import MissingExtraError
from lrsearch.executors.ray import Ray, RayExecutor
from tests.executors.contract import Does, SlotsContract, do
from tests.ray_cluster import Nodes, running

ray_test = pytest.mark.ray


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with running() as nodes:
        nodes.add()
        nodes.add()
        yield nodes


@pytest.fixture(scope="class")
def executor(nodes: Nodes) -> Iterator[RayExecutor]:
    started = Ray(slots=2, address=nodes.address, patience_seconds=1.5).start("cpu")
    started.prepare(Does("pid"))
    yield started
    started.close()


@ray_test
class TestRay(SlotsContract):
    def test_slots_lie_on_nodes_of_their_own_and_keep_their_process(self, executor: RayExecutor) -> None:
        pids = [do(executor, "pid", slot) for slot in (0, 1, 0, 1)]
        assert pids[:2] == pids[2:]
        assert len({*pids, os.getpid()}) == 3
        assert {executor.versions(slot)["python"] for slot in (0, 1)} == {sys.version.split()[0]}
        assert all(executor.has_place(slot) for slot in (0, 1))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"'ray' needs the 'ray' extra: pip install 'lrsearch\[ray\]'"):
        Ray(address="127.0.0.1:1").start("cpu")
