"""Starting from saved weights: a state_dict file, held against the model, with new layers left as they were drawn."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import torch

from lrsearch.errors import DataError, WorkloadError, typed
from lrsearch.workloads._settings import WorkloadSettings

SHOWN = 3
"""Names listed of each kind of mistake."""


@dataclass(frozen=True)
class _Weights:
    state: Mapping[str, torch.Tensor]
    sha256: str


def started(model: torch.nn.Module, settings: WorkloadSettings) -> torch.nn.Module:
    """Return `model` with the weights of `settings.start_from`, if there are any; buffers are weights too.

    Raises DataError when the file is no state_dict, WorkloadError when it does not fit the model.
    """
    if settings.start_from is None:
        return model
    own, saved = model.state_dict(), _read(settings.start_from).state
    _check_patterns(settings.new_layers, [*own, *saved])
    kept = {name: value for name, value in own.items() if not _is_new(name, settings.new_layers)}
    used = {name: value for name, value in saved.items() if not _is_new(name, settings.new_layers)}
    _check_fit(kept, used, settings.start_from)
    model.load_state_dict({**own, **used})
    return model


def origin(settings: WorkloadSettings) -> str:
    """Return what a description says of the weights: ", starting from resnet.pt (sha256 9f86...)", or nothing."""
    if settings.start_from is None:
        return ""
    new = f", new: {' '.join(settings.new_layers)}" if settings.new_layers else ""
    return f", starting from {settings.start_from.name} (sha256 {_read(settings.start_from).sha256}{new})"


def _read(path: Path) -> _Weights:
    """Return what the file holds now; it is read again only when it has changed."""
    try:
        stat = path.stat()
        return _read_version(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise DataError(
            f"workload.start_from {path} cannot be read ({error.strerror or error}): point it at a file that "
            "torch.save(model.state_dict(), path) wrote; a relative path starts at the study file's folder."
        ) from error


@lru_cache(maxsize=2)
def _read_version(path: Path, size: int, time_ns: int) -> _Weights:
    content = path.read_bytes()
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in torch, zipfile and pickle in as many ways
        raise DataError(
            f"workload.start_from {path} is damaged, or holds more than tensors ({type(error).__name__} in torch.load "
            "with weights_only): write it anew with torch.save(model.state_dict(), path)."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        keys = f" with the keys {_listed(map(str, state))}" if isinstance(state, Mapping) else ""
        raise DataError(
            f"workload.start_from {path} must hold a state_dict (names and tensors), got {typed(state)}"
            f"{keys}: write it with torch.save(model.state_dict(), path)."
        )
    return _Weights(state, hashlib.sha256(content).hexdigest())


def _is_new(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(patterns: Iterable[str], names: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise WorkloadError(
                f"workload.new_layers {pattern!r} matches nothing in the model or its file; there are {_listed(names)}."
            )


def _check_fit(own: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise WorkloadError unless names and shapes agree."""
    shapes = [
        f"{name} ({tuple(saved[name].shape)} in the file, {tuple(own[name].shape)} in the model)"
        for name in own
        if name in saved and saved[name].shape != own[name].shape
    ]
    found = {
        "it lacks": [name for name in own if name not in saved],
        "it has, but the model has not,": [name for name in saved if name not in own],
        "other shapes:": shapes,
    }
    mistakes = [f"{what} {_listed(names)}" for what, names in found.items() if names]
    if mistakes:
        raise WorkloadError(
            f"workload.start_from {path} does not fit the model: {'; '.join(mistakes)}. Save the weights of this very "
            'model, or name what is to be drawn anew or passed over, such as workload.new_layers: ["fc.*"].'
        )
    if not own:
        raise WorkloadError("workload.new_layers leaves nothing to take from workload.start_from: remove one of them.")


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    rest = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + rest
