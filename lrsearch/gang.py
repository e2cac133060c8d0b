"""Trials that differ in rates and seeds, trained together as one stacked model: what each gave, and both its bills.

Every member sees the same batches in the same order and draws the same chance as it would alone. A member that has
ended, was pruned or has diverged leaves, and the others go on without it.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from lrsearch.checkpoint import newest
from lrsearch.contents import Contents
from lrsearch.errors import DeviceFaultError, StorageError
from lrsearch.interfaces import Channel, LoadedWorkload, Told, Watched
from lrsearch.schedules.plan import PlannedSchedule
from lrsearch.stacked_optimizers import STACKABLE
from lrsearch.stacked_run import (
    CannotGangError,
    OutOfDeviceMemoryError,
    StackedRun,
    UnevenError,
    cannot_gang,
    what_stops,
)
from lrsearch.timing import DeviceStopwatch, synchronizer
from lrsearch.training import (
    Climb,
    EnergyMeter,
    Outcome,
    device_info,
    first_non_finite,
    forget_peak_memory,
    load,
    new_run,
    peak_memory,
    pick_device,
    plan_of,
    range_test_rates,
    repeat_seed,
    run_trial,
    segment_ends,
    write_checkpoint,
)
from lrsearch.trial import (
    Bills,
    CurvePoint,
    RangeTestPlan,
    TrainingPlan,
    TrialResult,
    TrialSpec,
    added,
    as_billed,
    likeness,
)


def why_alone(training: TrainingPlan) -> str:
    """Return why no two trials of this training can train together; nothing where they can."""
    optimizer = training.optimizer
    if optimizer.name not in STACKABLE or optimizer.settings.get("amsgrad"):
        return f"the optimizer {optimizer.name!r} is not written for several models at once"
    return ""


def check_alike(specs: Sequence[TrialSpec]) -> None:
    """Raise CannotGangError unless the trials differ in seeds, rates, schedules, momentum and weight decay alone.

    Range tests differ in seeds and repeats alone, beside momentum and weight decay.
    """
    first = specs[0]
    optimizer = first.training.optimizer
    if reason := why_alone(first.training):
        raise CannotGangError(reason)
    for spec in specs:
        if _test_of(spec) != _test_of(first):
            raise CannotGangError("a range test trains with others of the same rates and length only")
        if spec.solo is None:
            raise CannotGangError("what a trial costs alone was not measured")
        if likeness(spec.workload, spec.training) != likeness(first.workload, first.training):
            raise CannotGangError("they differ in more than seed, rate, schedule, momentum and weight decay")
        if optimizer.settings.get("dampening") and not spec.training.optimizer.settings.get("momentum"):
            raise CannotGangError("dampening without momentum has no effect alone, but would have one together")


def _test_of(spec: TrialSpec) -> RangeTestPlan | None:
    """Return what range tests that train together share; None for a training run."""
    plan = spec.proposal.range_test
    return None if plan is None else replace(plan, repeat=0)


@dataclass(kw_only=True, eq=False)
class _Member:
    """One trial of the gang."""

    spec: TrialSpec
    outcome: Outcome
    billed: dict[str, float] = field(default_factory=dict)
    core_seconds: float = 0.0
    evaluations: int = 0
    ended: bool = False
    """Whether it has left the gang with all its values."""

    def solo_seconds(self) -> dict[str, float]:
        """Return what the trial would have taken alone up to now, by phase."""
        solo = self.spec.solo
        assert solo is not None, "see check_alike"
        return solo.phases(self.spec.proposal.stage, self.outcome.train_steps, self.evaluations, self.billed)


@dataclass(kw_only=True, eq=False)
class _Trained(_Member):
    """A training run."""

    planned: PlannedSchedule
    ends: list[int]
    """The numbers of steps after which it is evaluated."""
    losses: list[float] = field(default_factory=list)
    """Since its last point."""

    @classmethod
    def of(cls, spec: TrialSpec, loaded: LoadedWorkload) -> _Trained:
        planned = plan_of(spec, loaded.facts)
        assert planned is not None, "see check_alike"
        ends = segment_ends(planned, loaded.facts.steps_per_epoch)
        return cls(spec=spec, outcome=Outcome(facts=loaded.facts), planned=planned, ends=ends)


@dataclass(kw_only=True, eq=False)
class _Climber(_Member):
    """A range test."""

    climb: Climb = field(init=False)

    def __post_init__(self) -> None:
        plan, facts = self.spec.proposal.range_test, self.outcome.facts
        assert plan is not None, "see check_alike"
        assert facts is not None, "a member has a workload"
        rates = range_test_rates(plan, facts.steps_per_epoch)
        self.climb = Climb(rates, lambda: self._losses, lambda: self._found)

    def look(self, losses: list[float], found: tuple[float | None, float | None]) -> None:
        """Take the losses since the last look, and what its evaluation gave."""
        self._losses, self._found = losses, found
        self.evaluations += 1

    def end(self) -> None:
        self.outcome.range_test = self.climb.points()
        self.outcome.train_steps = len(self.outcome.range_test)
        self.outcome.status = "completed"
        self.ended = True


class _Bill:
    """Divides what the stopwatch counts among the members that are there at the time."""

    def __init__(self, watch: DeviceStopwatch) -> None:
        self._watch = watch
        self._told: dict[str, float] = {}
        self._core_told = 0.0

    def share(self, members: Sequence[_Member]) -> None:
        """Charge these members for all since the last call."""
        self._watch.lap()
        now, core = dict(self._watch.phase_seconds), self._watch.core_seconds
        for member in members:
            for phase, seconds in now.items():
                spent = (seconds - self._told.get(phase, 0.0)) / len(members)
                member.billed[phase] = member.billed.get(phase, 0.0) + spent
            member.core_seconds += (core - self._core_told) / len(members)
        self._told, self._core_told = now, core


def run_together(specs: Sequence[TrialSpec], channel: Channel) -> list[TrialResult]:
    """Run the trials as one gang; as two where the device has not the memory for one; else one after another.

    A trial that goes on from a checkpoint does so alone.
    """
    resumed = {spec.uuid for spec in specs if spec.checkpoint and newest(Path(spec.checkpoint.folder), spec.uuid)}
    together = [spec for spec in specs if spec.uuid not in resumed]
    results = {spec.uuid: run_trial(spec, channel) for spec in specs if spec.uuid in resumed}
    results |= {result.uuid: result for result in _in_gangs(together, channel)}
    return [results[spec.uuid] for spec in specs]


def _in_gangs(specs: Sequence[TrialSpec], channel: Channel) -> list[TrialResult]:
    if len(specs) <= 1:
        return [run_trial(spec, channel) for spec in specs]
    try:
        return run_gang(specs, channel)
    except CannotGangError as error:
        so_far, parts = error.so_far, _parts(specs, error)
    if len(parts) == 1:
        parts = [[spec] for spec in specs]
    gc.collect()  # out here, where no error holds on to the gang: the parts need its memory
    results = [result for part in parts for result in _in_gangs(part, channel)]
    return [_with_what_was_lost(one, so_far[one.uuid]) if one.uuid in so_far else one for one in results]


def _parts(specs: Sequence[TrialSpec], error: CannotGangError) -> list[Sequence[TrialSpec]]:
    """Return the trials as they may train together, where all of them cannot."""
    if isinstance(error, OutOfDeviceMemoryError):
        half = len(specs) // 2
        return [specs[:half], specs[half:]]
    return list((_by_ends(specs, error.ends) if isinstance(error, UnevenError) else _by_crowd(specs)).values())


def run_gang(specs: Sequence[TrialSpec], channel: Channel) -> list[TrialResult]:
    """Train the trials together and return their results in order.

    What goes wrong later sends those that are still there to train alone, from their checkpoint or from the start.
    Raises CannotGangError before anything was reported when that cannot be; StorageError as `run_trials` does.
    """
    check_alike(specs)
    crowds = _by_crowd(specs)
    device = pick_device(specs[0].training.device)
    meter, watch = EnergyMeter(device), DeviceStopwatch(synchronizer(device))
    bill = _Bill(watch)
    watch.start("data")
    loaded = {(seed, repeat): load(specs[0].workload, device, seed) for seed, repeat in crowds}
    forget_peak_memory(device)
    watch.switch("setup")
    placed = [(spec, loaded[crowd]) for crowd, own in crowds.items() for spec in own]
    members: Sequence[_Member]
    told = _Reported(channel)
    if specs[0].proposal.range_test is None:
        trained = [_Trained.of(spec, own) for spec, own in placed]
        members, work = trained, partial(_train, trained, told=told)
    else:
        climbers = [_Climber(spec=spec, outcome=Outcome(facts=own.facts)) for spec, own in placed]
        members, work = climbers, partial(_climb, climbers)
    broken, refused, kept, run = "", None, None, None
    try:
        runs = {crowd: new_run(loaded[crowd], specs[0].training, device, repeat_seed(*crowd)) for crowd in crowds}
        kept = Contents(next(iter(runs.values())).model, *(own.loss for own in loaded.values()), copies=True)
        run = StackedRun(
            [runs[crowd] for crowd, own in crowds.items() for _ in own],
            [member.spec.training.optimizer.settings for member in members],
            specs[0].compiled,
            specs[0].onednn,
        )
        del runs  # the models are copied, and only the first is used
        if isinstance(channel, Watched):
            run.progressed = channel.progressed
        work(run, watch, bill)
    except (StorageError, DeviceFaultError):
        raise
    except (Exception, SystemExit) as error:
        watch.lap()  # raises DeviceFaultError where the device is of no more use
        if kept is not None:  # what is left of a gang is of no use to a trial alone
            kept.restore()
        if not told.anything:
            refused = cannot_gang(error)
        broken = what_stops(error)
    run = None  # those that are left to train alone need its memory
    left = [member for member in members if not member.ended]
    bill.share(left or members[:1])
    watch.stop()
    joules, billed = meter.joules(), sum(sum(member.billed.values()) for member in members)
    memory = peak_memory(device)
    results = [
        TrialResult(
            uuid=member.spec.uuid,
            device=device_info(device),
            phase_seconds=member.solo_seconds(),
            core_seconds=member.core_seconds,
            gang_size=len(specs),
            billed_phase_seconds=as_billed(member.billed),
            peak_device_memory_bytes=memory,
            energy_joules=None if joules is None else joules * sum(member.billed.values()) / billed,
            **member.outcome.as_result(),
        )
        for member in members
    ]
    if refused is not None:
        refused.so_far = {one.uuid: one for one in results}
        raise refused
    ended = {
        member.spec.uuid: result if member.ended else _alone(member, result, channel, broken)
        for member, result in zip(members, results, strict=True)
    }
    return [ended[spec.uuid] for spec in specs]


def _by_crowd(specs: Sequence[TrialSpec]) -> dict[tuple[int, int], list[TrialSpec]]:
    """Return the trials that see the same data, by seed and repeat."""
    crowds: dict[tuple[int, int], list[TrialSpec]] = {}
    for spec in specs:
        test = spec.proposal.range_test
        crowds.setdefault((spec.seed, test.repeat if test else 0), []).append(spec)
    return crowds


def _by_ends(specs: Sequence[TrialSpec], ends: Mapping[str, tuple[int, ...]]) -> dict[tuple[int, ...], list[TrialSpec]]:
    """Return the trials that are evaluated after the same steps."""
    groups: dict[tuple[int, ...], list[TrialSpec]] = {}
    for spec in specs:
        groups.setdefault(ends[spec.uuid], []).append(spec)
    return groups


def _alone(member: _Member, so_far: TrialResult, channel: Channel, reason: str) -> TrialResult:
    """Train a member alone whose gang broke down; what the gang took of it is billed beside what it takes alone."""
    if isinstance(channel, Told):
        channel.message(member.spec.uuid, f"what trained together broke down ({reason}); it trains alone now")
    return _with_what_was_lost(run_trial(member.spec, _Rest(channel, member.outcome)), so_far)


def _with_what_was_lost(result: TrialResult, so_far: TrialResult) -> TrialResult:
    """Have what a gang took of the trial before it broke down billed beside what it took afterwards."""
    own = result.billed_phase_seconds or as_billed(result.phase_seconds)
    joules = [one.energy_joules for one in (so_far, result) if one.energy_joules is not None]
    return replace(
        result,
        core_seconds=result.core_seconds + so_far.core_seconds,
        billed_phase_seconds=added(so_far.billed_phase_seconds or {}, own),
        energy_joules=sum(joules) if joules else None,
    )


class _Rest:
    """A channel over which the points of an outcome have gone already; it answers as at the last of them."""

    def __init__(self, channel: Channel, told: Outcome) -> None:
        self._channel, self._step = channel, told.curve[-1].step if told.curve else 0
        self._stops = told.status == "pruned"

    def report(self, uuid: str, point: CurvePoint) -> bool:
        if point.step <= self._step:
            return point.step < self._step or not self._stops
        return self._channel.report(uuid, point)

    def progressed(self) -> None:
        if isinstance(self._channel, Watched):
            self._channel.progressed()

    def message(self, uuid: str, text: str) -> None:
        if isinstance(self._channel, Told):
            self._channel.message(uuid, text)


class _Reported:
    """The channel, and whether anything has gone over it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.anything = False

    def report(self, uuid: str, point: CurvePoint) -> bool:
        self.anything = True
        return self._channel.report(uuid, point)


