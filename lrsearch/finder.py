"""A range test for anyone's own model, optimizer and data; it leaves nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypedDict, get_args

import torch
from torch import nn
from torch.utils.data import DataLoader

from lrsearch.analysis import wording
from lrsearch.errors import UsageError, typed
from lrsearch.range_test import RangeTestVerdict, judge
from lrsearch.range_test import ladder as make_ladder
from lrsearch.restore import Snapshot, find_generators, seed_generators
from lrsearch.torch_schedule import given_rates, rate_ratios, set_rate
from lrsearch.training import climb, finite
from lrsearch.trial import Ladder, Policy, RangeTestPlan, RangeTestPoint, WorkloadFacts

if TYPE_CHECKING:
    import plotly.graph_objects as go

LossFunction = Callable[[Any, Any], torch.Tensor]
Forward = Callable[[nn.Module, Any], torch.Tensor]
Evaluate = Callable[[nn.Module], "float | tuple[float | None, float | None]"]

SGD_RANGE = (1e-5, 10.0)
ADAPTIVE_RANGE = (1e-6, 1.0)
"""What a range test covers when nothing is said: docs/method.md, section 5."""
SGD_LIKE = ("sgd", "asgd", "adadelta")
"""Optimizers that take the range of SGD: their step grows with the gradient, or their usual rate is 1."""


@dataclass(frozen=True)
class RangeTest:
    """The curve of a range test and what it says. In a notebook it shows itself."""

    verdict: RangeTestVerdict
    curve: tuple[RangeTestPoint, ...]
    low: float
    high: float
    steps: int
    """As planned; fewer points in `curve` mean that the loss ran away."""
    setting: str
    """What the bounds hold for: optimizer with momentum and weight decay, batch size. Others have other bounds."""

    def figure(self) -> go.Figure:
        """Return a plotly figure of the curve, with its bounds."""
        from lrsearch.finder_figure import draw_range_test, headline

        return draw_range_test(self.curve, self.verdict, title=headline(self.verdict))

    def __str__(self) -> str:
        return "\n".join([self._title(), *(f"  {name:<12} {text}" for name, text in self._lines())])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": str(self), **self.figure()._repr_mimebundle_(include, exclude)}

    def _title(self) -> str:
        took = f"{len(self.curve)} of {self.steps} steps" if len(self.curve) < self.steps else f"{self.steps} steps"
        return f"Range test from {wording.rate(self.low)} to {wording.rate(self.high)}, {took}; {self.setting}"

    def _lines(self) -> Iterator[tuple[str, str]]:
        found = self.verdict
        yield "verdict", found.status if found.reason is None else f"{found.status}, the curve ends by: {found.reason}"
        for name in ("base_lr", "max_lr", "onset_lr", "constant_lr"):
            if (rate := getattr(found, name)) is not None:
                yield name, wording.rate(rate) + _interval(getattr(found, f"{name}_interval", None))
        yield "confidence", found.confidence + (f" ({', '.join(found.flags)})" if found.flags else "")
        yield "judged on", found.signal + self._why_not_on_the_metric()
        yield "advice", found.advice

    def _why_not_on_the_metric(self) -> str:
        values = [point.validation_metric for point in self.curve if point.validation_metric is not None]
        if self.verdict.signal == "validation_metric" or not values or 0 <= min(values) <= max(values) <= 1:
            return ""
        extent = f"from {min(values):.4g} to {max(values):.4g}"
        return f", as the metric is not from 0 to 1 but {extent}; divide a percentage by 100"


class TestOptions(TypedDict, total=False):
    """What can be said of any range test, with the meaning that it has in `lr_range_test`."""

    low: float | None
    high: float | None
    steps: int | None
    ladder: Ladder
    policy: Policy
    chance: float | None
    evaluation_count: int | None


@dataclass(frozen=True)
class TestPlan:
    """What a range test is to do, whoever takes its steps, and what its curve says afterwards."""

    optimizer_name: str
    low: float
    high: float
    steps: int
    ladder: Ladder
    policy: Policy
    chance: float | None
    evaluation_count: int | None

    @property
    def rates(self) -> list[float]:
        return make_ladder(self.low, self.high, self.steps, self.ladder)

    def conclude(self, curve: Sequence[RangeTestPoint], setting: str) -> RangeTest:
        """Judge the curve; `setting` names what the bounds hold for."""
        plan = RangeTestPlan(low=self.low, high=self.high, ladder=self.ladder, policy=self.policy)
        verdict = judge(
            curve,
            WorkloadFacts.of_metric("metric", chance=self.chance, range_test_count=self.evaluation_count or 0),
            plan,
            self.optimizer_name,
        )
        return RangeTest(verdict, tuple(curve), self.low, self.high, self.steps, setting)


def plan_test(
    optimizer_name: str,
    epoch_steps: float | None,
    *,
    low: float | None = None,
    high: float | None = None,
    steps: int | None = None,
    ladder: Ladder = "exponential",
    policy: Policy = "default",
    chance: float | None = None,
    evaluation_count: int | None = None,
) -> TestPlan:
    """Return the plan of a test with the defaults of this optimizer; `epoch_steps` is None where nobody knows it.

    Raises UsageError when there can be no such test.
    """
    for name, value, known in (("ladder", ladder, get_args(Ladder)), ("policy", policy, get_args(Policy))):
        if value not in known:
            raise UsageError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    for name, number in (("low", low), ("high", high), ("chance", chance)):
        if number is not None and not isinstance(number, Real):
            raise UsageError(f"{name} must be a number, got {number!r}.")
    if chance is not None and not 0 <= chance < 1:
        raise UsageError(f"chance must be at least 0 and below 1, as the metric is, got {chance}.")
    _check_count("steps", steps, at_least=2)
    _check_count("evaluation_count", evaluation_count, at_least=0)
    usual = SGD_RANGE if optimizer_name.lower() in SGD_LIKE else ADAPTIVE_RANGE
    plan = TestPlan(
        optimizer_name,
        usual[0] if low is None else low,
        usual[1] if high is None else high,
        max(100, math.ceil(2 * (epoch_steps or 0))) if steps is None else steps,
        ladder,
        policy,
        chance,
        evaluation_count,
    )
    _ = plan.rates  # refuses a range or a count that makes no ladder
    return plan


def lr_range_test(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFunction | None,
    batches: Iterable[Any],
    *,
    evaluate: Evaluate | None = None,
    forward: Forward | None = None,
    low: float | None = None,
    high: float | None = None,
    steps: int | None = None,
    ladder: Ladder = "exponential",
    policy: Policy = "default",
    chance: float | None = None,
    evaluation_count: int | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    generators: Iterable[object] = (),
    keep_copies_on: torch.device | str | None = None,
    seed: int = 0,
) -> RangeTest:
    """Train for a few epochs while the rate rises from `low` to `high`, and return what the curve says of the rate.

    It leaves nothing behind, however it ends: see `lrsearch.untouched`. The training that follows is bitwise the one
    without a test. The test starts from model and optimizer state as they are; all its chance comes from `seed`.

    `batches`: a DataLoader, a list, or anything that can be iterated anew each epoch; an iterator that cannot must hold
    all batches, and those taken from it are gone. Batches are moved to the model's device. One is
      - (inputs, targets): loss_fn(model(inputs), targets); inputs that are a tuple or list are spread: model(*inputs),
        a dict: model(**inputs);
      - a dict: loss_fn(model(**rest), batch["labels"]); with loss_fn=None the model gets all of it and returns
        something with a `.loss`, as in transformers;
      - anything, with `forward`: forward(model, batch) returns the loss.

    `low`, `high`: 1e-5 and 10 for SGD, 1e-6 and 1 for adaptive optimizers. They are rates of the first group; other
    groups keep their ratio to it. `steps`: by default the steps of two epochs, at least 100. A model in evaluation mode
    is switched to training mode; in one in training mode, modules that are not (frozen batch norm) stay so.

    `evaluate(model)`: returns a metric from 0 to 1, higher is better, or (loss, metric), either of them None, on a
    fixed small validation set; asked 75 times or so, in evaluation mode, without gradients. Without it the training
    loss is judged. `chance` is the metric of a model that ignores its input, `evaluation_count` the size of that set.

    `accumulate` batches make one step. `clip_norm` and `clip_value` clip the gradients of the model's parameters, all
    together or each entry. `autocast` is the dtype of the forward pass: torch.bfloat16, or torch.float16 with `scaler`.
    `generators`: further sources of chance in your data; those of a DataLoader, its samplers and data set are found.
    `keep_copies_on="cpu"` spares the device.

    Raises UsageError when model, optimizer, batches or loss cannot be used; errors of your own code come through.
    """
    plan = plan_test(
        type(optimizer).__name__,
        _epoch_steps(batches, accumulate),
        low=low,
        high=high,
        steps=steps,
        ladder=ladder,
        policy=policy,
        chance=chance,
        evaluation_count=evaluation_count,
    )
    _check_kinds(model, optimizer, loss_fn, forward=forward, evaluate=evaluate)
    if autocast is not None and not isinstance(autocast, torch.dtype):
        raise UsageError(f"autocast must be a dtype such as torch.bfloat16, got {autocast!r}.")
    _check(model, optimizer, clip_norm=clip_norm, clip_value=clip_value)
    sources = [batches, *generators]
    # A loss with parameters or buffers of its own is changed by training like the model.
    snapshot = Snapshot(model, optimizer, loss_fn, forward, scaler, generators=sources, keep_copies_on=keep_copies_on)
    trainer = _Trainer(
        model, optimizer, loss_fn, forward, evaluate, batches, accumulate, clip_norm, clip_value, autocast, scaler
    )
    curve = snapshot.undo_after(partial(_run, trainer, plan.rates, sources, seed))
    return plan.conclude(curve, trainer.setting)


def _run(trainer: _Trainer, rates: list[float], sources: list[object], seed: int) -> list[RangeTestPoint]:
    seed_generators(seed, chain.from_iterable(map(find_generators, sources)))
    with torch.inference_mode(False), torch.enable_grad():
        if not trainer.model.training:
            trainer.model.train()
        return climb(rates, trainer.step, trainer.take_losses, trainer.evaluate)


@dataclass
class _Trainer:
    """Steps the user's optimizer on the user's batches."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_fn: LossFunction | None
    forward: Forward | None
    evaluation: Evaluate | None
    batches: Iterable[Any]
    accumulate: int
    clip_norm: float | None
    clip_value: float | None
    autocast: torch.dtype | None
    given_scaler: torch.amp.GradScaler | None
    batch_size: int | None = None
    _losses: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = next(p.device for p in self.model.parameters() if p.requires_grad)
        self.ratios = rate_ratios(given_rates(self.optimizer.param_groups))
        self.scaler = self.given_scaler or torch.amp.GradScaler(self.device.type, enabled=False)
        self._endless = _endless(self.batches)

    @property
    def setting(self) -> str:
        """What the bounds hold for, in words."""
        group = self.optimizer.param_groups[0]
        known = {name: group[name] for name in ("momentum", "betas", "weight_decay") if group.get(name)}
        texts = [f"{name}={_short(value)}" for name, value in known.items()]
        batch = "" if self.batch_size is None else f", {self.batch_size * self.accumulate} samples a step"
        return f"{type(self.optimizer).__name__}({', '.join(texts)}){batch}"

    def step(self, rate: float) -> None:
        """Take one optimizer step at `rate`; the loss stays on the device until `take_losses`."""
        for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
            set_rate(group, rate * ratio)
        self.model.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._backward() for _ in range(self.accumulate)]
        if self.clip_value is not None or self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(self.model.parameters(), self.clip_value)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._losses.append(torch.stack(losses).mean())

    def take_losses(self) -> list[float]:
        """Return the losses of the steps since the last call."""
        losses: list[float] = torch.stack(self._losses).tolist() if self._losses else []
        self._losses.clear()
        return losses

    def evaluate(self) -> tuple[float | None, float | None]:
        """Return loss and metric of the user's evaluation, in evaluation mode; the train flags stay as they are."""
        if self.evaluation is None:
            return None, None
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        with torch.no_grad(), self._autocast():
            result = self.evaluation(self.model)
        for module, mode in modes:
            module.training = mode
        return _loss_and_metric(result)

    def _backward(self) -> torch.Tensor:
        batch = _to(next(self._endless), self.device)
        if self.batch_size is None:
            self.batch_size = _batch_size(batch)
        with self._autocast():
            loss = _checked_loss(self._loss(batch))
        self.scaler.scale(loss / self.accumulate).backward()  # type: ignore[no-untyped-call]  # torch: backward is untyped
        return loss.detach().float()

    def _loss(self, batch: Any) -> Any:
        if self.forward is not None:
            return self.forward(self.model, batch)
        if isinstance(batch, Mapping):
            return self._loss_of_dict(batch)
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and self.loss_fn is not None):
            need = "a loss_fn" if self.loss_fn is None else "forward=: a function (model, batch) -> loss"
            raise UsageError(f"A batch of type {type(batch).__name__} needs {need}.")
        return self.loss_fn(_call(self.model, batch[0]), batch[1])

    def _loss_of_dict(self, batch: Mapping[str, Any]) -> Any:
        if self.loss_fn is None:
            output = self.model(**batch)
            loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            if loss is None:
                raise UsageError(
                    f"The model returned {type(output).__name__} without a loss; give a loss_fn or forward."
                )
            return loss
        if "labels" not in batch:
            raise UsageError(
                f"A dict batch needs 'labels', got {', '.join(map(str, batch))}; give forward= for others."
            )
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return self.loss_fn(self.model(**inputs), batch["labels"])

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, dtype=self.autocast)


