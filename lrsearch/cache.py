"""The folder for what can be made again: decoded images, and what timing has chosen on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
import uuid
from pathlib import Path
from typing import Any

from lrsearch.timing import waited_seconds

KEPT_SECONDS = 7 * 24 * 3600.0
"""What was timed by an older driver may be wrong: it is not kept for ever,"""
KEPT_SECONDS_BESIDE_OTHERS = 3600.0
"""and what was timed beside other programs for about as long as these run."""
MOST_WAITED = 0.05
"""Of the seconds since a choice was looked for, how many this process may have waited for a processor: where other
programs had them, it was timed beside these. Assumed: on a quiet machine it is far less."""
_looked: dict[Path, tuple[float, float]] = {}
"""Where a choice was looked for: when that first was, and what this process had waited by then."""


def cache_folder() -> Path:
    """Return LRSEARCH_CACHE or the user's cache folder (XDG_CACHE_HOME, or ~/.cache, then lrsearch)."""
    if own := os.environ.get("LRSEARCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lrsearch"


def recall(kind: str, circumstances: object) -> Any:
    """Return what `remember` keeps for the same circumstances; None when there is nothing, or it is too old."""
    path = _path(kind, circumstances)
    _looked.setdefault(path, (time.perf_counter(), waited_seconds()))
    try:
        is_old = path.stat().st_mtime < time.time() - KEPT_SECONDS
        return None if is_old else json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def remember(kind: str, circumstances: object, choice: object) -> None:
    """Keep a choice, both as plain JSON values; where that cannot be written, it is made again next time.

    It is kept for less long where this process has waited for others since it looked for the choice.
    """
    path, written = _path(kind, circumstances), time.time()
    began, waited = _looked.pop(path, (time.perf_counter(), math.inf))
    if waited_seconds() - waited > MOST_WAITED * (time.perf_counter() - began):
        written -= KEPT_SECONDS - KEPT_SECONDS_BESIDE_OTHERS
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        temporary.write_text(json.dumps(choice))
        os.utime(temporary, (written, written))
        temporary.replace(path)


def _path(kind: str, circumstances: object) -> Path:
    return cache_folder() / kind / hashlib.sha256(json.dumps(circumstances).encode()).hexdigest()
