"""The study loop: interleave the searches, propose, run, record. The same call continues what was cut short."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import TYPE_CHECKING, Any

from lrsearch.analysis.confirm import confirmations_wanted
from lrsearch.config import StudyConfig, diff, from_resolved, is_extension
from lrsearch.errors import StudyChangedError, StudyFailedError, UsageError
from lrsearch.interfaces import Executor, Observer, SharesTests, StopsEarly, Strategy
from lrsearch.range_test import judge
from lrsearch.schedules import plan_schedule
from lrsearch.storage.store import Begun, Store, StudyRow, this_owner
from lrsearch.surroundings import noted
from lrsearch.trial import (
    FINISHED_STATUSES,
    AttemptRecord,
    Choice,
    CurvePoint,
    History,
    Proposal,
    StudyRecord,
    TrainingPlan,
    Trial,
    TrialRecord,
    TrialResult,
    TrialSpec,
    WorkloadFacts,
)

if TYPE_CHECKING:
    from lrsearch.storage.optuna_mirror import OptunaMirror
    from lrsearch.training import Preparation

LEASE_SECONDS = 60.0
HEARTBEAT_SECONDS = 1.0
"""A killed attempt is charged up to its last heartbeat, so this bounds how much of its cost can go unseen."""
FIRST_HEARTBEAT_SECONDS = 0.2
"""So that a short trial that is killed has a cost too."""
EQUAL_FAILURES_TO_STOP = 3


class Terminated(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt for Ctrl-C, raised after the ledger is settled."""


def run_study(
    config: StudyConfig,
    store: Store,
    *,
    observer: Observer,
    extend: bool = False,
    fresh: bool = False,
    mirror_url: str | None = None,
) -> StudyRecord:
    """Run or continue the study that `config` describes and return its record when all searches are done.

    Raises StudyChangedError when the stored study of this name says something else (`extend` allows more seeds, trials
    or strategies, `fresh` starts a new version), StudyBusyError when another process runs it, StudyFailedError when its
    trials keep failing, DataError and WorkloadError before the first trial. On Ctrl-C or SIGTERM the running attempt is
    closed with its cost, and KeyboardInterrupt or Terminated goes on to the caller.
    """
    store.absence.tell = observer.message
    study = _find_study(config.name, store)
    if study is not None and not fresh:
        _check_unchanged(config, study, extend=extend)
        if study.finished and study.fingerprint == config.fingerprint():
            observer.message(f"Study {study.name!r} version {study.version} is finished; nothing to run.")
            return store.record(study.name, study.version)
    signals = _Signals()
    with signals.handled():
        observer.message("Preparing workload and device ...")
        with signals.interruptible():
            prepared = _prepare(config)
        # Nothing is stored before the workload has shown that it runs.
        if study is None or fresh:
            after = study.version if study else 0
            study = store.create_study(config.name, config.resolved(), config.fingerprint(), after=after)
        owner = this_owner()
        store.acquire(study.id, owner, LEASE_SECONDS)
        try:
            study = _as_the_file_says(config, store, observer, study, extend=extend)
            for lost in store.reconcile(study.id):
                observer.message(f"Continuing after a kill: {lost} will run again; its seconds are charged.")
            with noted(partial(store.add_event, study.id, "surroundings"), config.folder):
                _Conductor(
                    config, store, study, owner, observer, _open_mirror(mirror_url, store), signals, prepared
                ).run()
            record = store.record(study.name, study.version)
            _check_any_model(record)
            store.finish_study(study.id)
        finally:
            store.release(study.id, owner)
    record = replace(record, finished=True)
    observer.study_finished(record)
    return record


def _find_study(name: str, store: Store, version: int | None = None) -> StudyRow | None:
    """Return the stored study as this version would store it: with the defaults of keys that came after it."""
    study = store.find_study(name, version)
    if study is None:
        return None
    try:
        stored = from_resolved(study.config)
    except UsageError:  # by a newer version or with a plug-in that is gone: then it differs, and the diff says how
        return study
    return replace(study, config=stored.resolved(), fingerprint=stored.fingerprint())


