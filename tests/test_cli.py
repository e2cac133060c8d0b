"""The command line as users meet it: every test starts the real program."""

import atexit
import csv
import errno
import gzip
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.table import Table
from typer.testing import CliRunner

from lrsearch import __main__, cli
from lrsearch.analysis import Mean
from lrsearch.cli import EXIT_CODES
from lrsearch.config import load_study
from lrsearch.errors import LrsearchError
from lrsearch.trial import StudyRecord
from tests.records import FACTS, make_record
from tests.test_config import install_plug_in

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
ENVIRONMENT.pop("LRSEARCH_DATABASE", None)
STUDY = """\
version: 1
name: tiny
workload: {name: digits, batch_size: 64, train_limit: 400}
training:
  epochs: 1
  optimizer: {name: sgd, momentum: 0.9}
  device: cpu
seeds: [0, 1]
rates: {low: 1e-4, high: 1}
target: {metric: accuracy, value: 0.05}
strategies:
  grid: {name: grid, points: 2}
  clr:  {name: range_tested, schedule: {name: triangular2, cycles: 1}}
"""
TRIALS = 8
"""Two ways of two trials, two seeds."""
LONG = STUDY.replace("name: tiny", "name: long").replace("epochs: 1", "epochs: 40").replace("points: 2", "points: 90")

Answer = subprocess.CompletedProcess[str]


def lrsearch(folder: Path, *arguments: str, **environment: str) -> Answer:
    command = [sys.executable, "-m", "lrsearch", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=120
    )


def write(folder: Path, text: str, name: str = "study.yaml") -> str:
    (folder / name).write_text(text)
    return name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A folder with a finished study, and what its run said. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, lrsearch(folder, "run-study", write(folder, STUDY), "--json")


