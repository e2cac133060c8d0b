"""What a CUDA graph does, on the processor: operations are recorded with their tensors and numbers, and repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NOT_TOLD = ("running_mean", "running_var")
"""What native_batch_norm writes to, although its schema does not say so."""


class _Recorder(TorchDispatchMode):
    """Keeps each operation; what was written to is as before in the end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.operations: list[tuple[Any, tuple[Any, ...], Mapping[str, Any], Any]] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        for tensor in _written(func, args, kwargs):
            if id(tensor) not in self.before:
                self.before[id(tensor)] = tensor, tensor.clone()
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        return result


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    for place, argument in enumerate(func._schema.arguments):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written or argument.name in NOT_TOLD:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (one for one in tree_leaves(value) if isinstance(one, torch.Tensor))


def record(work: Callable[[], torch.Tensor], stream: object) -> tuple[Callable[[], object], torch.Tensor]:
    """Stand in for `graphs.record`: replaying repeats the operations, in the memory that they had, and nothing else."""
    recorder, chance = _Recorder(), torch.get_rng_state()
    try:
        with recorder:
            result = work()
    finally:
        with torch.no_grad():
            for tensor, before in recorder.before.values():
                tensor.copy_(before)
        torch.set_rng_state(chance)

    def replay() -> None:
        with torch.no_grad():
            for func, args, kwargs, old in recorder.operations:
                returned = func._schema.returns
                if returned and all(one.alias_info is not None and not one.alias_info.is_write for one in returned):
                    continue  # a view of memory that stays where it is
                new = func(*args, **kwargs)
                for one, again in zip(tree_leaves(old), tree_leaves(new), strict=True):
                    if isinstance(one, torch.Tensor) and one is not again:
                        one.copy_(again)

    return replay, result
