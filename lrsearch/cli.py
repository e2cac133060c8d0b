"""The command line. It imports what a command needs inside that command, so that `lrsearch --help` stays quick."""

from __future__ import annotations

import atexit
import csv
import errno
import gc
import gzip
import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import traceback
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from lrsearch import __version__
from lrsearch.errors import LrsearchError, StorageError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lrsearch.analysis import Mean, WaySummary
    from lrsearch.config import StudyConfig
    from lrsearch.storage.store import Store
    from lrsearch.trial import StudyRecord

EXIT_CODES = {
    0: "done",
    1: "a fault of lrsearch itself, or of a plug-in",
    2: "usage: command line or study file",
    3: "data missing or corrupt, or a model or data function that is not usable",
    4: "the database or a file cannot be written or read",
    5: "the study stopped because its trials keep failing",
    6: "another process took this study over, or runs it and is not waited for",
    7: "the study file differs from the stored study",
    8: "the study stopped at its budget; with a larger one the same command continues",
    9: "the Ray cluster cannot be joined, or has no room (left) for the study",
    130: "stopped by Ctrl-C; the same command continues",
    143: "stopped by SIGTERM, or with its terminal; the same command continues",
}
EPILOG = "\n".join(["Exit codes:", *(f"{code:>5}  {meaning}" for code, meaning in EXIT_CODES.items())])


class _Commands(TyperGroup):
    """The one place where exceptions become a line on stderr and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's own context class
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a terminal without "±" still gets its table
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except LrsearchError as error:
            _fail(str(error), error.exit_code)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            _fail("Stopped.", 130)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if hasattr(error, "format_message"):  # typer shows the usage on stderr
                _print_error(error.format_message(), getattr(error, "exit_code", 2))
                raise
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # as of what it prints
                _fail(f"What the command gives cannot be written: {error.strerror}. Free space, then try again.", 4)
            # Of which libraries make errors of their own, as pydantic a SchemaError.
            if isinstance(error.__cause__, KeyboardInterrupt) or "KeyboardInterrupt" in str(error):
                _fail("Stopped.", 130)
            if _has_no_process_left(error):
                _fail(
                    f"The system lets us start no further process or thread ({_one_line(error)}). Raise the limit "
                    "(`ulimit -u`, or the container's pids), or lower executor.slots, and type the same command again.",
                    2,
                )
            what = f"{_one_line(error)}{_place(error)}"
            _fail(f"lrsearch met a fault of its own: {what}. Full traceback: {_keep_traceback()}", 1)


def _has_no_process_left(error: Exception) -> bool:
    """Whether that is what fork and clone say at a limit; a pipe that would block says EAGAIN in other words."""
    if isinstance(error, BlockingIOError):
        return error.strerror == os.strerror(errno.EAGAIN)
    return isinstance(error, RuntimeError) and str(error) == "can't start new thread"


def _fail(message: str, exit_code: int) -> NoReturn:
    message = _without_passwords(message)
    with suppress(OSError):  # nobody hears it
        typer.echo(message, err=True)
    _print_error(message, exit_code)
    raise typer.Exit(exit_code)


def _print_error(message: str, exit_code: int) -> None:
    """Print the one JSON document that `--json` promises, also for an error."""
    if "--json" in sys.argv[1:]:
        with suppress(OSError):  # nobody reads it
            typer.echo(json.dumps({"error": message, "exit_code": exit_code}))


def _without_passwords(text: str) -> str:
    text = re.sub(r"(://[^\s:/@]*):[^\s/]*@", r"\1:***@", text)
    return re.sub(r"(password=)[^\s&'\"]+", r"\1***", text)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _place(error: Exception) -> str:
    """Return " (file:line, in function)" for where it was raised: a plug-in has its name there."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({frame.filename}:{frame.lineno}, in {frame.name})"


def _keep_traceback() -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="lrsearch-", suffix=".log", delete=False) as log:
            log.write(_without_passwords(traceback.format_exc()))
    except OSError as error:
        return f"none, as no temporary file can be written: {error.strerror}."
    return log.name


