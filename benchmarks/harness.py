"""Programs in turn (A B A B ...), each a process of its own: what each took, what else ran meanwhile, and their ratios.

A program prints one JSON object as its last line. A run beside which other processes kept more than `OTHER_LOAD` cores
busy is marked: its seconds are not to be trusted. Results go to `benchmarks/results/` as a JSON file and a picture.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lrsearch.surroundings import busy_core_seconds, commit_of
from lrsearch.timing import core_seconds, processor_name

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
OTHER_LOAD = 0.25
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
PACKAGES = ("torch", "torchvision", "lightning", "fastai", "keras", "keras-tuner", "optuna", "ray", "numpy")
PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>
MOST_SHOWN = 16
"""Entries of a list in the line of a run; all are in the JSON."""


@dataclass(frozen=True)
class Side:
    """One of the programs that are compared."""

    name: str
    command: Sequence[str]
    needs: Sequence[str] = ()
    """Modules without which it is left out."""
    environment: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[str], dict[str, Any]] | None = None
    """From what it printed to its numbers; by default the last line is a JSON object."""

    @property
    def missing(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


@dataclass(frozen=True)
class Run:
    """One run of a program from exec to exit."""

    side: str
    round: int
    seconds: float
    other_cores: float | None
    """Cores that other processes of the machine kept busy meanwhile; None where that cannot be known."""
    began: float
    """Seconds since 1970 at exec."""
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def marked(self) -> bool:
        return self.other_cores is not None and self.other_cores > OTHER_LOAD


def program(module: str, *arguments: object) -> list[str]:
    """Return the command that runs `benchmarks.programs.<module>`."""
    return [sys.executable, "-m", f"benchmarks.programs.{module}", *map(str, arguments)]


def alternate(sides: Sequence[Side], rounds: int, threads: int) -> list[Run]:
    """Run each side once, in order, then all again, `rounds` times; print a line for each run."""
    _adopt_orphans()
    for side in sides:
        if side.missing:
            print(f"{side.name} is left out: {', '.join(side.missing)} is not installed", flush=True)
    runs = []
    for number in range(rounds):
        for side in sides:
            if side.missing:
                continue
            run = run_once(side, number, threads)
            runs.append(run)
            mark = " *" if run.marked else ""
            shown = run.error or ", ".join(f"{key} {_short(value)}" for key, value in run.values.items())
            print(f"{number + 1}/{rounds} {side.name}: {run.seconds:.1f} s{mark}; {shown}", flush=True)
    return runs


def run_once(side: Side, number: int, threads: int) -> Run:
    """Run it with `threads` threads for each operation, in an empty folder of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "RAY_USAGE_STATS_ENABLED": "0",  # it would wait for a server that may not be reachable
        "KERAS_BACKEND": "torch",
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        **side.environment,
    }
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, tempfile.TemporaryFile("w+") as errors:
        at, began, busy, own = time.time(), time.perf_counter(), busy_core_seconds(), core_seconds()
        done = subprocess.run(
            side.command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=folder
        )
        seconds, busy_after = time.perf_counter() - began, busy_core_seconds()
        _wait_for_orphans()
        other = None
        if busy is not None and busy_after is not None:
            other = max(0.0, busy_after - busy - (core_seconds() - own)) / seconds
        values: dict[str, Any] = {}
        error = None
        if done.returncode:
            errors.seek(0)
            error = f"exit code {done.returncode}: {errors.read()[-2000:]}"
        else:
            values = (side.read or _last_line)(done.stdout)
    return Run(side.name, number, seconds, other, at, values, error)