def _check_any_model(record: StudyRecord) -> None:
    """Raise StudyFailedError when every training run of the study failed: then there is nothing to report."""
    trials = [trial for trial in record.trials if trial.stage == "train"]
    errors = [trial.result.error for trial in trials if trial.status == "failed" and trial.result is not None]
    if trials and len(errors) == len(trials):
        raise StudyFailedError(
            f"All {len(trials)} training runs failed, the last one so: {errors[-1]} "
            "They are stored: mend the cause, then start a new version with --fresh."
        )


def _check_unchanged(config: StudyConfig, study: StudyRow, *, extend: bool) -> None:
    """Raise StudyChangedError unless `study` is what the file says, or less than that and `extend` is allowed."""
    resolved = config.resolved()
    if study.fingerprint == config.fingerprint() or (extend and is_extension(study.config, resolved)):
        return
    way_out = (
        "--extend can add seeds, trials and strategies only; --fresh starts a new version and keeps the old one."
        if extend
        else "Undo the change, add seeds, trials or strategies with --extend, or start a new version with --fresh."
    )
    raise StudyChangedError(
        f"The study file differs from the stored study {study.name!r} version {study.version}:\n"
        f"{_changes(study, resolved)}\n{way_out}"
    )


def _changes(study: StudyRow, resolved: dict[str, Any]) -> str:
    return "\n".join(f"  {line}" for line in diff(study.config, resolved))


def _prepare(config: StudyConfig) -> Preparation:
    """Load the workload and take two throw-away steps, with every optimizer and at every end of the batch sizes.

    Raises what the user must mend before any trial can run.
    """
    from lrsearch import training

    workload, plan = config.workload_choice(), config.training_plan()
    prepared = training.prepare(workload, plan, config.seeds[0])
    for optimizer, batch_size in config.variants():
        other = training.prepare(
            with_batch_size(workload, batch_size), replace(plan, optimizer=optimizer or plan.optimizer), config.seeds[0]
        )
        prepared = replace(prepared, seconds=prepared.seconds + other.seconds)
    for key, strategy in config.strategies.items():
        _check_schedule(config, key, strategy, prepared.facts)
    metric = prepared.facts.metric
    if config.target is not None and config.target.metric != metric:
        raise UsageError(
            f"target.metric must be {metric!r}, which the workload measures, got {config.target.metric!r}."
        )
    return prepared


def _check_schedule(config: StudyConfig, key: str, strategy: Strategy, facts: WorkloadFacts) -> None:
    """Raise UsageError when a way's schedule does not fit into its run, or its optimizer has no momentum for it."""
    from lrsearch import training

    schedule = getattr(strategy, "schedule", None)
    if schedule is None:
        return
    plan = config.training_plan_of(key)
    try:
        planned = plan_schedule(
            schedule.choice(),
            learning_rate=config.rates.high,
            base_lr=None,
            max_lr=config.rates.high,
            total_steps=training.planned_steps(plan, facts),
            steps_per_epoch=facts.steps_per_epoch,
        )
    except UsageError as error:
        raise UsageError(f"strategies.{key}: {error}") from error
    if planned.momentum is not None and not {"momentum", "betas"} & plan.optimizer.settings.keys():
        raise UsageError(
            f"strategies.{key}.schedule: {plan.optimizer.name} has no momentum to schedule; remove base_momentum and "
            "max_momentum."
        )


def _as_the_file_says(
    config: StudyConfig, store: Store, observer: Observer, study: StudyRow, *, extend: bool
) -> StudyRow:
    """Return the row of the study, whose lease is held, as it is by now, or extended by what the file adds."""
    study = _find_study(study.name, store, study.version) or study
    _check_unchanged(config, study, extend=extend)  # another process may have extended it before the lease was ours
    if study.fingerprint == config.fingerprint():
        return study
    observer.message(f"Extending study {study.name!r}:\n{_changes(study, config.resolved())}")
    return store.extend_study(study.id, config.resolved(), config.fingerprint())


def _open_mirror(url: str | None, store: Store) -> OptunaMirror | None:
    if url is None:
        return None
    from lrsearch.storage.optuna_mirror import OptunaMirror

    return OptunaMirror(url, store.absence)


