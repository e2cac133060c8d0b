from __future__ import annotations

import doctest
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

import lrsearch.range_test
from lrsearch.errors import UsageError
from lrsearch.range_test import (
    DivergenceStop,
    RangeTestVerdict,
    combine_verdicts,
    find_bounds,
    judge,
    ladder,
    suggestions,
    suggestions_from_training_losses,
)
from lrsearch.trial import RangeTestPlan, RangeTestPoint, WorkloadFacts

Array = NDArray[np.float64]

LOW, HIGH = -5.0, 1.0
WITHIN = math.log10(1.3)
"""The tolerance on rates that the method promises, in decades."""


# --- curves whose answers are known ---


@dataclass(frozen=True)
class Shape:
    """An accuracy over the logarithm of the rate: chance, a rise in the form of an S, a plateau, a fall."""

    rise: float = -3.0
    """Where the rise begins."""
    rise_width: float = 1.0
    gain: float = 0.7
    fall: float = -0.5
    """The centre of the fall."""
    fall_width: float = 0.1
    chance: float = 0.1

    def __call__(self, x: Array) -> Array:
        share = np.clip((x - self.rise) / self.rise_width, 0, 1)
        falling = 1 / (1 + np.exp((x - self.fall) / self.fall_width))
        return np.asarray(self.chance + self.gain * (3 * share**2 - 2 * share**3) * falling)

    @property
    def true_fall(self) -> float:
        """The last point within 5 % of the gain below the best, on a fine grid without noise."""
        x = np.linspace(LOW, HIGH, 50_001)
        height = self(x) - self.chance
        return float(x[np.flatnonzero(height >= 0.95 * height.max())[-1]])

    @property
    def true_onset(self) -> float:
        """Where the tangent of the steepest ascent meets chance: of 3 t^2 - 2 t^3 at t = 1/6."""
        return self.rise + self.rise_width / 6


def drawn(rng: np.random.Generator) -> Shape:
    rise, width = rng.uniform(-4, -2.3), rng.uniform(0.6, 1.5)
    fall = rng.uniform(max(rise + width + 0.6, -1.6), 0.6)
    return Shape(rise, width, rng.uniform(0.3, 0.85), fall, float(rng.choice([0.03, 0.1, 0.25])))


def grid(count: int) -> Array:
    return np.linspace(LOW, HIGH, count)


def accuracy(shape: Callable[[Array], Array], count: int, **given: Any) -> RangeTestVerdict:
    """Return the verdict on the curve without noise."""
    return metric(shape(grid(count)), **given)


def metric(values: Sequence[float | None] | Array, **given: Any) -> RangeTestVerdict:
    given = {"chance": 0.1, "bootstrap": 0, **given}
    return find_bounds(ladder(1e-5, 10.0, len(values)), list(values), kind="metric", **given)


def loss(values: Sequence[float | None] | Array, **given: Any) -> RangeTestVerdict:
    return find_bounds(ladder(1e-5, 10.0, len(values)), list(values), kind="loss", **{"bootstrap": 0, **given})


def loss_curve(count: int, noise: float = 0.0, seed: int = 0, blow_up: float = -0.5) -> Array:
    """Return a loss that falls from 2.3 to 0.5 between -3 and -1.8 and grows exponentially above `blow_up`."""
    x = grid(count)
    share = np.clip((x + 3) / 1.2, 0, 1)
    clean = 2.3 - 1.8 * (3 * share**2 - 2 * share**3) + 0.09 * np.expm1(5 * np.clip(x - blow_up, 0, None))
    return np.asarray(clean + noise * np.random.default_rng(seed).standard_normal(count))


TRUE_BLOW_UP = -0.5 + math.log(2) / 5
"""Where `loss_curve` has lost 5 % of its gain: 0.09 (e^(5 d) - 1) = 0.09."""


def decades(rate: float | None) -> float:
    assert rate is not None
    return math.log10(rate)


# --- the ladder ---


