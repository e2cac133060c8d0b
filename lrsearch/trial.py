"""The records that travel between the parts of lrsearch: frozen, made of plain values, picklable, free of torch.

A *study* compares *strategies* (ways of choosing a learning rate). A *search* is one complete execution of a strategy
with its own seed. A *trial* is one training run or one range test inside a search. An *attempt* is one try at running a
trial; a trial that was killed half-way has several, and each of them costs.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cached_property, partial
from typing import Any, Literal

Stage = Literal["range_test", "train"]
ResultStatus = Literal["completed", "diverged", "pruned", "failed"]
"""How a trial ended. `diverged` is a result (the loss became non-finite); `failed` is an error."""
TrialStatus = Literal["planned", "running", "completed", "diverged", "pruned", "failed"]
Precision = Literal["float32", "bfloat16"]
Ladder = Literal["exponential", "linear"]
Policy = Literal["default", "smith2015"]
"""How the rates of a range test rise, and how its lower bound is taken."""
Compiling = Literal["off", "on", "gangs", "graphs"]
"""`on`: torch.compile. `gangs`: the same for gangs only. `graphs`: the steps are recorded as a CUDA graph and
replayed."""
MemoryFormat = Literal["auto", "contiguous", "channels_last"]
"""How the weights of convolutions lie in memory. `auto`: as the workload and the model have them."""
Matmul = Literal["auto", "default", "onednn"]
"""What multiplies matrices in float32 on a processor, where it is exact. `auto`: torch's default, and in gangs what is
faster."""
COMPILES_GANGS = ("on", "gangs")
AttemptStatus = Literal["running", "finished", "interrupted", "lost"]
"""`interrupted`: stopped by a signal, cost known. `lost`: killed, cost estimated from its last heartbeat."""

CHARGED_PHASES = ("setup", "warmup", "train", "evaluate", "range_test", "idle", "lost")
"""Phases on a way's bill. `idle`: the device is held while the sampler thinks and the ledger is written.
`lost`: the seconds of an attempt that was killed or interrupted and had to be repeated."""
APART_PHASES = ("data", "test_evaluation")
"""Phases shown apart, outside every ratio: decoding and copying data once per process; the final test evaluation."""
PHASES = CHARGED_PHASES + APART_PHASES
SAME_ON_BOTH_BILLS = ("idle", "lost")
"""Phases that trials of a study with gangs are charged for as they took them: see TrialResult.billed_phase_seconds."""
FINISHED_STATUSES: tuple[ResultStatus, ...] = ("completed", "diverged", "pruned", "failed")


def charged_seconds(phase_seconds: Mapping[str, float]) -> float:
    """Return the sum of the charged phases, in seconds.

    >>> charged_seconds({"train": 2.0, "idle": 0.5, "test_evaluation": 9.0})
    2.5
    """
    return sum(phase_seconds.get(phase, 0.0) for phase in CHARGED_PHASES)


def billed_seconds(phase_seconds: Mapping[str, float], billed: Mapping[str, float] | None) -> float:
    """Return the sum of all phases as billed; those that are the same on both bills are those of `phase_seconds`."""
    if billed is None:
        return sum(phase_seconds.values())
    return sum(billed.values()) + sum(phase_seconds.get(phase, 0.0) for phase in SAME_ON_BOTH_BILLS)


def billed_device_seconds(phase_seconds: Mapping[str, float], billed: Mapping[str, float] | None) -> float:
    """Return the sum of the charged phases as billed."""
    apart = phase_seconds if billed is None else billed
    return billed_seconds(phase_seconds, billed) - sum(apart.get(phase, 0.0) for phase in APART_PHASES)


def added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of seconds by phase.

    >>> added({"train": 2.0, "setup": 0.5}, {"train": 1.0, "evaluate": 0.25})
    {'train': 3.0, 'setup': 0.5, 'evaluate': 0.25}
    """
    return {phase: one.get(phase, 0.0) + other.get(phase, 0.0) for phase in dict.fromkeys((*one, *other))}


