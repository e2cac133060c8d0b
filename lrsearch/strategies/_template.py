"""What every strategy may say of the training runs that it proposes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from lrsearch.interfaces import Epochs, Settings
from lrsearch.trial import Choice, Proposal


class Template(BaseModel):
    """A name with settings, without rates.

    Any setting is kept: only the study file's reader knows which ones the named thing takes, and checks them.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    def choice(self) -> Choice:
        """Return the template as it travels in a proposal."""
        return Choice(self.name, dict(self.model_extra or {}))


class ScheduleTemplate(Template):
    """The schedule that a strategy puts its rates into."""


class OptimizerTemplate(Template):
    """The optimizer of a strategy that does not take the study's."""


CONSTANT = ScheduleTemplate(name="constant")
MOST_TRIALS = 100_000
"""Of a search: what plans, stores and draws them is made for far fewer."""


class TrainingStrategy(Settings):
    """Base of strategies: schedule, and what may differ from the study's training."""

    schedule: ScheduleTemplate = CONSTANT
    optimizer: OptimizerTemplate | None = None
    """None: the study's."""
    epochs: Epochs | None = None
    """None: the study's."""

    def training(self, learning_rate: float | None, **more: Any) -> Proposal:
        """Return the proposal to train once with `learning_rate`; `more` are further fields of it."""
        own = {"schedule": self.schedule.choice(), "optimizer": self.own_optimizer, "epochs": self.epochs}
        return Proposal("train", **{**own, "learning_rate": learning_rate, **more})

    @property
    def own_optimizer(self) -> Choice | None:
        return None if self.optimizer is None else self.optimizer.choice()
