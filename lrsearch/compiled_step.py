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
from lrsearch.graphs import FasterSteps
from lrsearch.training import one_line

UNCOMPILED_STEPS = 1
"""Taken as they are first: optimisers make their state then."""
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
    """Return the compiled step, which has been called once on copies. Raises ValueError where it cannot be compiled."""
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
            without_guards: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
            compiled: Step = torch.compile(graph, fullgraph=True, dynamic=False, options=without_guards)
            with torch.no_grad():
                compiled(*arguments, *(tensor.detach().clone() for tensor in held))
            _compiled[key] = compiled
    finally:
        chance.restore(drawn, ())
    return _compiled[key]


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