def as_billed(taken: Mapping[str, float]) -> dict[str, float]:
    """Return of the seconds that were taken those that are billed beside what is charged for them."""
    return {phase: seconds for phase, seconds in taken.items() if phase not in SAME_ON_BOTH_BILLS}


@dataclass(frozen=True)
class Bills:
    """What an attempt, or the part of it that a checkpoint keeps, cost, by phase."""

    charged: Mapping[str, float]
    billed: Mapping[str, float] | None = None
    """See TrialResult.billed_phase_seconds."""

    def with_lost(self, taken: float) -> Bills:
        """Return the bills of an attempt that took so many seconds, all phases, of which only these are kept."""
        lost = max(0.0, taken - billed_seconds(self.charged, self.billed))
        return replace(self, charged={**self.charged, "lost": lost})


@dataclass(frozen=True)
class Choice:
    """A registry name with the settings that a study file gives it."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RangeTestPlan:
    """What a range test is to do: rates from `low` to `high` over max(`min_steps`, the steps of `epochs`) steps."""

    low: float
    high: float
    ladder: Ladder = "exponential"
    epochs: float = 2.0
    min_steps: int = 100
    policy: Policy = "default"
    repeat: int = 0
    """Each repeat has weights and a data order of its own; the validation split stays that of the trial's seed."""


@dataclass(frozen=True)
class Proposal:
    """What a strategy wants tried next.

    For the stage `train`: `schedule` is the template, `learning_rate` the rate that was found: the one that constant
    schedules hold and decaying ones start from. `base_lr` and `max_lr` are the bounds of cyclical ones. For the stage
    `range_test`: only `range_test` is set.
    """

    stage: Stage
    schedule: Choice | None = None
    learning_rate: float | None = None
    base_lr: float | None = None
    max_lr: float | None = None
    range_test: RangeTestPlan | None = None
    model_guided: bool | None = None
    """For sampler-driven searches: whether a fitted model made this proposal (False: a random start-up draw)."""
    optimizer: Choice | None = None
    """Instead of the study's."""
    batch_size: int | None = None
    """Instead of the workload's."""
    epochs: float | None = None
    """Instead of the study's."""
    confirmation_seed: int | None = None
    """Set on a run that confirms what a search chose: it trains with this seed and is no part of the search."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters whose rate and weight decay are multiples of the trial's."""

    pattern: str
    """A glob over the names of `named_parameters()`, such as `*.bias`. It covers the whole name, case included."""
    rate_multiplier: float = 1.0
    """0 freezes the parameters."""
    weight_decay_multiplier: float = 1.0


@dataclass(frozen=True)
class TrainingPlan:
    """How each trial of a study trains; the same for every way."""

    epochs: float
    optimizer: Choice
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """`auto`: bfloat16 where the device computes in it."""
    compile: Compiling = "off"
    """What is to make the model's training steps faster."""
    memory_format: MemoryFormat = "auto"
    matmul: Matmul = "auto"
    """What multiplies matrices in float32 on a processor; `auto`: what torch takes by default."""
    gradient_clip_norm: float | None = None
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""
    groups: tuple[ParameterGroup, ...] = ()
    """The first whose pattern matches a parameter has it; a parameter that none matches has the multipliers 1."""


@dataclass(frozen=True)
class CheckpointPlan:
    """Where and how often a training run keeps its state, and which attempt at the trial it is."""

    folder: str
    every_seconds: float
    """A shorter run writes none."""
    attempt: int = 1
    charged_seconds: tuple[float, ...] = ()
    """Charged device seconds of each attempt before this one."""


