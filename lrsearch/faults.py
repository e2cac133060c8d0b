"""Named points at which a test can kill this process, to show that nothing is lost there.

`LRSEARCH_KILL_AT=before_commit:2` kills it with SIGKILL when the second result is about to be committed. Points:
after_plan, after_claim, checkpoint_temp, checkpoint_before_rename, checkpoint_after_rename, before_commit,
after_commit, before_mirror, page_before_rename.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "LRSEARCH_KILL_AT"
_passed: dict[str, int] = {}


def point(name: str) -> None:
    """Die here when the variable names this point and this is the pass that it counts to (by default the first)."""
    wanted, _, count = os.environ.get(VARIABLE, "").partition(":")
    if name != wanted:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
