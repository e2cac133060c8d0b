"""From the curve of a range test to a verdict and the bounds of a learning rate: pure arithmetic, no torch.

A range test is one short run in which the rate rises from step to step (Smith, "Cyclical Learning Rates for Training
Neural Networks", 2017, https://arxiv.org/abs/1506.01186, section 3.3). `find_bounds` reads its curve: first whether it
says anything at all, then where learning starts (`onset_lr`) and where it ends (`max_lr`). Every position on a curve is
an index, fractional where it lies between two points, so that both kinds of ladder and all point counts are treated
alike; it becomes a rate at the very end, by interpolation between the logarithms of the rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from lrsearch.errors import UsageError
from lrsearch.trial import Ladder, Policy, RangeTestPlan, RangeTestPoint, WorkloadFacts

Kind = Literal["loss", "metric"]
Signal = Literal["validation_metric", "validation_loss", "train_loss"]
Confidence = Literal["low", "medium", "high"]
Status = Literal["ok", "too_short", "diverges_at_once", "never_learns", "metric_saturated"]
"""`ok`, or why the curve gives no bounds."""
Reason = Literal["ragged", "fall", "non-finite", "end"]
"""What ended the usable range: the curve got ragged, fell, or became non-finite, or the test just ended."""
Flag = Literal["never_diverged", "pretrained_start", "learns_from_first_point", "band_too_narrow"]

Array: TypeAlias = NDArray[np.float64]
T = TypeVar("T")

FEWEST_POINTS = 20
LARGEST_VALUE = float(np.finfo(np.float32).max)  # what is larger has overflowed in most trainings
SMALLEST_METRIC_GAIN = 0.02
NARROW_BAND = 3.0  # max / onset: Smith's own fallback cycles between max/3 and max
EVALUATIONS = 75
"""During a test, about: 50 to 100 are enough for the smoothing window to see the shape."""
NOISE_ALLOWANCE = 2.5  # sigmas of a smoothed value; 3 is too late and 2 too early on simulated curves of 50-1000 points


@dataclass(frozen=True)
class RangeTestVerdict:
    """What the curve of a range test says. Rates are None where the curve does not show them."""

    status: Status
    reason: Reason | None
    """What `max_lr` rests on; None unless `status` is `ok`."""
    advice: str
    """The one thing to do next, in one line."""
    base_lr: float | None = None
    max_lr: float | None = None
    onset_lr: float | None = None
    knee_lr: float | None = None
    """Where the gain flattens: shown, never a bound."""
    ragged_lr: float | None = None
    fall_lr: float | None = None
    nonfinite_lr: float | None = None
    """Where values became non-finite, or where a test was stopped because its loss ran away."""
    constant_lr: float | None = None
    """A guess for a rate that is held constant."""
    max_lr_interval: tuple[float, float] | None = None
    """10-90 % of the bootstrap of one test, or lowest and highest of several tests."""
    onset_lr_interval: tuple[float, float] | None = None
    confidence: Confidence = "low"
    flags: tuple[Flag, ...] = ()
    signal: Kind | Signal = "loss"
    """The curve that was judged."""

    @property
    def spread_decades(self) -> float | None:
        """Width of `max_lr_interval` in powers of ten."""
        return None if self.max_lr_interval is None else math.log10(self.max_lr_interval[1] / self.max_lr_interval[0])


def steps_between_evaluations(steps: int) -> int:
    """Return after how many steps a test of so many is evaluated again; at its last step it is, too."""
    return max(1, round(steps / EVALUATIONS))


def evaluation_count(steps: int) -> int:
    """Return how often a test of so many steps is evaluated.

    >>> [evaluation_count(steps) for steps in (20, 100, 113, 3000)]
    [20, 100, 57, 75]
    """
    return math.ceil(steps / steps_between_evaluations(steps))


def ladder(low: float, high: float, count: int, kind: Ladder = "exponential") -> list[float]:
    """Return `count` rising rates; the first is `low` and the last is `high`, exactly.

    >>> ladder(0.001, 10.0, 5)
    [0.001, 0.01, 0.1, 1.0, 10.0]
    >>> ladder(1.0, 2.0, 3, "linear")
    [1.0, 1.5, 2.0]
    """
    if not (0 < low < high < math.inf):
        raise UsageError(f"A range test needs 0 < low < high, got low={low}, high={high}.")
    if count < 2:
        raise UsageError(f"A range test needs at least 2 rates, got {count}.")
    shares = [i / (count - 1) for i in range(1, count - 1)]
    if kind == "linear":
        return [low, *(low + (high - low) * share for share in shares), high]
    return [low, *(low * (high / low) ** share for share in shares), high]


class DivergenceStop:
    """Says when a running range test has seen enough, one loss at a time, without lookahead: docs/method.md, section 5.

    Stop on a non-finite loss, or when the smoothed loss (median of the last 5) has stayed above
    start + 3 (start - best) for a thirtieth of the planned points, at least 3. Nothing depends on the sign or the scale
    of the loss. start - best counts as 4 sigma of the first 20 points at least, as far as they are there: a run that
    has learnt nothing yet must not stop by chance (sigma of the first 5 of 100 points stopped 6 in 1,000 such runs).
    """

    def __init__(self, planned_points: int) -> None:
        self._start_points = _start_points(planned_points)
        self._patience = _event_length(planned_points)
        self._losses: list[float] = []
        self._best = math.inf
        self._points_above = 0

    def update(self, loss: float | None) -> bool:
        """Take the next loss (None: non-finite) and return whether to stop now."""
        if loss is None or not math.isfinite(loss):
            return True
        self._losses.append(loss)
        if len(self._losses) < self._start_points:
            return False
        smoothed = float(np.median(self._losses[-5:]))
        self._best = min(self._best, smoothed)
        self._points_above = self._points_above + 1 if smoothed > self._ceiling() else 0
        return self._points_above >= self._patience

    def _ceiling(self) -> float:
        start = float(np.median(self._losses[: self._start_points]))
        noise = _noise(np.array(self._losses[: max(self._start_points, FEWEST_POINTS)]))
        return start + 3 * max(start - self._best, 4 * noise)


def find_bounds(
    learning_rates: Sequence[float],
    values: Sequence[float | None],
    *,
    kind: Kind,
    chance: float | None = None,
    evaluation_count: int | None = None,
    policy: Policy = "default",
    bootstrap: int = 100,
    optimizer: str = "sgd",
) -> RangeTestVerdict:
    """Return what one curve says: values[i] was measured after the step at learning_rates[i].

    A `loss` falls when the model learns, a `metric` rises (accuracy: 0 to 1). The curve ends at the first value that is
    None, NaN, or beyond what single precision holds. `chance` is the metric of a model that ignores its input;
    `evaluation_count` the number of samples behind each value of a metric, for its binomial noise. `bootstrap` draws
    give the intervals; 0 gives none. Raises UsageError when lengths differ, rates do not rise, or a choice is unknown.
    """
    rates, y = _checked(learning_rates, values, kind, policy)
    bad = np.flatnonzero(~np.isfinite(y))
    count, nonfinite_lr = (int(bad[0]), float(rates[bad[0]])) if len(bad) else (len(y), None)
    if count < FEWEST_POINTS:
        return _silent("too_short" if nonfinite_lr is None else "diverges_at_once", kind, nonfinite_lr)
    curve = _Curve.of(y[:count], kind, chance, evaluation_count)
    marks = curve.marks()
    status = curve.status(marks)
    if status != "ok":
        return _silent(status, kind, nonfinite_lr)
    verdict = _bounds(rates[:count], curve, marks, nonfinite_lr, policy, optimizer)
    verdict = _with_intervals(verdict, rates[:count], curve, bootstrap) if bootstrap else verdict
    return _with_advice(replace(verdict, signal=kind), at_most="high" if count >= 50 else "medium")


def judge(
    points: Sequence[RangeTestPoint],
    facts: WorkloadFacts,
    plan: RangeTestPlan,
    optimizer_name: str,
    *,
    bootstrap: int = 100,
) -> RangeTestVerdict:
    """Return the verdict on a study's range test, from the first of its signals that can tell; `signal` names it.

    That is the validation metric; where it has too few points or no room to rise, the validation loss; then the
    training loss. Passed over: what was never measured, and a metric that leaves 0..1, should be low, or is no number
    before anything is learned while the loss is one, as a precision without answers. A test that stopped before
    `plan.high` is non-finite where it stopped, for the signals that are not measured at every step. The bounds do not
    depend on `bootstrap`; the intervals, and with them confidence and advice, do.
    """
    verdict = _silent("too_short", "train_loss")
    for signal in get_args(Signal):
        is_metric = signal == "validation_metric"
        rates, values = _signal(points, signal, plan.high)
        if not rates or not _is_measured(points, signal) or (is_metric and not _is_share(values, facts)):
            continue
        found = find_bounds(
            rates,
            values,
            kind="metric" if is_metric else "loss",
            chance=facts.chance if is_metric else None,
            evaluation_count=facts.range_test_count if is_metric else None,
            policy=plan.policy,
            bootstrap=bootstrap,
            optimizer=optimizer_name,
        )
        verdict = replace(found, signal=signal)
        no_number = is_metric and found.status == "diverges_at_once" and _has_loss(points, found.nonfinite_lr)
        if not no_number and found.status not in ("too_short", "metric_saturated"):
            break
    return verdict


def combine_verdicts(verdicts: Sequence[RangeTestVerdict]) -> RangeTestVerdict:
    """Return the verdict of repeated tests: log-medians, and intervals from the lowest to the highest.

    Where half of them or more give no bounds, the result is the most frequent of those. Raises UsageError on none.
    """
    if not verdicts:
        raise UsageError("There are no verdicts to combine; give at least one.")
    good = [verdict for verdict in verdicts if verdict.status == "ok"]
    if 2 * len(good) <= len(verdicts):
        status = _most_frequent([verdict.status for verdict in verdicts if verdict.status != "ok"])
        return next(verdict for verdict in verdicts if verdict.status == status)
    if len(good) == 1:
        return good[0]
    flags = tuple(flag for flag in get_args(Flag) if 2 * sum(flag in verdict.flags for verdict in good) > len(good))
    rates = {name: [rate for v in good if (rate := getattr(v, name)) is not None] for name in _RATES}
    combined = RangeTestVerdict(
        "ok",
        _most_frequent([verdict.reason for verdict in good]),
        advice="",
        flags=flags,
        signal=good[0].signal,
        max_lr_interval=_extent(rates["max_lr"]),
        onset_lr_interval=_extent(rates["onset_lr"]),
    )
    medians: dict[str, Any] = {name: _log_median(found) for name, found in rates.items()}
    return _with_advice(replace(combined, **medians), at_most="high" if len(good) >= 3 else "medium")


class Suggestions(NamedTuple):
    """fastai's four suggestions; None where a curve is too short for one. Shown beside a verdict, not trusted."""

    valley: float | None
    slide: float | None
    minimum: float | None
    steep: float | None


