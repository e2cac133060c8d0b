"""A password is in nothing that lrsearch prints, writes, stores or starts; and nothing from disk is run."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.postgresql import PASSWORD, ROOT, USER, Server

STUDY = """\
version: 1
name: secret
workload: {name: digits, batch_size: 64, train_limit: 300}
training: {epochs: 1, optimizer: {name: sgd}, device: cpu}
seeds: [0]
rates: {low: 1e-4, high: 1}
strategies: {grid: {name: grid, points: 2}}
"""
_FAULT = """
import os, sys
from lrsearch.storage import store
def broken(url, **_):
    raise RuntimeError(f"nothing at {url} and nothing at host=h password={os.environ['MARKER']} dbname=x")
store.open_store = broken
sys.argv = ["lrsearch", "ls"]
from lrsearch.cli import main
main()
"""


def _calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    """Yield every call of a function or method of this name in the package."""
    for path in (ROOT / "lrsearch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == name:
                yield path, node


def test_torch_loads_plain_weights_only() -> None:
    """Ruff's S rules, which are on, refuse pickle; its rule about torch.load is not among the stable ones."""
    calls = [(path, call) for path, call in _calls("load") if "torch" in ast.unparse(call.func)]
    assert calls
    for path, call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("weights_only") == "True", (path, call.lineno)


def test_no_statement_of_sql_is_text_with_values_in_it() -> None:
    """`exec_driver_sql` takes literals; what it is given here has no user's word in it."""
    for path, call in _calls("text"):
        assert ast.unparse(call.func) not in ("sa.text", "sqlalchemy.text"), (path, call.lineno)
    for path, call in _calls("exec_driver_sql"):
        assert isinstance(call.args[0], ast.Constant | ast.IfExp), (path, call.lineno)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(18)
    yield server
    server.close()


@contextmanager
def _watched_process_list(word: str = PASSWORD) -> Iterator[list[str]]:
    """Collect, until the block ends, every command line on this machine that holds the word."""
    seen: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_text(errors="replace")
                except OSError:
                    continue
                if word in line:
                    seen.append(line)

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    stop.set()
    thread.join()


@pytest.mark.postgres
def test_the_watch_would_see_a_password() -> None:
    word = "another-word"  # the test beside this one is not to see it
    command = [sys.executable, "-c", "input()", word]
    with _watched_process_list(word) as seen, subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not seen:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.communicate(b"\n")


Command = Callable[..., tuple[int, str]]


@pytest.fixture(params=["the URL", "pgpass", "a file"])
def command(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Command:
    """Run lrsearch in `tmp_path` on a new database whose password it gets in one of three ways."""
    url = server.new_database()
    bare = url.replace(f":{PASSWORD}", "")
    secret = tmp_path.parent / f"{tmp_path.name}-secret"
    secret.write_text(f"*:*:*:{USER}:{PASSWORD}" if request.param == "pgpass" else PASSWORD)
    secret.chmod(0o600)
    environment = {
        "the URL": {"LRSEARCH_DATABASE": url},
        "pgpass": {"LRSEARCH_DATABASE": bare, "PGPASSFILE": str(secret)},
        "a file": {"LRSEARCH_DATABASE": bare, "LRSEARCH_DATABASE_PASSWORD_FILE": str(secret)},
    }[request.param]
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path), "MARKER": PASSWORD}
    environment |= {"PATH": f"{server.programs}:{os.environ['PATH']}"}

    def run(*arguments: str, program: tuple[str, ...] = ("-m", "lrsearch")) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, *program, *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=200,
        )
        return done.returncode, done.stdout

    return run


