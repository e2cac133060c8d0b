"""What a run shared its machine with, and the commit of its study's folder, in a real repository."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lrsearch.surroundings import busy_core_seconds, commit_of, noted


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_commit_is_gits_own_and_says_when_files_differ(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) is None, "no commit yet"
    (tmp_path / "study.yaml").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    assert commit_of(tmp_path) == head[:12]
    (tmp_path / "untracked").write_text("")
    assert commit_of(tmp_path) == head[:12]
    (tmp_path / "study.yaml").write_text("b")
    assert commit_of(tmp_path) == f"{head[:12]}+"


@pytest.mark.skipif(busy_core_seconds() is None, reason="the machine does not say how busy it is")
def test_what_others_do_counts_and_what_the_run_does_itself_does_not(tmp_path: Path) -> None:
    """Against a program that keeps one processor busy, and against work of this process's own."""
    found: list[dict[str, Any]] = []

    def others(*, alone: bool) -> float:
        with noted(lambda facts: found.append(dict(facts)), tmp_path):
            end = time.perf_counter() + 0.6
            while time.perf_counter() < end:
                if not alone:
                    time.sleep(0.05)
        assert found[-1]["commit"] is None
        assert found[-1]["seconds"] >= 0.6
        return float(found[-1]["busy_with_others"])

    calm = min(others(alone=True) for _ in range(3))
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        loaded = max(others(alone=False) for _ in range(3))
    finally:
        busy.kill()
        busy.wait()
    assert found[-1]["processors"] >= 1
    assert loaded > 0.3
    assert calm < found[-1]["processors"]


def test_facts_are_noted_when_a_run_is_interrupted_too(tmp_path: Path) -> None:
    found: list[Any] = []
    with pytest.raises(KeyboardInterrupt), noted(found.append, tmp_path):
        raise KeyboardInterrupt
    assert len(found) == 1