def suggestions(learning_rates: Sequence[float], losses: Sequence[float | None]) -> Suggestions:
    """Return what fastai 2.8's suggestion functions return for these losses, taken as they are.

    Like `Learner.lr_find`, it works in single precision and on the losses before the first NaN (None counts as one).
    Source: fastai/callback/schedule.py, https://github.com/fastai/fastai. See `suggestions_from_training_losses`.
    """
    values = np.array([math.nan if loss is None else loss for loss in losses], dtype=np.float32)
    if len(values) != len(learning_rates):
        raise UsageError(f"Each loss needs its rate, got {len(learning_rates)} rates and {len(values)} losses.")
    missing = np.flatnonzero(np.isnan(values))
    values = values[: missing[0]] if len(missing) else values
    rates = np.array(learning_rates[: len(values)], dtype=np.float32)
    return Suggestions(_valley(rates, values), _slide(rates, values), _minimum(rates, values), _steep(rates, values))


def suggestions_from_training_losses(learning_rates: Sequence[float], losses: Sequence[float | None]) -> Suggestions:
    """Return what fastai would show after a test with these raw losses.

    It smooths (moving average with weight 0.98, bias-corrected) and leaves out the first tenth and the last 5 points.
    """
    smoothed, average = [], 0.0
    for i, loss in enumerate(losses, start=1):
        average = 0.98 * average + 0.02 * (math.nan if loss is None else loss)
        smoothed.append(average / (1 - 0.98**i))
    shown = slice(len(smoothed) // 10, -5)
    return suggestions(learning_rates[shown], smoothed[shown])


# --- one curve ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Marks:
    """Where things happen on a curve, as indices; None where they do not."""

    gain: float
    """The highest smoothed gain."""
    learned: bool
    onset: float | None
    knee: float
    ragged: float | None
    fall: float | None
    collapse: float | None
    """Where the curve first stays clearly worse than at its start."""

    def end(self, last: float) -> tuple[float, Reason]:
        """Return the earlier of ragged and fall, or `last`."""
        events: list[tuple[float, Reason]] = []
        if self.ragged is not None:
            events.append((self.ragged, "ragged"))
        if self.fall is not None:
            events.append((self.fall, "fall"))
        return min(events, default=(last, "end"))


@dataclass(frozen=True)
class _Curve:
    """The gain over the start of the test, higher is better, and the noise to expect."""

    gain: Array
    kind: Kind
    start: float
    floor: float
    """Standard deviation of one value, at least (binomial); 0 when unknown."""
    room: float
    """How far a metric can still rise above its start."""
    flags: tuple[Flag, ...] = ()

    @classmethod
    def of(cls, y: Array, kind: Kind, chance: float | None, evaluation_count: int | None) -> _Curve:
        """Return the gain curve: docs/method.md, section 5. A loss is capped by its noise, not by its start level: that
        would change the verdict when a constant is added to the loss.
        """
        start = float(np.median(y[: _start_points(len(y))]))
        if kind == "loss":
            cap = start + 3 * max(start - float(y.min()), 4 * _noise(y))
            return cls(start - np.minimum(y, cap), kind, start, 0.0, math.inf)
        floor = math.sqrt(max(0.0, start * (1 - start)) / evaluation_count) if evaluation_count else 0.0
        if chance is None or start <= chance + 0.1 * (1 - chance):
            return cls(y - start, kind, start, floor, 1 - start)
        flags: tuple[Flag, ...] = ("learns_from_first_point",)
        if start - chance >= 0.5 * (float(_smoothed(y).max()) - chance):
            flags = ("pretrained_start", *flags)
        return cls(y - chance, kind, start, floor, 1 - chance, flags)

    @property
    def pretrained(self) -> bool:
        return "pretrained_start" in self.flags

    def status(self, marks: _Marks) -> Status:
        """Return whether the curve says anything at all."""
        first = _start_points(len(self.gain))
        if marks.learned and marks.fall is not None and marks.fall < first:
            return "diverges_at_once"
        if marks.learned and not (self.kind == "metric" and marks.gain < SMALLEST_METRIC_GAIN):
            return "ok"
        if marks.collapse is not None and marks.collapse < 2 * first and self.kind == "loss":
            return "diverges_at_once"
        return "metric_saturated" if self.kind == "metric" and self.room < 0.1 else "never_learns"

    def marks(self) -> _Marks:
        """Return the landmarks, by the rules of docs/method.md, section 5."""
        n = len(self.gain)
        smooth, local_noise = _smoothed(self.gain), _local_noise(self.gain)
        sigma, shrink = max(_noise(self.gain), self.floor), math.sqrt(_smoothing_width(n) / 3)
        top, peak = float(smooth.max()), int(smooth.argmax())
        slope = np.asarray(np.gradient(smooth), dtype=np.float64)
        steepest = int(slope[: peak + 1].argmax())
        knee = steepest + int(np.argmax((smooth >= 0.8 * top)[steepest:] & (slope <= 0.2 * slope[steepest])[steepest:]))
        onset = _first_run(smooth >= max(0.1 * top, 3 * sigma / shrink))
        usual = max(self._usual_noise(onset, knee), self.floor)
        ragged = local_noise >= max(3 * usual, 0.05 * top)
        ragged &= _turning_share(self.gain) >= 1 / 3
        # Real accuracies jump while they rise: at its best so far, or far from its best, a curve is not at its end.
        best = np.maximum.accumulate(smooth)
        ragged &= (smooth < best) & (best >= 0.9 * top)
        seen = None if self.pretrained else _first_run(ragged, knee)
        return _Marks(
            gain=top,
            learned=top > max(4 * sigma, 3 * float(np.median(local_noise)) / shrink),
            onset=None if onset is None else _refined_onset(smooth, slope, steepest, onset),
            knee=knee,
            ragged=None if seen is None else _ragged_start(self.gain, smooth, seen, knee, usual),
            fall=_fall(self.gain, smooth, NOISE_ALLOWANCE * usual / shrink),
            collapse=_first_run(smooth < -max(4 * sigma, 0.1 * top)),
        )

    def _usual_noise(self, onset: int | None, knee: int) -> float:
        """Return the noise that is no sign of raggedness: that up to the knee, from second differences.

        Their variance is six times that of the noise, and no straight slope adds to it (Gasser, Sroka &
        Jennen-Steinmetz 1986): on few points learning is so steep that first differences would take it for noise.
        Near chance an accuracy hardly moves, so that this may lie below what its samples must scatter: see `floor`.
        A loss counts from the onset: while a model still knows nothing, batches hardly differ, so that any training
        loss would look ragged as soon as it has fallen (measured: digits with Adam, 0.006 where 0.03 still trains).
        """
        start = min(onset or 0, knee) if self.kind == "loss" else 0
        start = max(0, min(start, knee - _difference_width(len(self.gain))))
        return float(1.4826 * np.median(np.abs(np.diff(self.gain[start : knee + 3], 2)))) / math.sqrt(6)


def _fall(gain: Array, smooth: Array, allowance: float) -> float | None:
    """Return where the first lasting fall begins, after the curve has been near its best.

    That a fall has come is read off the smoothed curve. Where it began is read off a running median, which does not
    smear an edge as the Hann window does.
    """
    best, top = np.maximum.accumulate(smooth), float(smooth.max())
    seen = _first_run((smooth < best - max(0.1 * top, allowance)) & (best >= 0.8 * top))
    if seen is None:
        return None
    level = _running_median(gain, _odd(len(gain) / 24))
    bottom = float(best[seen]) - max(0.05 * top, allowance)
    latest = min(seen + _smoothing_width(len(gain)) // 2, len(gain) - 2)
    near_best = np.flatnonzero(level[: latest + 1] >= bottom)
    return _crossing(level, int(near_best[-1]), bottom) if len(near_best) else float(seen)


def _ragged_start(gain: Array, smooth: Array, seen: int, knee: int, usual: float) -> float:
    """Return where the raggedness that is `seen` began, the last good rung: its windows are wide and see it late.

    The change point of greatest likelihood (Page 1954) for values that lie `before` from the level reached so far up to
    it and `after`, as right behind `seen`, from it on; `before` is half as much again as the usual noise, of which
    three times as much counts as ragged. It is not looked for before the last rise. studies/LOG.md says how often this
    is within x1.3 of the truth, beside what the best of all readers could get from as many points.
    """
    reach, before = _difference_width(len(gain)), 1.5 * usual
    off = gain[1:] - _level_so_far(gain)[:-1]
    after = float(1.4826 * np.median(np.abs(off[seen : seen + reach // 2 + 1])))
    if after <= before or before == 0:
        return float(seen)
    first = max(knee, seen - 2 * reach, _last_rise(gain, smooth, seen))
    off = off[first : seen + reach]
    evidence = off**2 / 2 * (before**-2 - after**-2) - math.log(after / before)
    return float(first + int(np.cumsum(evidence[::-1])[::-1].argmax()))


def _last_rise(gain: Array, smooth: Array, seen: int) -> int:
    """Return where the curve last rose to a new best by more than half of the noise around `seen`, smoothed.

    Real curves dip and recover, which ends no test; the maximum of mere noise creeps up as well, which is no rise.
    """
    reach = _difference_width(len(gain))
    noise = _spread(np.diff(gain)[max(0, seen - reach) : seen + reach]) / math.sqrt(2)
    best = np.maximum.accumulate(smooth[: seen + 1])
    earlier = best[np.maximum(np.arange(seen + 1) - reach, 0)]
    rises = (smooth[: seen + 1] >= best) & (best > earlier + 0.5 * noise / math.sqrt(_smoothing_width(len(gain)) / 3))
    return int(np.flatnonzero(rises)[-1]) if rises.any() else 0


def _level_so_far(gain: Array) -> Array:
    """Return, at each point, the best median of as many points up to it as the smoothing covers."""
    width = _smoothing_width(len(gain))
    past = sliding_window_view(np.pad(gain, (width - 1, 0), mode="edge"), width)
    return np.asarray(np.maximum.accumulate(np.median(past, axis=1)), dtype=np.float64)


def _crossing(curve: Array, i: int, level: float) -> float:
    """Return where between i and i + 1 the falling `curve` passes `level`; i when it does not."""
    drop = float(curve[i] - curve[i + 1])
    return i + min(1.0, float(curve[i] - level) / drop) if drop > 0 else float(i)


def _refined_onset(smooth: Array, slope: Array, steepest: int, onset: int) -> float:
    """Return where the tangent of the steepest ascent leaves zero, at most one smoothing window away from `onset`."""
    if slope[steepest] <= 0:
        return float(onset)
    width = _smoothing_width(len(smooth))
    tangent = steepest - float(smooth[steepest] / slope[steepest])
    return float(np.clip(tangent, max(onset - width, 0), onset + width))


# --- signal processing -------------------------------------------------------------------------------------------


def _start_points(count: int) -> int:
    return max(5, math.ceil(0.05 * count))


def _event_length(count: int) -> int:
    return max(3, math.ceil(count / 30))


def _smoothing_width(count: int) -> int:
    return _odd(count / 12)


def _odd(width: float) -> int:
    """Return the odd whole number at or next above `width`, at least 5."""
    return max(5, math.ceil(width) // 2 * 2 + 1)


def _smoothed(values: Array) -> Array:
    """Return the centred Hann average of the running median of 5; it does not lag, as a moving average would."""
    window = np.hanning(_smoothing_width(len(values)) + 2)[1:-1]
    weights = np.convolve(np.ones(len(values)), window, mode="same")
    return np.asarray(np.convolve(_running_median(values, 5), window, mode="same") / weights, dtype=np.float64)


def _running_median(values: Array, width: int) -> Array:
    padded = np.pad(values, width // 2, mode="reflect")
    return np.asarray(np.median(sliding_window_view(padded, width), axis=1), dtype=np.float64)


def _noise(values: Array) -> float:
    """Return the standard deviation of the noise: 1.4826 MAD of the first differences / sqrt 2."""
    return _spread(np.diff(values)) / math.sqrt(2)


def _spread(values: Array) -> float:
    """Return the standard deviation of normal values with outliers: 1.4826 MAD."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def _local_noise(values: Array) -> Array:
    """Return `_noise` around each point, in a window of an eighth of the curve."""
    windows = _difference_windows(np.diff(values))
    deviations = np.abs(windows - np.median(windows, axis=1, keepdims=True))
    return np.asarray(1.4826 * np.median(deviations, axis=1) / math.sqrt(2), dtype=np.float64)


def _turning_share(values: Array) -> Array:
    """Return the share of turning points around each point: 2/3 in white noise, half of that at its edge, 0 on a slope.

    On few points a smooth fall has widely differing differences, which alone would pass for noise.
    """
    differences = np.diff(values)
    turns = (differences[1:] * differences[:-1] < 0).astype(np.float64)
    return np.asarray(_difference_windows(np.append(turns, turns[-1])).mean(axis=1), dtype=np.float64)


def _difference_windows(differences: Array) -> Array:
    """Return one centred window for each point; n - 1 differences lie between n points."""
    width = _difference_width(len(differences) + 1)
    return sliding_window_view(np.pad(differences, (width // 2, width // 2 + 1), mode="reflect"), width)


def _difference_width(count: int) -> int:
    return max(9, _odd(count / 8))


def _first_run(condition: NDArray[np.bool_], start: int = 0) -> int | None:
    """Return where `condition` first holds for as long as an event lasts, at or after `start`."""
    length = _event_length(len(condition))
    if len(condition) - start < length:
        return None
    runs = np.asarray(sliding_window_view(condition[start:], length).all(axis=1))
    first = int(runs.argmax())
    return start + first if runs[first] else None


# --- from a curve to a verdict -----------------------------------------------------------------------------------

_RATES = ("base_lr", "max_lr", "onset_lr", "knee_lr", "ragged_lr", "fall_lr", "nonfinite_lr", "constant_lr")

_ADVICE: dict[str, str] = {
    "too_short": f"Test at least {FEWEST_POINTS} rates, better 100: take more steps.",
    "diverges_at_once": "Look for NaN and for unscaled data; if there is none, start lower: divide the low end by 100.",
    "never_learns": "Check data (are inputs scaled?), labels and model; if sound, test longer or up to a higher rate.",
    "metric_saturated": "Judge the loss: the metric has no room to rise above its start.",
    "pretrained_start": "The model starts trained: only the fall counts; fine-tune at max/10 or below.",
    "band_too_narrow": "Test for more epochs: too little lies between the start of learning and its end for a cycle.",
    "never_diverged": "Raise the high end of the range tenfold: the test ended before learning did.",
    "learns_from_first_point": "Start the range lower: the first rates already learn, so their onset is not seen.",
    "low": "Repeat the test three times and combine the verdicts: one curve does not settle it.",
    "medium": "Use the bounds; more repeats, or a longer test, would narrow them.",
    "high": "Use the bounds: cycle between base_lr and max_lr.",
}


def _silent(status: Status, signal: Kind | Signal, nonfinite_lr: float | None = None) -> RangeTestVerdict:
    """Return a verdict without bounds."""
    return RangeTestVerdict(status, None, _ADVICE[status], nonfinite_lr=nonfinite_lr, signal=signal)


def _bounds(
    rates: Array, curve: _Curve, marks: _Marks, nonfinite_lr: float | None, policy: Policy, optimizer: str
) -> RangeTestVerdict:
    """Turn positions into rates, and the rates into bounds."""
    max_lr, reason = _max_lr(rates, marks, nonfinite_lr)
    onset_lr = None if curve.pretrained or marks.onset is None else min(_rate_at(rates, marks.onset), max_lr)
    return RangeTestVerdict(
        "ok",
        reason,
        advice="",
        base_lr=_base_lr(max_lr, onset_lr, policy),
        max_lr=max_lr,
        onset_lr=onset_lr,
        knee_lr=_rate_at(rates, marks.knee),
        ragged_lr=None if marks.ragged is None else _rate_at(rates, marks.ragged),
        fall_lr=None if marks.fall is None else _rate_at(rates, marks.fall),
        nonfinite_lr=nonfinite_lr,
        constant_lr=max_lr / (10 if curve.pretrained else 2 if optimizer.lower() == "sgd" else 5),
        flags=_flags(curve, marks, reason, max_lr, onset_lr),
    )


def _max_lr(rates: Array, marks: _Marks, nonfinite_lr: float | None) -> tuple[float, Reason]:
    end, reason = marks.end(len(rates) - 1)
    max_lr = _rate_at(rates, end)
    if reason == "end" and nonfinite_lr is not None:
        return min(nonfinite_lr / 2, max_lr), "non-finite"
    return max_lr, reason


def _base_lr(max_lr: float, onset_lr: float | None, policy: Policy) -> float:
    """Return the lower bound. The onset scales with the length of the test, hence the clip; unknown, it is max/10."""
    if policy == "smith2015":
        return max_lr / 3
    return max_lr / 10 if onset_lr is None else min(max(onset_lr, max_lr / 30), max_lr / 10)


def _flags(curve: _Curve, marks: _Marks, reason: Reason, max_lr: float, onset_lr: float | None) -> tuple[Flag, ...]:
    learns_at_once = marks.onset is not None and marks.onset < _start_points(len(curve.gain))
    raised: dict[Flag, bool] = {
        "never_diverged": reason == "end",
        "pretrained_start": curve.pretrained,
        "learns_from_first_point": "learns_from_first_point" in curve.flags or learns_at_once,
        "band_too_narrow": onset_lr is not None and max_lr < NARROW_BAND * onset_lr,
    }
    return tuple(flag for flag in get_args(Flag) if raised[flag])


def _rate_at(rates: Array, index: float) -> float:
    """Return the rate at a fractional index, between the logarithms; a whole index gives the rate itself."""
    if float(index).is_integer():
        return float(rates[int(index)])
    return float(np.exp(np.interp(index, np.arange(len(rates)), np.log(rates))))


def _with_intervals(verdict: RangeTestVerdict, rates: Array, curve: _Curve, draws: int) -> RangeTestVerdict:
    """Add the 10-90 % range of the landmarks over resampled curves, as ratios around the point estimates; it ends where
    the finite values do.
    """
    resampled = [replace(curve, gain=gain).marks() for gain in _resampled(curve.gain, draws)]
    maxima = [_max_lr(rates, marks, verdict.nonfinite_lr)[0] for marks in resampled]
    onsets = [_rate_at(rates, marks.onset) for marks in resampled if marks.onset is not None]
    return replace(
        verdict,
        max_lr_interval=_interval_around(verdict.max_lr, maxima, rates),
        onset_lr_interval=_interval_around(verdict.onset_lr, onsets, rates),
    )


def _resampled(gain: Array, draws: int) -> Array:
    """Return `draws` curves: the smoothed one plus blocks of 5 residuals from within a tenth of the curve.

    On simulated curves of 50, 100 and 300 points the 10-90 % range then held the truth in 85, 68 and 90 % (n = 60).
    """
    n, block = len(gain), 5
    level = _smoothed(gain)
    starts = np.arange(0, n, block)
    reach = max(1, n // 10)
    shifts = np.random.default_rng(0).integers(-reach, reach + 1, size=(draws, len(starts)))
    sources = np.clip(starts + shifts, 0, n - block)[:, :, None] + np.arange(block)
    return np.asarray(level + (gain - level)[sources.reshape(draws, -1)[:, :n]], dtype=np.float64)


def _interval_around(rate: float | None, draws: Sequence[float], tested: Array) -> tuple[float, float] | None:
    if rate is None or not draws:
        return None
    low, middle, high = np.quantile(np.log(draws), [0.1, 0.5, 0.9])
    lowest, highest = float(tested[0]), float(tested[-1])
    return max(rate * math.exp(low - middle), lowest), min(rate * math.exp(high - middle), highest)


def _with_advice(verdict: RangeTestVerdict, at_most: Confidence) -> RangeTestVerdict:
    """Add the confidence and, for the first thing that lowers it, one proposed action."""
    confidence = _confidence(verdict, at_most)
    urgent = ("pretrained_start", "band_too_narrow", "never_diverged", "learns_from_first_point")
    concern = next((flag for flag in urgent if flag in verdict.flags), confidence)
    return replace(verdict, confidence=confidence, advice=_ADVICE[concern])


def _confidence(verdict: RangeTestVerdict, at_most: Confidence) -> Confidence:
    """Return how far to trust the bounds. The limits, 0.2 and 0.5 decades (x1.6, x3.2), are assumed."""
    spread = verdict.spread_decades
    if {"never_diverged", "band_too_narrow", "pretrained_start"} & set(verdict.flags) or (spread or 0) > 0.5:
        return "low"
    if verdict.flags or spread is None or spread > 0.2 or verdict.reason == "non-finite":
        return "medium"
    return at_most


def _most_frequent(items: Sequence[T]) -> T:
    """Return the most frequent item, the first of equals."""
    return max(items, key=items.count)


def _log_median(rates: Sequence[float]) -> float | None:
    return float(np.exp(np.median(np.log(rates)))) if rates else None


def _extent(rates: Sequence[float]) -> tuple[float, float] | None:
    return (min(rates), max(rates)) if rates else None


# --- what comes in -----------------------------------------------------------------------------------------------


def _checked(
    learning_rates: Sequence[float], values: Sequence[float | None], kind: str, policy: str
) -> tuple[Array, Array]:
    for name, value, known in (("kind", kind, get_args(Kind)), ("policy", policy, get_args(Policy))):
        if value not in known:
            raise UsageError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    rates = np.asarray(learning_rates, dtype=np.float64)
    y = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    y[np.abs(y) > LARGEST_VALUE] = math.inf
    if len(rates) != len(y):
        raise UsageError(f"Each value needs its rate, got {len(rates)} rates and {len(y)} values.")
    if not len(rates):
        raise UsageError("A range test needs points, got none.")
    if not (np.isfinite(rates).all() and rates[0] > 0):
        raise UsageError(f"Rates must be positive and finite, got {rates.min()} to {rates.max()}.")
    falls = np.flatnonzero(np.diff(rates) <= 0)
    if len(falls):
        i = int(falls[0])
        raise UsageError(f"Rates must rise from point to point, got {rates[i + 1]} after {rates[i]} at point {i + 1}.")
    return rates, y


def _signal(points: Sequence[RangeTestPoint], signal: Signal, high: float) -> tuple[list[float], list[float | None]]:
    """Return the rates and values of one signal; a value is None where it was not finite."""
    if not points:
        return [], []
    stopped = points[-1].learning_rate < high * (1 - 1e-9)
    if signal == "train_loss":
        measured = points if stopped or points[-1].train_loss is not None else points[:-1]
        return [p.learning_rate for p in measured], [p.train_loss for p in measured]
    evaluated = [p for p in points if p.validation_metric is not None or p.validation_loss is not None]
    if stopped:
        evaluated = [*(p for p in evaluated if p is not points[-1]), RangeTestPoint(0, points[-1].learning_rate, None)]
    return [p.learning_rate for p in evaluated], [getattr(p, signal) for p in evaluated]


def _is_measured(points: Sequence[RangeTestPoint], signal: Signal) -> bool:
    """Return whether the test measured the signal; the training loss always is, and None where it is not finite."""
    return signal == "train_loss" or any(getattr(point, signal) is not None for point in points)


def _has_loss(points: Sequence[RangeTestPoint], rate: float | None) -> bool:
    """Return whether the validation loss was a number at this rate."""
    return any(point.learning_rate == rate and point.validation_loss is not None for point in points)


def _is_share(values: Sequence[float | None], facts: WorkloadFacts) -> bool:
    """Return whether a metric is one that rises from 0 to 1, as `find_bounds` reads metrics."""
    return facts.higher_is_better and all(value is None or 0 <= value <= 1 for value in values)


# --- fastai's suggestions ----------------------------------------------------------------------------------------

Single: TypeAlias = NDArray[np.float32]


def _valley(rates: Single, losses: Single) -> float | None:
    """Return the rate half-way through the middle third of the longest falling subsequence, as fastai counts it."""
    if not len(losses):
        return None
    lengths = np.ones(len(losses), dtype=np.int64)
    for i in range(1, len(losses)):
        lengths[i] += lengths[:i][losses[:i] > losses[i]].max(initial=0)
    end = int(lengths.argmax())
    length = int(lengths[end]) if end else 0  # fastai counts back from the end by the length, gaps left out
    return float(rates[end - length + int(length / 3) + int(length / 6)])


def _slide(rates: Single, losses: Single, width: int = 15, threshold: float = 0.005) -> float | None:
    """Return the left end of a window that slides down from the last rate until the slopes at its ends are alike."""
    if len(losses) <= width:
        return None
    slopes = np.gradient(losses)
    right, left = len(losses) - 1, len(losses) - 1 - width
    chosen = left
    while left >= 0 and abs(slopes[right] - slopes[left]) > threshold:
        chosen, right, left = left, right - 1, left - 1
    return float(rates[chosen])


def _minimum(rates: Single, losses: Single) -> float | None:
    """Return a tenth of the rate of the lowest loss."""
    return float(rates[losses.argmin()]) / 10 if len(losses) else None


def _steep(rates: Single, losses: Single) -> float | None:
    """Return the rate of the steepest fall of the loss over the logarithm of the rate.

    torch's logarithms in single precision, which fastai takes, are in some 3 % of rates one unit in the last place
    beside the nearest number. Where that may decide between two slopes, torch itself is asked, and not otherwise:
    reading a study does without it.
    """
    if len(losses) < 2:
        return None
    logarithms = np.log(rates.astype(np.float64)).astype(np.float32)
    slopes = np.diff(losses) / np.diff(logarithms)
    doubt = 8 * np.spacing(np.abs(logarithms).max()) / np.diff(logarithms).min()
    if slopes.min() and np.count_nonzero(slopes <= slopes.min() + doubt * abs(slopes.min())) > 1:
        import torch

        slopes = np.diff(losses) / np.diff(torch.from_numpy(rates).log().numpy())
    return float(rates[np.argmin(slopes)])
