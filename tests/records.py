"""Studies that never ran, as real ones look: for whatever reads records and needs neither torch nor a database.

The toy behind it: validation accuracy is a bump over log rate that falls to chance, training diverges above a rate, and
every second is written out phase by phase. All chance comes from (study, strategy, seed, trial).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from lrsearch.trial import (
    AttemptRecord,
    Choice,
    CurvePoint,
    DeviceInfo,
    Event,
    Proposal,
    RangeTestPlan,
    RangeTestPoint,
    ResultStatus,
    StudyRecord,
    TrialRecord,
    TrialResult,
    WorkloadFacts,
)

CPU = DeviceInfo("cpu", "Intel(R) Xeon(R) Processor @ 2.80GHz", threads=2)
GPU = DeviceInfo("cuda", "NVIDIA H200")
STARTED = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
STEPS_PER_EPOCH = 36
EPOCHS = 15
LOW, HIGH, DIVERGES_ABOVE, BEST_RATE = 1e-5, 10.0, 2.0, 0.15
VERSIONS = {"lrsearch": "0.1.0", "torch": "2.15.0", "python": "3.11.2"}

CONSTANT = {"name": "constant"}
LINEAR = {"name": "linear_to_zero"}
TRIANGULAR2 = {"name": "triangular2", "cycles": 2}
SEVEN_WAYS: Mapping[str, Mapping[str, Any]] = {
    "grid": {"name": "grid", "points": 8, "learning_rates": None, "schedule": CONSTANT},
    "random": {"name": "random_search", "trials": 8, "schedule": CONSTANT},
    "tpe": {"name": "optuna_search", "sampler": "tpe", "trials": 16, "pruner": "none", "schedule": CONSTANT},
    "clr": {"name": "range_tested", "schedule": TRIANGULAR2, "range_epochs": 2.0, "policy": "default"},
    "clr_linear": {"name": "range_tested", "schedule": LINEAR, "range_epochs": 2.0, "policy": "default"},
    "grid_linear": {"name": "grid", "points": 8, "learning_rates": None, "schedule": LINEAR},
    "default": {"name": "default_rate", "schedule": CONSTANT},
}

FACTS = WorkloadFacts(
    metric="accuracy",
    higher_is_better=True,
    chance=0.102,
    train_count=1150,
    validation_count=287,
    test_count=360,
    range_test_count=287,
    steps_per_epoch=STEPS_PER_EPOCH,
    batch_size=32,
    parameter_count=9706,
    input_shape=(1, 8, 8),
    class_count=10,
    description="digits, 1797 images 8x8, model mlp",
)


T = TypeVar("T")


def some(value: T | None) -> T:
    """Return a value that a test knows to be there."""
    assert value is not None
    return value


def make_config(
    strategies: Mapping[str, Mapping[str, Any]] = SEVEN_WAYS,
    *,
    name: str = "digits",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    target: float | None = 0.95,
    usd_per_device_hour: float | None = 2.5,
) -> dict[str, Any]:
    """Return a resolved study file."""
    price = {"usd_per_device_hour": usd_per_device_hour, "as_of": "2026-11-23"}
    return {
        "version": 1,
        "name": name,
        "workload": {"name": "digits", "model": "mlp", "batch_size": 32},
        "training": {
            "epochs": float(EPOCHS),
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0005, "nesterov": False},
            "precision": "float32",
            "gradient_clip_norm": None,
            "device": "auto",
        },
        "seeds": list(seeds),
        "rates": {"low": LOW, "high": HIGH},
        "target": None if target is None else {"metric": "accuracy", "value": target},
        "price": None if usd_per_device_hour is None else price,
        "strategies": {key: dict(settings) for key, settings in strategies.items()},
    }


def make_record(
    strategies: Mapping[str, Mapping[str, Any]] = SEVEN_WAYS,
    *,
    name: str = "digits",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    target: float | None = 0.95,
    usd_per_device_hour: float | None = 2.5,
    device: DeviceInfo = CPU,
    failures: bool = True,
) -> StudyRecord:
    """Return a finished study. With `failures`, a trial failed, one was pruned, and one was killed and ran again."""
    config = make_config(strategies, name=name, seeds=seeds, target=target, usd_per_device_hour=usd_per_device_hour)
    trials: list[TrialRecord] = []
    for seed in seeds:
        for key, settings in strategies.items():
            chance = random.Random(f"{name}/{key}/{seed}")
            trials += _search(key, settings, seed, chance, device)
    if failures:
        trials = _with_failures(trials)
    held = sum(sum(attempt.phase_seconds.values()) for trial in trials for attempt in trial.attempts)
    return StudyRecord(
        name=name,
        version=1,
        created_at=STARTED,
        config=config,
        facts=FACTS,
        finished=True,
        trials=tuple(trials),
        events=(
            Event(STARTED, "attempts_lost", {"attempts": ["grid seed 0 trial 3 attempt 1"]}),
            Event(
                STARTED + timedelta(seconds=held),
                "run",
                {"held_seconds": held * 1.004, "prepare_seconds": 1.2, "device_kind": device.kind},
            ),
        ),
    )


def mixed_devices() -> StudyRecord:
    """Return a finished study whose later trials ran on another kind of device."""
    cpu, gpu = make_record(seeds=[0, 1]), make_record(seeds=[0, 1], device=GPU)
    return replace(cpu, trials=(*cpu.trials[:45], *gpu.trials[45:]))


def unfinished(record: StudyRecord, trial_count: int) -> StudyRecord:
    """Return `record` as it was when `trial_count` trials had ended, seed by seed, the next one running."""
    done, running = record.trials[:trial_count], record.trials[trial_count]
    attempt = replace(running.attempts[-1], status="running", finished_at=None, phase_seconds={}, core_seconds=None)
    current = replace(running, status="running", result=None, attempts=(attempt,))
    over = dict.fromkeys((trial.strategy, trial.seed) for trial in done if trial.seed != running.seed)
    noted = (Event(STARTED, "search_done", {"strategy": strategy, "seed": seed}) for strategy, seed in over)
    return replace(record, finished=False, trials=(*done, current), events=(*record.events, *noted))


def make_trial(
    strategy: str,
    seed: int,
    number: int,
    proposal: Proposal,
    *,
    status: ResultStatus = "completed",
    validation: float | None = None,
    test: float | None = None,
    phases: Mapping[str, float],
    device: DeviceInfo = CPU,
    curve: Sequence[CurvePoint] = (),
    range_test: Sequence[RangeTestPoint] = (),
    error: str | None = None,
) -> TrialRecord:
    """Return a trial with one finished attempt."""
    uuid = f"{strategy}-{seed}-{number}"
    began = STARTED + timedelta(minutes=seed * 10 + number)
    attempt = AttemptRecord(
        number=1,
        status="finished",
        owner="host:1",
        started_at=began,
        finished_at=began + timedelta(seconds=sum(phases.values())),
        phase_seconds=phases,
        core_seconds=sum(phases.values()) * 1.7,
        estimated=False,
        device=device,
        versions=VERSIONS,
        error=error,
    )
    result = TrialResult(
        uuid=uuid,
        status=status,
        device=device,
        train_steps=EPOCHS * STEPS_PER_EPOCH,
        phase_seconds=phases,
        core_seconds=attempt.core_seconds or 0.0,
        validation_metric=validation,
        test_metric=test,
        curve=tuple(curve),
        range_test=tuple(range_test),
        error=error,
        facts=FACTS,
    )
    return TrialRecord(uuid, strategy, seed, number, status, proposal, (attempt,), result)


def _search(
    key: str, settings: Mapping[str, Any], seed: int, chance: random.Random, device: DeviceInfo
) -> Iterator[TrialRecord]:
    schedule = Choice(settings["schedule"]["name"], {k: v for k, v in settings["schedule"].items() if k != "name"})
    if settings["name"] == "range_tested":
        yield _range_test(key, seed, chance, device)
        max_lr = BEST_RATE * chance.uniform(1.5, 3.0)
        proposal = Proposal("train", schedule, max_lr / 2, max_lr / 20, max_lr)
        yield _training(key, seed, 1, proposal, chance, device)
        return
    for number, rate in enumerate(_rates(settings, chance)):
        guided = number >= 10 if settings["name"] == "optuna_search" else None
        yield _training(key, seed, number, Proposal("train", schedule, rate, model_guided=guided), chance, device)


def _rates(settings: Mapping[str, Any], chance: random.Random) -> list[float]:
    if settings["name"] == "grid":
        points = settings["points"]
        rates = [LOW * (HIGH / LOW) ** (i / (points - 1)) for i in range(points)]
        chance.shuffle(rates)
        return rates
    if settings["name"] == "default_rate":
        return [0.01]
    count = settings["trials"]
    rates = [math.exp(chance.uniform(math.log(LOW), math.log(HIGH))) for _ in range(min(count, 10))]
    return rates + [BEST_RATE * math.exp(chance.gauss(0, 0.8)) for _ in range(count - len(rates))]


def _training(
    key: str, seed: int, number: int, proposal: Proposal, chance: random.Random, device: DeviceInfo
) -> TrialRecord:
    assert proposal.schedule is not None
    assert proposal.learning_rate is not None
    rate, decays = proposal.learning_rate, proposal.schedule.name != "constant"
    final = _accuracy(rate, decays) + chance.gauss(0, 0.004)
    second = 0.02 if device.kind == "cuda" else 0.11
    points, spent = [], 0.03
    for epoch in range(1, EPOCHS + 1):
        spent += second * chance.uniform(0.92, 1.12)
        diverged = rate > DIVERGES_ABOVE and epoch == 2
        learnt = 1 - math.exp(-epoch / 3 * (1.2 if decays else 1.0))
        metric = min(1.0, FACTS.chance + (final - FACTS.chance) * learnt)  # type: ignore[operator]  # FACTS has one
        loss = 2.3 * (1.02 - metric)
        points.append(
            CurvePoint(
                step=epoch * STEPS_PER_EPOCH,
                epoch=float(epoch),
                learning_rate=_rate_at(proposal, epoch / EPOCHS),
                train_loss=None if diverged else loss * 0.9,
                validation_loss=None if diverged else loss,
                validation_metric=None if diverged else metric,
                charged_device_seconds=spent,
                cycle_end=proposal.schedule.name == "triangular2" and epoch == EPOCHS,
            )
        )
        if diverged:
            break
    phases = {"setup": 0.02, "warmup": 0.01, "train": spent * 0.8, "evaluate": spent * 0.2 - 0.03, "idle": 0.012}
    diverged = rate > DIVERGES_ABOVE
    return make_trial(
        key,
        seed,
        number,
        proposal,
        status="diverged" if diverged else "completed",
        validation=None if diverged else points[-1].validation_metric,
        test=None if diverged else min(1.0, final - 0.005 + chance.gauss(0, 0.004)),
        phases={**phases, "data": 0.004, **({} if diverged else {"test_evaluation": 0.006})},
        device=device,
        curve=points,
        error=f"The loss became non-finite at step {STEPS_PER_EPOCH + 3}." if diverged else None,
    )


def _accuracy(rate: float, decays: bool) -> float:
    distance = math.log10(rate / BEST_RATE)
    width = 1.3 if distance < 0 else 0.8
    return 0.1 + (0.874 if decays else 0.866) * math.exp(-((abs(distance) / width / 1.6) ** 4))


def _rate_at(proposal: Proposal, share: float) -> float:
    assert proposal.schedule is not None
    assert proposal.learning_rate is not None
    if proposal.schedule.name == "linear_to_zero":
        return proposal.learning_rate * max(1 - share, 1e-3)
    if proposal.schedule.name == "triangular2" and proposal.max_lr and proposal.base_lr:
        cycle, position = divmod(share * 2, 1.0)
        height = (proposal.max_lr - proposal.base_lr) / 2 ** min(cycle, 1)
        return proposal.base_lr + height * (1 - abs(2 * position - 1))
    return proposal.learning_rate


def _range_test(key: str, seed: int, chance: random.Random, device: DeviceInfo) -> TrialRecord:
    count, points = 100, []
    for i in range(count):
        rate = LOW * (HIGH / LOW) ** (i / (count - 1))
        learnt = 1 / (1 + math.exp(-3.0 * math.log10(rate / 0.02)))
        broken = 1 / (1 + math.exp(-6.0 * math.log10(rate / 1.0)))
        metric = 0.1 + 0.8 * learnt * (1 - broken) + chance.gauss(0, 0.006 + 0.05 * broken)
        loss = 2.3 - 1.9 * learnt + 6 * broken + chance.gauss(0, 0.04)
        evaluated = i % 2 == 1 or i == count - 1
        points.append(
            RangeTestPoint(
                step=i,
                learning_rate=rate,
                train_loss=None if i == count - 1 else loss,
                validation_loss=loss if evaluated else None,
                validation_metric=max(0.0, metric) if evaluated else None,
            )
        )
    seconds = 0.045 if device.kind == "cuda" else 0.29
    return make_trial(
        key,
        seed,
        0,
        Proposal("range_test", range_test=RangeTestPlan(LOW, HIGH)),
        phases={"setup": 0.02, "range_test": seconds * chance.uniform(0.9, 1.1), "idle": 0.03, "data": 0.004},
        device=device,
        range_test=points,
    )


def _with_failures(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Fail the third trial of the first random search, prune one of the first TPE, kill one of the first grid."""
    changes = {("random", 0, 2): _failed, ("tpe", 0, 4): _pruned, ("grid", 0, 3): _killed_once}
    first = trials[0].seed
    return [
        changes.get((trial.strategy, trial.seed - first, trial.number), lambda same: same)(trial) for trial in trials
    ]


