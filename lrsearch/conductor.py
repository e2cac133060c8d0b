"""Runs the searches of one study, interleaved over the executor's slots, and accounts for every second of each slot."""

from __future__ import annotations

import math
import os
import platform
import signal
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import cycle, islice
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from lrsearch import checkpoint, faults
from lrsearch.analysis import wording
from lrsearch.analysis.confirm import confirmations_wanted
from lrsearch.config import StudyConfig
from lrsearch.engine import run_trials
from lrsearch.errors import LrsearchError, MachineLostError, StorageError, StudyFailedError, WorkerDiedError
from lrsearch.interfaces import (
    Executor,
    Observer,
    OnOtherMachines,
    SharesTests,
    StopsEarly,
    Strategy,
)
from lrsearch.range_test import evaluation_count, judge
from lrsearch.storage.store import Beat, Begun, Claim, End, LostAttempt, Store, StudyRow
from lrsearch.storage.upkeep import LEASE_SECONDS, Lease, every
from lrsearch.strategies import at_once
from lrsearch.trial import (
    FINISHED_STATUSES,
    AttemptRecord,
    Bills,
    CheckpointPlan,
    Choice,
    CurvePoint,
    GangChoice,
    History,
    Preparation,
    Proposal,
    RangeTestPlan,
    SoloCost,
    StudyRecord,
    TrainingPlan,
    Trial,
    TrialRecord,
    TrialResult,
    TrialSpec,
    WorkloadFacts,
    charged_seconds,
    likeness,
    planned_steps,
    range_test_steps,
)

if TYPE_CHECKING:
    from lrsearch.storage.mirror_process import MirrorProcess

HEARTBEAT_SECONDS = 1.0
"""A killed attempt is charged up to its last heartbeat, so this bounds how much of its cost can go unseen."""
FIRST_HEARTBEAT_SECONDS = 0.2
"""So that a short trial that is killed has a cost too."""
LIVE_AFTER_SECONDS = 5.0
"""Optuna takes a transaction for each value of a running trial. One that ends sooner is shown in one piece."""
PROPOSED_AT_ONCE = 8
ALONE = GangChoice(1)
EQUAL_FAILURES_TO_STOP = 3
DEATHS_TO_FAIL = 3
"""A trial whose process dies so often, without a new checkpoint in between, has failed."""
KILLS_TO_FAIL = 10
"""The same for SIGKILL, which may come from anyone; the system's memory killer would end a trial for ever."""


class Terminated(BaseException):
    """SIGTERM arrived, or SIGHUP; like KeyboardInterrupt for Ctrl-C, raised after the ledger is settled."""


class Signals:
    """Ctrl-C, SIGTERM, and SIGHUP of a terminal that went end a trial at once, but wait while the ledger is being
    written; after a second one nothing waits for a database that is away.
    """

    def __init__(self, when_repeated: Callable[[], object] = lambda: None) -> None:
        """`when_repeated` is called for each signal but the first."""
        self._when_repeated = when_repeated
        self._first: type[BaseException] | None = None
        self._interruptible = False
        self._pending: type[BaseException] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        error = KeyboardInterrupt if signum == signal.SIGINT else Terminated
        if self._first is not None:
            self._when_repeated()
        self._first = self._first or error
        if self._interruptible or self._pending is not None:
            raise error
        self._pending = error

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take the signals over for the block (only the main thread may).

        What cannot be stored after one came does not hide that it came: it is the cause of what is raised.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for number in STOPS:
            self._before[number] = signal.getsignal(number)
            if number in ASKED_FOR or self._before[number] is not signal.SIG_IGN:  # which nohup has set
                signal.signal(number, self._handle)
        _taken_over.append(self)
        try:
            yield
            self._raise_pending()
        except StorageError as error:
            if self._first is None:
                raise
            raise self._first from error
        finally:
            self.give_back()

    def give_back(self) -> None:
        """Have the signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self in _taken_over:
            _taken_over.remove(self)

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


ASKED_FOR = (signal.SIGINT, signal.SIGTERM)
STOPS = (*ASKED_FOR, signal.SIGHUP) if hasattr(signal, "SIGHUP") else ASKED_FOR
_taken_over: list[Signals] = []
"""Innermost last."""
_forking = threading.local()


def _before_fork() -> None:
    """Hold signals back: Python drops those that reach a new process before its own code does."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS if _taken_over else ())


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    """Have signals end a process that the study's own code has forked, such as a pool's, as they would elsewhere."""
    for signals in reversed(_taken_over.copy()):
        signals.give_back()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


@dataclass
class Search:
    """One strategy with one seed, and what has come of it."""

    key: str
    seed: int
    strategy: Strategy
    trials: list[Trial] = field(default_factory=list)
    """In the order of their numbers, among which those of runs that confirmed a choice are missing."""
    waiting: deque[TrialRecord] = field(default_factory=deque)
    """Trials that were cut short, to be run again first."""
    proposed: deque[Proposal] = field(default_factory=deque)
    """What comes next, where that may not depend on how trials end."""
    running: int = 0
    done: bool = False
    shared_tests: tuple[Trial, ...] = ()

    @classmethod
    def of(cls, key: str, seed: int, strategy: Strategy, records: Iterable[TrialRecord]) -> Search:
        found = tuple(records)
        unfinished = deque(record for record in found if record.status not in FINISHED_STATUSES)
        return cls(key, seed, strategy, [_as_strategies_see_it(record) for record in found], unfinished)

    def history(self, config: StudyConfig, facts: WorkloadFacts | None, before: int | None = None) -> History:
        """Return what the strategy may know: all trials, or those numbered below `before`."""
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
            trials=tuple(self.trials if before is None else self.trials[: self._place(before)]),
            shared_tests=self.shared_tests,
        )

    def note(self, record: TrialRecord) -> None:
        """Keep what strategies may see of a trial that has begun or ended."""
        self._put(_as_strategies_see_it(record))

    def _put(self, trial: Trial) -> None:
        place = self._place(trial.number)
        self.trials[place : place + 1] = [trial]

    def _place(self, number: int) -> int:
        return bisect_left(self.trials, number, key=lambda trial: trial.number)

    def reserve(self, turn: Turn) -> None:
        """Go on as if the turn's trial had begun, until `release`; of several turns the last is released first."""
        self.running += 1
        following = self.trials[-1].number + 1 if self.trials else 0
        self._put(Trial(following if turn.record is None else turn.record.number, turn.proposal, "running"))

    def release(self, turn: Turn) -> None:
        self.running -= 1
        if turn.record is None:
            self.trials.pop()
        else:
            self.note(turn.record)

    def put_back(self, turn: Turn) -> None:
        """Have a turn that was not taken come again first."""
        if turn.record is not None:
            self.waiting.appendleft(turn.record)
        else:
            self.proposed.appendleft(turn.proposal)


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


