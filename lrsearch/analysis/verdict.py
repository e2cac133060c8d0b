"""Is the CLR run cheaper, and what accuracy does it buy? One sentence with a grade, or a refusal to say.

The CLR run is compared with the ways that search over rates: in cost with the cheapest of them, in accuracy with the
most accurate. Those that cannot be compared, as all their trials diverged, are named. A claim is graded by intervals of
whole searches (compare.py):

- shown: the interval leaves out "no difference" at the level that holds for all rivals at once (Bonferroni: the rival
  was picked after the fact), with at least five searches each, ten where some missed the target;
- suggested: it does so at 95 % for this pair alone, or with fewer searches;
- not distinguished: it does not, or would not with range tests at what they took beside training runs (pace.py);
- not shown: something is missing: searches, spread, a rival, one kind of device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance
from typing import Literal

from lrsearch.analysis import wording
from lrsearch.analysis.compare import Difference, Ratio, is_flat, mean_difference, speed_up
from lrsearch.analysis.power import (
    MOST_REACH_SEARCHES,
    MOST_SEARCHES,
    Power,
    detectable_difference,
    power_of_costs,
    power_of_reach,
)
from lrsearch.analysis.target import Interval, Outcome, expected_cost
from lrsearch.analysis.way_summary import WaySummary

Grade = Literal["shown", "suggested", "not distinguished", "not shown"]
NO_SPREAD = "no spread to judge by: all searches of each way gave the same"
FEWEST_TO_SHOW = 5  # assumed: below, a t interval hangs on costs being normal, which nobody can check on so few
FEWEST_TO_SHOW_AFTER_MISSES = 10
"""A permutation test is exact for ways that are alike. Where 0 to 10 % of one's searches miss and 10 to 50 % of the
other's, its 98.3 % interval leaves out the true ratio in up to 4 % of studies of five searches, in up to 8 % of five
against twelve, and in up to 2 % of ten (simulated, 800 studies each)."""


@dataclass(frozen=True)
class Claim:
    """One comparison of the CLR run with a rival."""

    rival: str
    direction: int
    """1: the CLR run is better; -1: worse; 0: not distinguished."""
    grade: Grade
    sentence: str
    found: Ratio | Difference
    """With the interval at 95 %."""
    hangs_on_price: bool = False
    """Whether it is not distinguished just because range tests took another share of their charge than runs did."""


@dataclass(frozen=True)
class Verdict:
    """What the study says about the CLR run."""

    grade: Grade
    headline: str
    sentences: tuple[str, ...] = ()
    """The numbers behind the headline, each with its interval and n."""
    notes: tuple[str, ...] = ()
    """How the other ways without a search over rates fared."""
    power: str | None = None
    """Where a claim is not distinguished: how many more seeds would tell, or what those there are would have told."""


@dataclass(frozen=True)
class Terms:
    """What the sentences call things."""

    metric: str
    higher_is_better: bool
    target: float | None
    seconds: str
    """`processor seconds` or `device seconds`."""
    within: Interval
    """Between which values the metric can lie."""

    @property
    def goal(self) -> str:
        if self.target is None:
            return "The whole search"
        return f"Reaching {self.metric} {self.target:g} on validation"


def reason_not_to_judge(
    rows: Sequence[WaySummary], clr: WaySummary | None, *, finished: bool, device_count: int
) -> str | None:
    """Return why nothing can be shown, or None."""
    rivals = [row for row in rows if row.way.is_search]
    if clr is None:
        return "no way of this study uses a range test, so there is no CLR run to judge."
    if not rivals:
        return "no way of this study searches over learning rates, so the CLR run has no opponent."
    if device_count > 1:
        return "the study ran on different devices, whose seconds are never added or compared."
    if not finished:
        done, planned = sum(row.searches_done for row in rows), sum(row.searches_planned for row in rows)
        return f"the study is unfinished ({done} of {planned} searches done); the same command continues it."
    if max(len(row.outcomes) for row in (clr, *rivals)) == 1:
        return "with n = 1 search per way there is no spread to judge by; add seeds and use --extend."
    lacking = [what for row in rivals if (what := _lacking(row))]
    return _lacking(clr) or (lacking[0] if len(lacking) == len(rivals) else None)


def _lacking(row: WaySummary) -> str | None:
    """Return what a way lacks to be compared with another, or None."""
    searches = wording.counted(len(row.outcomes), "search", "searches")
    if len(row.outcomes) < 2:
        return f"{row.key} has {searches}, which is no spread to judge by; add seeds and use --extend."
    if row.models < 2:
        models = wording.counted(row.models, "model")
        return (
            f"{searches} of {row.key} gave {models} with a metric that is a number, which is no spread to judge by; "
            "what became of its trials says why."
        )
    if len(row.tests) < 2:
        values = wording.counted(len(row.tests), "test value")
        return f"the models of {row.key} have {values}, which is no spread to judge by."
    return None


def judge_ways(
    rows: Sequence[WaySummary], clr: WaySummary | None, terms: Terms, *, finished: bool, device_count: int
) -> Verdict:
    """Return the verdict on the CLR run `clr` among `rows`."""
    reason = reason_not_to_judge(rows, clr, finished=finished, device_count=device_count)
    if reason is not None or clr is None:
        return Verdict("not shown", f"Nothing is shown about CLR: {reason}")
    searching = [row for row in rows if row.way.is_search]
    left_out = _left_out(searching, terms)
    unpriced = left_out.get("Not compared", ())
    rivals = [row for row in searching if not _lacking(row)]
    cost = _cost_claim(clr, [row for row in searching if row not in unpriced], terms)
    accuracy = _accuracy_claim(clr, rivals, terms)
    others = [row for row in rows if not row.way.is_search and row.key != clr.key]
    return Verdict(
        _overall([cost, accuracy]),
        " ".join(
            [
                _headline(clr, cost, accuracy, terms),
                *(f"{what}: {', '.join(row.key for row in rows)}." for what, rows in left_out.items()),
            ]
        ),
        (
            cost.sentence,
            *_whole_search(clr, rivals, terms),
            accuracy.sentence,
            *(f"{what}: {_lacking(row)}" for what, rows in left_out.items() for row in rows),
        ),
        tuple(_note(row, clr, terms) for row in others),
        " ".join(_power(clr, rows, cost, accuracy, terms)) or None,
    )


def grade_interval(
    alone: tuple[float | None, float | None],
    together: tuple[float | None, float | None],
    no_difference: float,
    *,
    enough: bool,
) -> Grade:
    """Return how firmly an interval leaves out `no_difference`: `alone` at 95 %, `together` for all rivals at once.

    `enough` says whether there are searches enough for it to be shown at all.
    """
    if not _leaves_out(alone, no_difference):
        return "not distinguished"
    return "shown" if _leaves_out(together, no_difference) and enough else "suggested"


def _leaves_out(interval: tuple[float | None, float | None], value: float) -> bool:
    low, high = interval
    return low is not None and high is not None and not low <= value <= high and not is_flat(low, high)


def _left_out(searching: Sequence[WaySummary], terms: Terms) -> dict[str, list[WaySummary]]:
    """Return the searches that are not compared, by what is said of them: in cost to a target any two can be."""
    lacking = [row for row in searching if _lacking(row)]
    priced = [row for row in lacking if terms.target is not None and len(row.outcomes) > 1]
    left_out = {
        "Not compared": [row for row in lacking if row not in priced],
        f"Not compared in test {terms.metric}": priced,
    }
    return {what: rows for what, rows in left_out.items() if rows}


def _cost_claim(clr: WaySummary, rivals: Sequence[WaySummary], terms: Terms) -> Claim:
    rival = min(rivals, key=lambda row: expected_cost(row.outcomes))
    found = _graded_ratio(rival, clr, clr.outcomes, len(rivals))
    told, is_finite = _ratio_text(found.ratio), found.ratio.method != "never_reached"
    restarts = " (expected with restarts)" if _missed(clr, rival) and is_finite else ""
    whom = f"the cheapest search over rates, {rival.key}" if _reached(rival) else "any search over rates"
    firm = found
    if clr.repriced:
        repriced = _graded_ratio(rival, clr, clr.repriced, len(rivals))
        firm = _weaker(found, repriced)
        if firm != found:
            told += f", {wording.times(repriced.ratio.value)} with range tests at what they took beside training runs"
            told += f" ({interval_text(repriced.ratio)})"
    sentence = (
        f"{terms.goal}: {_cost(clr, terms)} with {clr.key} and {_cost(rival, terms)} with {whom}{restarts}; {told}: "
        f"{firm.grade}."
    )
    hangs = bool(found.direction and not firm.direction)
    return Claim(rival.key, firm.direction, firm.grade, sentence, found.ratio, hangs)


@dataclass(frozen=True)
class _GradedRatio:
    ratio: Ratio
    grade: Grade

    @property
    def direction(self) -> int:
        return 0 if self.grade in ("not distinguished", "not shown") else 1 if self.ratio.value > 1 else -1


def _graded_ratio(rival: WaySummary, clr: WaySummary, clr_outcomes: Sequence[Outcome], rivals: int) -> _GradedRatio:
    alone = speed_up(rival.outcomes, clr_outcomes)
    together = speed_up(rival.outcomes, clr_outcomes, confidence=1 - 0.05 / rivals)
    return _GradedRatio(alone, _cost_grade(rival, clr, alone, together))


def _weaker(found: _GradedRatio, repriced: _GradedRatio) -> _GradedRatio:
    """Return the ratio that is found with no more than what it holds with range tests at another price, too."""
    if found.direction != repriced.direction:
        return replace(found, grade="not distinguished") if found.direction else found
    return replace(found, grade=repriced.grade) if repriced.grade == "suggested" else found


def _cost_grade(rival: WaySummary, clr: WaySummary, alone: Ratio, together: Ratio) -> Grade:
    """Where a way never reached the target no ratio exists; then the reach rates' own intervals decide."""
    count = min(alone.slow_count, alone.fast_count)
    if alone.method == "never_reached":
        if math.isnan(alone.value) or clr.reach is None or rival.reach is None:
            return "not shown"
        apart = rival.reach.share.high < clr.reach.share.low or clr.reach.share.high < rival.reach.share.low
        return "not distinguished" if not apart else "shown" if count >= FEWEST_TO_SHOW else "suggested"
    enough = count >= (FEWEST_TO_SHOW_AFTER_MISSES if alone.method == "permutation" else FEWEST_TO_SHOW)
    return grade_interval((alone.low, alone.high), (together.low, together.high), 1.0, enough=enough)


