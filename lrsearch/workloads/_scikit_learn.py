"""Data that scikit-learn ships, read without importing it, which takes a second and a half."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def datasets_folder() -> Path:
    """Return the folder of the package `sklearn.datasets`."""
    package = find_spec("sklearn")
    assert package is not None, "scikit-learn is one of our requirements"
    assert package.origin is not None
    return Path(package.origin).parent / "datasets"