@dataclass(frozen=True)
class SoloCost:
    """What a trial that trains alone takes on its device, measured: the bill of all where some train together."""

    setup_seconds: float
    step_seconds: float
    validation_seconds: float
    range_test_seconds: float
    """Of one evaluation of the `range_test` split."""
    warmup_seconds: float = 0.0
    """What the first steps take longer, where they are to be recorded."""
    blocks: tuple[float, ...] = ()
    """Seconds of a step in each block of steps that was timed, of which `step_seconds` is the median."""

    def phases(self, stage: Stage, steps: int, evaluations: int, taken: Mapping[str, float]) -> dict[str, float]:
        """Return the seconds that so many steps and evaluations take a trial alone, by phase.

        Data, the test evaluation and idle seconds stay as they were `taken`.
        """
        stepping = steps * self.step_seconds
        if stage == "range_test":
            work = {"range_test": stepping + evaluations * self.range_test_seconds}
        else:
            work = {"train": stepping, "evaluate": evaluations * self.validation_seconds}
        return {
            "data": taken.get("data", 0.0),
            "setup": self.setup_seconds,
            **({"warmup": self.warmup_seconds} if self.warmup_seconds else {}),
            **work,
            "test_evaluation": taken.get("test_evaluation", 0.0),
            "idle": taken.get("idle", 0.0),
        }


@dataclass(frozen=True)
class CompiledGang:
    """A gang whose step is compiled."""

    size: int
    """For so many members; of fewer, copies of the last one fill the other places."""
    fewest: int
    """Fewer are quicker without."""

    def copies(self, members: int) -> int:
        """Return how many copies of the last member train beside so many, and 0 where they train uncompiled.

        >>> [CompiledGang(8, 5).copies(members) for members in (9, 8, 5, 4)]
        [0, 0, 3, 0]
        """
        return self.size - members if self.fits(members) else 0

    def fits(self, members: int) -> bool:
        return self.fewest <= members <= self.size


@dataclass(frozen=True)
class GangChoice:
    """How many trials of a kind to train together, and what one of them takes alone."""

    size: int
    """Of trials that see the same data."""
    solo: SoloCost | None = None
    """None where no trials train together, unless it was asked for."""
    measured: tuple[tuple[int, float], ...] = ()
    """(members, seconds of one step of the gang per member)."""
    reason: str = ""
    """Why trials of this kind train alone; empty when they do not."""
    across: int = 1
    """How many trials may train together that see different data, as those of other seeds and repeats do."""
    enough: int = 1
    """So many that see the same data are quicker without others."""
    compiled: CompiledGang | None = None
    reason_compiled: str = ""
    """Why it is not, where that was tried."""
    smallest: int = 2
    """Fewer that see the same data are quicker one by one,"""
    smallest_across: int = 2
    """and fewer that see different data,"""
    most_evaluations: float = math.inf
    """as are range tests that see different data where they make more evaluations than so many for each step."""
    reason_across: str = ""
    """Why those that see different data train apart, where that was tried."""
    onednn: int = 0
    """So many together, or more, multiply faster by oneDNN (see products.py); 0 where none do."""


OF_EACH_MEMBER = ("momentum", "weight_decay")
"""Settings of the optimizer that may differ between trials that train together."""


def likeness(workload: Choice, training: TrainingPlan) -> str:
    """Return a text that is equal for trials that may train together, as far as their settings go.

    What came later than stored texts is left out where it is as before.
    """
    settings = {name: value for name, value in training.optimizer.settings.items() if name not in OF_EACH_MEMBER}
    others = {**asdict(training), "optimizer": [training.optimizer.name, settings], "epochs": None}
    for name in ("memory_format", "matmul"):
        if others[name] == "auto":
            del others[name]
    return json.dumps([workload.name, dict(workload.settings), others], sort_keys=True, default=str)


@dataclass(frozen=True)
class TrialSpec:
    """All that a worker needs to run one trial, wherever it is."""

    uuid: str
    study: str
    strategy: str
    seed: int
    """The replicate's seed: validation split, initial weights and data order come from it, the same for every trial of
    the replicate, so that trials differ in their rates alone."""
    number: int
    proposal: Proposal
    workload: Choice
    training: TrainingPlan
    checkpoint: CheckpointPlan | None = None
    """None: no state is kept, and a run that is cut short begins anew."""
    solo: SoloCost | None = None
    """By which it is charged, and not by what it takes: in a study in which trials train together."""
    compiled: CompiledGang | None = None
    """Of such trials: how they are compiled, if they are,"""
    onednn: int = 0
    """and how many multiply by oneDNN."""


