"""A schedule as a torch LRScheduler, for training loops of one's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from lrsearch.errors import UsageError
from lrsearch.interfaces import Schedule


def torch_scheduler(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    *,
    momentum: Schedule | None = None,
    last_step: int = -1,
) -> ScheduleLR:
    """Return a scheduler that gives optimizer step k, counted from 0, the rate `schedule(k)`.

    Call its `step()` after each `optimizer.step()`. The first parameter group gets the schedule's rate; the others keep
    the ratio to it that they were given in the optimizer (all 0: equal rates). `momentum` sets the momentum, or Adam's
    beta 1, in the same way for all groups. The state is plain numbers, without the schedule: to resume, make optimizer
    and scheduler anew, then load both states, in either order. `last_step` is the number of the last step taken before
    this run, for those who keep no scheduler state; it needs groups with `initial_lr`, as in torch.
    """
    return ScheduleLR(optimizer, schedule, momentum, last_step)


class ScheduleLR(LRScheduler):
    """Sets each group to its share of `schedule(step)`; the rate of a step depends on nothing but its number."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: Schedule, momentum: Schedule | None, last_step: int
    ) -> None:
        for name, function in (("schedule", schedule), ("momentum", momentum)):
            if not (callable(function) or (name == "momentum" and function is None)):
                raise UsageError(f"{name} must be a function from step to value, got {function!r}.")
        if momentum is not None:
            _check_momentum(optimizer)
        if last_step < -1:
            raise UsageError(f"last_step must be -1 (nothing done yet) or more, got {last_step}.")
        self._schedule = schedule
        self._momentum = momentum
        try:
            super().__init__(optimizer, last_epoch=last_step)
        except KeyError as error:
            raise UsageError(
                f"last_step={last_step} needs an optimizer whose groups have 'initial_lr': load its state first."
            ) from error

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of each group for the step `last_epoch`. Raises UsageError on an impossible rate."""
        try:
            rate = float(self._schedule(self.last_epoch))
        except TypeError as error:
            raise UsageError(
                f"The schedule gives no number for step {self.last_epoch} ({error}): are its bounds None, as those of "
                "a range test are whose verdict's status is not 'ok'?"
            ) from error
        if not 0 <= rate < math.inf:
            raise UsageError(f"A rate must be finite and at least 0, got {rate} for step {self.last_epoch}.")
        return [rate * ratio for ratio in rate_ratios(self.base_lrs)]

    def _get_closed_form_lr(self) -> list[float | torch.Tensor]:
        return self.get_lr()

    def step(self, epoch: int | None = None) -> None:
        """Go on to the next step's rate, or to that of step `epoch`."""
        super().step(epoch)
        self._set_momentum()

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers only: `torch.load` takes them with weights_only=True."""
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": [float(rate) for rate in self.base_lrs],
            "_last_lr": [float(rate) for rate in self._last_lr],
            "_step_count": self._step_count,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from this state, and set the optimizer's rates to it. Raises UsageError when it does not fit."""
        missing = {"last_epoch", "base_lrs", "_step_count"} - state_dict.keys()
        if missing:
            raise UsageError(f"This is no scheduler's state: it lacks {', '.join(sorted(missing))}.")
        groups, count = self.optimizer.param_groups, len(state_dict["base_lrs"])
        if count != len(groups):
            raise UsageError(f"The state is of an optimizer with {count} parameter groups, this has {len(groups)}.")
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        self.base_lrs = list(state_dict["base_lrs"])
        rates = self.get_lr()
        for group, rate in zip(groups, rates, strict=True):
            set_rate(group, float(rate))
        self._last_lr = rates
        self._set_momentum()

    def _set_momentum(self) -> None:
        if self._momentum is None:
            return
        value = float(self._momentum(self.last_epoch))
        for group in self.optimizer.param_groups:
            set_momentum(group, value)


def rate_ratios(rates: Sequence[float | torch.Tensor]) -> list[float]:
    """Return each group's rate as a multiple of the first that is not 0; where all are 0 they are equal.

    >>> rate_ratios([0.1, 0.01]), rate_ratios([0.0, 0.0])
    ([1.0, 0.1], [1.0, 1.0])
    """
    values = [float(rate) for rate in rates]
    reference = next((value for value in values if value), None)
    return [1.0 if reference is None else value / reference for value in values]


def given_rates(groups: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the rates that the groups were made with, whatever a scheduler has made of them since."""
    return [float(group.get("initial_lr", group["lr"])) for group in groups]


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a group's rate; a rate that is a tensor stays that tensor, as compiled optimizers need."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def set_momentum(group: dict[str, Any], value: float) -> None:
    """Set a group's momentum, or its beta 1. Raises UsageError where it has neither."""
    if "momentum" in group:
        group["momentum"] = value
    elif "betas" in group:
        group["betas"] = (value, *group["betas"][1:])
    else:
        raise UsageError("The optimizer has no momentum to schedule: remove base_momentum and max_momentum.")


def _check_momentum(optimizer: torch.optim.Optimizer) -> None:
    if not all("momentum" in group or "betas" in group for group in optimizer.param_groups):
        raise UsageError(f"{type(optimizer).__name__} has no momentum to schedule; leave momentum=None.")
