"""Numbers to drawings: the figures of a report, in its order. Each entry draws a StudyRecord or returns None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrsearch.figures._drawing import Drawing, Table
from lrsearch.figures.accuracy_versus_cost import ACCURACY_VERSUS_COST
from lrsearch.figures.cost_by_phase import COST_BY_PHASE
from lrsearch.figures.cross_table import CROSS_TABLE
from lrsearch.figures.early_clue import EARLY_CLUE
from lrsearch.figures.equal_budget import EQUAL_BUDGET
from lrsearch.figures.expected_best import EXPECTED_BEST
from lrsearch.figures.grid_orders import GRID_ORDERS
from lrsearch.figures.hindsight_premium import HINDSIGHT_PREMIUM
from lrsearch.figures.improvement import IMPROVEMENT
from lrsearch.figures.leaderboard import LEADERBOARD
from lrsearch.figures.learning_curves import LEARNING_CURVES
from lrsearch.figures.range_test import RANGE_TEST
from lrsearch.figures.schedules import SCHEDULES
from lrsearch.figures.target_ladder import TARGET_LADDER
from lrsearch.figures.value_versus_rate import VALUE_VERSUS_RATE
from lrsearch.trial import StudyRecord

FIGURES: Mapping[str, Drawing] = {
    "accuracy_versus_cost": ACCURACY_VERSUS_COST,
    "cost_by_phase": COST_BY_PHASE,
    "cross_table": CROSS_TABLE,
    "target_ladder": TARGET_LADDER,
    "equal_budget": EQUAL_BUDGET,
    "improvement": IMPROVEMENT,
    "leaderboard": LEADERBOARD,
    "value_versus_rate": VALUE_VERSUS_RATE,
    "range_test": RANGE_TEST,
    "schedules": SCHEDULES,
    "learning_curves": LEARNING_CURVES,
    "early_clue": EARLY_CLUE,
    "expected_best": EXPECTED_BEST,
    "grid_orders": GRID_ORDERS,
    "hindsight_premium": HINDSIGHT_PREMIUM,
}


def figure_tables(record: StudyRecord) -> dict[str, dict[str, Any]]:
    """Return, as the report shows them, the tables of all figures that have one, with the figures' captions."""
    tables = {key: drawing.table(record) for key, drawing in FIGURES.items()}
    return {
        key: {
            "title": FIGURES[key].title,
            "caption": FIGURES[key].caption(record),
            "columns": list(table.columns),
            "rows": [list(row) for row in table.rows],
        }
        for key, table in tables.items()
        if table.rows
    }


__all__ = ["FIGURES", "Drawing", "Table", "figure_tables"]
