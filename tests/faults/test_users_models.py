"""What a user's model does wrong in the middle of a trial is that trial's result, and no other trial's business."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from lrsearch.conductor import HEARTBEAT_SECONDS
from lrsearch.storage.store import open_store
from lrsearch.trial import StudyRecord
from tests.faults.harness import GRID, INLINE, PROCESSES, USER, on_sqlite, said, start, unbroken, write
from tests.test_study import outcome

EPOCHS = 10
FAULT = """
    def forward(self, inputs):
        Model.steps += self.training
        if Model.steps == 60 and self.first():
            {fault}
        return self.right(inputs)

    @staticmethod
    def first():
        # Only one trial of the study: those of two processes may come here at the same time.
        try:
            with FLAG.open("x") as file:
                file.write(str(time.time()))
        except FileExistsError:
            return False
        return True

    steps = 0

    def right(self, inputs):
"""
MEMORY = """
            import resource
            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, hard))
            try:
                torch.zeros(2**32)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
"""
FAULTS = {
    "raises": ("raise ValueError('cursed weights')", "failed", ("ValueError: cursed weights", "slow_user")),
    "runs out of memory": (MEMORY.strip(), "failed", ("Out of device memory; lower workload.batch_size", "allocate")),
    "returns NaN": ("return self.right(inputs) * float('nan')", "diverged", ("diverged",)),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    return unbroken(tmp_path_factory.mktemp("unbroken"), INLINE, EPOCHS, GRID)


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("executor", [INLINE, PROCESSES], ids=["inline", "process"])
@pytest.mark.parametrize("kind", FAULTS)
def test_one_trial_has_it_as_its_result_and_the_others_are_as_ever(
    tmp_path: Path, expected: StudyRecord, kind: str, executor: str
) -> None:
    fault, status, told = FAULTS[kind]
    path, url, flag = write(tmp_path, executor, EPOCHS, GRID), on_sqlite(tmp_path), tmp_path / "flag"
    user = USER.replace("\n    def forward(self, inputs):\n", FAULT.format(fault=fault))
    (tmp_path / "slow_user.py").write_text(f"from pathlib import Path\nFLAG = Path({str(flag)!r})\n{user}")
    assert start(path, url).wait(timeout=300) == 0, said(tmp_path)
    with open_store(url) as store:
        record = store.record("small")
    assert record.finished
    broken = [trial for trial in record.trials if trial.status != "completed"]
    assert [trial.status for trial in broken] == [status]
    assert broken[0].result is not None
    assert broken[0].result.train_steps > 0
    others = {(row[1], row[2]): row for row in outcome(expected)}
    rows = [row for row in outcome(record) if row[3] == "completed"]
    assert len(rows) == len(others) - 1
    assert all(row == others[row[1], row[2]] for row in rows)
    [attempt] = broken[0].attempts
    assert attempt.finished_at is not None
    assert attempt.started_at < datetime.fromtimestamp(float(flag.read_text()), UTC) < attempt.finished_at
    held = (attempt.finished_at - attempt.started_at).total_seconds()
    assert sum(attempt.phase_seconds.values()) == pytest.approx(held, abs=HEARTBEAT_SECONDS)
    assert all(words in said(tmp_path) for words in told), said(tmp_path)
    assert "Traceback" not in said(tmp_path)