@pytest.fixture
def copied(finished: tuple[Path, Answer], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


# Quick answers


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["validate", "study.yaml"], ["schema"]])
def test_quick_commands_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    write(tmp_path, STUDY)
    program = (
        "import sys; from lrsearch.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(answer.stderr.split())
    assert "typer" in loaded
    assert not loaded & {"torch", "torchvision", "optuna", "plotly", "sklearn", "scipy", "numpy", "sqlalchemy"}


@pytest.mark.parametrize(
    "command", [["ls"], ["show", "tiny"], ["export", "tiny", "--table", "trials"], ["report", "tiny"]]
)
def test_reading_results_never_imports_torch(copied: Path, command: list[str]) -> None:
    program = (
        "import sys; from lrsearch.cli import app\n"
        f"try: app({command!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*({'torch', 'optuna', 'sklearn'} & set(sys.modules)), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=copied, capture_output=True, text=True, check=True)
    assert answer.stderr.split() == []


@pytest.mark.parametrize(
    ("old", "new", "place", "told"),
    [
        ("value: 0.05", "value: 95", "10:35", "target.value must be at most 1"),
        ("device: cpu", "device: cuda:77", "7:11", "training.device 'cuda:77' is not here"),
        ("device: cpu", "device: cpu\n  groups: [{pattern: no}]", "8:22", "training.groups.0.pattern 'no' matches no"),
    ],
)
def test_what_shows_only_when_a_study_is_prepared_names_its_place_too(
    tmp_path: Path, old: str, new: str, place: str, told: str
) -> None:
    for command in ("run-study", "probe") if "training" in told else ("run-study",):
        answer = lrsearch(tmp_path, command, write(tmp_path, STUDY.replace(old, new)))
        assert answer.returncode == 2
        assert f"study.yaml:{place}: {told}" in answer.stderr
        assert "Traceback" not in answer.stderr


def test_a_target_of_another_metric_is_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    answer = lrsearch(tmp_path, "validate", write(tmp_path, STUDY.replace("metric: accuracy", "metric: loss")))
    assert answer.returncode == 2
    assert "study.yaml:10:18: target.metric: must be 'accuracy', which the workload measures" in answer.stderr


OWN_MODEL = """
import atexit, ctypes, torch
LOG = open("log.txt", "w")
atexit.register(lambda: LOG.write("left"))

def model():
    return torch.nn.Linear(5, 2)

def data():
    ctypes.CDLL(None).puts(b"said by a library in C")
    inputs = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    targets = (inputs[:, 0] > 0).long()
    return (inputs[:300], targets[:300]), (inputs[300:], targets[300:])
"""


def test_what_a_user_s_module_has_not_flushed_is_there_after_the_quick_end(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_MODEL)
    own = "{name: callable, model: own:model, data: own:data, batch_size: 64, python_path: .}"
    write(tmp_path, STUDY.replace("{name: digits, batch_size: 64, train_limit: 400}", own))
    answer = lrsearch(tmp_path, "run-study", "study.yaml")
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "log.txt").read_text() == "left"
    assert "said by a library in C" in answer.stdout


def test_what_was_open_before_torch_was_imported_is_flushed_too(tmp_path: Path) -> None:
    """As the file of a plug-in may be: its objects are frozen by then (lrsearch/engine.py)."""
    program = (
        "import gc, sqlalchemy; from lrsearch.cli import _leave\n"
        "log = open('log.txt', 'w'); log.write('left'); gc.freeze(); _leave(7)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 7
    assert (tmp_path / "log.txt").read_text() == "left"


def test_ctrl_c_while_the_command_line_is_being_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "_run", interrupted)
    for arguments in (["--version"], ["run-study", "no.yaml"]):
        monkeypatch.setattr(sys, "argv", ["lrsearch", *arguments])
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        assert ended.value.code == 130
        assert capsys.readouterr().err == "Stopped.\n"


@pytest.mark.parametrize("command", ["health", "report"])
def test_the_usage_says_once_that_an_argument_may_be_left_out_or_repeated(command: str) -> None:
    usage = CliRunner().invoke(cli.app, [command, "--help"]).output.partition("Usage:")[2].partition("\n")[0]
    assert "[[" not in usage
    assert usage.count("...") <= 1


@pytest.mark.parametrize(("arguments", "code"), [(["show", "--help"], 0), (["ls", "--bogus"], 2)])
def test_a_reader_that_has_seen_enough_of_a_help_changes_no_exit_code(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """rich leaves with 1 then, which says a fault of lrsearch itself."""

    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return thrown_away.fileno()

    monkeypatch.setattr(atexit, "register", lambda function: None)
    monkeypatch.setattr(sys, "argv", ["lrsearch", *arguments])
    with (tmp_path / "out").open("w") as thrown_away:
        monkeypatch.setattr(sys, "stdout", Closed())
        monkeypatch.setattr(sys, "stderr", Closed())
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == code


def test_help_answers_in_less_than_0_4_seconds(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = lrsearch(tmp_path, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, which a busy machine does not lengthen; on an idle one it is the wall time, 0.13 s here.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.4
    for code, meaning in EXIT_CODES.items():
        assert f"{code}  {meaning}" in answer.stdout


def test_the_table_of_exit_codes_has_every_error() -> None:
    def codes(error: type[LrsearchError]) -> set[int]:
        return {error.exit_code}.union(*map(codes, error.__subclasses__()))

    assert set(EXIT_CODES) == codes(LrsearchError) | {0, 8, 130, 143}  # 8 is a study's end, at its budget, not an error


def test_version_and_validate_say_one_line(tmp_path: Path) -> None:
    assert re.fullmatch(r"lrsearch \d+\.\d+\.\d+\S*\n", lrsearch(tmp_path, "--version").stdout)
    answer = lrsearch(tmp_path, "validate", write(tmp_path, STUDY))
    assert answer.stdout == f"study.yaml: valid. Study tiny: 2 ways x 2 seeds, {TRIALS} trials.\n"
    assert (answer.returncode, answer.stderr) == (0, "")
    once = write(tmp_path, STUDY.replace("name: range_tested", "name: range_tested, test: once_per_study"))
    assert f"{TRIALS - 1} trials" in lrsearch(tmp_path, "validate", once).stdout, "the second seed tests no more"


def test_schema_is_json(tmp_path: Path) -> None:
    schema = json.loads(lrsearch(tmp_path, "schema").stdout)
    assert schema["required"] == ["version", "name", "workload", "training", "seeds", "rates", "strategies"]


# A finished study


def test_run_study_prints_exactly_one_document(finished: tuple[Path, Answer]) -> None:
    folder, answer = finished
    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert (document["study"], document["version"], document["finished"], document["exit_code"]) == ("tiny", 1, True, 0)
    assert [way["way"] for way in document["ways"]] == ["grid", "clr"]
    assert all(way["searches"] == {"done": 2, "planned": 2} for way in document["ways"])
    assert document["ways"][0]["test"]["count"] == 2
    assert (folder / document["report"]).read_text().startswith("<!")
    lines = answer.stderr.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("[")] == [
        f"[{n}/{TRIALS}]" for n in range(1, TRIALS + 1)
    ]


def test_the_charged_seconds_of_every_view_are_the_same(finished: tuple[Path, Answer]) -> None:
    folder, answer = finished
    rows = list(csv.DictReader(io.StringIO(lrsearch(folder, "export", "tiny", "--table", "trials").stdout)))
    assert len(rows) == TRIALS
    shown = lrsearch(folder, "show", "tiny").stdout
    for way in json.loads(answer.stdout)["ways"]:
        charged = sum(float(row["charged_device_seconds"]) for row in rows if row["strategy"] == way["way"])
        assert way["charged_device_seconds"] == pytest.approx(charged, rel=1e-9)
        [line] = [line for line in shown.splitlines() if line.split()[:1] == [way["way"]]]
        assert f" {charged:.2f} " in line


def test_a_finished_study_says_so_and_writes_its_report_again(copied: Path) -> None:
    report = copied / "reports" / "tiny.html"
    report.unlink()
    answer = lrsearch(copied, "run-study", "study.yaml")
    assert answer.returncode == 0
    assert "Study 'tiny' version 1 is finished; nothing to run." in answer.stderr
    assert answer.stdout.splitlines()[-1] == "Report: reports/tiny.html"
    assert report.exists()
    assert len(lrsearch(copied, "export", "tiny", "--table", "trials").stdout.splitlines()) == 1 + TRIALS


def test_ls_and_show_name_the_study_and_its_ways(finished: tuple[Path, Answer]) -> None:
    listed = lrsearch(finished[0], "ls").stdout.splitlines()
    assert listed[1].split()[:6] == ["tiny", "1", "finished", str(TRIALS), "0", "0"]
    shown = lrsearch(finished[0], "show", "tiny").stdout
    assert "Study tiny, version 1, finished" in shown
    assert "processor seconds" in shown
    assert shown.count("(n=2)") == 4


def test_no_table_is_wider_than_the_terminal_or_cut(finished: tuple[Path, Answer]) -> None:
    import pty

    for columns, arguments in itertools.product((50, 80, 120), (["show", "tiny"], ["ls"])):
        ours, theirs = pty.openpty()
        import fcntl
        import struct
        import termios

        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        command = [sys.executable, "-m", "lrsearch", *arguments]
        environment = {key: value for key, value in ENVIRONMENT.items() if key != "COLUMNS"}
        subprocess.run(command, cwd=finished[0], env=environment, stdout=theirs, stderr=subprocess.PIPE, check=True)
        os.close(theirs)
        shown = re.sub(r"\x1b\[[0-9;]*m", "", os.read(ours, 100_000).decode()).splitlines()
        os.close(ours)
        assert "…" not in "".join(shown)
        assert max(len(line) for line in shown) <= columns


def test_analyze_computes_the_numbers_of_the_run_from_its_csv_alone(
    finished: tuple[Path, Answer], tmp_path: Path
) -> None:
    folder, ran = finished
    table = tmp_path / "trials.csv"
    assert lrsearch(folder, "export", "tiny", "--table", "trials", "--output", str(table)).returncode == 0
    said = lrsearch(tmp_path, "analyze", str(table), "--json")
    assert (said.returncode, said.stderr) == (0, "")
    document, outcome = json.loads(said.stdout), json.loads(ran.stdout)
    assert document["verdict"]["headline"] == outcome["verdict"]["headline"]
    for way in outcome["ways"]:
        found = document["ways"][way["way"]]
        assert found["bill"]["charged_device_seconds"] == pytest.approx(way["charged_device_seconds"])
        assert (found["test"], found["reach"]["reached"]) == (way["test"], way["target"]["reached"])
    text = lrsearch(tmp_path, "analyze", str(table)).stdout
    assert document["verdict"]["headline"] in text
    assert "Leaderboard" in text
    assert "[grid]" in text  # a way in brackets, which is no markup
    packed = tmp_path / "trials.csv.gz"  # as a page's download is
    packed.write_bytes(gzip.compress(table.read_bytes()))
    assert json.loads(lrsearch(tmp_path, "analyze", str(packed), "--json").stdout) == document


GZIP = gzip.compress(b"", mtime=0)[:10]


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 4, "cannot be read"),
        (GZIP + b"\xff" * 20, 2, "not a CSV file in UTF-8"),
        (b"\xff\xfe\x00", 2, "not a CSV file in UTF-8"),
        (b"a,b\n1,2\n", 2, "lacks the column strategy"),
        (
            b'strategy,seed,validation_metric,charged_device_seconds,study_record\na,0,0.5,1,{"config": 1}\n',
            2,
            "study_record",
        ),
    ],
)
def test_analyze_says_what_is_wrong_with_a_file(tmp_path: Path, content: bytes | None, code: int, message: str) -> None:
    name = "trials.csv.gz" if content is not None and content.startswith(GZIP) else "trials.csv"
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = lrsearch(tmp_path, "analyze", name)
    assert (said.returncode, said.stdout) == (code, "")
    assert message in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("table", ["trials", "curves", "attempts", "range_tests"])
