"""What the environment of our own processes says, and what can be known of the machine without importing torch."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Mapping
from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SECRETS = ("LRSEARCH_DATABASE", "LRSEARCH_DATABASE_PASSWORD_FILE", "PGPASSWORD", "PGPASSFILE")
"""What the study's own process may have in its environment, and the user's code has no business with."""
DECODERS_VARIABLE = "LRSEARCH_DECODERS"
"""How many processors may decode images for a worker: those of all slots of its machine, of which the others wait."""
DRIVER_FILES = ("/dev/nvidiactl", "/dev/nvhost-ctrl-gpu", "/dev/nvgpu", "/dev/dxg", "/dev/kfd")
"""Of which Linux has one when a GPU can be used: NVIDIA's, Jetson's, Windows's below WSL, AMD's."""


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def importing_alike(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with what lets another Python process import the modules that this one can."""
    return {**environment, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def of_slot(base: Mapping[str, str], slots: int, threads: int | None) -> dict[str, str]:
    """Return `base` for one of so many processes on the processor, of `threads` of torch or its share; no secrets."""
    threads = threads or max(1, processors() // slots)
    public = {name: value for name, value in base.items() if name not in SECRETS}
    decoders = str(min(slots * threads, processors()))
    return {**public, **dict.fromkeys(THREAD_VARIABLES, str(threads)), DECODERS_VARIABLE: decoders}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def devices_are_known(device: str) -> bool:
    """Whether torch need not be asked which devices there are."""
    return device in ("cpu", "mps") or has_no_driver()


def has_no_driver() -> bool:
    """Whether this machine can be seen to have no GPU that torch could use."""
    return sys.platform == "linux" and not any(Path(file).exists() for file in DRIVER_FILES)