class _Signals:
    """Ctrl-C and SIGTERM end a trial at once, but wait while the ledger is being written; a second one never waits."""

    def __init__(self) -> None:
        self._interruptible = False
        self._pending: type[BaseException] | None = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        error = KeyboardInterrupt if signum == signal.SIGINT else Terminated
        if self._interruptible or self._pending is not None:
            raise error
        self._pending = error

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take both signals over for the block (only the main thread may)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
            self._raise_pending()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end the block at once; one that came before ends it before it begins."""
        self._raise_pending()
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def _raise_pending(self) -> None:
        if self._pending is not None:
            raise self._pending


@dataclass
class _Search:
    """One strategy with one seed, and what has come of it."""

    key: str
    seed: int
    strategy: Strategy
    trials: list[TrialRecord] = field(default_factory=list)
    shared_tests: tuple[Trial, ...] = ()

    def history(self, config: StudyConfig, facts: WorkloadFacts) -> History:
        plan = config.training_plan_of(self.key)
        return History(
            study=config.name,
            strategy=self.key,
            seed=self.seed,
            low=config.rates.low,
            high=config.rates.high,
            optimizer=plan.optimizer,
            epochs=plan.epochs,
            facts=facts,
            trials=tuple(_as_strategies_see_it(trial) for trial in self.trials),
            shared_tests=self.shared_tests,
        )


def _as_strategies_see_it(record: TrialRecord) -> Trial:
    """Strip a trial of its test value and its cost."""
    result = record.result
    if result is None:
        return Trial(record.number, record.proposal, record.status)
    return Trial(
        record.number,
        record.proposal,
        record.status,
        result.validation_loss,
        result.validation_metric,
        result.curve,
        result.range_test,
    )


def interleaved(keys: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the order of turns, round by round: A B C, then C B A, so that no way always runs first or last (ABBA)."""
    while True:
        yield tuple(keys)
        yield tuple(reversed(keys))


