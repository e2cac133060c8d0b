"""From a name in a study file to the thing it names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from lrsearch.errors import UnknownNameError, UsageError

T = TypeVar("T")


def lookup(kind: str, table: Mapping[str, T], name: str) -> T:
    """Return what `name` stands for: `table`'s own entry or an installed entry point of the group `lrsearch.<kind>`.

    Raises UnknownNameError, which lists the known names and the nearest one.
    """
    if name in table:
        return table[name]
    plugins = {point.name: point for point in entry_points(group=f"lrsearch.{kind}")}
    if name in plugins:
        try:
            found: T = plugins[name].load()
        except Exception as error:
            raise UsageError(f"The {kind} plug-in {name!r} ({plugins[name].value}) does not load: {error}") from error
        return found
    raise UnknownNameError(kind, name, [*table, *plugins])


def names(kind: str, table: Mapping[str, Any]) -> list[str]:
    """Return all names that `lookup` knows, sorted."""
    return sorted({*table, *(point.name for point in entry_points(group=f"lrsearch.{kind}"))})