@given(st.floats(1e-8, 1), st.floats(1.1, 1e8), st.integers(2, 500), st.sampled_from(["exponential", "linear"]))
def test_a_ladder_rises_evenly_from_end_to_end(low: float, ratio: float, count: int, kind: Any) -> None:
    rates = ladder(low, low * ratio, count, kind)
    assert (len(rates), rates[0], rates[-1]) == (count, low, low * ratio)
    expected = np.geomspace(low, low * ratio, count) if kind == "exponential" else np.linspace(low, low * ratio, count)
    assert rates == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("low", "high", "count"), [(0, 1, 10), (1, 1, 10), (-1, 1, 10), (1e-5, math.inf, 10), (1, 2, 1)]
)
def test_a_ladder_needs_a_range(low: float, high: float, count: int) -> None:
    with pytest.raises(UsageError, match="A range test needs"):
        ladder(low, high, count)


def test_the_worked_values_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(lrsearch.range_test).failed == 0


# --- known curves ---


@pytest.mark.parametrize("count", [50, 75, 100, 300, 1000])
@pytest.mark.parametrize("width", [0.03, 0.1, 0.3])
def test_a_fall_is_found_where_it_begins_whatever_the_number_of_points(count: int, width: float) -> None:
    shape = Shape(fall_width=width)
    verdict = accuracy(shape, count)
    assert (verdict.status, verdict.reason, verdict.flags) == ("ok", "fall", ())
    assert decades(verdict.max_lr) == pytest.approx(shape.true_fall, abs=WITHIN)
    assert decades(verdict.onset_lr) == pytest.approx(shape.true_onset, abs=WITHIN)
    assert verdict.max_lr == verdict.fall_lr


@pytest.mark.parametrize("count", [100, 300])
def test_raggedness_is_found_before_the_fall(count: int) -> None:
    """Measured on 200 curves: 98 % are within the tolerance at 100 points, all at 300. 4 misses in 50: below 2 %."""
    shape, ragged, misses = Shape(fall=0.3), -0.8, 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        dips = np.where(grid(count) > ragged, np.abs(rng.normal(0, 0.25, count)), 0)
        verdict = metric(shape(grid(count)) + rng.normal(0, 0.005, count) - dips)
        assert decades(verdict.max_lr) < shape.true_fall - WITHIN
        misses += abs(decades(verdict.max_lr) - ragged) > WITHIN
        assert decades(verdict.ragged_lr) == pytest.approx(ragged, abs=4 * WITHIN)
    assert misses <= 3


@pytest.mark.parametrize(("count", "share"), [(50, 0.48), (100, 0.71), (300, 0.87), (1000, 0.95)])
def test_raggedness_begins_where_the_noise_changes(count: int, share: float) -> None:
    """A plateau that loses 0.06 and scatters six times as much from -0.8 on, as wide as 0.12 around its level.

    Measured on 300 curves: 0.67, 0.86, 0.96 and 1.00 within the tolerance, which is less than a step of 50 points;
    where the windows first see it from 100 points on: 0.62, 0.63, 0.69. The bounds lie three
    standard errors of a share of 60 below.
    """
    near = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        past = grid(count) > -0.8
        scatter = rng.normal(0, np.where(past, 0.12, 0.02), count)
        verdict = metric(np.clip(Shape(fall=2)(grid(count)) - 0.06 * past + scatter, 0, 1), evaluation_count=500)
        near.append(abs(decades(verdict.max_lr) + 0.8) < WITHIN)
    assert np.mean(near) > share


@pytest.mark.parametrize(("count", "share"), [(50, 0.7), (100, 0.9)])
def test_the_raggedness_of_a_loss_is_not_hidden_by_the_steepness_of_its_fall(count: int, share: float) -> None:
    """Measured on 200 curves: 0.86 and 0.98; 0.66 and 0.98 when first differences tell the usual noise."""
    near = []
    for seed in range(100):
        spikes = np.abs(np.random.default_rng(seed).normal(0, 0.5, count))
        verdict = loss(loss_curve(count, 0.04, seed, blow_up=1.0) + np.where(grid(count) > -0.8, spikes, 0))
        near.append(abs(decades(verdict.max_lr) + 0.8) < WITHIN)
    assert np.mean(near) > share