def interleaved(keys: Sequence[str]) -> Iterator[str]:
    """Return the order of turns: A B C, then C B A, and again, so that no way always runs first or last (ABBA)."""
    return cycle([*keys, *reversed(keys)])


@dataclass
class Turn:
    """What is to run next: a trial to begin, or one (with its record) to begin again."""

    search: Search
    proposal: Proposal
    record: TrialRecord | None = None
    stopper: Callable[[Sequence[CurvePoint]], bool] | None = None
    thought_seconds: float = 0.0
    """What it took to propose it."""


class Turns:
    """Says whose turn it is. On one slot: the searches of a seed alternate until all are done, then the next seed's.

    Where slots are free, or trials can train beside those of others, searches that need not wait for a running trial of
    their own go on, also those of later seeds; which trials a search runs does not depend on that, unless
    `asynchronous` lets it propose ahead.
    """

    def __init__(
        self, config: StudyConfig, record: StudyRecord, facts: WorkloadFacts, when_done: Callable[[Search], None]
    ) -> None:
        self._config = config
        self._facts = facts
        self._when_done = when_done
        self._kinds = {key: kind_of(config, key) for key in config.strategies}
        self._records: dict[tuple[str, int], list[TrialRecord]] = {}
        for trial in record.trials:
            self._records.setdefault((trial.strategy, trial.seed), []).append(trial)
        replicates = [{key: self._search(key, seed) for key in config.strategies} for seed in config.seeds]
        self._testing = {key: _that_tests([searches[key] for searches in replicates]) for key in config.strategies}
        self._replicates = tuple((searches, interleaved(list(searches))) for searches in replicates)

    def _search(self, key: str, seed: int) -> Search:
        return Search.of(key, seed, self._config.strategies[key], self._records.pop((key, seed), ()))

    def next(self) -> Turn | None:
        """Return the next turn; None while all must wait, and at the end."""
        while True:
            ended = self._ended_count()
            turn = self._next()
            if turn is not None or self._ended_count() == ended:
                return turn  # else one that has just ended may have been waited for

    def _ended_count(self) -> int:
        return sum(search.done for searches, _ in self._replicates for search in searches.values())

    def _next(self) -> Turn | None:
        for searches, order in self._replicates:
            if all(search.done for search in searches.values()):
                continue
            for _ in range(2 * len(searches)):
                turn = self.another(searches[next(order)])
                if turn is not None:
                    return turn
        return None

    def put_back(self, record: TrialRecord) -> None:
        """Have a trial, which was begun in one of these searches and is planned again, run next in it."""
        searches = (searches[record.strategy] for searches, _ in self._replicates)
        search = next(search for search in searches if search.seed == record.seed)
        search.note(record)
        search.waiting.appendleft(record)
        search.done = False

    def note_ends(self) -> None:
        """Find out which of the searches that have begun have nothing more to try; none may have a trial running.

        What the others would try next is forgotten: it is asked for again when that is on their bill.
        """
        for searches, _ in self._replicates:
            for search in searches.values():
                if search.trials and not search.done and self._has_its_tests(search) and not self._has_more(search):
                    self._end(search)

    def _has_more(self, search: Search) -> bool:
        history = search.history(self._config, self._facts)
        return bool(search.waiting or search.proposed or search.strategy.propose(history, 1))

    def _end(self, search: Search) -> None:
        search.done = True
        self._when_done(search)

    def beside(self, search: Search) -> Iterator[Search]:
        """Yield this search, then those whose trials may train together with its own, of its seed first."""
        yield search
        every = [other for searches, _ in self._replicates for other in searches.values() if other is not search]
        for other in sorted(every, key=lambda one: one.seed != search.seed):
            if self._kinds[other.key] == self._kinds[search.key]:
                yield other

    def another(self, search: Search) -> Turn | None:
        """Return a turn of a search that can take one more beside those that it has running, or None."""
        return None if search.done or not self._has_its_tests(search) else self._turn_of(search)

    def _has_its_tests(self, search: Search) -> bool:
        """Whether a search that goes by the range tests of another can have them."""
        testing = self._testing[search.key]
        if search is testing or not (isinstance(search.strategy, SharesTests) and search.strategy.tests_once):
            return True
        search.shared_tests = tuple(_range_tests(testing))
        return testing.done

    def _turn_of(self, search: Search) -> Turn | None:
        if search.running and not self._may_look_ahead(search.strategy):
            return None
        began = time.perf_counter()
        record = search.waiting.popleft() if search.waiting else None
        history = search.history(self._config, self._facts, before=record.number if record else None)
        proposal = record.proposal if record else self._next_proposal(search, history)
        if proposal is None:
            if not search.running:
                self._end(search)
            return None
        stopper = search.strategy.stopper(history) if isinstance(search.strategy, StopsEarly) else None
        return Turn(search, proposal, record, stopper, time.perf_counter() - began)

    def _next_proposal(self, search: Search, history: History) -> Proposal | None:
        """Return what the search tries next. A long history takes time to read: it is read once for several."""
        if not search.proposed:
            count = PROPOSED_AT_ONCE if at_once(search.strategy) > 1 else 1
            search.proposed.extend(search.strategy.propose(history, count))
        return search.proposed.popleft() if search.proposed else None

    def _may_look_ahead(self, strategy: Strategy) -> bool:
        return self._config.executor.asynchronous or at_once(strategy) > 1