class _Conductor:
    """Runs the searches of one study in turns on one slot and keeps account of every second from begin to end."""

    def __init__(
        self,
        config: StudyConfig,
        store: Store,
        study: StudyRow,
        owner: str,
        observer: Observer,
        mirror: OptunaMirror | None,
        signals: _Signals,
        prepared: Preparation,
    ) -> None:
        self._config = config
        self._store = store
        self._study = study
        self._owner = owner
        self._observer = observer
        self._mirror = mirror
        self._signals = signals
        self._prepared = prepared
        self._facts = prepared.facts
        self._executor: Executor
        self._versions = _versions()
        self._boundary = 0.0
        """When the last second that belongs to a trial ended; what comes after is the next trial's."""
        self._unsettled: tuple[int, float] | None = None
        """Attempt and idle seconds that came after its result was written; they go into the next transaction."""
        self._failures: list[str] = []
        self._shared_tests: dict[str, tuple[Trial, ...]] = {}

    def run(self) -> None:
        from lrsearch.executors import EXECUTORS

        record = self._store.record(self._study.name, self._study.version)
        self._observer.study_started(record, planned_trials(self._config))
        self._store.set_facts(self._study.id, self._facts)
        self._executor = EXECUTORS["inline"]()
        if self._mirror is not None:
            self._publish(record.trials)
        began = self._boundary = time.perf_counter()
        try:
            for seed in self._config.seeds:
                searches = [self._search(record, key, seed) for key in self._config.strategies]
                self._run_replicate(searches)
                self._share_tests(searches)
            if self._config.confirmation_seeds:
                self._confirm(self._config.confirmation_seeds)
        finally:
            self._executor.close()
            self._settle()
            self._store.add_event(
                self._study.id,
                "run",
                {
                    "held_seconds": time.perf_counter() - began,
                    "prepare_seconds": self._prepared.seconds,
                    "device_kind": self._prepared.device.kind,
                    "device_name": self._prepared.device.name,
                },
            )

    def _search(self, record: StudyRecord, key: str, seed: int) -> _Search:
        strategy = self._config.strategies[key]
        return _Search(key, seed, strategy, list(record.search(key, seed)), self._shared_tests.get(key, ()))

    def _confirm(self, count: int) -> None:
        """Train again what each search chose, with `count` fresh seeds that all ways share."""
        record = self._store.record(self._study.name, self._study.version)
        wanted = confirmations_wanted(record, count)
        if wanted:
            runs = f"{len(wanted)} runs" if len(wanted) > 1 else "1 run"
            self._observer.message(f"Confirming what each search chose with {count} fresh seeds: {runs}.")
        begun_before = {(one.strategy, one.seed, one.proposal.confirmation_seed): one for one in record.confirmations}
        for strategy, seed, proposal in wanted:
            cut_short = begun_before.get((strategy, seed, proposal.confirmation_seed))
            if cut_short is not None and cut_short.proposal == proposal and cut_short.status not in FINISHED_STATUSES:
                trial, begun = cut_short, self._retry(cut_short)
            else:
                begun = self._begin(_Search(strategy, seed, self._config.strategies[strategy]), proposal)
                trial = TrialRecord(begun.uuid, strategy, seed, begun.number, "planned", proposal)
            self._run_trial(replace(trial, status="running"), begun, None)

    def _share_tests(self, searches: Sequence[_Search]) -> None:
        """Keep the range tests of the first seed's searches for those ways that test once per study."""
        for search in searches:
            if isinstance(search.strategy, SharesTests) and search.strategy.tests_once:
                tests = (_as_strategies_see_it(trial) for trial in search.trials if trial.stage == "range_test")
                self._shared_tests.setdefault(search.key, tuple(tests))

    def _run_replicate(self, searches: Sequence[_Search]) -> None:
        """Give each search of one seed a turn, round by round, until all are done."""
        open_searches = {search.key: search for search in searches}
        for turns in interleaved([search.key for search in searches]):
            if not open_searches:
                return
            for key in turns:
                if key in open_searches and not self._take_turn(open_searches[key]):
                    del open_searches[key]

    def _take_turn(self, search: _Search) -> bool:
        """Run the next trial of `search`; return False when it has none."""
        unfinished = [trial for trial in search.trials if trial.status not in FINISHED_STATUSES]
        history = search.history(self._config, self._facts)
        if unfinished:
            trial = unfinished[0]
            history = replace(history, trials=tuple(one for one in history.trials if one.number < trial.number))
            begun = self._retry(trial)
        else:
            proposals = search.strategy.propose(history, 1)
            if not proposals:
                return False
            begun = self._begin(search, proposals[0])
            trial = TrialRecord(begun.uuid, search.key, search.seed, begun.number, "running", proposals[0])
        stopper = search.strategy.stopper(history) if isinstance(search.strategy, StopsEarly) else None
        finished = self._run_trial(replace(trial, status="running"), begun, stopper)
        search.trials = sorted([t for t in search.trials if t.uuid != trial.uuid] + [finished], key=_number)
        self._stop_on_equal_failures(finished)
        return True

    def _begin(self, search: _Search, proposal: Proposal) -> Begun:
        return self._store.begin_trial(
            self._study.id,
            search.key,
            search.seed,
            proposal,
            owner=self._owner,
            versions=self._versions,
            settle=self._take_unsettled(),
        )

    def _retry(self, trial: TrialRecord) -> Begun:
        return self._store.retry_trial(
            trial.uuid, owner=self._owner, versions=self._versions, settle=self._take_unsettled()
        )

    def _run_trial(
        self, trial: TrialRecord, begun: Begun, stopper: Callable[[Sequence[CurvePoint]], bool] | None
    ) -> TrialRecord:
        """Run one attempt to its end, write its result and return the finished record."""
        from lrsearch.training import run_trials

        self._observer.trial_started(trial)
        spec = TrialSpec(
            trial.uuid,
            self._study.name,
            trial.strategy,
            trial.seed if trial.proposal.confirmation_seed is None else trial.proposal.confirmation_seed,
            trial.number,
            trial.proposal,
            with_batch_size(self._config.workload_choice(), trial.proposal.batch_size),
            training_of(trial.proposal, self._config.training_plan()),
        )
        started_at = datetime.now(UTC)
        channel = _Channel(self._store, begun, trial, stopper, self._observer, self._publish_live)
        before = time.perf_counter() - self._boundary
        try:
            with channel.beating(), self._signals.interruptible():
                [result] = self._executor.submit(run_trials, [spec], channel).result()
        except (KeyboardInterrupt, Terminated):
            spent = time.perf_counter() - self._boundary
            self._store.interrupt_attempt(begun.attempt_id, begun.token, {"lost": spent}, None)
            self._publish([replace(trial, status="planned")])
            raise
        done = time.perf_counter()
        # What no phase explains of the span since the last trial went into thinking and writing: the device was idle.
        result = _with_idle(result, before, (done - self._boundary) - sum(result.phase_seconds.values()))
        verdict = self._verdict(trial, result)
        self._store.finish_attempt(begun.attempt_id, begun.token, result, verdict)
        finished = replace(_finished(trial, begun, result, self._owner, started_at), verdict=verdict)
        self._observer.trial_finished(finished)
        if finished.stage == "train" and result.status == "completed" and result.validation_metric is None:
            self._observer.message(
                f"{trial.strategy}, seed {trial.seed}: {self._facts.metric} was not a finite number."
            )
        self._publish([finished])
        self._boundary = time.perf_counter()
        self._unsettled = (begun.attempt_id, self._boundary - done)
        return finished

    def _verdict(self, trial: TrialRecord, result: TrialResult) -> dict[str, Any] | None:
        """Return what a range test says, to be stored with it; intervals change no bound and are left to readers."""
        plan = trial.proposal.range_test
        if plan is None or not result.range_test:
            return None
        optimizer = training_of(trial.proposal, self._config.training_plan()).optimizer
        verdict = judge(result.range_test, self._facts, plan, optimizer.name, bootstrap=0)
        found = verdict.advice if verdict.max_lr is None else f"{verdict.base_lr:.4g} to {verdict.max_lr:.4g}"
        flags = f" ({', '.join(verdict.flags)})" if verdict.flags else ""
        self._observer.message(f"{trial.strategy}, seed {trial.seed}: range test {verdict.status}{flags}: {found}")
        return asdict(verdict)

    def _publish(self, trials: Sequence[TrialRecord]) -> None:
        """Show trials of searches in the dashboard; what confirms them is no trial of Optuna's studies."""
        if self._mirror is not None and not any(trial.is_confirmation for trial in trials):
            self._mirror.publish(self._study_meta(), trials)

    def _publish_live(self, trial: TrialRecord, points: Sequence[CurvePoint]) -> None:
        if self._mirror is not None and not trial.is_confirmation:
            self._mirror.publish(self._study_meta(), [trial], live_points={trial.uuid: points})

    def _study_meta(self) -> StudyRecord:
        return StudyRecord(
            self._study.name, self._study.version, datetime.now(UTC), self._study.config, self._facts, finished=False
        )

    def _take_unsettled(self) -> tuple[int, float] | None:
        unsettled, self._unsettled = self._unsettled, None
        return unsettled

    def _settle(self) -> None:
        unsettled = self._take_unsettled()
        if unsettled is not None:
            self._store.settle(*unsettled)

    def _stop_on_equal_failures(self, trial: TrialRecord) -> None:
        error = trial.result.error if trial.status == "failed" and trial.result is not None else None
        if error is None:
            self._failures = []
        elif error in self._failures:
            self._failures = [*self._failures, error]
        else:
            self._failures = [error]
        if len(self._failures) >= EQUAL_FAILURES_TO_STOP:
            raise StudyFailedError(
                f"Stopped after {len(self._failures)} trials in a row failed in the same way: {error} "
                "They are stored and count as tried: mend the cause, then start a new version with --fresh."
            )


