"""Bytes that change on the disk between a kill and the next start: of the image cache, and of an image."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lrsearch.config import load_study
from lrsearch.storage.store import open_store
from lrsearch.study import run_study
from tests.faults.harness import await_attempt, on_sqlite, running_attempts, said, start
from tests.test_study import Quiet, outcome
from tests.workloads.test_image_folder import write_tree

FILE = """
version: 1
name: small
workload: {name: image_folder, data_root: birds, model: lenet, batch_size: 16}
training: {epochs: 60, device: cpu, optimizer: {name: sgd}}
seeds: [0]
rates: {low: 1e-4, high: 0.1}
strategies: {grid: {name: grid, points: 2}}
"""


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_damaged_cache_is_made_anew_and_a_damaged_image_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, count in (("train", 60), ("test", 10)):
        write_tree(tmp_path / "birds" / part, count)
    (tmp_path / "study.yaml").write_text(FILE)
    path, url, cache = tmp_path / "study.yaml", on_sqlite(tmp_path), tmp_path / "cache"
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "other"))
    with open_store(f"sqlite:///{tmp_path / 'unbroken.db'}") as store:
        expected = run_study(load_study(path), store, observer=Quiet())
    process = start(path, url, LRSEARCH_CACHE=str(cache))
    assert await_attempt(process, url, set())
    landed = running_attempts(url)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    [cached] = cache.glob("*.images")
    whole = cached.read_bytes()
    image = tmp_path / "birds" / "train" / "cat" / "007.png"
    good = image.read_bytes()
    image.write_bytes(good[:100])
    assert start(path, url, LRSEARCH_CACHE=str(cache)).wait(timeout=120) == 3, said(tmp_path)
    assert "train/cat/007.png cannot be read" in said(tmp_path)
    assert "replace or remove it" in said(tmp_path)
    assert running_attempts(url) == landed, "nothing was touched"

    image.write_bytes(good)
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    cached.write_bytes(damaged)
    assert start(path, url, LRSEARCH_CACHE=str(cache)).wait(timeout=300) == 0, said(tmp_path)
    assert cached.read_bytes() != damaged
    assert "Traceback" not in said(tmp_path)
    with open_store(url) as store:
        record = store.record("small")
    assert outcome(record) == outcome(expected)
    assert [[attempt.status for attempt in trial.attempts] for trial in record.trials] in (
        [["lost", "finished"], ["finished"]],
        [["finished"], ["lost", "finished"]],
    )
