"""SGD, Adam and AdamW for a StackedModel: each copy has a rate, momentum, weight decay and state of its own.

The formulas are those of torch.optim, in its order of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lrsearch.optimizers import OPTIMIZERS as SETTINGS
from lrsearch.stacking import select_rows

STACKABLE = ("sgd", "adam", "adamw")


@dataclass
class StackedOptimizer:
    """`settings`: those of torch.optim's class of that `name`, one mapping for each copy; they may differ in momentum
    and weight decay (trial.OF_EACH_MEMBER), all others are the first copy's.

    `parameters` are the tensors to train, (K, ...) each; `multipliers` say by what to multiply each one's rate and
    weight decay. `step` takes rates and momenta as (K,) tensors of the parameters' type, on their device. `as_tensors`:
    momenta and decays are such tensors, too, also where all copies have the same.
    """

    name: str
    settings: Sequence[Mapping[str, Any]]
    parameters: list[torch.Tensor]
    multipliers: Sequence[tuple[float, float]]
    as_tensors: bool = False
    state: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = self.parameters[0]
        self.settings = [SETTINGS[self.name].model_validate(own).model_dump() for own in self.settings]
        self._common = self.settings[0]
        self._momentum = torch.tensor([one.get("momentum", 0.0) for one in self.settings], dtype=torch.float64).to(
            first
        )
        decay = torch.tensor([one["weight_decay"] for one in self.settings], dtype=torch.float64)
        self._decays = [(decay * by).to(first) for _, by in self.multipliers]
        self._alike = all(by == 1 for _, by in self.multipliers) and not self.as_tensors
        self._scheduled = False
        # On the device, so that a recorded step counts on; Apple's has no double precision.
        precise = torch.float32 if first.device.type == "mps" else torch.float64
        self._steps = torch.zeros((), dtype=precise, device=first.device)
        found = getattr(torch, f"_fused_{self.name}_", None) if self.name != "sgd" else None
        # CUDA's takes a rate that is on the device, which has the parameters' type, in float32 only.
        fits = first.device.type == "cpu" or (first.device.type == "cuda" and first.dtype == torch.float32)
        self._kernel = found if fits and not self.as_tensors else None
        self._reads_rates = first.device.type == "cpu"
        """Whether the kernel is given them as numbers: elsewhere that would wait for the device."""
        self._copies: list[list[tuple[torch.Tensor, ...]]] = []
        """Of parameters and state, the part of each copy, for the kernel."""
        self._has_momentum = self.name != "sgd" or any(one["momentum"] for one in self.settings)

    def step(
        self, gradients: Sequence[torch.Tensor], rates: torch.Tensor, momentum: torch.Tensor | None = None
    ) -> None:
        """Take one step. `momentum` replaces SGD's momentum, or Adam's first beta, from this step on."""
        with torch.no_grad():
            if self.name == "sgd":
                self._sgd(list(gradients), rates, momentum)
            else:
                self._steps += 1
                self._adam(list(gradients), rates, momentum)

    def leave_out(self, indices: Collection[int]) -> None:
        """Train all parameters but these from now on, before the first step."""
        assert not self.state, "those would have a part in it"
        kept = [index for index in range(len(self.parameters)) if index not in indices]
        self.parameters = [self.parameters[index] for index in kept]
        self.multipliers = [self.multipliers[index] for index in kept]
        self._decays = [self._decays[index] for index in kept]

    def keep(self, rows: torch.Tensor, parameters: list[torch.Tensor]) -> None:
        """Let the other copies go; `parameters` are the kept ones' tensors."""
        self.parameters, self._copies = parameters, []
        self.settings = [self.settings[row] for row in rows.tolist()]
        self.state = {key: [select_rows(one, rows) for one in tensors] for key, tensors in self.state.items()}
        self._momentum = self._momentum[rows]
        self._decays = [decay[rows] for decay in self._decays]

    def tensors(self) -> list[torch.Tensor]:
        """Return all that a step reads or writes beside parameters, gradients and what it is given."""
        return [self._steps, self._momentum, *self._decays, *(one for own in self.state.values() for one in own)]

    def put(self, tensors: Sequence[torch.Tensor]) -> None:
        """Go on with other tensors in the place of those of `tensors`."""
        self._steps, self._momentum, *rest = tensors
        self._decays, rest = rest[: len(self._decays)], rest[len(self._decays) :]
        for key, own in self.state.items():
            self.state[key], rest = rest[: len(own)], rest[len(own) :]

    def state_of(self, row: int) -> dict[int, dict[str, Any]]:
        """Return the part "state" of what `state_dict` of that copy's own optimiser would be."""
        own = [
            {key: tensors[index][row].clone() for key, tensors in self.state.items()}
            for index in range(len(self.parameters) if self.state else 0)
        ]
        if self.name != "sgd":
            for entries in own:  # each with a tensor of its own, which torch counts up in place
                entries["step"] = self._steps.float().cpu()
        return dict(enumerate(own))

    def _column(self, values: torch.Tensor, index: int) -> torch.Tensor:
        """Return one value per copy so that it multiplies the copy's part of parameter `index`."""
        return values.view(-1, *[1] * (self.parameters[index].ndim - 1))

    def _rates(self, rates: torch.Tensor, index: int) -> torch.Tensor:
        multiplier = self.multipliers[index][0]
        return self._column(rates if multiplier == 1 else rates * multiplier, index)

    def _tensors(self, key: str) -> list[torch.Tensor]:
        if key not in self.state:
            self.state[key] = [torch.zeros_like(parameter) for parameter in self.parameters]
        return self.state[key]

    def _sgd(self, gradients: list[torch.Tensor], rates: torch.Tensor, momentum: torch.Tensor | None) -> None:
        """torch.optim.SGD, https://pytorch.org/docs/stable/generated/torch.optim.SGD.html."""
        if momentum is not None:
            self._momentum, self._has_momentum, self._scheduled = momentum, True, True
        decays = {one["weight_decay"] for one in self.settings}
        if len(decays) == 1 and self._alike:  # one call for all parameters
            if any(decays):
                gradients = list(torch._foreach_add(gradients, self.parameters, alpha=decays.pop()))
        elif any(decays):
            for index, parameter in enumerate(self.parameters):
                gradients[index] = gradients[index].addcmul(parameter, self._column(self._decays[index], index))
        buffers: Sequence[torch.Tensor | None] = [None] * len(gradients)
        fresh = "momentum_buffer" not in self.state
        if self._has_momentum:
            buffers = self._tensors("momentum_buffer")
        momenta = {one["momentum"] for one in self.settings}
        common = None if self._scheduled or self.as_tensors or len(momenta) > 1 else momenta.pop()
        # One after another, so that what one operation leaves in the processor's cache is still there for the next.
        for index, (parameter, gradient, buffer) in enumerate(zip(self.parameters, gradients, buffers, strict=True)):
            if buffer is not None:
                factor = self._column(self._momentum, index)
                # Where a schedule comes to no momentum, torch leaves the buffer as it is.
                moves = factor != 0 if self._scheduled else None
                if fresh:  # in the parameter's layout, so that the loops below go through both in order
                    buffer.copy_(gradient if moves is None else gradient * moves)
                elif moves is not None:
                    left = moves.to(gradient.dtype)
                    buffer.mul_(factor.where(moves, 1)).addcmul_(gradient, left, value=1 - self._common["dampening"])
                else:
                    self._accumulate(buffer, gradient, factor if common is None else common)
                if self._common["nesterov"]:
                    gradient = gradient.addcmul(buffer, factor)
                else:
                    gradient = buffer if moves is None else buffer.where(moves, gradient)
            parameter.addcmul_(gradient, self._rates(rates, index), value=-1)

    def _accumulate(self, buffer: torch.Tensor, gradient: torch.Tensor, momentum: torch.Tensor | float) -> None:
        """Have the buffer be momentum times what it was, plus the gradient."""
        left = 1 - self._common["dampening"]
        if left == 1 and isinstance(momentum, float):
            torch.add(gradient, buffer, alpha=momentum, out=buffer)  # in one go
        else:
            buffer.mul_(momentum).add_(gradient, alpha=left)

    def _adam(self, gradients: list[torch.Tensor], rates: torch.Tensor, beta1: torch.Tensor | None) -> None:
        """torch.optim.Adam and AdamW, https://pytorch.org/docs/stable/generated/torch.optim.AdamW.html."""
        if self._kernel is not None and (beta1 is None or self._reads_rates):
            self._adam_by_copy(self._kernel, gradients, rates, beta1)
            return
        first, second = self._tensors("exp_avg"), self._tensors("exp_avg_sq")
        fixed1, beta2 = self._common["betas"]
        if beta1 is None:
            beta1 = torch.full_like(rates, fixed1)
        correction1 = 1 - beta1.to(self._steps) ** self._steps
        root2 = (1 - beta2**self._steps).sqrt().to(rates)
        for index, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            rate, decay = self._rates(rates, index), self._column(self._decays[index], index)
            if any(one["weight_decay"] for one in self.settings):
                if self.name == "adamw":
                    parameter.mul_(1 - rate * decay)
                else:
                    gradient = gradient.addcmul(parameter, decay)
            first[index].lerp_(gradient, 1 - self._column(beta1, index))
            second[index].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = (second[index].sqrt() / root2).add_(self._common["eps"])
            size = rate / self._column(correction1.to(rates.dtype), index)
            parameter.sub_(first[index].div(denominator).mul_(size))

    def _adam_by_copy(
        self,
        kernel: Callable[..., None],
        gradients: list[torch.Tensor],
        rates: torch.Tensor,
        beta1: torch.Tensor | None,
    ) -> None:
        """Take the step of each copy in one pass over its numbers, as torch's own optimiser does."""
        fixed1, beta2 = self._common["betas"]
        beta1s = [fixed1] * len(rates) if beta1 is None else beta1.tolist()
        for index, (gradient, parameter) in enumerate(zip(gradients, self.parameters, strict=True)):
            if gradient.stride() != parameter.stride():  # the kernel takes numbers as they lie
                gradients[index] = torch.empty_like(parameter).copy_(gradient)
        if not self._copies:
            held = (self.parameters, self._tensors("exp_avg"), self._tensors("exp_avg_sq"))
            self._copies = [[tensor.unbind() for tensor in tensors] for tensors in held]
        tensors = [*self._copies, [gradient.unbind() for gradient in gradients]]
        steps = self._steps.float()
        groups = {
            alike: [place for place, own in enumerate(self.multipliers) if own == alike] for alike in self.multipliers
        }
        each_rate = rates.tolist() if self._reads_rates else rates.unbind()
        for row, (rate, own_beta1) in enumerate(zip(each_rate, beta1s, strict=True)):
            for (by, decay_by), indices in groups.items():
                parameters, first, second, own = ([part[index][row] for index in indices] for part in tensors)
                kernel(
                    parameters,
                    own,
                    first,
                    second,
                    [],
                    [steps] * len(indices),
                    lr=rate * by,
                    beta1=own_beta1,
                    beta2=beta2,
                    weight_decay=self.settings[row]["weight_decay"] * decay_by,
                    eps=self._common["eps"],
                    amsgrad=False,
                    maximize=False,
                )
