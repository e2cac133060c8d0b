"""The model that a search hands over."""

import pytest

from lrsearch.analysis import select
from lrsearch.trial import TrialRecord
from tests.records import PlainTrial, plain_record, some


def trials_of(*trials: PlainTrial) -> tuple[TrialRecord, ...]:
    return plain_record({"random": {0: trials}}).trials


def test_validation_chooses_even_where_test_would_choose_otherwise() -> None:
    trials = trials_of(PlainTrial(1, 0.8, 0.99), PlainTrial(1, 0.9, 0.70))
    assert some(select(trials)).trial.number == 1


def test_the_earliest_wins_a_tie() -> None:
    assert some(select(trials_of(PlainTrial(1, 0.9, 0.1), PlainTrial(1, 0.9, 0.2)))).trial.number == 0


def test_a_metric_that_should_be_low_is_chosen_low() -> None:
    assert some(select(trials_of(PlainTrial(1, 0.2), PlainTrial(1, 0.1)), higher_is_better=False)).trial.number == 1


def test_a_diverged_or_failed_trial_is_never_chosen() -> None:
    trials = trials_of(PlainTrial(1, 0.99, status="diverged"), PlainTrial(1, 0.98, status="failed"), PlainTrial(1, 0.5))
    assert some(select(trials)).trial.number == 2
    assert select(trials[:2]) is None


@pytest.mark.parametrize(("best", "edge"), [(0, "low"), (1, None), (2, "high")])
def test_an_optimum_at_the_edge_of_what_was_tried_is_flagged(best: int, edge: str | None) -> None:
    trials = trials_of(*(PlainTrial(1, 0.9 if i == best else 0.5, rate=10.0 ** (i - 3)) for i in range(3)))
    assert some(select(trials)).edge == edge


def test_a_diverged_neighbour_was_tried_so_the_optimum_below_it_is_inside() -> None:
    trials = trials_of(
        PlainTrial(1, 0.5, rate=0.01), PlainTrial(1, 0.9, rate=0.1), PlainTrial(1, status="diverged", rate=1.0)
    )
    assert some(select(trials)).edge is None


def test_a_single_rate_has_no_edge() -> None:
    assert some(select(trials_of(PlainTrial(1, 0.9)))).edge is None
