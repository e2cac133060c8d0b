"""Ways that differ from the study's training, on real studies of scikit-learn's digits."""

from __future__ import annotations

import contextlib
from pathlib import Path

import optuna
import pytest

from lrsearch import training
from lrsearch.analysis import searches, summarise, ways
from lrsearch.analysis.confirm import confirmations_wanted, fresh_seeds
from lrsearch.analysis.threats import threats
from lrsearch.conductor import Budget
from lrsearch.config import load_study
from lrsearch.storage.export import export_rows
from lrsearch.storage.store import open_store
from lrsearch.study import forecast, run_study
from lrsearch.trial import Choice, StudyRecord, TrainingPlan, TrialRecord
from tests.test_study import Quiet, outcome

FILE = """
version: 1
name: ways
workload: {name: digits, model: mlp, batch_size: 64}
training: {epochs: 3, device: cpu, optimizer: {name: sgd, momentum: 0.9}}
seeds: [0, 1]
confirmation_seeds: 2
rates: {low: 1e-5, high: 10.0}
target: {metric: accuracy, value: 0.9}
strategies:
  once: {name: range_tested, test: once_per_study, repeats: 2, min_steps: 60}
  adam: {name: default_rate, optimizer: {name: adam, betas: [0.8, 0.99]}}
  long: {name: default_rate, epochs: 5}
  more: {name: optuna_search, trials: 3, startup_trials: 2, schedule: {name: triangular, cycles: 1},
         search: {momentum: {low: 0.5, high: 0.9}, batch_size: {choices: [32, 128]}, cycles: {low: 1, high: 2}}}
  halving: {name: successive_halving, trials: 6, epochs: 4, reduction_factor: 2}
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('ways') / 'ways.db'}"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ways") / "ways.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def record(url: str, file: Path) -> StudyRecord:
    with open_store(url) as store:
        return run_study(load_study(file), store, observer=Quiet(), mirror_url=url)


def test_one_range_test_serves_all_seeds_and_is_on_every_bill(record: StudyRecord, file: Path) -> None:
    first, second = searches(record, "once")
    assert [trial.stage for trial in first.trials] == ["range_test", "range_test", "train"]
    assert [trial.stage for trial in second.trials] == ["train"]
    assert second.shared == first.trials[:2]
    tests = sum(trial.charged_device_seconds for trial in second.shared)
    assert second.charged_device_seconds == pytest.approx(tests + second.trials[0].charged_device_seconds)
    assert second.evaluations()[0][0] > tests
    assert second.curve.costs[0] == pytest.approx(second.charged_device_seconds)
    a, b = (search.trials[-1].proposal for search in (first, second))
    assert (a.base_lr, a.max_lr) == (b.base_lr, b.max_lr)
    assert load_study(file).planned_trials()["once"] == 4 == len(first.trials) + len(second.trials)
    # The seconds that the way took are counted once.
    bill = summarise(record).way("once").bill
    assert bill is not None
    took = sum(t.charged_device_seconds for t in record.trials if t.strategy == "once")
    assert bill.charged_device_seconds == pytest.approx(took)
    assert any("go by one range test" in line for line in threats(record, summarise(record)))


def test_repeats_have_weights_and_data_of_their_own(record: StudyRecord) -> None:
    one, other = (trial.result for trial in record.search("once", 0)[:2])
    assert one is not None
    assert other is not None
    assert [point.learning_rate for point in one.range_test[:5]] == [p.learning_rate for p in other.range_test[:5]]
    assert [point.train_loss for point in one.range_test] != [point.train_loss for point in other.range_test]


def test_each_way_trains_with_its_own_optimizer_and_for_its_own_epochs(record: StudyRecord) -> None:
    rows = {(row["strategy"], row["seed"], row["trial"]): row for row in export_rows(record, "trials")}
    assert rows["adam", 0, 0]["optimizer"] == "adam"
    assert rows["adam", 0, 0]["optimizer_settings"]["betas"] == [0.8, 0.99]
    assert rows["long", 0, 0]["optimizer"] == "sgd"
    per_epoch = rows["adam", 0, 0]["train_steps"] / 3
    assert rows["long", 0, 0]["train_steps"] == 5 * per_epoch
    assert (rows["adam", 0, 0]["epochs"], rows["long", 0, 0]["epochs"]) == (3, 5)
    described = {way.key: way.description for way in ways(record)}
    assert described["adam"] == "default_rate, adam, constant"
    assert described["long"] == "default_rate (epochs 5.0), constant"
    assert described["once"] == "range_tested (repeats 2, test once per study), triangular2 (cycles 2)"
    assert described["more"].startswith(
        "optuna_search (trials 3, sampler tpe, searching learning_rate, momentum, batch_"
    )


def test_batch_size_and_cycles_are_searched_too(record: StudyRecord) -> None:
    for row in export_rows(record, "trials"):
        if row["strategy"] == "more":
            assert row["batch_size"] in (32, 128)
            steps = {32: 36, 128: 9}[row["batch_size"]]
            assert row["train_steps"] == pytest.approx(3 * steps, abs=4)  # whole cycles
            assert row["schedule_settings"]["cycles"] in (1, 2)


def test_the_dashboard_sees_what_is_searched(record: StudyRecord, url: str) -> None:
    study = optuna.load_study(study_name="ways/more/0", storage=url)
    for trial in study.trials:
        assert set(trial.params) == {"learning_rate", "momentum", "batch_size", "cycles"}
        assert 0.5 <= trial.params["momentum"] <= 0.9


def test_halving_stops_trials_at_rungs_and_charges_them(record: StudyRecord) -> None:
    for search in searches(record, "halving"):
        lengths = [len(trial.result.curve) for trial in search.trials if trial.result is not None]
        pruned = [trial for trial in search.trials if trial.status == "pruned"]
        assert pruned
        assert set(lengths) <= {1, 2, 4}
        assert all(trial.charged_device_seconds > 0 for trial in pruned)
        assert search.charged_device_seconds == pytest.approx(sum(t.charged_device_seconds for t in search.trials))


def test_what_was_chosen_is_trained_again_with_fresh_seeds_on_nobodys_bill(record: StudyRecord) -> None:
    fresh = fresh_seeds(record, 2)
    assert not set(fresh) & set(record.seeds)
    runs = [one for one in record.confirmations if one.strategy == "adam"]
    assert [one.proposal.confirmation_seed for one in runs] == fresh  # both searches chose the same: trained once
    assert not confirmations_wanted(record, 2)
    summary = summarise(record)
    for way in summary.ways:
        assert way.confirmed is not None
        tests = [one.result.test_metric for one in record.confirmations if one.strategy == way.key if one.result]
        assert min(t for t in tests if t is not None) <= way.confirmed.value <= max(t for t in tests if t is not None)
        assert way.confirmed.low is not None
        assert way.bill is not None
        billed = sum(t.charged_device_seconds for t in record.trials if t.strategy == way.key)
        assert way.bill.charged_device_seconds == pytest.approx(billed)
    rows = [row for row in export_rows(record, "trials") if row["stage"] == "confirm"]
    assert [row["confirmation_seed"] for row in rows] == [
        one.proposal.confirmation_seed for one in record.confirmations
    ]
    assert not any("not trained again" in line for line in threats(record, summary))


def test_more_confirmation_is_an_extension(record: StudyRecord, file: Path, url: str) -> None:
    more = load_study(file).model_copy(update={"confirmation_seeds": 3})
    with open_store(url) as store:
        extended = run_study(more, store, observer=Quiet(), extend=True)
    assert len([one for one in extended.confirmations if one.strategy == "adam"]) == 3
    assert outcome(extended) == outcome(record)


@pytest.mark.parametrize(
    ("first", "seeds"), [("[0]", "[5, 0, 7]"), ("[0]", "[5, 0]"), ("[0, 1]", "[1, 0]"), ("[0, 1]", "[1, 5, 0]")]
)
def test_one_range_test_serves_all_seeds_also_when_some_are_put_before_the_one_that_tested(
    tmp_path: Path, first: str, seeds: str
) -> None:
    file = tmp_path / "before.yaml"
    head = FILE.partition("confirmation_seeds")[0].replace("epochs: 3", "epochs: 1")
    way = "{once: {name: range_tested, test: once_per_study, min_steps: 40}}"
    with open_store(f"sqlite:///{tmp_path}/before.db") as store:
        for own in (first, seeds):
            file.write_text(f"{head.replace('[0, 1]', own)}rates: {{low: 1e-4, high: 10}}\nstrategies: {way}\n")
            record = run_study(load_study(file), store, observer=Quiet(), extend=True)
    assert len(record.trials) == load_study(file).planned_trials()["once"]
    [tested] = [search for search in searches(record, "once") if search.seed == 0]
    others = [search for search in searches(record, "once") if search.seed != 0]
    assert [trial.stage for trial in tested.trials] == ["range_test", "train"]
    assert tested.shared == ()
    for search in others:
        assert [trial.stage for trial in search.trials] == ["train"]
        assert search.shared == tested.trials[:1]
        assert search.trials[0].proposal.max_lr == tested.trials[1].proposal.max_lr


@pytest.mark.parametrize(("first", "second"), [("0|4", "5, 0|4"), ("0, 1|2", "0, 1|4")])
def test_what_a_budget_leaves_of_an_extended_study_is_not_done(tmp_path: Path, first: str, second: str) -> None:
    """Its searches are no longer begun one after the other."""
    file = tmp_path / "left.yaml"
    head = FILE.partition("confirmation_seeds")[0].replace("epochs: 3", "epochs: 1")

    class Stop(Quiet):
        def trial_finished(self, trial: TrialRecord) -> None:
            raise KeyboardInterrupt

    with open_store(f"sqlite:///{tmp_path}/left.db") as store:
        for part, watcher in ((first, Quiet()), (second, Stop())):
            seeds, trials = part.split("|")
            way = f"{{random: {{name: random_search, trials: {trials}}}}}"
            studied = head.replace("0, 1", seeds)
            file.write_text(f"{studied}rates: {{low: 1e-4, high: 10}}\nstrategies: {way}\n")
            with contextlib.suppress(KeyboardInterrupt):
                run_study(load_study(file), store, observer=watcher, extend=True)
        record = store.record("ways")
    begun = searches(record, "random")[0]
    assert 0 < len(begun.trials) < 4
    assert not begun.done


def test_a_search_that_had_ended_when_the_budget_stopped_the_study_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, watcher = tmp_path / "stopped.yaml", Quiet()
    monkeypatch.setattr(Budget, "allows", lambda budget, seconds: len(watcher.finished) < 2)
    head = FILE.partition("confirmation_seeds")[0] + "rates: {low: 1e-4, high: 10}\nbudget: {device_hours: 1}\n"
    file.write_text(head + "strategies: {one: {name: default_rate}, two: {name: random_search, trials: 2}}\n")
    with open_store(f"sqlite:///{tmp_path}/stopped.db") as store:
        record = run_study(load_study(file), store, observer=watcher)
    assert not record.finished
    assert [[search.done for search in searches(record, key)] for key in ("one", "two")] == [[True, False], [False] * 2]


@pytest.mark.parametrize("gangs", ["off", "auto"])
def test_more_trials_after_confirmation_are_those_of_a_study_that_began_with_them(tmp_path: Path, gangs: str) -> None:
    """Runs that confirm a choice take numbers of the search that made it, and are no trials of it."""
    head = FILE.partition("strategies:")[0].replace("epochs: 3", "epochs: 1") + f"gangs: {gangs}\nstrategies:\n"
    ways = "  {way}: {{name: {name}, trials: {trials}{more}}}\n"

    def ran(folder: str, *numbers: int) -> StudyRecord:
        with open_store(f"sqlite:///{tmp_path}/{folder}.db") as store:
            for trials in numbers:
                file = tmp_path / "more.yaml"
                file.write_text(
                    head
                    + ways.format(way="random", name="random_search", trials=trials, more="")
                    + ways.format(way="tpe", name="optuna_search", trials=trials, more=", startup_trials: 2")
                )
                record = run_study(load_study(file), store, observer=Quiet(), extend=True)
        return record

    extended, whole = ran("extended", 3, 6), ran("whole", 6)
    assert len(extended.trials) == len(whole.trials) == 2 * 2 * 6
    if gangs == "off":  # else equal up to rounding, which TPE goes by
        assert [trial.proposal for trial in extended.trials] == [trial.proposal for trial in whole.trials]


def test_a_study_cut_short_anywhere_ends_the_same(record: StudyRecord, file: Path, tmp_path: Path) -> None:
    class Stop(Quiet):
        def trial_finished(self, trial) -> None:  # type: ignore[no-untyped-def]
            super().trial_finished(trial)
            if len(self.finished) == 4:
                raise KeyboardInterrupt

    with open_store(f"sqlite:///{tmp_path / 'cut.db'}") as store:
        for _ in range(30):
            try:
                again = run_study(load_study(file), store, observer=Stop())
                break
            except KeyboardInterrupt:
                pass
    assert outcome(again) == outcome(record)
    assert not [one for one in again.confirmations if one.status != "completed"]
    values = {(one.strategy, one.proposal.confirmation_seed, one.seed): _test(one) for one in record.confirmations}
    assert {
        (one.strategy, one.proposal.confirmation_seed, one.seed): _test(one) for one in again.confirmations
    } == values


def test_a_confirmation_that_was_cut_short_goes_on_also_when_another_seed_s_search_now_stands_first(
    tmp_path: Path,
) -> None:
    """And chose the same, which is trained once."""

    class Stop(Quiet):
        def trial_started(self, trial: TrialRecord) -> None:
            if trial.is_confirmation:
                raise KeyboardInterrupt

    file, ways = tmp_path / "first.yaml", "rates: {low: 1e-4, high: 10}\nstrategies: {default: {name: default_rate}}\n"
    head = FILE.partition("strategies:")[0].replace("epochs: 3", "epochs: 1").partition("rates:")[0]
    with open_store(f"sqlite:///{tmp_path}/first.db") as store:
        for seeds, watcher in (("0", Stop()), ("5, 0", Quiet())):
            file.write_text(head.replace("0, 1", seeds) + ways)
            with contextlib.suppress(KeyboardInterrupt):
                record = run_study(load_study(file), store, observer=watcher, extend=True)
    assert [(one.seed, one.status, len(one.attempts)) for one in record.confirmations] == [
        (0, "completed", 2),
        (5, "completed", 1),
    ]


def _test(trial: TrialRecord) -> float | None:
    assert trial.result is not None
    return trial.result.test_metric


def test_a_forecast_counts_shared_tests_once(file: Path) -> None:
    assert forecast(load_study(file)).trials == {"once": 4, "adam": 2, "long": 2, "more": 6, "halving": 12}


def test_a_forecast_times_each_optimizer(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(workload: Choice, plan: TrainingPlan, seed: int) -> training.Probe:
        timed.append(plan.optimizer.name)
        return training.Probe(2.0 if plan.optimizer.name == "adam" else 1.0, 0.0, 0.0)

    timed: list[str] = []
    monkeypatch.setattr(training, "probe", probe)
    config = load_study(file)
    seconds = forecast(config).seconds
    assert timed == ["sgd", "adam"]
    assert seconds["adam"] / 3 == pytest.approx(2 * seconds["long"] / 5)


def test_an_optimizer_without_its_package_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrsearch.errors import MissingExtraError

    monkeypatch.setitem(__import__("sys").modules, "prodigyopt", None)
    path = tmp_path / "study.yaml"
    path.write_text(FILE + "  free: {name: default_rate, optimizer: {name: prodigy}}\n")
    with open_store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        with pytest.raises(MissingExtraError, match="prodigy"):
            run_study(load_study(path), store, observer=Quiet())
        assert not store.studies()
