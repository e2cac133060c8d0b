"""The dashboard's view, read back by Optuna itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event

from lrsearch.errors import StorageError
from lrsearch.storage.optuna_mirror import OptunaMirror
from lrsearch.storage.store import End, Store
from lrsearch.trial import Proposal, ResultStatus, StudyRecord
from tests.storage.samples import (
    CONSTANT,
    CYCLE,
    FACTS,
    OWNER,
    RANGE_TEST,
    VERSIONS,
    begin,
    finish,
    held_study,
    points,
    range_test_result,
    result,
)


@pytest.fixture
def mirror(store: Store, url: str) -> Iterator[OptunaMirror]:
    mirror = OptunaMirror(url)
    yield mirror
    mirror.close()


def shown_trials(url: str, name: str = "digits/grid/0") -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(url)
    trials = optuna.load_study(study_name=name, storage=storage).get_trials()
    storage.remove_session()
    storage.engine.dispose()
    return trials


def _publish(mirror: OptunaMirror, store: Store) -> StudyRecord:
    record = store.record("digits")
    mirror.publish(record, record.trials)
    return record


def test_what_somebody_deletes_while_it_is_written_is_written_again(
    store: Store, mirror: OptunaMirror, url: str
) -> None:
    if store.sqlite_file is None:
        pytest.skip("PostgreSQL locks a study to which a trial is added")
    finish(store, begin(store, held_study(store)), metric=0.7)
    deleted: list[str] = []

    @event.listens_for(mirror._storage.engine, "before_cursor_execute")
    def meddle(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("INSERT INTO trials") and not deleted:
            deleted.append(statement)
            optuna.delete_study(study_name="digits/grid/0", storage=url)

    _publish(mirror, store)
    assert deleted
    assert [trial.value for trial in shown_trials(url)] == [0.7]


@pytest.mark.parametrize("begun_anew", [False, True])
def test_what_has_been_deleted_is_written_again_although_it_was_shown(
    store: Store, mirror: OptunaMirror, url: str, begun_anew: bool
) -> None:
    finish(store, begin(store, held_study(store)), metric=0.7)
    _publish(mirror, store)
    optuna.delete_study(study_name="digits/grid/0", storage=url)
    if begun_anew:
        optuna.create_study(study_name="another", storage=url)  # which SQLite may give the same number
        optuna.create_study(study_name="digits/grid/0", storage=url)
    _publish(mirror, store)
    assert [trial.value for trial in shown_trials(url)] == [0.7]


def test_optuna_finds_the_best_trial_of_each_search(store: Store, mirror: OptunaMirror, url: str) -> None:
    row = held_study(store)
    for metric in (0.7, 0.95, 0.8):
        finish(store, begin(store, row), metric=metric)
    finish(store, begin(store, row, strategy="clr", seed=1), metric=0.5)
    record = _publish(mirror, store)

    storage = optuna.storages.RDBStorage(url)
    study = optuna.load_study(study_name="digits/grid/0", storage=storage)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    best = study.best_trial
    assert (best.number, best.value, best.params) == (1, 0.95, {"learning_rate": 0.1})
    assert best.user_attrs["uuid"] == record.trials[1].uuid
    assert best.user_attrs["charged_device_seconds"] == pytest.approx(record.trials[1].charged_device_seconds)
    assert best.intermediate_values == {p.step: p.validation_metric for p in points()}
    assert sorted(optuna.get_all_study_names(storage)) == ["digits/clr/1", "digits/grid/0"]
    storage.remove_session()
    storage.engine.dispose()


def test_a_running_trial_shows_its_rate_and_its_curve_so_far(store: Store, mirror: OptunaMirror, url: str) -> None:
    row = held_study(store)
    begun = begin(store, row)
    record = store.record("digits")
    mirror.publish(record, record.trials)
    for count in (1, 2):
        mirror.publish(record, record.trials, live_points={begun.uuid: points()[:count]})
        [running] = shown_trials(url)
        assert running.state == TrialState.RUNNING
        assert running.params == {"learning_rate": 0.1}
        assert running.distributions["learning_rate"].to_external_repr(0.1) == 0.1
        assert running.intermediate_values == {p.step: p.validation_metric for p in points()[:count]}
    finish(store, begun)
    _publish(mirror, store)
    [done] = shown_trials(url)
    assert (done.state, done.value, len(done.intermediate_values)) == (TrialState.COMPLETE, 0.9, 3)
    assert done.user_attrs["status"] == "completed"


@pytest.mark.parametrize(("told", "values"), [(TrialState.COMPLETE, [0.123]), (TrialState.FAIL, None)])
@pytest.mark.parametrize("noticed", ["in the middle", "at the end", "by another process"])
def test_a_running_trial_that_somebody_ends_in_the_dashboard_gets_its_own_value(
    store: Store, mirror: OptunaMirror, url: str, told: TrialState, values: list[float] | None, noticed: str
) -> None:
    begun = begin(store, held_study(store))
    record = _publish(mirror, store)
    storage = optuna.storages.RDBStorage(url)
    [trial] = storage.get_all_trials(1)
    storage.set_trial_state_values(trial._trial_id, told, values)
    storage.remove_session()
    storage.engine.dispose()
    if noticed == "in the middle":
        mirror.publish(record, record.trials, live_points={begun.uuid: points()[:1]})
        assert [(one.state, one.value) for one in shown_trials(url)] == [(TrialState.RUNNING, None)]
    finish(store, begun)
    if noticed == "by another process":
        another = OptunaMirror(url)
        _publish(another, store)
        another.close()
    else:
        _publish(mirror, store)
    [done] = shown_trials(url)
    assert (done.state, done.value, len(done.intermediate_values)) == (TrialState.COMPLETE, 0.9, 3)
    assert done.user_attrs["status"] == "completed"


@pytest.mark.parametrize("seen_running", [True, False])
def test_each_way_to_end_has_its_word_in_optuna(
    store: Store, mirror: OptunaMirror, url: str, seen_running: bool
) -> None:
    row = held_study(store)
    expected: dict[ResultStatus, tuple[TrialState, float | None]] = {
        "completed": (TrialState.COMPLETE, 0.9),
        "diverged": (TrialState.COMPLETE, FACTS.chance),
        "pruned": (TrialState.PRUNED, None),
        "failed": (TrialState.FAIL, None),
    }
    for status in expected:
        begun = begin(store, row)
        if seen_running:
            _publish(mirror, store)
        done = replace(result(begun.uuid), status=status)
        store.finish_attempts([End(begun.attempt_id, begun.token, done, None)])
        _publish(mirror, store)
    trials = shown_trials(url)
    assert [(t.state, t.value) for t in trials] == list(expected.values())
    assert [t.user_attrs["status"] for t in trials] == list(expected)


def test_divergence_is_the_worst_where_chance_is_unknown(store: Store, mirror: OptunaMirror, url: str) -> None:
    row = held_study(store)
    store.set_facts(row.id, replace(FACTS, metric="error", higher_is_better=False, chance=None))
    finish(store, begin(store, row), "diverged", metric=0.0)
    finish(store, begin(store, row), metric=5.0)
    _publish(mirror, store)
    assert [t.value for t in shown_trials(url)] == [math.inf, 5.0]
    storage = optuna.storages.RDBStorage(url)
    assert optuna.load_study(study_name="digits/grid/0", storage=storage).best_value == 5.0
    storage.remove_session()
    storage.engine.dispose()


def test_rates_outside_of_the_studys_range_are_shown(store: Store, mirror: OptunaMirror, url: str) -> None:
    row = held_study(store)
    for rate in (0.1, 1e-7, 300.0):
        finish(store, begin(store, row, Proposal("train", CONSTANT.schedule, learning_rate=rate)))
    finish(store, begin(store, row, CYCLE))
    _publish(mirror, store)
    trials = shown_trials(url)
    assert [t.params["learning_rate"] for t in trials] == [0.1, 1e-7, 300.0, 0.3]
    assert trials[3].params == {"learning_rate": 0.3, "base_lr": 0.03, "max_lr": 0.6}
    assert trials[3].user_attrs["schedule"] == "triangular2"


def test_a_range_test_shows_its_curve_and_bounds_and_never_wins(store: Store, mirror: OptunaMirror, url: str) -> None:
    row = held_study(store)
    begun = begin(store, row, RANGE_TEST, "clr")
    verdict = {"status": "ok", "max_lr": 0.5, "base_lr": 0.05, "points": [1, 2], "gain": None}
    store.finish_attempts([End(begun.attempt_id, begun.token, range_test_result(begun.uuid), verdict)])
    record = store.record("digits")
    mirror.publish(record, record.trials)
    [trial] = shown_trials(url, "digits/clr/0")
    assert (trial.state, trial.params, trial.intermediate_values) == (TrialState.PRUNED, {}, {0: 0.1})
    assert {key: trial.user_attrs[key] for key in trial.user_attrs if key.startswith("range_test_")} == {
        "range_test_status": "ok",
        "range_test_max_lr": 0.5,
        "range_test_base_lr": 0.05,
    }


@pytest.mark.parametrize("other_process", [True, False])
def test_a_lost_and_repeated_trial_stays_one_trial(
    store: Store, mirror: OptunaMirror, url: str, other_process: bool
) -> None:
    row = held_study(store)
    begun = begin(store, row)
    record = store.record("digits")
    mirror.publish(record, record.trials, live_points={begun.uuid: points(1)})
    store.reconcile(row.id)
    after = OptunaMirror(url) if other_process else mirror
    _publish(after, store)
    assert [t.state for t in shown_trials(url)] == [TrialState.WAITING]
    again = store.begin_trials(row.id, [begun.uuid], owner=OWNER, versions=VERSIONS)[0]
    _publish(after, store)
    assert [t.state for t in shown_trials(url)] == [TrialState.RUNNING]
    finish(store, again)
    _publish(after, store)
    assert [(t.state, t.value) for t in shown_trials(url)] == [(TrialState.COMPLETE, 0.9)]
    after.close()


def test_publishing_again_changes_nothing(store: Store, mirror: OptunaMirror, url: str) -> None:
    row = held_study(store)
    for status in ("completed", "failed"):
        begun = begin(store, row)
        store.finish_attempts([End(begun.attempt_id, begun.token, replace(result(begun.uuid), status=status), None)])
    begin(store, row)
    _publish(mirror, store)
    before = shown_trials(url)
    _publish(mirror, store)
    fresh = OptunaMirror(url)
    _publish(fresh, store)
    fresh.close()
    assert shown_trials(url) == before


def test_a_second_version_has_studies_of_its_own(store: Store, mirror: OptunaMirror, url: str) -> None:
    finish(store, begin(store, held_study(store)), metric=0.7)
    _publish(mirror, store)
    finish(store, begin(store, held_study(store)), metric=0.8)
    _publish(mirror, store)
    assert [t.value for t in shown_trials(url)] == [0.7]
    assert [t.value for t in shown_trials(url, "digits@2/grid/0")] == [0.8]


def test_nothing_is_shown_before_the_metric_is_known(store: Store, mirror: OptunaMirror, url: str) -> None:
    row = held_study(store)
    begin(store, row)
    record = replace(store.record("digits"), facts=None)
    mirror.publish(record, record.trials)
    storage = optuna.storages.RDBStorage(url)
    assert optuna.get_all_study_names(storage) == []
    storage.remove_session()
    storage.engine.dispose()


def test_each_connection_of_the_mirror_is_durable(mirror: OptunaMirror) -> None:
    with mirror._storage.engine.connect() as one, mirror._storage.engine.connect() as two:
        for connection in (one, two):
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_optuna_says_nothing_on_its_own(store: Store, mirror: OptunaMirror, capfd: pytest.CaptureFixture[str]) -> None:
    finish(store, begin(store, held_study(store)))
    _publish(mirror, store)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("optuna").level == logging.WARNING


def test_a_mirror_that_cannot_be_written_says_which_file(store: Store, mirror: OptunaMirror, tmp_path: Path) -> None:
    finish(store, begin(store, held_study(store)))
    record = store.record("digits")
    with mirror._storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE trials")
    with pytest.raises(StorageError, match=r"lrsearch\.db refused: no such table: trials"):
        mirror.publish(record, record.trials)
