"""Checkpoints of running trials as files: written whole or not at all, checked before they are believed, two kept.

A file is a line that names the format, a line of JSON (the header), the state, and the sha256 of all that. Its name
is made of the trial's UUID, which the ledger gave, and the step. Nothing here imports torch: what the state means is
training's business, and the header alone tells the ledger what the work up to here has cost.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO
from uuid import UUID

from lrsearch import faults
from lrsearch.errors import StorageError
from lrsearch.trial import Bills

FORMAT = b"lrsearch checkpoint 1\n"
KEPT = 2
"""So that a damaged one leaves the one before."""


@dataclass(frozen=True)
class Header:
    """Which work a checkpoint keeps, and what of the attempt that wrote it that work took."""

    uuid: str
    attempt: int
    step: int
    phase_seconds: Mapping[str, float]
    """Charged, of that attempt alone, by phase, up to the moment before writing."""
    billed_phase_seconds: Mapping[str, float] | None = None
    """See TrialResult."""


class _Hashed:
    """A file that is written from front to back, and the sha256 of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def write(folder: Path, header: Header, write_state: Callable[[_Hashed], object]) -> Path:
    """Store a checkpoint durably and remove all of the trial's but the newest two; return its path.

    Raises StorageError, with the space that is left, when the file system refuses.
    """
    target = path_of(folder, header)
    temporary = target.with_suffix(".tmp")
    with _translated(folder, temporary):
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            hashed = _Hashed(file)
            hashed.write(FORMAT)
            hashed.write(json.dumps(asdict(header)).encode() + b"\n")
            write_state(hashed)
            faults.point("checkpoint_temp")
            file.write(hashed.sha256.digest())
            file.flush()
            os.fsync(file.fileno())
        _put_in_place(temporary, target)
    return target


def path_of(folder: Path, header: Header) -> Path:
    """Return where the checkpoint lies."""
    return folder / f"{UUID(header.uuid)}.{header.step:012d}.ckpt"


class Incoming:
    """A checkpoint that comes from another machine piece by piece, each of them on disk before the next is asked for.

    All raise StorageError when the file system refuses.
    """

    def __init__(self, folder: Path, name: str) -> None:
        uuid, step, _ = name.split(".")
        self._target = path_of(folder, Header(uuid, 0, int(step), {}))
        self._temporary = self._target.with_suffix(".tmp")
        with _translated(folder, self._temporary):
            folder.mkdir(parents=True, exist_ok=True)
            self._temporary.write_bytes(b"")

    def append(self, piece: bytes) -> None:
        with _translated(self._target.parent, self._temporary), self._temporary.open("ab") as file:
            file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Let it count. Whoever reads it checks whether it is whole."""
        with _translated(self._target.parent, self._temporary):
            _put_in_place(self._temporary, self._target)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Give the written file its name and remove all of the trial's but the newest two."""
    faults.point("checkpoint_before_rename")
    temporary.replace(target)
    _sync_folder(target.parent)
    faults.point("checkpoint_after_rename")
    for old in _files(target.parent, target.name.partition(".")[0])[KEPT:]:
        old.unlink(missing_ok=True)


def newest(
    folder: Path, uuid: str, tell: Callable[[str], None] = lambda text: None
) -> tuple[Header, memoryview] | None:
    """Return header and state of the trial's newest checkpoint that is whole, or None.

    A damaged one is told in a line and removed, and the one before it is taken.
    """
    for path in _files(folder, uuid):
        try:
            return _read(path)
        except OSError as error:
            raise StorageError(
                f"The checkpoint {path} cannot be read: {error.strerror}. Mend that, or remove it: the trial then "
                "begins anew."
            ) from error
        except ValueError as error:
            tell(f"The checkpoint {path} is damaged ({error}); going on from the one before it, if there is one.")
            _unlink(path)
    return None


def kept(folder: Path, uuid: str, attempt: int, tell: Callable[[str], None] = lambda text: None) -> Bills | None:
    """Return what that attempt at the trial cost up to its newest checkpoint; None where it has none."""
    found = newest(folder, uuid, tell)
    if found is None or found[0].attempt != attempt:
        return None
    return Bills(found[0].phase_seconds, found[0].billed_phase_seconds)


def remove(folder: Path, uuid: str) -> None:
    """Remove all that the trial has left in the folder; what cannot be removed now goes when the study goes on."""
    for path in folder.glob(f"{UUID(uuid)}.*"):
        _unlink(path)


def _unlink(path: Path) -> None:
    with suppress(OSError):  # it is gone already, or the file system has turned read-only
        path.unlink()


def _files(folder: Path, uuid: str) -> list[Path]:
    """Return the trial's checkpoints, newest first."""
    return sorted(folder.glob(f"{UUID(uuid)}.*.ckpt"), reverse=True)


def _read(path: Path) -> tuple[Header, memoryview]:
    """Return what the file holds. Raises ValueError when it is not what was written."""
    content = memoryview(path.read_bytes())
    body, digest = content[:-32], content[-32:]
    if bytes(body[: len(FORMAT)]) != FORMAT:
        raise ValueError("it does not begin like one")
    if hashlib.sha256(body).digest() != bytes(digest):
        raise ValueError("its checksum differs")
    end = bytes(body[: len(FORMAT) + 10_000]).index(b"\n", len(FORMAT))
    header = Header(**json.loads(bytes(body[len(FORMAT) : end])))
    if header.uuid != path.name.partition(".")[0]:
        raise ValueError("it belongs to another trial")
    return header, body[end + 1 :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(folder: Path, temporary: Path) -> Iterator[None]:
    """Turn what the file system says, also through torch, into one line; leave no half file behind."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError about positions
        _unlink(temporary)
        reason = getattr(error, "strerror", None) or _root(error)
        free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
        raise StorageError(
            f"The checkpoint {temporary.with_suffix('.ckpt')} cannot be written: {reason} ({free / 1e6:.1f} MB free). "
            "Free some space, or give checkpoint.folder another place, and type the same command again; what was "
            "stored before is kept."
        ) from error


def _root(error: BaseException) -> str:
    """Return what the operating system said behind a foreign exception."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
