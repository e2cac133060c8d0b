"""What a reader should hold against a study: each line follows from the record, none is boilerplate for all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean

from lrsearch.analysis import wording
from lrsearch.analysis.details import grid_orders
from lrsearch.analysis.pace import beside_what_is_charged, held_up, is_far_off, range_test_price
from lrsearch.analysis.power import RATIO_WORTH_KNOWING
from lrsearch.analysis.searches import searches, tests_once
from lrsearch.analysis.strip import EXCLUSIVE_BELOW, busy_with_others, package_versions
from lrsearch.analysis.summary import StudySummary
from lrsearch.analysis.target import meets
from lrsearch.trial import StudyRecord

EDGE_SHARE = 0.5


def threats(record: StudyRecord, summary: StudySummary) -> list[str]:
    """Return the threats to the validity of what `summary` says, the gravest first."""
    return list(_threats(record, summary))


def _threats(record: StudyRecord, summary: StudySummary) -> Iterator[str]:
    if len(summary.devices) > 1:
        names = ", ".join(map(str, summary.devices))
        yield f"The study ran on different devices ({names}): their seconds cannot be compared, so costs are left out."
    if not summary.finished:
        yield "The study is unfinished; numbers are of the searches that are done."
    fewest = min((row.searches_done for row in summary.ways), default=0)
    if fewest == 1:
        yield "1 search per way has no spread: nothing says how far off another would be."
    elif 1 < fewest < 10:
        yield (
            f"{fewest} searches per way: t intervals assume that costs and accuracies are roughly normal, which so few "
            "cannot show."
        )
    yield from _orders(record)
    yield from _lost_again(record, summary)
    if summary.target is None:
        yield "One workload: another model or data set can turn the order around."
    else:
        yield "One workload and one target: another model, data set or target can turn the order around."
    if summary.is_processor_time:
        yield (
            "Seconds are of a processor. On an accelerator evaluation, start-up and training weigh differently"
            + (
                "."
                if any(event.kind == "surroundings" for event in record.events)
                else "; whether anything else ran on this machine meanwhile is not recorded."
            )
        )
    if not any(row.confirmed for row in summary.ways):
        yield "Test values are of the model that each search chose once; it was not trained again with fresh seeds."
    if record.facts and record.facts.test_count:
        yield (
            f"Test values are all of one test set, {record.facts.test_count} examples: what another draw of it would "
            "give is in no interval."
        )
    if summary.verdict.sentences and sum(row.way.is_search for row in summary.ways) > 1:
        yield (
            "The cheapest and the best rival were picked after the fact; the grade allows for that, the intervals do "
            "not."
        )
    yield "Searches of one seed share their data split and initial weights; intervals treat them as independent."
    yield from _edges(summary)
    once = [key for key, settings in record.config["strategies"].items() if tests_once(settings)]
    if once and len(record.seeds) > 1:
        yield (
            f"All searches of {', '.join(once)} go by one range test: their spread lacks that of the test. Each has "
            "its whole cost on the bill, though it ran once."
        )
    own = [key for key, settings in record.config["strategies"].items() if settings.get("optimizer")]
    if own:
        yield f"Not all ways train with the study's optimizer ({', '.join(own)}): they differ by more than the rate."
    executor = record.config.get("executor") or {}
    if executor.get("asynchronous"):
        yield (
            "Searches proposed while trials of theirs still ran (asynchronous): which rates they tried depends on the "
            "order in which trials ended, and another run would try others."
        )
    if executor.get("name") == "ray":
        yield (
            f"Trials ran on {executor['slots']} slots of a Ray cluster: nodes may differ in speed, and trials that "
            "shared one slowed each other down."
        )
    elif executor.get("slots", 1) > 1 and summary.is_processor_time:
        yield f"{executor['slots']} trials ran side by side on one processor and slowed each other down."
    yield from _records(record)


def _orders(record: StudyRecord) -> Iterator[str]:
    """A grid has no order of its own: the one that ran may have been lucky, or the opposite."""
    for key, orders in grid_orders(record).items():
        ran, expected = (fmean(getattr(one, name) for _, one in orders) for name in ("as_executed", "expected"))
        if math.isfinite(ran) and max(ran, expected) > RATIO_WORTH_KNOWING * min(ran, expected):
            yield (
                f"{key} reached the target after {wording.significant(ran)} s in the orders in which its points ran; "
                f"over all orders the mean is {wording.significant(expected)} s. Its cost to target is partly luck."
            )


def _lost_again(record: StudyRecord, summary: StudySummary) -> Iterator[str]:
    """Models are those of the end of a run; a target counts as reached at any evaluation within it."""
    target, lower = summary.target, not summary.higher_is_better
    if target is None:
        return
    lost: dict[str, tuple[int, int]] = {}
    for key in record.strategies:
        hits = [search for search in searches(record, key) if search.done and search.outcome(target).reached]
        ends = [search.incumbent.validation_value if search.incumbent else None for search in hits]
        lost[key] = (sum(not meets(value, target, lower_is_better=lower) for value in ends), len(hits))
    shown = [f"{missed} of {hits} of {key}" for key, (missed, hits) in lost.items() if missed]
    if shown:
        yield (
            f"Searches met the target within a run, and the model that they ended with does not ({', '.join(shown)}): "
            "their cost to target is that of stopping there, which no way did."
        )


def _edges(summary: StudySummary) -> Iterator[str]:
    for row in summary.ways:
        if row.models and row.edges / row.models > EDGE_SHARE:
            yield (
                f"In {row.edges} of {row.models} searches of {row.key} the best rate was the lowest or the highest "
                "that was tried: a better one may lie beyond."
            )


def _records(record: StudyRecord) -> Iterator[str]:
    count, ratio = held_up(record)
    charged = beside_what_is_charged(record)
    if count:
        up_to, them = ("", "it") if count == 1 else ("up to ", "them")
        noisy = "what is billed carries" if charged else "costs carry"
        yield (
            f"{wording.counted(count, 'trial').capitalize()} took {up_to}{wording.times(ratio)} the median time per "
            f"training step of trials like {them}: something held {them} up, such as another program, and {noisy} "
            "that noise."
        )
    if range_test_price(record) != 1:
        yield (
            f"Range tests alone took {wording.times(charged['range_test'])} what they are charged, training runs alone "
            f"{wording.times(charged['train'])}: what was timed before the study does not hold alike for both, and "
            "what a range test costs beside a training run may be as far off."
        )
    elif (off := max(filter(is_far_off, charged.values()), default=None)) is not None:
        yield (
            f"Trials alone took {wording.times(off)} what they are charged: the machine was not as fast as when "
            "their steps were timed before the study. Trials of their kind are charged alike by that, together or "
            "alone, so that their ratios hold; seconds are those of the machine as it was then."
        )
    busy = busy_with_others(record)
    if busy is not None and busy >= EXCLUSIVE_BELOW:
        yield (
            f"Other programs kept {wording.significant(busy, 2)} processors busy while it ran: seconds are longer than "
            "on a machine of its own, and carry that noise."
        )
    attempts = [attempt for trial in record.trials for attempt in trial.attempts]
    estimated = sum(attempt.estimated for attempt in attempts)
    if estimated:
        yield f"{wording.counted(estimated, 'attempt')} died unseen: the cost is estimated from the last heartbeat."
    differing = {name for name, found in package_versions(record).items() if len(found) > 1}
    if differing:
        yield f"Attempts ran with different versions of {', '.join(sorted(differing))}."
