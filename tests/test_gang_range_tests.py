"""Range tests of several seeds and repeats that climb together: each shows what it shows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lrsearch.engine import run_trials
from lrsearch.gang import check_alike, run_gang
from lrsearch.range_test import judge
from lrsearch.stacked_run import CannotGangError
from lrsearch.trial import Choice, Proposal, RangeTestPlan, TrialResult, TrialSpec, charged_seconds
from tests.records import some
from tests.test_gang import COST, DIGITS, SGD, Listener, alone, spec
from tests.test_gang_across_seeds import PLAIN, lively

ADAMW = Choice("adamw", {"weight_decay": 0.1})
LONG = RangeTestPlan(1e-4, 10.0, epochs=12.0)
GENTLE = RangeTestPlan(1e-5, 1e-2, min_steps=40, epochs=1.0)
CALM_RATE = 0.3
"""Above it the loss runs away, and rounding with it."""
PRECISE = """
import torch
from sklearn.datasets import load_digits
def data():
    images, labels = (torch.from_numpy(one) for one in load_digits(return_X_y=True))
    images = images.reshape(-1, 64) / 16 - 0.3
    return (images[:1438], labels[:1438]), (images[1438:], labels[1438:])
class Net(torch.nn.Sequential):
    def forward(self, images):
        return super().forward(images.double())
def model():
    return Net(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).double()
"""
"""In double precision rounding is still small where the loss runs away: single precision ends a few steps off."""


def range_tests(
    plan: RangeTestPlan, *crowds: tuple[int, int], workload: Choice = DIGITS, **training: Any
) -> list[TrialSpec]:
    """Return a range test for each (seed, repeat)."""
    return [
        replace(
            spec(number, 0.0, **training),
            seed=seed,
            workload=workload,
            proposal=Proposal("range_test", range_test=replace(plan, repeat=repeat)),
        )
        for number, (seed, repeat) in enumerate(crowds)
    ]


def assert_same_tests(specs: Sequence[TrialSpec], together: Sequence[TrialResult]) -> None:
    for one, found, expected in zip(specs, together, alone(specs), strict=True):
        for name in ("uuid", "status", "train_steps", "diverged_step", "error", "device", "curve", "facts"):
            assert getattr(found, name) == getattr(expected, name), name
        assert len(found.range_test) == len(expected.range_test)
        for point, wanted in zip(found.range_test, expected.range_test, strict=True):
            for key, value in asdict(wanted).items():
                if value is None or key in ("step", "learning_rate"):
                    assert getattr(point, key) == value
                elif wanted.learning_rate < CALM_RATE:
                    assert getattr(point, key) == pytest.approx(
                        value, rel=1e-3, abs=3 / 288 if "metric" in key else 1e-4
                    )
                else:
                    assert getattr(point, key) is not None
        plan, name = some(one.proposal.range_test), one.training.optimizer.name
        verdicts = [judge(test.range_test, some(test.facts), plan, name, bootstrap=0) for test in (found, expected)]
        for key, value in asdict(verdicts[1]).items():
            approximate = isinstance(value, float)
            assert getattr(verdicts[0], key) == (pytest.approx(value, rel=0.05) if approximate else value), key


@pytest.mark.parametrize(
    ("plan", "optimizer"), [(LONG, SGD), (GENTLE, ADAMW)], ids=["until the loss runs away", "to the end"]
)
def test_range_tests_of_seeds_and_repeats_show_together_what_each_shows_alone(
    plan: RangeTestPlan, optimizer: Choice, tmp_path: Path
) -> None:
    (tmp_path / "precise.py").write_text(PRECISE)
    code = {"model": "precise:model", "data": "precise:data", "python_path": str(tmp_path)}
    workload = Choice("callable", {"batch_size": 64, **code}) if plan is LONG else DIGITS
    specs = range_tests(plan, (0, 0), (5, 0), (0, 1), (0, 2), (5, 0), workload=workload, optimizer=optimizer)
    together = run_gang(specs, Listener())
    assert [one.gang_size for one in together] == [5] * 5
    assert_same_tests(specs, together)
    assert together[4].range_test == together[1].range_test, "two ways' tests of one seed are the same"
    if plan is GENTLE:
        assert {one.train_steps for one in together} == {40}
    else:
        assert len({one.train_steps for one in together}) > 1, "some left earlier"


def test_a_range_test_is_charged_its_steps_and_evaluations_alone_and_billed_its_share() -> None:
    specs = range_tests(LONG, (0, 0), (5, 0))
    results = run_gang(specs, Listener())
    for result in results:
        evaluations = sum(
            point.validation_loss is not None or point.validation_metric is not None for point in result.range_test
        )
        test = result.train_steps * COST.step_seconds + evaluations * COST.range_test_seconds
        assert result.phase_seconds["range_test"] == pytest.approx(test)
        assert charged_seconds(result.phase_seconds) == pytest.approx(COST.setup_seconds + test)
        billed = some(result.billed_phase_seconds)
        assert 0 < billed["range_test"] < test
        assert not {"train", "evaluate"} & (billed.keys() | result.phase_seconds.keys())


def test_a_range_test_trains_neither_with_training_runs_nor_with_tests_of_other_rates() -> None:
    [first, other] = range_tests(LONG, (0, 0), (1, 0))
    gentle = replace(other, proposal=Proposal("range_test", range_test=GENTLE))
    for stranger in (gentle, spec(1, 0.1)):
        with pytest.raises(CannotGangError, match="same rates"):
            check_alike([first, stranger])
    results = run_trials([first, gentle], Listener())
    assert [one.gang_size for one in results] == [1, 1]
    assert_same_tests([first, gentle], results)


def test_where_seeds_draw_chance_of_their_own_their_range_tests_climb_apart(tmp_path: Path) -> None:
    drops = lively(tmp_path, "drops", **PLAIN | {"inputs": "torch.dropout(inputs, 0.5, self.training)"})
    specs = range_tests(GENTLE, (0, 0), (0, 1), (0, 0), workload=drops)
    results = run_trials(specs, Listener())
    assert [one.gang_size for one in results] == [2, 1, 2]
    assert_same_tests(specs, results)