@dataclass(frozen=True)
class WorkloadFacts:
    """What a loaded workload is, as far as anyone outside needs to know."""

    metric: str
    higher_is_better: bool
    chance: float | None
    """The metric of a model that ignores its input (accuracy: the largest class share of the training set), or None."""
    train_count: int
    validation_count: int
    test_count: int
    range_test_count: int
    """Size of the fixed stratified validation subset on which a range test evaluates (at most 2000)."""
    steps_per_epoch: int
    batch_size: int
    parameter_count: int
    input_shape: tuple[int, ...]
    class_count: int | None
    description: str
    """One line for the report, such as "CIFAR-10 (JPEG), 50000 images 32x32x3, model lenet"."""

    @classmethod
    def of_metric(
        cls, metric: str, *, higher_is_better: bool = True, chance: float | None = None, range_test_count: int = 0
    ) -> WorkloadFacts:
        """Return what is known where only the metric is: the workload itself was never loaded here."""
        return cls(
            metric=metric,
            higher_is_better=higher_is_better,
            chance=chance,
            train_count=0,
            validation_count=0,
            test_count=0,
            range_test_count=range_test_count,
            steps_per_epoch=0,
            batch_size=0,
            parameter_count=0,
            input_shape=(),
            class_count=None,
            description="",
        )


@dataclass(frozen=True)
class CurvePoint:
    """The state of a training run after `step` optimiser steps: the one message that comes back while a trial runs.

    A non-finite loss is None. `charged_device_seconds` is cumulative within the attempt; negative at points that an
    earlier attempt reached, from whose checkpoint this one went on: so many seconds before this one began.
    """

    step: int
    epoch: float
    learning_rate: float
    """The rate of the last step taken."""
    train_loss: float | None
    """Mean over the steps since the point before."""
    validation_loss: float | None
    validation_metric: float | None
    charged_device_seconds: float
    cycle_end: bool = False


@dataclass(frozen=True)
class RangeTestPoint:
    """One rung of a range test. The values belong to the model *after* the step at `learning_rate`.

    `train_loss` is the loss of the following batch before its own step; it is None where non-finite or not measured
    (the last rung). Validation values are None on rungs without an evaluation.
    """

    step: int
    learning_rate: float
    train_loss: float | None
    validation_loss: float | None = None
    validation_metric: float | None = None


@dataclass(frozen=True)
class DeviceInfo:
    """The device that an attempt held."""

    kind: str
    """`cpu`, `cuda` or `mps`. Seconds of different kinds are never added, divided or averaged together."""
    name: str
    count: int = 1
    threads: int = 1
    """Threads that torch used for one operation; 0 where nobody noted it."""


@dataclass(frozen=True)
class TrialResult:
    """What running one trial gave. Values are those of the end of the run; the end was fixed beforehand."""

    uuid: str
    status: ResultStatus
    device: DeviceInfo
    train_steps: int
    phase_seconds: Mapping[str, float]
    """Wall seconds x devices held by phase; keys from PHASES. With `spec.solo`: what it takes alone by that."""
    core_seconds: float
    """Processor time (user + system, children included) of the same span: beside the wall seconds, never mixed."""
    validation_loss: float | None = None
    validation_metric: float | None = None
    test_loss: float | None = None
    test_metric: float | None = None
    curve: tuple[CurvePoint, ...] = ()
    range_test: tuple[RangeTestPoint, ...] = ()
    diverged_step: int | None = None
    gang_size: int = 1
    """How many trials began together with this one."""
    billed_phase_seconds: Mapping[str, float] | None = None
    """What it really took, of a gang its share, without SAME_ON_BOTH_BILLS; None where `phase_seconds` are that."""
    peak_device_memory_bytes: int | None = None
    energy_joules: float | None = None
    error: str | None = None
    """One line."""
    traceback: str | None = None
    facts: WorkloadFacts | None = None
    """None when the workload could not be loaded."""

    @property
    def billed_seconds(self) -> float:
        """Seconds that it really took on its device, of all phases."""
        return billed_seconds(self.phase_seconds, self.billed_phase_seconds)


