"""Everything that training depends on, as bytes: written against torch's public interfaces alone."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def fingerprint(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    generators: Iterable[torch.Generator] = (),
) -> dict[str, object]:
    """Return named parts; two fingerprints are equal when, and only when, all bits are."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        "state_dict": frozen(model.state_dict()),
        "buffers": frozen(dict(model.named_buffers(remove_duplicate=False))),
        "addresses": {name: (id(p), p.data_ptr()) for name, p in parameters.items()},
        "gradients": frozen({name: p.grad for name, p in parameters.items()}),
        "gradient objects": {name: id(p.grad) for name, p in parameters.items() if p.grad is not None},
        "requires_grad": {name: p.requires_grad for name, p in parameters.items()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "optimizer state": frozen(optimizer.state_dict()["state"]),
        "groups": [[(key, frozen(value)) for key, value in group.items()] for group in optimizer.param_groups],
        "scaler": None if scaler is None else frozen(scaler.state_dict()),
        "torch": frozen(torch.get_rng_state()),
        "cuda": frozen(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []),
        "numpy": pickle.dumps(np.random.get_state()),
        "python": random.getstate(),
        "generators": [frozen(generator.get_state()) for generator in generators],
    }


def frozen(value: Any) -> object:
    """Return `value` with every tensor as its type, shape and bytes, so that -0.0, NaN and 0.0 all differ."""
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous()
        return (
            str(value.dtype),
            tuple(value.shape),
            value.requires_grad,
            bytes(data.reshape(-1).view(torch.uint8).numpy()),
        )
    if isinstance(value, Mapping):
        return [(key, frozen(member)) for key, member in value.items()]
    if isinstance(value, list | tuple):
        return [frozen(member) for member in value]
    return value
