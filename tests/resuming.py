"""Cuts training runs short and lets them go on from their checkpoints."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from lrsearch import checkpoint
from lrsearch.engine import run_trials
from lrsearch.trial import CheckpointPlan, Choice, CurvePoint, Proposal, TrainingPlan, TrialResult, TrialSpec

UUID = "6f1c8a52-0f4e-4b0e-9c39-0c2a5f4f7d11"
SGD = Choice("sgd", {"momentum": 0.9})


class Channel:
    """Collects points; ends the run at the sign of progress numbered `cut_at`, as if it was killed there."""

    def __init__(self, cut_at: int | None = None) -> None:
        self.points: list[CurvePoint] = []
        self.signs = 0
        self._cut_at = cut_at

    def report(self, uuid: str, point: CurvePoint) -> bool:
        self.points.append(point)
        return True

    def progressed(self) -> None:
        self.signs += 1
        if self.signs == self._cut_at:
            raise SystemExit("cut short")


def spec(workload: Choice, *, epochs: float = 2, optimizer: Choice = SGD, schedule: str = "constant") -> TrialSpec:
    proposal = Proposal("train", Choice(schedule), 0.01, base_lr=None, max_lr=0.01)
    return TrialSpec(UUID, "s", "w", 3, 0, proposal, workload, TrainingPlan(epochs, optimizer, device="cpu"))


def run(trial: TrialSpec, channel: Channel | None = None) -> TrialResult:
    [result] = run_trials([trial], channel or Channel())
    return result


def kept(trial: TrialSpec, folder: Path, attempt: int, charged: Sequence[float] = ()) -> TrialSpec:
    """Return the trial with a checkpoint after every step."""
    return replace(trial, checkpoint=CheckpointPlan(str(folder), 0.0, attempt, tuple(charged)))


def assert_goes_on_bit_for_bit(trial: TrialSpec, folder: Path, cuts: Sequence[float] = (0.3, 0.7)) -> TrialResult:
    """Cut the run at these shares of its length, one after the other, and compare its end with that of an unbroken one.

    Weights are compared through the checkpoint that the last step leaves, values through the result.
    """
    with patch("lrsearch.checkpoint.os.fsync"):  # hundreds of them; that they happen is another test's business
        return _assert_goes_on(trial, folder, cuts)


def _assert_goes_on(trial: TrialSpec, folder: Path, cuts: Sequence[float]) -> TrialResult:
    whole = Channel()
    unbroken = run(kept(trial, folder / "unbroken", 1), whole)
    assert unbroken.status == "completed", unbroken.error
    for attempt, share in enumerate(cuts, start=1):
        found = checkpoint.newest(folder / "broken", UUID)
        done = found[0].step if found else 0
        left = (1 - done / unbroken.train_steps) * whole.signs
        broken = run(kept(trial, folder / "broken", attempt), Channel(cut_at=max(2, round(share * left))))
        assert (broken.error or "").startswith("SystemExit: cut short"), broken.error
    resumed = run(kept(trial, folder / "broken", len(cuts) + 1))
    assert resumed.status == "completed", resumed.error
    assert [replace(p, charged_device_seconds=0.0) for p in resumed.curve] == [
        replace(p, charged_device_seconds=0.0) for p in unbroken.curve
    ]
    for name in ("validation_loss", "validation_metric", "test_loss", "test_metric", "train_steps"):
        assert getattr(resumed, name) == getattr(unbroken, name), name
    assert_equal_states(last_state(folder / "unbroken"), last_state(folder / "broken"))
    return resumed


def last_state(folder: Path) -> object:
    found = checkpoint.newest(folder, UUID)
    assert found is not None
    state: dict[str, object] = torch.load(io.BytesIO(found[1]), weights_only=True)
    return state["run"]


def assert_equal_states(one: object, other: object, path: str = "") -> None:
    """Compare two nested states bit for bit."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal_states(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert isinstance(other, list | tuple)
        assert len(one) == len(other), path
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal_states(a, b, f"{path}[{index}]")
    else:
        assert one == other, path
