"""The schedule that a strategy puts its rates into."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from lrsearch.trial import Choice


class ScheduleTemplate(BaseModel):
    """A schedule's name and settings, without rates.

    Any setting is kept: only the study file's reader knows which ones the schedule takes, and checks them.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    def choice(self) -> Choice:
        """Return the template as it travels in a proposal."""
        return Choice(self.name, dict(self.model_extra or {}))


CONSTANT = ScheduleTemplate(name="constant")
