"""The dashboard's view: the ledger's trials as Optuna studies, one per strategy and seed, in the same database.

Joined by the trial's UUID in a user attribute. The ledger is committed first; what is missing here is written the next
time. This file alone of storage/ imports Optuna, whose import takes a while.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from lrsearch.errors import StorageError
from lrsearch.storage.engine import (
    connect_args,
    display_url,
    optuna_url,
    parse_url,
    patiently,
    set_pragmas,
    set_timeouts,
    sqlite_path,
    translated,
)
from lrsearch.strategies.space import Searched, dimension, value_in
from lrsearch.trial import FINISHED_STATUSES, Choice, CurvePoint, StudyRecord, TrialRecord, WorkloadFacts

UUID = "uuid"
"""The user attribute that says which trial of the ledger an Optuna trial shows."""
STATUS = "status"
"""The user attribute that each trial has which ended in the ledger."""
RANGE_TEST_VALUES = 25
"""Optuna takes 0.4 ms to store a value, on the bill of the way whose trial it is: all 100 would cost 40 ms."""


@dataclass
class _Shown:
    """What Optuna's tables hold of one trial."""

    trial_id: int
    state: TrialState
    steps: set[int] = field(default_factory=set)


@dataclass
class _Study:
    id: int
    trials: dict[str, _Shown]


