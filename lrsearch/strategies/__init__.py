"""What to try next: the ways of choosing a learning rate. One file each, named in STRATEGIES."""

from __future__ import annotations

from collections.abc import Mapping

from lrsearch.interfaces import LooksAhead, Strategy
from lrsearch.strategies._template import ScheduleTemplate, Template, TrainingStrategy
from lrsearch.strategies.default_rate import DefaultRate
from lrsearch.strategies.grid import Grid
from lrsearch.strategies.halving import Hyperband, SuccessiveHalving
from lrsearch.strategies.optuna_search import OptunaSearch
from lrsearch.strategies.random_search import RandomSearch
from lrsearch.strategies.range_tested import RangeTested, verdict_of

STRATEGIES: Mapping[str, type[Strategy]] = {
    "default_rate": DefaultRate,
    "grid": Grid,
    "hyperband": Hyperband,
    "optuna_search": OptunaSearch,
    "random_search": RandomSearch,
    "range_tested": RangeTested,
    "successive_halving": SuccessiveHalving,
}

__all__ = [
    "STRATEGIES",
    "DefaultRate",
    "Grid",
    "Hyperband",
    "OptunaSearch",
    "RandomSearch",
    "RangeTested",
    "ScheduleTemplate",
    "SuccessiveHalving",
    "Template",
    "TrainingStrategy",
    "at_once",
    "verdict_of",
]


def at_once(strategy: Strategy) -> int:
    """Return how many trials of one search may run at the same time without making a difference."""
    return strategy.at_once if isinstance(strategy, LooksAhead) else 1