# --- batches -------------------------------------------------------------------------------------------------------


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches, epoch after epoch. Raises UsageError when there are none, or no more."""
    batches = own_loader(batches)
    count = 0
    while True:
        before = count
        for batch in batches:
            yield batch
            count += 1
        if count == before:
            raise UsageError(
                "There are no batches; give at least one."
                if not count
                else f"The batches ended after {count}, and cannot be iterated again: give a DataLoader, a list, "
                "or fewer steps."
            )


def own_loader(batches: Iterable[Any]) -> Iterable[Any]:
    """Return a DataLoader with workers of its own: persistent ones would live on with their chance spent."""
    if not isinstance(batches, DataLoader):
        return batches
    own = copy(batches)
    own._iterator = None
    return own


def _to(value: Any, device: torch.device) -> Any:
    """Return `value` with all tensors on `device`."""
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(member, device) for key, member in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_to(member, device) for member in value))
    if isinstance(value, tuple | list):
        return type(value)(_to(member, device) for member in value)
    return value


def _short(value: Any) -> Any:
    """Return a number, or numbers, with four digits: a scheduled momentum has sixteen."""
    return tuple(map(_short, value)) if isinstance(value, tuple) else float(f"{value:.4g}")


def _batch_size(batch: Any) -> int | None:
    """Return the first dimension of the first tensor."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else None
    members = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((size for member in members if (size := _batch_size(member)) is not None), None)


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