def _accuracy_claim(clr: WaySummary, rivals: Sequence[WaySummary], terms: Terms) -> Claim:
    sign = 1 if terms.higher_is_better else -1
    rival = max(rivals, key=lambda row: sign * fmean(row.tests))
    difference = mean_difference(clr.tests, rival.tests, within=terms.within)
    together = mean_difference(clr.tests, rival.tests, confidence=1 - 0.05 / len(rivals), within=terms.within)
    enough = min(difference.x_count, difference.y_count) >= FEWEST_TO_SHOW
    grade = grade_interval((difference.low, difference.high), (together.low, together.high), 0.0, enough=enough)
    direction = 0 if grade == "not distinguished" else 1 if sign * difference.value > 0 else -1
    best = "most accurate" if terms.metric == "accuracy" else "best"
    sentence = (
        f"Test {terms.metric} of the chosen model is {_value(clr)} with {clr.key} and {_value(rival)} with the {best} "
        f"search over rates, {rival.key}; {_difference_text(difference)}: {grade}."
    )
    return Claim(rival.key, direction, grade, sentence, difference)


def _whole_search(clr: WaySummary, rivals: Sequence[WaySummary], terms: Terms) -> list[str]:
    """Return how the whole searches compare: a number that follows from how many trials the study file allows.

    Of those alone that reached the target each time: a search that is cheap and worth nothing saves nothing.
    """
    able = [row for row in rivals if not _missed(row)]
    if terms.target is None or not able or _missed(clr):
        return []
    rival = min(able, key=lambda row: fmean(row.charged_costs))
    ratio = speed_up(rival.charged_costs, clr.charged_costs)
    return [
        f"Run to the end, with as many trials as the study file gives it: "
        f"{wording.significant(fmean(clr.charged_costs))} {terms.seconds} with {clr.key} "
        f"(n = {len(clr.charged_costs)}) and {wording.significant(fmean(rival.charged_costs))} with "
        f"the cheapest search over rates that reached the target each time, {rival.key} "
        f"(n = {len(rival.charged_costs)}); {_ratio_text(ratio)}."
    ]


