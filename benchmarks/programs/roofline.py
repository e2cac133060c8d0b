"""What the machine can do: floating-point operations per second of a large matrix product, the best of some."""

from __future__ import annotations

import time

import torch

from benchmarks.tasks import tell

SIZE = 2048
SECONDS = 1.5


def gigaflops(kind: torch.dtype) -> float:
    """Return the highest rate over repetitions, in 10^9 operations (a multiplication and an addition are two)."""
    left, right = torch.randn(SIZE, SIZE).to(kind), torch.randn(SIZE, SIZE).to(kind)
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)
    return 2 * SIZE**3 / best / 1e9


if __name__ == "__main__":
    tell(float32=gigaflops(torch.float32), bfloat16=gigaflops(torch.bfloat16))
