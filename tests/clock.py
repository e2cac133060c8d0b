"""A clock that goes on only where a test says so: what is decided by timing then depends on no other program."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from lrsearch.timing import DeviceStopwatch


class Clock:
    """Stands for the module `time` in modules that measure what something takes; all else there is as ever."""

    def __init__(self, patch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        self.seconds = 0.0
        self._patch = patch
        for module in modules:
            patch.setattr(module, "time", self, raising=False)
            patch.setattr(module, "DeviceStopwatch", partial(DeviceStopwatch, clock=self._nanoseconds), raising=False)

    def perf_counter(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def _nanoseconds(self) -> int:
        return round(1e9 * self.seconds)

    def charge(self, kind: object, name: str, seconds: float | Callable[..., float]) -> None:
        """Have each call of the method `name` of `kind`, or of that function of a module, take so long."""
        really = getattr(kind, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            result = really(*arguments, **named)
            self.seconds += seconds(*arguments, **named) if callable(seconds) else seconds
            return result

        self._patch.setattr(kind, name, timed)