def _train(members: Sequence[_Trained], run: StackedRun, watch: DeviceStopwatch, bill: _Bill, told: _Reported) -> None:
    """Train until the last member has ended. Raises UnevenError where they cannot all be evaluated at once."""
    live = list(members)
    keeper = _Keeper([member.spec for member in members], watch, bill)
    if keeper.writes:
        run.keep_place()
    step, ends = 0, sorted({end for member in members for end in member.ends})
    even = all(member.ends == [end for end in ends if end <= member.ends[-1]] for member in members)
    if not even and _kind(members) in UNEVEN:
        raise _uneven(members)
    for end in ends:
        if not live:
            return
        watch.switch("warmup" if run.is_warming else "train")
        _step_to(end, step, live, run, keeper, watch)
        step = end
        watch.switch("evaluate")
        for member, losses in zip(live, run.take_losses(), strict=True):
            member.losses += losses
        try:
            found = run.evaluate("validation", for_all=even)
        except UnevenError as error:
            UNEVEN.add(_kind(members))
            raise _uneven(members) from error
        watch.switch("idle")
        leaving = [
            row for row, member in enumerate(live) if end in member.ends and not _goes_on(member, end, found[row], told)
        ]
        bill.share(live)
        if leaving:
            watch.switch("test_evaluation")
            _judge_leaving([live[row] for row in leaving], leaving, run)
            for row in leaving:
                live[row].ended = True
            bill.share([live[row] for row in leaving])
            watch.switch("train")
            stay = [row for row in range(len(live)) if row not in leaving]
            live = [live[row] for row in stay]
            if live:
                run.keep(stay)


