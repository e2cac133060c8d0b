"""Figures as files, drawn by a real browser."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from lrsearch.errors import MissingExtraError, StorageError, UsageError
from lrsearch.images import WIDTH, check_images, study_figures, write_images
from tests.records import make_record

BROWSERS = [path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).exists()]
can_draw = pytest.mark.skipif(
    not BROWSERS or importlib.util.find_spec("kaleido") is None, reason="needs the system's chromium and kaleido"
)


def test_without_kaleido_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lrsearch\[images\]'"):
        check_images(tmp_path / "a.png", "png")


@can_draw
def test_what_cannot_be_drawn_is_refused_before_a_browser_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a file that ends in \.png or a folder, got .*a\.jpg"):
        check_images(tmp_path / "a.jpg", "png")
    with pytest.raises(UsageError, match="nothing to draw"):
        write_images({}, tmp_path, "svg")


@can_draw
@pytest.mark.slow
def test_a_file_takes_the_first_figure_and_a_folder_all_of_them(tmp_path: Path) -> None:
    figures = dict(list(study_figures(make_record(seeds=[0, 1])).items())[:2])
    assert write_images(figures, tmp_path / "new" / "one.png", "png") == [tmp_path / "new" / "one.png"]
    with Image.open(tmp_path / "new" / "one.png") as picture:
        assert picture.size[0] == 2 * WIDTH
        assert picture.convert("RGB").getpixel((5, 5)) == (255, 255, 255)
    written = write_images(figures, tmp_path / "all", "svg")
    assert [path.name for path in written] == [f"{key}.svg" for key in figures]
    assert all(path.read_text().startswith("<svg") for path in written)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_images(figures, tmp_path / "file" / "one.svg", "svg")