@pytest.mark.parametrize("count", [100, 300])
def test_a_curve_that_jumps_while_it_still_rises_is_not_ragged_yet(count: int) -> None:
    """As accuracies of real runs do: they learn half at once, then the rest in jumps of 0.07, up to -1.

    Measured on 200 curves: 7 % end below -1.2; 74 % (100 points) and 94 % (300) when rising ones count too.
    """
    rise = np.interp(grid(count), [-3.5, -3, -1, -0.5, 0], [0.1, 0.5, 0.9, 0.9, 0.1])
    scatter = np.where((grid(count) > -3) & (grid(count) < -0.5), 0.07, 0.002)
    ends = [
        decades(metric(rise + scatter * np.random.default_rng(seed).standard_normal(count)).max_lr)
        for seed in range(30)
    ]
    assert sum(end < -1.2 for end in ends) <= 8


@pytest.mark.parametrize("count", [50, 100, 300, 1000])
def test_the_blow_up_of_a_loss_is_found(count: int) -> None:
    verdict = loss(loss_curve(count))
    assert decades(verdict.max_lr) == pytest.approx(TRUE_BLOW_UP, abs=WITHIN)
    assert decades(verdict.onset_lr) == pytest.approx(-2.8, abs=WITHIN)  # the tangent: -3 + 1.2 / 6


def test_linear_ladders_are_read_on_their_own_scale() -> None:
    """Smith 2017, figure 3: a linear test of CIFAR-10 from almost 0 to 0.02, of which 0.006 is the usable end."""
    rates = np.array(ladder(1e-5, 0.02, 400, "linear"))
    values = 0.1 + 0.6 * np.clip((rates - 0.001) / 0.002, 0, 1) - 0.6 * np.clip((rates - 0.006) / 0.004, 0, 1)
    verdict = find_bounds(list(rates), list(values), kind="metric", chance=0.1, bootstrap=0)
    assert verdict.max_lr == pytest.approx(0.0062, rel=0.1)  # 5 % of the fall: 0.006 + 0.05 x 0.004
    assert verdict.onset_lr == pytest.approx(0.001, rel=0.3)


@pytest.mark.parametrize(("count", "share"), [(100, 0.7), (300, 0.8), (1000, 0.9)])
def test_most_noisy_curves_are_read_within_the_tolerance(count: int, share: float) -> None:
    """300 random shapes, binomial noise of 200 to 2000 samples. Measured on 1,000: 0.79, 0.87 and 0.96 for max_lr
    and 0.998 or more for the onset; the limits lie 3 standard errors (0.024, 0.019, 0.011) or more below.
    """
    rng = np.random.default_rng(0)
    maxima, onsets = [], []
    for _ in range(300):
        shape, samples = drawn(rng), int(rng.choice([200, 500, 2000]))
        y = rng.binomial(samples, np.clip(shape(grid(count)), 0, 1)) / samples
        verdict = metric(y, evaluation_count=samples)
        assert verdict.status == "ok"
        maxima.append(abs(decades(verdict.max_lr) - shape.true_fall) < WITHIN)
        onsets.append(abs(decades(verdict.onset_lr) - shape.true_onset) < WITHIN)
    assert np.mean(maxima) > share
    assert np.mean(onsets) > 0.95


# --- what must not matter ---


def rates_of(verdict: RangeTestVerdict) -> list[float]:
    rates = (verdict.base_lr, verdict.max_lr, verdict.onset_lr, verdict.knee_lr, verdict.constant_lr)
    return [rate if rate is not None else 0.0 for rate in rates]


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.sampled_from([60, 200]), st.integers(0, 5))
def test_adding_to_a_loss_and_scaling_it_changes_nothing(shift: float, scale: float, count: int, seed: int) -> None:
    y = loss_curve(count, noise=0.03, seed=seed)
    before, after = loss(y), loss(shift + scale * y)
    assert (before.status, before.reason, before.flags) == (after.status, after.reason, after.flags)
    assert rates_of(after) == pytest.approx(rates_of(before), rel=1e-4)


@given(st.floats(1e-6, 1e6))
def test_scaling_all_rates_scales_the_answers(scale: float) -> None:
    y = loss_curve(150, noise=0.03)
    rates = np.array(ladder(1e-5, 10.0, 150))
    scaled = find_bounds(list(rates * scale), list(y), kind="loss", bootstrap=20)
    plain = find_bounds(list(rates), list(y), kind="loss", bootstrap=20)
    assert rates_of(scaled) == pytest.approx([scale * rate for rate in rates_of(plain)])
    assert scaled.max_lr_interval == pytest.approx([scale * rate for rate in plain.max_lr_interval or ()])


