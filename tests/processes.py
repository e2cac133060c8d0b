"""Which processes a process has started, and what a program imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the processes that any of its threads has started and that have not been reaped."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:  # it has ended meanwhile
            continue
    return found


def lives(pid: int) -> bool:
    """Whether the process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def workers_of(pid: int) -> list[int]:
    """Return the workers of a study that runs in process `pid`: they are forked by a process that it started."""
    return [worker for forker in children(pid) for worker in children(forker)]


def modules_after(program: str) -> set[str]:
    """Return the modules that a fresh process has imported when it has run the program."""
    tell = "\nimport sys; print(*sys.modules)"
    command = [sys.executable, "-c", program + tell]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split())
