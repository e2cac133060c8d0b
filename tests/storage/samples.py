"""A small study to store: its file, facts, proposals and results."""

from __future__ import annotations

from typing import Any

from lrsearch.storage.store import Begun, Claim, End, Store, StudyRow
from lrsearch.trial import (
    Choice,
    CurvePoint,
    DeviceInfo,
    Proposal,
    RangeTestPlan,
    RangeTestPoint,
    ResultStatus,
    TrialResult,
    WorkloadFacts,
)

OWNER = "here:1:1:1"
VERSIONS = {"torch": "2.15.0"}
CPU = DeviceInfo("cpu", "a processor", count=1, threads=2)
# The order of keys is the order of the ways in every table, and is not the alphabet's.
CONFIG: dict[str, Any] = {
    "name": "digits",
    "seeds": [0, 1],
    "rates": {"low": 1e-5, "high": 10.0},
    "training": {"epochs": 5.0, "optimizer": {"name": "sgd", "momentum": 0.9}},
    "strategies": {"grid": {"name": "grid"}, "clr": {"name": "range_tested"}, "default": {"name": "default_rate"}},
}
FACTS = WorkloadFacts(
    metric="accuracy",
    higher_is_better=True,
    chance=0.1,
    train_count=1000,
    validation_count=200,
    test_count=300,
    range_test_count=200,
    steps_per_epoch=32,
    batch_size=32,
    parameter_count=2410,
    input_shape=(1, 8, 8),
    class_count=10,
    description="digits, 1000 images 8x8x1, model mlp",
)
CONSTANT = Proposal("train", Choice("constant", {"warmup": [0.1, 5]}), learning_rate=0.1)
CYCLE = Proposal("train", Choice("triangular2", {"cycles": 2}), learning_rate=0.3, base_lr=0.03, max_lr=0.6)
RANGE_TEST = Proposal("range_test", range_test=RangeTestPlan(1e-5, 10.0))


def points(count: int = 3) -> tuple[CurvePoint, ...]:
    """Return a curve whose numbers have no short decimal form."""
    return tuple(
        CurvePoint(32 * i, float(i), 0.1 / 3, 2.3 / i, 2.4 / i, 1 - 1 / (i + 1) / 3, i / 7, cycle_end=i == count)
        for i in range(1, count + 1)
    )


def result(uuid: str, status: ResultStatus = "completed", metric: float = 0.9) -> TrialResult:
    return TrialResult(
        uuid=uuid,
        status=status,
        device=CPU,
        train_steps=96,
        phase_seconds={"setup": 0.1, "train": 1 / 3, "evaluate": 0.2, "idle": 0.05, "test_evaluation": 0.7},
        core_seconds=2.2,
        validation_loss=1 / 3,
        validation_metric=metric,
        test_loss=0.4,
        test_metric=2 / 3,
        curve=points(),
        peak_device_memory_bytes=3_000_000_000,
        energy_joules=12.5,
        facts=FACTS,
    )


def range_test_result(uuid: str) -> TrialResult:
    rungs = (
        RangeTestPoint(0, 1e-5, 2.3, 2.31, 0.1),
        RangeTestPoint(1, 1e-2, 2.1),
        RangeTestPoint(2, 10.0, None, None, None),
    )
    seconds = {"setup": 0.1, "range_test": 0.5}
    return TrialResult(uuid, "completed", CPU, 3, seconds, 0.6, range_test=rungs, facts=FACTS)


def held_study(store: Store, name: str = "digits", owner: str = OWNER) -> StudyRow:
    """Return a new study whose lease `owner` holds."""
    study = store.create_study(name, {**CONFIG, "name": name}, "fingerprint")
    store.set_facts(study.id, FACTS)
    store.acquire(study.id, owner, 60.0)
    return study


def begin(store: Store, study: StudyRow, proposal: Proposal = CONSTANT, strategy: str = "grid", seed: int = 0) -> Begun:
    return store.begin_trials(study.id, [Claim(strategy, seed, proposal)], owner=OWNER, versions=VERSIONS)[0]


def finish(store: Store, begun: Begun, status: ResultStatus = "completed", metric: float = 0.9) -> TrialResult:
    done = result(begun.uuid, status, metric)
    store.finish_attempts([End(begun.attempt_id, begun.token, done, None)])
    return done