class OptunaMirror:
    """Writes trials to Optuna's tables at `url`. Call it outside our own transactions, from one thread at a time."""

    def __init__(self, url: str) -> None:
        """Open or create Optuna's tables. A database that is away later on is waited for."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._url = parse_url(url)
        self._is_sqlite = sqlite_path(self._url) is not None
        self._storage = _persistently(self._open)
        self._studies: dict[str, _Study] = {}

    def _open(self) -> RDBStorage:
        arguments, set_up = connect_args(self._url), set_pragmas if self._is_sqlite else set_timeouts
        engine_kwargs: dict[str, Any] = {"connect_args": arguments, "pool_pre_ping": not self._is_sqlite}
        engine_kwargs["pool_events"] = [(set_up, "connect")]  # the constructor connects before anybody else can listen
        if self._is_sqlite:
            # Optuna reads before it writes in a transaction; IMMEDIATE makes it wait for the lock instead of failing.
            arguments["isolation_level"] = "IMMEDIATE"
        with self._translated():
            try:
                storage = RDBStorage(optuna_url(self._url), engine_kwargs=engine_kwargs)
            except RuntimeError as error:  # Optuna's tables are of another of its versions; the message says what to do
                raise StorageError(f"{display_url(self._url)}: {error}") from error
        # Optuna asks for each value of a trial whether it is there before it adds it; no answer needs those just added.
        storage.remove_session()
        storage.scoped_session.configure(autoflush=False)
        return storage

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def publish(
        self,
        record: StudyRecord,
        trials: Sequence[TrialRecord],
        live_points: Mapping[str, Sequence[CurvePoint]] | None = None,
    ) -> None:
        """Bring Optuna's tables in step with `trials`; what is there already is skipped.

        Of `record` only name, version, config and facts are read; nothing is written while the facts are not known.
        `live_points` (by UUID) are the curves so far of running trials. Raises StorageError.
        """
        facts = record.facts
        if facts is None:
            return

        def show() -> None:
            for name in {study_name(record, trial.strategy, trial.seed) for trial in trials} & self._studies.keys():
                if not self._is_there(name, self._studies[name].id):
                    del self._studies[name]
            for trial in trials:
                self._show(_View(record, trial, (live_points or {}).get(trial.uuid, ())), facts)

        def work() -> None:
            try:
                try:
                    show()
                # Somebody has deleted a study in the dashboard, maybe just now, or ended a trial that still runs.
                except (KeyError, IntegrityError, optuna.exceptions.UpdateFinishedTrialError):
                    self._studies.clear()
                    show()
            except (optuna.exceptions.OptunaError, SQLAlchemyError) as error:
                self._studies.clear()  # what the tables hold now is not known
                cause = _database_error(error)
                if cause is None or cause is error:
                    raise
                raise cause from None

        with self._translated():
            patiently(work, self._url)

    def _show(self, view: _View, facts: WorkloadFacts) -> None:
        trial = view.trial
        study = self._study(study_name(view.record, trial.strategy, trial.seed), facts)
        shown = study.trials.get(trial.uuid)
        if shown is None and view.state != TrialState.WAITING:
            study.trials[trial.uuid] = self._create(study.id, view)
        elif shown is not None and not shown.state.is_finished():
            self._update(shown, view)

    def _is_there(self, name: str, study_id: int) -> bool:
        """Whether nobody has deleted that study in the dashboard; asked without one more COMMIT."""
        with self._storage.engine.connect() as connection:
            found = connection.execute(text("SELECT study_id FROM studies WHERE study_name = :name"), {"name": name})
            return bool(found.scalar() == study_id)

    def _study(self, name: str, facts: WorkloadFacts) -> _Study:
        if name not in self._studies:
            direction = StudyDirection.MAXIMIZE if facts.higher_is_better else StudyDirection.MINIMIZE
            try:
                study_id = self._storage.create_new_study([direction], name)
                self._storage.set_study_user_attr(study_id, "metric", facts.metric)
            except optuna.exceptions.DuplicatedStudyError:
                study_id = self._storage.get_study_id_from_name(name)
            self._studies[name] = _Study(study_id, self._shown(study_id))
        return self._studies[name]

    def _shown(self, study_id: int) -> dict[str, _Shown]:
        shown = {
            trial.user_attrs[UUID]: (_Shown(trial._trial_id, trial.state, set(trial.intermediate_values)), trial)
            for trial in self._storage.get_all_trials(study_id, deepcopy=False)
            if UUID in trial.user_attrs
        }
        for one, trial in shown.values():
            if one.state.is_finished() and STATUS not in trial.user_attrs:  # by somebody else: we write that first
                self._reopen(one)
        return {uuid: one for uuid, (one, _) in shown.items()}

    def _reopen(self, shown: _Shown) -> None:
        """Take back the end and the value that a trial was given in the dashboard; Optuna has no call for that."""
        with self._storage.engine.begin() as connection:
            trial = {"trial": shown.trial_id}
            connection.execute(text("DELETE FROM trial_values WHERE trial_id = :trial"), trial)
            again = "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE trial_id = :trial"
            connection.execute(text(again), trial)
        shown.state = TrialState.RUNNING

    def _create(self, study_id: int, view: _View) -> _Shown:
        trial_id = self._storage.create_new_trial(study_id, view.frozen())
        return _Shown(trial_id, view.state, set(view.intermediate_values))

    def _update(self, shown: _Shown, view: _View) -> None:
        """Write what a trial that Optuna has as running, or waiting to run again, has gained."""
        for step, value in view.intermediate_values.items():
            if step not in shown.steps:
                self._storage.set_trial_intermediate_value(shown.trial_id, step, value)
                shown.steps.add(step)
        if view.state == shown.state:
            return
        if view.state.is_finished():
            for key, value in view.result_attributes.items():
                self._storage.set_trial_user_attr(shown.trial_id, key, value)
        values = None if view.value is None else [view.value]
        self._storage.set_trial_state_values(shown.trial_id, view.state, values)
        shown.state = view.state

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (optuna.exceptions.OptunaError, SQLAlchemyError) as error:
            cause = _database_error(error)
            if cause is not None:
                raise translated(cause, self._url) from error
            raise StorageError(f"The dashboard's tables in {display_url(self._url)} cannot be used: {error}") from error


def _database_error(error: Exception) -> DBAPIError | None:
    """Return the driver's error that Optuna's is about."""
    cause = error if isinstance(error, DBAPIError) else error.__cause__ or error.__context__
    return cause if isinstance(cause, DBAPIError) else None


def study_name(record: StudyRecord, strategy: str, seed: int) -> str:
    """Return "study/strategy/seed", from the second version on "study@2/strategy/seed"."""
    version = "" if record.version == 1 else f"@{record.version}"
    return f"{record.name}{version}/{strategy}/{seed}"


def _persistently(open_storage: Callable[[], RDBStorage]) -> RDBStorage:
    """Open the storage; again when another process was creating Optuna's tables at the same moment."""
    for pause in (0.1, 0.5, 2.0):
        try:
            return open_storage()
        except StorageError:
            time.sleep(pause)
    return open_storage()