def _last_line(printed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return found


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > MOST_SHOWN:
        return f"({len(value)} of them)"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _adopt_orphans() -> None:
    """Become the parent of what our programs leave behind, so that its processor time is known as ours."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _wait_for_orphans(patience_seconds: float = 10.0) -> None:
    until = time.monotonic() + patience_seconds
    with suppress(ChildProcessError):
        while time.monotonic() < until:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.05)


@dataclass(frozen=True)
class Spread:
    """The median of some values, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


def spreads(runs: Iterable[Run], value: Callable[[Run], float]) -> dict[str, Spread]:
    """Return each side's `value` over its runs, in the order of their first run; failed ones are left out."""
    return {side: Spread.of([value(run) for run in own.values()]) for side, own in _by_side(runs).items()}


def ratios(runs: Iterable[Run], value: Callable[[Run], float], base: str) -> dict[str, Spread]:
    """Return the spread of each side's `value` over that of `base` in the same round.

    >>> runs = [Run("a", 0, 2.0, None, 0.0), Run("b", 0, 4.0, None, 0.0), Run("a", 1, 3.0, None, 0.0)]
    >>> str(ratios(runs, lambda run: run.seconds, "a")["b"])
    '2 (2 to 2)'
    """
    sides = _by_side(runs)
    bases = {number: value(run) for number, run in sides.get(base, {}).items()}
    paired = {
        side: [value(run) / bases[number] for number, run in own.items() if number in bases]
        for side, own in sides.items()
        if side != base
    }
    return {side: Spread.of(found) for side, found in paired.items() if found}


def _by_side(runs: Iterable[Run]) -> dict[str, dict[int, Run]]:
    sides: dict[str, dict[int, Run]] = {}
    for run in runs:
        if run.error is None:
            sides.setdefault(run.side, {})[run.round] = run
    return sides


@dataclass
class Report:
    """What one benchmark found; printed, and written when it is `finished`."""

    name: str
    title: str
    settings: Mapping[str, Any]
    runs: Sequence[Run]
    lines: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def add(self, label: str, spread: Spread | float, unit: str = "") -> None:
        """Note and later print one figure."""
        shown = spread if isinstance(spread, Spread) else f"{spread:.4g}"
        self.lines.append(f"{label}: {shown}{' ' if unit else ''}{unit}")
        self.numbers[label] = asdict(spread) if isinstance(spread, Spread) else spread

    def add_ratios(self, seconds: Callable[[Run], float], of: str, against: Sequence[str], label: str) -> None:
        """Note how many times as fast as each of `against` the side `of` is."""
        found = ratios(self.runs, seconds, of)
        for side in against:
            if side in found:
                self.add(f"{of} against {side}, {label}", found[side], "times as fast")

    def finish(self, bars: Mapping[str, Spread], axis: str, folder: Path = RESULTS) -> int:
        """Print everything, write JSON and picture into `folder`, and return 1 if a program failed, else 0."""
        facts = machine()
        print(f"\n{self.title}\n{_described(facts)}", flush=True)
        print("\n".join(self.lines))
        marked = [run for run in self.runs if run.marked]
        loads = [run.other_cores for run in self.runs if run.other_cores is not None]
        if loads:
            print(f"other load: {Spread.of(loads)} cores; {len(marked)} of {len(self.runs)} runs above {OTHER_LOAD}")
        folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        path = folder / f"{self.name}-{now:%Y%m%d-%H%M%S}.json"
        content = {
            "benchmark": self.name,
            "title": self.title,
            "at": now.isoformat(timespec="seconds"),
            "settings": dict(self.settings),
            "machine": facts,
            "numbers": self.numbers,
            "marked_runs": len(marked),
            "runs": [asdict(run) for run in self.runs],
        }
        path.write_text(json.dumps(content, indent=1, default=str) + "\n")
        print(f"written: {path}, {_draw(self.title, bars, axis, path)}", flush=True)
        failed = [run for run in self.runs if run.error]
        for run in failed:
            print(f"FAILED: {run.side}: {run.error}", file=sys.stderr)
        return 1 if failed else 0


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, versions, commit."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit_of(ROOT),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def _described(facts: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        f"{facts['processor']}, {facts['cores']} cores; Python {facts['python']}, {versions}; commit {facts['commit']}"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _draw(title: str, bars: Mapping[str, Spread], axis: str, path: Path) -> Path:
    """Draw a bar for each median, whiskers from the lowest to the highest; HTML where no image can be made."""
    import plotly.graph_objects as go

    from lrsearch.errors import LrsearchError
    from lrsearch.images import pictures

    figure = go.Figure(
        go.Bar(
            x=[bar.median for bar in bars.values()],
            y=list(bars),
            orientation="h",
            text=[f"{bar.median:.3g}" for bar in bars.values()],
            textposition="inside",
            error_x={
                "array": [bar.high - bar.median for bar in bars.values()],
                "arrayminus": [bar.median - bar.low for bar in bars.values()],
            },
        ),
        {
            "title": title,
            "xaxis": {"title": axis, "rangemode": "tozero"},
            "yaxis": {"autorange": "reversed", "automargin": True},
            "height": 180 + 40 * len(bars),
        },
    )
    try:
        drawing = path.with_suffix(".png")
        drawing.write_bytes(*pictures([figure], "png"))
    except LrsearchError:
        drawing = path.with_suffix(".html")
        figure.write_html(drawing, include_plotlyjs=True)
    return drawing


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks may be told."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=3, help="runs of each side; they take turns")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of each side")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file and the picture")
    return made


def counted(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"


def rates(low: float, high: float, count: int) -> list[float]:
    """Return `count` rates from `low` to `high`, even in the logarithm, with four significant digits.

    >>> rates(0.001, 1.0, 4)
    [0.001, 0.01, 0.1, 1.0]
    """
    step = math.log(high / low) / (count - 1)
    return [float(f"{low * math.exp(step * index):.4g}") for index in range(count)]
