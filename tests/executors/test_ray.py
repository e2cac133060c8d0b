"""Trials on a Ray cluster of two nodes: equal to those on one slot, and what is lost there costs one attempt."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lrsearch.config import load_study
from lrsearch.errors import ClusterError, MissingExtraError, StorageError, UsageError
from lrsearch.executors.ray import Ray, RayExecutor
from lrsearch.storage.export import TableName, export_rows
from lrsearch.storage.store import open_store
from lrsearch.study import run_study
from lrsearch.trial import PHASES, StudyRecord
from tests.executors.contract import PATIENCE_SECONDS, Does, SlotsContract, do
from tests.faults.harness import unbroken, write, write_together
from tests.ray_cluster import ROOT, TOKEN, Nodes, running
from tests.test_study import Quiet, outcome

ray_test = pytest.mark.ray


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with running() as nodes:
        nodes.add()
        nodes.add()
        yield nodes


@pytest.fixture(scope="class")
def executor(nodes: Nodes) -> Iterator[RayExecutor]:
    started = Ray(slots=2, address=nodes.address, patience_seconds=PATIENCE_SECONDS).start("cpu")
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


# What a cluster must be


JOIN = """
import sys
from lrsearch.errors import LrsearchError
from lrsearch.executors.ray import Ray
try:
    Ray(slots=1, address=sys.argv[1]).start("cpu").close()
except LrsearchError as error:
    sys.exit(f"{error.exit_code}: {error}")
