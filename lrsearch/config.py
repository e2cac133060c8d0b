"""What a study file may say, and what it says: `load_study(path)` returns a StudyConfig or names every mistake.

Numbers are read strictly: "0.1" in quotes is text, `true` is no number. Settings of workloads, strategies, schedules
and optimizers are those of the class that `name` stands for, plug-ins included.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PrivateAttr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from lrsearch.errors import LrsearchError, StudyFileError, UsageError, did_you_mean
from lrsearch.executors import EXECUTORS, Inline, Process
from lrsearch.interfaces import Epochs, ExecutorSettings, Settings, SharesTests, Strategy
from lrsearch.optimizers import OPTIMIZERS
from lrsearch.registry import lookup, names
from lrsearch.schedules import SCHEDULES, schedule_settings
from lrsearch.strategies import STRATEGIES, Template, at_once
from lrsearch.strategies.space import BATCH_SIZE, Searched, is_of_optimizer, with_setting
from lrsearch.trial import Choice, Compiling, Matmul, MemoryFormat, ParameterGroup, TrainingPlan
from lrsearch.workloads import WORKLOADS
from lrsearch.yaml_file import KeyPath, Problem, YamlFile, dotted, read_yaml

Model = TypeVar("Model", bound=BaseModel)

PASSING = ("budget", "checkpoint", "gangs")
"""Keys of a study file that may change while its study runs."""
OPEN = ("precision", "compile", "memory_format", "matmul")
"""Keys of `training` that may be `auto`: what timing finds faster when the study begins."""
NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:[0-9]+)?)$"
PATTERN_RULES = {
    NAME_PATTERN: "must be made of the letters a to z and A to Z, digits, '.', '_' and '-', "
    "the first a letter, a digit or '_'",
    DEVICE_PATTERN: "must be auto, cpu, cuda, cuda:N or mps",
}
TYPE_RULES = {
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "model_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "date_type": "must be a date such as 2026-11-23",
    "date_from_datetime_parsing": "must be a date such as 2026-11-23",
    "date_parsing": "must be a date such as 2026-11-23",
}

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=100)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy's and scikit-learn's generators take


@dataclass(frozen=True)
class Named:
    """Marks a field whose settings are those of the class that its `name` stands for."""

    kind: str
    find: Callable[[str], Any]
    known: Callable[[], list[str]]

    def model(self, name: str) -> type[BaseModel]:
        """Return the class behind `name`. Raises UnknownNameError, or UsageError for a plug-in that is unusable."""
        found = self.find(name)
        if not (isinstance(found, type) and issubclass(found, BaseModel)):
            raise UsageError(f"The {self.kind} {name!r} is {found!r}, but must be a pydantic model.")
        return _with_checked_templates(found)

    def validate(self, value: Any) -> BaseModel:
        """Return the settings that `value` gives. Raises ValidationError, which pydantic merges into the file's."""
        value = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        if not isinstance(value, dict):
            example = f"{{name: {value if value in self.known() else '...'}}}"
            raise PydanticCustomError("no_mapping", "must be a mapping such as {example}", {"example": example})
        if "name" not in value:
            raise PydanticCustomError("no_name", "needs a name; known: {known}", {"known": ", ".join(self.known())})
        if not isinstance(value["name"], str):
            raise _refused(("name",), value["name"], f"must be text, got {_shown(value['name'])}")
        try:
            model = self.model(value["name"])
        except LrsearchError as error:
            raise _refused(("name",), value["name"], str(error)) from error
        return _strictly(model, value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(lambda settings: settings.model_dump(mode="json"))
        return core_schema.no_info_plain_validator_function(self.validate, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """One alternative for each name, told apart by it."""
        alternatives = []
        for name in self.known():
            reference = handler(self.model(name).__pydantic_core_schema__)
            definition = handler.resolve_ref_schema(reference)
            definition["properties"] = {
                "name": {"const": name},
                **{key: value for key, value in definition.get("properties", {}).items() if key != "name"},
            }
            definition["required"] = sorted({"name", *definition.get("required", ())})
            alternatives.append(reference)
        return {"oneOf": alternatives}


def _strictly(model: type[Model], values: Any) -> Model:
    # By way of JSON: only there a list may stand for a tuple and text for a date while numbers are taken strictly.
    return model.model_validate_json(json.dumps(values), strict=True)


def _refused(path: KeyPath, value: Any, text: str) -> ValidationError:
    reason = PydanticCustomError("refused", "{text}", {"text": text})
    return ValidationError.from_exception_data("settings", [InitErrorDetails(type=reason, loc=path, input=value)])


WORKLOAD = Named("workload", partial(lookup, "workload", WORKLOADS), partial(names, "workload", WORKLOADS))
STRATEGY = Named("strategy", partial(lookup, "strategy", STRATEGIES), partial(names, "strategy", STRATEGIES))
OPTIMIZER = Named("optimizer", partial(lookup, "optimizer", OPTIMIZERS), partial(sorted, OPTIMIZERS))
EXECUTOR = Named("executor", partial(lookup, "executor", EXECUTORS), partial(names, "executor", EXECUTORS))
SCHEDULE = Named("schedule", schedule_settings, partial(names, "schedule", SCHEDULES))


@cache
def _with_checked_templates(model: type[BaseModel]) -> type[BaseModel]:
    """Return `model`, whose schedule and optimizer, if it has them, refuse wrong settings and fill in the defaults.

    Strategies cannot do that themselves: they do not know the schedules, as schedules do not know them.
    """
    fields: dict[str, Any] = {}
    for key, named in {"schedule": SCHEDULE, "optimizer": OPTIMIZER}.items():
        field = model.model_fields.get(key)
        if field is not None and any(_is_template(kind) for kind in (field.annotation, *get_args(field.annotation))):
            fields[key] = (_checked(field.annotation, named), Field(default=field.default, validate_default=True))
    return create_model(model.__name__, __base__=model, __doc__=model.__doc__, **fields) if fields else model


def _is_template(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Template)


def _checked(template: Any, named: Named) -> Any:
    """Return the type `template`, or None where it allows that, whose values are those that `named` accepts."""
    optional = type(None) in get_args(template)

    def complete(value: Any) -> Any:
        if optional and value is None:
            return None
        return TypeAdapter(template).validate_python(named.validate(value).model_dump(mode="json"))

    written = Annotated[Any, named] | None if optional else Annotated[Any, named]
    return Annotated[template, BeforeValidator(complete, json_schema_input_type=written)]


class Rates(Settings):
    """The range of learning rates that every search is given, fixed before the runs."""

    low: Positive
    high: Positive

    @model_validator(mode="after")
    def _check_order(self) -> Rates:
        if self.low >= self.high:
            raise ValueError(f"low must be smaller than high, got {self.low:g} and {self.high:g}")
        if self.low < 1e-30 or self.high > 1e30:  # single precision ends at 1e-38 and 3e38
            raise ValueError(f"must lie between 1e-30 and 1e30, got {self.low:g} and {self.high:g}")
        return self


class Target(Settings):
    """The validation value that counts as good enough: what "time to target" is measured against."""

    metric: str
    value: float


class Price(Settings):
    """What an hour of the device costs, and when it cost that."""

    usd_per_device_hour: NotNegative
    as_of: date


class Checkpoint(Settings):
    """How often a training run keeps its state; a shorter run never does. A run that is cut short goes on from there.

    Writing and reading states are idle seconds on the way's bill.
    """

    every_seconds: Positive = 60.0
    folder: Path | None = None
    """Relative to the study file's folder; by default beside an SQLite database, named after it."""


class Budget(Settings):
    """Stops the study before the trial that would make it longer than this; with a larger one it goes on."""

    device_hours: Positive


class Group(Settings):
    """Parameters whose rate and weight decay are multiples of the others', under every schedule and in range tests.

    `pattern` is a glob over the names of the model's `named_parameters()`, as in `*.bias` or `features.0.*`; it must
    cover the whole name. The first group that matches a parameter has it. A `rate_multiplier` of 0 freezes.
    """

    pattern: Annotated[str, StringConstraints(min_length=1)]
    rate_multiplier: NotNegative = 1.0
    weight_decay_multiplier: NotNegative = 1.0


class Training(Settings):
    """How each trial trains; the same for every way."""

    epochs: Epochs
    optimizer: Annotated[Settings, OPTIMIZER]
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """`auto`: what timing finds faster, bfloat16 autocast or float32; the stored study says which it was."""
    compile: Annotated[Literal["auto"] | Compiling, Field(exclude_if=lambda value: value == "off")] = "off"
    """`on`: torch.compile for the training steps; `gangs`: for those of gangs only; `graphs`: they are recorded as a
    CUDA graph; `auto`: what timing finds faster, and torch.compile only where compiling is a small part of the study.

    Left out of the stored study while off: it came later than others.
    """
    memory_format: Annotated[MemoryFormat, Field(exclude_if=lambda value: value == "auto")] = "auto"
    """How the weights of convolutions lie in memory. `auto`: with the channels of a pixel beside each other where
    timing finds that clearly faster, and for the built-in images; else as the model has them.

    Left out of the stored study where they lie as the model has them: it came later than others.
    """
    matmul: Annotated[Matmul, Field(exclude_if=lambda value: value == "auto")] = "auto"
    """What multiplies matrices in float32 on a processor: torch's `default`, `onednn`, or with `auto` oneDNN where
    timing finds that clearly faster. Left out of the stored study where it is torch's default: it came later.
    """
    gradient_clip_norm: Positive | None = None
    device: Annotated[str, StringConstraints(pattern=DEVICE_PATTERN)] = "auto"
    groups: tuple[Group, ...] = ()

    @model_validator(mode="after")
    def _check_groups(self) -> Training:
        _check_groups(self.groups, _choice(self.optimizer), ("groups",))
        return self


def _check_groups(groups: Sequence[Group], optimizer: Choice, place: KeyPath) -> None:
    """Refuse to multiply a weight decay of 0, and the one rate of Prodigy."""
    for index, group in enumerate(groups):
        if group.weight_decay_multiplier != 1 and not optimizer.settings.get("weight_decay"):
            text = f"has nothing to multiply: the weight_decay of {optimizer.name} is 0; give it, or remove this"
            raise _refused((*place, index, "weight_decay_multiplier"), group.weight_decay_multiplier, text)
        if group.rate_multiplier not in (0, 1) and optimizer.name == "prodigy":
            text = f"must be 0 or 1: prodigy takes one rate for all parameters, got {group.rate_multiplier:g}"
            raise _refused((*place, index, "rate_multiplier"), group.rate_multiplier, text)


class StudyConfig(Settings):
    """A study file. Paths in the workload's settings are relative to the folder of the file that was loaded."""

    version: Literal[1]
    name: Name
    workload: Annotated[Settings, WORKLOAD]
    training: Training
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    confirmation_seeds: Annotated[int, Field(ge=1)] | None = None
    """With how many fresh seeds to train again what each search chose; three or more tell how they scatter."""
    rates: Rates
    target: Target | None = None
    price: Price | None = None
    strategies: Annotated[dict[Name, Annotated[Strategy, STRATEGY]], Field(min_length=1)]
    executor: Annotated[ExecutorSettings, EXECUTOR] = Field(default_factory=Inline)
    gangs: Literal["auto", "off"] = "off"
    """`auto`: trials of a search that differ in their rates alone train together where timing shows that it pays.

    Each then gives what it gives alone up to rounding; `off`, a study that is run again gives the same
    bits, if timing chose the same memory format and matmul, or the file has them.
    """
    checkpoint: Checkpoint = Checkpoint()
    budget: Budget | None = None
    _folder: Path = PrivateAttr(default_factory=Path)

    @property
    def folder(self) -> Path:
        """The folder of the file that was loaded; the current one for a study made otherwise."""
        return self._folder

    @field_validator("version", mode="before")
    @classmethod
    def _check_version(cls, version: Any) -> Any:
        if version is True:  # it equals 1
            raise ValueError("must be 1, got true")
        return version

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"must differ from each other, got {list(seeds)}")
        return seeds

    @model_validator(mode="after")
    def _check_target(self) -> StudyConfig:
        """Refuse a target of another metric than the workload's, where it says which that is: a plug-in need not."""
        measured = getattr(self.workload, "measures", None)
        if self.target is not None and measured is not None and self.target.metric != measured:
            text = f"must be {measured!r}, which the workload measures, got {self.target.metric!r}"
            raise _refused(("target", "metric"), self.target.metric, text)
        return self

    @model_validator(mode="after")
    def _check_rates(self) -> StudyConfig:
        """Refuse rates of a strategy's own that lie outside the range that every search is given."""
        for key, strategy in self.strategies.items():
            for index, rate in enumerate(getattr(strategy, "learning_rates", None) or ()):
                if not self.rates.low <= rate <= self.rates.high:
                    raise _refused(("strategies", key, "learning_rates", index), rate, self._range_rule(rate))
        return self

    @model_validator(mode="after")
    def _check_bounds(self) -> StudyConfig:
        """Refuse bounds outside the study's range, and those that were found with other settings than the study's."""
        for key, strategy in self.strategies.items():
            for name in ("base_lr", "max_lr"):
                rate = getattr(strategy, name, None)
                if rate is not None and not self.rates.low <= rate <= self.rates.high:
                    raise _refused(("strategies", key, name), rate, self._range_rule(rate))
            for name, value in getattr(strategy, "tested_with", None) or ():
                if value is not None and value != (ours := self._setting(key, name)):
                    text = f"the bounds were found with {_shown(value)}, but this way has {_shown(ours)}: test again"
                    raise _refused(("strategies", key, "tested_with", name), value, text)
        return self

    def _setting(self, key: str, name: str) -> Any:
        """Return the optimizer, batch size, momentum or weight decay of a way; None where its optimizer has none."""
        optimizer = self.training_plan_of(key).optimizer
        betas: Sequence[float | None] = optimizer.settings.get("betas", (None,))
        batch_size = getattr(self.workload, BATCH_SIZE, None)
        found = {BATCH_SIZE: batch_size, "momentum": betas[0], **optimizer.settings, "optimizer": optimizer.name}
        return found.get(name)

    @model_validator(mode="after")
    def _check_ways(self) -> StudyConfig:
        """Refuse what a way's own optimizer or search cannot do."""
        for key, strategy in self.strategies.items():
            optimizer = self.training_plan_of(key).optimizer
            if getattr(strategy, "optimizer", None) is not None:
                _check_groups(self.training.groups, optimizer, ("training", "groups"))
            for name, searched in self.searched(key).items():
                for value in searched.extremes:
                    self._check_searched(("strategies", key, "search", name), optimizer, strategy, value)
        return self

    def searched(self, key: str) -> dict[str, Searched]:
        """Return what a way searches beside the rate."""
        return getattr(self.strategies[key], "search", {})

    def _check_searched(self, path: KeyPath, optimizer: Choice, strategy: Any, value: float) -> None:
        """Refuse a search for what is no number of the optimizer, the schedule or the batch size, or out of bounds."""
        name, schedule = str(path[-1]), strategy.schedule.choice()
        try:
            if name == BATCH_SIZE and hasattr(self.workload, BATCH_SIZE):
                WORKLOAD.validate({**self.workload.model_dump(mode="json"), BATCH_SIZE: value})
                return
            if is_of_optimizer(optimizer.settings, name):
                changed = with_setting(optimizer.settings, name, value)
                OPTIMIZER.validate({"name": optimizer.name, **changed})
                return
            if name in schedule.settings:
                SCHEDULE.validate({"name": schedule.name, **schedule.settings, name: value})
                return
        except ValidationError as error:
            [first, *_] = error.errors()
            raise _refused(path, value, f"its end {value:g}: {_rule(first)}") from error
        known = _numbers(optimizer.settings) | _numbers(schedule.settings) | {BATCH_SIZE}
        if "betas" in optimizer.settings:
            known |= {"momentum"}
        nearest = did_you_mean(name, sorted(known))
        text = f"no number of {optimizer.name}, {schedule.name} or the workload; known: {', '.join(sorted(known))}."
        raise _refused(path, value, text + nearest)

    def _range_rule(self, rate: float) -> str:
        return f"must lie in the study's rates, {self.rates.low:g} to {self.rates.high:g}, got {rate:g}"

    def resolved(self) -> dict[str, Any]:
        """Return the whole study as plain JSON values, every default filled in, paths as the file has them."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> str:
        """Return the sha256 of the resolved study.

        Comments, key order and the file's folder do not count, nor does what changes no trial beyond rounding:
        budget, checkpoints and gangs.
        """
        lasting = {key: value for key, value in self.resolved().items() if key not in PASSING}
        canonical = json.dumps(lasting, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def settled(self, executor: ExecutorSettings | None = None, **chosen: str) -> StudyConfig:
        """Return the study with these, `chosen` under `training`, in the place of what is `auto` in its file."""
        training = self.training.model_copy(update=chosen)
        return self.model_copy(update={"executor": executor or self.executor, "training": training})

    def as_begun(self, begun: StudyConfig) -> StudyConfig:
        """Return the study with what was chosen when it was `begun` in the place of what is `auto` in its file."""
        automatic = isinstance(self.executor, Process) and self.executor.slots == "auto"
        executor = begun.executor if automatic and isinstance(begun.executor, Process) else None
        left_open = [name for name in OPEN if getattr(self.training, name) == "auto"]
        return self.settled(executor, **{name: getattr(begun.training, name) for name in left_open})

    def training_plan(self) -> TrainingPlan:
        training = self.training
        return TrainingPlan(
            epochs=training.epochs,
            optimizer=_choice(training.optimizer),
            precision=training.precision,
            compile="off" if training.compile == "auto" else training.compile,
            memory_format=training.memory_format,
            matmul=training.matmul,
            gradient_clip_norm=training.gradient_clip_norm,
            device=training.device,
            groups=tuple(ParameterGroup(**group.model_dump()) for group in training.groups),
        )

    def training_plan_of(self, key: str) -> TrainingPlan:
        """Return how the way `key` trains: with what it has of its own instead of the study's."""
        plan, strategy = self.training_plan(), self.strategies[key]
        own: Choice | None = getattr(strategy, "own_optimizer", None)
        return replace(plan, optimizer=own or plan.optimizer, epochs=getattr(strategy, "epochs", None) or plan.epochs)

    def trials_at_once(self) -> int:
        """Return how many trials of all searches together may run at the same time."""
        return sum(map(at_once, self.strategies.values())) * len(self.seeds)

    def planned_trials(self) -> dict[str, int]:
        """Return, for each strategy, how many trials all its searches together will run, as far as known beforehand."""
        planned = {key: strategy.planned_trials * len(self.seeds) for key, strategy in self.strategies.items()}
        for key, strategy in self.strategies.items():
            if isinstance(strategy, SharesTests) and strategy.tests_once:
                planned[key] -= (strategy.planned_trials - 1) * (len(self.seeds) - 1)
        return planned

    def planned_epochs(self) -> float:
        """Return about how many epochs all searches together will train; a range test counts as a run."""
        return sum(count * self.training_plan_of(key).epochs for key, count in self.planned_trials().items())

    def variants(self) -> list[tuple[Choice | None, int | None]]:
        """Return the optimizers (None: the study's) and batch sizes other than the study's that its ways train with.

        Of a search over batch sizes those at the ends.
        """
        found: list[tuple[Choice | None, int | None]] = []
        for key, strategy in self.strategies.items():
            own: Choice | None = getattr(strategy, "own_optimizer", None)
            searched = self.searched(key).get(BATCH_SIZE)
            sizes = [int(min(searched.extremes)), int(max(searched.extremes))] if searched else [None]
            found += [(own, size) for size in sizes if (own, size) != (None, None) and (own, size) not in found]
        return found

    def workload_choice(self) -> Choice:
        """Return the workload with its relative paths, defaults included, joined to the study file's folder."""
        workload = [(key, path) for key, path in self.workload if isinstance(path, Path)]
        paths = {key: str(self._folder / _from_home(path, f"workload.{key}")) for key, path in workload}
        choice = _choice(self.workload)
        return Choice(choice.name, {**choice.settings, **paths})

    def checkpoint_folder(self, database: Path | None) -> Path:
        """Return where states are kept: what the file says, or a folder beside the database, or the working folder."""
        if self.checkpoint.folder is not None:
            return (self._folder / _from_home(self.checkpoint.folder, "checkpoint.folder")).absolute()
        return (database.with_suffix(".checkpoints") if database else Path("lrsearch.checkpoints")).absolute()

    def on_device(self, device: str) -> StudyConfig:
        """Return this study as if its file said `device`. Raises UsageError when that is no device."""
        if not re.fullmatch(DEVICE_PATTERN, device):
            raise UsageError(f"The device {PATTERN_RULES[DEVICE_PATTERN]}, got {device!r}.")
        return self.model_copy(update={"training": self.training.model_copy(update={"device": device})})


def load_study(path: str | Path) -> StudyConfig:
    """Read a study file. Raises StudyFileError, one line a mistake: file:line:column: key: rule, value, way out."""
    file = read_yaml(Path(path))
    try:
        config = _strictly(StudyConfig, file.values)
    except ValidationError as error:
        raise file.error([*file.problems, *_problems(file, error.errors())]) from error
    if file.problems:
        raise file.error(file.problems)
    config._folder = file.path.absolute().parent
    with placed(path):
        config.workload_choice()
        config.checkpoint_folder(None)
    return config


@contextmanager
def placed(path: str | Path, *, replaced: Sequence[str] = ()) -> Iterator[None]:
    """Let an error that begins with a key of the study file, such as "target.metric must be", say where that stands.

    What the command line has `replaced`, such as "training.device", has its value from elsewhere.
    """
    file = Path(path).absolute()  # a study's own code may change the folder
    try:
        yield
    except LrsearchError as error:
        named = re.match(r"(\w+(?:\.\w+)+)[: ]", str(error))
        keys: list[str | int] = []
        if named and named[1] not in replaced:
            keys = [int(key) if key.isdigit() else key for key in named[1].split(".")]
        with suppress(StudyFileError):  # it was a pipe, or has been changed meanwhile
            if keys and (position := read_yaml(file).position_of(keys)):
                error.args = (f"{path}:{position.line}:{position.column}: {error}",)
        raise


def from_resolved(values: Mapping[str, Any]) -> StudyConfig:
    """Return the study that `resolved()` gave. Raises UsageError when this lrsearch cannot read it."""
    try:
        return _strictly(StudyConfig, dict(values))
    except ValidationError as error:
        lines = [f"{dotted(details['loc'])}{_rule(details)}" for details in error.errors()]
        raise UsageError("; ".join(lines)) from error


def _problems(file: YamlFile, mistakes: list[ErrorDetails]) -> Iterator[Problem]:
    """Yield what pydantic found, in our words and with its place in the file, without what follows from the rest."""
    paths = [_path_in(file.values, details) for details in mistakes]
    unknown = [path for path, details in zip(paths, mistakes, strict=True) if details["type"] == "extra_forbidden"]
    for path, details in zip(paths, mistakes, strict=True):
        misspelt = any(other[:-1] == path[:-1] and did_you_mean(str(other[-1]), [str(path[-1])]) for other in unknown)
        if details["type"] == "missing" and misspelt:
            continue
        if any(refused[: len(path)] == path for refused in file.refused):
            continue
        if details["type"] == "too_short" and any(other[: len(path)] == path != other for other in paths):
            continue  # what is wrong in it was left out of the count
        # What a value breaks of each of the things that it may be, such as a word or a number, comes one by one.
        same = [
            own
            for own_path, own in zip(paths, mistakes, strict=True)
            if own_path == path and _is_of_key(own) == _is_of_key(details)
        ]
        if details is same[0]:
            yield _problem(file, path, details, same[1:])


def _problem(file: YamlFile, path: KeyPath, details: ErrorDetails, others: Sequence[ErrorDetails]) -> Problem:
    if details["type"] == "missing":
        return Problem(file.key_position(path[:-1]), f"{dotted(path)}is missing; add it")
    if details["type"] == "extra_forbidden":
        known = _known_keys(path[:-1], file.values)
        nearest = did_you_mean(str(path[-1]), known)
        return Problem(file.key_position(path), f"{dotted(path)}unknown key; known: {', '.join(known)}.{nearest}")
    position = file.key_position(path) if _is_of_key(details) else file.value_position(path)
    first, got, value = _rule(details).partition(", got ")
    rules = dict.fromkeys(_rule(other).partition(", got ")[0].removeprefix("must be ") for other in others)
    return Problem(position, f"{dotted(path)}{' or '.join([first, *rules])}{got}{value}")


def _is_of_key(details: ErrorDetails) -> bool:
    """Whether it is the key that breaks a rule, and not its value."""
    return details["loc"][-1:] == ("[key]",)


def _path_in(values: Any, details: ErrorDetails) -> KeyPath:
    """Return the error's path without what pydantic adds to it, such as the names of a union's members."""
    path: list[str | int] = []
    for part in details["loc"]:
        if isinstance(values, dict | list) and part in (values if isinstance(values, dict) else range(len(values))):
            path.append(part)
            values = values[part]  # type: ignore[index]  # checked by the line above
    absent = details["type"] == "missing"
    return (*path, details["loc"][-1]) if absent else tuple(path)


def _rule(details: ErrorDetails) -> str:
    """Return "must be greater than 0, got -1"."""
    kind, value = details["type"], details["input"]
    if kind in ("value_error", "no_name", "refused"):  # these texts are our own and say all
        return _lowered(details["msg"].removeprefix("Value error, "))
    rule = re.sub(r"^(Input|[A-Z][a-z]+) should ", "must ", details["msg"])
    rule, counted, length = rule.partition(" after validation, not ")
    if counted:
        return f"{rule}, got {length}"
    rule = PATTERN_RULES.get(details.get("ctx", {}).get("pattern", ""), TYPE_RULES.get(kind, rule))
    quoted_number = isinstance(value, str) and kind in ("float_type", "int_type") and _is_number(value)
    return f"{_lowered(rule)}, got {_shown(value)}{'; remove the quotes' if quoted_number else ''}"


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(text: str) -> bool:
    try:
        return float(text) is not None
    except ValueError:
        return False


def _known_keys(path: KeyPath, values: Any) -> list[str]:
    """Return the keys that the mapping at `path` may have."""
    model = _model_at(path, values)
    return sorted(model.model_fields) if model else []


def _model_at(path: KeyPath, values: Any) -> type[BaseModel] | None:
    if not path:
        return StudyConfig
    block = values
    for part in path:
        block = block[part]
    match path:
        case ("workload",):
            return WORKLOAD.model(block["name"])
        case ("executor",):
            return EXECUTOR.model(block["name"])
        case ("training", "optimizer"):
            return OPTIMIZER.model(block["name"])
        case ("strategies", _):
            return STRATEGY.model(block["name"])
        case ("strategies", _, "schedule"):
            return SCHEDULE.model(block["name"])
        case ("strategies", _, "optimizer"):
            return OPTIMIZER.model(block["name"])
        case ("strategies", _, "search", _):
            return Searched
    parent = _model_at(path[:-1], values)
    if isinstance(path[-1], int):
        return parent
    field = parent.model_fields.get(str(path[-1])) if parent else None
    models = [field.annotation, *get_args(field.annotation)] if field else []
    return next((model for model in models if isinstance(model, type) and issubclass(model, BaseModel)), None)


def _from_home(path: Path, key: str) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # no such user, or no home of this one's
        text = f"{key}: must begin with a home folder that is known here, got {str(path)!r}; write the whole path."
        raise StudyFileError(text) from error


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what changed between two resolved studies, one line each.

    >>> diff({"training": {"epochs": 15}}, {"training": {"epochs": 20}})
    ['training.epochs: 15 -> 20']
    """
    return list(_differences(old, new, ""))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif key not in new:
            yield f"{prefix}{key}: removed, was {_as_written(before)}"
        elif key not in old:
            yield f"{prefix}{key}: added, {_as_written(after)}"
        elif before != after:
            yield f"{prefix}{key}: {_as_written(before)} -> {_as_written(after)}"


def _as_written(value: Any) -> str:
    """Return JSON in which whole numbers look as people write them: 15, not 15.0."""
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def is_extension(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether `new` only adds seeds (also for confirmation), strategies or trials: all that `old` ran stays.

    More points are no extension: a grid of nine has other points than one of eight.
    """
    may_differ = {"seeds", "strategies", "confirmation_seeds", *PASSING}
    same = all(old.get(key) == new.get(key) for key in {*old, *new} - may_differ)
    confirmed = [study.get("confirmation_seeds") or 0 for study in (old, new)]
    seeds = set(old["seeds"]) <= set(new["seeds"]) and confirmed[0] <= confirmed[1]
    ways = new["strategies"]
    return same and seeds and all(key in ways and _is_longer(way, ways[key]) for key, way in old["strategies"].items())


def _is_longer(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    rest = {key: value for key, value in new.items() if key != "trials"}
    same = rest == {key: value for key, value in old.items() if key != "trials"}
    return same and ("trials" in old) == ("trials" in new) and new.get("trials", 0) >= old.get("trials", 0)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of study files, installed plug-ins included, for editors to check by."""
    schema = StudyConfig.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "lrsearch study file"}


def _numbers(settings: Mapping[str, Any]) -> set[str]:
    return {name for name, value in settings.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def _choice(settings: Settings) -> Choice:
    values = settings.model_dump(mode="json")
    return Choice(values.pop("name"), values)
