"""Numbers to drawings: the figures of a report, in its order. Each entry draws a StudyRecord or returns None."""

from __future__ import annotations

from collections.abc import Mapping

from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures.accuracy_versus_cost import ACCURACY_VERSUS_COST
from lrsearch.figures.cost_by_phase import COST_BY_PHASE
from lrsearch.figures.learning_curves import LEARNING_CURVES
from lrsearch.figures.range_test import RANGE_TEST
from lrsearch.figures.schedules import SCHEDULES
from lrsearch.figures.value_versus_rate import VALUE_VERSUS_RATE

FIGURES: Mapping[str, Drawing] = {
    "accuracy_versus_cost": ACCURACY_VERSUS_COST,
    "cost_by_phase": COST_BY_PHASE,
    "value_versus_rate": VALUE_VERSUS_RATE,
    "range_test": RANGE_TEST,
    "schedules": SCHEDULES,
    "learning_curves": LEARNING_CURVES,
}

__all__ = ["FIGURES", "Drawing", "Table"]
