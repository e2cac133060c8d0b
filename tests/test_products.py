"""Products of float32 matrices by oneDNN: exact, faster where they are taken, and for gangs of a certain size alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lrsearch import gang, gang_choice, precision, products, rehearsal, stacked_run, training
from lrsearch.analysis.strip import strip
from lrsearch.config import load_study
from lrsearch.errors import StudyChangedError
from lrsearch.gang_choice import choose
from lrsearch.products import by_onednn
from lrsearch.storage.store import open_store
from lrsearch.study import run_study
from lrsearch.trial import Matmul, StudyRecord, TrainingPlan, likeness
from tests.clock import Clock
from tests.test_gang import DIGITS, SGD, Listener, alone, assert_equal, spec
from tests.test_study import Quiet

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


@needs_exact
def test_what_a_users_code_has_set_changes_nothing_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, kinds = Clock(monkeypatch, products), set[torch.dtype]()

    def seconds(left: torch.Tensor, right: torch.Tensor) -> float:
        kinds.update((left.dtype, right.dtype))
        return 0.5 if _is_by_onednn() else 1.0

    clock.charge(torch.Tensor, "__matmul__", seconds)
    torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.float64)
    try:
        assert products.is_exact.__wrapped__()
        assert products.is_faster.__wrapped__()
        assert _is_by_onednn()
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)
    assert kinds == {torch.float32}


@needs_exact
def test_trials_train_on_where_a_users_code_sets_in_newer_words_what_torch_may_round() -> None:
    trials = [replace(spec(number, 0.01 * (number + 1), matmul="onednn"), onednn=2) for number in range(2)]
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # by which torch tells nothing of a processor's any more
    try:
        assert not products.is_exact.__wrapped__()
        single, together = alone(trials), gang.run_gang(trials, Listener())
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert torch.get_float32_matmul_precision() == "highest"
    assert [one.error for one in single] == [None, None]
    assert_equal(together, single)


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
    [({8: 0.5, 4: 3.0}, 8, 5), ({8: 0.99, 4: 0.1}, 8, 0), ({8: 2.0}, 8, 0)],
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

    monkeypatch.setattr(training, "is_faster", lambda: True)
    monkeypatch.setattr(stacked_run, "is_exact", lambda: True)
    clock.charge(rehearsal, "_first_losses", 0.02)
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
    for other in (replace(plan, precision="bfloat16"), replace(plan, matmul="default")):
        choose(DIGITS, other, 0, most=8, search_steps=10**5)
        assert not tried, "nor is it tried where factors are rounded anyway, or the study says how to multiply"


def test_a_look_at_a_gang_of_long_steps_looks_also_at_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "is_faster", lambda: True)
    monkeypatch.setattr(rehearsal.Rehearsal, "seconds_per_member", lambda self, *_, **__: 0.6 if self.onednn else 1.1)
    plan, on = TrainingPlan(20, SGD, device="cpu"), torch.device("cpu")
    looked = [
        rehearsal.Rehearsal(training.load(DIGITS, on, 0), one, on, 0, []).look(4, 1.0)
        for one in (plan, replace(plan, matmul="default"))
    ]
    assert looked == [0.6, 1.1]


STEPS = 10_000


@pytest.fixture
def steps_take(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Have a step take a second, and by oneDNN so much of that."""

    def take(share: float) -> None:
        clock.charge(training.Run, "step", lambda run, *_: share if run._by_onednn else 1.0)

    monkeypatch.setattr(training, "is_faster", lambda: True)
    monkeypatch.setattr(training, "is_exact", lambda: True)
    clock = Clock(monkeypatch, precision)
    return take


@pytest.mark.parametrize(("share", "chosen"), [(0.89, "onednn"), (0.91, "auto")])
def test_a_trial_alone_multiplies_so_where_it_is_clearly_faster(
    steps_take: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, share: float, chosen: str
) -> None:
    steps_take(share)
    plan = TrainingPlan(20, SGD, device="cpu")
    assert precision.faster_matmul(DIGITS, plan, 0, 999) == "auto", "there is no time to find out"
    assert precision.faster_matmul(DIGITS, plan, 0, STEPS) == chosen
    steps_take(2.0)
    assert precision.faster_matmul(DIGITS, plan, 0, STEPS) == chosen, "it is known the next time"
    monkeypatch.setattr(precision, "new_run", None)
    for asked in (replace(plan, precision="bfloat16"), replace(plan, compile="on"), replace(plan, matmul="default")):
        assert precision.faster_matmul(DIGITS, asked, 0, STEPS) == asked.matmul
    monkeypatch.setattr(training, "is_faster", lambda: False)
    assert precision.faster_matmul(DIGITS, replace(plan, epochs=2), 0, STEPS) == "auto"


@needs_exact
@pytest.mark.parametrize("matmul", ["auto", "default", "onednn"])
def test_it_multiplies_as_its_plan_says_in_steps_and_evaluations(
    monkeypatch: pytest.MonkeyPatch, matmul: Matmul
) -> None:
    seen: set[bool] = set()
    honest = F.linear

    def noted(*arguments: Any, **named: Any) -> torch.Tensor:
        seen.add(_is_by_onednn())
        return honest(*arguments, **named)

    monkeypatch.setattr(F, "linear", noted)
    [found] = alone([spec(0, 0.01, matmul=matmul)])
    assert seen == {matmul == "onednn"}
    assert not _is_by_onednn()
    assert_equal([found], alone([spec(0, 0.01)]))


STUDY = """
version: 1
name: products
workload: {name: digits, model: mlp, batch_size: 64}
training: {epochs: 30, device: cpu, optimizer: {name: sgd}MATMUL}
seeds: [SEEDS]
rates: {low: 1e-3, high: 0.1}
strategies:
  grid: {name: grid, points: 2}
"""


def test_a_study_keeps_to_what_was_chosen_when_it_began(
    steps_take: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(matmul: str = "", seeds: str = "0", **options: Any) -> StudyRecord:
        (tmp_path / "study.yaml").write_text(STUDY.replace("MATMUL", matmul).replace("SEEDS", seeds))
        with open_store(f"sqlite:///{tmp_path / 'own.db'}") as store:
            return run_study(load_study(tmp_path / "study.yaml"), store, observer=Quiet(), **options)

    steps_take(0.5)
    record = run()
    assert record.config["training"]["matmul"] == "onednn"
    assert strip(record).precision == "float32, matrices multiplied by oneDNN where exact"
    steps_take(2.0)
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "elsewhere"))
    assert len(run(seeds="0, 1", extend=True).trials) == 4
    with pytest.raises(StudyChangedError, match=r"training\.matmul.*onednn.*default"):
        run(", matmul: default")
    again = run(fresh=True)
    assert "matmul" not in again.config["training"]
    assert "matmul" not in likeness(DIGITS, TrainingPlan(20, SGD))
    assert strip(again).precision == "float32"


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