"""


def join(address: str, home: Path, **environment: str) -> str:
    """Return what joining the cluster says, in a process whose environment has this of Ray alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        env={**kept, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert TOKEN not in process.stdout + process.stderr
    assert process.returncode == bool(process.stderr)
    return process.stdout + process.stderr


@ray_test
def test_a_cluster_that_others_can_reach_must_ask_for_a_token_and_get_the_right_one(
    nodes: Nodes, tmp_path: Path
) -> None:
    none = join(nodes.address, tmp_path)
    assert none.startswith("2: Ray at")
    assert "must ask for a token, and here is none: `ray get-auth-token --generate`" in none
    off = join(nodes.address, tmp_path, RAY_AUTH_TOKEN=TOKEN, RAY_AUTH_MODE="disabled")
    assert off.startswith("2: Ray at")
    assert "here RAY_AUTH_MODE says otherwise" in off
    wrong = join(nodes.address, tmp_path, RAY_AUTH_TOKEN="wrong" * 8)
    assert "9: The Ray cluster at" in wrong
    assert "is the token the same?" in wrong
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text(TOKEN)
    assert join(nodes.address, tmp_path) == ""


@ray_test
def test_a_cluster_that_answers_without_a_token_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    ray = str(Path(sys.executable).with_name("ray"))
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    start = [ray, "start", "--head", f"--port={port}", "--num-cpus=1", "--include-dashboard=false", "--block"]
    start += ["--object-store-memory=80000000", f"--temp-dir={tempfile.mkdtemp(prefix='r')}"]
    head = subprocess.Popen(start, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"{nodes.address.rpartition(':')[0]}:{port}"
        deadline = time.monotonic() + 60
        while subprocess.run(
            [ray, "health-check", "--address", address], env=environment, capture_output=True
        ).returncode:
            assert time.monotonic() < deadline
        refused = join(address, tmp_path, RAY_AUTH_TOKEN=TOKEN)
    finally:
        head.terminate()
        head.wait(timeout=30)
    assert refused.startswith("2: Ray at")
    assert "asks for no token, so that anyone there can run programs on its nodes" in refused


@ray_test
def test_nodes_with_other_versions_are_refused_unless_allowed(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "torch-1.0.dist-info").mkdir()
    (tmp_path / "torch-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    odd = nodes.add(env_vars={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    try:
        strict = Ray(slots=3, address=nodes.address).start("cpu")
        with closing(strict), pytest.raises(UsageError, match=r"has torch 1\.0 \(here 2.*allow_other_versions: true"):
            strict.prepare(Does("pid"))
        loose = Ray(slots=3, address=nodes.address, allow_other_versions=True).start("cpu")
        with closing(loose):
            loose.prepare(Does("pid"))
            assert "1.0" in {loose.versions(slot)["torch"] for slot in range(3)}, "for the record of its attempts"
    finally:
        nodes.kill(odd)


@ray_test
def test_slots_that_the_cluster_has_no_room_for_are_told_with_what_it_has(nodes: Nodes) -> None:
    executor = Ray(slots=2, threads_per_slot=2, address=nodes.address, wait_seconds=2).start("cpu")
    told = (
        r"did not place 2 slots within 2 s .* takes 2 CPU and 0 GPU of one node, and the cluster has [23] CPU and 0 GPU"
    )
    with closing(executor), pytest.raises(ClusterError, match=told):
        executor.prepare(Does("pid"))


@ray_test
def test_each_slot_has_the_gpu_that_ray_gives_it_and_none_without(nodes: Nodes) -> None:
    node = nodes.add(num_cpus=2, num_gpus=2)
    try:
        for device, expected in (("cuda", {"0", "1"}), ("cpu", {""})):
            executor = Ray(slots=2, address=nodes.address).start(device)
            with closing(executor):
                executor.prepare(Does("pid"))
                found = {do(executor, "environment", slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)}
            assert found == expected
    finally:
        nodes.kill(node)
        nodes.cluster.wait_for_nodes(timeout=60)  # else the next test may be given a place on it


@ray_test
def test_the_users_modules_reach_the_nodes_by_value(nodes: Nodes, tmp_path: Path) -> None:
    package = tmp_path / "mine" / "inside"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "shipped.py").write_text("WORD = 'arrived'")
    (tmp_path / "mine" / "study.db").write_bytes(b"not to be shipped")
    executor = Ray(slots=1, address=nodes.address).start("cpu", tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine")
    with closing(executor):
        executor.prepare(Does("pid"))
        where, word = do(executor, "module")
    assert word == "arrived"
    assert not Path(where).is_relative_to(tmp_path)
    assert not list(Path(where).parent.parent.glob("*.db"))


@ray_test
def test_what_a_node_cannot_write_is_told_in_a_line(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: a path that the system takes here is too long below the node's folder."""
    monkeypatch.chdir(tmp_path)
    deep = Path(*["d" * 250] * 16)
    deep.mkdir(parents=True)
    (deep / f"{'m' * 70}.py").touch()
    executor = Ray(slots=1, address=nodes.address).start("cpu", Path())
    told = r"^The node .* cannot keep the study's code and checkpoints below its TMPDIR: File name too long\. Mend "
    with closing(executor), pytest.raises(StorageError, match=told):
        executor.prepare(Does("pid"))


# A study


@ray_test
def test_a_study_on_two_nodes_equals_the_one_on_one_slot(nodes: Nodes, tmp_path: Path) -> None:
    alone = unbroken(tmp_path / "alone", "{name: inline}")
    path = write(tmp_path / "ray", f"{{name: ray, address: '{nodes.address}'}}")
    with open_store(f"sqlite:///{tmp_path / 'ray' / 'x.db'}") as store:
        together = run_study(load_study(path), store, observer=Quiet())
    check_tables(together, alone)
    assert together.config["executor"] == {
        "name": "ray",
        "slots": 2,
        "threads_per_slot": 1,
        "asynchronous": False,
        "patience_seconds": 300.0,
    }, "where the cluster is does not belong to the study"
    [event] = [event for event in together.events if event.kind == "run"]
    explained = sum(sum(trial.phase_seconds.values()) for trial in together.trials)
    assert explained == pytest.approx(event.data["held_seconds"], rel=0.01)
    assert event.data["slots"] == 2


@ray_test
def test_a_study_whose_trials_train_together_equals_the_one_without_ray(nodes: Nodes, tmp_path: Path) -> None:
    """With one slot each, so that the same trials train together; how many is in the cache by the second time."""

    def run(executor: str, database: str) -> StudyRecord:
        path = write_together(tmp_path, executor)
        with open_store(f"sqlite:///{tmp_path / database}") as store:
            return run_study(load_study(path), store, observer=Quiet())

    in_a_process = run("{name: process, slots: 1, threads_per_slot: 1}", "process.db")
    on_ray = run(f"{{name: ray, slots: 1, address: '{nodes.address}'}}", "ray.db")
    check_tables(on_ray, in_a_process)
    assert all(trial.gang_size > 1 for trial in on_ray.trials if trial.strategy in ("grid", "random"))
    [event] = [event for event in on_ray.events if event.kind == "run"]
    billed = sum(attempt.billed_seconds for trial in on_ray.trials for attempt in trial.attempts)
    assert billed == pytest.approx(event.data["held_seconds"], rel=0.01)


def check_tables(found: StudyRecord, expected: StudyRecord) -> None:
    """What the studies have found, and each exported table, are the same."""
    assert outcome(found) == outcome(expected)
    tables: tuple[TableName, ...] = ("trials", "attempts", "curves", "range_tests")
    for table in tables:
        theirs, ours = (export_rows(record, table, without=OF_ITS_RUN) for record in (found, expected))
        assert theirs == ours, table
        assert theirs.columns


OF_ITS_RUN = (
    *(
        "uuid",
        "owner",
        "charged_device_seconds",
        "billed_device_seconds",
        *(f"{phase}_seconds" for phase in PHASES),
        "core_seconds",
    ),
    *(
        "started_at",
        "finished_at",
        "last_attempt_seconds",
        "seconds_to_target",
        "evaluations",
        "study_record",
        "attempt_records",
    ),
)
"""Columns that hold clocks and identities."""


# Without a cluster


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"'ray' needs the 'ray' extra: pip install 'lrsearch\[ray\]'"):
        Ray(address="127.0.0.1:1").start("cpu")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("ray://head:10001", r"must run on a node of the cluster, not behind Ray's client"),
        ("head.example:6379", r"must ask for a token, and here is none"),
        ("auto", r"must ask for a token, and here is none"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused_before_ray_is_imported(
    address: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=told):
        Ray(address=address).start("cpu")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=told):
        Ray().start("cpu")


def test_a_folder_of_code_that_is_no_folder_of_modules_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.py").write_bytes(b"#" * 10_000_001)
    with pytest.raises(UsageError, match=r"holds 1 Python files of 10 MB.*give your modules a folder of their own"):
        Ray(address="127.0.0.1:1").start("cpu", tmp_path)
