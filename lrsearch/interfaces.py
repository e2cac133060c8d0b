"""The seams of lrsearch on one page. Each open folder holds implementations of one of these and a registry of them.

    schedules/   SCHEDULES    factory(**rates_and_settings) -> Schedule
    workloads/   WORKLOADS    class -> Workload
    strategies/  STRATEGIES   class -> Strategy
    executors/   EXECUTORS    class -> ExecutorSettings, whose `start` gives an Executor
    figures/     FIGURES      Drawing, whose `draw` is a FigureMaker

Workload and strategy classes are frozen pydantic models (`Settings`): their fields are what a study file may say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from lrsearch.trial import (
    CurvePoint,
    History,
    Proposal,
    StudyRecord,
    TrialRecord,
    TrialResult,
    TrialSpec,
    WorkloadFacts,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import torch

T = TypeVar("T")

Schedule = Callable[[int], float]
"""Learning rate of optimiser step 0, 1, 2, ...; pure: no state, nothing to checkpoint."""

Split = Literal["validation", "range_test", "test"]
"""`range_test` is the fixed stratified subset of the validation split on which range tests evaluate."""

CODE_COPY_VARIABLE = "LRSEARCH_PYTHON_PATH_COPY"
"""Where a process on another machine finds its copy of the folder that workload.python_path names here."""

Batch = tuple[Any, Any]
"""(inputs, targets), both on the trial's device. Inputs are a tensor, or whatever the user's model takes."""
BLOCK_STEPS = 8
"""What times steps times so many at once, and a workload may prepare as many batches together: then each block of timed
steps has its share of the preparing."""

PROBE_SHARE = 0.01
"""Of what a search takes, what timing may take that chooses how to run it: a quarter each for the number of processes,
what a trial takes alone, and gangs, an eighth for the precision; and as much again for `compile: auto`, and for how
convolutions of a user's lie in memory."""


MOST_EPOCHS = 1e9
"""So that they can be counted in steps."""
Epochs = Annotated[float, Field(gt=0, le=MOST_EPOCHS)]


class Settings(BaseModel):
    """Base of everything people write in a study file: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class LoadedWorkload(Protocol):
    """A workload whose data lie ready on a device, split for one replicate seed."""

    @property
    def facts(self) -> WorkloadFacts: ...

    def build_model(self) -> torch.nn.Module:
        """Return a new model on the device, initialised by torch's global generator, which the caller has seeded."""
        ...

    def train_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        """Yield one epoch: `facts.steps_per_epoch` shuffled, augmented batches; all chance is `generator`'s (CPU)."""
        ...

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        """Yield the split in a fixed order, unaugmented, in batches of any size."""
        ...

    def loss(self, outputs: Any, targets: Any) -> torch.Tensor:
        """Return the mean loss of a batch, a scalar that can be differentiated."""
        ...

    def metric(self, outputs: Any, targets: Any) -> float:
        """Return the metric over a whole split: arguments are all batches' outputs and targets, concatenated."""
        ...


@runtime_checkable
class KnowsItsLayout(Protocol):
    """A loaded workload that says how the weights of its models are to lie in memory."""

    @property
    def channels_last(self) -> bool:
        """Whether the channels of a pixel, and of a convolution's weights, lie beside each other."""
        ...


@runtime_checkable
class HasStackedLoss(Protocol):
    """A loaded workload that computes the loss of many models at once faster than `torch.func.vmap` of `loss` does."""

    def stacked_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return each model's mean loss, (models,), for outputs and targets of (models, rows, ...)."""
        ...


@runtime_checkable
class FitsMetric(Protocol):
    """A loaded workload whose metric has something to choose from validation outputs, such as a threshold."""

    def fit_metric(self, outputs: Any, targets: Any) -> Callable[[Any, Any], float]:
        """Return the metric, chosen on these outputs and targets of a validation split, to take the place of `metric`.

        What the validation outputs of a model have chosen holds for its test outputs. A range test chooses anew for
        each model, on the outputs that it judges.
        """
        ...


@runtime_checkable
class ReadsExamples(Protocol):
    """A loaded workload that may read its training data example by example."""

    @property
    def reads_examples(self) -> bool:
        """Whether it does, in Python, instead of taking batches from tensors."""
        ...


@runtime_checkable
class SamplesItsData(Protocol):
    """A loaded workload whose data may be others in another process, because a function of the user's makes them."""

    @property
    def data_sample(self) -> Sequence[float]:
        """Numbers that are others, beyond rounding, where the data are others, or are in another order."""
        ...


@runtime_checkable
class HasOwnChance(Protocol):
    """A loaded workload whose data may draw from generators of their own."""

    @property
    def random_sources(self) -> Sequence[object]:
        """Data sets, transforms and samplers in which such generators are to be looked for."""
        ...


class Workload(Protocol):
    """Model, data, loss and metric. Importing the module that defines one must not import torch."""

    @property
    def name(self) -> str: ...

    @property
    def batch_size(self) -> int: ...

    def load(self, device: torch.device, seed: int) -> LoadedWorkload:
        """Return the workload with data on `device` and train/validation split by `seed`; the test set never changes.

        Called once per trial: whatever is expensive (decoding, copying to the device) is kept for the process's life.
        Raises DataError when data are missing or corrupt, WorkloadError when the user's functions are unusable.
        """
        ...


