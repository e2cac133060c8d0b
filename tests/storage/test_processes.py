"""Several processes on one SQLite file, as several studies on one machine are; and what reading must not import."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest

from lrsearch.storage.owner import this_owner
from lrsearch.storage.store import Claim, open_store
from tests.storage.samples import CONFIG, CONSTANT, VERSIONS

ROOT = Path(__file__).parents[2]
TRIALS = 25

RUN = """
import sys
from lrsearch.storage.optuna_mirror import OptunaMirror
from lrsearch.storage.owner import this_owner
from lrsearch.storage.store import Beat, Claim, End, open_store
from tests.storage.samples import FACTS, CONSTANT, CONFIG, VERSIONS, points, result
url, name, trials = sys.argv[1], sys.argv[2], int(sys.argv[3])
store, mirror = open_store(url), OptunaMirror(url)
study = store.create_study(name, {**CONFIG, "name": name}, "a")
store.set_facts(study.id, FACTS)
store.acquire(study.id, this_owner(), 60.0)
for _ in range(trials):
    begun = store.begin_trials(study.id, [Claim("grid", 0, CONSTANT)], owner=this_owner(), versions=VERSIONS)[0]
    store.heartbeat([Beat(begun.attempt_id, begun.token, points(1), {"train": 0.1})])
    store.finish_attempts([End(begun.attempt_id, begun.token, result(begun.uuid), None)])
    record = store.record(name)
    mirror.publish(record, record.trials)
print("done")
"""


def start_script(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_four_processes_and_a_reader_share_a_file_without_a_word(tmp_path: Path) -> None:
    """All start at once on a database that does not exist yet, so that they also create its tables together."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    names = [f"study{i}" for i in range(4)]
    processes = [start_script(RUN, url, name, str(TRIALS)) for name in names]
    while any(process.poll() is None for process in processes):
        if (tmp_path / "shared.db").exists():
            with open_store(url) as reader:
                assert len(reader.studies()) <= 4
        time.sleep(0.02)
    for process in processes:
        assert process.communicate() == ("done\n", "")
        assert process.returncode == 0
    assert_all_is_there(url, names, TRIALS)


def assert_all_is_there(url: str, names: Sequence[str], trials: int) -> None:
    """Each study has so many trials, in the ledger and in Optuna's view."""
    with open_store(url, must_exist=True) as store:
        for name in names:
            record = store.record(name)
            assert [(t.number, t.status) for t in record.trials] == [(i, "completed") for i in range(trials)]
    storage = optuna.storages.RDBStorage(url)
    for name in names:
        study = optuna.load_study(study_name=f"{name}/grid/0", storage=storage)
        assert [t.state.name for t in study.trials] == ["COMPLETE"] * trials
    storage.remove_session()
    storage.engine.dispose()


_HANG = """
import sys, time
from lrsearch.storage.owner import this_owner
from lrsearch.storage.store import Beat, Claim, End, open_store
from tests.storage.samples import CONFIG, CONSTANT, VERSIONS, points
store = open_store(sys.argv[1])
study = store.create_study("digits", CONFIG, "a")
store.acquire(study.id, this_owner(), 3600.0)
begun = store.begin_trials(study.id, [Claim("grid", 0, CONSTANT)], owner=this_owner(), versions=VERSIONS)[0]
time.sleep(0.2)
store.heartbeat([Beat(begun.attempt_id, begun.token, points(1), {})])
print(begun.uuid, flush=True)
time.sleep(600)
"""


def test_a_killed_study_goes_on_at_once_with_the_same_trial(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    process = start_script(_HANG, url)
    with process:
        assert process.stdout is not None
        uuid = process.stdout.readline().strip()
        process.kill()
    with open_store(url) as store:
        study = store.find_study("digits")
        assert study is not None
        store.acquire(study.id, this_owner(), 60.0)
        [lost] = store.reconcile(study.id)
        assert lost.uuid == uuid
        assert 0.2 <= lost.seconds < 60
        begun = store.begin_trials(study.id, [uuid], owner=this_owner(), versions=VERSIONS)[0]
        other = store.begin_trials(study.id, [Claim("grid", 0, CONSTANT)], owner=this_owner(), versions=VERSIONS)[0]
        assert (begun.number, other.number) == (0, 1)


_IMPORTED = """
import sys
from lrsearch.storage import export
from lrsearch.storage.store import Beat, Claim, End, open_store
with open_store(sys.argv[1], must_exist=True) as store:
    export.export_rows(store.record("digits"), "trials")
    store.studies()
print(*sorted({"torch", "optuna", "alembic", "plotly"} & set(sys.modules)))
"""


def test_reading_imports_neither_torch_nor_optuna_nor_alembic(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    with open_store(url) as store:
        store.create_study("digits", CONFIG, "a")
    process = start_script(_IMPORTED, url)
    assert process.communicate() == ("\n", "")
    assert CONSTANT.learning_rate is not None