def test_export_writes_the_same_rows_as_csv_and_json(finished: tuple[Path, Answer], tmp_path: Path, table: str) -> None:
    folder = finished[0]
    target = tmp_path / "rows.csv"
    said = lrsearch(folder, "export", "tiny", "--table", table, "--output", str(target))
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    with target.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    objects = json.loads(lrsearch(folder, "export", "tiny", "--table", table, "--format", "json").stdout)
    assert rows
    assert [list(row) for row in objects] == [list(row) for row in rows]
    assert [str(row["seed"]) for row in objects] == [row["seed"] for row in rows]


def test_a_reader_that_has_seen_enough_is_no_error(finished: tuple[Path, Answer]) -> None:
    command = f"{sys.executable} -m lrsearch export tiny --table range_tests; echo $? >&2"
    answer = subprocess.run(
        ["sh", "-c", f"({command}) | true"], cwd=finished[0], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert answer.stderr == "0\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_under_what_a_command_prints_is_one_line(copied: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "lrsearch", "run-study", "study.yaml", *options]
    with Path("/dev/full").open("w") as full:
        answer = subprocess.run(command, cwd=copied, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert answer.returncode == 4
    assert answer.stderr.splitlines()[1:] == [
        "What the command gives cannot be written: No space left on device. Free space, then try again."
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_where_one_of_two_streams_is_full_the_other_still_says_what_is_wrong(tmp_path: Path) -> None:
    def ended(*arguments: str, **streams: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lrsearch", *arguments, "--json"]
        return subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, text=True, check=False, **streams)

    with Path("/dev/full").open("w") as full:
        told = ended("run-study", "nowhere.yaml", stdout=subprocess.PIPE, stderr=full)
        shown = ended("ls", stdout=full, stderr=subprocess.PIPE)  # has no such option
    assert (told.returncode, json.loads(told.stdout)["exit_code"]) == (2, 2)
    assert shown.returncode == 2
    assert "No such option" in shown.stderr
    assert "Traceback" not in shown.stderr


WITHOUT_STREAMS = """
import os, sys
from lrsearch import __main__

def run():
    with open("opened.txt", "w"), open("too.txt", "w"):
        os.write(1, b"as a library in C does")
        os.write(2, b"as a library in C does")
    print("printed")
    print("printed", file=sys.stderr)
    sys.exit(3)

__main__._run, sys.argv = run, ["lrsearch", "ls"]
__main__.main()
"""


def test_started_without_standard_streams_nothing_is_written_into_a_file_of_ours(tmp_path: Path) -> None:
    """The next file that is opened would have their numbers."""
    command = ["/bin/sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, WITHOUT_STREAMS]
    assert subprocess.run(command, cwd=tmp_path, timeout=60, check=False).returncode == 3
    assert [(tmp_path / name).read_text() for name in ("opened.txt", "too.txt")] == ["", ""]


def test_a_name_or_version_that_is_not_stored_is_refused(finished: tuple[Path, Answer]) -> None:
    answer = lrsearch(finished[0], "show", "tinny")
    assert (answer.returncode, answer.stderr) == (2, "Unknown study 'tinny'; known: tiny. Did you mean 'tiny'?\n")
    answer = lrsearch(finished[0], "show", "tiny", "--study-version", "7")
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1


def test_a_changed_file_is_refused_with_the_difference(copied: Path) -> None:
    write(copied, STUDY.replace("epochs: 1", "epochs: 2"))
    answer = lrsearch(copied, "run-study", "study.yaml", "--json", "--extend")
    assert answer.returncode == 7
    assert "training.epochs: 1 -> 2" in answer.stderr
    assert json.loads(answer.stdout)["exit_code"] == 7
    assert "training.epochs: 1 -> 2" in json.loads(answer.stdout)["error"]


@pytest.mark.slow
def test_a_changed_file_may_start_a_new_version_beside_the_old_one(copied: Path) -> None:
    write(copied, STUDY.replace("epochs: 1", "epochs: 2"))
    assert lrsearch(copied, "run-study", "study.yaml", "--fresh").returncode == 0
    assert [line.split()[:2] for line in lrsearch(copied, "ls").stdout.splitlines()[1:]] == [
        ["tiny", "1"],
        ["tiny", "2"],
    ]
    old = lrsearch(copied, "show", "tiny", "--study-version", "1").stdout
    assert "version 1, finished" in old


@pytest.mark.slow
def test_more_seeds_run_only_when_asked_for_and_only_they(copied: Path) -> None:
    def trials() -> list[dict[str, str]]:
        return list(csv.DictReader(lrsearch(copied, "export", "tiny", "--table", "trials").stdout.splitlines()))

    before = trials()
    write(copied, STUDY.replace("[0, 1]", "[0, 1, 2]"))
    assert lrsearch(copied, "run-study", "study.yaml").returncode == 7
    answer = lrsearch(copied, "run-study", "study.yaml", "--extend")
    assert answer.returncode == 0, answer.stderr
    after = trials()
    told = [json.loads(rows[0].pop("study_record")) for rows in (before, after)]
    assert [one["config"]["seeds"] for one in told] == [[0, 1], [0, 1, 2]]
    assert after[: len(before)] == before
    assert len(after) == len(before) + TRIALS // 2


def test_the_environment_names_the_database(copied: Path) -> None:
    (copied / "lrsearch.db").rename(copied / "other.db")
    answer = lrsearch(copied, "ls", LRSEARCH_DATABASE="sqlite:///other.db")
    assert "tiny" in answer.stdout


# Plans


@pytest.mark.slow
def test_a_dry_run_forecasts_every_way_and_stores_nothing(tmp_path: Path) -> None:
    answer = lrsearch(tmp_path, "run-study", write(tmp_path, STUDY), "--dry-run", "--json")
    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert document["trials"] == {"grid": 4, "clr": 4}
    assert document["total_seconds"] == pytest.approx(sum(document["seconds"].values()))
    assert document["total_seconds"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_another_device_is_asked_for_by_name(tmp_path: Path) -> None:
    answer = lrsearch(tmp_path, "run-study", write(tmp_path, STUDY), "--device", "gpu")
    assert answer.returncode == 2
    assert answer.stderr == "The device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'.\n"
    answer = lrsearch(tmp_path, "run-study", write(tmp_path, STUDY), "--device", "cuda:77")
    assert answer.returncode == 2
    assert "\ntraining.device 'cuda:77' is not here: " in answer.stderr, "at no place of a file that says cpu"


# What goes wrong

RAISES = """
import torch

class Net(torch.nn.Module):
    steps = 0

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x):
        Net.steps += self.training
        if Net.steps > 3:
            raise RuntimeError("these weights are cursed")
        return self.layer(x)

def net():
    return Net()

def table():
    x = torch.randn(200, 4)
    return (x, (x[:, 0] > 0).long()), (x[:50], (x[:50, 0] > 0).long())

def no_net():
    raise ValueError("no net today")
"""
OWN = STUDY.replace(
    "{name: digits, batch_size: 64, train_limit: 400}", "{name: callable, model: mine:net, data: mine:table}"
).replace("epochs: 1", "epochs: 3")


@pytest.mark.parametrize(
    ("exit_code", "study", "arguments", "message"),
    [
        (2, STUDY.replace("epochs:", "epoch:"), [], r"study\.yaml:5:3: training\.epoch: unknown key; .* 'epochs'\?"),
        (3, STUDY.replace("name: digits,", "name: image_folder, data_root: nix, model: mlp,"), [], r".*nix.*"),
        pytest.param(3, OWN.replace("mine:net", "mine:no_net"), [], r".*no net today.*", marks=pytest.mark.slow),
        pytest.param(3, OWN.replace("mine:net", "mine:nothing"), [], r".*mine:nothing.*", marks=pytest.mark.slow),
        (4, STUDY, ["--database", "sqlite:///nix/a.db"], r"The folder .*nix.* does not exist; create it first\."),
        (4, STUDY, ["--report", "study.yaml/r.html"], r"The report .* cannot be written: .*Choose another --report\."),
        (5, OWN, [], r"Stopped after 3 trials .* these weights are cursed \(.*\)\. They are stored .*"),
    ],
)
def test_each_failure_is_one_line_and_its_exit_code(
    tmp_path: Path, exit_code: int, study: str, arguments: list[str], message: str
) -> None:
    write(tmp_path, RAISES, "mine.py")
    answer = lrsearch(tmp_path, "run-study", write(tmp_path, study), "--json", *arguments)
    document = json.loads(answer.stdout)
    assert answer.returncode == document["exit_code"] == exit_code, answer.stderr
    assert re.fullmatch(message, document["error"]), document["error"]
    assert answer.stderr.splitlines()[-1] == document["error"]
    assert "Traceback" not in answer.stderr


def test_what_a_study_s_own_code_prints_does_not_mix_with_the_json_document(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = open(1, "w", closefd=False)  # noqa: SIM115  # with lines of its own to write, and not captured apart
    monkeypatch.setattr("sys.stdout", stdout)
    with cli._stdout_kept(True):
        print("loading")  # noqa: T201  # as a user does
        stdout.write("kept\n")  # as a logger does that has it from before
        os.write(1, b"from compiled code\n")
        subprocess.run(["echo", "from a program"], check=True)
    cli._print_json({})
    assert capfd.readouterr() == ("{}\n", "loading\nfrom compiled code\nfrom a program\nkept\n")


def test_what_a_study_s_own_code_prints_at_the_very_end_does_not_either(tmp_path: Path) -> None:
    program = (
        "import atexit, sys; from lrsearch import cli; run = cli.app\n"
        "def app(): atexit.register(print, 'bye'); run()\n"
        "cli.app = app; sys.argv[1:] = ['run-study', 'nix.yaml', '--json']; cli.main()"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert json.loads(answer.stdout)["exit_code"] == answer.returncode == 2
    assert answer.stderr.endswith("\nbye\n")


def test_the_report_goes_where_it_was_asked_for_also_where_the_study_s_code_changes_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changes_folder(config: object, store: object, **_: object) -> str:
        os.chdir("elsewhere")
        return "record"

    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    written: list[Path] = []
    monkeypatch.setattr("lrsearch.study.run_study", changes_folder)
    monkeypatch.setattr(cli, "_write_report", lambda record, page: written.append(page))
    path = tmp_path / write(tmp_path, STUDY)
    cli._run(load_study(path), "sqlite:///a.db", Path("page.html"), extend=False, fresh=False, as_json=False)
    assert written == [tmp_path / "page.html"]


def test_a_fault_is_told_also_where_no_temporary_file_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert cli._keep_traceback() == "none, as no temporary file can be written: No such file or directory."


@pytest.mark.parametrize(("width", "whole"), [(40, False), (28, True), (12, True)])
def test_no_number_of_a_table_is_cut_however_narrow_the_terminal(
    width: int, whole: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table("way", "seconds", "accuracy", title="Study tiny", caption="mean")
    table.add_row("clr", "0.123456", "0.9542 ±\n0.0191")
    monkeypatch.setattr(cli, "_stdout_width", lambda: width)
    cli._print(table)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("0.123456", "0.9542", "0.0191", "Study tiny", "mean"))
    assert ("seconds:" in shown) is whole


@pytest.mark.parametrize(("argument", "message"), [("--nope", "No such option: --nope"), ("", "Missing argument")])
def test_a_command_line_used_wrongly_is_one_json_document_too(tmp_path: Path, argument: str, message: str) -> None:
    answer = lrsearch(tmp_path, "run-study", "--json", *([argument] if argument else []))
    document = json.loads(answer.stdout)
    assert answer.returncode == document["exit_code"] == 2
    assert message in document["error"]


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="root may write anywhere")
def test_a_page_that_could_not_be_replaced_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """The page itself was writable, its folder was not: that was found when all trials had run."""
    page = tmp_path / "pages" / "tiny.html"
    page.parent.mkdir()
    page.write_text("old")
    page.parent.chmod(0o555)
    as_others = [f"--{kind}=-dac_override,-dac_read_search" for kind in ("bounding-set", "inh-caps")]
    command = ["setpriv", *(as_others if os.geteuid() == 0 else []), sys.executable, "-m", "lrsearch", "run-study"]
    command += [str(write(tmp_path, STUDY)), "--report", str(page)]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    page.parent.chmod(0o755)
    assert (done.returncode, page.read_text()) == (4, "old")
    assert done.stderr == f"The report {page} cannot be written: Permission denied. Choose another --report.\n"


def test_a_fault_of_our_own_keeps_its_traceback_in_a_file(tmp_path: Path) -> None:
    study = STUDY + "  mine: {name: guess, rate: 13}\n"
    site = tmp_path / "site"
    site.mkdir()
    answer = lrsearch(
        tmp_path, "validate", write(tmp_path, study), PYTHONPATH=str(install_plug_in(site)), TMPDIR=str(tmp_path)
    )
    assert answer.returncode == 1
    place = r" \(\S+guessing.py:\d+, in planned_trials\)"
    said = rf"lrsearch met a fault of its own: ZeroDivisionError: .*{place}\. Full traceback: (\S+)\n"
    found = re.fullmatch(said, answer.stderr)
    assert found, answer.stderr
    assert "in planned_trials" in Path(found[1]).read_text()


def test_ctrl_c_that_a_library_has_turned_into_an_error_of_its_own_is_no_fault(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    study = write(tmp_path, STUDY + "  mine: {name: guess, rate: 14}\n")
    answer = lrsearch(tmp_path, "validate", study, PYTHONPATH=str(install_plug_in(site)))
    assert (answer.returncode, answer.stderr) == (130, "Stopped.\n")


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (RuntimeError("can't start new thread"), 2),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), 2),
        (BlockingIOError(errno.EAGAIN, "write could not complete without blocking"), 1),
    ],
)
def test_a_limit_of_processes_is_no_fault_of_ours(
    error: Exception, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    app = typer.Typer(cls=cli._Commands)

    @app.callback()
    def commands() -> None: ...

    @app.command()
    def fork() -> None:
        raise error

    answer = CliRunner().invoke(app, ["fork"])
    assert answer.exit_code == exit_code
    assert answer.stderr.startswith("The system lets us start no further process") == (exit_code == 2)
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("postgresql://ann:s3cret@127.0.0.1:1/x", marks=pytest.mark.slow),
        *("oracle://ann:s3cret@db/x", "postgresql://ann:s3cret@[/x", "postgresql://ann:s3cret@db:port/x"),
        "postgresql://ann:at@s3cret@db/x",
    ],
)
def test_no_message_shows_a_password(tmp_path: Path, url: str) -> None:
    answer = lrsearch(tmp_path, "ls", LRSEARCH_DATABASE=url)
    assert answer.returncode in (2, 4)
    assert len(answer.stderr.splitlines()) == 1
    assert "s3cret" not in answer.stdout + answer.stderr


@pytest.mark.parametrize(
    "url", ["postgresql://ann:s3cret@127.0.0.1:1/x", "postgresql://ann@127.0.0.1/x?password=s3cret"]
)
def test_a_password_on_the_command_line_is_refused(tmp_path: Path, url: str) -> None:
    for command in (["ls"], ["run-study", write(tmp_path, STUDY)], ["db", "check"]):
        answer = lrsearch(tmp_path, *command, "--database", url)
        assert answer.returncode == 2
        assert answer.stderr.startswith("A password on the command line can be read by everyone on this machine")
        assert "s3cret" not in answer.stdout + answer.stderr


def test_reading_a_database_that_is_not_there_creates_none(tmp_path: Path) -> None:
    answer = lrsearch(tmp_path, "ls", "--database", "sqlite:///nix.db")
    assert answer.returncode == 4
    assert answer.stderr.startswith("There is no database nix.db")
    assert list(tmp_path.iterdir()) == []


# Stopping


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A long study whose first trials have finished, in `tmp_path`."""
    command = [sys.executable, "-m", "lrsearch", "run-study", write(tmp_path, LONG), "--fresh"]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("[2/"):
                break
        yield process
        process.kill()


DROPPED = """
import signal, sys, time, weakref
from lrsearch import __main__, conductor

class Thing:
    pass

def run():
    thing, signals = Thing(), conductor.Signals()
    with signals.handled(), signals.interruptible():
        callback = weakref.ref(thing, lambda _: (signal.raise_signal({number}), sum([])))
        del thing
        for _ in range(50):
            time.sleep(0.1)
        print("went on")

__main__._run, sys.argv = run, ["lrsearch", "ls"]
try:
    __main__.main()
except conductor.Terminated:
    sys.exit(143)
"""


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_where_python_drops_exceptions_stops_all_the_same(number: int, exit_code: int) -> None:
    command = [sys.executable, "-c", DROPPED.format(number=int(number))]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (answer.returncode, answer.stdout) == (exit_code, ""), answer.stderr
    assert "ignored" not in answer.stderr


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_stops_the_study_settles_its_cost_and_names_the_way_on(
    running: subprocess.Popen[str], tmp_path: Path, number: int, exit_code: int
) -> None:
    busy = lrsearch(tmp_path, "run-study", "study.yaml")
    assert busy.returncode == 6, busy.stderr
    assert f"is being run by process {running.pid}" in busy.stderr.splitlines()[-1]
    running.send_signal(number)
    assert running.stderr is not None
    last = running.stderr.read().splitlines()[-1]
    assert running.wait(timeout=60) == exit_code
    assert last.startswith("Stopped; what has finished is stored")
    assert last.endswith("To continue: lrsearch run-study study.yaml")
    attempts = list(csv.DictReader(io.StringIO(lrsearch(tmp_path, "export", "long", "--table", "attempts").stdout)))
    [interrupted] = [row for row in attempts if row["status"] != "finished"]
    assert interrupted["status"] == "interrupted"
    assert float(interrupted["lost_seconds"]) > 0
    assert "unfinished" in lrsearch(tmp_path, "ls").stdout


@pytest.mark.slow
def test_a_study_whose_terminal_goes_is_settled(tmp_path: Path) -> None:
    import pty

    write(tmp_path, LONG)
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-m", "lrsearch", "run-study", "study.yaml"], ENVIRONMENT)  # noqa: S606
    shown = b""
    while not re.search(rb"\b[2-9]/\d", shown):
        shown += os.read(terminal, 10_000)
    os.close(terminal)  # of which SIGHUP comes
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 143
    attempts = list(csv.DictReader(io.StringIO(lrsearch(tmp_path, "export", "long", "--table", "attempts").stdout)))
    assert {row["status"] for row in attempts} == {"finished", "interrupted"}


CLOSING = """
import os, sys
from lrsearch import cli
from lrsearch.storage.store import Store

close = Store.close

def closed_under_a_signal(self):
    os.kill(os.getpid(), {number})
    close(self)
    print("closed")

Store.close, sys.argv = closed_under_a_signal, ["lrsearch", "run-study", "study.yaml"]
cli.main()
"""


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_while_the_database_is_closed_waits_for_that(
    copied: Path, number: int, exit_code: int
) -> None:
    """Interrupted, SQLAlchemy would tell of the connection by a traceback."""
    command = [sys.executable, "-c", CLOSING.format(number=int(number))]
    answer = subprocess.run(command, cwd=copied, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (answer.returncode, answer.stdout) == (exit_code, "closed\n"), answer.stderr
    assert answer.stderr.splitlines()[-1].startswith("Stopped; what has finished is stored")


# The dashboard


def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers), timeout=60) as answer:  # noqa: S310  # our own
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@contextmanager
def dashboard(folder: Path, host: str, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Have it run at a free port, announced under that host; yield its address and its process."""
    command = [sys.executable, "-m", "lrsearch", "dashboard", "--port", "0", *options]
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(rf"Dashboard: (http://{re.escape(host)}:\d+/)", process.stdout.readline())
            assert found
            yield found[1], process
        finally:
            process.kill()


def has_loopback_of_ip6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_the_dashboard_shows_the_study_to_this_machine_alone(copied: Path) -> None:
    with dashboard(copied, "127.0.0.1") as (url, process):
        status, body = ask(f"{url}api/studies")
        shown: list[dict[str, Any]] = json.loads(body)["study_summaries"]
        assert status == 200
        assert {study["study_name"] for study in shown} == {
            f"tiny/{way}/{seed}" for way in ("grid", "clr") for seed in (0, 1)
        }
        assert ask(f"{url}api/studies", Host="evil.example")[0] == 403
        doomed = f"{url}api/studies/{shown[0]['study_id']}"
        assert ask(doomed, "DELETE", Origin="http://evil.example")[0] == 403
        status, body = ask(f"{url}reports")
        assert (status, b'<a href="/reports/1">tiny version 1</a>, finished' in body) == (200, True)
        assert b"name='viewport'" in body, "a telephone would show it a tenth of its size"
        with urllib.request.urlopen(f"{url}reports/1", timeout=60) as report:  # noqa: S310  # http
            assert report.headers["Content-Security-Policy"].startswith("sandbox allow-scripts allow-downloads;")
            assert "<title>" in report.read().decode()
        assert ask(f"{url}reports/2")[0] == 404
        assert ask(f"{url}reports/1", Host="evil.example")[0] == 403
        port = url.rstrip("/").rpartition(":")[2]
        assert lrsearch(copied, "health", "--port", port).stdout == "well\n"
        taken = lrsearch(copied, "dashboard", "--port", url.rstrip("/").rpartition(":")[2])
        assert (taken.returncode, taken.stderr.count("\n")) == (2, 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    with sqlite3.connect(copied / "lrsearch.db") as database:
        assert database.execute("select count(*) from studies").fetchone() == (4,)
    database.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "written"), [("127.0.0.2", "127.0.0.2"), ("::1", "[::1]"), ("localhost", "localhost")]
)
def test_the_dashboard_is_where_it_says_on_each_address_of_loopback(copied: Path, host: str, written: str) -> None:
    if ":" in host and not has_loopback_of_ip6():
        pytest.skip("this machine has no ::1")
    with dashboard(copied, written, "--host", host) as (url, process):
        assert ask(f"{url}reports")[0] == 200
        assert ask(f"{url}reports", Host="evil.example")[0] == 403
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104  # refused
def test_the_dashboard_leaves_loopback_only_when_told_so_twice(copied: Path, host: str) -> None:
    answer = lrsearch(copied, "dashboard", "--port", "0", "--host", host)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(f"The dashboard has no login, and --host {host} would let others in")


def test_health_says_whether_a_study_lives(copied: Path) -> None:
    assert lrsearch(copied, "health").returncode == 0
    assert lrsearch(copied, "health", "study.yaml").returncode == 0
    other = lrsearch(copied, "health", write(copied, LONG, "long.yaml"))
    assert (other.returncode, other.stderr.count("\n")) == (4, 1)
    assert "Study 'long' is neither finished nor run by a process" in other.stderr
    assert lrsearch(copied, "health", "--port", "1").returncode == 4
    assert lrsearch(copied, "health", "--database", "sqlite:///none.db").returncode == 4


def test_the_dashboard_needs_a_database(tmp_path: Path) -> None:
    answer = lrsearch(tmp_path, "dashboard", "--port", "0")
    assert answer.returncode == 4
    assert answer.stderr.startswith("There is no database lrsearch.db")


# The database


def test_a_database_is_checked_copied_and_upgraded(copied: Path) -> None:
    checked = lrsearch(copied, "db", "check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout == f"sqlite:///lrsearch.db: 1 study, {TRIALS} trials, no fault.\n"
    assert lrsearch(copied, "db", "backup", "--output", "copy.db").stdout == "Copied to copy.db.\n"
    assert lrsearch(copied, "show", "tiny", "--database", "sqlite:///copy.db").returncode == 0
    assert "nothing to do" in lrsearch(copied, "db", "upgrade").stdout
    with closing(sqlite3.connect(copied / "lrsearch.db")) as connection, connection:
        connection.execute("UPDATE lrsearch_trial SET status = 'planned' WHERE id = 1")
    broken = lrsearch(copied, "db", "check")
    assert broken.returncode == 4
    assert "tiny version 1, grid, seed 0, trial 0 is planned with 1 finished attempts" in broken.stderr
    with closing(sqlite3.connect(copied / "lrsearch.db")) as connection, connection:
        connection.execute("UPDATE lrsearch_alembic_version SET version_num = '0099'")
    for command in (["db", "check"], ["db", "upgrade"], ["show", "tiny"], ["ls"]):
        newer = lrsearch(copied, *command)
        assert newer.returncode == 4
        assert "written by a newer lrsearch: its schema is '0099'" in newer.stderr


def test_two_ways_are_compared_in_the_terminal(copied: Path) -> None:
    answer = lrsearch(copied, "compare", "tiny", "clr", "grid")
    assert answer.returncode == 0, answer.stderr
    for words in ("cost to target", "grid costs", "test accuracy", "P(improvement)"):
        assert words in answer.stdout
    wrong = lrsearch(copied, "compare", "tiny", "clr", "gird")
    assert (wrong.returncode, "Did you mean 'grid'?" in wrong.stderr) == (2, True)


def test_a_metric_of_the_user_s_is_text_in_the_terminal_and_shown_in_its_own_digits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its name may look like rich's markup, and not every metric is an accuracy."""
    made = make_record(seeds=(0, 1))
    record = replace(made, facts=replace(FACTS, metric="mse [/%]"))

    class Kept:
        def record(self, *_: object, **__: object) -> StudyRecord:
            return record

    monkeypatch.setattr(cli, "_existing", lambda database: nullcontext(Kept()))
    for arguments in (["show", "digits"], ["compare", "digits", "clr", "grid"]):
        answer = CliRunner().invoke(cli.app, arguments)
        assert (answer.exit_code, "mse [/%]" in answer.output) == (0, True)
    assert cli._mean(Mean(3.14159e-05, 2e-07, 3)) == "0.0000314 ± 2.00e\u221207 (n=3)"
    assert cli._mean(Mean(1234567.8, 1234.5, 3)) == "1\u2009234\u2009568 ± 1\u2009234.5 (n=3)"


def test_several_studies_make_one_page(copied: Path) -> None:
    write(copied, STUDY.replace("name: tiny", "name: other").replace("[0, 1]", "[0]"))
    assert lrsearch(copied, "run-study", "study.yaml").returncode == 0
    answer = lrsearch(copied, "report", "tiny", "other")
    assert answer.returncode == 0, answer.stderr
    assert "2 studies: what each way" in (copied / "reports/studies.html").read_text()
    twice = lrsearch(copied, "report", "tiny", "tiny")
    assert (twice.returncode, "once, got tiny, tiny" in twice.stderr) == (2, True)
    in_the_way = lrsearch(copied, "report", "tiny", "--output", ".")
    assert (in_the_way.returncode, in_the_way.stderr.endswith("Choose another --output.\n")) == (4, True)
    refused = lrsearch(copied, "report", "tiny", "other", "--png", "a.png")
    assert (refused.returncode, "for one study" in refused.stderr) == (2, True)
