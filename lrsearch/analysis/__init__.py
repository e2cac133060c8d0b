"""Trials to numbers: pure functions of plain values and records; no SQL, no plots, no torch."""

from lrsearch.analysis.anytime import CombinedCurve, StepCurve, anytime_curve, combine, common_grid
from lrsearch.analysis.compare import (
    Difference,
    Mean,
    Ratio,
    mean_difference,
    mean_of,
    probability_of_improvement,
    speed_up,
)
from lrsearch.analysis.cost import Bill, DeviceModel, bill, device_models
from lrsearch.analysis.searches import Search, searches
from lrsearch.analysis.select import Incumbent, select
from lrsearch.analysis.summary import StudySummary, summarise
from lrsearch.analysis.target import Outcome, ReachSummary, cost_to_target, expected_cost, reach_summary
from lrsearch.analysis.verdict import Verdict
from lrsearch.analysis.way_summary import WaySummary
from lrsearch.analysis.ways import Way, clr_way, ways

__all__ = [
    "Bill",
    "CombinedCurve",
    "DeviceModel",
    "Difference",
    "Incumbent",
    "Mean",
    "Outcome",
    "Ratio",
    "ReachSummary",
    "Search",
    "StepCurve",
    "StudySummary",
    "Verdict",
    "Way",
    "WaySummary",
    "anytime_curve",
    "bill",
    "clr_way",
    "combine",
    "common_grid",
    "cost_to_target",
    "device_models",
    "expected_cost",
    "mean_difference",
    "mean_of",
    "probability_of_improvement",
    "reach_summary",
    "searches",
    "select",
    "speed_up",
    "summarise",
    "ways",
]