def _that_tests(found: Sequence[Search]) -> Search:
    """Return which search of a way tests where one does for all: the first, unless another had begun to.

    An extension may have put seeds before its own.
    """
    return next((search for search in found if any(_range_tests(search))), found[0])


def _range_tests(search: Search) -> Iterator[Trial]:
    return (trial for trial in search.trials if trial.proposal.stage == "range_test")


class Budget:
    """Whether a trial fits into the device seconds that a study may take, all phases of all attempts included."""

    def __init__(self, device_hours: float | None, record: StudyRecord) -> None:
        self.limit_seconds = None if device_hours is None else device_hours * 3600
        self.spent_seconds = 0.0
        self._longest: dict[tuple[object, ...], float] = {}
        for trial in (*record.trials, *record.confirmations):
            for attempt in trial.attempts:
                self.spend(attempt.billed_seconds)
            if trial.status in FINISHED_STATUSES:
                self.learn(trial.strategy, trial.proposal, _alone(trial))

    def spend(self, seconds: float) -> None:
        self.spent_seconds += seconds

    def learn(self, strategy: str, proposal: Proposal, seconds: float) -> None:
        """Remember how long a trial that has ended takes alone, for those of its way and those that are like it.

        A gang takes less than all its trials alone, and the next one may be smaller.
        """
        for kind in _kinds(strategy, proposal):
            self._longest[kind] = max(seconds, self._longest.get(kind, 0.0))

    def forecast(self, strategy: str, proposal: Proposal) -> float:
        """Return the longest time that such a trial took so far, in this way or else in any; 0 before the first."""
        return next((self._longest[kind] for kind in _kinds(strategy, proposal) if kind in self._longest), 0.0)

    def allows(self, seconds: float) -> bool:
        return self.limit_seconds is None or self.spent_seconds + seconds <= self.limit_seconds


def _kinds(strategy: str, proposal: Proposal) -> tuple[tuple[object, ...], ...]:
    alike = (proposal.stage, proposal.epochs)
    return (strategy, *alike), alike


@dataclass
class _Attempt:
    """One try at a trial, under way."""

    turn: Turn
    trial: TrialRecord
    begun: Begun
    channel: _Channel
    started_at: datetime


@dataclass
class _Running:
    """What a slot works at: mostly one attempt, else those of a gang."""

    attempts: Sequence[_Attempt] = ()
    heart: _Heart | None = None
    started: float = 0.0
    future: Future[Sequence[TrialResult]] | None = None
    done: float = 0.0
    """When the future had its result, or its machine was last heard from."""
    machine_lost: bool = False


@dataclass
class _Slot:
    number: int
    boundary: float
    """When the last second that belongs to a trial ended; what comes after is the next trial's."""
    unsettled: tuple[int, float] | None = None
    """Attempt and idle seconds that came after its result was written; they go into the next transaction."""
    running: _Running | None = None
    used: bool = False
    out_of_reach: bool = False
    """Whether its machine is lost, and no other has taken its place."""
    seconds_out_of_reach: float = 0.0
    """On nobody's bill."""

    def regain_place(self) -> None:
        now = time.perf_counter()
        self.seconds_out_of_reach += now - self.boundary
        self.boundary, self.out_of_reach = now, False

    def take_unsettled(self) -> tuple[int, float] | None:
        unsettled, self.unsettled = self.unsettled, None
        return unsettled