def _failed(trial: TrialRecord) -> TrialRecord:
    error = "RuntimeError: mat1 and mat2 shapes cannot be multiplied (32x64 and 128x10) (model.py:12, in forward)"
    phases = {"setup": 0.02, "warmup": 0.003}
    return make_trial(
        trial.strategy,
        trial.seed,
        trial.number,
        trial.proposal,
        status="failed",
        phases=phases,
        device=trial.attempts[0].device or CPU,
        error=error,
    )


def _pruned(trial: TrialRecord) -> TrialRecord:
    if trial.result is None or not trial.result.curve:
        return trial
    curve = trial.result.curve[:4]
    phases = {"setup": 0.02, "train": curve[-1].charged_device_seconds - 0.02, "test_evaluation": 0.006}
    return make_trial(
        trial.strategy,
        trial.seed,
        trial.number,
        trial.proposal,
        status="pruned",
        validation=curve[-1].validation_metric,
        test=curve[-1].validation_metric,
        phases=phases,
        device=trial.attempts[0].device or CPU,
        curve=curve,
    )


def _killed_once(trial: TrialRecord) -> TrialRecord:
    lost = replace(
        trial.attempts[0],
        status="lost",
        phase_seconds={"lost": 0.8},
        core_seconds=None,
        estimated=True,
        device=None,
    )
    return replace(trial, attempts=(lost, replace(trial.attempts[0], number=2)))