UNEVEN: set[str] = set()
"""Kinds of trials whose evaluations change what later steps go by, as this process has found."""


def _kind(members: Sequence[_Trained]) -> str:
    return likeness(members[0].spec.workload, members[0].spec.training)


def _uneven(members: Sequence[_Trained]) -> UnevenError:
    ends = {member.spec.uuid: tuple(member.ends) for member in members}
    return UnevenError("an evaluation changes what later steps go by, and they have theirs after other steps", ends)


class _Keeper:
    """Writes a checkpoint of each member every so often: each can go on alone from its own."""

    def __init__(self, specs: Sequence[TrialSpec], watch: DeviceStopwatch, bill: _Bill) -> None:
        self._watch, self._bill = watch, bill
        plans = [spec.checkpoint for spec in specs if spec.checkpoint]
        self.writes = len(plans) == len(specs)
        self._every = min((plan.every_seconds for plan in plans), default=math.inf)
        self._due = time.monotonic() + self._every

    def after_step(self, live: Sequence[_Trained], run: StackedRun, step: int) -> None:
        """Write if it is time. Raises StorageError."""
        if not self.writes or time.monotonic() < self._due:
            return
        self._watch.switch("idle")
        self._bill.share(live)
        for row, member in enumerate(live):
            assert member.spec.checkpoint is not None, "all have a plan"
            member.outcome.train_steps = step
            state = run.state(row, member.losses)
            bills = Bills(member.solo_seconds(), as_billed(member.billed))
            write_checkpoint(member.spec.uuid, member.spec.checkpoint, bills, state, member.outcome)
        self._watch.switch("train")
        self._due = time.monotonic() + self._every