@dataclass(frozen=True)
class Trial:
    """A trial as a strategy sees it. It carries no test value: none can be used to choose."""

    number: int
    proposal: Proposal
    status: TrialStatus
    validation_loss: float | None = None
    validation_metric: float | None = None
    curve: tuple[CurvePoint, ...] = ()
    range_test: tuple[RangeTestPoint, ...] = ()


@dataclass(frozen=True)
class History:
    """All that a strategy's next proposal may depend on, beside its own frozen settings: its search's trials."""

    study: str
    strategy: str
    seed: int
    low: float
    high: float
    """The range of rates that every search of the study is given."""
    optimizer: Choice
    """The way's own, or the study's."""
    epochs: float
    """The same."""
    facts: WorkloadFacts | None
    """None only where there is no trial, and it is to be known what proposals import."""
    trials: tuple[Trial, ...] = ()
    """In the order of `number`."""
    shared_tests: tuple[Trial, ...] = ()
    """For a way that tests once per study: the range tests of the seed that tests, in the searches of the others."""

    @property
    def finished(self) -> tuple[Trial, ...]:
        """The trials that have ended, whatever their status."""
        return tuple(trial for trial in self.trials if trial.status in FINISHED_STATUSES)

    @property
    def running(self) -> tuple[Trial, ...]:
        """The trials that are planned or running."""
        return tuple(trial for trial in self.trials if trial.status not in FINISHED_STATUSES)


@dataclass(frozen=True)
class AttemptRecord:
    """One try at running a trial, as the ledger stores it."""

    number: int
    status: AttemptStatus
    owner: str
    started_at: datetime
    finished_at: datetime | None
    phase_seconds: Mapping[str, float]
    core_seconds: float | None
    estimated: bool
    """True when the seconds were read off the last heartbeat, not off the clock at the end."""
    device: DeviceInfo | None
    gang_size: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    billed_phase_seconds: Mapping[str, float] | None = None
    """See TrialResult."""

    @property
    def charged_device_seconds(self) -> float:
        return charged_seconds(self.phase_seconds)

    @property
    def billed_seconds(self) -> float:
        """Seconds that it really took on its device, of all phases."""
        return billed_seconds(self.phase_seconds, self.billed_phase_seconds)

    @property
    def billed_device_seconds(self) -> float:
        """The same of the charged phases alone."""
        return billed_device_seconds(self.phase_seconds, self.billed_phase_seconds)


@dataclass(frozen=True)
class TrialRecord:
    """A trial with everything that the ledger knows of it, test value included: for reports, never for strategies."""

    uuid: str
    strategy: str
    seed: int
    number: int
    status: TrialStatus
    proposal: Proposal
    attempts: tuple[AttemptRecord, ...] = ()
    result: TrialResult | None = None
    """None until it has ended. Its `phase_seconds` are those of the last attempt only: use `phase_seconds` below."""
    verdict: Mapping[str, Any] | None = None
    """What a range test was found to say, as it was acted on: the fields of range_test.RangeTestVerdict."""

    @property
    def stage(self) -> Stage:
        return self.proposal.stage

    @property
    def is_confirmation(self) -> bool:
        return self.proposal.confirmation_seed is not None

    @cached_property
    def phase_seconds(self) -> Mapping[str, float]:
        """Seconds by phase over all attempts."""
        return {phase: sum(attempt.phase_seconds.get(phase, 0.0) for attempt in self.attempts) for phase in PHASES}

    @cached_property
    def charged_device_seconds(self) -> float:
        return charged_seconds(self.phase_seconds)

    @property
    def billed_device_seconds(self) -> float:
        """Charged seconds that all attempts really took: less than `charged_device_seconds` for a member of a gang."""
        return sum(attempt.billed_device_seconds for attempt in self.attempts)

    @property
    def gang_size(self) -> int:
        """How many trials began together with it, the last time."""
        return self.attempts[-1].gang_size if self.attempts else 1