@dataclass(frozen=True)
class PlainTrial:
    """A trial in three numbers, for studies whose answer is known beforehand."""

    seconds: float
    validation: float | None = None
    test: float | None = None
    status: ResultStatus = "completed"
    rate: float = 0.1


def plain_record(searches: Mapping[str, Mapping[int, Sequence[PlainTrial]]], **settings: Any) -> StudyRecord:
    """Return a finished study of trials that spend all their seconds in the phase `train`, one evaluation at the end.

    A way called clr is the CLR run (its trials are training runs all the same), every other one a random search.
    """
    seeds = sorted({seed for by_seed in searches.values() for seed in by_seed})
    strategies = {
        key: {"name": "range_tested" if key == "clr" else "random_search", "schedule": TRIANGULAR2} for key in searches
    }
    trials = [
        _plain_trial(key, seed, number, plain)
        for seed in seeds
        for key, by_seed in searches.items()
        for number, plain in enumerate(by_seed.get(seed, ()))
    ]
    config = make_config(strategies, seeds=seeds, **settings)
    return StudyRecord("plain", 1, STARTED, config, FACTS, finished=True, trials=tuple(trials))


def _plain_trial(key: str, seed: int, number: int, plain: PlainTrial) -> TrialRecord:
    point = CurvePoint(10, 1.0, plain.rate, 0.1, 0.1, plain.validation, plain.seconds)
    return make_trial(
        key,
        seed,
        number,
        Proposal("train", Choice("constant"), plain.rate),
        status=plain.status,
        validation=plain.validation,
        test=plain.test,
        phases={"train": plain.seconds},
        curve=[point],
    )
