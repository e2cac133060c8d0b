"""Products of float32 matrices by oneDNN: exact, faster where they are taken, and for gangs of a certain size alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrsearch import gang, gang_choice, products, rehearsal, stacked_run, training
from lrsearch.gang_choice import choose
from lrsearch.products import by_onednn
from lrsearch.trial import TrainingPlan
from tests.clock import Clock
from tests.test_gang import DIGITS, SGD, Listener, alone, assert_equal, spec

needs_exact = pytest.mark.skipif(not products.is_exact(), reason="oneDNN rounds factors on this machine")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))


def _is_by_onednn() -> bool:
    return torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_what_torch_may_round_is_afterwards_what_it_was(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        with by_onednn(False):
            assert torch.get_float32_matmul_precision() == precision
        with by_onednn(True):
            assert _is_by_onednn()
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@needs_exact
@pytest.mark.parametrize("shape", [(3, 7, 5, 3), (16, 32, 64, 128), (3, 65, 1, 9)], ids=str)
def test_such_products_are_float32s_and_one_of_no_numbers_changes_none_beside_it(shape: tuple[int, ...]) -> None:
    count, rows, inner, columns = shape
    chance = torch.Generator().manual_seed(0)
    left = torch.randn(count, rows, inner, generator=chance)
    right = torch.randn(count, inner, columns, generator=chance)
    with by_onednn(True):
        found = torch.bmm(left, right)
        left[1], right[1] = torch.nan, torch.inf
        beside = torch.bmm(left, right)
    assert torch.equal(found[[0, -1]], beside[[0, -1]])
    expected = torch.bmm(left.double(), right.double())[[0, -1]]
    assert torch.allclose(found[[0, -1]].double(), expected, rtol=0, atol=1e-6 * inner)


def test_a_library_that_rounds_factors_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda left, right: honest(left.bfloat16(), right.bfloat16()).float())
    assert not products.is_exact.__wrapped__()


@pytest.mark.parametrize(("seconds", "faster"), [(0.5, True), (0.9, False)])
def test_it_is_taken_where_it_is_clearly_faster_and_that_is_kept(
    monkeypatch: pytest.MonkeyPatch, seconds: float, faster: bool
) -> None:
    monkeypatch.setattr(products, "is_exact", lambda: True)
    clock = Clock(monkeypatch, products)
    clock.charge(torch.Tensor, "__matmul__", lambda *_: seconds if _is_by_onednn() else 1.0)
    assert products.is_faster.__wrapped__() is faster
    monkeypatch.setattr(products, "ratio", None)
    assert products.is_faster.__wrapped__() is faster, "it is known the next time"
    monkeypatch.setattr(products, "is_exact", lambda: False)
    assert not products.is_faster.__wrapped__()


@pytest.mark.parametrize(
    ("by_onednn", "size", "from_size"),
    [({8: 0.5, 4: 3.0}, 8, 5), ({8: 0.97, 4: 0.1}, 8, 0), ({8: 2.0}, 8, 0)],
    ids=["saves", "saves too little", "takes longer"],
)
def test_a_gang_multiplies_so_where_its_largest_size_is_faster(
    monkeypatch: pytest.MonkeyPatch, by_onednn: dict[int, float], size: int, from_size: int
) -> None:
    """`by_onednn` is what a step takes of what it takes otherwise, by members."""
    clock, tried = Clock(monkeypatch, gang_choice, rehearsal), []

    def seconds(run: stacked_run.StackedRun, *_: Any) -> float:
        count = run.stacked.count
        if run._by_onednn:
            tried.append(count)
        return (by_onednn[count] if run._by_onednn else 1.0) * 0.001 * (8 + count)

    monkeypatch.setattr(rehearsal, "is_faster", lambda: True)
    monkeypatch.setattr(stacked_run, "is_exact", lambda: True)
    clock.charge(rehearsal.Solo, "_first_losses", 0.02)
    clock.charge(training.Run, "step", 0.01)
    clock.charge(stacked_run.StackedRun, "step", seconds)
    plan = TrainingPlan(20, SGD, device="cpu")
    found = choose(DIGITS, plan, 0, most=8, search_steps=10**5)
    assert (found.size, found.onednn) == (size, from_size)
    assert tried
    tried.clear()
    again = choose(DIGITS, plan, 0, most=8, search_steps=10**5)
    assert (again.size, again.onednn, again.measured) == (found.size, found.onednn, found.measured)
    assert not tried, "it is known the next time"
    choose(DIGITS, replace(plan, precision="bfloat16"), 0, most=8, search_steps=10**5)
    assert not tried, "nor is it tried where factors are rounded anyway"


@needs_exact
def test_so_many_together_multiply_so_and_give_what_each_gives_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []
    honest = stacked_run.StackedRun._train_on

    def noted(run: stacked_run.StackedRun, *arguments: Any) -> torch.Tensor:
        seen.append((run.stacked.count, _is_by_onednn()))
        return honest(run, *arguments)

    monkeypatch.setattr(stacked_run.StackedRun, "_train_on", noted)
    specs = [replace(spec(number, rate), onednn=3) for number, rate in enumerate((0.01, 1e6, 0.03))]
    together = gang.run_together(specs, Listener())
    assert set(seen) == {(3, True), (2, True)}, "also when one has diverged: that changes no bit of the others"
    assert not _is_by_onednn()
    assert_equal(together, alone(specs))
    seen.clear()
    gang.run_together([specs[0], specs[2]], Listener())
    assert set(seen) == {(2, False)}
