"""Which model a search would hand over: chosen on validation, never on test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lrsearch.trial import TrialRecord

Edge = Literal["low", "high"]


@dataclass(frozen=True)
class Incumbent:
    """The chosen trial of a search."""

    trial: TrialRecord
    edge: Edge | None
    """`low` or `high` when no lower or no higher rate was tried: the optimum may lie beyond."""

    @property
    def validation_value(self) -> float:
        value = _value(self.trial)
        assert value is not None, "only a trial with a model is chosen"
        return value


def select(trials: Sequence[TrialRecord], *, higher_is_better: bool = True) -> Incumbent | None:
    """Return the trial with the best validation value, the earliest on ties; None when no trial gave a model.

    Only trials that ended with a model take part: completed and pruned ones (METHOD section 3). The edge is flagged
    from three different rates on, diverged and failed ones included: they were tried.
    """
    models = [trial for trial in trials if _value(trial) is not None]
    if not models:
        return None
    best = models[first_best([_value(trial) for trial in models], higher_is_better=higher_is_better)]
    return Incumbent(best, edge_of(best.proposal.learning_rate, (trial.proposal.learning_rate for trial in trials)))


def first_best(values: Sequence[float | None], *, higher_is_better: bool = True) -> int:
    """Return the index of the best value, the earliest on ties; None values never win against a number.

    >>> first_best([None, 0.5, 0.7, 0.7])
    2
    """
    sign = 1.0 if higher_is_better else -1.0
    scores = [float("-inf") if value is None else sign * value for value in values]
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


def _value(trial: TrialRecord) -> float | None:
    has_model = trial.status in ("completed", "pruned") and trial.result is not None
    return trial.result.validation_metric if has_model and trial.result else None