@dataclass(frozen=True)
class _View:
    """A trial of the ledger in Optuna's words."""

    record: StudyRecord
    trial: TrialRecord
    live_points: Sequence[CurvePoint]

    @property
    def state(self) -> TrialState:
        if self.trial.status == "planned":
            return TrialState.WAITING
        if self.trial.status == "running":
            return TrialState.RUNNING
        if self.trial.status == "failed":
            return TrialState.FAIL
        pruned = self.trial.status == "pruned" or self.trial.stage == "range_test"
        return TrialState.PRUNED if pruned else TrialState.COMPLETE

    @property
    def value(self) -> float | None:
        """The validation metric; of a trial that diverged chance, or the worst possible where chance is unknown."""
        if self.state != TrialState.COMPLETE or self.trial.result is None or self.record.facts is None:
            return None
        metric = self.trial.result.validation_metric
        if self.trial.status == "completed" and metric is not None:
            return float(metric)
        facts = self.record.facts
        if facts.chance is not None:
            return float(facts.chance)
        return -math.inf if facts.higher_is_better else math.inf

    @property
    def intermediate_values(self) -> dict[int, float]:
        """The validation metric by optimiser step; of a range test, about RANGE_TEST_VALUES of its evaluations."""
        result = self.trial.result
        curve = result.curve if result is not None else self.live_points
        evaluated = [point for point in (result.range_test if result else ()) if point.validation_metric is not None]
        shown = evaluated[:: max(1, math.ceil(len(evaluated) / RANGE_TEST_VALUES))]
        values = [(point.step, point.validation_metric) for point in curve]
        values += [(point.step, point.validation_metric) for point in shown]
        return {step: float(value) for step, value in values if value is not None}

    @property
    def rates(self) -> dict[str, float]:
        proposal = self.trial.proposal
        rates = {"learning_rate": proposal.learning_rate, "base_lr": proposal.base_lr, "max_lr": proposal.max_lr}
        return {name: float(rate) for name, rate in rates.items() if rate is not None and rate > 0}

    def distribution(self, rate: float) -> BaseDistribution:
        """The study's range of rates, widened for one that a range test or an optimizer's default put outside."""
        given = self.record.config["rates"]
        return FloatDistribution(min(float(given["low"]), rate), max(float(given["high"]), rate), log=True)

    @property
    def searched(self) -> dict[str, tuple[Any, BaseDistribution]]:
        """What the way searches beside the rate: value and distribution by name."""
        optimizer = self.trial.proposal.optimizer or Choice("", self.record.config["training"]["optimizer"])
        given: Mapping[str, Any] = self.record.config["strategies"][self.trial.strategy].get("search") or {}
        found = {}
        for name, settings in given.items():
            value = value_in(self.trial.proposal, name)
            if value is not None:
                found[name] = (value, dimension(optimizer, name, Searched.model_validate(settings)).distribution())
        return found

    @property
    def attributes(self) -> dict[str, Any]:
        """What is known before the trial has run."""
        proposal = self.trial.proposal
        known = {
            "schedule": proposal.schedule.name if proposal.schedule else None,
            "model_guided": proposal.model_guided,
            "optimizer": proposal.optimizer.name if proposal.optimizer else None,
            "epochs": proposal.epochs,
        }
        return {
            UUID: self.trial.uuid,
            "trial": self.trial.number,
            "stage": self.trial.stage,
            **{key: value for key, value in known.items() if value is not None},
        }

    @property
    def result_attributes(self) -> dict[str, Any]:
        """What is known when it has: status, cost, and the bounds that a range test found. No test value."""
        result = self.trial.result
        if result is None:
            return {}
        verdict = {f"range_test_{key}": value for key, value in (self.trial.verdict or {}).items() if _is_plain(value)}
        error = {} if result.error is None else {"error": result.error}
        cost = {"charged_device_seconds": float(self.trial.charged_device_seconds)}
        return {STATUS: self.trial.status, **cost, **verdict, **error}

    def frozen(self) -> FrozenTrial:
        searched = self.searched
        attempts = self.trial.attempts
        finished = attempts[-1].finished_at if attempts and self.trial.status in FINISHED_STATUSES else None
        return FrozenTrial(
            number=-1,  # Optuna counts
            trial_id=-1,
            state=self.state,
            value=self.value,
            datetime_start=_local(attempts[0].started_at) if attempts else datetime.now(),  # noqa: DTZ005  Optuna's
            datetime_complete=_local(finished) if finished else None,
            params={**self.rates, **{name: value for name, (value, _) in searched.items()}},
            distributions={
                **{name: self.distribution(rate) for name, rate in self.rates.items()},
                **{name: distribution for name, (_, distribution) in searched.items()},
            },
            user_attrs=self.attributes | self.result_attributes,
            system_attrs={},
            intermediate_values=self.intermediate_values,
        )


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _local(at: datetime) -> datetime:
    """Return the time as Optuna keeps it: local, without a zone."""
    return at.astimezone().replace(tzinfo=None)
