import errno
import io
import os
import pty
import time
from dataclasses import replace
from statistics import fmean

import pytest
from rich.console import Console

from lrsearch.progress import (
    NARROW_COLUMNS,
    REDRAW_SECONDS,
    Board,
    PlainProgress,
    RichProgress,
    Tally,
    duration,
    progress_for,
)
from lrsearch.trial import StudyRecord, TrialRecord
from tests.records import FACTS, make_record, unfinished

RECORD = make_record()
PLANNED = {"grid": 40, "random": 40, "tpe": 80, "clr": 10, "clr_linear": 10, "grid_linear": 40, "default": 5}


def begun(record: StudyRecord) -> StudyRecord:
    """Return the record of a study that has not run anything yet."""
    return replace(record, facts=None, trials=(), finished=False)


def of_way(record: StudyRecord, way: str) -> list[TrialRecord]:
    return [trial for trial in record.trials if trial.strategy == way]


def test_the_board_counts_what_the_record_holds() -> None:
    board = Board.of(RECORD, PLANNED)
    for way, planned in PLANNED.items():
        trials, tally = of_way(RECORD, way), board.ways[way]
        assert (tally.planned, tally.done, tally.left) == (planned, len(trials), planned - len(trials))
        assert tally.failed == [trial.status for trial in trials].count("failed")
        assert tally.diverged == [trial.status for trial in trials].count("diverged")
        assert tally.charged_seconds == pytest.approx(sum(trial.charged_device_seconds for trial in trials))
        values = [trial.result.validation_metric for trial in trials if trial.result and trial.stage == "train"]
        assert tally.best == max(value for value in values if value is not None)
    assert board.total.done == len(RECORD.trials)
    assert board.total_seconds_left == 0


def test_the_best_value_is_the_lowest_where_lower_is_better() -> None:
    facts = replace(FACTS, metric="error", higher_is_better=False)
    trials = [
        replace(trial, result=replace(trial.result, facts=facts)) for trial in of_way(RECORD, "random") if trial.result
    ]
    board = Board({"random": Tally(40)})
    for trial in trials:
        board.add(trial)
    values = [trial.result.validation_metric for trial in trials if trial.result]
    assert board.ways["random"].best == min(value for value in values if value is not None)


def test_the_time_left_is_the_trials_left_at_the_mean_cost_of_their_way_or_of_all_ways() -> None:
    record = unfinished(RECORD, 20)  # grid and random of the first seed, and the first trials of tpe
    board = Board.of(record, PLANNED)
    done = record.trials[:20]
    costs = {way: [trial.charged_device_seconds for trial in done if trial.strategy == way] for way in PLANNED}
    assert costs["grid"]
    assert not costs["clr"]
    assert board.seconds_left("grid") == pytest.approx((40 - len(costs["grid"])) * fmean(costs["grid"]))
    assert board.seconds_left("clr") == pytest.approx(10 * fmean(trial.charged_device_seconds for trial in done))
    assert board.total_seconds_left == pytest.approx(sum(board.seconds_left(way) or 0.0 for way in PLANNED))


def test_a_trial_that_was_killed_is_counted_once_when_it_has_run_again() -> None:
    again = next(trial for trial in RECORD.trials if len(trial.attempts) == 2)
    killed = replace(again, status="planned", attempts=again.attempts[:1], result=None)
    assert killed.charged_device_seconds > 0
    board = Board.of(replace(begun(RECORD), trials=(killed,)), PLANNED)
    board.add(again)
    tally = board.ways[again.strategy]
    assert tally.done == 1
    assert tally.charged_seconds == pytest.approx(again.charged_device_seconds)


def test_before_the_first_trial_nothing_is_known_of_the_time_left() -> None:
    board = Board.of(begun(RECORD), PLANNED)
    assert board.seconds_left("grid") is None
    assert board.total_seconds_left is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.0, "0.00 s"), (9.994, "9.99 s"), (9.999, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s")),
        *((3599.4, "59 min 59 s"), (3599.6, "1 h 00 min"), (7384, "2 h 03 min"), (90_000, "25 h 00 min"), (None, "-")),
    ],
)
def test_durations_read_like_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


