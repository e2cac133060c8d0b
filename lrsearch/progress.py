"""What a study tells while it runs: a live table on a terminal, plain lines elsewhere. Both write to stderr.

Nothing here runs in a thread or on a timer: the display shares the training process, so it is redrawn only when there
is news, and at most twice a second.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lrsearch.interfaces import Observer
from lrsearch.schedules import schedule_settings
from lrsearch.trial import FINISHED_STATUSES, CurvePoint, StudyRecord, TrialRecord, WorkloadFacts

NOTEBOOK_KERNEL = "JPY_PARENT_PID"
"""What jupyter_client sets for a kernel, and with it for what a cell starts."""
REDRAW_SECONDS = 0.5
PLAIN_LINE_SECONDS = 1.0
BIG_STUDY_TRIALS = 200
"""From so many trials on, plain output keeps to one line a second."""
NARROW_COLUMNS = 72


def duration(seconds: float | None) -> str:
    """Return seconds as people read them.

    >>> duration(0.25), duration(75), duration(7500), duration(None)
    ('0.25 s', '1 min 15 s', '2 h 05 min', '-')
    """
    if seconds is None:
        return "-"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


@dataclass
class Tally:
    """What one way has done so far, over all seeds."""

    planned: int
    done: int = 0
    failed: int = 0
    diverged: int = 0
    charged_seconds: float = 0.0
    best: float | None = None
    """Best validation value at the end of a training run."""

    @property
    def left(self) -> int:
        return max(0, self.planned - self.done)

    def add(self, trial: TrialRecord, higher_is_better: bool) -> None:
        """Count a trial that has ended; one that was cut short counts, lost seconds and all, once it has run again."""
        if trial.status not in FINISHED_STATUSES:
            return
        self.charged_seconds += trial.charged_device_seconds
        self.done += 1
        self.failed += trial.status == "failed"
        self.diverged += trial.status == "diverged"
        value = trial.result.validation_metric if trial.result else None
        if trial.stage == "train" and value is not None:
            better = max if higher_is_better else min
            self.best = value if self.best is None else better(self.best, value)


@dataclass
class Board:
    """The tallies of a study."""

    ways: dict[str, Tally] = field(default_factory=dict)
    facts: WorkloadFacts | None = None

    @classmethod
    def of(cls, record: StudyRecord, planned_trials: dict[str, int]) -> Self:
        """Return the board of a study that starts or continues."""
        board = cls({way: Tally(planned) for way, planned in planned_trials.items()}, record.facts)
        for trial in record.trials:
            board.add(trial)
        return board

    def add(self, trial: TrialRecord) -> None:
        if trial.result is not None and trial.result.facts is not None:
            self.facts = trial.result.facts
        if not trial.is_confirmation:  # on no way's bill
            self.ways[trial.strategy].add(trial, self.facts is None or self.facts.higher_is_better)

    @property
    def metric(self) -> str:
        return self.facts.metric if self.facts else "value"

    @property
    def total(self) -> Tally:
        """All ways together; values of different ways have no common best."""
        ways = self.ways.values()
        return Tally(
            planned=sum(tally.planned for tally in ways),
            done=sum(tally.done for tally in ways),
            failed=sum(tally.failed for tally in ways),
            diverged=sum(tally.diverged for tally in ways),
            charged_seconds=sum(tally.charged_seconds for tally in ways),
        )

    def seconds_left(self, way: str) -> float | None:
        """Return the trials left times the way's mean cost of a trial, or that of all ways; None before the first."""
        left, known = self.ways[way].left, self.ways[way] if self.ways[way].done else self.total
        if left == 0:
            return 0.0
        return left * known.charged_seconds / known.done if known.done else None

    @property
    def total_seconds_left(self) -> float | None:
        left = [self.seconds_left(way) for way in self.ways]
        return None if None in left else sum(seconds for seconds in left if seconds is not None)


