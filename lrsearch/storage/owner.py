"""Who holds a lease: a process, named so that another one on the same machine can tell whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def this_owner() -> str:
    """Return "host:pid:start:namespace" of this process; `start` (ticks since boot) tells a reused pid apart."""
    return f"{_here()[0]}:{os.getpid()}:{_start_time(os.getpid()) or 0}:{_here()[1]}"


def is_dead(owner: str) -> bool:
    """Return True when `owner` surely no longer runs. False also means unknown: another machine or container."""
    return _lives(owner) is False


def is_alive(owner: str) -> bool:
    """Return True when `owner` surely runs. False also means unknown."""
    return _lives(owner) is True


def _lives(owner: str) -> bool | None:
    try:
        host, pid, start, namespace = owner.rsplit(":", 3)
        if (host, namespace) != _here():
            return None
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        return None
    if not Path("/proc/self/stat").exists():
        return None
    return str(_start_time(int(pid))) == start


def _here() -> tuple[str, str]:
    """Return host name and pid namespace: containers may share the one, and then pids mean different processes."""
    try:
        return socket.gethostname(), str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return socket.gethostname(), ""


def _start_time(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat; None for a process that is gone or a zombie, and where there is no /proc."""
    try:
        # The second field, the program's name in brackets, may hold spaces and brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
