"""Training steps as CUDA graphs: recorded once and replayed, so that the processor no longer launches each kernel.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable

import torch

UNRECORDED_STEPS = 3
"""Taken as they are first: libraries choose kernels and optimisers make their state then."""

Layout = tuple[tuple[torch.Size, torch.dtype], ...]


def can_record(device: torch.device) -> bool:
    return device.type == "cuda"


def record(work: Callable[[], torch.Tensor], device: torch.device) -> tuple[Callable[[], object], torch.Tensor]:
    """Return what repeats `work()`, which is not carried out now, and the tensor into which each repetition writes.

    Raises what torch raises where `work` waits for the device, or does what cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


class Replayed:
    """Carries out `work`, which trains in place and returns a tensor, from a recording where that can be.

    What `work` does beside computing on its arguments and on tensors that stay where they are is done while it is
    recorded, and then no more. It is recorded for the layout of the first steps; other batches are carried out as they
    are, and so are all when recording fails: then `why_not` says why.
    """

    def __init__(self, work: Callable[..., torch.Tensor], device: torch.device) -> None:
        self._work = work
        self._device = device
        self._steps = 0
        self._layout: Layout | None = None
        self._arguments: tuple[torch.Tensor, ...] = ()
        self._replay: Callable[[], object] | None = None
        self._result = torch.empty(0)
        self.why_not: str | None = None

    @property
    def is_warming(self) -> bool:
        """Whether it is still to be recorded."""
        return self._replay is None and self.why_not is None

    def takes(self, momentum: object, *batch: object) -> bool:
        """Whether a step with that batch is to be carried out here; without a reason not to, all are."""
        if momentum is not None:
            self.why_not = "its momentum is scheduled, and would stay as it was recorded"
        elif not all(isinstance(part, torch.Tensor) for part in batch):
            self.why_not = "its batches are no tensors"
        return self.why_not is None

    def __call__(self, *arguments: torch.Tensor) -> torch.Tensor:
        """Carry out one step. All tensors lie on the device; the returned one is the caller's."""
        layout = tuple((argument.shape, argument.dtype) for argument in arguments)
        self._layout = self._layout or layout
        if self.why_not is not None or layout != self._layout:
            return self._work(*arguments)
        if self._replay is None:
            self._steps += 1
            if self._steps <= UNRECORDED_STEPS:
                return self._beside(arguments)
            if not self._record(arguments):
                return self._work(*arguments)
        assert self._replay is not None
        for own, given in zip(self._arguments, arguments, strict=True):
            own.copy_(given)
        self._replay()
        return self._result.clone()

    def _record(self, arguments: tuple[torch.Tensor, ...]) -> bool:
        self._arguments = tuple(argument.clone() for argument in arguments)
        try:
            self._replay, self._result = record(lambda: self._work(*self._arguments), self._device)
        except RuntimeError as error:
            self.why_not = " ".join(str(error).split())[:200]
        return self._replay is not None

    def _beside(self, arguments: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Carry the step out on another stream, as torch asks for before it records what has gradients."""
        if self._device.type != "cuda":
            return self._work(*arguments)
        here, beside = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch's
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            result = self._work(*arguments)
        here.wait_stream(beside)
        return result
