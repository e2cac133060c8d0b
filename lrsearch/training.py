"""One loop for all ways: runs trials and range tests on a device and returns what they gave and cost.

Nothing waits for the device inside a segment; losses are read at segment ends.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import importlib
import io
import itertools
import math
import os
import pickle
import random
import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from lrsearch import chance, checkpoint, graphs
from lrsearch.batches import Batches
from lrsearch.cache import recall, remember
from lrsearch.errors import DataError, LrsearchError, MissingExtraError, StorageError, UsageError, WorkloadError
from lrsearch.interfaces import (
    BLOCK_STEPS,
    PROBE_SHARE,
    Channel,
    FitsMetric,
    HasOwnChance,
    KnowsItsLayout,
    LoadedWorkload,
    ReadsExamples,
    SamplesItsData,
    Split,
    Told,
    Watched,
    Workload,
)
from lrsearch.plain_optimizer import plain_step, spare_dynamo
from lrsearch.products import by_onednn, is_exact, is_faster
from lrsearch.range_test import DivergenceStop, ladder, steps_between_evaluations
from lrsearch.registry import lookup
from lrsearch.restore import find_generators
from lrsearch.schedules.plan import PlannedSchedule, plan_schedule
from lrsearch.stacked_values import each_in
from lrsearch.timing import DeviceStopwatch, processor_name, synchronizer
from lrsearch.torch_schedule import set_momentum
from lrsearch.trial import (
    Bills,
    CheckpointPlan,
    Choice,
    Compiling,
    CurvePoint,
    DeviceInfo,
    ParameterGroup,
    Precision,
    Preparation,
    RangeTestPlan,
    RangeTestPoint,
    Reading,
    ResultStatus,
    TrainingPlan,
    TrialResult,
    TrialSpec,
    WorkloadFacts,
    added,
    as_billed,
    charged_seconds,
    likeness,
    planned_steps,
    range_test_steps,
)
from lrsearch.workloads import WORKLOADS
from lrsearch.workloads.user_code import blamed_on_workload, user_line, words_of

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Optimisers whose whole step is one kernel, on the processor too."""
LEARNING_RATE_FREE = {
    "schedulefree_adamw": ("schedulefree", "AdamWScheduleFree"),
    "schedulefree_sgd": ("schedulefree", "SGDScheduleFree"),
    "prodigy": ("prodigyopt", "Prodigy"),
}
"""Module and class of the optimisers that come with the extra `lrfree`."""
READING_STEPS = 32
"""Of those that tell what reading data in Python costs, at most, and no more than begin within"""
READING_SECONDS = 0.5
BATCH_NORM_BATCHES = 50  # the number in Schedule-Free's README


def prepare(
    workload: Choice, training: TrainingPlan, seed: int, *, evaluates: bool = True, times_reading: bool = False
) -> Preparation:
    """Load data and model once and take two throw-away steps, so that no trial pays for imports and first decoding.

    With `evaluates` the validation split is evaluated once, too, and with `times_reading` some more steps tell what it
    costs to read data example by example, where that is done. Where the precision is `auto`, what fails in bfloat16 is
    tried in float32.
    Raises what a user must mend before any trial can run: DataError, WorkloadError, UsageError (no such device).
    """
    began = time.perf_counter()
    device = pick_device(training.device)
    if device.type == "cpu":
        keep_freed_memory()
    wait = synchronizer(device)
    loaded = load(workload, device, seed)
    check_compiling(training, device)
    precision = pick_precision(training.precision, device)
    try:
        run = new_run(loaded, training, device, seed)
        for _ in range(2):
            run.step(0.0)
        losses = run.take_losses()
        if not any(map(math.isfinite, losses)):
            raise WorkloadError(
                f"The loss of the first batches must be a number, got {losses[0]} before any weight has changed: look "
                "for nan in the data, at the loss function, and at the model's first weights."
            )
        wait()
        ready = time.perf_counter()
        if evaluates:
            run.evaluate("validation")
        wait()
        validation_seconds = time.perf_counter() - ready if evaluates else 0.0
        reading = _reading(run, wait) if times_reading and reads_examples(loaded) else None
        del run
        if training.compile == "graphs":
            check_graphs(loaded, training, device, seed)
    except (Exception, SystemExit) as error:
        foreign = not isinstance(error, LrsearchError)
        if training.precision == "auto" and precision == "bfloat16" and (foreign or isinstance(error, WorkloadError)):
            plain = replace(training, precision="float32")
            prepared = prepare(workload, plain, seed, evaluates=evaluates, times_reading=times_reading)
            return replace(prepared, seconds=time.perf_counter() - began)
        if not foreign:
            raise
        where = " in bfloat16 (training.precision)" if precision == "bfloat16" else ""
        raise WorkloadError(
            f"The workload {workload.name!r} cannot take one training step{where}: {one_line(error)}{user_line(error)}"
        ) from error
    wait()
    seconds = time.perf_counter() - began
    return Preparation(
        loaded.facts,
        device_info(device),
        precision,
        training.compile,
        training.memory_format,
        seconds,
        matmul=training.matmul,
        validation_seconds=validation_seconds,
        reading=reading,
        data_sample=loaded.data_sample if isinstance(loaded, SamplesItsData) else (),
    )


