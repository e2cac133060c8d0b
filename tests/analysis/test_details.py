"""The numbers below the first table, recomputed by hand from studies whose answers are known."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from statistics import fmean

import pytest
from scipy.stats import spearmanr

from lrsearch.analysis import details, expected_best, searches, summarise
from lrsearch.trial import StudyRecord
from tests.records import SEVEN_WAYS, PlainTrial, make_record, mixed_devices, plain_record, some, unfinished


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return make_record()


def test_the_cross_table_puts_each_way_into_one_cell(record: StudyRecord) -> None:
    cells = {(cell.origin, cell.schedule): [row.key for row in cell.ways] for cell in details.cross_table(record)}
    assert cells == {
        ("grid", "constant"): ["grid"],
        ("random search", "constant"): ["random"],
        ("optuna search", "constant"): ["tpe"],
        ("range tested", "triangular2"): ["clr"],
        ("range tested", "linear_to_zero"): ["clr_linear"],
        ("grid", "linear_to_zero"): ["grid_linear"],
        ("default rate", "constant"): ["default"],
    }


def test_the_ladder_has_the_studys_own_target_and_ends_at_the_best_value_seen(record: StudyRecord) -> None:
    ladder = details.target_ladder(record)
    targets = [rung.target for rung in ladder["clr"]]
    assert 0.95 in targets
    assert targets == sorted(targets)
    values = [p.validation_metric for t in record.trials if t.result for p in t.result.curve if p.validation_metric]
    assert targets[-1] == pytest.approx(max(values))
    own = next(rung.reach for rung in ladder["random"] if rung.target == 0.95)
    assert own == summarise(record).way("random").reach
    for rungs in ladder.values():
        hits = [rung.reach.reached for rung in rungs]
        assert hits == sorted(hits, reverse=True)


def test_the_last_rung_is_the_best_value_itself_however_sums_are_rounded() -> None:
    """0.3 + (0.9 - 0.3) is more than 0.9: the way that has that would never have reached it."""
    record = plain_record({"clr": {0: [PlainTrial(1.0, 0.9, 0.9)]}}, target=None)
    assert record.facts is not None
    [*_, last] = details.target_ladder(replace(record, facts=replace(record.facts, chance=0.3)))["clr"]
    assert (last.target, last.reach.reached) == (0.9, 1)


def test_a_grids_orders_are_those_of_running_its_trials_in_every_order() -> None:
    """Five points, one of which reaches 0.95 at its only evaluation."""
    points = [PlainTrial(s, v, v) for s, v in ((3.0, 0.2), (2.0, 0.96), (4.0, 0.5), (1.0, 0.97), (5.0, 0.1))]
    record = plain_record({"grid": {0: points}, "clr": {0: [PlainTrial(1.0, 0.96, 0.9)]}})
    config = {**record.config, "strategies": {**record.config["strategies"], "grid": SEVEN_WAYS["grid"]}}
    [(seed, order)] = details.grid_orders(replace(record, config=config))["grid"]
    totals = []
    for permuted in permutations(points):
        first = next(i for i, trial in enumerate(permuted) if some(trial.validation) >= 0.95)
        totals.append(sum(trial.seconds for trial in permuted[: first + 1]))
    assert (seed, order.as_executed) == (0, 5.0)
    assert (order.expected, order.best, order.worst) == pytest.approx((fmean(totals), min(totals), max(totals)))


def test_the_expected_best_of_a_random_search_is_the_mean_over_its_searches(record: StudyRecord) -> None:
    means = details.random_best(record)["random"]
    curves = []
    for search in searches(record, "random"):
        values = [t.result.validation_metric if t.result and t.status == "completed" else None for t in search.trials]
        curves.append(expected_best(values, chance=0.102))
    assert [mean.value for mean in means] == pytest.approx([fmean(column) for column in zip(*curves, strict=True)])
    assert set(details.random_best(record)) == {"random"}  # neither TPE nor a grid


def test_budgets_are_multiples_of_what_the_clr_runs_dearest_search_cost(record: StudyRecord) -> None:
    budgets = details.budgets(record)
    cost = max(summarise(record).way("clr").charged_costs)
    assert [point.budget for point in budgets["grid"].points] == pytest.approx([cost, 2 * cost, 4 * cost, 8 * cost])
    last = budgets["clr"].points[0]
    assert last.value == pytest.approx(some(summarise(record).way("clr").test).value)
    assert last.finished == 5
    best = max(value for row in summarise(record).ways for value in row.tests)
    assert details.best_test_value(record) == best
    regret = some(budgets["grid"].regret)
    by_hand = []
    for search in searches(record, "grid"):
        steps = 20_000
        spots = [cost + (i + 0.5) * 7 * cost / steps for i in range(steps)]
        by_hand.append(fmean(best - (search.curve.at(spot) or 0.102) for spot in spots))
    assert regret.linear == pytest.approx(fmean(by_hand), abs=1e-4)


def test_the_early_clue_is_spearmans_between_the_epochs_named_and_the_end(record: StudyRecord) -> None:
    """15 epochs: 10 % is the second epoch (the first at or after 1.5), 50 % the eighth."""
    clues = details.early_clues(record)
    assert set(clues) == {"grid", "random", "tpe", "grid_linear"}
    found = []
    for search in searches(record, "random"):
        trials = [t for t in search.trials if t.status != "pruned"]
        early = [next((p.validation_metric for p in some(t.result).curve if p.epoch == 2.0), None) for t in trials]
        final = [some(t.result).validation_metric for t in trials]
        found.append(
            spearmanr([-1 if v is None else v for v in early], [-1 if v is None else v for v in final]).statistic
        )
    assert some(clues["random"][0].correlation).value == pytest.approx(fmean(found))


def test_the_premium_pools_the_trials_of_all_searches(record: StudyRecord) -> None:
    found = details.premiums(record)["random"]
    assert [one.decades for one in found] == [1.0, 3.0, 6.0]
    assert found[-1].trials == sum(len(search.trials) for search in searches(record, "random"))
    assert all(one.low < one.high for one in found)


def test_duels_mirror_each_other(record: StudyRecord) -> None:
    duels = details.duels(record)
    assert len(duels) == 7 * 6
    for (way, other), duel in duels.items():
        back = duels[other, way]
        assert some(duel.test).value == pytest.approx(1 - some(back.test).value)
        assert some(duel.cost).low == pytest.approx(1 - some(some(back.cost).high))
    assert some(duels["clr", "default"].cost).value == 1.0  # default never reached the target


def test_the_leaderboard_ranks_by_expected_cost_and_puts_never_last(record: StudyRecord) -> None:
    entries = details.leaderboard(record)
    assert [entry.expected for entry in entries] == sorted(entry.expected for entry in entries)
    assert (entries[-1].way, entries[-1].fastest, entries[-1].expected_usd) == ("default", math.inf, None)
    first = summarise(record).way(entries[0].way)
    assert entries[0].expected_usd == pytest.approx(some(first.reach).expected_cost / 3600 * 2.5)
    assert entries[0].fastest == min(outcome.cost for outcome in first.outcomes)


def test_a_metric_that_should_be_low_turns_ladder_clue_and_duels_round() -> None:
    record = plain_record(
        {
            "clr": {s: [PlainTrial(1.0, 0.10 + s / 100, 0.1)] for s in range(3)},
            "random": {
                s: [PlainTrial(1.0, v + s / 100, 0.2, rate=r) for v, r in ((0.5, 1e-3), (0.3, 0.1))] for s in range(3)
            },
        }
    )
    facts = replace(some(record.facts), metric="error", higher_is_better=False, chance=0.9)
    config = {**record.config, "target": {"metric": "error", "value": 0.35}}
    low = replace(record, facts=facts, config=config)
    targets = [rung.target for rung in details.target_ladder(low)["clr"]]
    assert targets == sorted(targets, reverse=True)
    assert targets[-1] == pytest.approx(0.10)
    assert some(details.duels(low)["clr", "random"].test).value == 1.0
    best = [mean.value for mean in details.random_best(low)["random"]]
    assert best == pytest.approx([0.41, 0.31])
    assert details.best_test_value(low) == 0.1
    assert [one.good for one in details.premiums(low)["random"]] == [3, 3, 3]


def test_nothing_is_said_of_studies_that_have_nothing_to_say() -> None:
    for record in (mixed_devices(), replace(make_record(), trials=(), facts=None, finished=False)):
        assert details.target_ladder(record) == {}
        assert details.grid_orders(record) == {}
        assert details.budgets(record) == {}
        assert details.premiums(record) == {}
        assert details.leaderboard(record) == []
    assert details.grid_orders(make_record(seeds=[0], target=None)) == {}


def test_unfinished_searches_do_not_count() -> None:
    record = unfinished(make_record(), 60)
    assert [seed for seed, _ in details.grid_orders(record)["grid"]] == [0]