@given(st.integers(50, 1000), st.integers(50, 1000), st.floats(-1.4, 0.2), st.floats(0.05, 0.3))
def test_the_number_of_points_changes_the_answer_by_less_than_the_tolerance(
    first: int, second: int, fall: float, width: float
) -> None:
    shape = Shape(fall=fall, fall_width=width)
    assume(shape.true_fall > shape.rise + shape.rise_width)
    one, other = accuracy(shape, first), accuracy(shape, second)
    assert abs(decades(one.max_lr) - decades(other.max_lr)) < WITHIN
    assert abs(decades(one.onset_lr) - decades(other.onset_lr)) < WITHIN
    assert one.base_lr == pytest.approx(other.base_lr, rel=0.3)


@given(st.integers(1, 400), st.sampled_from([None, math.nan, math.inf, 1e39]))
def test_what_follows_the_first_non_finite_value_does_not_count(extra: int, value: float | None) -> None:
    y = [*loss_curve(200, noise=0.02)]
    rates = ladder(1e-5, 10.0, 200)
    tail = [10.0 * 1.02**i for i in range(1, extra + 1)]
    verdict = find_bounds([*rates, *tail], [*y, value, *([5.0, None] * extra)[: extra - 1]], kind="loss", bootstrap=0)
    assert replace(verdict, nonfinite_lr=None) == find_bounds(rates, y, kind="loss", bootstrap=0)
    assert verdict.nonfinite_lr == tail[0]


def test_the_same_curve_gives_the_same_verdict() -> None:
    y = loss_curve(120, noise=0.1)
    assert loss(y, bootstrap=50) == loss(y, bootstrap=50)


# --- verdicts ---


def test_fewer_than_20_points_are_too_short() -> None:
    assert loss(loss_curve(19)).status == "too_short"
    assert loss(loss_curve(20)).status == "ok"


@pytest.mark.parametrize("count", [50, 100, 300])
def test_noise_teaches_nothing(count: int) -> None:
    """False alarms measured in 4,000 losses: 1 at 50 points, 4 at 20, none at 100 or 300; none with a metric.

    At a rate of 1 in 1,000, more than 2 in 300 have a probability of 0.4 %.
    """
    rng = np.random.default_rng(count)
    false_alarms = [loss(2.3 + 0.1 * rng.standard_normal(count)).status != "never_learns" for _ in range(300)]
    assert sum(false_alarms) <= 2
    for _ in range(300):
        assert metric(rng.binomial(500, 0.1, count) / 500, evaluation_count=500).status == "never_learns"


def test_a_constant_teaches_nothing_either() -> None:
    assert loss([2.3] * 100).status == "never_learns"
    assert metric([0.1] * 100).status == "never_learns"


def test_a_metric_gain_below_two_percent_is_none() -> None:
    assert accuracy(Shape(gain=0.019), 200).status == "never_learns"
    assert accuracy(Shape(gain=0.03), 200).status == "ok"


@pytest.mark.parametrize("start", [0, 3])
def test_a_loss_that_grows_from_the_start_diverges_at_once(start: int) -> None:
    growing = 2.3 * np.power(1.5, np.clip(np.arange(100) - start, 0, 60))
    assert loss(list(growing)).status == "diverges_at_once"
    assert loss([2.3] * 8 + [None] * 92).status == "diverges_at_once"


def test_a_non_finite_loss_without_a_fall_before_it_halves_the_rate() -> None:
    verdict = loss([None if x > -0.5 else value for x, value in zip(grid(200), loss_curve(200), strict=True)])
    assert verdict.reason == "non-finite"
    assert verdict.max_lr == pytest.approx((verdict.nonfinite_lr or 0) / 2)
    assert decades(verdict.nonfinite_lr) == pytest.approx(-0.5, abs=0.05)
    assert verdict.confidence != "high"


def test_a_test_that_ends_too_early_says_so() -> None:
    verdict = accuracy(Shape(fall=3.0), 200)
    assert (verdict.reason, verdict.max_lr, verdict.flags) == ("end", 10.0, ("never_diverged",))
    assert verdict.confidence == "low"
    assert "Raise the high end" in verdict.advice


