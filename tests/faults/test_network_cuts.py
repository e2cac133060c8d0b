"""The network between a study and one of its nodes is cut without a word: packets vanish, and no connection is closed.

The node lives in a network namespace of its own; a bridge in another one is the switch to which its cable leads. One
cut by default; `make cuts` makes 20 (LRSEARCH_CUTS).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lrsearch.trial import StudyRecord
from tests.faults.harness import unbroken
from tests.faults.test_ray_nodes import EPOCHS, HEARD_WITHIN, Study
from tests.ray_cluster import SETTINGS, Nodes, descendants, running
from tests.test_study import outcome

CUTS = int(os.environ.get("LRSEARCH_CUTS", "1"))
CUTS_PER_STUDY = 3
LOST_AFTER_SECONDS = 8
"""Long enough that a busy machine looks no different from a good one."""
OURS, THEIRS = "10.203.77.1", "10.203.77.2"

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240 + 120 * CUTS)]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """This machine at `OURS`, a namespace `far` at `THEIRS`, and between them the namespace `switch`."""

    def __init__(self) -> None:
        number = os.getpid()
        self.far, self._switch, self._port = f"lrs-far-{number}", f"lrs-switch-{number}", f"lrs{number}"

    def build(self) -> None:
        for namespace in (self.far, self._switch):
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge", "up")
        ip("link", "add", self._port, "type", "veth", "peer", "name", "ours", "netns", self._switch)
        ip("-n", self.far, "link", "add", "eth0", "type", "veth", "peer", "name", "theirs", "netns", self._switch)
        for port in ("ours", "theirs"):
            ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        ip("addr", "add", f"{OURS}/24", "dev", self._port)
        ip("link", "set", self._port, "up")
        ip("-n", self.far, "addr", "add", f"{THEIRS}/24", "dev", "eth0")
        ip("-n", self.far, "link", "set", "eth0", "up")

    def cut(self) -> None:
        ip("-n", self._switch, "link", "set", "theirs", "nomaster")

    def mend(self) -> None:
        ip("-n", self._switch, "link", "set", "theirs", "master", "bridge")

    def close(self) -> None:
        subprocess.run(["ip", "link", "del", self._port], capture_output=True)
        for namespace in (self.far, self._switch):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


class FarNode:
    """A node of the cluster at the other end of the cable, which comes again when Ray has ended it."""

    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None

    def keep(self) -> None:
        """Start it, unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "start", f"--address={self._address}", f"--node-ip-address={THEIRS}", "--num-cpus=1", "--block"]
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", self._network.far, *command, "--object-store-memory=80000000"],
            env={**os.environ, **SETTINGS},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def workers(self) -> list[int]:
        """Return the processes there that run the user's code."""
        assert self._process is not None
        found = []
        for pid in descendants(self._process.pid):
            try:
                if b"lrsearch.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
            except OSError:
                continue
        return found

    def close(self) -> None:
        if self._process is not None:
            pids = descendants(self._process.pid)
            self._process.terminate()
            self._process.wait(timeout=30)
            for pid in pids:
                subprocess.run(["kill", "-9", str(pid)], capture_output=True)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network()
    try:
        network.build()
    except (OSError, subprocess.CalledProcessError) as error:
        network.close()
        reason = getattr(error, "stderr", None) or str(error)
        pytest.skip(f"needs root and network namespaces: {' '.join(reason.split())}")
    yield network
    network.close()


def test_a_cut_ends_the_nodes_trial_at_both_ends_and_it_runs_again(network: Network, tmp_path: Path) -> None:
    expected = unbroken(tmp_path / "unbroken", "{name: inline}", EPOCHS)
    done, told = 0, list[float]()
    with ExitStack() as stack:
        nodes = stack.enter_context(running(node_ip_address=OURS))
        nodes.add(node_ip_address=OURS)
        far = FarNode(network, nodes.address)
        stack.callback(far.close)
        while done < CUTS:
            cuts = min(CUTS - done, CUTS_PER_STUDY)
            record, seconds = run_with_cuts(tmp_path / f"after{done}", nodes, network, far, cuts)
            assert outcome(record) == outcome(expected)
            lost = [a for trial in record.trials for a in trial.attempts if a.status == "lost"]
            assert len(lost) == len(seconds) > 0, "each cut landed inside one attempt, and nothing else was lost"
            assert all([a.status for a in trial.attempts].count("finished") == 1 for trial in record.trials)
            done, told = done + len(seconds), told + seconds
    print(f"{done} cuts; told after {min(told):.1f} to {max(told):.1f} s")  # noqa: T201  asked for by `make cuts`


def run_with_cuts(
    folder: Path, nodes: Nodes, network: Network, far: FarNode, cuts: int
) -> tuple[StudyRecord, list[float]]:
    """Run a study; return its record, and how long after each cut it was told that the node is lost."""
    far.keep()
    study = Study(folder, f"address: '{nodes.address}', lost_after_seconds: {LOST_AFTER_SECONDS}")
    told: list[float] = []
    while len(told) < cuts and study.becomes_busy(2):
        told.append(cut_once(study, network, far))
    return study.record(), told


def cut_once(study: Study, network: Network, far: FarNode) -> float:
    [worker] = far.workers()
    before = study.log.count("runs again")
    network.cut()
    began = time.monotonic()
    study.wait_for(lambda: not Path(f"/proc/{worker}").exists())
    fenced = time.monotonic() - began
    study.wait_for(lambda: study.log.count("runs again") > before)
    told = time.monotonic() - began
    network.mend()
    far.keep()
    assert fenced < told, "it was ended over there before its trial ran elsewhere"
    assert told < LOST_AFTER_SECONDS + 2 * HEARD_WITHIN
    return told
