"""The report's numbers recomputed from the exported tables, and verdicts on studies with known answers."""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from dataclasses import replace

import pytest

from lrsearch.analysis import StudySummary, WaySummary, clr_way, power_of_costs, summarise
from lrsearch.analysis.strip import strip, strip_lines
from lrsearch.analysis.table import columns, row_cells
from lrsearch.analysis.target import OutcomeLike
from lrsearch.analysis.threats import threats
from lrsearch.trial import Choice, StudyRecord, TrialRecord, as_billed
from tests.records import CPU, GPU, SEVEN_WAYS, PlainTrial, make_record, mixed_devices, plain_record, some, unfinished
from tests.storage.test_export import exported

TARGET, PRICE = 0.95, 2.5


def grouped(rows: list[dict[str, str]], way: str) -> list[list[dict[str, str]]]:
    """The rows of each search of a way, one list per seed."""
    by_seed = defaultdict(list)
    for row in rows:
        if row["strategy"] == way:
            by_seed[row["seed"]].append(row)
    return list(by_seed.values())


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return make_record()


@pytest.fixture(scope="module")
def summary(record: StudyRecord) -> StudySummary:
    return summarise(record)


@pytest.fixture(scope="module", params=SEVEN_WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_charged_seconds_and_money_follow_from_the_csv(record: StudyRecord, summary: StudySummary, way: str) -> None:
    totals = [
        sum(float(row["charged_device_seconds"]) for row in rows) for rows in grouped(exported(record, "trials"), way)
    ]
    row = summary.way(way)
    assert some(row.charged).value == pytest.approx(statistics.fmean(totals))
    assert some(row.charged).sd == pytest.approx(statistics.stdev(totals))
    assert some(row.usd).value == pytest.approx(statistics.fmean(totals) / 3600 * PRICE)
    assert some(row.charged).count == 5


def chosen(rows: list[dict[str, str]]) -> dict[str, str]:
    models = [row for row in rows if row["stage"] == "train" and row["validation_metric"]]
    return max(models, key=lambda row: float(row["validation_metric"]))  # max takes the first of equals


def test_validation_and_test_values_follow_from_the_csv(record: StudyRecord, summary: StudySummary, way: str) -> None:
    best = [chosen(rows) for rows in grouped(exported(record, "trials"), way)]
    row = summary.way(way)
    assert some(row.validation).value == pytest.approx(
        statistics.fmean(float(one["validation_metric"]) for one in best)
    )
    assert some(row.test).value == pytest.approx(statistics.fmean(float(one["test_metric"]) for one in best))
    assert row.tests == pytest.approx([float(one["test_metric"]) for one in best])


def test_the_overhead_follows_from_the_csv(record: StudyRecord, summary: StudySummary) -> None:
    """grid's killed attempt is in a trial that was not chosen, so a trial's row is its only attempt's."""
    ratios = []
    for rows in grouped(exported(record, "trials"), "tpe"):
        total = sum(float(row["charged_device_seconds"]) for row in rows)
        ratios.append(total / float(chosen(rows)["charged_device_seconds"]))
    assert some(summary.way("tpe").overhead).value == pytest.approx(statistics.fmean(ratios))


def test_a_run_that_went_on_from_a_checkpoint_counts_whole_in_the_overhead(record: StudyRecord) -> None:
    whole = next(trial for trial in record.trials if trial.strategy == "clr" and trial.stage == "train")
    [attempt] = whole.attempts
    half = {phase: seconds / 2 for phase, seconds in attempt.phase_seconds.items()}
    killed = replace(attempt, status="lost", phase_seconds={**half, "lost": 3.0})
    resumed = replace(
        whole,
        attempts=(killed, replace(attempt, number=2, phase_seconds=half)),
        result=replace(some(whole.result), phase_seconds=half),
    )
    trials = [resumed if trial is whole else trial for trial in record.trials if trial.seed == whole.seed]
    study = replace(record, config={**record.config, "seeds": [whole.seed]}, trials=tuple(trials))
    total = sum(trial.charged_device_seconds for trial in trials if trial.strategy == "clr")
    found = some(summarise(study).way("clr").overhead).value
    assert found == pytest.approx(total / whole.charged_device_seconds)


def test_cost_to_target_follows_from_the_csv(record: StudyRecord, summary: StudySummary, way: str) -> None:
    attempts, curves = exported(record, "attempts"), exported(record, "curves")
    hits, spent = [], []
    for search in grouped(attempts, way):
        cost, found = 0.0, None
        for attempt in search:
            points = [p for p in curves if all(p[k] == attempt[k] for k in ("strategy", "seed", "trial", "attempt"))]
            for point in points:
                if found is None and point["validation_metric"] and float(point["validation_metric"]) >= TARGET:
                    found = cost + float(point["charged_device_seconds"])
            cost += float(attempt["charged_device_seconds"])
        hits.append(found)
        spent.append(cost if found is None else found)
    reached = [cost for cost in hits if cost is not None]
    row = summary.way(way)
    assert (some(row.reach).reached, some(row.reach).total) == (len(reached), len(hits))
    assert some(row.reach).expected_cost == (pytest.approx(sum(spent) / len(reached)) if reached else math.inf)
    assert some(row.reach).median_cost == pytest.approx(statistics.median(math.inf if c is None else c for c in hits))


def test_trials_are_counted_by_how_they_ended(record: StudyRecord, summary: StudySummary, way: str) -> None:
    rows = [row for row in exported(record, "trials") if row["strategy"] == way]
    for status in ("completed", "diverged", "failed", "pruned"):
        assert summary.way(way).trials[status] == sum(row["status"] == status for row in rows)


def test_the_record_has_what_makes_the_above_worth_asking(summary: StudySummary) -> None:
    assert some(summary.way("random").reach).reached == 4
    assert some(summary.way("default").reach).reached == 0
    assert sum(row.lost_attempts for row in summary.ways) == 1
    assert {"diverged", "failed", "pruned"} <= {s for row in summary.ways for s, count in row.trials.items() if count}


def test_every_cell_with_a_number_says_its_n_or_its_interval(summary: StudySummary) -> None:
    shown = columns(summary)
    for row in summary.ways:
        for column, cell in zip(shown, row_cells(shown, row), strict=True):
            if column.title == "Searches" or cell.text == "–":
                continue
            assert cell.notes, (row.key, column.title)
            assert any("n\u202f" in note or "%" in note for note in cell.notes), (row.key, column.title)


def search(cost: float, value: float, test: float) -> list[PlainTrial]:
    """A search of two trials, the second of which reaches `value`."""
    return [PlainTrial(cost / 2, 0.3, 0.3), PlainTrial(cost / 2, value, test)]


def study(clr: list[tuple[float, float, float]], rival: list[tuple[float, float, float]]) -> StudyRecord:
    """One search per (cost, validation, test), of the CLR run and of a random search."""
    ways = {"clr": clr, "random": rival}
    return plain_record({key: {s: search(*one) for s, one in enumerate(found)} for key, found in ways.items()})


COSTS = (10.0, 10.5, 9.5, 10.2, 9.8)
TESTS = (0.960, 0.962, 0.958, 0.961, 0.959)


def ways_of(factor: float = 1.0, better: float = 0.0) -> list[tuple[float, float, float]]:
    return [(cost * factor, 0.97, test + better) for cost, test in zip(COSTS, TESTS, strict=True)]


def test_identical_ways_come_out_not_distinguished() -> None:
    verdict = summarise(study(ways_of(), ways_of())).verdict
    assert verdict.grade == "not distinguished"
    assert "1.0×" in verdict.sentences[0]


def test_what_is_not_distinguished_says_how_many_more_seeds_would_tell() -> None:
    """Costs with 4 % spread: five seeds detect 1.3x already; with 30 % it takes about 17 more."""
    tight = summarise(study(ways_of(), ways_of())).verdict
    assert "5 seeds per way detect 1." in some(tight.power)
    spread = [(cost, 0.97, test) for cost, test in zip((6.0, 13.0, 10.0, 7.5, 13.5), TESTS, strict=True)]
    wide = some(summarise(study(spread, spread)).verdict.power)
    needed = power_of_costs([one[0] for one in spread], [one[0] for one in spread])
    assert f"about {needed.more} more seeds per way would detect 1.3× (80 % power)" in wide
    assert "5 seeds per way detect a difference of" in wide


def test_no_difference_is_named_that_no_accuracy_can_have() -> None:
    found = summarise(study([(10.0, 0.97, 0.9), (10.0, 0.97, 0.6)], [(10.0, 0.97, 0.9), (10.0, 0.97, 0.6)]))
    assert "2 seeds per way are too few to detect any difference" in some(found.verdict.power)


def test_a_single_further_seed_is_one_seed() -> None:
    costs = [(cost, 0.97, test) for cost, test in zip((8.9, 9.4, 10.0, 11.5), TESTS, strict=False)]
    assert power_of_costs([c for c, _, _ in costs], [c for c, _, _ in costs]).more == 1
    assert "about 1 more seed per way" in some(summarise(study(costs, costs)).verdict.power)


def test_what_is_shown_needs_no_more_seeds() -> None:
    assert summarise(study(ways_of(), ways_of(3.0, better=0.01))).verdict.power is None


def test_after_misses_the_note_counts_them_into_the_spread() -> None:
    some_miss = [(cost, 0.97 if i else 0.9, test) for i, (cost, _, test) in enumerate(ways_of())]
    verdict = summarise(study(some_miss, some_miss)).verdict
    outcomes: list[OutcomeLike] = [(COSTS[0], "exhausted"), *COSTS[1:]]
    needed = power_of_costs(outcomes, outcomes)
    assert needed.more > power_of_costs(COSTS, COSTS).more
    digits = f"{needed.more:.2g}"
    assert f"at the spread and the misses seen, about {int(float(digits))} more seeds per way" in some(verdict.power)


def test_where_one_way_never_arrives_the_note_counts_reach_rates() -> None:
    clr = ways_of()[:2]
    never = [(cost, 0.9, test) for cost, _, test in clr]
    verdict = summarise(study(clr, never)).verdict
    assert "about 2 more seeds per way would tell them apart" in some(verdict.power)  # 4 of 4 and 0 of 4 are apart


def test_no_interval_of_an_accuracy_passes_0_or_1_and_one_in_percent_is_not_cut() -> None:
    tests = [(10.0, 0.97, 0.99), (11.0, 0.96, 0.91)]
    row = summarise(study(tests, tests)).way("random")
    assert row.test is not None
    assert row.validation is not None
    assert (row.test.high, row.validation.high) == (1.0, 1.0)
    percent = [(cost, 100 * validation, 100 * test) for cost, validation, test in tests]
    row = summarise(study(percent, percent)).way("random")
    assert row.test is not None
    assert row.test.high == pytest.approx(95 + 12.706 * 4, rel=1e-3)


def test_seven_identical_ways_come_out_not_distinguished() -> None:
    same = {seed: search(*one) for seed, one in enumerate(ways_of())}
    assert summarise(plain_record(dict.fromkeys(("clr", *"abcdef"), same))).verdict.grade == "not distinguished"


def test_ways_that_differ_by_chance_alone_are_rarely_told_apart() -> None:
    """Costs with 9 % spread, two claims of 5 % error each: more than 15 % of 100 studies has a chance below 5 %."""
    generator = random.Random(7)

    def by_chance() -> list[tuple[float, float, float]]:
        return [(generator.gauss(10, 0.9), 0.97, generator.gauss(0.96, 0.003)) for _ in range(5)]

    grades = [summarise(study(by_chance(), by_chance())).verdict.grade for _ in range(100)]
    assert set(grades) <= {"not distinguished", "suggested", "shown"}
    assert grades.count("not distinguished") >= 85


def test_a_cost_three_times_lower_is_shown_with_its_ratio_and_counts() -> None:
    verdict = summarise(study(ways_of(), ways_of(3.0))).verdict
    assert verdict.grade == "shown"
    assert "costs less to the target" in verdict.headline
    assert "3.0× the CLR run's cost" in verdict.sentences[0]
    assert "5 of 5" in verdict.sentences[0]
    assert "not distinguished in test accuracy" in verdict.headline


def test_a_dearer_or_worse_clr_run_is_said_to_be_so() -> None:
    verdict = summarise(study(ways_of(3.0), ways_of(better=0.01))).verdict
    assert verdict.grade == "shown"
    assert "costs more" in verdict.headline
    assert "worse test accuracy" in verdict.headline


def test_cheaper_but_worse_says_both() -> None:
    verdict = summarise(study(ways_of(), ways_of(3.0, better=0.01))).verdict
    assert "costs less" in verdict.headline
    assert ", but has a worse test accuracy" in verdict.headline


def test_fewer_than_five_searches_suggest_at_most() -> None:
    assert summarise(study(ways_of()[:3], ways_of(3.0)[:3])).verdict.grade == "suggested"


@pytest.mark.parametrize(("searches", "grade"), [(5, "suggested"), (10, "shown")])
def test_where_a_search_missed_fewer_than_ten_suggest_at_most(searches: int, grade: str) -> None:
    clr, rival = (2 * ways_of(factor) for factor in (1.0, 5.0))
    rival[0] = (rival[0][0], 0.9, rival[0][2])
    verdict = summarise(study(clr[:searches], rival[:searches])).verdict
    assert verdict.sentences[0].endswith(f": {grade}.")
    assert f"{searches - 1} of {searches} searches" in verdict.sentences[0]


def test_one_search_per_way_shows_nothing_and_names_n() -> None:
    verdict = summarise(study(ways_of()[:1], ways_of(3.0)[:1])).verdict
    assert verdict.grade == "not shown"
    assert "n = 1" in verdict.headline


def test_an_unfinished_study_shows_nothing_and_says_how_far_it_is(record: StudyRecord) -> None:
    summary = summarise(unfinished(record, 60))
    assert summary.verdict.grade == "not shown"
    assert "unfinished" in summary.verdict.headline
    assert summary.way("grid").searches_done == 1
    assert summary.way("grid").searches_planned == 5


def test_a_study_without_a_range_test_or_without_a_rival_shows_nothing() -> None:
    for keys in (("grid", "random"), ("clr", "clr_linear")):
        summary = summarise(make_record({key: SEVEN_WAYS[key] for key in keys}))
        assert summary.verdict.grade == "not shown"


def test_a_study_that_has_just_been_created_has_rows_and_no_numbers(record: StudyRecord) -> None:
    empty = replace(record, trials=(), events=(), facts=None, finished=False)
    summary = summarise(empty)
    assert summary.verdict.grade == "not shown"
    assert all(row.charged is None and row.test is None and row.reach is None for row in summary.ways)


def test_when_no_rival_ever_reaches_the_target_the_reach_rates_decide() -> None:
    rival = [(cost, 0.9, test) for cost, _, test in ways_of()]
    summary = summarise(study(ways_of(), rival))
    assert some(summary.way("random").reach).reached == 0
    assert summary.verdict.grade == "shown"
    assert "never (0 of 5 searches)" in summary.verdict.sentences[0]
    assert "no finite ratio" in summary.verdict.sentences[0]


def test_when_nobody_reaches_the_target_nothing_is_shown() -> None:
    low = [(cost, 0.9, test) for cost, _, test in ways_of()]
    verdict = summarise(study(low, low)).verdict
    assert verdict.grade == "not shown"
    assert "did not reach the target" in verdict.headline


def test_a_ratio_that_is_not_there_says_whether_one_or_neither_reached_the_target() -> None:
    low = [(cost, 0.9, test) for cost, _, test in ways_of()]
    for rival, words in ((low, "neither reached it"), (ways_of(), "one never reached it")):
        summary = summarise(study(low, rival))
        [cell] = [one.cell(summary.way("random")) for one in columns(summary) if one.title == "Times CLR's cost"]
        assert cell.notes == (words,)


def test_one_way_with_one_seed_is_no_plural() -> None:
    facts = dict(strip_lines(strip(make_record({"grid": SEVEN_WAYS["grid"]}, seeds=[0]))))
    assert facts["Searches"] == "1 of 1 done, 1 way × 1 seed"


def test_a_search_without_a_model_still_costs() -> None:
    """Its range test gave no bounds, so it ended: exhausted, and paid for."""
    record = make_record(failures=False)
    trials = tuple(t for t in record.trials if not (t.strategy == "clr" and t.seed == 0 and t.stage == "train"))
    row = summarise(replace(record, trials=trials)).way("clr")
    assert (row.searches_done, row.models, some(row.charged).count, some(row.test).count) == (5, 4, 5, 4)
    assert some(row.reach).reached == 4
    assert some(row.reach).expected_cost > statistics.fmean(one.cost for one in row.outcomes if one.reached)


def test_without_a_target_whole_searches_are_compared() -> None:
    summary = summarise(make_record(target=None))
    grid, clr = summary.way("grid"), summary.way("clr")
    assert grid.reach is None
    assert some(grid.speed_up).value == pytest.approx(some(grid.charged).value / some(clr.charged).value)
    assert "whole search" in summary.verdict.sentences[0]


def test_processor_and_gpu_seconds_never_meet() -> None:
    half = mixed_devices()
    summary = summarise(half)
    assert len(summary.devices) == 2
    assert summary.verdict.grade == "not shown"
    assert all(no_costs(row) for row in summary.ways)
    assert any("cannot be compared" in threat for threat in threats(half, summary))


def no_costs(row: WaySummary) -> bool:
    costs = (row.bill, row.charged, row.usd, row.overhead, row.reach, row.speed_up)
    return all(cost is None for cost in costs) and row.outcomes == ()


def test_seconds_are_called_after_the_device() -> None:
    assert summarise(make_record(seeds=[0], device=CPU)).seconds == "processor seconds"
    assert summarise(make_record(seeds=[0], device=GPU)).seconds == "device seconds"


def test_the_seconds_of_an_earlier_attempt_count_before_its_trial_reaches_the_target() -> None:
    record = study(ways_of(), ways_of())
    first = record.trials[0]
    lost = replace(first.attempts[0], status="lost", phase_seconds={"lost": 100.0}, estimated=True, device=None)
    delayed = replace(first, attempts=(lost, replace(first.attempts[0], number=2)))
    summary = summarise(replace(record, trials=(delayed, *record.trials[1:])))
    assert summary.way("clr").outcomes[0].cost == pytest.approx(110.0)
    assert any("died unseen" in threat for threat in threats(record, summarise(record))) is False


def test_a_device_that_others_used_meanwhile_is_held_against_the_costs() -> None:
    record = study(ways_of(), ways_of())
    quiet = threats(record, summarise(record))
    slow = study([(80.0, 0.97, 0.96), *ways_of()[1:]], ways_of())
    disturbed = threats(slow, summarise(slow))
    assert not any("per training step" in threat for threat in quiet)
    told = "2 trials took up to 7.9× the median time per training step of trials like them: something held them up"
    assert any(threat.startswith(told) for threat in disturbed)
    unlike = replace(slow, trials=tuple(map(with_adagrad_if_slow, slow.trials)))
    assert not any("per training step" in threat for threat in threats(unlike, summarise(unlike))), "another step"


def with_adagrad_if_slow(trial: TrialRecord) -> TrialRecord:
    other = replace(trial.proposal, optimizer=Choice("adagrad"))
    return replace(trial, proposal=other) if trial.charged_device_seconds == 40.0 else trial


@pytest.mark.parametrize(("place", "lucky"), [(0, True), (1, False), (2, True)])
def test_what_a_grid_owes_to_the_order_of_its_points_is_held_against_its_cost(place: int, lucky: bool) -> None:
    """One good point of three, 10 s each: after 10, 20 or 30 s, 20 s on average over all orders."""
    points = [PlainTrial(10.0, 0.97 if number == place else 0.5, 0.96) for number in range(3)]
    record = plain_record({"grid": {0: points, 1: points}, "clr": {s: [PlainTrial(9.0, 0.97, 0.96)] for s in (0, 1)}})
    grid = {"name": "grid", "points": 3, "schedule": {"name": "constant"}}
    record = replace(record, config={**record.config, "strategies": {**record.config["strategies"], "grid": grid}})
    found = [threat for threat in threats(record, summarise(record)) if threat.startswith("grid reached the target")]
    assert len(found) == lucky
    assert all(f"after {10 * (place + 1)}.0 s" in threat and "the mean is 20.0 s" in threat for threat in found)


def test_a_target_that_a_run_reached_and_lost_again_is_held_against_its_cost() -> None:
    record = plain_record({key: {0: [PlainTrial(10.0, 0.97, 0.96)], 1: [PlainTrial(9.0, 0.97, 0.96)]} for key in "ab"})
    assert not any("met the target within a run" in threat for threat in threats(record, summarise(record)))
    first, *others = record.trials
    result = replace(some(first.result), validation_metric=0.9)
    worse = replace(record, trials=(replace(first, result=result), *others))
    [threat] = [one for one in threats(worse, summarise(worse)) if "met the target within a run" in one]
    assert f"(1 of 2 of {first.strategy})" in threat


def test_a_note_names_the_optimizer_of_a_way_that_has_its_own() -> None:
    record = study(ways_of(), ways_of())
    adam = {"name": "default_rate", "optimizer": {"name": "adam"}, "schedule": {"name": "constant"}}
    other = replace(
        record, config={**record.config, "strategies": {**record.config["strategies"], "adam_default": adam}}
    )
    assert any("with adam and schedule constant (adam_default)" in note for note in summarise(other).verdict.notes)


def told(record: StudyRecord, words: str) -> bool:
    return any(words in text for text in threats(record, summarise(record)))


def test_that_few_searches_carry_little_is_said_as_far_as_there_are_any() -> None:
    assert told(make_record(seeds=[0]), "1 search per way has no spread")
    assert told(make_record(seeds=[0, 1]), "2 searches per way: t intervals assume")
    assert not told(unfinished(make_record(seeds=[0]), 3), "per way")


def test_no_threat_names_a_target_or_a_choice_of_rivals_that_the_study_does_not_have(record: StudyRecord) -> None:
    assert told(record, "or target can turn")
    assert not told(make_record(target=None), "target can turn")
    assert told(record, "rival were picked")
    for study_without in (unfinished(record, 60), study(ways_of(), ways_of()), make_record(seeds=[0])):
        assert not told(study_without, "rival were picked")


def test_that_all_test_values_are_of_one_test_set_is_said(record: StudyRecord) -> None:
    assert any("one test set, 360 examples" in threat for threat in threats(record, summarise(record)))


def test_a_lower_is_better_metric_turns_everything_round() -> None:
    record = study([(c, 0.10, 0.10) for c in COSTS], [(c, 0.20, 0.2 + c / 1000) for c in COSTS])
    facts = replace(some(record.facts), metric="error", higher_is_better=False)
    config = {**record.config, "target": {"metric": "error", "value": 0.15}}
    summary = summarise(replace(record, facts=facts, config=config))
    assert (some(summary.way("clr").reach).reached, some(summary.way("random").reach).reached) == (5, 0)
    assert "better test error" in summary.verdict.headline


def with_given_bounds(record: StudyRecord, *keys: str) -> StudyRecord:
    given = {key: {**record.config["strategies"][key], "max_lr": 0.2} for key in keys}
    return replace(record, config={**record.config, "strategies": {**record.config["strategies"], **given}})


def test_a_way_whose_bounds_are_from_the_file_is_not_the_clr_run(record: StudyRecord) -> None:
    """Its range test is on no bill, so its cost proves nothing about finding a rate."""
    assert some(clr_way(record)).key == "clr"
    one = with_given_bounds(record, "clr")
    assert some(clr_way(one)).key == "clr_linear"
    assert summarise(one).way("clr").way.description == "range_tested with bounds from the file, triangular2 (cycles 2)"
    assert any(note.startswith("Bounds from the file") and "(clr)" in note for note in summarise(one).verdict.notes)
    both = with_given_bounds(record, "clr", "clr_linear")
    assert "no way of this study uses a range test" in summarise(both).verdict.headline


def test_trials_side_by_side_and_asynchronous_proposals_are_threats() -> None:
    record = make_record()
    executor = {"name": "process", "slots": 3, "asynchronous": True}
    crowded = replace(record, config={**record.config, "executor": executor})
    new = set(threats(crowded, summarise(crowded))) - set(threats(record, summarise(record)))
    assert {text.split()[0] for text in new} == {"3", "Searches"}


def test_nodes_of_a_cluster_are_a_threat() -> None:
    record = make_record()
    spread = replace(record, config={**record.config, "executor": {"name": "ray", "slots": 3}})
    [new] = set(threats(spread, summarise(spread))) - set(threats(record, summarise(record)))
    assert new.startswith("Trials ran on 3 slots of a Ray cluster: nodes may differ in speed")


def charged_by(record: StudyRecord, factor: float) -> StudyRecord:
    """Return the study with its CLR runs charged by steps that were timed before, so much slower than they were."""
    trials = []
    for trial in record.trials:
        if trial.strategy == "clr":
            [attempt] = trial.attempts
            charged = {phase: factor * spent for phase, spent in attempt.phase_seconds.items()}
            attempt = replace(attempt, phase_seconds=charged, billed_phase_seconds=attempt.phase_seconds)
            trial = replace(trial, attempts=(attempt,))
        trials.append(trial)
    return replace(record, trials=tuple(trials))


@pytest.mark.parametrize(("factor", "told"), [(1.0, None), (1.2, None), (0.8, None), (2.0, "0.50×"), (0.2, "5.0×")])
def test_a_machine_that_was_faster_or_slower_than_before_the_study_is_told(factor: float, told: str | None) -> None:
    record = charged_by(study(ways_of(), ways_of()), factor)
    found = [text for text in threats(record, summarise(record)) if text.startswith("Trials alone took")]
    assert [text.split(" what they are charged")[0] for text in found] == (
        [f"Trials alone took {told}"] if told else []
    )


def test_a_way_whose_trials_all_train_alone_has_two_bills_where_it_is_charged_by_what_was_timed() -> None:
    found = summarise(charged_by(study(ways_of(), ways_of()), 2.0))
    row = found.way("clr")
    assert some(row.billed).value == pytest.approx(some(row.charged).value / 2)
    assert all(way.billed is None for way in found.ways if way.key != "clr"), "what they took is what they are charged"


def test_range_tests_whose_price_fits_otherwise_than_that_of_training_runs_are_told() -> None:
    record = charged_by(make_record(failures=False), 1.0)
    trials = []
    for trial in record.trials:
        if trial.stage == "range_test" and trial.strategy == "clr":
            [attempt] = trial.attempts
            charged = {phase: 4 * spent for phase, spent in attempt.phase_seconds.items()}
            trial = replace(trial, attempts=(replace(attempt, phase_seconds=charged),))
        trials.append(trial)
    record = replace(record, trials=tuple(trials))
    [told] = [text for text in threats(record, summarise(record)) if "what they are charged" in text]
    assert told.startswith("Range tests alone took 0.25× what they are charged, training runs alone 1.0×: ")


def test_trials_that_are_billed_nothing_are_told_as_such() -> None:
    record = charged_by(study(ways_of(), ways_of()), 1.0)
    trials = tuple(
        replace(one, attempts=(replace(one.attempts[0], billed_phase_seconds={"train": 0.0}),))
        if one.strategy == "clr"
        else one
        for one in record.trials
    )
    record = replace(record, trials=trials)
    assert any(text.startswith("Trials alone took 0") for text in threats(record, summarise(record)))


def test_trials_that_were_held_up_are_told_by_what_they_took() -> None:
    record = charged_by(study(ways_of(), ways_of()), 0.9)
    slow = next(trial for trial in record.trials if trial.strategy == "clr" and trial.stage == "train")
    [attempt] = slow.attempts
    billed = {**some(attempt.billed_phase_seconds), "train": 10 * attempt.phase_seconds["train"]}
    trials = tuple(
        replace(one, attempts=(replace(attempt, billed_phase_seconds=billed),)) if one is slow else one
        for one in record.trials
    )
    record = replace(record, trials=trials)
    [held] = [text for text in threats(record, summarise(record)) if "median time per training step" in text]
    assert held.startswith("1 trial took 9.0× the median time")
    assert "what is billed carries that noise" in held


def test_a_way_whose_metrics_are_no_numbers_is_named() -> None:
    record = study(ways_of(), ways_of())
    trials = [
        replace(trial, result=replace(some(trial.result), validation_metric=None, curve=()))
        if trial.strategy == "random"
        else trial
        for trial in record.trials
    ]
    verdict = summarise(replace(record, trials=tuple(trials))).verdict
    assert verdict.grade == "not shown"
    assert "5 searches of random gave 0 models with a metric that is a number" in verdict.headline


def test_a_table_without_test_values_is_not_judged_and_says_so() -> None:
    record = study(ways_of(), ways_of(3.0))
    trials = [replace(trial, result=replace(some(trial.result), test_metric=None)) for trial in record.trials]
    verdict = summarise(replace(record, trials=tuple(trials))).verdict
    assert verdict.grade == "not shown"
    assert "the models of clr have 0 test values" in verdict.headline


def with_tests_that_took(record: StudyRecord, factor: float) -> StudyRecord:
    """Return the study with range tests that took `factor` times what they are charged, as timed before the study."""
    trials = []
    for trial in record.trials:
        if trial.strategy in ("clr", "clr_linear"):
            [attempt] = trial.attempts
            more = factor if trial.stage == "range_test" else 1.0
            taken = {phase: more * spent for phase, spent in as_billed(attempt.phase_seconds).items()}
            trial = replace(trial, attempts=(replace(attempt, billed_phase_seconds=taken),))
        trials.append(trial)
    return replace(record, trials=tuple(trials))


@pytest.mark.parametrize("factor", [1.0, 1.2, 2.0])
def test_a_verdict_holds_where_range_tests_took_little_beside_their_price(factor: float) -> None:
    verdict = summarise(with_tests_that_took(make_record(failures=False), factor)).verdict
    assert "costs less to the target" in verdict.headline
    assert verdict.sentences[0].endswith("3.5× the CLR run's cost (95 % interval 1.6× to 7.9×): suggested.")


@pytest.mark.parametrize("factor", [12.0, 60.0])
def test_a_verdict_that_hangs_on_the_price_of_range_tests_is_withheld(factor: float) -> None:
    """CLR's charge is 1.4 s, 0.33 s of them its test; that of its cheapest rival is 5."""
    record = with_tests_that_took(make_record(failures=False), factor)
    summary = summarise(record)
    tests = [trial for trial in record.trials if trial.strategy == "clr" and trial.stage == "range_test"]
    costs = [
        outcome.cost + test.billed_device_seconds - test.charged_device_seconds
        for outcome, test in zip(summary.way("clr").outcomes, tests, strict=True)
    ]
    assert [one.cost for one in summary.way("clr").repriced] == pytest.approx(costs)
    ratio = some(summary.way("grid_linear").reach).expected_cost / statistics.fmean(costs)
    assert f", {ratio:.2g}× with range tests at what they took beside" in summary.verdict.sentences[0].replace(
        "1.0×", "1×"
    )
    assert summary.verdict.sentences[0].endswith(": not distinguished.")
    assert summary.verdict.headline.startswith("Neither the cost to the target nor")
    assert "it hangs on what a range test costs beside a training run" in some(summary.verdict.power)


@pytest.mark.parametrize(("factor", "grade"), [(1.0, "shown"), (3.0, "suggested"), (4.0, "not distinguished")])
def test_a_verdict_is_no_firmer_than_with_range_tests_at_what_they_took(factor: float, grade: str) -> None:
    """Beside two rivals: the repriced interval leaves out 1 at 97.5 %, at 95 % alone, and not at all."""
    record = make_record({key: SEVEN_WAYS[key] for key in ("clr", "grid_linear", "random")}, failures=False)
    verdict = summarise(with_tests_that_took(record, factor)).verdict
    assert verdict.sentences[0].endswith(f": {grade}.")
    assert ("at what they took" in verdict.sentences[0]) == (grade != "shown")
    assert verdict.grade == grade


def diverged(count: int = 5) -> list[PlainTrial]:
    return [PlainTrial(2.0, status="diverged") for _ in range(count)]


@pytest.mark.parametrize("target", [0.95, None])
def test_a_way_whose_trials_all_diverged_is_named_and_the_others_are_compared(target: float | None) -> None:
    """Without a target it would be the cheapest: it diverged soon. With one it is known never to reach it."""
    by_way = {"clr": ways_of(), "random": ways_of(3.0)}
    searches = {key: {s: search(*one) for s, one in enumerate(found)} for key, found in by_way.items()}
    record = plain_record({**searches, "bad": {s: diverged() for s in range(5)}}, target=target)
    without = summarise(plain_record(searches, target=target)).verdict
    verdict = summarise(record).verdict
    assert verdict.grade == without.grade == "shown"
    what = "Not compared in test accuracy" if target else "Not compared"
    assert verdict.headline == f"{without.headline} {what}: bad."
    assert verdict.sentences[:-1] == without.sentences
    assert verdict.sentences[-1].startswith(f"{what}: 5 searches of bad gave 0 models with a metric that is a number")


def test_a_search_with_one_model_alone_may_be_the_cheapest_to_the_target() -> None:
    clr, rival = ({s: search(*one) for s, one in enumerate(ways_of(times))} for times in (1.0, 3.0))
    soon = {s: [PlainTrial(0.5, status="diverged")] if s else search(2.0, 0.97, 0.96) for s in range(5)}
    verdict = summarise(plain_record({"clr": clr, "random": rival, "soon": soon})).verdict
    assert "4.00 processor seconds (1 of 5 searches) with the cheapest search over rates, soon" in verdict.sentences[0]
    assert "costs less" not in verdict.headline
    assert verdict.headline.endswith(" Not compared in test accuracy: soon.")


def test_a_rival_with_one_search_is_named_and_one_alone_is_no_opponent() -> None:
    clr, rival = ({s: search(*one) for s, one in enumerate(found)} for found in (ways_of(), ways_of(3.0)))
    verdict = summarise(plain_record({"clr": clr, "random": rival, "one": {0: rival[0]}})).verdict
    assert verdict.grade == "shown"
    assert verdict.sentences[-1].startswith("Not compared: one has 1 search, which is no spread to judge by")
    alone = summarise(plain_record({"clr": clr, "one": {0: rival[0]}})).verdict
    assert (alone.grade, alone.sentences) == ("not shown", ())
    assert "one has 1 search" in alone.headline


def test_a_search_that_is_cheap_and_worth_nothing_is_not_called_the_cheapest_to_the_end() -> None:
    clr, rival = ({s: search(*one) for s, one in enumerate(found)} for found in (ways_of(), ways_of(3.0)))
    tiny = {s: search(0.5, 0.3, 0.3) for s in range(5)}
    lucky = {s: search(0.4, 0.97 if s == 0 else 0.3, 0.3) for s in range(5)}
    verdict = summarise(plain_record({"clr": clr, "random": rival, "tiny": tiny, "lucky": lucky})).verdict
    [whole] = [one for one in verdict.sentences if one.startswith("Run to the end")]
    assert "30.0 with the cheapest search over rates that reached the target each time, random (n = 5); 3.0×" in whole
    for others in ({"tiny": tiny}, {"tiny": tiny, "lucky": lucky}):
        found = summarise(plain_record({"clr": clr, **others})).verdict
        assert not any(one.startswith("Run to the end") for one in found.sentences)


def test_no_search_is_called_the_cheapest_where_none_reached_the_target() -> None:
    low = {s: search(cost, 0.9, 0.9) for s, (cost, _, _) in enumerate(ways_of())}
    clr = {s: search(*one) for s, one in enumerate(ways_of())}
    verdict = summarise(plain_record({"clr": clr, "a": low, "b": low})).verdict
    assert "never (0 of 5 searches) with any search over rates; no finite ratio" in verdict.sentences[0]
    assert verdict.headline.startswith("The CLR run (clr) reached the target, which no search over rates did, and")
    missed = summarise(plain_record({"clr": low, "a": clr})).verdict.headline
    assert missed.startswith("The CLR run (clr) did not reach the target, which the cheapest search over rates did")


@pytest.mark.parametrize("count", [2, 5])
def test_test_values_without_any_spread_show_nothing(count: int) -> None:
    """Two accuracies of a small test set are often the same; another search would have given another one."""
    clr = [(cost, 0.97, 0.9722) for cost in COSTS[:count]]
    rival = [(cost, 0.97, 0.9694) for cost in COSTS[:count]]
    verdict = summarise(study(clr, rival)).verdict
    assert verdict.grade == "not distinguished"
    assert "CLR +0.0028 (no spread to judge by: all searches of each way gave the same)" in verdict.sentences[-1]
    assert "0.0000" not in some(verdict.power)


def test_costs_that_differ_by_rounding_alone_are_not_told_apart() -> None:
    record = plain_record(
        {
            "clr": {s: [PlainTrial(0.1, 0.5, 0.5), PlainTrial(0.2, 0.97, 0.96)] for s in range(5)},
            "random": {s: [PlainTrial(0.3, 0.97, 0.96)] for s in range(5)},
        }
    )
    verdict = summarise(record).verdict
    assert verdict.grade == "not distinguished"
    assert verdict.power is None


def test_an_interval_that_leaves_out_no_difference_does_not_round_to_it() -> None:
    sentence = summarise(study(ways_of(), ways_of(0.945))).verdict.sentences[0]
    assert sentence.endswith("(95 % interval 0.89× to 0.999×): shown.")


def test_an_interval_without_any_end_is_no_interval_and_no_point() -> None:
    clr = [(cost, 0.97, test) for cost, test in zip(COSTS[:3], TESTS, strict=False)]
    rival = [(3 * cost, 0.97 if i else 0.9, test) for i, (cost, _, test) in enumerate(clr)]
    verdict = summarise(study(clr, rival)).verdict
    assert "the CLR run's cost (no interval): not distinguished." in verdict.sentences[0]
    assert "Cost not distinguished: at the spread and the misses seen" in some(verdict.power)


def test_seeds_that_a_table_lacks_are_no_searches_without_a_model() -> None:
    clr = {s: search(*one) for s, one in enumerate(ways_of())}
    record = plain_record({"clr": clr, "random": {s: clr[s] for s in (0, 1)}})
    row = summarise(record).way("random")
    assert (row.searches_done, row.searches_planned, row.models) == (2, 5, 2)
    [cell] = [one.cell(row) for one in columns(summarise(record)) if one.title == "Searches"]
    assert (cell.text, cell.notes) == ("2/5", ("4 trials",))
