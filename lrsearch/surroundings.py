"""What else a run shared its machine with, and the commit that its study file belongs to."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrsearch.timing import core_seconds

PROC_STAT = Path("/proc/stat")
IDLE, IO_WAIT, GUEST = 3, 4, 8  # fields of its first line; guest time is in user time already


@contextmanager
def noted(
    note: Callable[[Mapping[str, Any]], object], folder: Path, used: Callable[[], float] = core_seconds
) -> Iterator[None]:
    """Hand to `note` what the machine did beside us while the block ran, and the commit of `folder`.

    `used` returns the processor seconds that are ours, by now.
    """
    commit, began, busy, own = commit_of(folder), time.perf_counter(), busy_core_seconds(), used()
    try:
        yield
    finally:
        after, elapsed = busy_core_seconds(), time.perf_counter() - began
        others = None
        if busy is not None and after is not None and elapsed > 0:
            others = max(0.0, after - busy - (used() - own)) / elapsed
        note({"processors": os.cpu_count(), "busy_with_others": others, "commit": commit, "seconds": elapsed})


def busy_core_seconds() -> float | None:
    """Return the seconds that all processors of the machine have worked, over all programs; None where unknown."""
    try:
        fields = [int(text) for text in PROC_STAT.read_text().split("\n", 1)[0].split()[1:]]
        ticks = sum(fields[:GUEST]) - fields[IDLE] - fields[IO_WAIT]
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # not Linux
        return None


def commit_of(folder: Path) -> str | None:
    """Return the commit checked out in `folder`, with "+" where tracked files differ from it; None outside of git."""
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return head if changed == "" else f"{head}+"


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says, without running programs that the repository names; None without git."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
