"""Eight studies on one SQLite file, begun at once, beside an optuna-dashboard that reads it all the time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lrsearch.storage.maintenance import check_database
from tests.storage.test_processes import RUN, assert_all_is_there, start_script

TRIALS = int(os.environ.get("LRSEARCH_TRIALS", "12"))
NAMES = [f"study{number}" for number in range(8)]


@contextmanager
def _dashboard(url: str) -> Iterator[str]:
    """Run optuna-dashboard itself; give the address of its list of studies."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    with subprocess.Popen(
        [program, url, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as one:
        yield f"http://127.0.0.1:{port}/api/studies"
        one.terminate()


def _read(address: str) -> int:
    """Return the status of the answer, 0 for none."""
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310  our own
            answer.read()
            return int(answer.status)
    except OSError as error:
        return int(getattr(error, "code", 0))


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_eight_processes_and_a_reading_dashboard_share_a_file_without_a_word(tmp_path: Path) -> None:
    """`LRSEARCH_TRIALS` is the number of trials of each; `make faults` runs 100."""
    file = tmp_path / "shared.db"
    url = f"sqlite:///{file}"
    processes = [start_script(RUN, url, name, str(TRIALS)) for name in NAMES]
    while not file.exists():
        time.sleep(0.05)
    answers = []
    with _dashboard(url) as address:
        while any(process.poll() is None for process in processes) or 200 not in answers:
            answers.append(_read(address))
            time.sleep(0.1)
    for process in processes:
        assert process.communicate() == ("done\n", "")
        assert process.returncode == 0
    assert set(answers) == {0, 200} or set(answers) == {200}, "0: it had not started yet"
    assert check_database(url).faults == check_database(url).notes == []
    assert_all_is_there(url, NAMES, TRIALS)