def _step_to(
    end: int, step: int, live: Sequence[_Trained], run: StackedRun, keeper: _Keeper, watch: DeviceStopwatch
) -> None:
    """Take the steps up to `end`; the rates of all of them go to the device at once."""
    planned = [member.planned for member in live]
    rates = run.numbers([[one.rate(at) for one in planned] for at in range(step, end)])
    momenta: Sequence[torch.Tensor | None] = [None] * (end - step)
    schedules = [one.momentum for one in planned if one.momentum is not None]
    if schedules:
        if len(schedules) != len(planned):
            raise CannotGangError("only some of them schedule their momentum")
        table = [[schedule(at) for schedule in schedules] for at in range(step, end)]
        momenta = list(run.numbers(table))
    warming = run.is_warming
    for at in range(end - step):
        run.step(rates[at], momenta[at])
        if warming and not run.is_warming:
            watch.switch("train")
            warming = False
        keeper.after_step(live, run, step + at + 1)
    for member in live:
        member.outcome.train_steps = end


def _goes_on(member: _Trained, end: int, found: tuple[float | None, float | None], told: _Reported) -> bool:
    """Note and tell how the member does after `end` steps; return whether it is to train on."""
    outcome, losses = member.outcome, member.losses
    member.losses = []
    member.evaluations += 1
    outcome.diverged_step = first_non_finite(losses, end)
    go_on = told.report(member.spec.uuid, outcome.note(member.planned, end, losses, found, member.solo_seconds()))
    if outcome.diverged_step is not None:
        outcome.status = "diverged"
        return False
    outcome.status = "completed" if go_on or end == member.planned.train_steps else "pruned"
    return go_on and end < member.planned.train_steps