def test_a_pretrained_model_is_judged_by_its_fall_alone() -> None:
    x = grid(200)
    y = 0.9 / (1 + np.exp((x + 2) / 0.1)) + 0.1
    y[(x > -4) & (x < -3.5)] -= np.random.default_rng(0).uniform(0, 0.4, int(((x > -4) & (x < -3.5)).sum()))
    verdict = metric(np.clip(y, 0, 1))
    assert "pretrained_start" in verdict.flags
    assert (verdict.ragged_lr, verdict.onset_lr) == (None, None)
    assert verdict.base_lr == verdict.constant_lr == pytest.approx((verdict.max_lr or 0) / 10)
    assert "max/10" in verdict.advice


def test_a_first_point_that_has_learned_is_flagged() -> None:
    verdict = accuracy(Shape(rise=-5.7, rise_width=2), 200)
    assert "learns_from_first_point" in verdict.flags
    assert "pretrained_start" not in verdict.flags
    assert verdict.status == "ok"


def test_a_band_too_narrow_for_a_cycle_is_flagged() -> None:
    verdict = accuracy(Shape(rise=-2.0, rise_width=0.3, fall=-1.65, fall_width=0.02), 400)
    assert "band_too_narrow" in verdict.flags
    assert verdict.confidence == "low"


def test_a_metric_without_room_is_saturated() -> None:
    assert metric([0.97] * 100, chance=0.97, evaluation_count=500).status == "metric_saturated"


@pytest.mark.parametrize(
    ("onset", "expected"),
    [(-3.5, 30), (-1.5, 15.8), (-0.8, 10)],
)
def test_base_lr_is_the_onset_between_a_thirtieth_and_a_tenth_of_max_lr(onset: float, expected: float) -> None:
    """The fall is cut to lie at 10 ** -0.3; onset -1.5 is 15.8 times lower, between the limits."""
    width = 0.6 if onset < -1 else 0.3
    shape = Shape(rise=onset - width / 6, rise_width=width, fall=-0.2, fall_width=0.03)
    verdict = accuracy(shape, 1000)
    assert (verdict.max_lr or 0) / (verdict.base_lr or 1) == pytest.approx(expected, rel=0.15)


def test_smiths_policy_takes_a_third() -> None:
    verdict = accuracy(Shape(), 200, policy="smith2015")
    assert verdict.base_lr == pytest.approx((verdict.max_lr or 0) / 3)


@pytest.mark.parametrize(("optimizer", "divisor"), [("sgd", 2), ("adam", 5), ("adamw", 5), ("rmsprop", 5)])
def test_the_constant_rate_is_a_half_for_sgd_and_a_fifth_for_adaptive_optimizers(optimizer: str, divisor: int) -> None:
    verdict = accuracy(Shape(), 200, optimizer=optimizer)
    assert verdict.constant_lr == pytest.approx((verdict.max_lr or 0) / divisor)


# --- intervals and confidence ---


def test_the_interval_holds_the_estimate_and_grows_with_the_noise() -> None:
    spreads = []
    for noise in (0.01, 0.1, 0.3):
        verdicts = [loss(loss_curve(200, noise, seed), bootstrap=60) for seed in range(8)]
        for verdict in verdicts:
            low, high = verdict.max_lr_interval or (0.0, 0.0)
            assert low <= (verdict.max_lr or 0) <= high
        spreads.append(np.mean([verdict.spread_decades or 0.0 for verdict in verdicts]))
    assert spreads == sorted(spreads)


@pytest.mark.parametrize("finite", [80, 100])
def test_the_interval_ends_where_the_test_did(finite: int) -> None:
    for seed in range(12):
        y = loss_curve(100, 0.3, seed, 0.5)
        y[finite:] = math.nan
        verdict = loss(y, bootstrap=60)
        low, high = verdict.max_lr_interval or (1.0, 1.0)
        assert 1e-5 <= low <= high <= (verdict.nonfinite_lr or 10.0)


def test_confidence_is_high_on_a_clean_curve_and_low_on_a_wild_one() -> None:
    clean, wild = loss(loss_curve(300, 0.01), bootstrap=100), loss(loss_curve(100, 0.5), bootstrap=100)
    assert (clean.confidence, wild.confidence) == ("high", "low")
    assert "Repeat the test three times" in wild.advice


