"""Trials to numbers: pure functions of plain values and records; no SQL, no plots, no torch."""

from lrsearch.analysis.anytime import CombinedCurve, StepCurve, anytime_curve, combine, common_grid
from lrsearch.analysis.budget import Area, AtBudget, AtTarget, area, equal_accuracy, equal_budget
from lrsearch.analysis.compare import (
    Difference,
    Improvement,
    Mean,
    Ratio,
    improvement,
    mean_difference,
    mean_of,
    probability_of_improvement,
    speed_up,
)
from lrsearch.analysis.cost import Bill, Charge, DeviceModel, bill, device_models
from lrsearch.analysis.early_clue import early_clue
from lrsearch.analysis.expected_best import expected_best
from lrsearch.analysis.grid_order import GridOrder, grid_order
from lrsearch.analysis.hindsight import Premium, hindsight_premium
from lrsearch.analysis.power import Power, power_of_costs
from lrsearch.analysis.profile import Profile, performance_profile
from lrsearch.analysis.searches import Search, searches
from lrsearch.analysis.select import Chosen, Incumbent, Selection, Tried, select
from lrsearch.analysis.summary import StudySummary, summarise
from lrsearch.analysis.target import (
    KaplanMeier,
    Outcome,
    ReachSummary,
    cost_to_target,
    expected_cost,
    kaplan_meier,
    reach_summary,
    wilson_interval,
)
from lrsearch.analysis.verdict import Verdict
from lrsearch.analysis.way_summary import WaySummary
from lrsearch.analysis.ways import Way, clr_way, ways

__all__ = [
    "Area",
    "AtBudget",
    "AtTarget",
    "Bill",
    "Charge",
    "Chosen",
    "CombinedCurve",
    "DeviceModel",
    "Difference",
    "GridOrder",
    "Improvement",
    "Incumbent",
    "KaplanMeier",
    "Mean",
    "Outcome",
    "Power",
    "Premium",
    "Profile",
    "Ratio",
    "ReachSummary",
    "Search",
    "Selection",
    "StepCurve",
    "StudySummary",
    "Tried",
    "Verdict",
    "Way",
    "WaySummary",
    "anytime_curve",
    "area",
    "bill",
    "clr_way",
    "combine",
    "common_grid",
    "cost_to_target",
    "device_models",
    "early_clue",
    "equal_accuracy",
    "equal_budget",
    "expected_best",
    "expected_cost",
    "grid_order",
    "hindsight_premium",
    "improvement",
    "kaplan_meier",
    "mean_difference",
    "mean_of",
    "performance_profile",
    "power_of_costs",
    "probability_of_improvement",
    "reach_summary",
    "searches",
    "select",
    "speed_up",
    "summarise",
    "ways",
    "wilson_interval",
]