class _Channel:
    """Takes the curve points of a running attempt to the observer at once, to ledger and mirror about once a second.

    A thread of its own writes: a long epoch does not look like death, and no write holds up the training.
    """

    def __init__(
        self,
        store: Store,
        begun: Begun,
        trial: TrialRecord,
        stopper: Callable[[Sequence[CurvePoint]], bool] | None,
        observer: Observer,
        publish_live: Callable[[TrialRecord, Sequence[CurvePoint]], None],
    ) -> None:
        self._store = store
        self._begun = begun
        self._trial = trial
        self._stopper = stopper
        self._observer = observer
        self._publish_live = publish_live
        self._points: list[CurvePoint] = []

    def report(self, uuid: str, point: CurvePoint) -> bool:
        self._points.append(point)
        self._observer.curve_point(self._trial, point)
        return self._stopper is None or not self._stopper(self._points)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Write what is new every HEARTBEAT_SECONDS until the block ends."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat_until, args=(stop,), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _beat_until(self, stop: threading.Event) -> None:
        written = 0
        first = True
        while not stop.wait(FIRST_HEARTBEAT_SECONDS if first else HEARTBEAT_SECONDS):
            points = tuple(self._points)
            try:
                self._store.heartbeat(self._begun.attempt_id, self._begun.token, points[written:], {}, None)
                written = len(points)
                if not first:
                    self._publish_live(self._trial, points)
            except Exception as error:  # whatever it is, the training goes on and the commit of its result decides
                self._observer.message(f"A heartbeat was not written: {error}")
            first = False