def _reading(run: Run, wait: Callable[[], None]) -> Reading:
    """Time steps whose batches are read, and others on one batch that is in memory; the run is none to go on with."""

    def step_seconds() -> float:
        """Return what a step takes, by the later half of some: what workers have read before comes first."""
        found: list[float] = []
        while len(found) < 4 or (len(found) < READING_STEPS and sum(found) < READING_SECONDS):
            began = time.perf_counter()
            run.step(0.0)
            wait()
            found.append(time.perf_counter() - began)
        return statistics.fmean(found[len(found) // 2 :])

    with_reading = step_seconds()
    hold_batches([run], 1)
    return Reading(with_reading, max(0.0, with_reading - step_seconds()))


def reads_examples(loaded: LoadedWorkload) -> bool:
    """Whether training data are read in Python, example by example."""
    return isinstance(loaded, ReadsExamples) and loaded.reads_examples


def hold_batches(runs: Sequence[Run], count: int) -> None:
    """Have runs of one seed take the first `count` batches over and over, where data are read in Python.

    Else the start of those who read, and what they have read ahead, would be timed with the steps. Each step gets a
    copy, as a model may take its batch apart; batches that cannot be copied are read as ever.
    """
    if not reads_examples(runs[0].loaded):
        return
    kept = list(itertools.islice(runs[0].batches, count))
    try:
        copy.deepcopy(kept)
    except Exception:  # of whatever objects a batch consists
        runs[0].batches = cast(Batches, itertools.chain(kept, runs[0].batches))
        return
    for run in runs:
        run.batches = cast(Batches, map(copy.deepcopy, itertools.cycle(kept)))


@dataclass(frozen=True)
class Probe:
    """Seconds of one training step and of one evaluation of the validation and range-test splits, measured."""

    step_seconds: float
    validation_seconds: float
    range_test_seconds: float


def probe(workload: Choice, training: TrainingPlan, seed: int) -> Probe:
    """Time some steps and evaluations on the device for a forecast; `prepare` must have run before."""
    device = pick_device(training.device)
    run = new_run(load(workload, device, seed), training, device, seed)
    wait = synchronizer(device)

    @blamed_on_workload(workload.name)
    def median_seconds(work: Callable[[], object], count: int) -> float:
        """Return the median over five blocks of what one of `count` calls takes: one slow moment does not count."""
        blocks = []
        for _ in range(5):
            wait()
            began = time.perf_counter()
            for _ in range(count):
                work()
            wait()
            blocks.append((time.perf_counter() - began) / count)
        return statistics.median(blocks)

    return Probe(
        median_seconds(lambda: run.step(0.0), BLOCK_STEPS),
        median_seconds(lambda: run.evaluate("validation"), 1),
        median_seconds(lambda: run.evaluate("range_test"), 1),
    )


def pick_device(name: str) -> torch.device:
    """Return the device that `name` asks for; `auto`: cuda, else mps, else cpu. Raises UsageError if it is absent."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"training.device must be auto, cpu, cuda, cuda:N or mps, got {name!r}.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"training.device {name!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices. "
            "Use 'auto' or 'cpu'."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("training.device 'mps' is not here. Use 'auto' or 'cpu'.")
    return torch.device("cuda", 0) if name == "cuda" else device


def pick_precision(name: str, device: torch.device) -> Precision:
    """Return `float32` or `bfloat16`; `auto` is bfloat16 where the device has instructions for it."""
    if name != "auto":
        return "bfloat16" if name == "bfloat16" else "float32"
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= FIRST_WITH_BFLOAT16 else "float32"
    return "bfloat16" if device.type == "cpu" and _PROCESSOR_BFLOAT16 & _processor_flags() else "float32"


def may_multiply_faster(training: TrainingPlan, device: torch.device) -> bool:
    """Whether the training multiplies in float32 what oneDNN, left to it, would multiply faster (see products.py)."""
    single = device.type == "cpu" and pick_precision(training.precision, device) == "float32"
    return single and training.matmul != "default" and is_faster()


FIRST_WITH_BFLOAT16 = (8, 0)
"""Compute capability (Ampere)."""
_PROCESSOR_BFLOAT16 = frozenset(("avx512_bf16", "amx_bf16", "bf16"))


def fastest_compiling(
    workload: Choice, training: TrainingPlan, seed: int, search_steps: int, open_to: Collection[Compiling]
) -> Compiling:
    """Return which of `off` and those that the study is `open_to` takes a trial alone the least time.

    torch.compile is timed if it takes no more than PROBE_SHARE of the `search_steps` that this process takes in the
    study: COMPILING_SECONDS, before it has been seen. What cannot be compiled, or recorded with the same losses, is
    not. `gangs` are not looked at: see gang_choice.choose.
    """
    device = pick_device(training.device)
    where = [likeness(workload, training), *machine_of(device)]
    found: dict[Compiling, float] = {}
    loaded: LoadedWorkload | None = None
    seconds = 0.0
    for candidate in open_to:
        if candidate == "gangs" or (candidate == "graphs" and not graphs.can_record(device)):
            continue
        share: float | None = recall("compiled", [*where, candidate])
        if share is None:
            if loaded is None:
                loaded = load(workload, device, seed)
                [seconds] = step_seconds([new_run(loaded, training, device, seed)], synchronizer(device))
            if candidate == "on" and PROBE_SHARE * search_steps * seconds < COMPILING_SECONDS:
                continue
            share = _share_of_a_step(loaded, replace(training, compile=candidate), device, seed)
            remember("compiled", [*where, candidate], share)
        if share < MUST_SAVE:
            found[candidate] = share
    return min(found, key=lambda one: found[one], default="off")


def _share_of_a_step(loaded: LoadedWorkload, training: TrainingPlan, device: torch.device, seed: int) -> float:
    """Return what a step takes over one that is neither compiled nor recorded; 1 where that cannot be."""
    try:
        check_compiling(training, device)
        if training.compile == "graphs":
            check_graphs(loaded, training, device, seed)
        runs = [new_run(loaded, replace(training, compile=one), device, seed) for one in ("off", training.compile)]
        plain, other = step_seconds(runs, synchronizer(device))
    except Exception:  # whatever stops the compiler, the model trains without it
        return 1.0
    return other / plain


TIMED_BLOCKS = 4
"""The first of which is not counted."""
HELD_BATCHES = 2
"""In memory, where ways to take a step are compared and data are read in Python."""


def step_seconds(
    runs: Sequence[Run], wait: Callable[[], None], block: int = BLOCK_STEPS, count: int = TIMED_BLOCKS
) -> list[float]:
    """Return what a step takes in each run, in seconds: the median of `count` blocks of steps but the first, which
    warms up; the runs take turns, on the same batches.
    """
    hold_batches(runs, HELD_BATCHES)
    blocks: list[list[float]] = [[] for _ in runs]
    for number in range(count):
        for run, own in zip(runs, blocks, strict=True):
            wait()
            began = time.perf_counter()
            for _ in range(block):
                run.step(0.0)
            wait()
            if number:
                own.append((time.perf_counter() - began) / block)
    return [statistics.median(own) for own in blocks]


COMPILING_SECONDS = 60.0
MUST_SAVE = 0.98
"""Of what a step takes alone, uncompiled or in a larger gang, the most that another way may take to be chosen. Timing
errs by more, but to ask for more would be to forgo as much."""


@functools.cache
def _processor_flags() -> frozenset[str]:
    """Return the instruction sets that Linux names; none elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return frozenset(word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split())


def autocast(training: TrainingPlan, device: torch.device) -> torch.autocast:
    """Return the context in which a model of this training computes."""
    bfloat16 = pick_precision(training.precision, device) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)


def device_info(device: torch.device) -> DeviceInfo:
    """Return what the ledger records of `device`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return DeviceInfo(kind=device.type, name=name, count=1, threads=torch.get_num_threads())


def machine_of(device: torch.device) -> list[object]:
    """Return what timings on `device` hold for."""
    return [device_info(device).name, torch.get_num_threads(), torch.__version__]


def load(choice: Choice, device: torch.device, seed: int) -> LoadedWorkload:
    workload: Workload = lookup("workload", WORKLOADS, choice.name)(name=choice.name, **choice.settings)
    try:
        return workload.load(device, seed)
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise DataError(
            f"The workload {choice.name!r} cannot read its data: {error}. Mend the path or its rights."
        ) from error


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the optimiser of that name. Raises UnknownNameError, and MissingExtraError when its package is absent."""
    if name not in LEARNING_RATE_FREE:
        return lookup("optimizer", OPTIMIZERS, name)
    module, attribute = LEARNING_RATE_FREE[name]
    try:
        found: type[torch.optim.Optimizer] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise MissingExtraError(f"The optimizer {name!r}", "lrfree") from error
    return found


def build_optimizer(training: TrainingPlan, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser; each of its groups carries the multiplier by which `Run.step` sets its rate.

    Until then its rate is 1, because Prodigy refuses 0.
    """
    found = optimizer_class(training.optimizer.name)
    spare_dynamo()
    groups = _parameter_groups(model, training.groups)
    one_kernel: dict[str, Any] = {"fused": True} if found in FUSED and _has_kernel(model) else {}
    with contextlib.redirect_stdout(None):  # Prodigy prints how it decays weights
        optimizer = found(groups, lr=1.0, **training.optimizer.settings, **one_kernel)  # type: ignore[call-arg]  # all take lr
    for group in optimizer.param_groups:
        group["weight_decay"] *= group["weight_decay_multiplier"]
    return optimizer


def _has_kernel(model: torch.nn.Module) -> bool:
    """Whether one kernel can take the step of all weights: none of them is complex or has sparse gradients, or has
    numbers of others between its own, as a slice has: the kernels of a processor take all that lies there (torch 2.15).
    """
    plain = not any(one.is_complex() or not _is_whole(one) for one in model.parameters())
    dense = not any(getattr(module, "sparse", False) is True for module in model.modules())
    return plain and dense and next(model.parameters()).device.type in ("cpu", "cuda")


def _is_whole(tensor: torch.Tensor) -> bool:
    """Whether each number of its memory, from its first to its last, is one of its own, and of one place alone."""
    return is_lazy(tensor) or torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _parameter_groups(model: torch.nn.Module, groups: Sequence[ParameterGroup]) -> list[dict[str, Any]]:
    """Return the groups of the optimiser: what no pattern matches, then one for each pattern.

    What a multiplier of 0 freezes needs no gradient and is in no group. Raises UsageError for a pattern that matches
    nothing, and when nothing is left to train.
    """
    left = dict(model.named_parameters())
    matched = [(group, _take_matching(left, index, group)) for index, group in enumerate(groups)]
    built = []
    for group, parameters in [(ParameterGroup("*"), list(left.values())), *matched]:
        if group.rate_multiplier == 0:
            for parameter in parameters:
                parameter.requires_grad_(False)
        elif parameters:
            built.append({**asdict(group), "params": parameters})
    if not built:
        raise UsageError("training.groups freezes every parameter; give some a rate_multiplier above 0.")
    return built


def _take_matching(left: dict[str, torch.nn.Parameter], index: int, group: ParameterGroup) -> list[torch.nn.Parameter]:
    """Take the parameters that `group` matches out of `left`. Raises UsageError when there are none."""
    names = [name for name in left if fnmatchcase(name, group.pattern)]
    if not names:
        shown = ", ".join(list(left)[:10]) or "none"
        raise UsageError(
            f"training.groups.{index}.pattern {group.pattern!r} matches no parameter that earlier patterns left; "
            f"left are: {shown}{', ...' if len(left) > 10 else ''}."
        )
    return [left.pop(name) for name in names]


def _frozen_batch_norms(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the batch norms whose own parameters are all frozen: their running statistics are to stay as they are."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.affine and not any(p.requires_grad for p in norm.parameters())]


def random_sources(loaded: LoadedWorkload) -> list[object]:
    """Return what of the user's makes the batches."""
    return list(loaded.random_sources) if isinstance(loaded, HasOwnChance) else []


def own_generators(loaded: LoadedWorkload, model: torch.nn.Module) -> list[object]:
    """Return the generators that data and model keep for themselves, always in the same order."""
    held = [found for part in model.modules() for found in find_generators(vars(part))]
    return find_generators(random_sources(loaded)) + held


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep what is freed, for the rest of this process; elsewhere nothing changes.

    It would give large tensors back to the system one by one, which clears their pages again at each step: a third of
    the time of a gang of convolutions.
    """
    with contextlib.suppress(OSError, AttributeError):
        set_option = ctypes.CDLL("libc.so.6").mallopt
        for option, value in MALLOC_OPTIONS:
            set_option(option, value)


MALLOC_OPTIONS = ((-4, 0), (-1, 2**31 - 1), (-2, 2**28))
"""M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of <malloc.h>, with the values to set."""


def check_compiling(training: TrainingPlan, device: torch.device) -> None:
    """Raise UsageError where torch.compile has nothing to compile with, or nothing can record the steps."""
    if training.compile == "graphs":
        if not graphs.can_record(device):
            raise UsageError(
                f"training.compile is graphs, but a {device.type} device has no CUDA graphs. Say off, on or auto."
            )
        if training.optimizer.name not in RECORDABLE:
            raise UsageError(
                f"training.compile is graphs, which records steps of {', '.join(RECORDABLE)} alone, and not of "
                f"{training.optimizer.name}. Say off, on or auto."
            )
    elif training.compile == "on" and not has_compiler(device):
        raise UsageError(
            "training.compile is on, and on a processor torch.compile needs a C++ compiler; there is no g++ here. "
            "Install one, name it in CXX, or say off."
        )


def check_graphs(loaded: LoadedWorkload, training: TrainingPlan, device: torch.device, seed: int) -> None:
    """Raise WorkloadError when steps that are replayed do not train as steps that are not.

    Losses are compared, and what the model keeps beside its parameters.
    """
    plain, replayed = (
        _first_steps(new_run(loaded, replace(training, compile=compiling), device, seed))
        for compiling in ("off", "graphs")
    )
    tolerance = TOLERANCE[pick_precision(training.precision, device)]
    for (name, expected), (_, found) in zip(plain, replayed, strict=True):
        if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
            raise WorkloadError(
                f"Replayed from a CUDA graph the model comes to another {name}: it does something in its steps that is "
                "no computation on tensors that stay where they are. Set training.compile to off."
            )


def _first_steps(run: Run) -> list[tuple[str, torch.Tensor]]:
    """Return what GRAPH_STEPS steps give. Raises WorkloadError when they were to be replayed and are not."""
    for _ in range(GRAPH_STEPS):
        run.step(GRAPH_RATE)
    if run.why_not_replayed or run.is_warming:
        reason = run.why_not_replayed or "no step was recorded"
        raise WorkloadError(f"The steps cannot be recorded: {reason}. Set training.compile to off.")
    buffers = [(f"buffer {name}", buffer.double().cpu()) for name, buffer in run.model.named_buffers()]
    return [("loss", torch.tensor(run.take_losses(), dtype=torch.float64)), *buffers]


GRAPH_STEPS = graphs.UNRECORDED_STEPS + 4
GRAPH_RATE = 1e-4
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""How far, relative to the larger of 1 and itself, the loss of replayed or stacked steps may be from others'."""
RECORDABLE = ("sgd", "adam", "adamw")
"""Optimizers whose whole step is one kernel, which takes its rate from the device."""


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile has something to compile with; on a GPU it brings that."""
    return device.type != "cpu" or bool(os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++"))


@functools.cache
def compiled() -> Callable[[torch.nn.Module, Any], Any]:
    """Return what calls a model with its inputs, compiled for each kind of model and inputs at its first call.

    All runs of a process share it, so that the trials of a study are compiled once, when the study is prepared; but a
    trial whose batches have shapes that preparing did not meet compiles for these.
    """
    function: Callable[[torch.nn.Module, Any], Any] = torch.compile(_call)
    return function


def _call(model: torch.nn.Module, inputs: Any) -> Any:
    return model(inputs)


def _no_news() -> None:
    """Take a sign of progress that nobody waits for."""


@dataclass
class Run:
    """Model, optimiser and data of one trial; knows how to step and how to evaluate."""

    loaded: LoadedWorkload
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    training: TrainingPlan
    device: torch.device
    batches: Batches
    progressed: Callable[[], None] = _no_news
    steps_taken: int = 0
    """In this attempt."""
    evaluations: int = 0
    """In this attempt, but that of the test split."""
    _losses: list[torch.Tensor] = field(default_factory=list)
    _metric: Callable[[Any, Any], float] | None = None
    """What the last evaluation before the test fitted; None where the workload's metric has nothing to fit."""

    def __post_init__(self) -> None:
        self.switch(training=True)
        self._forward = partial(compiled(), self.model) if self.training.compile == "on" else self.model
        self._replayed: graphs.Replayed | None = None
        if self.training.compile == "graphs":
            for group in self.optimizer.param_groups:
                if "capturable" in group:
                    group["capturable"] = True  # Adam: count the steps on the device
            # It would warn of the steps that are not recorded.
            self.optimizer._warned_capturable_if_run_uncaptured = True
            self._replayed = graphs.Replayed(self.device)
        self._optimizer_step: Callable[[], object] | None = None
        self._has_moved = False
        """Whether a step had a rate: before that nothing has diverged, and what is raised is an error."""
        self.raised: str | None = None
        """What torch has raised for numbers alone, all finite, which counts as divergence."""
        self._by_onednn = self.training.matmul == "onednn" and self.device.type == "cpu" and is_exact()
        self._trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def step(self, learning_rate: float, momentum: float | None = None) -> None:
        """Take one optimiser step at `learning_rate`; the loss stays on the device until `take_losses`."""
        inputs, targets = next(self.batches)
        if self._replayed is not None and momentum is not None:
            self._replayed.give_up("the momentum is scheduled, and would stay as it was recorded")
        if self._replayed is not None and self._replayed.why_not is None:
            rate = torch.full((), learning_rate, dtype=torch.float32, device=self.device)
            loss = self._replayed.step(self._recorded_step, rate, inputs, targets)
        else:
            self._set_rates(learning_rate, momentum)
            with by_onednn(self._by_onednn):
                loss = self._train_on(inputs, targets)
        self._losses.append(loss)
        self._has_moved |= learning_rate != 0
        self.steps_taken += 1
        self.progressed()

    @property
    def is_warming(self) -> bool:
        """Whether the steps to come are still to be recorded."""
        return self._replayed is not None and self._replayed.is_warming

    @property
    def why_not_replayed(self) -> str | None:
        """Why steps that were to be recorded could not be; None where they were, or have not been tried."""
        return None if self._replayed is None else self._replayed.why_not

    def _recorded_step(self, rate: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self._set_rates(rate, None)
        return self._train_on(inputs, targets)

    def _set_rates(self, learning_rate: float | torch.Tensor, momentum: float | None) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_multiplier"]
            if momentum is not None:
                set_momentum(group, momentum)

    def _first_optimizer_step(self) -> None:
        """Take a step; not in one kernel where some weights get their first gradient later, which SGD's refuses."""
        begun, sgd = self.optimizer.state, isinstance(self.optimizer, torch.optim.SGD)
        if sgd and any(one.grad is None or (begun and one not in begun) for one in self._trained):
            for group in self.optimizer.param_groups:
                if group["fused"]:
                    group.update(fused=False, foreach=True)
        self._optimizer_step = plain_step(self.optimizer)
        self._optimizer_step()

    def _train_on(self, inputs: Any, targets: Any) -> torch.Tensor:
        """Take one optimiser step and return the loss before it."""
        for parameter in self._trained:
            parameter.grad = None
        outputs = None
        try:
            with autocast(self.training, self.device):
                outputs = self._forward(inputs)
                loss = self.loaded.loss(outputs, targets)
        except Exception as error:
            if not self._diverges(error, [outputs, *self._trained]):
                raise
            return torch.full((), math.nan, device=self.device)
        loss.backward()  # type: ignore[no-untyped-call]  # torch: backward is untyped
        if self.training.gradient_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.gradient_clip_norm)
        (self._optimizer_step or self._first_optimizer_step)()
        return loss.detach()

    def take_losses(self) -> list[float]:
        """Return the losses of the steps since the last call: the one place where training waits for the device."""
        losses: list[float] = torch.stack(self._losses).tolist() if self._losses else []
        self._losses.clear()
        return losses

    def evaluate(self, split: Split) -> tuple[float | None, float | None]:
        """Return loss and metric over the whole split, in evaluation mode; None where not finite.

        The test split has the metric that the same model's validation outputs fitted.
        """
        self.evaluations += split != "test"
        self.switch(training=False)
        outputs: list[torch.Tensor] = []
        targets: list[torch.Tensor] = []
        try:
            with torch.no_grad(), autocast(self.training, self.device), by_onednn(self._by_onednn):
                for batch_inputs, batch_targets in self.loaded.evaluation_batches(split):
                    # It may have asked for gradients.
                    outputs.append(self.model(batch_inputs).detach())
                    targets.append(batch_targets)
                    self.progressed()
            self.switch(training=True)
            all_outputs, all_targets = whole(outputs, "outputs", split).float(), whole(targets, "targets", split)
            loss = float(self.loaded.loss(all_outputs, all_targets))
        except Exception as error:
            if not self._diverges(error, [*outputs, *self._trained]):
                raise
            self.switch(training=True)
            return None, None
        if isinstance(self.loaded, FitsMetric) and split != "test":
            self._metric = self.loaded.fit_metric(all_outputs, all_targets)
        metric = self._metric or self.loaded.metric
        return finite(loss), finite(metric(all_outputs, all_targets))

    def _diverges(self, error: Exception, numbers: Sequence[Any]) -> bool:
        """Whether what was raised is a result: once a step has had a rate, not what model and loss cannot do at all."""
        if not self._has_moved or comes_of_divergence(error, numbers):
            return self._has_moved
        if not is_about_numbers(error):
            return False
        self.raised = storable(one_line(error) + user_line(error))  # they may be those of the data
        return True

    def switch(self, *, training: bool) -> None:
        """Put model and optimiser into training or evaluation mode: Schedule-Free evaluates at other weights."""
        switch = getattr(self.optimizer, "train" if training else "eval", None)
        if switch is not None:
            switch()
            if not training:
                self._refresh_batch_norm()
        self.model.train(training)
        for module in _frozen_batch_norms(self.model):
            module.eval()

    def _refresh_batch_norm(self) -> None:
        """Let batch norm see training batches at the weights that are to be evaluated, as Schedule-Free's README asks.

        Generators and data of the training stay where they are.
        """
        if not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in self.model.modules()):
            return
        own = own_generators(self.loaded, self.model)
        drawn = chance.snapshot(own)
        with torch.no_grad(), autocast(self.training, self.device):
            for inputs, _ in itertools.islice(Batches(self.loaded, 0), BATCH_NORM_BATCHES):
                self.model(inputs)
        chance.restore(drawn, own)

    def state(self) -> dict[str, Any]:
        """Return all that the run is made of as tensors, numbers and text, on the processor or where they lie."""
        model = self.model.state_dict()
        return {
            "model": model,
            "buffers": {name: buffer for name, buffer in self.model.named_buffers() if name not in model},
            "optimizer": self.optimizer.state_dict(),
            "losses": torch.stack(self._losses) if self._losses else torch.empty(0),
            "batches": self.batches.position(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned. Raises what torch raises for the state of another model."""
        self._has_moved = True
        self.model.load_state_dict(state["model"])
        buffers = dict(self.model.named_buffers())
        with torch.no_grad():
            for name, content in state["buffers"].items():
                buffers[name].copy_(content)
        self.optimizer.load_state_dict(state["optimizer"])
        self._losses = list(state["losses"].to(self.device))
        self.batches.go_to(state["batches"])


def comes_of_divergence(error: Exception, numbers: Sequence[Any]) -> bool:
    """Whether some of what a model computes with, or has computed, is no number.

    There are models and losses that refuse such, as torch's distributions and its binary_cross_entropy do; a trial that
    diverges is a result.
    """
    found: list[Any] = []
    each_in(found.append, numbers)
    tensors = [one for one in found if isinstance(one, torch.Tensor) and one.layout is torch.strided]
    ours = isinstance(error, LrsearchError) or is_out_of_memory(error)
    return not (ours or all(bool(one.isfinite().all()) for one in tensors))


def is_about_numbers(error: Exception) -> bool:
    """Whether torch raises so for some numbers alone, as for a scale of 0 of a distribution or a singular matrix."""
    decomposing = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # it is there
    return isinstance(error, decomposing) or "to satisfy the constraint" in str(error)


def whole(batches: Sequence[torch.Tensor], what: str, split: Split, dimension: int = 0) -> torch.Tensor:
    """Return all rows, which lie along `dimension`. Raises WorkloadError where batches do not go together."""
    shapes = sorted({tuple(batch.shape[dimension + 1 :]) for batch in batches})
    if len(shapes) > 1:
        raise WorkloadError(
            f"Batches of the {split} split have {what} of shapes {shapes[0]} and {shapes[1]} per row, but the metric "
            "is given all in one tensor: where collate_fn pads, pad all batches to one length."
        )
    return torch.cat(list(batches), dimension)


@dataclass
class Outcome:
    """What a trial has given so far; becomes part of its TrialResult, however the trial ends."""

    status: ResultStatus = "failed"
    train_steps: int = 0
    validation_loss: float | None = None
    validation_metric: float | None = None
    test_loss: float | None = None
    test_metric: float | None = None
    curve: list[CurvePoint] = field(default_factory=list)
    range_test: list[RangeTestPoint] = field(default_factory=list)
    diverged_step: int | None = None
    error: str | None = None
    traceback: str | None = None
    facts: WorkloadFacts | None = None

    def note(
        self,
        planned: PlannedSchedule,
        end: int,
        losses: Sequence[float],
        found: tuple[float | None, float | None],
        charged: Mapping[str, float],
    ) -> CurvePoint:
        """Take note of how the trial does after `end` steps, by the losses since its last point, and return this one.

        `diverged_step` is known by then; `found` is what the validation split gave, `charged` the cost by phase.
        """
        assert self.facts is not None, "its workload is loaded"
        is_finite = self.diverged_step is None
        self.validation_loss, self.validation_metric = found if is_finite else (None, None)
        point = CurvePoint(
            step=end,
            epoch=end / self.facts.steps_per_epoch,
            learning_rate=planned.rate(end - 1),
            train_loss=finite(math.fsum(losses) / len(losses)) if is_finite else None,
            validation_loss=found[0],
            validation_metric=self.validation_metric,
            charged_device_seconds=charged_seconds(charged),
            cycle_end=end in planned.cycle_ends,
        )
        self.curve.append(point)
        return point

    def as_result(self) -> dict[str, Any]:
        """Return all of it as fields of a TrialResult."""
        return {**vars(self), "curve": tuple(self.curve), "range_test": tuple(self.range_test)}


def write_checkpoint(
    uuid: str, plan: CheckpointPlan, bills: Bills, run_state: Mapping[str, Any], outcome: Outcome
) -> None:
    """Write what a trial needs to go on: `run_state` is `Run.state()`. Raises StorageError."""
    header = checkpoint.Header(uuid, plan.attempt, outcome.train_steps, bills.charged, bills.billed)
    state = {"run": run_state, "curve": [asdict(point) for point in outcome.curve]}
    checkpoint.write(Path(plan.folder), header, lambda file: torch.save(state, file))  # type: ignore[arg-type]  # torch asks for more than `write`


class Checkpoints:
    """Keeps the state of a training run every so often, and brings it back. Writing and reading are idle seconds.

    The clock is looked at after each step, the device is waited for only when a checkpoint is due.
    """

    def __init__(self, spec: TrialSpec, plan: CheckpointPlan, watch: DeviceStopwatch) -> None:
        self._spec = spec
        self._plan = plan
        self._watch = watch
        self._billed_before: Mapping[str, float] = {}
        """What the gang that this attempt began in was billed for it."""
        self._due = time.monotonic() + plan.every_seconds

    def after_step(self, run: Run, outcome: Outcome) -> None:
        """Write a checkpoint if one is due. Raises StorageError."""
        if time.monotonic() < self._due:
            return
        self._watch.switch("idle")
        both = bills(self._spec, run, self._watch)
        if both.billed is not None:
            both = replace(both, billed=added(both.billed, self._billed_before))
        write_checkpoint(self._spec.uuid, self._plan, both, run.state(), outcome)
        self._watch.switch("train")
        self._due = time.monotonic() + self._plan.every_seconds

    def resume(self, run: Run, outcome: Outcome) -> None:
        """Put `run`, which is new, where the newest checkpoint was written, if there is one.

        Raises StorageError when it cannot be read, and DOES_NOT_FIT when it does not fit.
        """
        found = checkpoint.newest(Path(self._plan.folder), self._spec.uuid)
        if found is None:
            return
        header, content = found
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        run.set_state(state["run"])
        since = sum(self._plan.charged_seconds[header.attempt - 1 :])
        points = [CurvePoint(**point) for point in state["curve"]]
        outcome.curve = [replace(one, charged_device_seconds=one.charged_device_seconds - since) for one in points]
        outcome.train_steps = header.step
        if header.attempt == self._plan.attempt:  # its gang broke down; all its work is on one bill
            run.steps_taken, run.evaluations = header.step, len(points)
            self._billed_before = header.billed_phase_seconds or {}
            self._watch.add("idle", header.phase_seconds.get("idle", 0.0))
        if points:
            outcome.validation_loss, outcome.validation_metric = (
                points[-1].validation_loss,
                points[-1].validation_metric,
            )


def bills(spec: TrialSpec, run: Run | None, watch: DeviceStopwatch) -> Bills:
    """Return what the attempt is charged up to now, and what it took where that is not the same.

    A trial that could not begin is charged what it took.
    """
    if spec.solo is None or run is None:
        return Bills(dict(watch.phase_seconds))
    stage, taken = spec.proposal.stage, watch.phase_seconds
    return Bills(spec.solo.phases(stage, run.steps_taken, run.evaluations, taken), as_billed(taken))


def run_trial(spec: TrialSpec, channel: Channel) -> TrialResult:
    """Run one trial alone. With `spec.solo` it is charged by that, as those are that train together."""
    device = pick_device(spec.training.device)
    meter = EnergyMeter(device)
    watch = DeviceStopwatch(synchronizer(device))
    outcome, run = Outcome(), None
    watch.start("data")
    try:
        loaded = load(spec.workload, device, spec.seed)
        outcome.facts = loaded.facts
        watch.switch("setup")
        run, planned = set_up(spec, loaded, device)
        if isinstance(channel, Watched):
            run.progressed = channel.progressed
        if planned is None:
            _run_range_test(spec, run, watch, outcome)
        else:
            checkpoints = Checkpoints(spec, spec.checkpoint, watch) if spec.checkpoint else None
            if checkpoints is not None:
                run = _resumed(spec, run, device, checkpoints, outcome, channel)
            _train(spec, run, planned, watch, channel, outcome, checkpoints)
        if run.why_not_replayed and isinstance(channel, Told):
            channel.message(spec.uuid, f"its steps were not replayed as a CUDA graph: {run.why_not_replayed}.")
    except StorageError:
        raise
    except (Exception, SystemExit) as error:
        outcome.status = "failed"
        outcome.error = one_line(error) + user_line(error)
        if is_out_of_memory(error):
            outcome.error = f"Out of device memory; lower workload.batch_size or take a smaller model. {outcome.error}"
        outcome.error, outcome.traceback = storable(outcome.error), storable(traceback.format_exc())
    watch.stop()
    both = bills(spec, run, watch)
    return TrialResult(
        uuid=spec.uuid,
        device=device_info(device),
        phase_seconds=both.charged,
        billed_phase_seconds=both.billed,
        core_seconds=watch.core_seconds,
        peak_device_memory_bytes=peak_memory(device),
        energy_joules=meter.joules(),
        **outcome.as_result(),
    )


NO_MEMORY = ("can't allocate memory", "STATUS_ALLOC_FAILED", "out of memory")
"""In plain errors: of the processor, of cuBLAS and cuDNN, of CUDA itself."""


def is_out_of_memory(error: BaseException) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY))


DOES_NOT_FIT = (ValueError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError)
"""What a checkpoint raises of another model, of another version of this program, or with more in it than tensors,
numbers and text."""


def _resumed(
    spec: TrialSpec, run: Run, device: torch.device, checkpoints: Checkpoints, outcome: Outcome, channel: Channel
) -> Run:
    """Return `run` where its checkpoint left it, or at its beginning when there is none that fits the model."""
    run.batches.keeps_place = True
    try:
        checkpoints.resume(run, outcome)
    except DOES_NOT_FIT:  # the user's model or data are others by now, or this program
        if isinstance(channel, Told):
            channel.message(
                spec.uuid, "its checkpoint does not fit the model or the data, which have changed; it begins anew."
            )
        progressed, run = run.progressed, new_run(run.loaded, spec.training, device, spec.seed)
        run.progressed, run.batches.keeps_place = progressed, True
    return run


def set_up(spec: TrialSpec, loaded: LoadedWorkload, device: torch.device) -> tuple[Run, PlannedSchedule | None]:
    """Build model, optimiser and schedule; the schedule is None for a range test."""
    proposal, planned = spec.proposal, plan_of(spec, loaded.facts)
    forget_peak_memory(device)
    repeat = proposal.range_test.repeat if proposal.range_test else 0
    return new_run(loaded, spec.training, device, repeat_seed(spec.seed, repeat)), planned


def plan_of(spec: TrialSpec, facts: WorkloadFacts) -> PlannedSchedule | None:
    """Return the schedule that the trial asks for; None for a range test."""
    proposal = spec.proposal
    if proposal.schedule is None:
        return None
    return plan_schedule(
        proposal.schedule,
        learning_rate=proposal.learning_rate,
        base_lr=proposal.base_lr,
        max_lr=proposal.max_lr,
        total_steps=planned_steps(spec.training, facts),
        steps_per_epoch=facts.steps_per_epoch,
    )


def repeat_seed(seed: int, repeat: int) -> int:
    """Return the seed of a repeat's weights and data order; the first is `seed` itself, as without repeats."""
    return seed if repeat == 0 else int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0])


def new_run(loaded: LoadedWorkload, training: TrainingPlan, device: torch.device, seed: int) -> Run:
    """Return a run before its first step: weights and data order come from `seed` alone."""
    _seed_everything(seed)
    model = loaded.build_model()
    if (wanted := memory_format_of(loaded, training)) is not None:
        model.to(memory_format=wanted)
    own = own_generators(loaded, model)
    chance.seed_own(own, seed)
    batches = Batches(loaded, seed, own)
    return Run(loaded, model, build_optimizer(training, model), training, device, batches)


def memory_format_of(loaded: LoadedWorkload, training: TrainingPlan) -> torch.memory_format | None:
    """Return how the weights of convolutions are to lie; None: as the model has them."""
    if training.memory_format == "auto":
        return torch.channels_last if isinstance(loaded, KnowsItsLayout) and loaded.channels_last else None
    return torch.channels_last if training.memory_format == "channels_last" else torch.contiguous_format


def _train(
    spec: TrialSpec,
    run: Run,
    planned: PlannedSchedule,
    watch: DeviceStopwatch,
    channel: Channel,
    outcome: Outcome,
    checkpoints: Checkpoints | None = None,
) -> None:
    """Train to the planned end, with a curve point at every epoch's and every cycle's end.

    Points that an earlier attempt reached are told first; they cannot stop the trial, as they did not then.
    """
    outcome.status = "completed"
    for point in outcome.curve:
        channel.report(spec.uuid, point)
    reached, warming = len(outcome.curve), True
    watch.switch("warmup")
    for end in segment_ends(planned, run.loaded.facts.steps_per_epoch)[reached:]:
        while outcome.train_steps < end:
            step = outcome.train_steps
            run.step(planned.rate(step), planned.momentum(step) if planned.momentum else None)
            outcome.train_steps += 1
            if warming and not run.is_warming:
                watch.switch("train")
                warming = False
            if checkpoints is not None:
                checkpoints.after_step(run, outcome)
        watch.switch("evaluate")
        losses = run.take_losses()
        outcome.diverged_step = first_non_finite(losses, end)
        found = run.evaluate("validation")
        watch.switch("idle")
        point = outcome.note(planned, end, losses, found, bills(spec, run, watch).charged)
        go_on = channel.report(spec.uuid, point)
        if outcome.diverged_step is not None:
            outcome.status, outcome.error = "diverged", run.raised
            return
        if not go_on and end < planned.train_steps:
            outcome.status = "pruned"
            break
        watch.switch("train")
    watch.switch("test_evaluation")
    outcome.test_loss, outcome.test_metric = run.evaluate("test")


def segment_ends(planned: PlannedSchedule, steps_per_epoch: int) -> list[int]:
    """Return the step counts at which to evaluate: every epoch's and cycle's end, and the end of the run."""
    ends = {*range(steps_per_epoch, planned.train_steps + 1, steps_per_epoch), *planned.cycle_ends}
    return sorted({end for end in ends if end <= planned.train_steps} | {planned.train_steps})


def _run_range_test(spec: TrialSpec, run: Run, watch: DeviceStopwatch, outcome: Outcome) -> None:
    """Raise the rate rung by rung, from low to high, and record what it does."""
    plan = spec.proposal.range_test
    assert plan is not None, "a proposal without a schedule is a range test"
    rates = range_test_rates(plan, run.loaded.facts.steps_per_epoch)
    watch.switch("range_test")
    outcome.range_test = climb(rates, run.step, run.take_losses, lambda: run.evaluate("range_test"))
    outcome.train_steps = len(outcome.range_test)
    outcome.status, outcome.error = "completed", run.raised


class Climb:
    """A range test under way: tell it of each step at the rising `rates`, and it says whether to take another.

    `take_losses` gives the losses of the steps since its last call, `evaluate` validation loss and metric; both are
    asked for about range_test.EVALUATIONS times. Whether to stop is looked at only then: nothing waits for the device
    at other steps.
    """

    def __init__(
        self,
        rates: Sequence[float],
        take_losses: Callable[[], list[float]],
        evaluate: Callable[[], tuple[float | None, float | None]],
    ) -> None:
        self.rates = rates
        self._take_losses, self._evaluate = take_losses, evaluate
        self._every = steps_between_evaluations(len(rates))
        self._stop = DivergenceStop(len(rates))
        self._evaluations: dict[int, tuple[float | None, float | None]] = {}
        self._losses: list[float] = []
        self._steps = 0

    @property
    def rate(self) -> float:
        """The rate of the next step."""
        return self.rates[self._steps]

    @property
    def is_due(self) -> bool:
        """Whether losses and an evaluation are asked for after the step at `rate`."""
        steps = self._steps + 1
        return steps % self._every == 0 or steps == len(self.rates)

    def goes_on(self) -> bool:
        """Take note that the step at `rate` was taken, and return whether another is to be."""
        due = self.is_due
        self._steps += 1
        if not due:
            return True
        self._evaluations[self._steps - 1] = self._evaluate()
        new = self._take_losses()
        self._losses += new
        return not any(self._stop.update(loss) for loss in new) and self._steps < len(self.rates)

    def points(self) -> list[RangeTestPoint]:
        """Return a point for each step that was looked at.

        The loss of step i+1 was computed before it: it belongs to rung i.
        """
        following = [*map(finite, self._losses[1:]), None]
        return [
            RangeTestPoint(rung, self.rates[rung], following[rung], *self._evaluations.get(rung, (None, None)))
            for rung in range(len(self._losses))
        ]


def climb(
    rates: Sequence[float],
    step: Callable[[float], None],
    take_losses: Callable[[], list[float]],
    evaluate: Callable[[], tuple[float | None, float | None]],
) -> list[RangeTestPoint]:
    """Take a step at each of the rising `rates` and return a point for each, fewer where the loss ran away."""
    test = Climb(rates, take_losses, evaluate)
    step(test.rate)
    while test.goes_on():
        step(test.rate)
    return test.points()


def range_test_rates(plan: RangeTestPlan, steps_per_epoch: int) -> list[float]:
    """Return the rate of every step of the range test that `plan` asks for."""
    return ladder(plan.low, plan.high, range_test_steps(plan, steps_per_epoch), plan.ladder)


def first_non_finite(losses: Sequence[float], end: int) -> int | None:
    """Return the number (from 1) of the first step whose loss was not finite; `losses` are those up to step `end`."""
    first = end - len(losses) + 1
    return next((first + index for index, loss in enumerate(losses) if not math.isfinite(loss)), None)


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def one_line(error: BaseException) -> str:
    return words_of(error, 500)


def storable(text: str) -> str:
    """Return the text with an escape for what databases refuse: NUL, and halves of surrogate pairs, as in odd paths."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def forget_peak_memory(device: torch.device) -> None:
    """Have `peak_memory` be of what comes from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


class EnergyMeter:
    """Joules between its making and `joules()`, from NVML's counter since driver load; None where there is none."""

    def __init__(self, device: torch.device) -> None:
        self._read: Callable[[], int] | None = None
        if device.type != "cuda":
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._read = lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
            self._began = self._read()
        except Exception:  # no package, no driver, no counter on this card: energy is unknown, which is no fault
            self._read = None

    def joules(self) -> float | None:
        if self._read is None:
            return None
        try:
            return (self._read() - self._began) / 1000.0
        except Exception:  # the driver was restarted, or the card fell off the bus: its energy is not known
            return None