def test_without_an_interval_confidence_is_never_high() -> None:
    assert loss(loss_curve(300, 0.01)).confidence == "medium"


def test_repeats_give_the_log_median_and_their_extent() -> None:
    one, two, three = (loss(loss_curve(200, 0.02, seed, blow_up)) for seed, blow_up in ((0, -1.0), (1, -0.8), (2, 0.0)))
    both = combine_verdicts([three, one, two])
    assert both.max_lr == pytest.approx(two.max_lr)
    assert both.max_lr_interval == (one.max_lr, three.max_lr)
    assert both.spread_decades == pytest.approx(decades(three.max_lr) - decades(one.max_lr))
    assert (both.max_lr or 0) / 30 <= (both.base_lr or 0) * 1.0001
    assert both.confidence == "low"
    assert combine_verdicts([one, two]).max_lr == pytest.approx(math.sqrt((one.max_lr or 0) * (two.max_lr or 0)))


def test_repeats_that_mostly_fail_fail() -> None:
    good, bad = loss(loss_curve(200)), loss([2.3] * 100)
    assert combine_verdicts([good, bad, bad]).status == "never_learns"
    assert combine_verdicts([good, good, bad]).max_lr == good.max_lr
    with pytest.raises(UsageError, match="at least one"):
        combine_verdicts([])


# --- bad input ---


