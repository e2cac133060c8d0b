"""How the ledger and the dashboard's view bear many trials: a study of an all but empty workload, trial by trial.

`python benchmarks/ledger_scale.py [--database URL] [--trials 1000 10000 20000]` prints, for each number of trials, the
seconds of a trial among the first and the last thousand, their ratio, the same in processor seconds of the study's
process, also against a yardstick because a busy machine lengthens them too, and the SQL statements, those of the view
included; all are medians. Half of the trials are a grid's, half a random search's. By default the database is an
SQLite file in a temporary folder; with --database every size makes a new version of the study in that database.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lrsearch.config import load_study
from lrsearch.storage.engine import display_url
from lrsearch.storage.store import open_store
from lrsearch.study import run_study
from lrsearch.trial import CurvePoint, StudyRecord, TrialRecord

USER = """
import torch
def data():
    inputs, targets = torch.randn(24, 2, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2
    return (inputs[:16], targets[:16]), (inputs[16:], targets[16:])
def model():
    return torch.nn.Linear(2, 2)
"""
STUDY = """
version: 1
name: scale
workload: {{name: callable, model: 'all_but_empty:model', data: 'all_but_empty:data', batch_size: 8, python_path: .}}
training: {{epochs: 1, device: cpu, optimizer: {{name: sgd}}}}
seeds: [0]
rates: {{low: 1e-6, high: 1.0}}
strategies:
  grid: {{name: grid, points: {each}}}
  random: {{name: random_search, trials: {each}}}
"""
COMPARED = 1000
WORK = bytes(1_000_000)
"""To be hashed as a yardstick: work that needs no memory of its own."""


@dataclass
class Stopwatch:
    """An observer that notes when each trial begins, and how many statements there were until then."""

    statements: int = 0
    times: list[float] = field(default_factory=list)
    processor_times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    yardsticks: list[float] = field(default_factory=list)
    """Processor seconds of the same piece of work at the beginning of each trial: what a busy machine does to us."""

    def count(self, *_: Any) -> None:
        self.statements += 1

    def trial_started(self, trial: TrialRecord) -> None:
        began = time.process_time()
        hashlib.sha256(WORK)
        self.yardsticks.append(time.process_time() - began)
        self.times.append(time.perf_counter())
        self.processor_times.append(time.process_time())
        self.counts.append(self.statements)

    def study_started(self, record: StudyRecord, planned_trials: dict[str, int]) -> None: ...

    def curve_point(self, trial: TrialRecord, point: CurvePoint) -> None: ...

    def trial_finished(self, trial: TrialRecord) -> None: ...

    def message(self, text: str) -> None: ...

    def study_finished(self, record: StudyRecord) -> None: ...


def per_trial(moments: Sequence[float]) -> list[float]:
    """Return what lies between the beginnings of neighbouring trials."""
    return [after - before for before, after in pairwise(moments)]


def run(folder: Path, url: str, trials: int) -> Stopwatch:
    """Run a study of so many trials and return what was noted of each."""
    (folder / "all_but_empty.py").write_text(USER)
    path = folder / "study.yaml"
    path.write_text(STUDY.format(each=trials // 2))
    watch = Stopwatch()
    sa.event.listen(sa.Engine, "before_cursor_execute", watch.count)
    try:
        with open_store(url) as store:
            run_study(load_study(path), store, observer=watch, fresh=True, mirror_url=url)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", watch.count)
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", help="default: an SQLite file in a temporary folder")
    parser.add_argument("--trials", type=int, nargs="+", default=[1_000, 10_000, 20_000])
    chosen = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("sqlalchemy", "optuna", "torch"))
    print(f"{platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} when it began;")
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {packages}")
    for trials in chosen.trials:
        with tempfile.TemporaryDirectory() as name:
            url = chosen.database or f"sqlite:///{name}/scale.db"
            watch = run(Path(name), url, trials)
        print(f"{trials} trials on {display_url(url).partition(':')[0]}: {_described(watch)}", flush=True)


def _described(watch: Stopwatch) -> str:
    wall, processor = per_trial(watch.times), per_trial(watch.processor_times)
    statements = per_trial(watch.counts)
    count = min(COMPARED, len(wall) // 2)

    def ends(values: list[float]) -> tuple[float, float]:
        return statistics.median(values[:count]), statistics.median(values[-count:])

    (first, last), (early, late), (short, long) = ends(wall), ends(processor), ends(watch.yardsticks)
    return (
        f"a trial of the first and of the last {count}: {first * 1e3:.2f} and {last * 1e3:.2f} ms, ratio "
        f"{last / first:.3f}; on the processor {early * 1e3:.2f} and {late * 1e3:.2f} ms, ratio {late / early:.3f}, "
        f"against the yardstick ({short * 1e3:.2f} and {long * 1e3:.2f} ms) {late / long / (early / short):.3f}; "
        "statements {:g} and {:g}".format(*ends(statements))
    )


if __name__ == "__main__":
    main()
