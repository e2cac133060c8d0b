"""The model that a search hands over."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.analysis import Tried, select
from lrsearch.analysis.select import incumbent
from lrsearch.errors import UsageError
from lrsearch.storage.export import export_rows
from lrsearch.trial import TrialRecord
from tests.records import PlainTrial, make_record, plain_record, some


def trials_of(*trials: PlainTrial) -> tuple[TrialRecord, ...]:
    return plain_record({"random": {0: trials}}).trials


def test_validation_chooses_even_where_test_would_choose_otherwise() -> None:
    trials = trials_of(PlainTrial(1, 0.8, 0.99), PlainTrial(1, 0.9, 0.70))
    assert some(incumbent(trials)).trial.number == 1


def test_the_earliest_wins_a_tie() -> None:
    assert some(incumbent(trials_of(PlainTrial(1, 0.9, 0.1), PlainTrial(1, 0.9, 0.2)))).trial.number == 0


def test_a_metric_that_should_be_low_is_chosen_low() -> None:
    assert some(incumbent(trials_of(PlainTrial(1, 0.2), PlainTrial(1, 0.1)), lower_is_better=True)).trial.number == 1


def test_a_diverged_or_failed_trial_is_never_chosen() -> None:
    trials = trials_of(PlainTrial(1, 0.99, status="diverged"), PlainTrial(1, 0.98, status="failed"), PlainTrial(1, 0.5))
    assert some(incumbent(trials)).trial.number == 2
    assert incumbent(trials[:2]) is None


@pytest.mark.parametrize(("best", "edge"), [(0, "low"), (1, None), (2, "high")])
def test_an_optimum_at_the_edge_of_what_was_tried_is_flagged(best: int, edge: str | None) -> None:
    trials = trials_of(*(PlainTrial(1, 0.9 if i == best else 0.5, rate=10.0 ** (i - 3)) for i in range(3)))
    assert some(incumbent(trials)).edge == edge


def test_a_diverged_neighbour_was_tried_so_the_optimum_below_it_is_inside() -> None:
    trials = trials_of(
        PlainTrial(1, 0.5, rate=0.01), PlainTrial(1, 0.9, rate=0.1), PlainTrial(1, status="diverged", rate=1.0)
    )
    assert some(incumbent(trials)).edge is None


def test_a_single_rate_has_no_edge() -> None:
    assert some(incumbent(trials_of(PlainTrial(1, 0.9)))).edge is None


GRID = (0.01, 0.1, 1.0)


def grid(*searches: tuple[float | None, float | None, float | None]) -> list[Tried]:
    """One search per triple of validation values; the test value is always 0.1 lower."""
    return [
        Tried(rate, value, None if value is None else value - 0.1, search)
        for search, values in enumerate(searches)
        for rate, value in zip(GRID, values, strict=True)
    ]


def test_every_search_hands_over_its_own_choice() -> None:
    selection = some(select(grid((0.5, 0.8, 0.7), (0.5, 0.6, 0.9))))
    assert [(choice.learning_rate, choice.edge) for choice in selection.choices] == [(0.1, None), (1.0, "high")]
    assert (selection.validation, selection.test) == pytest.approx((0.85, 0.75))
    assert selection.edge is None  # only one of two


def test_pooled_the_rate_with_the_best_mean_is_chosen() -> None:
    selection = some(select(grid((0.5, 0.8, 0.7), (0.5, 0.6, 0.9)), "pooled"))
    [choice] = selection.choices
    assert (choice.learning_rate, choice.edge, selection.edge) == (1.0, "high", "high")
    assert (selection.validation, selection.test) == pytest.approx((0.8, 0.7))


def test_pooled_a_rate_that_diverged_once_is_not_chosen_and_was_tried() -> None:
    [choice] = some(select(grid((0.5, 0.8, 0.99), (0.5, 0.6, None)), "pooled")).choices
    assert (choice.learning_rate, choice.edge) == (0.1, None)


def test_an_edge_that_most_searches_lie_at_is_the_selections() -> None:
    assert some(select(grid((0.9, 0.1, 0.1), (0.9, 0.1, 0.1), (0.1, 0.9, 0.1)))).edge == "low"


@given(st.lists(st.tuples(*[st.one_of(st.none(), st.floats(0, 1))] * 3), min_size=1, max_size=5), st.booleans())
def test_choosing_by_search_is_never_worse_on_validation_than_pooled(
    drawn: list[tuple[float | None, float | None, float | None]], lower: bool
) -> None:
    each = select(grid(*drawn), lower_is_better=lower)
    pooled = select(grid(*drawn), "pooled", lower_is_better=lower)
    if pooled is not None and each is not None and len(each.choices) == len(drawn):
        sign = -1 if lower else 1
        assert sign * each.validation >= sign * pooled.validation - 1e-12


def test_records_and_exported_rows_give_the_same() -> None:
    record = make_record(seeds=[0, 1])
    rows = [row for row in export_rows(record, "trials") if row["strategy"] == "grid"]
    from_rows = some(select(rows))
    from_record = some(select(trial for trial in record.trials if trial.strategy == "grid"))
    assert [c.learning_rate for c in from_rows.choices] == [c.learning_rate for c in from_record.choices]
    assert (from_rows.validation, from_rows.test) == (from_record.validation, from_record.test)


def test_nothing_to_choose_from_is_none_and_an_unknown_unit_is_refused() -> None:
    assert select([]) is None
    assert select([Tried(0.1, None), Tried(0.2, math.nan)]) is None
    with pytest.raises(UsageError, match="search or pooled"):
        select([], "trial")  # type: ignore[arg-type]  # the point of the test
