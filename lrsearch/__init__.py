"""lrsearch: what does each way of choosing a learning rate cost, and what accuracy does it buy?"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["RangeTest", "Study", "__version__", "lr_range_test", "open_study", "torch_scheduler", "untouched"]

_LAZY = {
    "RangeTest": "finder",
    "Study": "notebook",
    "lr_range_test": "finder",
    "open_study": "notebook",
    "torch_scheduler": "torch_schedule",
    "untouched": "restore",
}
"""For training loops of one's own, which bring torch, and for notebooks; most commands do without both."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