# --- what comes in and goes out --------------------------------------------------------------------------------------


def _checked_loss(loss: Any) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise UsageError(f"The loss must be a tensor with one element, got {got}; take its mean.")
    if not loss.requires_grad:
        raise UsageError("The loss does not depend on any trainable parameter; check loss_fn and requires_grad.")
    return loss.reshape(())


def _loss_and_metric(result: Any) -> tuple[float | None, float | None]:
    """Return what `evaluate` gave as two numbers; None where it gave none or one that is not finite."""
    pair = result if isinstance(result, tuple | list) and len(result) == 2 else (None, result)
    try:
        loss, metric = (None if value is None else float(value) for value in pair)
    except (TypeError, ValueError) as error:
        raise UsageError(f"evaluate must return a metric or (loss, metric), got {type(result).__name__}.") from error
    return finite(loss), finite(metric)


def _check_kinds(model: object, optimizer: object, loss_fn: object, **functions: object) -> None:
    """Raise UsageError for arguments in another order, and for a class in the place of what it makes."""
    order = "the order is model, optimizer, loss_fn, batches"
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be a torch.nn.Module, got {typed(model)}; {order}.")
    if not hasattr(optimizer, "param_groups"):
        raise UsageError(f"optimizer must be a torch.optim.Optimizer, got {typed(optimizer)}; {order}.")
    if isinstance(loss_fn, type):
        raise UsageError(f"loss_fn must be a function (outputs, targets) -> loss; write {loss_fn.__name__}().")
    for name, function in {"loss_fn": loss_fn, **functions}.items():
        if function is not None and not callable(function):
            raise UsageError(f"{name} must be a function, got {typed(function)}.")