@dataclass(frozen=True)
class Event:
    """Something worth knowing later: a resume, a lost attempt, an extension, the seconds that a run held its device."""

    at: datetime
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyRecord:
    """One version of a study with all its trials, as reports, exports and analyses read it."""

    name: str
    version: int
    created_at: datetime
    config: Mapping[str, Any]
    """The resolved study file as plain values: see config.StudyConfig.resolved()."""
    facts: WorkloadFacts | None
    finished: bool
    trials: tuple[TrialRecord, ...] = ()
    """Ordered by seed, strategy as in the file, number."""
    confirmations: tuple[TrialRecord, ...] = ()
    """What searches chose, trained again with fresh seeds: on nobody's bill, in no search."""
    events: tuple[Event, ...] = ()

    @property
    def strategies(self) -> tuple[str, ...]:
        """The keys of the strategies in the order of the file."""
        return tuple(self.config["strategies"])

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.config["seeds"])

    def search(self, strategy: str, seed: int) -> tuple[TrialRecord, ...]:
        """The trials of one search in order of their number."""
        return tuple(t for t in self.trials if t.strategy == strategy and t.seed == seed)


@dataclass(frozen=True)
class Reading:
    """What a training step takes whose batch is read example by example, in Python."""

    step_seconds: float
    batch_seconds: float
    """Of these, so many are for the batch."""


@dataclass(frozen=True)
class Preparation:
    """What getting ready took: one-off, on no way's bill."""

    facts: WorkloadFacts
    device: DeviceInfo
    precision: Precision
    """What the study's `precision` comes to on the device."""
    compile: Compiling
    """What makes the training steps faster; of a study that leaves it open, what timing found."""
    memory_format: MemoryFormat
    """`auto` also where timing found that the weights may as well lie as they do."""
    seconds: float
    gangs: Mapping[str, GangChoice] = field(default_factory=dict)
    """By `trial.likeness`: how many trials of a kind train together."""
    validation_seconds: float = 0.0
    """What the first evaluation of the validation split took, in that precision; 0 without one."""
    reading: Reading | None = None
    """None where batches come from tensors, or nothing was timed."""
    matmul: Matmul = "auto"
    """`auto` also where timing found nothing faster than torch's default."""
    data_sample: Sequence[float] = ()
    """By which processes see whether they have the same data; none where these come from files alone."""


def has_same_data(one: Preparation, other: Preparation) -> bool:
    """Whether the data of two processes are the same, up to rounding."""
    alike = partial(math.isclose, rel_tol=1e-3, abs_tol=1e-5)
    return len(one.data_sample) == len(other.data_sample) and all(map(alike, one.data_sample, other.data_sample))


def pooled(found: Sequence[Preparation]) -> Preparation:
    """Return the first preparation with what all on the same device found out about a trial alone."""
    first = found[0]
    alike = [one.gangs for one in found if one.device == first.device]
    gangs = {}
    for kind, choice in first.gangs.items():
        costs = [solo for own in alike if kind in own and (solo := own[kind].solo) is not None]
        gangs[kind] = choice if choice.solo is None else replace(choice, solo=_pooled(costs))
    return replace(first, gangs=gangs)


def _pooled(costs: Sequence[SoloCost]) -> SoloCost:
    """Return the medians: of a step over all blocks, of all else over the processes that timed it."""
    return SoloCost(
        statistics.median(cost.setup_seconds for cost in costs),
        statistics.median(block for cost in costs for block in cost.blocks),
        statistics.median(cost.validation_seconds for cost in costs),
        statistics.median(cost.range_test_seconds for cost in costs),
        statistics.median(cost.warmup_seconds for cost in costs),
    )


def range_test_steps(test: RangeTestPlan, steps_per_epoch: int) -> int:
    """Return how many steps a range test takes that reaches its highest rate."""
    return max(test.min_steps, math.ceil(test.epochs * steps_per_epoch))


def planned_steps(training: TrainingPlan, facts: WorkloadFacts) -> int:
    """Return the steps that a run may take; a schedule may end it earlier, with a whole cycle."""
    return max(1, round(training.epochs * facts.steps_per_epoch))
