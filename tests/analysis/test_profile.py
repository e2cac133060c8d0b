"""Performance profiles against numerical integration and an example worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrsearch.analysis import performance_profile
from lrsearch.errors import UsageError

cost = st.one_of(st.none(), st.just(math.inf), st.floats(0.5, 50))
tables = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.fixed_dictionaries(dict.fromkeys("wxyz", cost)), min_size=1
)


@given(tables, st.sampled_from([2.0, 4.0]))
def test_the_score_is_the_area_under_the_profile(table: dict[str, dict[str, float | None]], rmax: float) -> None:
    taus = np.linspace(1, rmax, 3001)
    for profile in performance_profile(table, rmax=rmax).values():  # type: ignore[arg-type]  # str is Hashable
        heights = [profile.rho(tau) for tau in taus]
        assert profile.score == pytest.approx(np.trapezoid(heights, taus) / (rmax - 1), abs=2e-3)
        assert 0 <= profile.score <= profile.rho(rmax) <= 1


def test_an_example_in_the_manner_of_algoperf_worked_by_hand() -> None:
    """Eight workloads, hours to target of three submissions, None: target not reached within the budget.

    Ratios of A: 1, 1.5, 1, never, 2, 1, 5, (nobody): (3 + 2.5 + 3 + 0 + 2 + 3 + 0 + 0) / (3 x 8) = 13.5 / 24.
    """
    table = {
        "A": {"ctr": 2.0, "mri": 3.0, "vit": 10.0, "gnn": None, "asr": 8.0, "wmt": 5.0, "res": 50.0, "ds": None},
        "B": {"ctr": 4.0, "mri": 2.0, "vit": None, "gnn": 6.0, "asr": 4.0, "wmt": 5.0, "res": 10.0, "ds": math.inf},
        "C": {"ctr": 8.0, "mri": 8.1, "vit": 15.0, "gnn": 9.0},
    }
    profiles = performance_profile(table)  # type: ignore[arg-type]  # str is Hashable
    assert profiles["A"].score == pytest.approx(13.5 / 24)
    assert profiles["B"].score == pytest.approx((2 + 3 + 0 + 3 + 3 + 3 + 3 + 0) / 24)
    assert profiles["C"].score == pytest.approx((0 + 0 + 2.5 + 2.5) / 24)
    assert [profiles["A"].rho(tau) for tau in (1, 1.5, 2, 4, 5)] == [3 / 8, 4 / 8, 5 / 8, 5 / 8, 6 / 8]
    assert profiles["C"].ratios["wmt"] == profiles["A"].ratios["ds"] == math.inf


def test_a_single_way_is_the_cheapest_wherever_it_arrives() -> None:
    assert performance_profile({"a": {"x": 3.0, "y": None}})["a"].score == 0.5


@pytest.mark.parametrize("table", [{}, {"a": {}}, {"a": {"x": 0.0}}, {"a": {"x": -1.0}}])
def test_nothing_and_costs_that_are_none_are_refused(table: dict[str, dict[str, float]]) -> None:
    with pytest.raises(UsageError):
        performance_profile(table)  # type: ignore[arg-type]  # str is Hashable


def test_rmax_leaves_room_above_one() -> None:
    with pytest.raises(UsageError, match="rmax"):
        performance_profile({"a": {"x": 1.0}}, rmax=1.0)


NEVER = math.inf
ALGOPERF = {
    "AdEMAMix (PyTorch)": (
        0.5190796857463527,
        (
            7839.193164110184,
            1517.7321906089785,
            18025.89689064026,
            NEVER,
            NEVER,
            48894.85426735878,
            NEVER,
            6329.966245889664,
            17399.639942407608,
        ),
    ),
    "Cautious NAdamW (JAX)": (
        0.31425364758698043,
        (
            NEVER,
            1608.188658952713,
            25738.981688261032,
            NEVER,
            NEVER,
            NEVER,
            NEVER,
            4992.686820983887,
            14232.458706855774,
        ),
    ),
    "Lion (PyTorch)": (
        0.27833894500561146,
        (
            NEVER,
            1394.1750195026398,
            23172.039316177368,
            NEVER,
            NEVER,
            NEVER,
            NEVER,
            7223.987207174301,
            15475.552730083466,
        ),
    ),
    "Muon (JAX)": (
        0.2845117845117842,
        (NEVER, 1869.765276670456, 20594.037749767303, NEVER, 77162.91657114029, NEVER, NEVER, NEVER, NEVER),
    ),
    "Muon (PyTorch)": (
        0.4231200897867556,
        (
            7141.604691028595,
            NEVER,
            15471.922557115557,
            NEVER,
            NEVER,
            NEVER,
            NEVER,
            1833.473667144776,
            14214.779582500458,
        ),
    ),
    "NAdamW (JAX)": (
        0.384399551066217,
        (
            7492.6946766376495,
            1800.7732002735138,
            25733.847669363025,
            NEVER,
            72015.5787293911,
            NEVER,
            NEVER,
            NEVER,
            NEVER,
        ),
    ),
    "NAdamW (Baseline AlgoPerf v0.5) (JAX)": (
        0.4506172839506181,
        (
            8206.103132247925,
            1620.5153810977936,
            20589.912857055664,
            NEVER,
            NEVER,
            NEVER,
            NEVER,
            4089.775626659393,
            14865.7885992527,
        ),
    ),
    "NAdamW (Tuned for ResNet) (JAX)": (
        0.18574635241301896,
        (NEVER, 1920.545307636261, 23163.02198767662, NEVER, NEVER, NEVER, NEVER, 6349.506216049194, NEVER),
    ),
    "Schedule-Free AdamW (PyTorch)": (
        0.466891133557801,
        (
            10337.671689033508,
            1188.9131379127502,
            NEVER,
            NEVER,
            NEVER,
            NEVER,
            40463.388149023056,
            3640.148542404175,
            19957.71787595749,
        ),
    ),
    "Schedule-Free AdamW (JAX)": (
        0.4107744107744111,
        (
            NEVER,
            2397.40203499794,
            12875.283079862596,
            NEVER,
            87468.86081624031,
            NEVER,
            NEVER,
            5446.973826885223,
            16161.202248096466,
        ),
    ),
    "Schedule-Free AdamW v2 (JAX)": (
        0.4405162738496074,
        (
            8204.54053902626,
            1850.625381946564,
            15451.99134683609,
            NEVER,
            84891.75501847267,
            NEVER,
            NEVER,
            5444.019295454025,
            NEVER,
        ),
    ),
    "Schedule-Free AdamW v2 (PyTorch)": (
        0.5679012345679016,
        (
            7480.571330547333,
            1128.837876081467,
            NEVER,
            NEVER,
            NEVER,
            55846.44081497192,
            41911.17554831505,
            6325.430662155151,
            10325.45705485344,
        ),
    ),
    "Single Worker DiLoCo (JAX)": (
        0.1369248035914701,
        (NEVER, 2379.3425666093826, 28314.819189310077, NEVER, NEVER, NEVER, NEVER, NEVER, NEVER),
    ),
    "Single Worker DiLoCo v2 (JAX)": (
        0.1301907968574634,
        (NEVER, 2578.1419467926025, 28313.97388148308, NEVER, NEVER, NEVER, NEVER, NEVER, NEVER),
    ),
}
"""Published score, and seconds to target on nine workloads (criteo1tb to wmt), of the fourteen submissions of
AlgoPerf's second leaderboard. From https://github.com/mlcommons/submissions_algorithms (Apache 2.0), in the folder
artifacts/tech_report_v1/section_4_leaderboards/out/byproducts/relaxation_sweep: time_to_targets_00pct.csv and
scores_and_coverage.csv."""


def test_the_published_scores_of_algoperf_follow_from_its_published_times() -> None:
    """AlgoPerf integrates rho by trapezoids over 100 values of tau from 1 to 4, ours is the area itself: each workload
    may make up for half a step, 3/99/2/3/9 of the score, in theory; in fact less than one does in all."""
    times = {way: dict(enumerate(seconds)) for way, (_, seconds) in ALGOPERF.items()}
    taus = np.linspace(1, 4, 100)
    for way, profile in performance_profile(times).items():  # type: ignore[arg-type]  # int is Hashable
        published, seconds = ALGOPERF[way]
        assert np.trapezoid([profile.rho(tau) for tau in taus], taus) / 3 == pytest.approx(published, abs=1e-12)
        assert profile.score == pytest.approx(published, abs=sum(map(math.isfinite, seconds)) / 99 / 2 / 9)
        assert profile.score == pytest.approx(published, abs=0.0015)
