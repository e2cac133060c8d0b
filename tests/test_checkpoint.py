"""Files of checkpoints: whole or not there, checked before they are believed."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrsearch.checkpoint import Header, Incoming, newest, remove, write
from lrsearch.errors import StorageError
from tests.resuming import UUID


def keep(folder: Path, step: int, content: bytes = b"state") -> Path:
    return write(folder, Header(UUID, 1, step, {"train": step / 7}), lambda file: file.write(content))


def test_what_was_written_is_read_and_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        keep(tmp_path, step, b"%d" % step)
    found = newest(tmp_path, UUID)
    assert found is not None
    assert (found[0], bytes(found[1])) == (Header(UUID, 1, 20, {"train": 20 / 7}), b"20")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{UUID}.{step:012d}.ckpt" for step in (15, 20)]


def test_a_flipped_byte_anywhere_is_told_and_the_one_before_is_taken(tmp_path: Path) -> None:
    keep(tmp_path, 1, b"old")
    intact = keep(tmp_path, 2, b"new").read_bytes()
    for position in range(0, len(intact), 7):
        damaged = keep(tmp_path, 2)
        damaged.write_bytes(intact[:position] + bytes([intact[position] ^ 64]) + intact[position + 1 :])
        told: list[str] = []
        found = newest(tmp_path, UUID, told.append)
        assert found is not None
        assert bytes(found[1]) == b"old", position
        assert len(told) == 1
        assert str(damaged) in told[0]
        assert not damaged.exists(), "it must not hide the next one"


@pytest.mark.parametrize("length", [0, 1, 30, 200])
def test_a_truncated_one_is_not_believed(tmp_path: Path, length: int) -> None:
    keep(tmp_path, 1)
    damaged = keep(tmp_path, 2, b"x" * 1000)
    damaged.write_bytes(damaged.read_bytes()[:length])
    found = newest(tmp_path, UUID)
    assert found is not None
    assert found[0].step == 1


def test_one_of_another_trial_is_not_believed(tmp_path: Path) -> None:
    path = keep(tmp_path, 3)
    path.rename(tmp_path / path.name.replace("6f1c8a52", "00000000"))
    assert newest(tmp_path, UUID.replace("6f1c8a52", "00000000")) is None


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere", UUID) is None
    remove(tmp_path / "nowhere", UUID)


def test_a_trials_files_are_removed_and_others_stay(tmp_path: Path) -> None:
    keep(tmp_path, 1)
    (tmp_path / f"{UUID}.000000000002.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    remove(tmp_path, UUID)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_name_that_is_no_uuid_is_never_part_of_a_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="badly formed"):
        write(tmp_path, Header("../../etc/passwd", 1, 1, {}), lambda file: file.write(b""))


def test_file_and_folder_reach_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    original = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        original(descriptor)

    monkeypatch.setattr("lrsearch.checkpoint.os.fsync", note)
    path = keep(tmp_path, 1)
    assert synced == [path.with_suffix(".tmp").name, tmp_path.name]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 256 kB; skipped where none can be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("mounting a small file system needs root")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_in_one_line_and_what_was_kept_stays(small_disk: Path) -> None:
    keep(small_disk, 1, b"x" * 100_000)
    with pytest.raises(StorageError, match=rf"{small_disk}.*No space left on device \([\d.]+ MB free\).*same command"):
        keep(small_disk, 2, b"x" * 200_000)
    found = newest(small_disk, UUID)
    assert found is not None
    assert found[0].step == 1
    assert len(list(small_disk.iterdir())) == 1


def test_a_disk_that_turns_read_only_is_told_too_and_what_cannot_be_removed_stays(small_disk: Path) -> None:
    """Else the trial would have failed with an error of the file system's, and count as tried."""
    path = keep(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match=rf"{small_disk}.*cannot be written: Read-only file system"):
        keep(small_disk, 2)
    remove(small_disk, UUID)
    assert list(small_disk.iterdir()) == [path]


def test_torch_says_nothing_of_positions_when_the_disk_is_full(small_disk: Path) -> None:
    import torch

    state = {"weights": torch.zeros(100_000)}
    with pytest.raises(StorageError, match=r"No space left on device") as error:
        write(small_disk, Header(UUID, 1, 1, {}), lambda file: torch.save(state, file))  # type: ignore[arg-type]  # torch asks for more than `write`
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_comes_in_pieces_counts_when_it_is_whole(tmp_path: Path) -> None:
    there = write(tmp_path / "there", Header(UUID, 1, 7, {"train": 1.5}), lambda file: file.write(b"x" * 1000))
    content, here = there.read_bytes(), tmp_path / "here"
    incoming = Incoming(here, there.name)
    incoming.append(content[:600])
    assert newest(here, UUID) is None
    incoming.append(content[600:])
    incoming.finish()
    found = newest(here, UUID)
    assert found is not None
    assert (found[0].step, bytes(found[1])) == (7, b"x" * 1000)
    assert [path.name for path in here.iterdir()] == [there.name]


@pytest.mark.parametrize("name", ["../evil.000000000007.ckpt", "x.7.ckpt", f"{UUID}.seven.ckpt", "/etc/passwd"])
def test_no_other_name_than_a_checkpoints_is_taken_from_another_machine(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  whatever it says: it is no user's mistake
        Incoming(tmp_path / "here", name)
    assert not (tmp_path / "here").exists()
