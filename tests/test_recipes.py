"""The recipes for clusters: as sound as they can be shown to be without one."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lrsearch.config import load_study
from lrsearch.executors.ray import Ray
from lrsearch.storage.store import open_store
from tests.faults.harness import write

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "docs" / "recipes"
SLURM = RECIPES / "slurm.sbatch"
GUIDE = (ROOT / "docs" / "many_machines.md").read_text()


def test_the_guide_names_every_setting_of_the_executor_with_its_default() -> None:
    rows = dict(re.findall(r"^\| (`.*?`) \| (.*) \|$", GUIDE, re.MULTILINE))
    named = {name for cell in rows for name in re.findall(r"`([a-z_]+)`", cell)}
    assert named == set(Ray.model_fields) - {"name"}
    for key, default in (
        ("slots", "2"),
        ("threads_per_slot", "1"),
        ("wait_seconds", "60"),
        ("lost_after_seconds", "30"),
    ):
        assert float(default) == Ray.model_fields[key].default
        assert f"({default})" in rows[f"`{key}`"]


def test_the_guides_executors_are_accepted(tmp_path: Path) -> None:
    written = re.findall(r"^    executor: (\{.*?\})", GUIDE, re.MULTILINE)
    assert len(written) == 3
    for text in written:
        assert load_study(write(tmp_path, text)).executor.name in ("ray", "process")


def test_the_slurm_script_is_sound() -> None:
    checks = [["bash", "-n", str(SLURM)]]
    if shutil.which("shellcheck"):
        checks.append(["shellcheck", str(SLURM)])
    for check in checks:
        read = subprocess.run(check, capture_output=True, text=True)
        assert (read.returncode, read.stdout + read.stderr) == (0, "")


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@" & one=$!
sleep 5
"$@" & two=$!
trap "kill $one $two" TERM
wait
wait
"""
"""Runs the command twice, as on two nodes, and ends both when it is ended. On one machine Ray starts one at a time."""


@pytest.mark.ray_long
def test_the_slurm_script_runs_a_study_on_a_ray_of_its_own_and_leaves_nothing(tmp_path: Path) -> None:
    """Slurm's part is played by a stand-in for srun; the rest is real."""
    pytest.importorskip("ray", reason="needs the extra ray: `make ray-test` installs it")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "srun").write_text(SRUN)
    (programs / "srun").chmod(0o755)
    path = write(tmp_path, "{name: ray, slots: 2}", epochs=4)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").write_text(f"PATH={Path(sys.executable).parent}:$PATH\n")
    ran = subprocess.run(
        ["bash", str(SLURM), str(path), "--database", f"sqlite:///{tmp_path / 'x.db'}"],
        cwd=tmp_path,
        env={
            **kept,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "LRSEARCH_VENV": str(tmp_path / "venv"),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_CPUS_PER_TASK": "1",
            "RAY_TMPDIR": "/tmp",  # noqa: S108  Ray's own default
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Study small version 1 is done" in ran.stderr
    assert not list(tmp_path.glob(".ray-token*"))
    port = str(20000 + os.getpid() % 20000).encode()
    deadline = time.monotonic() + 60
    while left := [line for line in _command_lines() if b"ray" in line and port in line]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    with open_store(f"sqlite:///{tmp_path / 'x.db'}") as store:
        [event] = [event for event in store.record("small").events if event.kind == "run"]
    assert event.data["slots"] == 2


def _command_lines() -> list[bytes]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            lines.append(path.read_bytes())
    return lines


def test_the_rayjob_has_what_kuberay_asks_for() -> None:
    """Required fields as in ray-operator/config/crd/bases/ray.io_rayjobs.yaml, in August 2026."""
    job: dict[str, Any] = YAML(typ="safe").load((RECIPES / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    [workers] = cluster["workerGroupSpecs"]
    assert {"groupName", "maxReplicas", "minReplicas", "template"} <= set(workers)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", (
        "nothing is trained beside the study's process"
    )
    containers = {}
    for group in (cluster["headGroupSpec"], workers):
        spec = group["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        [container] = spec["containers"]
        containers[container["name"]] = container
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
    named = {name: {variable["name"] for variable in one["env"]} for name, one in containers.items()}
    assert "LRSEARCH_DATABASE" in named["ray-head"]
    assert "LRSEARCH_DATABASE" not in named["ray-worker"]
