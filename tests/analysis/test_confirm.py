from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lrsearch.analysis import searches
from lrsearch.analysis.confirm import _half_width, confirmations_wanted, confirmed, fresh_seeds
from lrsearch.trial import StudyRecord, TrialRecord
from tests.records import make_record


def with_confirmations(record: StudyRecord, count: int, values: dict[tuple[str, int], float]) -> StudyRecord:
    """Return the record with every wanted run done; `values` by (way, fresh seed), else the trial's own test value."""
    record = replace(record, config={**record.config, "confirmation_seeds": count})
    runs = []
    for strategy, seed, proposal in confirmations_wanted(record, count):
        incumbent = next(one for one in searches(record, strategy) if one.seed == seed).incumbent
        assert incumbent is not None
        result = incumbent.trial.result
        assert result is not None
        assert proposal.confirmation_seed is not None
        value = values.get((strategy, proposal.confirmation_seed), result.test_metric)
        trial = replace(incumbent.trial, uuid=f"{strategy}/{seed}/{proposal.confirmation_seed}", proposal=proposal)
        runs.append(replace(trial, result=replace(result, test_metric=value)))
    return replace(record, confirmations=tuple(runs))


def test_each_setting_is_wanted_once_per_fresh_seed() -> None:
    record = make_record(failures=False)
    wanted = confirmations_wanted(record, 3)
    default = [proposal for strategy, _, proposal in wanted if strategy == "default"]
    assert [proposal.confirmation_seed for proposal in default] == fresh_seeds(record, 3)
    random = [proposal for strategy, _, proposal in wanted if strategy == "random"]
    assert len(random) == 3 * len(
        {search.incumbent.trial.proposal.learning_rate for search in searches(record, "random") if search.incumbent}
    )


def test_the_mean_goes_over_searches_and_seeds_and_its_interval_is_not_zero_for_one_setting() -> None:
    record = make_record(failures=False)
    first, second, third = fresh_seeds(record, 3)
    values = {("default", first): 0.90, ("default", second): 0.92, ("default", third): 0.94}
    found = confirmed(with_confirmations(record, 3, values), "default")
    assert found is not None
    assert found.value == pytest.approx(0.92)
    assert (found.searches, found.seeds, found.runs) == (5, 3, 3)
    # The t interval of three values: 4.303 x 0.02 / sqrt 3.
    assert found.low == pytest.approx(0.92 - 4.3027 * 0.02 / 3**0.5, abs=1e-5)
    assert found.high == pytest.approx(0.92 + 4.3027 * 0.02 / 3**0.5, abs=1e-5)


def test_a_run_that_is_missing_or_diverged_leaves_the_way_unconfirmed() -> None:
    record = with_confirmations(make_record(failures=False), 3, {})
    assert confirmed(record, "clr") is not None
    fewer = [one for one in record.confirmations if one.strategy == "clr"][1:]
    assert confirmed(replace(record, confirmations=tuple(fewer)), "clr") is None

    def diverged(run: TrialRecord) -> TrialRecord:
        return replace(run, status="diverged")

    worse = tuple(diverged(one) if index == 0 else one for index, one in enumerate(record.confirmations))
    assert confirmed(replace(record, confirmations=worse), worse[0].strategy) is None
    assert confirmed(make_record(), "clr") is None


def test_one_fresh_seed_gives_no_interval() -> None:
    found = confirmed(with_confirmations(make_record(failures=False), 1, {}), "clr")
    assert found is not None
    assert found.low is None
    assert found.high is None


@pytest.mark.parametrize(
    ("between", "seeds", "noise"), [(1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.3), (0.0, 0.0, 1.0)]
)
def test_the_interval_covers_at_least_as_often_as_it_says(between: float, seeds: float, noise: float) -> None:
    """Crossed random effects, 5 searches x 3 seeds, 2,000 draws: the standard error of a coverage of 0.95 is 0.005."""
    generator = np.random.default_rng(0)
    hits, draws = 0, 2000
    for _ in range(draws):
        table = between * generator.normal(size=(5, 1)) + seeds * generator.normal(size=(1, 3))
        table = table + noise * generator.normal(size=(5, 3))
        half = _half_width(list(table.mean(axis=1)), list(table.mean(axis=0)))
        assert half is not None
        hits += abs(table.mean()) <= half
    assert hits / draws > 0.93
