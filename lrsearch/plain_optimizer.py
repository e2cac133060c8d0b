"""torch.optim without what it lays around its methods for its profiler and its compiler, neither of which is used here.

With it the first optimiser of a process imports torch._dynamo (1.2 processor seconds), and each step of a small network
takes a tenth longer. Where torch is built otherwise, only the time is lost: the methods are then called as they are.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

import torch

_torchs = sys.modules[torch.optim.Optimizer.__module__]
_LAZY = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
"""The methods of Optimizer that import torch._dynamo when first called, to tell it to stay out of them."""


def spare_dynamo() -> None:
    """Let torch.optim's optimisers do without torch._dynamo; methods that it has been told of already stay as they are.

    torch._compile looks for what it would make of each method in an attribute of that method; here it finds the method.
    """
    for name in _LAZY:
        plain = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        if not hasattr(plain, "__dynamo_disable"):
            setattr(plain, "__dynamo_disable", plain)  # such a name would be mangled in a class


def plain_step(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """Return what does `optimizer.step()`; for torch's own optimisers without marks for the profiler.

    Where somebody listens to the steps of all optimisers (torch's global hooks), it is `step` itself.
    """
    hooks = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    if not type(optimizer).__module__.startswith("torch.optim.") or any(getattr(_torchs, hook, None) for hook in hooks):
        return optimizer.step
    step = inspect.unwrap(type(optimizer).step)

    def take() -> None:
        with torch.no_grad():  # what torch's own wrapper is there for
            step(optimizer)

    return take