app = typer.Typer(
    name="lrsearch",
    cls=_Commands,
    help="What does each way of choosing a learning rate cost in device time, and what accuracy does it buy?",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StudyFile = Annotated[Path, typer.Argument(metavar="FILE", help="The study file (YAML).")]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="The study's name, as `lrsearch ls` shows it.")]
StudyVersion = Annotated[
    int | None, typer.Option("--study-version", help="Which version of the study; the newest when not given.")
]


def _keep_passwords_secret(context: typer.Context, url: str) -> str:
    from lrsearch.storage.engine import with_password

    from_command_line = str(context.get_parameter_source("database")).endswith("COMMANDLINE")
    if from_command_line and _without_passwords(url) != url:
        raise UsageError(
            "A password on the command line can be read by everyone on this machine: give the URL without it, and the "
            "password in the file that LRSEARCH_DATABASE_PASSWORD_FILE names or in ~/.pgpass."
        )
    url = with_password(url)
    _forget_passwords()
    return url


def _forget_passwords() -> None:
    """Take them out of the environment: a study's own code, and every program that it starts, would find them there."""
    for name in ("LRSEARCH_DATABASE", "PGPASSWORD"):
        os.environ.pop(name, None)


Database = Annotated[
    str,
    typer.Option(
        "--database",
        metavar="URL",
        envvar="LRSEARCH_DATABASE",
        help="sqlite:///FILE or postgresql://USER@HOST/NAME.",
        callback=_keep_passwords_secret,
    ),
]
ImagePath = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Draw the first figure into a file, or all into a folder (extra images)."),
]
DEFAULT_DATABASE = "sqlite:///lrsearch.db"
TableName = Literal["trials", "curves", "attempts", "range_tests"]
Format = Literal["csv", "json"]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lrsearch {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options of `lrsearch` itself."""


@app.command("run-study")
def run_study(
    file: StudyFile,
    database: Database = DEFAULT_DATABASE,
    report: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The HTML page to write; default: reports/NAME.html.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, at the end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and a cost forecast; run nothing.")
    ] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Let the file add seeds, trials or strategies to a stored study.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start a new version of the study; older ones stay.")] = False,
    device: Annotated[
        str | None, typer.Option(help="Instead of the file's training.device: auto, cpu, cuda, cuda:N or mps.")
    ] = None,
) -> None:
    """Run a study, or continue it where it stopped, and write its report."""
    from lrsearch import ahead
    from lrsearch.config import load_study, placed
    from lrsearch.probing import likely_environment

    config, replaced = load_study(file), []
    if device is not None:
        config, replaced = config.on_device(device), ["training.device"]
    if dry_run:
        with placed(file, replaced=replaced):
            _show_forecast(config, as_json)
        return
    page = report or Path("reports") / f"{config.name}.html"
    _check_writable(page)
    with ahead.ended_at_last(), placed(file, replaced=replaced):
        ahead.begin(likely_environment(config))
        record = _run(config, database, page, extend=extend, fresh=fresh, as_json=as_json)
    if as_json:
        _print_json(_outcome(record, database, page))
    else:
        _print(_ways_table(record))
        typer.echo(f"Report: {page}")
    if not record.finished:
        raise typer.Exit(8)


def _run(config: StudyConfig, database: str, page: Path, *, extend: bool, fresh: bool, as_json: bool) -> StudyRecord:
    from lrsearch import study
    from lrsearch.conductor import Signals, Terminated
    from lrsearch.progress import progress_for
    from lrsearch.storage.store import open_store

    page = page.absolute()  # a study's own code may change the folder
    drawn: list[StudyRecord] = []

    def conclude(record: StudyRecord) -> None:
        _write_report(record, page)
        drawn.append(record)

    signals, store = Signals(), None
    try:
        # SQLAlchemy tells of a connection whose closing is interrupted by a traceback: that is awaited.
        with signals.handled(), ExitStack() as stack, signals.interruptible():
            stack.enter_context(_stdout_kept(as_json))
            store = stack.enter_context(open_store(database))
            progress = stack.enter_context(progress_for(sys.stderr))
            record = study.run_study(
                config,
                store,
                observer=progress,
                extend=extend,
                fresh=fresh,
                mirror_url=database,
                meanwhile=_make_report_ready,
                conclude=conclude,
            )
    except (KeyboardInterrupt, Terminated) as stop:
        stopped, why = 130 if isinstance(stop, KeyboardInterrupt) else 143, stop.__cause__
    else:
        if not drawn:  # there was nothing to run
            _write_report(record, page)
        return record
    again = shlex.join(["lrsearch", *(argument for argument in sys.argv[1:] if argument != "--fresh")])
    done = "Stopped; what has finished is stored, and the running trial is charged."
    if isinstance(why, StorageError) or (store is not None and store.absence.lasts):
        done = (
            f"Stopped. {why or 'The database does not answer.'} What could not be written runs again, and is charged "
            "up to its last sign of life."
        )
    _fail(f"{done} To continue: {again}", stopped)


def _check_writable(path: Path, option: str = "--report") -> None:
    """Raise StorageError now rather than after hours of training."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        existed = path.exists()
        path.open("a").close()
        if not existed:
            path.unlink(missing_ok=True)  # several processes may wait for one study
        tempfile.TemporaryFile(dir=path.parent).close()  # a page is written beside the one that it replaces
    except OSError as error:
        raise StorageError(
            f"The report {path} cannot be written: {error.strerror}. Choose another {option}."
        ) from error


def _make_report_ready() -> None:
    """Do some of the work of the end where this process would only wait for another one, which imports torch."""
    from lrsearch import ahead

    if ahead.is_under_way():
        from lrsearch.report import make_ready

        make_ready()


def _write_report(record: StudyRecord, page: Path) -> None:
    from lrsearch.report import write_report

    write_report(record, page)


def _show_forecast(config: StudyConfig, as_json: bool) -> None:
    from dataclasses import asdict

    from rich.table import Table

    from lrsearch.analysis import wording
    from lrsearch.progress import duration
    from lrsearch.study import forecast

    with _stdout_kept(as_json):
        result = forecast(config)
    if as_json:
        _print_json({"study": config.name, **asdict(result), "total_seconds": result.total_seconds})
        return
    table = Table("way", title=f"Plan of study {config.name}: nothing was run", box=None)
    for column in ("searches", "trials", "device time"):
        table.add_column(column, justify="right")
    for way, seconds in result.seconds.items():
        table.add_row(way, str(len(config.seeds)), str(result.trials[way]), duration(seconds))
    table.add_row("all", "", str(sum(result.trials.values())), duration(result.total_seconds), style="bold")
    _print(table)
    if result.confirmations:
        typer.echo(
            f"Confirming what the searches choose: up to {wording.counted(result.confirmations, 'more run')}, "
            f"{duration(result.confirmation_seconds)}, on no way's bill, but a budget counts them."
        )
    typer.echo(f"On {result.device}; probe: {result.probe}.")


@app.command("range-test")
def range_test(
    file: StudyFile,
    repeats: Annotated[int, typer.Option(min=1, help="Run it so often, each time with a further seed.")] = 1,
    way: Annotated[
        str | None, typer.Option(metavar="KEY", help="The strategy whose range test to run; default: the first one.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The HTML page; default: reports/NAME-range-test.html.")
    ] = None,
    png: ImagePath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, at the end.")] = False,
) -> None:
    """Run only a study's range test, and show its curve and bounds; nothing is stored."""
    from lrsearch.config import load_study, placed
    from lrsearch.range_test_run import as_document, description, run_range_test, write_page

    _forget_passwords()
    config, images = load_study(file), _images(png)
    page = output or Path("reports") / f"{config.name}-range-test.html"
    _check_writable(page, "--output")
    with placed(file), _stdout_kept(as_json), chdir("."):  # back to it: a study's own code may change the folder
        run = run_range_test(config, way=way, repeats=repeats, tell=lambda line: typer.echo(line, err=True))
    write_page(run, page)
    for kind, path in images.items():
        from lrsearch.images import write_images

        _tell_images(write_images({f"seed-{test.seed}": test.figure() for test in run.tests}, path, kind), err=True)
    if as_json:
        _print_json({**as_document(run), "page": str(page), "exit_code": 0})
        return
    typer.echo("\n".join(description(run, width=min(_stdout_width(), 100) - 12)))
    typer.echo(f"Page: {page}")


@app.command()
def probe(
    file: StudyFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Time a training step of a study's model: alone and in gangs, by precision, in one process and in several."""
    from dataclasses import asdict

    from rich.table import Table

    from lrsearch.config import load_study, placed
    from lrsearch.probing import survey

    _forget_passwords()
    config = load_study(file)
    with placed(file), _stdout_kept(as_json):
        found = survey(config)
    if as_json:
        _print_json({**asdict(found), "best": asdict(found.best), "exit_code": 0})
        return
    alone = found.timings[0].step_seconds
    table = Table(title=f"One training step of one trial on {found.device}", box=None)
    for name in ("precision", "processes", "threads each", "trials together", "ms per step", "times as fast"):
        table.add_column(name, justify="left" if name == "precision" else "right")
    for timing in sorted(found.timings, key=lambda one: one.step_seconds):
        together = f"{timing.gang_size}, compiled" if timing.compiled else str(timing.gang_size)
        speed = f"{alone / timing.step_seconds:.2f}"
        counts = (str(timing.processes), str(timing.threads), together)
        layout = ", channels last" if timing.memory_format == "channels_last" else ""
        layout += ", oneDNN" if timing.matmul == "onednn" else ""
        table.add_row(timing.precision + layout, *counts, f"{timing.step_seconds * 1e3:.3g}", speed)
    _print(table)
    for note in found.notes:
        typer.echo(f"Not everything could be timed: {note}")
    best = found.best
    slots = f"{{name: process, slots: {best.processes}, threads_per_slot: {best.threads}}}"
    typer.echo(
        f"Fastest: executor: {slots if best.processes > 1 else '{name: inline}'}, "
        f"training.precision: {best.precision}, "
        f"{'training.memory_format: channels_last, ' if best.memory_format == 'channels_last' else ''}"
        f"{'training.matmul: onednn, ' if best.matmul == 'onednn' else ''}"
        f"gangs: {'auto' if best.gang_size > 1 else 'off'}{', training.compile: gangs' if best.compiled else ''}. "
        "Gangs are chosen anew by each study where gangs is auto."
    )


@app.command()
def validate(file: StudyFile) -> None:
    """Check a study file without running anything."""
    from lrsearch.config import load_study

    _forget_passwords()
    config = load_study(file)
    trials, ways = sum(config.planned_trials().values()), len(config.strategies)
    typer.echo(f"{file}: valid. Study {config.name}: {ways} ways x {len(config.seeds)} seeds, {trials} trials.")


@app.command()
def schema() -> None:
    """Print the JSON Schema of study files, for editors to check and complete by."""
    from lrsearch.config import json_schema

    _print_json(json_schema())


@app.command("ls")
def list_studies(database: Database = DEFAULT_DATABASE) -> None:
    """List the stored studies."""
    from rich.table import Table

    from lrsearch.progress import duration

    with _existing(database) as store:
        studies = store.studies()
    if not studies:
        typer.echo("No studies yet; lrsearch run-study FILE runs one.")
        return
    table = Table(box=None)
    table.add_column("study", overflow="fold")  # never cut: the other commands take it
    shown = [column for column, width in LS_COLUMNS_FROM_WIDTH.items() if _stdout_width() >= width]
    for column in shown:
        table.add_column(column, justify="right")
    for study in studies:
        cells = {
            "version": str(study.version),
            "state": "finished" if study.finished else "unfinished",
            "trials": str(sum(study.trials.values())),
            "failed": str(study.trials.get("failed", 0)),
            "diverged": str(study.trials.get("diverged", 0)),
            "device time": duration(study.charged_device_seconds),
            "created (UTC)": f"{study.created_at:%Y-%m-%d %H:%M}",
        }
        table.add_row(study.name, *(cells[column] for column in shown))
    _print(table)


@app.command()
def show(study: StudyName, database: Database = DEFAULT_DATABASE, study_version: StudyVersion = None) -> None:
    """Show what each way of a study cost and what it bought."""
    with _existing(database) as store:
        record = store.record(study, study_version, points="hits")
    _print(_ways_table(record))


@app.command()
def export(
    study: StudyName,
    table: Annotated[TableName, typer.Option(help="One row per trial, curve point, attempt or range-test point.")],
    database: Database = DEFAULT_DATABASE,
    study_version: StudyVersion = None,
    format: Annotated[Format, typer.Option(help="The format to write.")] = "csv",  # noqa: A002  # the user's word
    output: Annotated[Path | None, typer.Option(metavar="PATH", help="Default: stdout.")] = None,
) -> None:
    """Write a study's trials, curves, attempts or range tests as CSV or JSON."""
    from lrsearch.storage.export import export_rows, write_rows

    with _existing(database) as store:
        rows = export_rows(store.record(study, study_version), table)
    if output is None:
        write_rows(rows, format, sys.stdout)
        return
    try:
        with output.open("w", newline="", encoding="utf-8") as stream:
            write_rows(rows, format, stream)
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {error.strerror}. Choose another --output.") from error


@app.command()
def analyze(
    file: Annotated[
        Path,
        typer.Argument(metavar="TRIALS.csv", help="What `export STUDY --table trials` wrote, or a report's download."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Compute every number of a report again, from an exported table of trials alone."""
    from lrsearch.analysis.document import study_document
    from lrsearch.analysis.exported import notes_on, read_rows, record_of_rows
    from lrsearch.figures import figure_tables

    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", newline="", encoding="utf-8-sig") as stream:
            rows = read_rows(stream)
    except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(
            f"{file} is not a CSV file in UTF-8: {error}. Give one that `lrsearch export` wrote."
        ) from error
    except OSError as error:
        raise StorageError(
            f"{file} cannot be read: {error.strerror}. Give a file that `lrsearch export` wrote."
        ) from error
    record, notes = record_of_rows(rows), notes_on(rows)
    if as_json:
        _print_json({**study_document(record), "tables": figure_tables(record), "notes": notes, "exit_code": 0})
        return
    _print_analysis(record)
    for note in notes:
        typer.echo(f"Note: {note}", err=True)


def _print_analysis(record: StudyRecord) -> None:
    """Print the verdict, all tables, what could be wrong and what ran in the words of the report."""
    from rich.table import Table
    from rich.text import Text

    from lrsearch.analysis import summarise
    from lrsearch.analysis.strip import strip, strip_lines
    from lrsearch.analysis.table import columns, row_cells
    from lrsearch.analysis.threats import threats
    from lrsearch.figures import FIGURES
    from lrsearch.figures import Table as Rows

    summary = summarise(record)
    verdict = summary.verdict
    lines = [f"{verdict.headline} Grade: {verdict.grade}.", *verdict.sentences, *filter(None, [verdict.power])]
    typer.echo("\n  ".join(lines))
    shown = columns(summary)
    rows = [(way.key, *("\n".join((cell.text, *cell.notes)) for cell in row_cells(shown, way))) for way in summary.ways]
    first = Rows(["Way", *(column.title for column in shown)], rows)
    for title, table in [("Each way in numbers", first), *((one.title, one.table(record)) for one in FIGURES.values())]:
        if table.rows:
            drawn = Table(title=title, title_justify="left", box=None)
            for head in table.columns:
                drawn.add_column(Text(head))  # as it is: rich would take [grid] in a string for markup
            for row in table.rows:
                drawn.add_row(*map(Text, row))
            typer.echo()
            _print(drawn)
    typer.echo("\n  ".join(["\nWhat could be wrong", *threats(record, summary)]))
    typer.echo("\n  ".join(["\nWhat ran", *(f"{name}: {text}" for name, text in strip_lines(strip(record)))]))


@app.command("report")
def write_report(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY", help="One study, or several for one page.")],
    database: Database = DEFAULT_DATABASE,
    study_version: StudyVersion = None,
    output: Annotated[Path | None, typer.Option(metavar="PATH", help="Default: reports/STUDY.html.")] = None,
    png: ImagePath = None,
    svg: ImagePath = None,
) -> None:
    """Write a study's report again from what is stored, or one page over several studies."""
    images = _images(png, svg)
    if len(studies) > 1 and (images or study_version is not None):
        raise UsageError("--png, --svg and --study-version are for one study; leave them out, or name one study.")
    if len(set(studies)) < len(studies):
        raise UsageError(f"Each study can stand on a page once, got {', '.join(studies)}.")
    with _existing(database) as store:
        records = [store.record(study, study_version) for study in studies]
    page = output or Path("reports") / f"{'studies' if len(records) > 1 else records[0].name}.html"
    _check_writable(page, "--output")
    if len(records) > 1:
        from lrsearch.workloads_report import write_workloads_report

        write_workloads_report(records, page)
    else:
        _write_report(records[0], page)
    typer.echo(f"Report: {page}")
    if images:
        from lrsearch.images import study_figures, write_images

        for kind, path in images.items():
            _tell_images(write_images(study_figures(records[0]), path, kind))


def _images(png: Path | None, svg: Path | None = None) -> dict[str, Path]:
    """Return the images that are wanted, by kind, after a check that they can be drawn."""
    wanted = {kind: path for kind, path in (("png", png), ("svg", svg)) if path is not None}
    if wanted:
        from lrsearch.images import check_images

        for kind, path in wanted.items():
            check_images(path, kind)
    return wanted


def _tell_images(paths: list[Path], *, err: bool = False) -> None:
    for path in paths:
        typer.echo(f"Image: {path}", err=err)


@app.command()
def compare(
    study: StudyName,
    one: Annotated[str, typer.Argument(metavar="WAY", help="A way, as the study file names it.")],
    other: Annotated[str, typer.Argument(metavar="WAY", help="The way that it is compared with.")],
    database: Database = DEFAULT_DATABASE,
    study_version: StudyVersion = None,
) -> None:
    """Compare two ways of a study: cost, test value, probability of improvement, the same budget."""
    from rich.markup import escape
    from rich.table import Table

    from lrsearch.analysis.pair import compare_ways

    with _existing(database) as store:
        record = store.record(study, study_version, points="hits")
    table = Table(title=f"Study {record.name}: {one} and {other}", box=None, show_header=False)
    table.add_column()
    table.add_column()
    for name, text in compare_ways(record, one, other):
        table.add_row(escape(name), escape(text))
    _print(table)


@app.command()
def dashboard(
    database: Database = DEFAULT_DATABASE,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8080,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    exposed: Annotated[
        bool, typer.Option("--exposed", help="Allow a --host that others can reach: there is no login.")
    ] = False,
) -> None:
    """Serve optuna-dashboard on this machine alone, live while trials run, and at /reports the studies' pages."""
    from lrsearch.web import serve_dashboard

    def announce(url: str) -> None:
        typer.echo(f"Dashboard: {url} (Ctrl-C stops it)")

    serve_dashboard(database, port, announce, host=host, exposed=exposed)


@app.command()
def health(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Ask for this study: finished, or a process gives signs.")
    ] = None,
    database: Database = DEFAULT_DATABASE,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Ask for the dashboard at this port of 127.0.0.1.")
    ] = None,
) -> None:
    """Say whether a service is well, for the health checks of containers: 0 means yes, 4 means no."""
    if port is not None:
        _ask_dashboard(port)
    else:
        from lrsearch.storage import maintenance

        if file is None:
            maintenance.check_schema(database)
        else:
            from lrsearch.config import load_study

            name = load_study(file).name
            if not maintenance.is_alive(database, name):
                raise StorageError(f"Study {name!r} is neither finished nor run by a process that gives signs of life.")
    typer.echo("well")


def _ask_dashboard(port: int) -> None:
    from http.client import HTTPConnection, HTTPException

    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        raise StorageError(f"No dashboard answers at port {port}: {error}.") from error
    if status != 200:
        raise StorageError(f"The dashboard at port {port} answers {status}.")


db = typer.Typer(help="Look after the database: check, copy or upgrade it.", no_args_is_help=True)
app.add_typer(db, name="db")


@db.command("check")
def check_database(
    database: Database = DEFAULT_DATABASE,
    mend: Annotated[bool, typer.Option("--mend", help="First write what the dashboard's tables lack.")] = False,
) -> None:
    """Look for damage, and for what the ledger must never hold."""
    from lrsearch.analysis import wording
    from lrsearch.storage import maintenance
    from lrsearch.storage.engine import display_url

    if mend:
        maintenance.mend_view(database)
    found = maintenance.check_database(database)
    for note in found.notes:
        typer.echo(f"Note: {note}.")
    counted = f"{wording.counted(found.studies, 'study', 'studies')}, {wording.counted(found.trials, 'trial')}"
    counts = f"{display_url(database)}: {counted}"
    if found.faults:
        faults = wording.counted(len(found.faults), "fault")
        raise StorageError("\n".join([f"{counts}, {faults}; restore a copy:", *found.faults]))
    typer.echo(f"{counts}, no fault.")


@db.command("backup")
def back_up_database(
    database: Database = DEFAULT_DATABASE,
    output: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The file to write; default: the database's name with the time.")
    ] = None,
) -> None:
    """Write a consistent copy; studies may run meanwhile. PostgreSQL's is made by pg_dump, for pg_restore."""
    from lrsearch.storage.maintenance import back_up

    typer.echo(f"Copied to {back_up(database, output)}.")


@db.command("upgrade")
def upgrade_database(
    database: Database = DEFAULT_DATABASE,
    backup: Annotated[bool, typer.Option(help="Copy the database first, if there is something to lose.")] = True,
) -> None:
    """Bring the tables up to this version of lrsearch, or make them where there are none."""
    from lrsearch.storage import maintenance

    maintenance.upgrade_database(database, typer.echo, backup=backup)


def _existing(database: str) -> Store:
    """Open a database for reading; it is never created."""
    from lrsearch.storage.store import open_store

    return open_store(database, must_exist=True)


COLUMNS_FROM_WIDTH = {
    "searches": 118,
    "trials": 72,
    "failed": 118,
    "diverged": 118,
    "seconds": 0,
    "validation": 100,
    "test": 0,
    "target": 60,
}
"""How wide the terminal must be for a column of the result table."""
LS_COLUMNS_FROM_WIDTH = {
    "version": 0,
    "state": 0,
    "trials": 60,
    "failed": 80,
    "diverged": 80,
    "device time": 72,
    "created (UTC)": 100,
}
"""The same for the list of studies."""


def _ways_table(record: StudyRecord) -> Table:
    """Return one row per way: what it cost, and what it bought with how much spread over how many searches."""
    from rich.markup import escape
    from rich.table import Table

    from lrsearch.analysis import summarise

    summary = summarise(record)
    state = "finished" if summary.finished else "unfinished"
    target = "" if summary.target is None else f" (target {summary.target:g})"
    table = Table(
        title=f"Study {summary.name}, version {summary.version}, {state}",
        caption=escape(
            f"{summary.metric}{target}: mean ± standard deviation over n searches. "
            f"{summary.verdict.headline} Grade: {summary.verdict.grade}."
        ),
        caption_justify="left",
        box=None,
    )
    table.add_column("way", no_wrap=True)
    shown = [column for column, width in COLUMNS_FROM_WIDTH.items() if _stdout_width() >= width]
    for column in shown:
        table.add_column(summary.seconds if column == "seconds" else column, justify="right")
    for way in summary.ways:
        cells = _cells(way)
        table.add_row(escape(way.key), *(cells[column] for column in shown))
    return table


def _cells(way: WaySummary) -> dict[str, str]:
    ended = sum(way.trials.values()) - way.trials.get("unfinished", 0)
    return {
        "searches": f"{way.searches_done}/{way.searches_planned}",
        "trials": str(ended),
        "failed": str(way.trials.get("failed", 0)),
        "diverged": str(way.trials.get("diverged", 0)),
        "seconds": "-" if way.bill is None else f"{way.bill.charged_device_seconds:.2f}",
        "validation": _mean(way.validation),
        "test": _mean(way.test),
        "target": "-" if way.reach is None else f"{way.reach.reached}/{way.reach.total}",
    }


def _mean(mean: Mean | None) -> str:
    from lrsearch.analysis.wording import metric

    if mean is None:
        return "-"
    spread = "" if mean.sd is None else f" ± {metric(mean.sd)}"
    return f"{metric(mean.value)}{spread} (n={mean.count})"


def _outcome(record: StudyRecord, database: str, page: Path) -> dict[str, Any]:
    """Return the document of `run-study --json`: the result table, where it came from and where the report lies."""
    from lrsearch.analysis import summarise
    from lrsearch.storage.engine import display_url

    summary = summarise(record)
    return {
        "study": summary.name,
        "version": summary.version,
        "finished": summary.finished,
        "metric": summary.metric,
        "target": summary.target,
        "devices": [device._asdict() for device in summary.devices],
        "ways": [_way_outcome(way) for way in summary.ways],
        "verdict": {"grade": summary.verdict.grade, "headline": summary.verdict.headline},
        "database": display_url(database),
        "report": str(page),
        "exit_code": 0 if summary.finished else 8,
    }


def _way_outcome(way: WaySummary) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "way": way.key,
        "searches": {"done": way.searches_done, "planned": way.searches_planned},
        "trials": dict(way.trials),
        "charged_device_seconds": way.bill.charged_device_seconds if way.bill else None,
        "validation": asdict(way.validation) if way.validation else None,
        "test": asdict(way.test) if way.test else None,
        "target": {"reached": way.reach.reached, "searches": way.reach.total} if way.reach else None,
    }


@contextmanager
def _stdout_kept(for_json: bool) -> Iterator[None]:
    """Keep stdout for the one JSON document: what a study's own code and its programs print goes to stderr."""
    if not for_json:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def _print(table: Table) -> None:
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:  # rich would leave with code 1
            raise BrokenPipeError

    console = PipeConsole(file=sys.stdout, width=_stdout_width(), highlight=False)
    if console.width < Console(width=10_000).measure(table).minimum:
        _print_narrow(console, table)
    else:
        console.print(table)


def _print_narrow(console: Console, table: Table) -> None:
    """Print a paragraph per row and a line per cell: rich would cut words and numbers to make the table fit."""
    from rich.padding import Padding
    from rich.text import Text

    def text(cell: Any) -> Text:
        shown = Text.from_markup(cell) if isinstance(cell, str) else cell
        return Text(", ").join(shown.split("\n"))

    if table.title:
        console.print(table.title, style="table.title")
    for key, *cells in zip(*(column.cells for column in table.columns), strict=True):
        console.print(text(key), style="bold")
        for column, cell in zip(table.columns[1:], cells, strict=True):
            line = Text.assemble(text(column.header), ": ", text(cell)) if table.show_header else text(cell)
            console.print(Padding(line, (0, 0, 0, 2)))
    if table.caption:
        console.print(table.caption, style="table.caption")


def _stdout_width() -> int:
    """Return the terminal's columns, or enough for any table when stdout is a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 140


def main() -> None:
    """The entry point of the `lrsearch` command."""
    exit_code: int | None = None
    # The first one registered is called last. What torch and its threads hold goes with the process; taking it apart
    # takes up to a second.
    atexit.register(lambda: None if exit_code is None else _leave(exit_code))
    try:
        app()
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else None
        if isinstance(end.__context__, BrokenPipeError):  # of a help or a usage error, whose reader has seen enough
            exit_code = getattr(end.__context__.__context__, "exit_code", 0)
            raise SystemExit(exit_code) from None
        raise
    finally:
        if "--json" in sys.argv[1:]:  # what a study's own code has still to say at the end is no part of the document
            with suppress(OSError):
                os.dup2(2, 1)


def _leave(exit_code: int) -> None:
    """End the process at once if it is large; where its last words cannot be written, leave that to Python."""
    if not {"sqlalchemy", "torch"} & sys.modules.keys():
        return
    import ctypes

    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        gc.unfreeze()  # else what was made before torch was imported is left out
        for one in gc.get_objects():  # what a user's model writes, and has not closed
            if issubclass(type(one), (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):
                with suppress(OSError, ValueError):
                    one.flush()
        with suppress(OSError, AttributeError, TypeError):  # Windows has no library of that name
            ctypes.CDLL(None).fflush(None)
        os._exit(exit_code)
