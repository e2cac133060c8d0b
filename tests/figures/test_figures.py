"""Every figure on every kind of study, and what each of them says."""

from __future__ import annotations

import doctest
import math
import re
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest

from lrsearch.analysis import bill, searches, summarise, wording
from lrsearch.analysis.details import grid_orders, target_ladder
from lrsearch.figures import FIGURES, _style, accuracy_versus_cost, cost_by_phase, schedules, value_versus_rate
from lrsearch.figures import grid_orders as grid_orders_figure
from lrsearch.figures import range_test as range_test_figure
from lrsearch.range_test import judge, suggestions_from_training_losses
from lrsearch.trial import Choice, StudyRecord, TrialRecord, TrialResult
from tests.records import SEVEN_WAYS, PlainTrial, make_record, mixed_devices, plain_record, some, unfinished

MARKUP = '<b>bold</b> %{x} <a href="https://example.org">a</a>'


STUDIES = {
    "whole": make_record(),
    "unfinished": unfinished(make_record(), 60),
    "one seed": make_record(seeds=[3]),
    "no target, no price": make_record(seeds=[0, 1], target=None, usd_per_device_hour=None),
    "just created": replace(make_record(), trials=(), events=(), facts=None, finished=False),
    "mixed devices": mixed_devices(),
    "no range test": make_record({key: SEVEN_WAYS[key] for key in ("grid", "random")}),
}


@pytest.mark.parametrize("record", STUDIES.values(), ids=STUDIES)
@pytest.mark.parametrize("key", FIGURES)
class TestEveryFigure:
    def test_it_is_drawn_or_there_is_nothing_to_draw(self, key: str, record: StudyRecord) -> None:
        drawing = FIGURES[key]
        figure = drawing(record)
        assert figure is None or len(figure.data) > 0
        assert drawing.title
        table = drawing.table(record)
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert figure is None or table.rows
        assert not table.rows or drawing.caption(record)

    def test_it_has_a_transparent_ground_and_titled_axes(self, key: str, record: StudyRecord) -> None:
        figure = FIGURES[key](record)
        if figure is not None:
            assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
            assert figure.layout.xaxis.title.text


def test_a_study_without_trials_draws_nothing() -> None:
    assert [key for key, drawing in FIGURES.items() if drawing(STUDIES["just created"])] == []


def test_seconds_of_different_devices_share_no_axis() -> None:
    assert FIGURES["accuracy_versus_cost"](mixed_devices()) is None
    assert FIGURES["cost_by_phase"](mixed_devices()) is None


def figure_of(key: str, record: StudyRecord | None = None) -> go.Figure:
    return some(FIGURES[key](record or STUDIES["whole"]))


def test_each_way_has_one_colour_in_all_figures() -> None:
    colors: dict[str, set[str]] = {}
    for key in ("accuracy_versus_cost", "value_versus_rate", "schedules", "learning_curves"):
        for trace in figure_of(key).data:
            if trace.showlegend is None and trace.line.color:
                colors.setdefault(trace.name, set()).add(trace.line.color)
    assert set(colors) == set(SEVEN_WAYS)
    assert all(len(found) == 1 for found in colors.values())
    assert len({color for found in colors.values() for color in found}) == len(SEVEN_WAYS)


def test_ways_differ_in_symbol_and_dash_as_well() -> None:
    styles = _style.way_styles(STUDIES["whole"]).values()
    assert len({style.symbol for style in styles}) == len(SEVEN_WAYS)
    assert len({(style.dash, style.color) for style in styles}) == len(SEVEN_WAYS)
    many = _style.styles_of([str(number) for number in range(40)], "0").values()
    assert len({(style.color, style.symbol) for style in many}) == len({(one.color, one.dash) for one in many}) == 40


