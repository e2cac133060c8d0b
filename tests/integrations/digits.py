"""scikit-learn's digits, split once, for all libraries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

TRAIN_COUNT = 1408  # 44 batches of 32


def arrays() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    digits = load_digits()
    return (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