class Conductor:
    """Runs the searches of one study and keeps account of every second from begin to end."""

    def __init__(
        self,
        config: StudyConfig,
        store: Store,
        study: StudyRow,
        lease: Lease,
        observer: Observer,
        mirror: MirrorProcess | None,
        signals: Signals,
        executor: Executor,
        prepared: Preparation,
    ) -> None:
        self._config = config
        self._store = store
        self._study = study
        self._lease = lease
        self._observer = observer if executor.slot_count == 1 else cast(Observer, _OneAtATime(observer))
        self._mirror = mirror
        self._signals = signals
        self._executor = executor
        self._prepared = prepared
        self._facts = prepared.facts
        self._folder = config.checkpoint_folder(store.sqlite_file)
        self._versions = _versions()
        self._last_failure: str | None = None
        self._equal_failures = 0
        self._deaths: dict[str, tuple[int, int]] = {}
        """By trial: at which step's checkpoint its process has died, and how often there."""
        self._slots: list[_Slot] = []
        self._confirmations: deque[Turn] | None = None
        self._put_back: Turn | None = None
        """The turn that the budget did not allow."""
        self._reserved: list[Turn] = []
        """Turns of trials that are to begin together."""
        self._ended: list[TrialRecord] = []
        """Trials that the dashboard does not know to have ended."""
        self._claiming = threading.Lock()
        """Held until attempts that the ledger has begun, maybe long before it could say so, stand in their slot."""
        self._left_behind: SimpleQueue[LostAttempt] = SimpleQueue()
        """Attempts that the reconciler has closed."""

    def run(self) -> bool:
        """Run what is left of the study; return False when its budget ended it first."""
        record = self._store.record(self._study.name, self._study.version)
        self._observer.study_started(record, self._config.planned_trials())
        self._store.set_facts(self._study.id, self._facts)
        self._remove_stale_checkpoints(record)
        self._publish(record.trials)
        budget = self._config.budget
        self._budget = Budget(budget.device_hours if budget else None, record)
        self._turns = Turns(self._config, record, self._facts, self._note_done)
        self._solo_costs = self._charged_by(record)
        self._turns.note_ends()  # before the clock starts: the first trial would pay for asking those that are done
        began = time.perf_counter()
        self._slots = [_Slot(number, began) for number in range(self._executor.slot_count)]
        try:
            with every(LEASE_SECONDS, self._reconcile, "reconciler"):
                try:
                    return self._run()
                except StorageError:  # the reconciler, and what is left to write, must not wait as long again
                    self._store.absence.give_up()
                    raise
        except BaseException:
            self._cut_short()
            raise
        finally:
            self._executor.close()
            for slot in self._slots:
                if (unsettled := slot.take_unsettled()) is not None:
                    self._store.settle(*unsettled)
            self._note_run(began)

    def _charged_by(self, record: StudyRecord) -> Mapping[str, SoloCost]:
        """Return what trials alone take, by kind, by which all are charged in a study where some train together.

        None where none do: then all are charged what they took. What a study has begun with stays while its device
        does, however fast that is on another day.
        """
        device, known = asdict(self._prepared.device), dict[str, SoloCost]()
        for event in record.events:
            if event.kind == "charged_by" and event.data["device"] == device:
                known |= {kind: SoloCost(**cost) for kind, cost in event.data["costs"].items()}
        gangs = self._prepared.gangs
        if not known and all(max(choice.size, choice.across) <= 1 for choice in gangs.values()):
            return {}
        new = {kind: choice.solo for kind, choice in gangs.items() if choice.solo and kind not in known}
        if new:
            costs = {kind: asdict(cost) for kind, cost in new.items()}
            self._store.add_event(self._study.id, "charged_by", {"device": device, "costs": costs})
        return {**known, **new}

    def _run(self) -> bool:
        while True:
            turn = self._fill_slots()
            busy = [slot for slot in self._slots if slot.running]
            if not busy and not all(slot.out_of_reach for slot in self._slots):
                if turn is not None:
                    self._tell_budget(turn)
                    turn.search.put_back(turn)
                    self._turns.note_ends()
                return turn is None
            self._wait(busy)
            for slot in busy:
                if slot.running and slot.running.done:
                    self._end(slot)

    def _fill_slots(self) -> Turn | None:
        """Begin trials on all free slots; return the one that the budget does not allow."""
        self._take_left_behind()
        for slot in self._slots:
            if slot.running is not None or not self._has_place(slot):
                continue
            turn = self._put_back or self._next_turn()
            self._put_back = None
            if turn is None:
                return None
            if not self._fits(turn):
                self._put_back = replace(turn, thought_seconds=0.0)  # of the next one's time it takes none
                return turn
            self._begin(slot, turn)
        return None

    def _has_place(self, slot: _Slot) -> bool:
        """Whether the slot has a machine. Raises ClusterError when none has one any more."""
        if slot.out_of_reach and isinstance(self._executor, OnOtherMachines) and self._executor.has_place(slot.number):
            slot.regain_place()
        return not slot.out_of_reach

    def _fits(self, turn: Turn) -> bool:
        """Whether the budget, of which running trials have their share, allows one more."""
        turns = [attempt.turn for slot in self._slots if slot.running for attempt in slot.running.attempts]
        return self._budget.allows(sum(self._forecast(one) for one in (*turns, *self._reserved, turn)))

    def _forecast(self, turn: Turn) -> float:
        """Return about how many device seconds the trial takes alone: as others did, or by what was timed before."""
        known = self._budget.forecast(turn.search.key, turn.proposal)
        solo, test = self._gang_of(turn).solo, turn.proposal.range_test
        if known or solo is None:
            return known
        if test is not None:
            steps = range_test_steps(test, self._facts.steps_per_epoch)
            evaluations = evaluation_count(steps)
        else:
            training = training_of(turn.proposal, self._config.training_plan())
            steps, evaluations = planned_steps(training, self._facts), math.ceil(training.epochs)
        return charged_seconds(solo.phases(turn.proposal.stage, steps, evaluations, {}))

    def _next_turn(self) -> Turn | None:
        turn, fresh = self._turns.next(), self._config.confirmation_seeds
        if turn is None and fresh and self._confirmations is None and not any(slot.running for slot in self._slots):
            self._confirmations = deque(self._confirm(fresh))
        return self._confirmations.popleft() if turn is None and self._confirmations else turn

    def _confirm(self, count: int) -> Iterator[Turn]:
        """Yield what trains again what each search chose, with `count` fresh seeds that all ways share."""
        record = self._store.record(self._study.name, self._study.version)
        wanted = confirmations_wanted(record, count)
        if wanted:
            seeds, runs = wording.counted(count, "fresh seed"), wording.counted(len(wanted), "run")
            self._observer.message(f"Confirming what each search chose with {seeds}: {runs}.")
        begun = [one for one in record.confirmations if one.status not in FINISHED_STATUSES]
        for strategy, seed, proposal in wanted:
            again = next((one for one in begun if (one.strategy, one.proposal) == (strategy, proposal)), None)
            yield Turn(Search(strategy, seed, self._config.strategies[strategy]), proposal, again)

    # One attempt

    def _begin(self, slot: _Slot, turn: Turn) -> None:
        """Plan the trial, or claim it again, with those that can train beside it, and hand them to the slot."""
        slot.used = True
        slot.running = running = _Running()
        turns = self._together(turn)
        with self._claiming:
            running.attempts = self._claim(slot, turns)
        for attempt in running.attempts:
            self._observer.trial_started(attempt.trial)
        running.started = time.perf_counter()
        running.heart = _Heart(self._store, running.attempts, self._observer, self._publish_live, since=slot.boundary)
        specs = [self._spec(attempt.trial) for attempt in running.attempts]
        if len(specs) > 1:
            choice = self._gang_of(turn)
            specs = [replace(spec, compiled=choice.compiled, onednn=choice.onednn) for spec in specs]
        channels = {attempt.trial.uuid: attempt.channel for attempt in running.attempts}
        if self._executor.slot_count == 1:  # which may train before it returns
            self.show_ended()
        with self._signals.interruptible():
            running.future = self._executor.submit(run_trials, specs, _Channels(channels), slot.number)
            running.future.add_done_callback(partial(_note_end, running))

    def _claim(self, slot: _Slot, turns: Sequence[Turn]) -> list[_Attempt]:
        """Write down that the trials begin."""
        there = self._executor.versions(slot.number) if isinstance(self._executor, OnOtherMachines) else {}
        versions = {package: there.get(package, ours) for package, ours in self._versions.items()}
        claims = [
            turn.record.uuid if turn.record else Claim(turn.search.key, turn.search.seed, turn.proposal)
            for turn in turns
        ]
        owner, settle = self._lease.owner, slot.take_unsettled()
        begun = self._store.begin_trials(self._study.id, claims, owner=owner, versions=versions, settle=settle)
        return [self._attempt(turn, one) for turn, one in zip(turns, begun, strict=True)]

    def _attempt(self, turn: Turn, begun: Begun) -> _Attempt:
        search, record = turn.search, turn.record
        if record is None:
            record = TrialRecord(begun.uuid, search.key, search.seed, begun.number, "planned", turn.proposal)
        trial = replace(record, status="running")
        search.running += 1
        if not trial.is_confirmation:
            search.note(trial)
        return _Attempt(turn, trial, begun, _Channel(trial, turn.stopper, self._observer), datetime.now(UTC))

    def _together(self, first: Turn) -> list[Turn]:
        """Return the turns of the trials that begin together, the first among them.

        Those that see the same data come first, and others only where these are too few.
        """
        choice = self._gang_of(first)
        self._reserve(first)
        self._seek(first, choice.smallest, choice.size)
        if len(self._reserved) < min(choice.enough, choice.across) and self._pays_across(first, choice):
            self._seek(first, choice.smallest_across, choice.across, across=True)
        turns, self._reserved = self._reserved, []
        for turn in reversed(turns):
            turn.search.release(turn)
        return turns

    def _pays_across(self, turn: Turn, choice: GangChoice) -> bool:
        """Whether such trials cost less together although they see different data: each evaluates with its own."""
        test = turn.proposal.range_test
        if test is None:
            return True
        steps = range_test_steps(test, self._facts.steps_per_epoch)
        return evaluation_count(steps) <= choice.most_evaluations * steps

    def _reserve(self, turn: Turn) -> None:
        turn.search.reserve(turn)
        self._reserved.append(turn)

    def _seek(self, first: Turn, fewest: int, most: int, *, across: bool = False) -> None:
        """Reserve turns that may train beside the first until there are `most`; none where they end below `fewest`."""
        before = len(self._reserved)
        may_join = partial(self._may_join, first, across=across)
        for turn in islice(self._beside(first, may_join), max(0, most - before)):
            self._reserve(turn)
        if len(self._reserved) >= fewest:
            return
        while len(self._reserved) > before:
            turn = self._reserved.pop()
            turn.search.release(turn)
            if turn.proposal.confirmation_seed is None:
                turn.search.put_back(turn)
            else:
                assert self._confirmations is not None, "it came from there"
                self._confirmations.appendleft(turn)

    def _beside(self, first: Turn, may_join: Callable[[Turn], bool]) -> Iterator[Turn]:
        if first.proposal.confirmation_seed is not None:
            assert self._confirmations is not None
            for waiting in tuple(self._confirmations):
                if may_join(waiting):
                    self._confirmations.remove(waiting)
                    yield waiting
            return
        for search in self._turns.beside(first.search):
            while (turn := self._turns.another(search)) is not None:
                if not may_join(turn):
                    search.put_back(turn)
                    break
                yield turn

    def _may_join(self, first: Turn, turn: Turn, *, across: bool) -> bool:
        """Whether a trial may train beside the first; `across`: also one that sees other data."""
        return (
            self._kind(turn) == self._kind(first)
            and (across or self._crowd(turn) == self._crowd(first))
            and self._fits(turn)
        )

    def _gang_of(self, turn: Turn) -> GangChoice:
        """Return how many trials like this one train together."""
        return self._prepared.gangs.get(self._kind(turn)[0], ALONE)

    def _kind(self, turn: Turn) -> tuple[str, RangeTestPlan | None]:
        """Return what trials that train together share; "" for one that trains alone, as after a death under it."""
        if _was_lost(turn):
            return "", None
        workload = with_batch_size(self._config.workload_choice(), turn.proposal.batch_size)
        test = turn.proposal.range_test
        kind = likeness(workload, training_of(turn.proposal, self._config.training_plan()))
        return kind, None if test is None else replace(test, repeat=0)

    def _crowd(self, turn: Turn) -> tuple[int, int]:
        """Return what decides which data a trial sees, in which order."""
        fresh, test = turn.proposal.confirmation_seed, turn.proposal.range_test
        return turn.search.seed if fresh is None else fresh, 0 if test is None else test.repeat

    def _spec(self, trial: TrialRecord) -> TrialSpec:
        proposal, confirmation_seed = trial.proposal, trial.proposal.confirmation_seed
        workload = with_batch_size(self._config.workload_choice(), proposal.batch_size)
        training = training_of(proposal, self._config.training_plan())
        return TrialSpec(
            trial.uuid,
            self._study.name,
            trial.strategy,
            trial.seed if confirmation_seed is None else confirmation_seed,
            trial.number,
            proposal,
            workload,
            training,
            CheckpointPlan(
                str(self._folder),
                self._config.checkpoint.every_seconds,
                len(trial.attempts) + 1,
                tuple(attempt.charged_device_seconds for attempt in trial.attempts),
            ),
            self._solo_costs.get(likeness(workload, training)),
        )

    def _wait(self, busy: Sequence[_Slot]) -> None:
        """Return when a trial has ended or a slot is back.

        Raises StudyBusyError when another process has taken the study over.
        """
        self.show_ended()
        futures = [slot.running.future for slot in busy if slot.running and slot.running.future]
        with self._signals.interruptible():
            while not wait(futures, timeout=1.0, return_when=FIRST_COMPLETED).done:
                self._lease.check()
                if any(slot.out_of_reach and self._has_place(slot) for slot in self._slots):
                    return
                if not futures:
                    time.sleep(0.2)

    def _end(self, slot: _Slot) -> None:
        """Write what the attempt on the slot gave, and free the slot."""
        running = slot.running
        assert running is not None
        assert running.future is not None
        assert running.heart is not None
        running.heart.stop()
        error = running.future.exception()
        if error is not None and not isinstance(error, WorkerDiedError):
            raise error
        if isinstance(error, MachineLostError):  # the seconds until that was noticed are nobody's
            running.done = max(slot.boundary, running.done - error.silent_seconds)
            running.machine_lost = True
        count = len(running.attempts)
        held = (running.done - slot.boundary) / count
        results = running.future.result() if error is None else ()
        # What no phase explains of the span since the last trial went into thinking and writing: the device was idle.
        # Each trial pays for what its own sampler thought, and all share the rest.
        own = sum(attempt.turn.thought_seconds for attempt in running.attempts)
        before = (running.started - slot.boundary - own) / count
        idle = held - (own + sum(result.billed_seconds for result in results)) / count
        ended = []
        for place, attempt in enumerate(running.attempts):
            if error is None:
                thought = attempt.turn.thought_seconds
                ended.append((attempt, _with_idle(results[place], thought + before, thought + idle)))
            elif self._has_failed(attempt, error):
                ended.append((attempt, self._dead(attempt, held, error)))
            else:
                self._lose(attempt, held, error)
        finished = self._finish(ended) if ended else []
        slot.running = None  # until here nobody may take its attempts for left behind
        self._budget.spend(held * count)
        self._settle_slot(slot, running)
        for trial in finished:
            self._stop_on_equal_failures(trial)

    def _finish(self, ended: Sequence[tuple[_Attempt, TrialResult]]) -> list[TrialRecord]:
        """Write the results, tell of them and return the trials as they are now."""
        verdicts = [self._verdict(attempt.trial, result) for attempt, result in ended]
        self._store.finish_attempts(
            [
                End(attempt.begun.attempt_id, attempt.begun.token, result, verdict)
                for (attempt, result), verdict in zip(ended, verdicts, strict=True)
            ]
        )
        records = []
        for (attempt, result), verdict in zip(ended, verdicts, strict=True):
            checkpoint.remove(self._folder, attempt.trial.uuid)
            finished = replace(_finished(attempt, result, self._lease.owner), verdict=verdict)
            records.append(finished)
            self._observer.trial_finished(finished)
            if finished.stage == "train" and result.status == "completed" and result.validation_metric is None:
                self._observer.message(
                    f"{finished.strategy}, seed {finished.seed}: {self._facts.metric} was not a finite number."
                )
            self._budget.learn(finished.strategy, finished.proposal, _alone(finished))
            attempt.turn.search.running -= 1
            if not finished.is_confirmation:
                attempt.turn.search.note(finished)
        self._ended += records
        return records

    def show_ended(self) -> None:
        """Have the dashboard show the trials that have ended.

        Once the ledger has written what comes after them: on SQLite one of the two waits while the other writes.
        """
        if self._ended:
            faults.point("before_mirror")
            ended, self._ended = self._ended, []
            self._publish(ended)

    def _settle_slot(self, slot: _Slot, running: _Running) -> None:
        if running.machine_lost:
            slot.boundary, slot.out_of_reach = running.done, True
            return
        slot.boundary = time.perf_counter()
        idle_seconds, last = slot.boundary - running.done, running.attempts[-1]
        slot.unsettled = (last.begun.attempt_id, idle_seconds)
        self._ended = [  # the dashboard shows them with the rest: there a trial that has ended stays as it is
            _with_idle_after(trial, idle_seconds) if trial.uuid == last.trial.uuid else trial for trial in self._ended
        ]
        self._budget.spend(idle_seconds)

    def show_missing(self) -> bool:
        """Have the dashboard show what it lacks, deleted or still to come; return whether there was anything."""
        missing = [] if self._mirror is None else self._store.not_shown(self._study.id)
        for uuid in missing:
            self._publish([self._store.trial_record(uuid)])
        return bool(missing)

    def _lose(self, attempt: _Attempt, spent: float, error: BaseException) -> None:
        """Close an attempt, which has cost `spent` seconds, of a process that died, and have the trial run again."""
        trial, begun = attempt.trial, attempt.begun
        kept = self._kept(trial.uuid, len(trial.attempts) + 1)
        self._store.interrupt_attempt(begun.attempt_id, begun.token, spent, kept=kept, error=_sentence(error))
        self._observer.message(
            f"{trial.strategy}, seed {trial.seed}, trial {trial.number} runs again: {error}; its {spent:.1f} s are "
            "charged."
        )
        record = self._store.trial_record(trial.uuid)
        self._publish([record])
        search = attempt.turn.search
        search.running -= 1
        if trial.is_confirmation:
            assert self._confirmations is not None
            self._confirmations.appendleft(replace(attempt.turn, record=record))
        else:
            search.note(record)
            search.waiting.appendleft(record)

    def _has_failed(self, attempt: _Attempt, error: WorkerDiedError) -> bool:
        """Whether the trial's process has died too often without getting any further."""
        found = checkpoint.newest(self._folder, attempt.trial.uuid, self._observer.message)
        step = found[0].step if found else 0
        at, deaths = self._deaths.get(attempt.trial.uuid, (step, 0))
        deaths = deaths + 1 if at == step else 1
        self._deaths[attempt.trial.uuid] = step, deaths
        return deaths >= (KILLS_TO_FAIL if error.from_outside else DEATHS_TO_FAIL)

    def _dead(self, attempt: _Attempt, spent: float, error: BaseException) -> TrialResult:
        """Return the result of a trial whose process dies each time; this time after `spent` seconds."""
        uuid = attempt.trial.uuid
        bills = (self._kept(uuid, len(attempt.trial.attempts) + 1) or Bills({})).with_lost(spent)
        return TrialResult(
            uuid,
            "failed",
            self._prepared.device,
            0,
            bills.charged,
            0.0,
            billed_phase_seconds=bills.billed,
            error=f"{self._deaths[uuid][1]} times in a row the trial did not survive: {_sentence(error)}",
            facts=self._facts,
        )

    def _kept(self, uuid: str, attempt: int) -> Bills | None:
        """Return what that attempt cost up to the checkpoint from which the trial would go on."""
        return checkpoint.kept(self._folder, uuid, attempt, self._observer.message)

    def _cut_short(self) -> None:
        """Stop all that runs and close its attempts with their cost; what is raised already says why."""
        now = time.perf_counter()
        self._executor.close()
        for slot in self._slots:
            running, slot.running = slot.running, None
            if running is None:
                continue
            ended = running.done or now
            spent = (ended - slot.boundary) / len(running.attempts) if running.attempts else 0.0
            slot.boundary = ended
            if running.heart is not None:
                running.heart.stop()
            for attempt in running.attempts:
                begun, trial = attempt.begun, attempt.trial
                try:
                    kept = self._kept(trial.uuid, len(trial.attempts) + 1)
                    self._store.interrupt_attempt(begun.attempt_id, begun.token, spent, kept=kept)
                    self._publish([replace(trial, status="planned")])
                except LrsearchError as error:
                    if isinstance(error, StorageError):  # the next one would wait as long again
                        self._store.absence.give_up()

    # Around the attempts

    def _reconcile(self) -> None:
        """Close attempts that nobody runs, and show what the dashboard lacks. Runs beside the loop, every lease period.

        None is left behind unless something went wrong that nobody thought of; then the trial shall still run again.
        """
        try:
            with self._claiming:
                running = [slot.running for slot in self._slots]
                alive = {attempt.begun.token for one in running if one for attempt in one.attempts}
                for lost in self._store.reconcile(self._study.id, self._kept, alive):
                    self._left_behind.put(lost)
            self.show_missing()
        except Exception as error:  # whatever it is, the training goes on, and the next time may go better
            self._observer.message(f"The ledger was not looked through: {error}")

    def _take_left_behind(self) -> None:
        """Have the trials of attempts that the reconciler closed run again."""
        while not self._left_behind.empty():
            lost = self._left_behind.get()
            record = self._store.trial_record(lost.uuid)
            self._observer.message(f"Left behind by nobody knows whom: {lost} will run again; its seconds are charged.")
            self._publish([record])
            self._budget.spend(lost.seconds)
            if record.is_confirmation:
                search = Search(record.strategy, record.seed, self._config.strategies[record.strategy])
                self._confirmations = deque([*(self._confirmations or ()), Turn(search, record.proposal, record)])
            else:
                self._turns.put_back(record)

    def _note_done(self, search: Search) -> None:
        """Store that a search has nothing more to try: what its trials are does not say so."""
        self._store.add_event(self._study.id, "search_done", {"strategy": search.key, "seed": search.seed})

    def _note_run(self, began: float) -> None:
        for slot in self._slots:
            if slot.out_of_reach:
                slot.regain_place()
        now = time.perf_counter()
        apart = sum(slot.seconds_out_of_reach for slot in self._slots)
        ends = [slot.boundary for slot in self._slots if slot.used]
        data = {
            "held_seconds": sum(end - began for end in ends) - apart,
            "prepare_seconds": self._prepared.seconds,
            "device_kind": self._prepared.device.kind,
            "device_name": self._prepared.device.name,
            "precision": self._prepared.precision,
        }
        if len(self._slots) > 1:
            data |= {"slots": len(self._slots), "seconds_without_work": sum(now - end for end in ends)}
        if apart:
            data["seconds_out_of_reach"] = apart
        self._store.add_event(self._study.id, "run", data)

    def _tell_budget(self, turn: Turn) -> None:
        assert self._budget.limit_seconds is not None
        spent, limit = self._budget.spent_seconds, self._budget.limit_seconds
        expected = self._forecast(turn)
        self._observer.message(
            f"Stopped at the budget of {limit / 3600:g} device hours: {spent / 3600:.4g} are spent, and the next trial "
            f"({turn.search.key}, seed {turn.search.seed}) would take about {wording.significant(expected)} s. Raise "
            "budget.device_hours and type the same command to go on."
        )
        data = {"device_hours": limit / 3600, "spent_seconds": spent, "next_trial_seconds": expected}
        self._store.add_event(self._study.id, "budget_reached", data)

    def _remove_stale_checkpoints(self, record: StudyRecord) -> None:
        """Remove what a process left that was killed between a trial's end and the removal."""
        if not self._folder.is_dir():
            return
        ended = {t.uuid for t in (*record.trials, *record.confirmations) if t.status in FINISHED_STATUSES}
        for uuid in {path.name.partition(".")[0] for path in self._folder.iterdir()} & ended:
            checkpoint.remove(self._folder, uuid)

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
        shown = [trial for trial in trials if not trial.is_confirmation]
        if self._mirror is not None and shown:
            self._mirror.publish(self._study_meta(), shown)

    def _publish_live(self, trial: TrialRecord, points: Sequence[CurvePoint]) -> None:
        if self._mirror is not None and not trial.is_confirmation:
            self._mirror.publish(self._study_meta(), [trial], live_points={trial.uuid: points})

    def _study_meta(self) -> StudyRecord:
        return StudyRecord(
            self._study.name, self._study.version, datetime.now(UTC), self._study.config, self._facts, finished=False
        )

    def _stop_on_equal_failures(self, trial: TrialRecord) -> None:
        error = trial.result.error if trial.status == "failed" and trial.result is not None else None
        self._equal_failures = self._equal_failures + 1 if error == self._last_failure else 1
        self._last_failure = error
        if error is not None and self._equal_failures >= EQUAL_FAILURES_TO_STOP:
            raise StudyFailedError(
                f"Stopped after {self._equal_failures} trials in a row failed in the same way: "
                f"{error.removesuffix('.')}. "
                "They are stored and count as tried: mend the cause, then start a new version with --fresh."
            )