@pytest.mark.parametrize(
    ("rates", "values", "message"),
    [
        ([], [], "needs points, got none"),
        ([0.1, 0.2], [1.0], "got 2 rates and 1 values"),
        ([0.1, 0.1], [1.0, 1.0], "must rise from point to point, got 0.1 after 0.1 at point 1"),
        ([0.2, 0.1], [1.0, 1.0], "must rise"),
        ([0.0, 0.1], [1.0, 1.0], "must be positive"),
        ([-0.1, 0.1], [1.0, 1.0], "must be positive"),
        ([0.1, math.nan], [1.0, 1.0], "must be positive and finite"),
    ],
)
def test_unusable_curves_are_refused(rates: list[float], values: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_bounds(rates, values, kind="loss")


def test_unknown_kinds_and_policies_are_refused() -> None:
    with pytest.raises(UsageError, match="kind must be one of loss, metric, got 'accuracy'"):
        find_bounds([0.1], [1.0], kind="accuracy")  # type: ignore[arg-type]  # what a user may type
    with pytest.raises(UsageError, match="policy must be one of default, smith2015"):
        find_bounds([0.1], [1.0], kind="loss", policy="smith")  # type: ignore[arg-type]  # likewise


@given(st.lists(st.one_of(st.none(), st.floats()), min_size=1, max_size=120), st.sampled_from(["loss", "metric"]))
def test_any_values_give_a_verdict(values: list[float | None], kind: Any) -> None:
    """No warning, no error, and rates inside the range, whatever comes in."""
    rates = ladder(1e-5, 10.0, len(values)) if len(values) > 1 else [1e-5]
    verdict = find_bounds(rates, values, kind=kind, chance=0.1, evaluation_count=100, bootstrap=3)
    if verdict.status == "ok":
        assert verdict.max_lr is not None
        assert rates[0] / 2 <= verdict.max_lr <= rates[-1]
        assert 0 < (verdict.base_lr or 0) < verdict.max_lr


def test_a_thousand_points_are_judged_in_time() -> None:
    """Limits of the method: 50 ms, and 2 s with intervals, of processor time. Measured on one core: 5 ms and 0.4 s."""
    y = loss_curve(1000, 0.1)

    def fastest(bootstrap: int, tries: int) -> float:
        marks = [time.process_time()]
        for _ in range(tries):
            loss(y, bootstrap=bootstrap)
            marks.append(time.process_time())
        return min(after - before for before, after in itertools.pairwise(marks))

    assert fastest(0, 10) < 0.05
    assert fastest(100, 2) < 2.0


# --- a study's range test ---

FACTS = WorkloadFacts.of_metric("accuracy", chance=0.1, range_test_count=500)
PLAN = RangeTestPlan(1e-5, 10.0)


def points(count: int = 200, every: int = 4, shape: Shape | None = None) -> list[RangeTestPoint]:
    """Return a whole test: the training loss at every rung but the last, the others at every `every`-th."""
    rates, losses = ladder(1e-5, 10.0, count), loss_curve(count, 0.02)
    metrics = (shape or Shape(fall=-0.8))(grid(count))
    validation = loss_curve(count, 0.0, blow_up=-1.2)
    return [
        RangeTestPoint(
            i,
            rates[i],
            losses[i] if i + 1 < count else None,
            *((float(validation[i]), float(metrics[i])) if (i + 1) % every == 0 else ()),
        )
        for i in range(count)
    ]


def test_the_validation_metric_is_judged_first() -> None:
    verdict = judge(points(), FACTS, PLAN, "sgd")
    assert (verdict.signal, verdict.reason) == ("validation_metric", "fall")
    assert decades(verdict.max_lr) == pytest.approx(Shape(fall=-0.8).true_fall, abs=WITHIN)


def test_too_few_evaluations_leave_the_training_loss() -> None:
    verdict = judge(points(every=20), FACTS, PLAN, "sgd")
    assert (verdict.signal, verdict.status) == ("train_loss", "ok")
    assert verdict.nonfinite_lr is None, "the last rung is not measured, which is no divergence"
    assert decades(verdict.max_lr) == pytest.approx(TRUE_BLOW_UP, abs=WITHIN)


def test_a_saturated_metric_leaves_the_validation_loss() -> None:
    saturated = points(shape=Shape(gain=0.0, chance=0.95))
    verdict = judge(saturated, replace(FACTS, chance=0.95), PLAN, "sgd")
    assert (verdict.signal, verdict.status) == ("validation_loss", "ok")


def test_a_metric_that_is_no_number_before_anything_is_learned_leaves_the_validation_loss() -> None:
    """Such as a precision while nothing is answered: 0 / 0."""
    undefined = [p if p.learning_rate > 3e-5 else replace(p, validation_metric=None) for p in points()]
    assert undefined[3].validation_loss is not None
    verdict = judge(undefined, FACTS, PLAN, "sgd")
    assert (verdict.signal, verdict.status) == ("validation_loss", "ok")


def test_a_metric_that_never_learns_is_not_overruled_by_a_loss() -> None:
    verdict = judge(points(shape=Shape(gain=0.0)), FACTS, PLAN, "sgd")
    assert (verdict.signal, verdict.status) == ("validation_metric", "never_learns")


@pytest.mark.parametrize("changed", [{"higher_is_better": False}, {}])
def test_metrics_that_are_no_shares_are_passed_over(changed: dict[str, Any]) -> None:
    made = points() if changed else [replace(p, validation_metric=p.validation_metric and 30.0) for p in points()]
    assert judge(made, replace(FACTS, **changed), PLAN, "sgd").signal == "validation_loss"


def test_a_test_that_stopped_early_is_non_finite_there() -> None:
    stopped = [p for p in points(shape=Shape(fall=3.0)) if p.learning_rate < 0.3]
    stopped[-1] = replace(stopped[-1], train_loss=None)
    verdict = judge(stopped, FACTS, PLAN, "sgd")
    assert (verdict.signal, verdict.reason) == ("validation_metric", "non-finite")
    assert verdict.max_lr == pytest.approx(stopped[-1].learning_rate / 2)


@pytest.mark.parametrize(
    ("measured", "judged"), [("validation_loss", "validation_loss"), (None, "train_loss")], ids=str
)
def test_what_was_never_measured_is_passed_over_when_a_test_stopped_early(measured: str | None, judged: str) -> None:
    missing: dict[str, Any] = {"validation_metric": None, "validation_loss": None}
    missing.pop(str(measured), None)
    stopped = [replace(p, **missing) for p in points() if p.learning_rate < 1.0]
    stopped[-1] = replace(stopped[-1], train_loss=None)
    verdict = judge(stopped, FACTS, PLAN, "sgd")
    assert (verdict.signal, verdict.status, verdict.reason) == (judged, "ok", "fall")


def test_a_test_that_never_had_a_finite_loss_diverges_at_once() -> None:
    assert judge([RangeTestPoint(0, 1e-5, None)], FACTS, PLAN, "sgd").status == "diverges_at_once"


def test_nothing_measured_is_too_short() -> None:
    assert judge([], FACTS, PLAN, "sgd").status == "too_short"


def test_the_plans_policy_and_the_optimizer_are_respected() -> None:
    verdict = judge(points(), FACTS, replace(PLAN, policy="smith2015"), "adam")
    assert verdict.max_lr == pytest.approx(3 * (verdict.base_lr or 0)) == pytest.approx(5 * (verdict.constant_lr or 0))


# --- the stop rule ---


def stops_at(losses: Sequence[float | None] | Array) -> int | None:
    stop = DivergenceStop(len(losses))
    return next((i for i, value in enumerate(losses) if stop.update(value)), None)


@given(st.floats(-1e3, 1e3), st.floats(1e-2, 1e3))
def test_a_test_stops_well_above_its_start_whatever_the_sign_of_the_loss(shift: float, scale: float) -> None:
    y = loss_curve(300, 0.02, blow_up=-1.0)
    at = stops_at(shift + scale * y)
    assert at == stops_at(y)
    assert at is not None
    ceiling = 2.3 + 3 * (2.3 - 0.5)
    above = int(np.argmax(y > ceiling))
    assert above + 2 <= at <= above + 2 + 12, "median of 5, then 10 points above"


def test_a_test_stops_at_once_where_the_loss_is_not_finite() -> None:
    for value in (None, math.nan, math.inf):
        assert stops_at([2.3] * 40 + [value] * 60) == 40


@pytest.mark.parametrize(("count", "flat"), [(50, 25), (100, 50), (200, 60)])
def test_a_test_that_learns_nothing_does_not_stop_by_chance(count: int, flat: int) -> None:
    """None of 600 runs: rarer than 1 in 200 at 95 %. `flat` of the points are before anything is learnt."""
    rng = np.random.default_rng(0)
    for _ in range(600):
        stop = DivergenceStop(count)
        assert not any(stop.update(2.3 + 0.1 * noise) for noise in rng.standard_normal(flat))


@pytest.mark.parametrize("growth", [1.3, 2.0, 10.0])
def test_a_loss_that_runs_away_from_the_first_step_is_stopped_soon(growth: float) -> None:
    at = stops_at([2.3 * growth**step for step in range(100)])
    assert at is not None
    assert at < 30


def test_a_single_spike_does_not_stop_a_test() -> None:
    y = loss_curve(300, 0.02, blow_up=2.0)
    y[[100, 101, 200]] = 1000.0
    assert stops_at(y) is None


# --- fastai's suggestions (equality with fastai itself: test_fastai_suggestions.py) ---


def test_fastais_suggestions_on_a_curve_worked_out_by_hand() -> None:
    """A parabola with its lowest loss at point 60 of 0..99: falls 61 points long, so valley takes -1 + 20 + 10."""
    rates = ladder(1e-5, 10.0, 100)
    losses = [((i - 60) / 30) ** 2 for i in range(100)]
    found = suggestions(rates, losses)
    assert found.valley == pytest.approx(rates[-1 + 20 + 10])
    assert found.minimum == pytest.approx(rates[60] / 10)
    assert found.steep == pytest.approx(rates[0], rel=1e-6)
    assert found.slide is not None


def test_fastais_suggestions_stop_at_the_first_nan_and_need_points() -> None:
    rates, losses = ladder(1e-5, 10.0, 100), list(loss_curve(100))
    assert suggestions(rates, [*losses[:60], math.nan, *losses[61:]]) == suggestions(rates[:60], losses[:60])
    assert suggestions(rates[:10], losses[:10]).slide is None
    assert suggestions([], []) == (None, None, None, None)


def test_raw_losses_are_smoothed_and_cut_before_fastais_suggestions() -> None:
    rates, losses = ladder(1e-5, 10.0, 100), list(loss_curve(100, 0.1))
    weights = [np.array([0.98 ** (i - j) for j in range(i + 1)]) for i in range(100)]
    smoothed = [float((w * np.array(losses[: len(w)])).sum() / w.sum()) for w in weights]
    assert suggestions_from_training_losses(rates, losses) == suggestions(rates[10:-5], smoothed[10:-5])
