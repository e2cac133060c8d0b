from __future__ import annotations

import os
from pathlib import Path

import pytest

from lrsearch import cache
from lrsearch.cache import KEPT_SECONDS, KEPT_SECONDS_BESIDE_OTHERS, cache_folder, recall, remember
from tests.clock import Clock


def test_the_folder_is_the_users_cache_unless_the_environment_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LRSEARCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "lrsearch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lrsearch"
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_a_choice_holds_for_its_circumstances_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path))
    remember("sizes", ["a model", 2], 8)
    assert recall("sizes", ["a model", 2]) == 8
    assert recall("sizes", ["a model", 4]) is None
    assert recall("layouts", ["a model", 2]) is None


def test_a_choice_is_made_again_after_a_week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path))
    remember("sizes", "a", 8)
    [file] = (tmp_path / "sizes").iterdir()
    now = file.stat().st_mtime
    os.utime(file, (now, now - KEPT_SECONDS + 60))
    assert recall("sizes", "a") == 8
    os.utime(file, (now, now - KEPT_SECONDS - 60))
    assert recall("sizes", "a") is None
    remember("sizes", "a", 4)
    assert recall("sizes", "a") == 4


def test_a_damaged_choice_is_none_and_one_that_cannot_be_kept_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path))
    remember("sizes", "a", 8)
    [file] = (tmp_path / "sizes").iterdir()
    file.write_text("{")
    assert recall("sizes", "a") is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "file"))
    remember("sizes", "a", 8)
    assert recall("sizes", "a") is None


@pytest.mark.parametrize(("waited", "kept"), [(0.04, 8), (0.06, None)])
def test_a_choice_that_was_timed_beside_other_programs_is_made_again_after_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: float, kept: int | None
) -> None:
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path))
    clock, others = Clock(monkeypatch, cache), 5.0
    monkeypatch.setattr(cache, "waited_seconds", lambda: others)
    assert recall("sizes", "a") is None
    clock.sleep(0.5)
    assert recall("sizes", "a") is None, "it is timed since it was looked for first"
    clock.sleep(0.5)
    others += waited
    remember("sizes", "a", 8)
    assert recall("sizes", "a") == 8
    [file] = (tmp_path / "sizes").iterdir()
    written = file.stat().st_mtime - KEPT_SECONDS_BESIDE_OTHERS - 60
    os.utime(file, (written, written))
    assert recall("sizes", "a") == kept
    clock.sleep(1.0)
    remember("sizes", "a", 4)
    assert recall("sizes", "a") == 4
