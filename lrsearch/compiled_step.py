"""Training steps of a gang, compiled: all that a step computes is traced once, and torch.compile makes one piece of it.

The trace (torch.fx's make_fx) has the operations of forward pass, gradients, clipping and optimiser with every tensor
that they read or write as an argument, so that the same step of another gang is the same text and is compiled once in
a process. torch.compile by itself would compile forward and backward pass apart and leave the optimiser as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lrsearch import chance
from lrsearch.gang_check import less, norm, shake_numbers
from lrsearch.graphs import FasterSteps
from lrsearch.training import one_line

UNCOMPILED_STEPS = 1
"""Taken as they are first: optimisers make their state then."""
ROUNDING = 10.0
"""Times what other last digits change: so far a compiled step may be from its trace. Found were 1.5 times at most."""
Step = Callable[..., torch.Tensor]
Layout = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device], ...]
_compiled: dict[tuple[str, Layout], Step] = {}
"""By the text of the traced step and the layout of its arguments."""


class CompiledSteps(FasterSteps):
    """Carries out steps of training, which return a tensor, by compiled code from the second one on.

    What a step does beside computing on tensors is done while it is traced, and then no more. Steps with batches of
    another shape than the first are carried out as they are, and so are all when it cannot be compiled or `give_up` was
    called: `why_not` says why.
    """

    def __init__(self) -> None:
        super().__init__()
        self._layout: Layout | None = None
        self._held: list[torch.Tensor] = []

    def renew(self) -> None:
        """Go on with other tensors of the same layout in the place of those that were held."""
        self._held = []

    def step(
        self, work: Step, arguments: Sequence[object], held: Callable[[], list[torch.Tensor]], traceable: Step
    ) -> torch.Tensor:
        """Carry out `work(*arguments)`.

        `held()` are all other tensors that it reads or writes, from `renew` on other ones; `traceable(*arguments,
        *held)` is the same work on the tensors that it is given. It may raise ValueError for what cannot be compiled.
        """
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        if len(tensors) < len(arguments):
            self.give_up("the batches are no tensors")
        if self.why_not is not None:
            return work(*arguments)
        layout = _layout(tensors)
        first, self._layout = self._layout is None, self._layout or layout
        if first or layout != self._layout:
            return work(*arguments)
        if self._way is None:
            try:
                self._way = _find(traceable, tensors, held())
            except Exception as error:  # whatever stops the compiler
                self.give_up(one_line(error))
                return work(*arguments)
        self._held = self._held or [tensor.detach() for tensor in held()]
        with torch.no_grad():
            losses: torch.Tensor = self._way(*tensors, *self._held)
        return losses


def _layout(tensors: Sequence[torch.Tensor]) -> Layout:
    return tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors)


def _find(traceable: Step, arguments: Sequence[torch.Tensor], held: Sequence[torch.Tensor]) -> Step:
    """Return the compiled step, compared with its trace. Raises ValueError where it cannot be compiled."""
    drawn = chance.snapshot(())
    try:
        text, graph = _traced(traceable, arguments, held)
        if chance.has_drawn(drawn, ("python", "numpy")):
            raise ValueError("a step throws its dice in Python")
        if text != _traced(traceable, arguments, held)[0]:
            raise ValueError("the model computes something else at each step")
        key = text, _layout([*arguments, *held])
        if key not in _compiled:
            # Its own look at each tensor, at each call, takes a tenth of a small step; the layout is looked at here.
            options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
            # Torch 2.11 moves the update of a weight before what reads it in the backward pass.
            options["reorder_for_peak_memory"] = False
            compiled: Step = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
            _check(compiled, graph, arguments, held)
            _compiled[key] = compiled
    finally:
        chance.restore(drawn, ())
    return _compiled[key]


def _check(
    compiled: Step, graph: torch.fx.GraphModule, arguments: Sequence[torch.Tensor], held: Sequence[torch.Tensor]
) -> None:
    """Raise ValueError where a compiled step, taken on copies, does otherwise than its trace, beyond rounding.

    What counts as rounding is how the trace does otherwise with other last digits in all that it holds.
    """
    drawn, own = chance.snapshot(()), [tensor.detach() for tensor in held]
    rounds = torch.finfo(torch.bfloat16).eps / 2 if "bfloat16" in graph.code else 0.0

    def changes(step: Step, *, shaken: bool = False) -> list[torch.Tensor]:
        copies, generator = [tensor.clone() for tensor in own], torch.Generator().manual_seed(0)
        for one in copies if shaken else ():
            if one.is_floating_point():
                shake_numbers(one, generator)
        before = [one.clone() for one in copies] if shaken else own
        chance.restore(drawn, ())
        with torch.no_grad():
            losses = step(*arguments, *copies)
        return [losses, *(less(_numbers(one), _numbers(first)) for one, first in zip(copies, before, strict=True))]

    expected = changes(graph)
    wrong = [float(less(one, right).norm()) for one, right in zip(changes(compiled), expected, strict=True)]
    noise = [norm(less(one, right)) for one, right in zip(changes(graph, shaken=True), expected, strict=True)]
    for error, rounding, change, before in zip(wrong, noise, expected, [expected[0], *own], strict=True):
        digits = torch.finfo(change.dtype).eps * norm(_numbers(before) + change)
        if not error <= ROUNDING * (rounding + digits + rounds * norm(change)):
            raise ValueError("torch.compile makes something else of the step than what it computes")


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        return torch.view_as_real(tensor)
    return tensor if tensor.is_floating_point() else tensor.double()


def _traced(
    traceable: Step, arguments: Sequence[torch.Tensor], held: Sequence[torch.Tensor]
) -> tuple[str, torch.fx.GraphModule]:
    """Return the text of the step and its graph. Raises ValueError.

    Nothing is computed: the tensors are torch's fake ones, whose content nobody can ask for.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # here: it takes half a second

    own = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in held]
    try:
        graph = make_fx(traceable, tracing_mode="fake")(*arguments, *own)
    except Exception as error:
        if "convert all Tensors to FakeTensors" in str(error):
            raise ValueError("the model computes with a tensor that is neither parameter nor buffer") from error
        raise
    graph.graph.eliminate_dead_code(_has_effects)
    graph.recompile()
    if any(node.op == "get_attr" for node in graph.graph.nodes):
        raise ValueError("the model computes with a tensor that is neither parameter nor buffer")
    return graph.code, graph


def _has_effects(node: torch.fx.Node) -> bool:
    """Whether a node does more than compute what others use; torch does not say so of batch norm's statistics."""
    return node.is_impure() or "batch_norm" in str(node.target)
