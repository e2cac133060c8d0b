"""The idx files of MNIST and its kin, plain or gzipped (yann.lecun.com/exdb/mnist describes the format)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrsearch.errors import DataError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of bytes in `path`. Raises DataError when the file is damaged or holds something else."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch the file again.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise DataError(
            f"{path} must be an idx file of unsigned bytes, but starts with {content[:4].hex()!r}: replace it."
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} ends inside its header: fetch the file again.")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(f"{path} must hold {math.prod(shape)} bytes, but holds {len(content) - start}: fetch it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
