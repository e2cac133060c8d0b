"""Training steps as CUDA graphs: recorded once and replayed, so that the processor no longer launches each kernel.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

UNRECORDED_STEPS = 3
"""Taken as they are first: libraries choose kernels and optimisers make their state then."""

FAILED: list[str] = []
"""Why no step is recorded in this process any more; empty while it may be."""

Layout = tuple[tuple[torch.Size, torch.dtype], ...]
Work = Callable[..., torch.Tensor]


def can_record(device: torch.device) -> bool:
    return device.type == "cuda"


def record(
    work: Callable[[], torch.Tensor], stream: torch.cuda.Stream | None
) -> tuple[Callable[[], object], torch.Tensor]:
    """Return what repeats `work()`, which is not carried out now, and the tensor into which each repetition writes.

    Raises what torch raises where `work` waits for the device, or does what cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as one that pins batches, may go on.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = work()
    return graph.replay, result


@functools.cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """Return the one on which all steps are recorded: libraries keep memory for each stream that they have seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's


class FasterSteps:
    """Steps of training that are carried out in a faster way once it is there; `why_not` says why it is not."""

    def __init__(self) -> None:
        self._way: Callable[..., Any] | None = None
        self.why_not: str | None = None

    @property
    def is_warming(self) -> bool:
        """Whether the faster way is still to come."""
        return self._way is None and self.why_not is None

    def give_up(self, reason: str) -> None:
        """Carry out all steps as they are."""
        self.why_not = self.why_not or reason
        self._way = None


class Replayed(FasterSteps):
    """Carries out steps of training, which return a tensor, from a recording where that can be.

    What a step does beside computing on its arguments, and on tensors that stay where they are, is done while it is
    recorded, and then no more. It is recorded after UNRECORDED_STEPS for the layout that comes then; other batches are
    carried out as they are, and so are all steps when recording fails or `give_up` was called: `why_not` says why.

    The step is handed over at each call: kept here, it would keep the run alive that this belongs to.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._stream = _stream_of(device) if device.type == "cuda" else None
        self._steps = 0
        self._layout: Layout | None = None
        self._arguments: tuple[torch.Tensor, ...] = ()
        self._result = torch.empty(0)

    def step(self, work: Work, *arguments: object) -> torch.Tensor:
        """Carry out `work(*arguments)`, always the same work. The returned tensor is the caller's."""
        tensors = tuple(argument for argument in arguments if isinstance(argument, torch.Tensor))
        if len(tensors) < len(arguments):
            self.give_up("the batches are no tensors")
        if self.why_not is not None:
            return work(*arguments)
        layout = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if self._way is None:
            self._steps += 1
            if self._steps <= UNRECORDED_STEPS:
                return self._beside(work, tensors)
            self._record(work, tensors, layout)
        if self._way is None or layout != self._layout:
            return work(*arguments)
        for own, given in zip(self._arguments, tensors, strict=True):
            own.copy_(given)
        self._way()
        return self._result.clone()

    def _record(self, work: Work, tensors: tuple[torch.Tensor, ...], layout: Layout) -> None:
        self._arguments, self._layout = tuple(tensor.clone() for tensor in tensors), layout
        if FAILED:
            self.give_up(FAILED[0])
            return
        here = None if self._stream is None else torch.cuda.current_stream(self._stream.device)
        try:
            self._way, self._result = record(partial(work, *self._arguments), self._stream)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            self.give_up(reason)
            if here is not None:  # torch before 2.13 stays on the other stream, and its allocator in the recording
                torch.cuda.set_stream(here)
                FAILED.append(f"in this process recording has failed before ({reason})")

    def _beside(self, work: Work, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Carry the step out on the stream of the recording, as torch asks for before what has gradients."""
        if self._stream is None:
            return work(*tensors)
        here = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            result = work(*tensors)
        here.wait_stream(self._stream)
        return result