def _check_count(name: str, value: object, *, at_least: int) -> None:
    if value is not None and not isinstance(value, Integral):
        raise UsageError(f"{name} must be a whole number, got {value!r}.")
    if value is not None and value < at_least:
        raise UsageError(f"{name} must be at least {at_least}, got {value}.")


def _check(model: nn.Module, optimizer: torch.optim.Optimizer, **clip: float | None) -> None:
    """Raise UsageError for what would only fail later, or go wrong unseen."""
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if not trainable:
        raise UsageError("The model has no trainable parameters; set requires_grad on some.")
    if not trainable & {id(p) for group in optimizer.param_groups for p in group["params"]}:
        raise UsageError("The optimizer holds no trainable parameter of this model; make it from model.parameters().")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError("A range test cannot step LBFGS: its steps need a closure and search the rate themselves.")
    for name, limit in clip.items():
        if limit is not None and not limit > 0:
            raise UsageError(f"{name} must be greater than 0, got {limit}; None does not clip.")


def _epoch_steps(batches: Iterable[Any], accumulate: int) -> float | None:
    """Return the steps of an epoch, where batches have a length. Raises UsageError where there can be none."""
    _check_count("accumulate", accumulate, at_least=1)
    if not isinstance(batches, Iterable):
        raise UsageError(f"batches must be something to iterate, such as a DataLoader, got {type(batches).__name__}.")
    try:
        return len(batches) / accumulate  # type: ignore[arg-type]  # not every iterable has one: hence the try
    except TypeError:
        return None


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"   ({wording.rate(interval[0])} to {wording.rate(interval[1])})"