class Closed(io.StringIO):
    """A terminal that was closed."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, RichProgress), (False, PlainProgress)])
def test_a_study_that_nobody_hears_goes_on(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, kind: type) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with progress_for(Closed(is_terminal=is_terminal)) as progress:
        assert isinstance(progress, kind)
        progress.study_started(begun(RECORD), PLANNED)
        progress.message("hello")
        progress.trial_started(RECORD.trials[0])
        progress.trial_finished(RECORD.trials[0])
        progress.study_finished(RECORD)


def run_plainly(record: StudyRecord, planned: dict[str, int]) -> list[str]:
    stream = io.StringIO()
    with progress_for(stream) as progress:
        assert isinstance(progress, PlainProgress)
        progress.study_started(begun(record), planned)
        for trial in record.trials:
            progress.trial_started(trial)
            for point in trial.result.curve if trial.result else ():
                progress.curve_point(trial, point)
            progress.trial_finished(trial)
        progress.message("A message.")
        progress.study_finished(record)
    return stream.getvalue().splitlines()


def test_a_notebook_gets_lines_though_its_shell_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-color")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    with open(theirs, "w") as stream:
        assert isinstance(progress_for(stream), RichProgress)
        monkeypatch.setenv("JPY_PARENT_PID", "123")
        assert isinstance(progress_for(stream), PlainProgress)
    os.close(ours)


def test_without_a_terminal_every_trial_is_one_line() -> None:
    record = make_record(seeds=(0,))
    planned = {way: len(of_way(record, way)) for way in PLANNED}
    lines = run_plainly(record, planned)
    total = len(record.trials)
    assert lines[0] == f"Study digits version 1: {total} trials."
    assert [line.split()[0] for line in lines[1:-2]] == [f"[{n}/{total}]" for n in range(1, total + 1)]
    charged = sum(trial.charged_device_seconds for trial in record.trials)
    assert lines[-2:] == [
        "A message.",
        f"Study digits version 1 is done; its trials' bills come to {duration(charged)}.",
    ]
    assert all(";" in line and line.endswith(" left") for line in lines[1:-2])
    [failed] = [line for line in lines if "failed" in line]
    assert "mat1 and mat2 shapes cannot be multiplied" in failed
    [range_test, run] = [line for line in lines if "clr, seed 0" in line]
    assert "trial 0, range test: completed, " in range_test
    proposal = of_way(record, "clr")[1].proposal
    assert f"trial 1, rates {proposal.base_lr:.4g} to {proposal.max_lr:.4g}: completed, accuracy 0." in run
    assert any("clr_linear, seed 0, trial 1, rate 0." in line for line in lines)


def test_a_big_study_keeps_to_a_line_a_second_but_tells_every_failure() -> None:
    began = time.monotonic()
    lines = run_plainly(RECORD, PLANNED)
    seconds = time.monotonic() - began
    trials = [line for line in lines if line.startswith("[")]
    failures = [line for line in trials if "failed" in line]
    assert len(failures) == sum(trial.status == "failed" for trial in RECORD.trials) == 1
    assert len(trials) <= 2 + len(failures) + seconds


def test_a_continued_study_says_what_was_done_before() -> None:
    stream = io.StringIO()
    PlainProgress(stream).study_started(RECORD, {way: 2 * count for way, count in PLANNED.items()})
    assert stream.getvalue() == "Study digits version 1: 450 trials, 225 of them done before.\n"


def draw(width: int, trial_count: int) -> list[str]:
    """Return what a terminal of `width` columns shows after `trial_count` trials."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=50)
    progress = RichProgress(console)
    progress.study_started(unfinished(RECORD, trial_count), PLANNED)
    running = RECORD.trials[trial_count]
    assert running.result is not None
    progress.curve_point(running, running.result.curve[-1])
    with console.capture() as capture:
        console.print(progress._draw())
    return capture.get().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()


def test_the_table_shows_a_row_for_each_way_and_one_for_all() -> None:
    lines = draw(110, 20)
    assert lines[0].split() == ["way", "done", "failed", "diverged", "device", "time", "expected", "accuracy", "left"]
    assert [line.split()[:2] for line in lines[1:9]] == [
        *(["grid", "8/40"], ["random", "8/40"], ["tpe", "4/80"], ["clr", "0/10"], ["clr_linear", "0/10"]),
        *(["grid_linear", "0/40"], ["default", "0/5"], ["all", "20/225"]),
    ]
    assert lines[9].startswith("tpe, seed 0, trial 4, rate ")
    assert ": epoch 4, loss 1." in lines[9]


@pytest.mark.parametrize("width", [30, NARROW_COLUMNS - 1, NARROW_COLUMNS, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_the_last_leaves_room_for_ctrl_c(width: int) -> None:
    lines = draw(width, 20)
    assert len(lines) == len(PLANNED) + 3
    assert max(len(line) for line in lines) <= width
    assert len(lines[-1]) <= width - len("^C")


def test_news_faster_than_the_eye_costs_no_redraw() -> None:
    stream = io.StringIO()
    trial = RECORD.trials[0]
    assert trial.result is not None
    with RichProgress(Console(file=stream, force_terminal=True, width=100)) as progress:
        progress.study_started(begun(RECORD), PLANNED)
        began, written, redraws = time.monotonic(), stream.tell(), 0
        for _ in range(10_000):
            progress.curve_point(trial, trial.result.curve[0])
            redraws, written = redraws + (stream.tell() > written), stream.tell()
        seconds = time.monotonic() - began
    assert redraws <= 1 + seconds / REDRAW_SECONDS


def test_a_redraw_is_cheap() -> None:
    progress = RichProgress(Console(file=io.StringIO(), force_terminal=True, width=100))
    with progress:
        progress.study_started(RECORD, PLANNED)
        durations = []
        for _ in range(20):
            began = time.process_time()
            progress._redraw(always=True)
            durations.append(time.process_time() - began)
    # Processor time, measured 3 to 5 ms: two a second stay below one percent of a core.
    assert min(durations) < 0.02


def interrupt(progress: RichProgress) -> None:
    with progress:
        progress.study_started(unfinished(RECORD, 20), PLANNED)
        progress.message("A [range] test found bounds.")
        raise KeyboardInterrupt


def test_messages_stand_above_the_table_and_an_interrupted_table_stays() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        interrupt(RichProgress(Console(file=stream, force_terminal=True, width=100, height=40)))
    written = stream.getvalue()
    last_frame = written[written.index("A [range] test found bounds.") :]
    assert "20/225" in last_frame
    assert "\x1b[?25h" in last_frame  # the cursor is back