def _alone(trial: TrialRecord) -> float:
    """Return the device seconds of the trial, had it trained alone and never been interrupted."""
    charged, billed = sum(trial.phase_seconds.values()), sum(attempt.billed_seconds for attempt in trial.attempts)
    return max(charged, billed) - trial.phase_seconds["lost"]  # a member of a gang is charged what it takes alone


def _was_lost(turn: Turn) -> bool:
    """Whether the trial's process died under it before: then it trains alone, and takes no other with it."""
    return turn.record is not None and any(attempt.error is not None for attempt in turn.record.attempts)


def _note_end(running: _Running, future: Future[Any]) -> None:
    running.done = time.perf_counter()


def _sentence(error: BaseException) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


class _OneAtATime:
    """An observer that hears from several threads, one at a time."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Callable[..., None]:
        def told(*news: object) -> None:
            with self._lock:
                getattr(self._observer, name)(*news)

        return told


class _Channels:
    """The channels of the trials that run on one slot, as one."""

    def __init__(self, channels: Mapping[str, _Channel]) -> None:
        self._channels = channels

    def report(self, uuid: str, point: CurvePoint) -> bool:
        return self._channels[uuid].report(uuid, point)

    def message(self, uuid: str, text: str) -> None:
        self._channels[uuid].message(uuid, text)


class _Channel:
    """Takes the curve points of a running attempt to the observer, and keeps them for `_Heart` to write."""

    def __init__(
        self, trial: TrialRecord, stopper: Callable[[Sequence[CurvePoint]], bool] | None, observer: Observer
    ) -> None:
        self._trial = trial
        self._stopper = stopper
        self._observer = observer
        self.points: list[CurvePoint] = []

    def report(self, uuid: str, point: CurvePoint) -> bool:
        self.points.append(point)
        self._observer.curve_point(self._trial, point)
        return self._stopper is None or not self._stopper(self.points)

    def message(self, uuid: str, text: str) -> None:
        trial = self._trial
        self._observer.message(f"{trial.strategy}, seed {trial.seed}, trial {trial.number}: {text}")


class _Heart:
    """Takes what is new of the attempts on a slot to ledger and mirror every HEARTBEAT_SECONDS, until `stop`.

    A thread of its own writes: a long epoch does not look like death, and no write holds up the training.
    """

    def __init__(
        self,
        store: Store,
        attempts: Sequence[_Attempt],
        observer: Observer,
        publish_live: Callable[[TrialRecord, Sequence[CurvePoint]], None],
        *,
        since: float,
    ) -> None:
        """`since` is when the seconds of the attempts, which share them, began, by time.perf_counter."""
        self._store = store
        self._attempts = attempts
        self._observer = observer
        self._publish_live = publish_live
        self._since = since
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        written = [0] * len(self._attempts)
        patience = FIRST_HEARTBEAT_SECONDS
        while not self._stop.wait(patience):
            patience = HEARTBEAT_SECONDS
            points = [tuple(attempt.channel.points) for attempt in self._attempts]
            lost_if_killed_now = {"lost": (time.perf_counter() - self._since) / len(self._attempts)}
            try:
                self._store.heartbeat(
                    [
                        Beat(attempt.begun.attempt_id, attempt.begun.token, own[count:], lost_if_killed_now)
                        for attempt, own, count in zip(self._attempts, points, written, strict=True)
                    ]
                )
                written = [len(own) for own in points]
                if time.perf_counter() - self._since > LIVE_AFTER_SECONDS:
                    for attempt, own in zip(self._attempts, points, strict=True):
                        self._publish_live(attempt.trial, own)
            except Exception as error:  # whatever it is, the training goes on and the commit of its result decides
                self._observer.message(f"A heartbeat was not written: {error}")


def kind_of(config: StudyConfig, key: str) -> str:
    """Return what the trials of a way share with those that they may train together with."""
    return likeness(config.workload_choice(), config.training_plan_of(key))


def training_of(proposal: Proposal, plan: TrainingPlan) -> TrainingPlan:
    """Return `plan` with what the proposal has of its own."""
    return replace(plan, optimizer=proposal.optimizer or plan.optimizer, epochs=proposal.epochs or plan.epochs)


def with_batch_size(workload: Choice, batch_size: int | None) -> Choice:
    return workload if batch_size is None else Choice(workload.name, {**workload.settings, "batch_size": batch_size})


def _with_idle(result: TrialResult, before: float, idle_seconds: float) -> TrialResult:
    """Charge `idle_seconds`; those `before` the trial started are paid by the time of its first curve point.

    Points that an earlier attempt reached lie before this one began, and stay there.
    """
    phases = dict(result.phase_seconds)
    phases["idle"] = phases.get("idle", 0.0) + max(0.0, idle_seconds)
    curve = (
        replace(point, charged_device_seconds=before + point.charged_device_seconds)
        if point.charged_device_seconds >= 0
        else point
        for point in result.curve
    )
    return replace(result, phase_seconds=phases, curve=tuple(curve))


def _with_idle_after(trial: TrialRecord, idle_seconds: float) -> TrialRecord:
    """Charge its last attempt what came after its result was written."""
    *before, last = trial.attempts
    phases = {**last.phase_seconds, "idle": last.phase_seconds.get("idle", 0.0) + idle_seconds}
    return replace(trial, attempts=(*before, replace(last, phase_seconds=phases)))


def _finished(attempt: _Attempt, result: TrialResult, owner: str) -> TrialRecord:
    trial = attempt.trial
    record = AttemptRecord(
        number=len(trial.attempts) + 1,
        status="finished",
        owner=owner,
        started_at=attempt.started_at,
        finished_at=datetime.now(UTC),
        phase_seconds=result.phase_seconds,
        core_seconds=result.core_seconds,
        estimated=False,
        device=result.device,
        gang_size=result.gang_size,
        billed_phase_seconds=result.billed_phase_seconds,
    )
    return replace(trial, status=result.status, attempts=(*trial.attempts, record), result=result)


def _versions() -> dict[str, str]:
    packages = ("lrsearch", "torch", "torchvision", "optuna", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