class Strategy(Protocol):
    """A way of choosing a learning rate: a pure function of the history of its own search."""

    @property
    def name(self) -> str: ...

    @property
    def planned_trials(self) -> int:
        """Number of trials (range tests included) of one whole search, as far as known beforehand."""
        ...

    def propose(self, history: History, max_count: int) -> Sequence[Proposal]:
        """Return up to `max_count` next proposals. Depends on `history` and the frozen settings alone.

        Empty while trials run means wait; empty while none run means the search is done. `TrainingStrategy.training`
        makes one.
        """
        ...


@runtime_checkable
class StopsEarly(Protocol):
    """A strategy that may end its trials before their time."""

    def stopper(self, history: History) -> Callable[[Sequence[CurvePoint]], bool]:
        """Return the judge of the trial numbered `len(history.trials)`: points so far -> whether to stop it now."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """A strategy whose proposals may not depend on how its trials that still run will end."""

    @property
    def at_once(self) -> int:
        """How many of its trials may run at once; 1: each waits for the one before.

        Where it is more, `propose` gives the same while earlier trials run as when they have ended, or nothing until
        then.
        """
        ...


@runtime_checkable
class SharesTests(Protocol):
    """A strategy whose searches may all go by the range tests of one of them."""

    @property
    def tests_once(self) -> bool:
        """Whether it does: then `History.shared_tests` brings them to the searches of the other seeds."""
        ...


@runtime_checkable
class ImportsLate(Protocol):
    """A strategy that imports what it proposes with at its first proposals."""

    def import_all(self, history: History) -> None:
        """Import it before there are trials, on whose bill that would be; `history` is one without any."""
        ...


class Channel(Protocol):
    """The way back from a running trial."""

    def report(self, uuid: str, point: CurvePoint) -> bool:
        """Take a curve point; return False to stop (prune) the trial."""
        ...


@runtime_checkable
class Watched(Protocol):
    """A channel whose other end gives up on a trial that makes no progress."""

    def progressed(self) -> None:
        """Hear that a training step or a batch of an evaluation is done. Must take no time."""
        ...


@runtime_checkable
class Told(Protocol):
    """A channel to somebody who wants to know what a trial meets."""

    def message(self, uuid: str, text: str) -> None:
        """Take a sentence that goes on after the name of the trial with that UUID and a colon."""
        ...


RunTrials = Callable[[Sequence[TrialSpec], Channel], Sequence[TrialResult]]
"""engine.run_trials: runs trials as one gang and returns their results in order; failures are results too.

Raises StorageError alone: when a checkpoint cannot be written or read.
"""


class Executor(Protocol):
    """Where trials run, while it is started."""

    @property
    def slot_count(self) -> int:
        """How many gangs can run at once."""
        ...

    def prepare(self, work: Callable[[], T]) -> list[T]:
        """Run `work`, which can be pickled, wherever trials will run, and return what it gave in each slot.

        Raises what it raises, and WorkloadError when it takes its process down.
        """
        ...

    def submit(
        self, run_trials: RunTrials, specs: Sequence[TrialSpec], channel: Channel, slot: int = 0
    ) -> Future[Sequence[TrialResult]]:
        """Run the trials in `slot`, which is free. The future holds a WorkerDiedError when their process died."""
        ...

    def close(self) -> None:
        """Stop what runs, at once, and give everything back."""
        ...


@runtime_checkable
class OnOtherMachines(Protocol):
    """An executor that may lose the machine of a slot: its future then holds a MachineLostError."""

    def has_place(self, slot: int) -> bool:
        """Whether a trial can begin there now. Raises ClusterError when no slot has had a place for too long."""
        ...

    def versions(self, slot: int) -> Mapping[str, str]:
        """Return the versions of the packages there, by name."""
        ...


class ExecutorSettings(Protocol):
    """What a study file says about where trials run."""

    @property
    def name(self) -> str: ...

    @property
    def asynchronous(self) -> bool:
        """Whether a search may propose although trials run on which its proposal would depend."""
        ...

    def start(self, device: str, code: Path | None = None) -> Executor:
        """Return the executor for trials on `device` (training.device).

        `code` is the folder of the user's own modules, if there is one. Raises UsageError when that cannot be.
        """
        ...


class Observer(Protocol):
    """Whoever watches a study run: a progress display, a log. Must be quick; `message` may come from another thread."""

    def study_started(self, record: StudyRecord, planned_trials: dict[str, int]) -> None:
        """`planned_trials`: per strategy, over all seeds. `record` holds what earlier runs of the study finished."""
        ...

    def trial_started(self, trial: TrialRecord) -> None: ...

    def curve_point(self, trial: TrialRecord, point: CurvePoint) -> None: ...

    def trial_finished(self, trial: TrialRecord) -> None: ...

    def message(self, text: str) -> None:
        """One line worth telling: a resume, a lost attempt, a range test's verdict."""
        ...

    def study_finished(self, record: StudyRecord) -> None: ...


FigureMaker = Callable[[StudyRecord], "go.Figure | None"]
"""Draws a study, or returns None when there is nothing to draw. A figure never decides anything."""
