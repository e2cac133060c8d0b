"""The README is held true: its commands run, its example runs, its tables are those of the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lrsearch.cli import EXIT_CODES
from lrsearch.config import load_study
from lrsearch.executors import EXECUTORS
from lrsearch.optimizers import OPTIMIZERS
from lrsearch.schedules import SCHEDULES
from lrsearch.strategies import STRATEGIES
from lrsearch.workloads import WORKLOADS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [
    "\n".join(line[4:] for line in block.strip("\n").splitlines())
    for block in re.findall(r"(?:^(?:    .*)?\n)+", README, re.MULTILINE)
    if block.strip()
]


def block_with(text: str) -> str:
    [found] = [block for block in BLOCKS if text in block]
    return found


def lrsearch(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lrsearch", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)


def names_in_row(first_cell: str) -> set[str]:
    [row] = re.findall(rf"^\| {first_cell} \| (.*) \|$", README, re.MULTILINE)
    return set(re.findall(r"`([^`]+)`", row))


def test_the_tables_of_names_are_those_of_the_registries() -> None:
    assert names_in_row("workloads") == set(WORKLOADS)
    assert names_in_row("strategies") == set(STRATEGIES)
    assert names_in_row("executors") == set(EXECUTORS)
    assert names_in_row("optimizers") == set(OPTIMIZERS)
    assert names_in_row("schedules") == set(SCHEDULES)


def test_the_table_of_exit_codes_is_that_of_the_program() -> None:
    section = README.split("## Exit codes")[1]
    codes = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE) for code in cell.split(",")}
    assert codes == set(EXIT_CODES)
    for code, meaning in EXIT_CODES.items():
        if code < 100:
            assert f"| {code} | {meaning} |" in section


def test_the_study_file_shown_is_a_valid_one(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(block_with("name: digits\n"))
    shown, shipped = load_study(tmp_path / "study.yaml"), load_study(ROOT / "studies/digits.yaml")
    assert shown.resolved() == shipped.resolved(), "the README shows the default study"


def test_make_study_and_make_test_are_targets() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^make ([a-z-]+)", block_with("make study"), re.MULTILINE)) <= set(targets)


def test_every_file_that_is_named_is_there() -> None:
    for path in re.findall(r"(?:studies|docs|lrsearch)/[\w/]+\.(?:yaml|md|png|py)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_tour_runs_line_by_line(tmp_path: Path) -> None:
    """On the short study under the default's name: the commands are the README's own."""
    (tmp_path / "studies").mkdir()
    short = (ROOT / "studies/digits_short.yaml").read_text().replace("name: digits_short", "name: digits")
    (tmp_path / "studies/digits.yaml").write_text(short)
    for line in block_with("lrsearch validate").splitlines():
        arguments = line.split("#")[0].split()[1:]
        if arguments == ["dashboard"]:
            continue  # serves until it is stopped; tests/test_cli.py starts one
        done = lrsearch(arguments, tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "reports/digits.html").stat().st_size > 100_000
    assert (tmp_path / "lrsearch.db").exists()


@pytest.mark.slow
def test_a_model_and_data_of_ones_own_run_as_shown(tmp_path: Path) -> None:
    (tmp_path / "mytask.py").write_text(block_with("# mytask.py"))
    (tmp_path / "mytask.yaml").write_text(block_with("name: mytask\n"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = lrsearch(["run-study", str(tmp_path / "mytask.yaml")], elsewhere)
    assert done.returncode == 0, done.stderr
    assert "3/3" in done.stdout
    shutil.rmtree(elsewhere)
