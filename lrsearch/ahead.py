"""Torch is imported by the process that will fork the workers, while this one imports its own modules and reads on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lrsearch.environment import devices_are_known, importing_alike, of_slot, processors
from lrsearch.errors import LrsearchError
from lrsearch.forked import IS_SAFE, Forker
from lrsearch.yaml_file import read_yaml

DEFAULT_SLOTS = 2


def glance(arguments: Sequence[str]) -> dict[str, str] | None:
    """Return the first guess for a command line that looks like `run-study FILE`; None for any other."""
    files = [one for one in arguments if one.endswith((".yaml", ".yml")) and os.path.isfile(one)]
    if arguments[:1] != ["run-study"] or len(files) != 1 or {"--dry-run", "--help"} & set(arguments) or not IS_SAFE:
        return None
    device = None
    for option, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, value = option.partition("=")
        if name == "--device":
            device = value or following
    try:
        return first_guess(read_yaml(Path(files[0])).values, device)
    except LrsearchError:  # which comes again, and is told then
        return None


def first_guess(values: Any, device: str | None) -> dict[str, str] | None:
    """Return the environment that workers will most likely have, by what is written in a study file, not yet checked.

    None where trials run in this process or on other machines, or what devices there are is not known without torch.
    """
    executor, training = _block(values, "executor"), _block(values, "training")
    if executor.get("name") != "process" or not devices_are_known(str(device or training.get("device", "auto"))):
        return None
    slots, threads = executor.get("slots", DEFAULT_SLOTS), executor.get("threads_per_slot")
    if threads is not None and not _is_number(threads):
        return None
    if slots == "auto":
        slots = max(1, processors() // (threads or 1))
    return importing_alike(of_slot(os.environ, slots, threads)) if _is_number(slots) else None


def _block(values: Any, key: str) -> Mapping[str, Any]:
    block = values.get(key) if isinstance(values, Mapping) else None
    return block if isinstance(block, Mapping) else {}


def _is_number(value: Any) -> bool:
    return type(value) is int and value > 0


_under_way: list[Forker] = []
"""What waits for the executor that will fork its workers there; one at most."""


@contextmanager
def ended_at_last() -> Iterator[None]:
    """End what `begin` starts in the meantime, unless an executor has it by then. May be entered again inside."""
    try:
        yield
    finally:
        end()


def begin(environment: Mapping[str, str] | None) -> None:
    """Have torch imported in a process with that environment; with None, or where nothing is forked, in none."""
    if environment is None or not IS_SAFE:
        end()
    else:
        with suppress(OSError):  # no process can be started: which comes again, and is told then
            _under_way.append(taken(environment))


def is_under_way() -> bool:
    """Whether torch is being imported by another process, for which this one will wait."""
    return bool(_under_way)


def end() -> None:
    """End the process that imports torch ahead, if there is one."""
    while _under_way:
        _under_way.pop().close()


def taken(environment: Mapping[str, str]) -> Forker:
    """Return the process that has that environment, or a new one, from which the caller will fork and which it ends."""
    if _under_way and _under_way[0].environment == environment:
        return _under_way.pop()
    end()
    return Forker(environment)
