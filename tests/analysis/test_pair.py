"""Two ways against each other: the numbers are those of the functions they come from."""

from __future__ import annotations

import pytest

from lrsearch.analysis import mean_difference, speed_up, summarise, wording
from lrsearch.analysis.pair import compare_ways
from lrsearch.errors import UnknownNameError, UsageError
from tests.records import PlainTrial, make_record, mixed_devices, plain_record


def test_every_number_stands_there_with_its_interval_and_n() -> None:
    record = make_record()
    lines = dict(compare_ways(record, "clr", "grid"))
    clr, grid = (summarise(record).way(key) for key in ("clr", "grid"))
    ratio, difference = speed_up(grid.outcomes, clr.outcomes), mean_difference(clr.tests, grid.tests)
    assert ratio.low is not None
    assert f"grid costs {wording.times(ratio.value)} as much as clr" in lines["cost to target"]
    assert wording.times(ratio.low) in lines["cost to target"]
    assert wording.metric(difference.value) in lines["test accuracy"]
    assert "n = 5 and 5" in lines["test accuracy"]
    assert "interval" in lines["P(improvement) in cost"]


def test_at_the_same_budget_each_way_has_what_it_then_had() -> None:
    searches = {
        "clr": {seed: [PlainTrial(2.0, 0.96, 0.95)] for seed in (0, 1)},
        "grid": {seed: [PlainTrial(1.5, 0.90, 0.89), PlainTrial(2.5, 0.97, 0.98)] for seed in (0, 1)},
    }
    lines = dict(compare_ways(plain_record(searches), "clr", "grid"))
    assert lines["for 2.00 s, a clr search"].startswith("clr test 0.9500 (2/2 with a model); grid test 0.8900")
    assert "grid test 0.9800" in lines["for 4.00 s, a grid search"]


def test_seconds_of_different_devices_are_not_averaged_into_a_budget() -> None:
    lines = dict(compare_ways(mixed_devices(), "clr", "grid"))
    assert lines["cost to target"].startswith("not comparable")
    assert not [what for what in lines if what.startswith("for ")]


def test_a_way_that_is_not_there_or_the_same_way_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'grid'"):
        compare_ways(make_record(seeds=[0]), "clr", "gird")
    with pytest.raises(UsageError, match="got 'clr' twice"):
        compare_ways(make_record(seeds=[0]), "clr", "clr")