def _power(clr: WaySummary, rows: Sequence[WaySummary], cost: Claim, accuracy: Claim, terms: Terms) -> Iterator[str]:
    """Yield, for each claim that is not distinguished, what it would take: power.py has the formulas."""
    by_key = {row.key: row for row in rows}
    slow, fast = by_key[cost.rival].outcomes, clr.outcomes
    present = min(len(slow), len(fast))
    if cost.hangs_on_price:
        yield (
            "Cost not distinguished: it hangs on what a range test costs beside a training run, which more seeds do "
            "not tell."
        )
    elif cost.grade == "not distinguished" and not is_flat(cost.found.low, cost.found.high):
        seen = "spread and the misses" if _missed(clr, by_key[cost.rival]) else "spread"
        if all(any(one.reached for one in way) for way in (slow, fast)):
            text = f"at the {seen} seen, {_power_text(power_of_costs(slow, fast), present)}"
        else:
            text = _reach_power_text(power_of_reach(slow, fast), present)
        yield f"Cost not distinguished: {text}."
    if accuracy.grade == "not distinguished" and not is_flat(accuracy.found.low, accuracy.found.high):
        tests = (clr.tests, by_key[accuracy.rival].tests)
        count = min(map(len, tests))
        least = detectable_difference(variance(tests[0]), variance(tests[1]), count)
        if least >= terms.within.high - terms.within.low:
            detected = "are too few to detect any difference (80 % power)."
        else:
            detected = f"detect a difference of {wording.metric(least)} (80 % power), and smaller ones seldom."
        yield f"Test {terms.metric} not distinguished: at the spread seen, {count} seeds per way {detected}"


