"""No search at all: the rate that people type first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from lrsearch.errors import UsageError
from lrsearch.strategies._template import TrainingStrategy
from lrsearch.trial import History, Proposal

USUAL_RATES = {
    # Bengio, "Practical Recommendations for Gradient-Based Training of Deep Architectures", 2012, section 3.1.1,
    # https://arxiv.org/abs/1206.5533: "a default value of 0.01 typically works for standard multi-layer neural
    # networks"; also the default of Keras. torch's own, 1e-3, is younger than the custom.
    "sgd": 0.01,
    # The others: the defaults of torch.optim. Adam's is the paper's, https://arxiv.org/abs/1412.6980, algorithm 1.
    "adam": 1e-3,
    "adamw": 1e-3,
    "rmsprop": 1e-2,
    "adagrad": 1e-2,
    "adadelta": 1.0,
    # The defaults of schedulefree 1.4 and prodigyopt 1.1.
    "schedulefree_adamw": 0.0025,
    "schedulefree_sgd": 1.0,
    "prodigy": 1.0,
}


class DefaultRate(TrainingStrategy):
    """Trains once with the optimizer's usual rate, or with `learning_rate`: what a run costs when nobody tunes.

    The rate does not depend on the study's range: it was not searched for.
    """

    name: Literal["default_rate"] = "default_rate"
    learning_rate: Annotated[float, Field(gt=0)] | None = None

    @property
    def planned_trials(self) -> int:
        return 1

    def propose(self, history: History, max_count: int) -> Sequence[Proposal]:
        """Return the one proposal. Raises UsageError for an optimizer without a usual rate."""
        if history.trials or max_count < 1:
            return []
        rate = self.learning_rate or usual_rate(history.optimizer.name)
        return [self.training(rate)]


def usual_rate(optimizer: str) -> float:
    """Return the rate that `optimizer` is customarily started with. Raises UsageError where there is no custom."""
    rate = USUAL_RATES.get(optimizer.lower())
    if rate is None:
        raise UsageError(
            f"default_rate knows no usual learning rate for optimizer {optimizer!r}; "
            f"known: {', '.join(sorted(USUAL_RATES))}. Give its 'learning_rate'."
        )
    return rate