def _judge_leaving(leaving: Sequence[_Member], rows: Sequence[int], run: StackedRun) -> None:
    """Give each that leaves alive its values on the test split."""
    if all(member.outcome.status == "diverged" for member in leaving):
        return
    with run.undone() if len(leaving) < run.live else nullcontext():
        found = run.evaluate("test")
    for member, row in zip(leaving, rows, strict=True):
        if member.outcome.status != "diverged":
            member.outcome.test_loss, member.outcome.test_metric = found[row]


def _climb(members: Sequence[_Climber], run: StackedRun, watch: DeviceStopwatch, bill: _Bill) -> None:
    """Raise the rate of all range tests rung by rung; one whose loss ran away leaves.

    Nothing is told of a range test before its end, and no state of it is kept.
    """
    live, rates = list(members), members[0].climb.rates
    if any(member.climb.rates != rates for member in members):
        raise CannotGangError("with another seed the range test has another length")
    watch.switch("range_test")
    for rate in run.numbers(rates):
        run.step(rate.repeat(len(live)))
        if live[0].climb.is_due:
            for member, losses, found in zip(live, run.take_losses(), run.evaluate("range_test"), strict=True):
                member.look(losses, found)
        leaving = [member for member in live if not member.climb.goes_on()]
        if leaving:
            bill.share(live)
            for member in leaving:
                member.end()
            stay = [row for row, member in enumerate(live) if not member.ended]
            live = [live[row] for row in stay]
            if not live:
                return
            run.keep(stay)
