"""Which model a search would hand over: chosen on validation, never on test."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from lrsearch.analysis.plain import plain_number
from lrsearch.errors import UsageError
from lrsearch.trial import TrialRecord

Edge = Literal["low", "high"]
Unit = Literal["search", "pooled"]
MODEL_STATUSES = ("completed", "pruned")
"""How trials end that may be chosen."""


@dataclass(frozen=True)
class Incumbent:
    """The chosen trial of a search."""

    trial: TrialRecord
    edge: Edge | None
    """`low` or `high` when no lower or no higher rate was tried: the optimum may lie beyond."""

    @property
    def validation_value(self) -> float:
        value = final_value(self.trial)
        assert value is not None, "only a trial with a model is chosen"
        return value


def incumbent(trials: Sequence[TrialRecord], *, lower_is_better: bool = False) -> Incumbent | None:
    """Return the trial with the best validation value, the earliest on ties; None when no trial gave a model.

    Only trials that ended with a model take part: completed and pruned ones (docs/method.md, section 3). The edge is
    flagged from three different rates on, diverged and failed ones included: they were tried.
    """
    models = [trial for trial in trials if final_value(trial) is not None]
    if not models:
        return None
    best = models[first_best([final_value(trial) for trial in models], lower_is_better=lower_is_better)]
    return Incumbent(best, edge_of(best.proposal.learning_rate, (trial.proposal.learning_rate for trial in trials)))


@dataclass(frozen=True)
class Tried:
    """A training trial in plain values."""

    learning_rate: float | None
    validation: float | None
    """None without a model."""
    test: float | None = None
    search: Hashable = 0
    """Which search it is of."""


@dataclass(frozen=True)
class Chosen:
    """What was chosen of one search, or of all searches taken together."""

    search: Hashable
    """None for all of them."""
    learning_rate: float | None
    validation: float
    test: float | None
    edge: Edge | None


@dataclass(frozen=True)
class Selection:
    """What validation chose and what it is worth on the test set."""

    unit: Unit
    choices: tuple[Chosen, ...]
    """One per search that gave a model, in order of appearance; a single one when pooled."""

    @property
    def validation(self) -> float:
        """Mean over the choices."""
        return fmean(choice.validation for choice in self.choices)

    @property
    def test(self) -> float | None:
        """Mean over the choices; None where one has no test value."""
        return _mean([choice.test for choice in self.choices])

    @property
    def edge(self) -> Edge | None:
        """On which side of the rates tried more than half of the choices lie outermost."""
        edges = [choice.edge for choice in self.choices]
        return next((edge for edge in edges if edge and 2 * edges.count(edge) > len(edges)), None)


def select(
    trials: Iterable[TrialRecord | Tried | Mapping[str, Any]], unit: Unit = "search", *, lower_is_better: bool = False
) -> Selection | None:
    """Return what validation chooses among `trials`, with its test value; None when no trial gave a model.

    `search`: every search hands over its own best trial, the earliest on ties; the answer is their mean. It is what one
    search of this way is worth, and what the report shows. `pooled`: the rate whose mean validation value over all
    searches is best; only rates that gave a model in every search that tried them take part. It answers another
    question, which rate is best when all searches are paid for, and needs rates that searches share: those of a grid.

    Trials are records, `Tried`, or mappings with the export's columns strategy, seed, status, stage, learning_rate,
    validation_metric and test_metric; range tests and confirmation runs among them are passed over. An optimum at the
    edge of at least three rates is flagged: a better one may lie beyond.
    """
    if unit not in ("search", "pooled"):
        raise UsageError(f"The unit of a selection is search or pooled, got {unit!r}.")
    by_search: dict[Hashable, list[Tried]] = {}
    for one in filter(None, map(_tried, trials)):
        by_search.setdefault(one.search, []).append(one)
    if unit == "pooled":
        by_search = {None: _pooled(one for group in by_search.values() for one in group)}
    choices = [choice for search in by_search if (choice := _chosen(search, by_search[search], lower_is_better))]
    return Selection(unit, tuple(choices)) if choices else None


def _chosen(search: Hashable, tried: Sequence[Tried], lower_is_better: bool) -> Chosen | None:
    best = tried[first_best([one.validation for one in tried], lower_is_better=lower_is_better)] if tried else None
    if best is None or best.validation is None or math.isnan(best.validation):
        return None
    edge = edge_of(best.learning_rate, (one.learning_rate for one in tried))
    return Chosen(search, best.learning_rate, best.validation, best.test, edge)


def _pooled(tried: Iterable[Tried]) -> list[Tried]:
    """Return one entry per rate, its values the means over the searches that tried it; None where one has none."""
    by_rate: dict[float | None, list[Tried]] = {}
    for one in tried:
        by_rate.setdefault(one.learning_rate, []).append(one)
    return [
        Tried(rate, _mean([one.validation for one in group]), _mean([one.test for one in group]), None)
        for rate, group in by_rate.items()
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _tried(trial: TrialRecord | Tried | Mapping[str, Any]) -> Tried | None:
    """Return the trial in plain values; None for a range test and for a confirmation run."""
    if isinstance(trial, Tried):
        return trial
    if isinstance(trial, TrialRecord):
        if trial.stage != "train" or trial.is_confirmation:
            return None
        test = trial.result.test_metric if trial.result else None
        return Tried(trial.proposal.learning_rate, final_value(trial), test, (trial.strategy, trial.seed))
    if trial.get("stage") not in (None, "", "train"):
        return None
    has_model = trial.get("status") in (None, "", *MODEL_STATUSES)
    return Tried(
        plain_number(trial.get("learning_rate")),
        plain_number(trial.get("validation_metric")) if has_model else None,
        plain_number(trial.get("test_metric")),
        (trial.get("strategy"), trial.get("seed")),
    )


def first_best(values: Sequence[float | None], *, lower_is_better: bool = False) -> int:
    """Return the index of the best value, the earliest on ties; None values never win against a number.

    >>> first_best([None, 0.5, 0.7, 0.7])
    2
    """
    sign = -1.0 if lower_is_better else 1.0
    scores = [-math.inf if value is None or math.isnan(value) else sign * value for value in values]
    return scores.index(max(scores))


def edge_of(rate: float | None, tried: Iterable[float | None]) -> Edge | None:
    """Return on which side of the `tried` rates `rate` lies outermost, or None; fewer than three rates have no inside.

    >>> edge_of(0.1, [0.001, 0.01, 0.1])
    'high'
    """
    rates = {other for other in tried if other is not None}
    if rate is None or len(rates) < 3:
        return None
    if rate >= max(rates):
        return "high"
    return "low" if rate <= min(rates) else None


def final_value(trial: TrialRecord) -> float | None:
    """Return the validation value of a training run that ended with a model; a range test has none."""
    has_model = trial.stage == "train" and trial.status in MODEL_STATUSES
    return trial.result.validation_metric if has_model and trial.result else None