def _power_text(power: Power, count: int) -> str:
    """Return "about 6 more seeds per way would detect 1.3×", or what the seeds there are detect already."""
    if not power.more:
        return (
            f"{count} seeds per way detect {wording.times(power.detectable)} (80 % power): a larger ratio is unlikely"
        )
    more = int(float(f"{power.more:.2g}"))  # few searches tell the spread in no more than two digits
    number = _more_seeds(more, power.searches_needed >= MOST_SEARCHES)
    return f"{number} per way would detect {wording.times(power.ratio)} (80 % power)"


def _reach_power_text(needed: int, present: int) -> str:
    """Return "if the rates stayed as they are, about 2 more seeds per way would tell them apart"."""
    number = _more_seeds(needed - present, needed >= MOST_REACH_SEARCHES)
    return (
        "one of the two never reached the target, so that only the reach rates can be compared; should they stay as "
        f"they are, {number} per way would tell them apart (80 % power)"
    )


def _more_seeds(more: int, at_least: bool) -> str:
    return f"at least {more} more seeds" if at_least else f"about {wording.counted(more, 'more seed')}"


def _overall(claims: Sequence[Claim]) -> Grade:
    """Return the weakest grade of what is claimed; without any claim, that nothing is distinguished."""
    grades = {claim.grade for claim in claims}
    if "not shown" in grades:
        return "not shown"
    made = {claim.grade for claim in claims if claim.direction}
    return "suggested" if "suggested" in made else "shown" if made else "not distinguished"


