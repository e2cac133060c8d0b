from __future__ import annotations

import io
import sys

import pytest

from lrsearch.workloads import _progress
from lrsearch.workloads._progress import with_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "patience", "shown"), [(Terminal, 0, True), (Terminal, 60, False), (io.StringIO, 0, False)]
)
def test_a_bar_is_shown_on_a_terminal_once_patience_ends(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], patience: float, shown: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(_progress, "PATIENCE_SECONDS", patience)
    monkeypatch.setattr(sys, "stderr", screen := stream())
    assert list(with_progress(range(5), 5, "Decoding images")) == [0, 1, 2, 3, 4]
    assert ("Decoding images" in screen.getvalue()) is shown