@pytest.mark.parametrize("ground", [(255, 255, 255), (0x14, 0x16, 0x1A)], ids=["light", "dark"])
def test_every_colour_stands_out_from_both_grounds(ground: tuple[int, int, int]) -> None:
    """Contrast as WCAG 2 defines it; 3:1 is its bound for graphics."""

    def luminance(rgb: tuple[int, ...]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for color in (_style.CLR_COLOR, *_style.COLORS):
        rgb = tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
        lighter, darker = sorted((luminance(rgb), luminance(ground)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 3, color


TABLES_ALONE = ("cross_table", "equal_budget", "improvement", "leaderboard", "hindsight_premium")


@pytest.mark.parametrize("key", TABLES_ALONE)
def test_numbers_that_are_read_better_than_seen_are_a_table_alone(key: str) -> None:
    assert FIGURES[key](STUDIES["whole"]) is None
    assert FIGURES[key].table(STUDIES["whole"]).rows


@pytest.mark.parametrize("key", [key for key in FIGURES if key not in TABLES_ALONE])
def test_no_markup_of_a_user_reaches_plotly(key: str) -> None:
    ways = {f"{MARKUP}{index}": settings for index, settings in enumerate(SEVEN_WAYS.values())}
    record = make_record(ways, seeds=[0, 1])
    config = {**record.config, "target": {"metric": MARKUP, "value": 0.9}}
    facts = replace(some(record.facts), metric=MARKUP)
    text = figure_of(key, replace(record, config=config, facts=facts)).to_json()
    assert not re.search(r"(<|\\u003c)(b>|b\\u003e|a )", text)
    assert "%{x} " not in text


def test_the_hero_draws_a_band_per_way_and_a_hollow_symbol_per_miss() -> None:
    record = STUDIES["whole"]
    data = figure_of("accuracy_versus_cost").data
    assert sum(trace.fill == "tonexty" for trace in data) == 7
    hollow = [trace for trace in data if trace.mode == "markers" and str(trace.marker.symbol).endswith("-open")]
    misses = sum(not search.outcome(0.95).reached for key in record.strategies for search in searches(record, key))
    assert sum(len(trace.x) for trace in hollow) == misses == 6


def test_the_heros_lines_end_at_the_search_charge_and_its_incumbents_test_value() -> None:
    [line] = [line for line in accuracy_versus_cost.numbers(STUDIES["whole"]) if line.key == "tpe"]
    for search, value in zip(line.searches, line.final_values, strict=True):
        models = [t for t in search.trials if t.status in ("completed", "pruned")]
        best = max(models, key=lambda t: some(some(t.result).validation_metric))
        assert value == some(best.result).test_metric
        assert search.curve.end == pytest.approx(sum(t.charged_device_seconds for t in search.trials))


def test_the_heros_band_is_that_of_the_searches_own_curves() -> None:
    for line in accuracy_versus_cost.numbers(STUDIES["whole"]):
        band = line.band()
        for cost, *drawn in zip(band.costs, band.low, band.median, band.high, strict=True):
            values = sorted(some(search.curve.at(cost)) for search in line.searches)
            assert drawn == pytest.approx([values[1], values[2], values[3]]), "quartiles of five"


def test_a_way_with_a_search_that_gave_no_model_has_no_median() -> None:
    record = make_record(failures=False)
    trials = tuple(t for t in record.trials if not (t.strategy == "clr" and t.seed == 0 and t.stage == "train"))
    lines = {line.key: line for line in accuracy_versus_cost.numbers(replace(record, trials=trials))}
    assert lines["clr"].band().costs == []
    assert lines["clr"].without_model == 1
    assert lines["grid"].band().costs


def test_every_ended_training_trial_has_its_mark() -> None:
    record = STUDIES["whole"]
    marks = [
        trace
        for trace in figure_of("value_versus_rate").data
        if trace.x is not None and trace.x[0] is not None and trace.legendgroup
    ]
    assert sum(len(trace.x) for trace in marks) == sum(trial.stage == "train" for trial in record.trials)
    crosses = [trace for trace in marks if trace.marker.symbol == "x-thin-open"]
    assert sum(len(trace.x) for trace in crosses) == sum(trial.status == "diverged" for trial in record.trials)


def test_the_range_test_stands_on_the_same_axis_with_its_bounds_and_fastais_suggestions() -> None:
    figure = figure_of("value_versus_rate")
    first = range_test_figure.numbers(STUDIES["whole"])[0]
    line, arrows = (next(t for t in figure.data if t.name == name) for name in ("range test", "fastai's suggestions"))
    assert list(line.x) == first.curve("validation_metric")[0]
    assert (first.verdict.base_lr, first.verdict.max_lr) in {(shape.x0, shape.x1) for shape in figure.layout.shapes}
    expected = suggestions_from_training_losses(*first.curve("train_loss"))._asdict()
    assert dict(zip(arrows.text, arrows.x, strict=True)) == {k: v for k, v in expected.items() if v is not None}


def test_a_study_of_many_trials_is_thinned_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_versus_rate, "MOST_POINTS", 40)
    record = STUDIES["whole"]
    shown = sum(len(trials) for trials in value_versus_rate.thinned(value_versus_rate.numbers(record)).values())
    assert 35 <= shown <= 47
    assert f"{shown} of 215, evenly taken" in value_versus_rate.caption(record)
    assert len(value_versus_rate.table(record).rows) == shown


def test_a_rung_that_some_search_missed_is_hollow_and_one_that_all_missed_ends_the_line() -> None:
    data = {trace.legendgroup: trace for trace in figure_of("target_ladder").data if trace.showlegend is False}
    ladder = target_ladder(STUDIES["whole"])
    for key, rungs in ladder.items():
        for y, symbol, rung in zip(data[key].y, data[key].marker.symbol, rungs, strict=True):
            assert (y is None) == (rung.reach.reached == 0)
            assert y is None or symbol.endswith("-open") == (rung.reach.reached < rung.reach.total)
    assert "never (0/5)" in {cell for row in FIGURES["target_ladder"].table(STUDIES["whole"]).rows for cell in row}


def test_a_grids_bar_runs_from_the_best_to_the_worst_order() -> None:
    data = figure_of("grid_orders").data
    bars = next(trace for trace in data if trace.mode == "lines" and trace.legendgroup == "grid")
    orders = [order for _, order in grid_orders(STUDIES["whole"])["grid"] if order.good]
    assert list(bars.x) == [x for order in orders for x in (order.best, order.worst, None)]
    expected = next(
        trace for trace in data if str(trace.marker.symbol) == "line-ns-open" and trace.legendgroup == "grid"
    )
    assert list(expected.x) == [order.expected for order in orders]
    assert figure_of("grid_orders").layout.xaxis.range[1] > max(order.worst for order in orders)


def test_the_clr_runs_name_stands_on_the_side_of_its_line_that_has_room() -> None:
    """It was cut at the figure's end where the CLR run costs as much as the longest order of a grid, or more."""
    cost = some(summarise(STUDIES["whole"]).way("clr").reach).expected_cost
    for longest, side in ((cost, "right"), (cost / 2, "right"), (3 * cost, "left")):
        figure = go.Figure()
        assert grid_orders_figure._add_clr(figure, STUDIES["whole"], longest) == cost
        [name] = figure.layout.annotations
        assert (name.x, name.xanchor) == (cost, side)


def test_a_short_logarithmic_axis_has_ticks_too() -> None:
    assert doctest.testmod(_style).failed == 0
    for low, high in ((0.62, 0.93), (6.1e-4, 6.4e-4), (21.0, 49.0), (0.5, 0.5)):
        ticks = _style.log_axis(low, high)
        assert 2 <= len(ticks["tickvals"]) <= 7
        assert len(set(ticks["ticktext"])) == len(ticks["ticktext"])
        assert all(ticks["range"][0] <= math.log10(tick) <= ticks["range"][1] for tick in ticks["tickvals"])


def test_the_expected_best_has_the_clr_runs_value_as_a_line_across() -> None:
    data = figure_of("expected_best").data
    across = next(trace for trace in data if trace.legendgroup == "clr" and trace.mode == "lines")
    assert set(across.y) == {some(summarise(STUDIES["whole"]).way("clr").validation).value}


def test_a_cyclical_run_stands_at_its_upper_bound_and_a_decaying_one_at_its_start() -> None:
    trials = {t.strategy: t for t in STUDIES["whole"].trials if t.stage == "train"}
    assert value_versus_rate.highest_rate(trials["clr"]) == trials["clr"].proposal.max_lr
    assert value_versus_rate.highest_rate(trials["clr_linear"]) == trials["clr_linear"].proposal.learning_rate


def test_the_range_tests_bounds_are_those_of_its_verdict() -> None:
    record = STUDIES["whole"]
    first = next(t for t in record.trials if t.strategy == "clr" and t.stage == "range_test")
    points, plan = some(first.result).range_test, some(first.proposal.range_test)
    verdict = judge(points, some(record.facts), plan, "sgd")
    shapes = figure_of("range_test").layout.shapes
    assert verdict.max_lr in {shape.x1 for shape in shapes}
    assert verdict.base_lr in {shape.x0 for shape in shapes}
    assert len(range_test_figure.range_tests(record)) == 10  # clr's and clr_linear's


def test_the_caption_of_the_range_tests_says_what_training_made_of_them() -> None:
    def caption(record: StudyRecord) -> str:
        return FIGURES["range_test"].caption(record)

    several = caption(STUDIES["whole"])
    assert "a short run of clr (n = 5). Bold, with its bounds, is seed 0; the others are thin." in several
    assert "between base and max, in which training cycles." in several
    assert "thin" not in caption(STUDIES["one seed"])
    assert "cycles" not in caption(make_record({"clr_linear": SEVEN_WAYS["clr_linear"]}, seeds=[0]))
    record = make_record({"clr": SEVEN_WAYS["clr"]}, seeds=[0])
    test, training = record.trials
    plan = replace(some(test.proposal.range_test), repeat=1)
    again = replace(test, number=1, proposal=replace(test.proposal, range_test=plan))
    repeated = caption(replace(record, trials=(test, again, replace(training, number=2))))
    assert "(n = 2). Bold, with its bounds, is the first of seed 0; the others are thin." in repeated
    assert "between base and max; training goes by the medians of its search's tests." in repeated


def test_a_search_that_goes_by_another_seeds_range_test_has_its_tick_too() -> None:
    record = make_record({"clr": {**SEVEN_WAYS["clr"], "test": "once_per_study"}}, seeds=[0, 1])
    shared = replace(record, trials=tuple(t for t in record.trials if t.seed == 0 or t.stage == "train"))
    ticks = [
        trace.x for trace in figure_of("accuracy_versus_cost", shared).data if trace.marker.symbol == "line-ns-open"
    ]
    assert [tick[0] for tick in ticks] == [record.trials[0].charged_device_seconds] * 2


def test_captions_name_no_target_chance_or_clr_run_that_the_study_does_not_have() -> None:
    without = STUDIES["no target, no price"]
    no_chance = replace(without, facts=replace(some(without.facts), chance=None))
    for key in ("accuracy_versus_cost", "target_ladder"):
        assert re.search(r"target( on validation)?\.", FIGURES[key].caption(STUDIES["whole"]))
        assert not re.search(r"target( on validation)?\.", FIGURES[key].caption(without))
    for key in ("target_ladder", "expected_best"):
        assert "chance" in FIGURES[key].caption(without)
        assert "chance" not in FIGURES[key].caption(no_chance)
    assert "CLR run" not in FIGURES["expected_best"].caption(STUDIES["no range test"])


def test_a_range_test_without_bounds_is_drawn_without_them() -> None:
    record = make_record({"clr": SEVEN_WAYS["clr"], "grid": SEVEN_WAYS["grid"]}, seeds=[0, 1])
    results = [(trial, some(trial.result)) for trial in record.trials]
    short = tuple(replace(t, result=replace(result, range_test=result.range_test[:9])) for t, result in results)
    figure = figure_of("range_test", replace(record, trials=short))
    assert figure.layout.shapes == ()


def as_error(record: StudyRecord) -> StudyRecord:
    """Return the study with 1 - accuracy, lower is better, and values without bound where training blew up."""

    def turned(value: float | None) -> float | None:
        return None if value is None else 1e12 if value < 0.15 else 1 - value

    def result(trial: TrialRecord) -> TrialResult:
        old = some(trial.result)
        points = tuple(replace(point, validation_metric=turned(point.validation_metric)) for point in old.range_test)
        points = tuple(replace(point, validation_metric=0.9) for point in points[:20]) + points[20:]
        return replace(old, validation_metric=turned(old.validation_metric), range_test=points)

    facts = replace(some(record.facts), metric="error", higher_is_better=False, chance=0.9)
    return replace(record, facts=facts, trials=tuple(replace(t, result=result(t)) for t in record.trials))


def test_values_without_bound_do_not_squash_those_that_were_learned() -> None:
    record = as_error(STUDIES["whole"])
    for key, axis in (("value_versus_rate", "yaxis"), ("range_test", "yaxis2")):
        figure = some(FIGURES[key](record))
        low, high = figure.layout[axis].range
        assert -1 < low < high < 3, key
    traces = [trace for trace in some(FIGURES["value_versus_rate"](record)).data if trace.yaxis != "y2"]
    drawn = [y for trace in traces for y in trace.y if y is not None]
    assert max(drawn) < 3
    assert any(row[5] == wording.metric(1e12) for row in FIGURES["value_versus_rate"].table(record).rows)


def test_the_better_direction_is_said() -> None:
    assert "further up is better" in accuracy_versus_cost.caption(STUDIES["whole"])
    assert "further down is better" in accuracy_versus_cost.caption(as_error(STUDIES["whole"]))


def test_the_bars_add_up_to_the_charge_and_leave_out_what_stands_apart() -> None:
    bars = [trace for trace in figure_of("cost_by_phase").data if trace.type == "bar"]
    bars = [trace for trace in bars if trace.x[0] is not None]
    for index, cost in enumerate(cost_by_phase.numbers(STUDIES["whole"])):
        assert math.fsum(trace.x[index] for trace in bars) == pytest.approx(cost.charged.value)
        assert cost.phase_seconds["test_evaluation"] > 0
    assert {trace.name for trace in bars} == {"train", "evaluate", "range test", "setup", "warmup", "idle", "lost"}


def test_what_is_hatched_is_what_gave_no_finished_model() -> None:
    bars = [trace for trace in figure_of("cost_by_phase").data if trace.marker.pattern.shape and trace.x[0] is not None]
    record = STUDIES["whole"]
    for index, cost in enumerate(cost_by_phase.numbers(record)):
        found = searches(record, cost.key)
        expected = sum(bill(search.trials).wasted_seconds for search in found) / len(found)
        assert math.fsum(trace.x[index] for trace in bars) == pytest.approx(expected)
    assert math.fsum(trace.x[0] for trace in bars) > 0


def test_what_a_checkpoint_kept_of_a_killed_attempt_is_not_hatched() -> None:
    record = make_record({"grid": SEVEN_WAYS["grid"]}, seeds=[0], failures=False)
    whole = next(trial for trial in record.trials if trial.status == "completed")
    half = {"train": whole.attempts[0].phase_seconds["train"] / 2}
    killed = replace(whole.attempts[0], status="interrupted", phase_seconds={**half, "lost": 0.4})
    resumed = replace(whole, attempts=(killed, replace(whole.attempts[0], number=2, phase_seconds=half)))
    record = replace(record, trials=tuple(resumed if trial is whole else trial for trial in record.trials))
    [cost] = cost_by_phase.numbers(record)
    assert cost.wasted_seconds["lost"] == 0.4
    assert math.fsum(cost.wasted_seconds.values()) == pytest.approx(bill(record).wasted_seconds)


def test_a_way_that_cost_nothing_has_no_bar() -> None:
    record = plain_record({"clr": {0: [PlainTrial(1.0, 0.9, 0.9)]}, "free": {0: [PlainTrial(0.0, 0.9, 0.9)]}})
    assert [row[0] for row in FIGURES["cost_by_phase"].table(record).rows] == ["clr"]


def test_long_names_are_cut_before_they_push_the_drawing_aside() -> None:
    assert len(_style.label("x" * 100)) == 30


def test_the_examples_of_the_docstrings_are_true() -> None:
    assert doctest.testmod(_style).failed == 0
    assert doctest.testmod(schedules).failed == 0


@pytest.mark.parametrize("height", [1e-4, 1.0, 30.0])
def test_a_schedule_is_drawn_by_the_few_points_that_it_needs(height: float) -> None:
    steps = np.arange(200.0)
    shapes = {
        2: np.full(200, height),
        9: height * (1 - np.abs(2 * (steps / 199 * 2 % 1) - 1)),
        40: height * (1 + np.cos(np.pi * steps / 199)) / 2,
    }
    for most, rates in shapes.items():
        x, y = schedules.straightened(list(zip(steps.tolist(), rates.tolist(), strict=True)))
        assert len(x) <= most
        assert (x[0], x[-1]) == (0.0, 199.0)
        assert np.abs(np.interp(steps, x, y) - rates).max() <= 1e-3 * height


@pytest.mark.parametrize("key", FIGURES)
def test_no_second_is_told_as_a_power_of_ten(key: str) -> None:
    """In plotly's format .3g 12,345 seconds are 1.23e+4, in ,.3r they are 12,300."""
    figure = FIGURES[key](STUDIES["whole"])
    told = [trace.hovertemplate or "" for trace in figure.data] if figure else []
    assert {text for text in told if re.search(r"g\} s\b", text)} == set()


def test_a_few_epochs_have_whole_ticks() -> None:
    record = STUDIES["whole"]

    def until(last: int) -> StudyRecord:
        def cut(trial: TrialRecord) -> TrialRecord:
            result = trial.result
            if result is None or not result.curve:
                return trial
            points = tuple(replace(result.curve[-1], epoch=float(epoch)) for epoch in range(1, last + 1))
            return replace(trial, result=replace(result, curve=points))

        return replace(record, trials=tuple(map(cut, record.trials)))

    assert figure_of("learning_curves", until(4)).layout.xaxis.dtick == 1
    assert figure_of("learning_curves", until(40)).layout.xaxis.dtick is None


def test_a_run_of_a_single_epoch_is_seen_among_the_learning_curves() -> None:
    record = make_record({key: SEVEN_WAYS[key] for key in ("clr", "default")}, seeds=[0, 1])
    short = tuple(
        replace(trial, result=replace(some(trial.result), curve=some(trial.result).curve[:1]))
        if trial.strategy == "default"
        else trial
        for trial in record.trials
    )
    data = figure_of("learning_curves", replace(record, trials=short)).data
    modes = {trace.name: trace.mode for trace in data if trace.hovertemplate and trace.fill is None}
    assert modes == {"clr": "lines", "default": "markers"}


@pytest.mark.parametrize(
    ("seeds", "words"), [([0], "a model. Long"), ([0, 1], "thin the next."), ([0, 1, 2], "thin up to 2 more.")]
)
def test_the_caption_of_the_schedules_counts_the_thin_lines(seeds: list[int], words: str) -> None:
    assert words in FIGURES["schedules"].caption(make_record(seeds=seeds))


def test_no_rate_or_metric_on_an_axis_has_a_prefix_of_units() -> None:
    """By itself plotly writes 0.000005 as 5µ."""
    layouts = [figure.to_dict()["layout"] for drawing in FIGURES.values() if (figure := drawing(make_record()))]
    axes = [one for layout in layouts for name, one in layout.items() if name.startswith("yaxis") and "title" in one]
    assert len(axes) > len(layouts)
    assert all(axis["tickformat"] == ",.8~g" or "ticktext" in axis for axis in axes)


LONG = "optuna_tpe_with_momentum_and_weight_decay_searched_variant_"


def test_ways_whose_names_begin_alike_have_a_row_each() -> None:
    """They had one bar on top of the other: names are cut, and their beginnings were the same."""
    ways = {f"{LONG}{one}": SEVEN_WAYS["grid"] for one in "AB"}
    record = make_record(ways, seeds=[0, 1])
    for key, count in (("cost_by_phase", 2), ("grid_orders", 4)):
        figure = figure_of(key, record)
        rows = {row for trace in figure.data if trace.showlegend is not True and trace.y for row in trace.y}
        assert rows - {None} == set(range(count))
        assert len(set(figure.layout.yaxis.ticktext)) == len(figure.layout.yaxis.tickvals) == count
    assert [note.y for note in figure_of("cost_by_phase", record).layout.annotations] == [0, 1]


def run_at(key: str, rate: float, schedule: str = "constant", value: float = 0.9) -> TrialRecord:
    plain = plain_record({key: {0: [PlainTrial(10.0, value, value, rate=rate)]}}).trials[0]
    curve = tuple(replace(some(plain.result).curve[0], step=36 * epoch, epoch=float(epoch)) for epoch in (1, 15))
    proposal = replace(plain.proposal, schedule=Choice(schedule))
    return replace(plain, proposal=proposal, result=replace(some(plain.result), curve=curve))


def test_schedules_whose_rates_lie_decades_apart_have_a_logarithmic_axis_and_others_none() -> None:
    base = plain_record({key: {0: [PlainTrial(10.0, 0.9, 0.9)]} for key in ("a", "b")})
    near = figure_of("schedules", replace(base, trials=(run_at("a", 0.001), run_at("b", 0.006, "linear_to_zero"))))
    assert (near.layout.yaxis.type, near.layout.yaxis.rangemode) == (None, "tozero")
    far = figure_of("schedules", replace(base, trials=(run_at("a", 0.001), run_at("b", 1.0, "linear_to_zero"))))
    assert far.layout.yaxis.type == "log"
    assert far.layout.yaxis.title.text == "learning rate (log scale)"
    lines = {trace.legendgroup: trace for trace in far.data if trace.hovertemplate}
    low, high = far.layout.yaxis.range
    assert low < -3 < 0 < high
    for step, rate in zip(lines["b"].x, lines["b"].y, strict=True):
        assert rate == pytest.approx(1 - step / 540, rel=0.03)
    middle = np.interp(np.log10(0.5), np.log10(lines["b"].y[::-1]), lines["b"].x[::-1])
    assert middle == pytest.approx(270, abs=3), "a straight line of rates is none on this axis"


def test_a_rate_outside_the_studys_range_is_drawn_too() -> None:
    """That of default_rate is not bound to it."""
    record = STUDIES["whole"]
    narrow = replace(record, config={**record.config, "rates": {"low": 0.05, "high": 2.0}})
    low, high = figure_of("value_versus_rate", narrow).layout.xaxis.range
    rates = [value_versus_rate.highest_rate(trial) or 0.1 for trial in narrow.trials if trial.stage == "train"]
    assert low < math.log10(min(rates)) < math.log10(max(rates)) < high


@pytest.mark.parametrize("chance", [None, 1.0])
def test_a_value_without_bound_does_not_press_the_others_together(chance: float | None) -> None:
    values = [0.30, 0.31, 0.35, 0.9, 1e30]
    ways = {f"way{i}": {0: [PlainTrial(10.0, value, value)]} for i, value in enumerate(values)}
    record = plain_record(ways, target=None)
    facts = replace(some(record.facts), metric="rmse", higher_is_better=False, chance=chance)
    record = replace(record, facts=facts)
    for key in ("value_versus_rate", "accuracy_versus_cost"):
        figure = figure_of(key, record)
        low, high = figure.layout.yaxis.range
        assert high - low < 3
        drawn = sorted(
            y for t in figure.data if t.mode == "markers" and str(t.marker.symbol) for y in t.y if y is not None
        )
        assert drawn[:4] == values[:4]
        assert drawn[4] <= high
        assert "far worse than the best" in FIGURES[key].caption(record)


def test_values_that_are_no_better_than_chance_stand_where_they_are() -> None:
    values = [0.05, 0.04, 0.08]
    record = plain_record({f"way{i}": {0: [PlainTrial(10.0, v, v)]} for i, v in enumerate(values)}, target=None)
    assert _style.reined(record, values) == values


def test_values_that_are_mostly_zero_do_not_hide_the_others() -> None:
    values = [0.0, 0.0, 0.5]
    record = plain_record({f"way{i}": {0: [PlainTrial(10.0, v, v)]} for i, v in enumerate(values)}, target=None)
    facts = replace(some(record.facts), metric="errors", higher_is_better=False, chance=None)
    assert _style.reined(replace(record, facts=facts), values) == values


def test_captions_count_the_searches_that_are_drawn() -> None:
    record = unfinished(make_record(), 60)
    assert "(1 to 2 searches each)" in FIGURES["accuracy_versus_cost"].caption(record)
    assert "(5 searches each)" in FIGURES["learning_curves"].caption(STUDIES["whole"])


def test_a_search_that_still_runs_has_no_mark_of_its_end() -> None:
    record = unfinished(make_record(), 60)
    marks = [
        t for t in figure_of("accuracy_versus_cost", record).data if t.hovertemplate and " ended: " in t.hovertemplate
    ]
    assert sum(len(t.x) for t in marks) == sum(s.done for key in record.strategies for s in searches(record, key))