def _headline(clr: WaySummary, cost: Claim, accuracy: Claim, terms: Terms) -> str:
    goal = "" if terms.target is None else " to the target"
    if cost.grade == accuracy.grade == "not distinguished":
        return (
            f"Neither the cost{goal} nor the test {terms.metric} of the CLR run ({clr.key}) is distinguished from that "
            "of the best search over rates."
        )
    cost_words = {
        1: f"costs less{goal} than the cheapest search over rates",
        -1: f"costs more{goal} than the cheapest search over rates",
        0: f"is not distinguished in cost{goal} from the cheapest search over rates",
    }[cost.direction]
    if cost.direction and math.isinf(cost.found.value):
        cost_words = "reached the target, which no search over rates did"
    elif cost.direction and cost.found.value == 0:
        cost_words = "did not reach the target, which the cheapest search over rates did"
    elif cost.grade == "not shown":
        cost_words = "did not reach the target, and neither did any search over rates"
    accuracy_words = {
        1: f"has a better test {terms.metric} than the best of them",
        -1: f"has a worse test {terms.metric} than the best of them",
        0: f"is not distinguished in test {terms.metric} from the best of them",
    }[accuracy.direction]
    joint = "and" if cost.direction == accuracy.direction or 0 in (cost.direction, accuracy.direction) else "but"
    return f"The CLR run ({clr.key}) {cost_words}, {joint} {accuracy_words}."


def _note(row: WaySummary, clr: WaySummary, terms: Terms) -> str:
    """Return how a way without a search over rates fared beside the CLR run."""
    kind = "The untuned default rate" if row.way.origin == "default_rate" else "The range test"
    if row.way.bounds_given:
        kind = "Bounds from the file, whose finding is on no bill,"
    shape = f"with {f'{row.way.optimizer} and ' if row.way.optimizer else ''}schedule {row.way.schedule}"
    if row.test is None or row.speed_up is None or clr.test is None:
        return f"{kind} {shape} ({row.key}) {'has too few numbers' if row.models else 'gave no model'} to compare."
    difference = mean_difference(clr.tests, row.tests, within=terms.within)
    return (
        f"{kind} {shape} ({row.key}): {_cost(row, terms)}, {_ratio_text(row.speed_up)}; "
        f"test {terms.metric} {_value(row)}, {_difference_text(difference)}."
    )


def _missed(*rows: WaySummary) -> bool:
    return any(not outcome.reached for row in rows for outcome in row.outcomes)


def _reached(row: WaySummary) -> bool:
    return any(outcome.reached for outcome in row.outcomes)


def _cost(row: WaySummary, terms: Terms) -> str:
    hits = sum(outcome.reached for outcome in row.outcomes)
    cost = expected_cost(row.outcomes)
    reached = f"{hits} of {len(row.outcomes)} searches" if row.reach else f"n = {len(row.outcomes)}"
    return f"{wording.significant(cost)} {terms.seconds} ({reached})" if hits else f"{wording.NEVER} ({reached})"


def _value(row: WaySummary) -> str:
    assert row.test is not None, "only ways with models are compared"
    return f"{wording.metric(row.test.value)} (n = {row.test.count})"


def _ratio_text(ratio: Ratio) -> str:
    """Return "3.2× as much as CLR (95 % interval 2.4× to 4.1×)", always from the CLR run's side."""
    if ratio.method == "never_reached":
        return "no finite ratio, as a way that never reached the target has none"
    text = f"{wording.times(ratio.value)} the CLR run's cost"
    return f"{text} ({interval_text(ratio)})"


def interval_text(ratio: Ratio) -> str:
    """Return the interval in words, and whether it is open."""
    if ratio.low is None or ratio.high is None:
        return "no interval"
    if is_flat(ratio.low, ratio.high):
        return NO_SPREAD
    if math.isinf(ratio.high):
        return "no interval" if ratio.low == 0 else f"at least {wording.end(ratio.low)}×, one-sided 97.5 % bound"
    if ratio.low == 0:
        return f"at most {wording.end(ratio.high)}×, one-sided 97.5 % bound"
    return f"95 % interval {wording.end(ratio.low)}× to {wording.end(ratio.high)}×"


def _difference_text(difference: Difference) -> str:
    sign = "+" if difference.value >= 0 else ""
    text = f"CLR {sign}{wording.metric(difference.value)}"
    if difference.low is None or difference.high is None:
        return f"{text} (no interval)"
    if is_flat(difference.low, difference.high):
        return f"{text} ({NO_SPREAD})"
    return f"{text} (95 % interval {wording.metric(difference.low)} to {wording.metric(difference.high)})"
