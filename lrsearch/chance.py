"""The state of every source of chance as values that can be stored, and back."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch


def seed_own(own: Sequence[object], seed: int) -> None:
    """Begin each of `own` anew, so that what it draws depends on `seed` and not on what this process did before."""
    for place, generator in enumerate(own):
        sequence = np.random.SeedSequence([seed, place])
        number = int(sequence.generate_state(1)[0])
        if isinstance(generator, torch.Generator):
            generator.manual_seed(number)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(sequence).state
        elif isinstance(generator, np.random.RandomState | random.Random):
            generator.seed(number)


def snapshot(own: Sequence[object]) -> dict[str, Any]:
    """Return the states of the generators of python, numpy, torch, CUDA and MPS, and of `own`."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        "own": [_state(generator) for generator in own],
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch: untyped
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore(state: dict[str, Any], own: Sequence[object]) -> None:
    """Put back what `snapshot` returned. Raises ValueError when `own` are not as many as they were."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])
    for generator, one in zip(own, state["own"], strict=True):
        _set_state(generator, one)


def has_drawn(since: dict[str, Any], sources: Collection[str] = ()) -> bool:
    """Whether a global generator, of these `sources` or of any, is elsewhere than where `snapshot` found it."""
    return any(not _is_where(source, since[source]) for source in sources or since.keys() - {"own"})


def _is_where(source: str, state: Any) -> bool:
    if source == "python":  # 625 numbers in a tuple, which compares itself a thousand times faster
        return bool(random.getstate() == state)
    if source == "numpy":
        return is_alike(state, np.random.get_state(legacy=False))
    if source == "torch":
        return torch.equal(state, torch.get_rng_state())
    return is_alike(state, torch.cuda.get_rng_state_all() if source == "cuda" else torch.mps.get_rng_state())


def is_alike(one: Any, other: Any) -> bool:
    """Whether two nested values hold the same, tensors and arrays included."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(is_alike, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(np.array_equal(one, other))


def encoded(state: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot made of tensors and text alone, which `torch.load(weights_only=True)` reads."""
    return {
        **state,
        "python": _dumps(state["python"]),
        "numpy": _dumps(state["numpy"]),
        "own": [one if isinstance(one, torch.Tensor) else _dumps(one) for one in state["own"]],
    }


def decoded(state: dict[str, Any]) -> dict[str, Any]:
    """Return the snapshot that `encoded` was given."""
    return {
        **state,
        "python": _tuples(_loads(state["python"])),
        "numpy": _loads(state["numpy"]),
        "own": [one if isinstance(one, torch.Tensor) else _loads(one) for one in state["own"]],
    }


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else generator.getstate()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(_tuples(state))


def _dumps(value: Any) -> str:
    return json.dumps(value, default=_array)


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    return value.item()


def _loads(text: str) -> Any:
    return json.loads(text, object_hook=_arrays)


def _arrays(read: dict[str, Any]) -> Any:
    return np.array(read["array"], dtype=read["dtype"]) if read.keys() == {"array", "dtype"} else read


def _tuples(value: Any) -> Any:
    """Return python's own state, which JSON has turned into lists."""
    version, numbers, gauss = value
    return version, tuple(numbers), gauss
