"""Whether the process that holds a lease still lives."""

from __future__ import annotations

import subprocess
import sys

from lrsearch.storage.owner import is_alive, is_dead, this_owner

_TELL = "from lrsearch.storage.owner import this_owner; print(this_owner(), flush=True); input()"


def _child() -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", _TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_this_process_lives() -> None:
    assert not is_dead(this_owner())
    assert is_alive(this_owner())


def test_a_killed_process_is_dead_even_before_its_parent_has_noticed() -> None:
    process, owner = _child()
    with process:
        assert not is_dead(owner)
        process.kill()
        while not is_dead(owner):  # a zombie until wait(); the test's time limit ends a loop that never does
            pass
        assert process.returncode is None
        process.wait()
        assert is_dead(owner)
        assert not is_alive(owner)


def test_a_reused_pid_is_another_process() -> None:
    host, pid, start, namespace = this_owner().rsplit(":", 3)
    assert is_dead(f"{host}:{pid}:{int(start) - 1}:{namespace}")


def test_nothing_is_known_of_other_machines_containers_and_strange_names() -> None:
    host, _, start, namespace = this_owner().rsplit(":", 3)
    gone = 2**22 + 1  # above Linux's largest pid
    assert is_dead(f"{host}:{gone}:{start}:{namespace}")
    assert not is_dead(f"other-{host}:{gone}:{start}:{namespace}")
    assert not is_dead(f"{host}:{gone}:{start}:{int(namespace) + 1}")
    assert not is_dead("someone")
    assert not is_alive(f"other-{this_owner()}")
    assert not is_alive("someone")