def training_of(proposal: Proposal, plan: TrainingPlan) -> TrainingPlan:
    """Return `plan` with what the proposal has of its own."""
    return replace(plan, optimizer=proposal.optimizer or plan.optimizer, epochs=proposal.epochs or plan.epochs)


def with_batch_size(workload: Choice, batch_size: int | None) -> Choice:
    return workload if batch_size is None else Choice(workload.name, {**workload.settings, "batch_size": batch_size})


def _number(trial: TrialRecord) -> int:
    return trial.number


def _with_idle(result: TrialResult, before: float, idle_seconds: float) -> TrialResult:
    """Charge `idle_seconds`; those `before` the trial started are paid by the time of its first curve point."""
    phases = dict(result.phase_seconds)
    phases["idle"] = phases.get("idle", 0.0) + max(0.0, idle_seconds)
    curve = (replace(point, charged_device_seconds=before + point.charged_device_seconds) for point in result.curve)
    return replace(result, phase_seconds=phases, curve=tuple(curve))


def _finished(trial: TrialRecord, begun: Begun, result: TrialResult, owner: str, started_at: datetime) -> TrialRecord:
    attempt = AttemptRecord(
        number=len(trial.attempts) + 1,
        status="finished",
        owner=owner,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        phase_seconds=result.phase_seconds,
        core_seconds=result.core_seconds,
        estimated=False,
        device=result.device,
        gang_size=result.gang_size,
    )
    return replace(trial, status=result.status, attempts=(*trial.attempts, attempt), result=result)


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("lrsearch", "torch", "torchvision", "optuna", "numpy")}


def planned_trials(config: StudyConfig) -> dict[str, int]:
    """Return, for each strategy, how many trials all its searches together will run, as far as known beforehand."""
    planned = {key: strategy.planned_trials * len(config.seeds) for key, strategy in config.strategies.items()}
    for key, strategy in config.strategies.items():
        if isinstance(strategy, SharesTests) and strategy.tests_once:
            planned[key] -= (strategy.planned_trials - 1) * (len(config.seeds) - 1)
    return planned


@dataclass(frozen=True)
class Forecast:
    """What a study would cost, from a timed probe: seconds on this device, all seeds together."""

    trials: dict[str, int]
    seconds: dict[str, float]
    """Charged device seconds by strategy."""
    device: str
    probe: str

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


def forecast(config: StudyConfig) -> Forecast:
    """Time a few steps on the device and return what each way would cost; nothing is stored."""
    from lrsearch import training

    plan, workload, seed = config.training_plan(), config.workload_choice(), config.seeds[0]
    prepared = training.prepare(workload, plan, seed)
    probe = training.probe(workload, plan, seed)
    trials = planned_trials(config)
    steps = round(plan.epochs * prepared.facts.steps_per_epoch)
    seconds = {}
    for key, strategy in config.strategies.items():
        epochs = config.training_plan_of(key).epochs
        train_seconds = epochs * (prepared.facts.steps_per_epoch * probe.step_seconds + probe.validation_seconds)
        first = strategy.propose(_Search(key, seed, strategy).history(config, prepared.facts), 1)
        test = first[0].range_test if first else None
        test_seconds, tests = 0.0, 0
        if test is not None:
            rungs = len(training.range_test_rates(test, prepared.facts.steps_per_epoch))
            test_seconds = rungs * probe.step_seconds + training.RANGE_TEST_EVALUATIONS * probe.range_test_seconds
            tests = trials[key] - len(config.seeds)
        seconds[key] = (trials[key] - tests) * train_seconds + tests * test_seconds
    return Forecast(
        trials=trials,
        seconds=seconds,
        device=f"{prepared.device.name} ({prepared.device.kind}, {prepared.device.threads} threads)",
        probe=(
            f"{probe.step_seconds * 1e3:.2f} ms per step of {prepared.facts.batch_size}, "
            f"{probe.validation_seconds * 1e3:.1f} ms per evaluation, {steps} steps per trial"
        ),
    )
