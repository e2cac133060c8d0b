"""Many trials: the benchmark of the ledger in small. `benchmarks/ledger_scale.py` runs it with 20,000."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks import ledger_scale
from lrsearch import conductor


def test_the_statements_of_a_trial_do_not_grow_with_the_number_of_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of ledger and view together, without heartbeats: trials that a busy machine holds up have some more."""
    monkeypatch.setattr(conductor, "FIRST_HEARTBEAT_SECONDS", 1e6)
    counts = []
    for trials in (12, 48):
        watch = ledger_scale.run(tmp_path, f"sqlite:///{tmp_path / f'{trials}.db'}", trials)
        per_trial = ledger_scale.per_trial(watch.counts)
        assert len(per_trial) == trials - 1
        counts += [statistics.median(per_trial[:6]), statistics.median(per_trial[-6:])]
    assert counts[0] > 20, "the view's are among them"
    assert len(set(counts)) == 1, counts