@pytest.mark.postgres
def test_a_password_is_shown_nowhere(command: Command, server: Server, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    with _watched_process_list() as seen:
        said = [
            command("run-study", "study.yaml", "--json"),
            command("db", "backup", "--output", "copy.dump"),
            command("export", "secret", "--table", "attempts", "--format", "json", "--output", "attempts.json"),
        ]
        assert [code for code, _ in said] == [0] * 3, said
        said.append(command(program=("-c", _FAULT)))
        assert said[-1][0] == 1
        server.stop("fast")
        said.append(command("ls"))
        server.start()
        assert said[-1][0] == 4
    assert seen == []
    assert PASSWORD not in "".join(text for _, text in said)
    [log] = tmp_path.glob("lrsearch-*.log")  # the fault's traceback
    assert "nothing at postgresql" in log.read_text()
    restore = [str(server.programs / "pg_restore"), "--file=stored.sql", "copy.dump"]
    subprocess.run(restore, cwd=tmp_path, check=True)
    assert "lrsearch_attempt" in (tmp_path / "stored.sql").read_text()
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert PASSWORD.encode() not in file.read_bytes(), file


NOSY = """
import os, subprocess, torch
from pathlib import Path

def data():
    seen = subprocess.run(["env"], capture_output=True, text=True).stdout + repr(dict(os.environ))
    Path(__file__).with_name(f"seen{os.getpid()}").write_text(seen)
    inputs = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    return (inputs[:40], torch.arange(40) % 2), (inputs[40:], torch.arange(20) % 2)

def model():
    return torch.nn.Linear(2, 2)
"""
CALLABLE = "callable, model: 'nosy:model', data: 'nosy:data', batch_size: 8, python_path: ."
NOSY_STUDY = STUDY.replace("digits, batch_size: 64, train_limit: 300", CALLABLE)
CLR = "strategies: {clr: {name: range_tested, min_steps: 20}, "


@pytest.mark.parametrize(
    "command",
    [
        ("run-study",),
        pytest.param(("run-study", "--dry-run"), marks=pytest.mark.slow),
        pytest.param(("range-test",), marks=pytest.mark.slow),
    ],
)
def test_a_studys_own_code_sees_no_password_in_its_environment(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "nosy.py").write_text(NOSY)
    (tmp_path / "study.yaml").write_text(NOSY_STUDY.replace("strategies: {", CLR))
    done = subprocess.run(
        [sys.executable, "-m", "lrsearch", *command, "study.yaml", *_database_of(command)],
        cwd=tmp_path,
        env={
            **os.environ,
            "LRSEARCH_DATABASE": f"postgresql://u:{PASSWORD}@nowhere.invalid/x",
            "PGPASSWORD": PASSWORD,
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    [seen] = tmp_path.glob("seen*")
    assert "OMP_NUM_THREADS" in seen.read_text()
    assert PASSWORD not in seen.read_text()


def _database_of(command: tuple[str, ...]) -> tuple[str, ...]:
    return ("--database", "sqlite:///here.db") if command == ("run-study",) else ()


@pytest.mark.postgres
@pytest.mark.parametrize("executor", ["{name: inline}", "{name: process, slots: 1, threads_per_slot: 1}"])
@pytest.mark.parametrize("way", ["LRSEARCH_DATABASE", "PGPASSWORD"])
def test_the_database_is_reached_all_the_same(server: Server, tmp_path: Path, executor: str, way: str) -> None:
    url = server.new_database()
    given = {"LRSEARCH_DATABASE": url}
    if way == "PGPASSWORD":
        given = {"LRSEARCH_DATABASE": url.replace(f":{PASSWORD}", ""), "PGPASSWORD": PASSWORD}
    (tmp_path / "nosy.py").write_text(NOSY)
    (tmp_path / "study.yaml").write_text(f"{NOSY_STUDY}executor: {executor}\n")
    done = subprocess.run(
        [sys.executable, "-m", "lrsearch", "run-study", "study.yaml"],
        cwd=tmp_path,
        env={**os.environ, **given, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    seen = [path.read_text() for path in tmp_path.glob("seen*")]
    assert seen
    assert PASSWORD not in "".join(seen)