class Progress(Observer, Protocol):
    """An observer that holds the terminal for the length of a `with` block."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def progress_for(stream: TextIO) -> Progress:
    """Return the live table when `stream` is a terminal that can redraw, else plain lines.

    A notebook's cell with `!lrsearch ...` is a terminal that cannot: it would show each table below the one before.
    """
    heard = cast(TextIO, _WhetherOrNotHeard(stream))
    console = Console(file=heard, highlight=False)
    can_redraw = console.is_terminal and not console.is_dumb_terminal and NOTEBOOK_KERNEL not in os.environ
    return RichProgress(console) if can_redraw else PlainProgress(heard)


class _WhetherOrNotHeard:
    """A stream on which a study goes on to speak when its terminal is closed, its reader dead or its disk full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class RichProgress:
    """A live table, one row a way; messages scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._board = Board()
        self._now = ""
        """The trial that is running, as one line."""
        self._redrawn_at = 0.0
        self._live = Live(console=console, auto_refresh=False, get_renderable=self._draw)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._now = ""
        self._live.transient = kind is None  # the result table takes its place; after an interruption it stays
        self._live.stop()

    def study_started(self, record: StudyRecord, planned_trials: dict[str, int]) -> None:
        self._board = Board.of(record, planned_trials)
        self._redraw(always=True)

    def trial_started(self, trial: TrialRecord) -> None:
        self._now = _title(trial)
        self._redraw()

    def curve_point(self, trial: TrialRecord, point: CurvePoint) -> None:
        value = "" if point.validation_metric is None else f", {self._board.metric} {number(point.validation_metric)}"
        self._now = f"{_title(trial)}: epoch {point.epoch:.3g}, loss {number(point.train_loss)}{value}"
        self._redraw()

    def trial_finished(self, trial: TrialRecord) -> None:
        self._board.add(trial)
        self._redraw()

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def study_finished(self, record: StudyRecord) -> None:
        self._redraw(always=True)

    def _redraw(self, *, always: bool = False) -> None:
        now = time.monotonic()
        if always or now - self._redrawn_at >= REDRAW_SECONDS:
            self._redrawn_at = now
            self._live.refresh()

    def _draw(self) -> RenderableType:
        if not self._board.ways:
            return ""
        now = Text(self._now)
        now.truncate(self._console.width - 3, overflow="ellipsis")  # the terminal's own "^C" must not break the line
        return Group(self._table(), now)

    def _table(self) -> Table:
        narrow = self._console.width < NARROW_COLUMNS
        table = Table(box=None, pad_edge=False)
        table.add_column("way", no_wrap=True, overflow="ellipsis")
        for name in _NARROW if narrow else _WIDE:
            table.add_column(self._board.metric if name == "best" else name, justify="right", no_wrap=True)
        for way, tally in self._board.ways.items():
            table.add_row(way, *_cells(tally, self._board.seconds_left(way), narrow))
        table.add_row("all", *_cells(self._board.total, self._board.total_seconds_left, narrow), style="bold")
        return table


def _cells(tally: Tally, seconds_left: float | None, narrow: bool) -> list[str]:
    done, best, left = f"{tally.done}/{tally.planned}", number(tally.best), duration(seconds_left)
    if narrow:
        return [done, best, left]
    expected = None if seconds_left is None else tally.charged_seconds + seconds_left
    bad = [str(tally.failed or "-"), str(tally.diverged or "-")]
    return [done, *bad, duration(tally.charged_seconds), duration(expected), best, left]


_NARROW = ("done", "best", "left")
_WIDE = ("done", "failed", "diverged", "device time", "expected", "best", "left")


class PlainProgress:
    """One line for each finished trial, or one a second when the study is big; failures and messages always."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._board = Board()
        self._written_at = -PLAIN_LINE_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.flush()

    def study_started(self, record: StudyRecord, planned_trials: dict[str, int]) -> None:
        self._board = Board.of(record, planned_trials)
        total = self._board.total
        before = f", {total.done} of them done before" if total.done else ""
        self._write(f"Study {record.name} version {record.version}: {total.planned} trials{before}.")

    def trial_started(self, trial: TrialRecord) -> None:
        pass

    def curve_point(self, trial: TrialRecord, point: CurvePoint) -> None:
        pass

    def trial_finished(self, trial: TrialRecord) -> None:
        self._board.add(trial)
        total = self._board.total
        quiet = total.planned >= BIG_STUDY_TRIALS and trial.status != "failed"
        if quiet and time.monotonic() - self._written_at < PLAIN_LINE_SECONDS:
            return
        left = self._board.total_seconds_left
        eta = "" if left is None or trial.is_confirmation else f"; {duration(left)} left"
        self._write(f"[{total.done}/{total.planned}] {_title(trial)}: {self._outcome(trial)}{eta}")

    def message(self, text: str) -> None:
        self._write(text)

    def study_finished(self, record: StudyRecord) -> None:
        charged = sum(trial.charged_device_seconds for trial in record.trials)
        self._write(
            f"Study {record.name} version {record.version} is done; its trials' bills come to {duration(charged)}."
        )

    def _outcome(self, trial: TrialRecord) -> str:
        parts = [trial.status, duration(trial.charged_device_seconds)]
        result = trial.result
        if result is not None and trial.stage == "train" and result.validation_metric is not None:
            parts.insert(1, f"{self._board.metric} {number(result.validation_metric)}")
        if result is not None and result.error is not None:
            parts.append(result.error)
        return ", ".join(parts)

    def _write(self, line: str) -> None:
        self._written_at = time.monotonic()
        print(line, file=self._stream, flush=True)


def _title(trial: TrialRecord) -> str:
    """Return "grid, seed 0, trial 3, rate 0.01"."""
    proposal = trial.proposal
    what = f"rate {number(proposal.learning_rate)}"
    if proposal.schedule is not None and proposal.max_lr is not None and _has_bounds(proposal.schedule.name):
        low = "up" if proposal.base_lr is None else number(proposal.base_lr)
        what = f"rates {low} to {number(proposal.max_lr)}"
    if trial.stage == "range_test":
        what = "range test"
    if trial.is_confirmation:
        what = f"confirmation with seed {trial.proposal.confirmation_seed}, {what}"
    return f"{trial.strategy}, seed {trial.seed}, trial {trial.number}, {what}"


def _has_bounds(schedule: str) -> bool:
    """Return whether the schedule runs between two rates rather than from one."""
    return "base_fraction" in schedule_settings(schedule).model_fields
