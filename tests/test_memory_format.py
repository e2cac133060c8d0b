"""training.memory_format: the same training up to rounding, laid out as timing finds faster, once for a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lrsearch import memory_format, training
from lrsearch.analysis.strip import strip
from lrsearch.config import load_study
from lrsearch.engine import prepare_all
from lrsearch.errors import StudyChangedError
from lrsearch.interfaces import LoadedWorkload
from lrsearch.storage.store import open_store
from lrsearch.study import run_study
from lrsearch.training import Run, new_run
from lrsearch.trial import Choice, StudyRecord, TrainingPlan, likeness
from tests.test_compiling import FILE
from tests.test_gang import SGD
from tests.test_gang_across_seeds import CPU, WithModel
from tests.test_gang_models import histories
from tests.test_study import Quiet

PLAN = TrainingPlan(1, SGD, device="cpu")
MODULE = """
import torch
from torch import nn

def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 3, 8, 8, generator=generator)
    labels = (images[:, 0].mean((1, 2)) > 0).long()
    return (images, labels), (images[:50], labels[:50])

def model():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 2))
"""
OWN = """
version: 1
name: own
workload: {name: callable, model: "MODULE:model", data: "MODULE:data", batch_size: 20, python_path: .}
training: {epochs: 1, optimizer: {name: sgd}, device: cpuFORMAT}
seeds: [SEEDS]
rates: {low: 1e-3, high: 1.0}
strategies: {grid: {name: grid, points: 2, schedule: {name: constant}}}
"""


class Convolutions(nn.Module):
    """Of digits with three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3), nn.Linear(6 * 36, 10)
        self.drop = nn.Dropout(0.3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.drop(self.first(inputs.view(-1, 1, 8, 8).repeat(1, 3, 1, 1)).relu())
        outputs: torch.Tensor = self.last(self.flat(self.second(hidden)))
        return outputs

    def flat(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.flatten(1)


class Viewed(Convolutions):
    def flat(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.view(len(hidden), -1)


class AsItLies(Convolutions):
    def flat(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.as_strided((len(hidden), 6 * 36), (6 * 36, 1))


class GradientAsItLies(Convolutions):
    def __init__(self) -> None:
        super().__init__()
        self.first.register_forward_hook(self._watch)

    @staticmethod
    def _watch(module: nn.Module, inputs: Any, outputs: torch.Tensor) -> None:
        if outputs.requires_grad:
            outputs.register_hook(  # type: ignore[no-untyped-call]  # torch: it is untyped
                lambda gradient: gradient.as_strided(gradient.shape, (4 * 64, 64, 8, 1))
            )


class Volumes(Convolutions):
    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(1, 1, 1)

    def flat(self, hidden: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.volume(hidden[:, None])
        return outputs.flatten(1)


def channels_last() -> nn.Module:
    return Convolutions().to(memory_format=torch.channels_last)


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(10))


Timed = Callable[[Sequence[float]], list[Sequence[Run]]]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Timed:
    """Return a function after which steps take what it is told: as the model lies, and channels last."""
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "cache"))
    calls: list[Sequence[Run]] = []

    def prepare(seconds: Sequence[float]) -> list[Sequence[Run]]:
        def step_seconds(runs: Sequence[Run], *_: Any, **__: Any) -> Sequence[float]:
            really(runs, *_, **__)
            calls.append(runs)
            return seconds

        monkeypatch.setattr(memory_format, "step_seconds", step_seconds)
        return calls

    really = training.step_seconds
    return prepare


def choice(
    monkeypatch: pytest.MonkeyPatch,
    build: Callable[[], nn.Module],
    plan: TrainingPlan = PLAN,
    most: int = 1,
    steps: int = 10_000,
) -> str:
    monkeypatch.setattr(memory_format, "load", lambda workload, device, seed: WithModel(seed, build, torch.float32))
    kind = Choice("callable", {"model": build.__name__})
    return memory_format.faster_memory_format(kind, plan, 0, steps, most)


@pytest.mark.parametrize(("seconds", "chosen"), [((1.0, 0.9), "channels_last"), ((1.0, 0.96), "auto")])
def test_it_is_channels_last_where_steps_take_clearly_less_time_so_and_known_the_next_time(
    timed: Timed, seconds: Sequence[float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = timed(seconds)
    assert choice(monkeypatch, Convolutions) == chosen
    [[own, other]] = calls
    assert [next(run.model.parameters()).stride() for run in (own, other)] == [(27, 9, 3, 1), (27, 1, 9, 3)]
    assert choice(monkeypatch, Convolutions) == chosen
    assert len(calls) == 1
    monkeypatch.setattr(Convolutions, "flat", Viewed.flat)
    assert choice(monkeypatch, Convolutions) == "auto", "its code has changed"


@pytest.mark.parametrize(("steps", "taken"), [(700, 0), (800, 2), (1600, 6), (1_000_000, 16)])
def test_timing_takes_a_hundredth_of_the_study(
    timed: Timed, steps: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = timed((1.0, 0.5))
    assert choice(monkeypatch, Convolutions, steps=steps) == ("channels_last" if taken else "auto")
    assert [run.steps_taken for runs in calls for run in runs] == [taken] * (2 if taken else 0)


@pytest.mark.parametrize(
    ("alone", "together", "chosen"),
    [
        ((1.0, 0.5), (2.0, 3.0), "channels_last"),  # no gang pays
        ((1.0, 0.5), (0.4, 0.6), "auto"),
        ((1.0, 0.5), (0.4, 0.42), "channels_last"),  # chance, as likely as not
        ((1.0, 0.5), (0.4, 0.3), "channels_last"),
        ((0.5, 1.0), (0.0, 0.0), "auto"),  # gangs are not tried
    ],
)
def test_where_trials_train_together_the_faster_of_alone_and_together_counts(
    timed: Timed, alone: Sequence[float], together: Sequence[float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds_together(workload: Choice, plan: TrainingPlan, seed: int, size: int) -> float:
        asked.append((plan.memory_format, size))
        return together[plan.memory_format == "channels_last"]

    asked: list[tuple[str, int]] = []
    timed(alone)
    monkeypatch.setattr(memory_format, "seconds_together", seconds_together)
    assert choice(monkeypatch, Convolutions, most=16) == chosen
    # Where the gang as the model lies is no faster than a trial alone channels last, the other one decides nothing.
    decides = together[0] < alone[1]
    tried = [("auto", 8), ("channels_last", 8)] if decides else [("auto", 8)]
    assert asked == ([] if alone[1] > alone[0] else tried)


@pytest.mark.parametrize(
    "build", [Viewed, AsItLies, GradientAsItLies, Volumes, channels_last, dense, lazy], ids=lambda one: one.__name__
)
def test_a_model_that_fails_or_is_another_function_so_is_left_as_it_is(
    timed: Timed, build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = timed((1.0, 0.5))
    assert choice(monkeypatch, build) == "auto"
    assert calls == []


def test_what_is_given_and_what_is_built_in_is_not_timed(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = timed((1.0, 0.5))
    assert choice(monkeypatch, Convolutions, replace(PLAN, memory_format="contiguous")) == "contiguous"
    monkeypatch.undo()
    built_in = Choice("digits", {"model": "small_cnn"})
    assert memory_format.faster_memory_format(built_in, PLAN, 0, 10_000) == "auto"
    assert calls == []


def test_it_is_timed_in_single_precision_on_the_processor_where_the_precision_is_open_too(
    timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = timed((1.0, 0.5))
    assert choice(monkeypatch, Convolutions, replace(PLAN, precision="auto")) == "channels_last"
    assert [run.training.precision for run in calls[0]] == ["float32", "float32"]


@pytest.mark.parametrize(
    ("wanted", "stride"), [("auto", (27, 9, 3, 1)), ("channels_last", (27, 1, 9, 3)), ("contiguous", (27, 9, 3, 1))]
)
def test_weights_lie_as_the_study_says(wanted: Any, stride: tuple[int, ...]) -> None:
    builds = {"auto": Convolutions, "channels_last": Convolutions, "contiguous": channels_last}
    loaded: LoadedWorkload = WithModel(0, builds[wanted], torch.float32)
    run = new_run(loaded, replace(PLAN, memory_format=wanted), CPU, 0)
    run.step(0.1)
    weight = next(run.model.parameters())
    assert weight.shape == (4, 3, 3, 3)
    assert weight.stride() == stride


def test_a_gang_draws_what_each_draws_alone_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout draws in the order of memory."""
    really, strides = new_run, set()

    class Watched(Convolutions):
        def flat(self, hidden: torch.Tensor) -> torch.Tensor:
            strides.add(hidden.stride()[1])
            return super().flat(hidden)

    def begun(loaded: LoadedWorkload, plan: TrainingPlan, *others: Any) -> Run:
        return really(loaded, replace(plan, memory_format="channels_last"), *others)

    _, _, as_before, _ = histories(Watched)
    assert strides == {36}
    monkeypatch.setattr("tests.test_gang_models.new_run", begun)
    strides.clear()
    _, _, together, alone = histories(Watched)
    assert strides == {1}
    losses = [[found[0] for *_, found in history] for history in (together, alone, as_before)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    assert losses[0] != pytest.approx(losses[2], abs=1e-3)


def test_studies_from_before_there_was_such_a_key_are_what_they_were(tmp_path: Path) -> None:
    studies = []
    for given in ("", ", memory_format: auto", ", memory_format: channels_last"):
        path = tmp_path / "study.yaml"
        path.write_text(FILE.replace("COMPILE", given))
        studies.append(load_study(path))
    default, auto, last = studies
    assert "memory_format" not in default.resolved()["training"]
    assert "memory_format" not in likeness(default.workload_choice(), default.training_plan())
    assert default.fingerprint() == auto.fingerprint() != last.fingerprint()
    assert auto.as_begun(last).fingerprint() == last.fingerprint(), "a study that goes on keeps to what was chosen"
    assert auto.as_begun(default).fingerprint() == default.fingerprint()


def test_every_kind_of_a_study_has_the_format_of_the_first(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def prepare(workload: Choice, plan: TrainingPlan, *others: Any, **settings: Any) -> Any:
        seen.append(plan.memory_format)
        return really(workload, plan, *others, **settings)

    really = training.prepare
    monkeypatch.setattr(training, "prepare", prepare)
    monkeypatch.setattr(memory_format, "faster_memory_format", lambda *_: "channels_last")
    digits = Choice("digits", {"model": "small_cnn"})
    prepared = prepare_all([(digits, PLAN), (digits, replace(PLAN, optimizer=Choice("adam")))], 0)
    assert seen == ["auto", "channels_last"]
    assert prepared.memory_format == "channels_last"


def test_a_study_keeps_to_what_was_chosen_when_it_began(
    timed: Timed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{module}.py").write_text(MODULE)

    def run(layout: str = "", seeds: str = "0", **options: Any) -> StudyRecord:
        file = tmp_path / "study.yaml"
        file.write_text(OWN.replace("MODULE", module).replace("FORMAT", layout).replace("SEEDS", seeds))
        with open_store(f"sqlite:///{tmp_path / 'own.db'}") as store:
            return run_study(load_study(file), store, observer=Quiet(), **options)

    calls = timed((1.0, 0.5))
    monkeypatch.setattr(memory_format, "PROBE_SHARE", 1.0)  # of sixteen steps
    record = run()
    assert record.config["training"]["memory_format"] == "channels_last"
    assert strip(record).precision == "float32, weights channels last"
    assert [trial.status for trial in record.trials] == ["completed"] * 2
    timed((1.0, 2.0))
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "elsewhere"))
    assert len(run().trials) == 2
    assert len(run(seeds="0, 1", extend=True).trials) == 4
    assert len(calls) == 1
    with pytest.raises(StudyChangedError, match=r"training\.memory_format.*channels_last.*contiguous"):
        run(", memory_format: contiguous")
    again = run(fresh=True)
    assert "memory_format" not in again.config["training"]
    assert strip(again).precision == "float32"


def test_where_another_process_was_faster_to_begin_the_study_its_choice_holds(
    timed: Timed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On PostgreSQL, where that process is waited for, what it timed may have come out otherwise."""
    module = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{module}.py").write_text(MODULE)
    file = tmp_path / "study.yaml"
    file.write_text(OWN.replace("MODULE", module).replace("FORMAT", "").replace("SEEDS", "0"))
    config = load_study(file)
    with open_store(f"sqlite:///{tmp_path / 'own.db'}") as store:

        def choose(_: Choice, plan: TrainingPlan, *others: object) -> str:
            if not store.studies():
                first = config.settled(memory_format="channels_last")
                store.create_study(config.name, first.resolved(), first.fingerprint())
            return plan.memory_format

        monkeypatch.setattr(store, "sqlite_file", None)
        monkeypatch.setattr(store, "_identity", None)
        monkeypatch.setattr(memory_format, "faster_memory_format", choose)
        record = run_study(config, store, observer=Quiet())
    assert record.config["training"]["memory_format"] == "channels_last"
    assert [trial.status for trial in record.trials] == ["completed"] * 2
