from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integrations

DOCUMENT = Path(__file__).parents[2] / "docs" / "integrations.md"
EXAMPLES = re.findall(r"^## (\w+).*?```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("library", "code"), EXAMPLES, ids=[library for library, _ in EXAMPLES])
def test_the_documented_example_finds_bounds_and_trains(
    library: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "example"})  # noqa: S102  # the example of our own documentation
    printed = capsys.readouterr().out
    assert "max_lr" in printed
    accuracy = float(re.findall(r"0\.\d+", printed)[-1])
    assert accuracy > 0.9
