"""Random search."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

from lrsearch.strategies._sampled import SampledSearch
from lrsearch.strategies.space import Number, Searched, dimensions
from lrsearch.trial import History


class RandomSearch(SampledSearch):
    """Draws `trials` rates, uniform in the logarithm over the study's range, and what else is in `search`."""

    name: Literal["random_search"] = "random_search"

    @property
    def at_once(self) -> int:
        return self.trials

    def _draw(self, history: History) -> tuple[dict[str, Number], None]:
        return random_values(history, self.search), None


def random_values(history: History, search: Mapping[str, Searched]) -> dict[str, Number]:
    """Return the next draw: it depends on (study, strategy, seed, trial number) and the space alone."""
    text = f"{history.study}/{history.strategy}/{history.seed}/{len(history.trials)}"
    generator = random.Random(text)  # noqa: S311  # no secret
    return {dimension.name: dimension.clip(dimension.draw(generator)) for dimension in dimensions(history, search)}
