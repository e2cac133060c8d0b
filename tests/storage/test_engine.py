"""URLs, connections, units of work, and what a user reads when they fail."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from lrsearch.errors import StorageError, UsageError
from lrsearch.storage import engine as engine_module
from lrsearch.storage.engine import display_url, file_system_of, make_engine, parse_url, reader, transact, writer
from lrsearch.storage.store import open_store


def test_a_password_is_never_displayed() -> None:
    for url in (
        "postgresql://me:hunter2@db/lrsearch",
        "postgresql+psycopg://me@db/lrsearch?password=hunter2&sslpassword=hunter2",
    ):
        assert "hunter2" not in display_url(url)
        assert "hunter2" not in display_url(parse_url(url))
        assert "postgresql://me" in display_url(parse_url(url)), "as its user wrote it"
        assert "db/lrsearch" in display_url(url)


def test_a_url_that_cannot_be_read_is_refused_without_repeating_it() -> None:
    for url in ("my hunter2", "postgresql://me:hunter2@db:port/x"):
        with pytest.raises(UsageError, match=r"sqlite:///lrsearch\.db or postgresql:") as caught:
            open_store(url)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__
        assert "hunter2" not in display_url(url)


@pytest.mark.parametrize("password", ["2@hunter", "2@hunter/4", "2@@hunter"])
def test_what_follows_an_at_sign_in_a_password_is_not_taken_for_the_servers_name(password: str) -> None:
    with pytest.raises(UsageError, match=r"more than one @: in its password write %40") as caught:
        open_store(f"postgresql://me:{password}@db/x")
    assert "hunter" not in str(caught.value)
    assert parse_url(f"postgresql://me:{quote(password, safe='')}@db/x").password == password
    assert parse_url("postgresql://me@example.org:secret@db/x").username == "me@example.org"


@pytest.mark.parametrize("url", ["mysql://me:hunter2@db/x", "sqlite://", "sqlite:///:memory:"])
def test_a_database_that_cannot_keep_a_study_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_postgresql_is_reached_by_psycopg_3() -> None:
    for url in ("postgresql://me@db/x", "postgres://me@db/x"):
        assert parse_url(url).get_driver_name() == "psycopg"


def test_every_pooled_connection_is_durable_and_strict(tmp_path: Path) -> None:
    engine = make_engine(parse_url(f"sqlite:///{tmp_path / 'x.db'}"))
    connections = [engine.connect() for _ in range(3)]
    for connection in connections:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("journal_mode", "synchronous")]
        assert pragmas == ["wal", 2]  # 2 is FULL: https://www.sqlite.org/pragma.html#pragma_synchronous
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        connection.close()
    engine.dispose()


def test_readers_see_one_state_while_a_writer_commits(tmp_path: Path) -> None:
    engine = make_engine(parse_url(f"sqlite:///{tmp_path / 'x.db'}"))
    table = sa.Table("t", sa.MetaData(), sa.Column("x", sa.Integer))
    transact(writer(engine), lambda c: table.create(c))
    count = sa.select(sa.func.count()).select_from(table)

    def read(connection: sa.Connection) -> tuple[int, int]:
        first = connection.execute(count).scalar_one()
        transact(writer(engine), lambda c: c.execute(sa.insert(table).values(x=1)))
        return first, connection.execute(count).scalar_one()

    assert transact(reader(engine), read) == (0, 0)
    assert transact(reader(engine), lambda c: c.execute(count).scalar_one()) == 1
    engine.dispose()


def test_a_unit_of_work_waits_for_the_lock_before_it_reads(tmp_path: Path) -> None:
    """Two read-then-write units at once: with a deferred BEGIN one of them would fail or lose its increment."""
    engine = make_engine(parse_url(f"sqlite:///{tmp_path / 'x.db'}"))
    table = sa.Table("t", sa.MetaData(), sa.Column("x", sa.Integer))
    transact(writer(engine), lambda c: table.create(c))
    transact(writer(engine), lambda c: c.execute(sa.insert(table).values(x=0)))

    def increment(connection: sa.Connection) -> None:
        value = connection.execute(sa.select(table.c.x)).scalar_one()
        connection.execute(sa.update(table).values(x=value + 1))

    def many() -> None:
        for _ in range(50):
            transact(writer(engine), increment)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert transact(engine, lambda c: c.execute(sa.select(table.c.x)).scalar_one()) == 200
    engine.dispose()


def test_a_locked_database_is_tried_again_until_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "BUSY_SECONDS", 0.05)
    engine = make_engine(parse_url(f"sqlite:///{tmp_path / 'x.db'}"))
    transact(writer(engine), lambda c: None)
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"x\.db stayed locked .* by another program"):
        transact(writer(engine), lambda c: None, patience_seconds=0.2)
    release = threading.Timer(0.3, other.rollback)
    release.start()
    assert transact(writer(engine), lambda c: "done") == "done"
    release.join()
    other.close()
    engine.dispose()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere of the database x\.db does not exist; create it"):
        open_store(f"sqlite:///{tmp_path / 'nowhere' / 'x.db'}")


@pytest.mark.parametrize("must_exist", [True, False])
def test_a_file_that_no_path_leads_to_is_named(must_exist: bool) -> None:
    """As in a folder that may not be entered, which stops nobody who is root."""
    with pytest.raises(
        StorageError, match=r"x\.db cannot be reached: File name too long; .* another file with --database"
    ):
        open_store(f"sqlite:///{'x' * 300}.db", must_exist=must_exist)


def test_a_folder_is_not_a_database(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"is a folder; name a file in it"):
        open_store(f"sqlite:///{tmp_path}")


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("these are my notes, not a database\n" * 50)
    before = file.read_bytes()
    with pytest.raises(StorageError, match=r"notes\.db is not an SQLite database; give another file"):
        open_store(f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_a_reader_never_creates_a_database(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"There is no database .*x\.db"):
        open_store(f"sqlite:///{tmp_path / 'x.db'}", must_exist=True)
    assert list(tmp_path.iterdir()) == []


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw,relatime shared:2 - nfs4 server:/home rw
31 30 0:41 / /home/ann/größe\\040x rw,relatime - xfs /dev/sdb1 rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/var/lib", "ext4"), ("/home/ann", "nfs4"), ("/home/ann/größe x/y", "xfs"), ("/homely", "ext4")],
)
def test_the_nearest_mount_says_which_file_system(path: str, kind: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == kind


def test_a_mount_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = MOUNTS.encode() + b"32 22 0:42 /\xc2\xa0x /m\xe9\xe2\x80\xa8y rw,relatime - cifs //server/x rw\n"
    assert file_system_of(Path(os.fsdecode(b"/m\xe9\xe2\x80\xa8y/x")), os.fsdecode(named)) == "cifs"
    monkeypatch.setattr(Path, "read_bytes", lambda path: named)
    engine_module.check_sqlite_file(tmp_path / "x.db", must_exist=False)


def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = file_system_of(tmp_path.resolve(), Path("/proc/self/mountinfo").read_text())
    assert here not in ("", "nfs4")
    monkeypatch.setattr(engine_module, "NETWORK_FILE_SYSTEMS", frozenset({here}))
    with pytest.raises(StorageError, match=rf"network file system \({here}\).* on a local disk, or PostgreSQL"):
        open_store(f"sqlite:///{tmp_path / 'x.db'}")
    assert not (tmp_path / "x.db").exists()


@contextmanager
def _without_privileges() -> Iterator[None]:
    """Run as nobody when the tests run as root, whom no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_unwritable_folder_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, whose parents others may not enter
        Path(folder).chmod(0o555)
        with _without_privileges(), pytest.raises(StorageError, match=r"x\.db cannot be written.*give another file"):
            open_store(f"sqlite:///{folder}/x.db")


def test_a_full_disk_is_told_with_the_space_left_and_loses_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    engine = make_engine(parse_url(url))
    table = sa.Table("t", sa.MetaData(), sa.Column("x", sa.Text))
    transact(writer(engine), lambda c: table.create(c))

    @sa.event.listens_for(engine, "checkout")
    def limit(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("PRAGMA max_page_count=40").close()  # SQLite then says what it says of a full disk

    acknowledged = []

    def fill() -> None:
        for number in range(1000):
            transact(writer(engine), lambda c: c.execute(sa.insert(table).values(x="x" * 3000)))
            acknowledged.append(number)

    with pytest.raises(StorageError, match=r"x\.db cannot grow: .*full \([\d.]+ MB free in .*type the same command"):
        fill()
    written = len(acknowledged)
    assert written > 0
    assert transact(engine, lambda c: c.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()) == written
    assert transact(engine, lambda c: c.exec_driver_sql("PRAGMA integrity_check").scalar()) == "ok"
    engine.dispose()


def test_a_server_that_is_away_is_told_in_one_line_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setattr("lrsearch.storage.migrate._FIRST_CONTACT_SECONDS", 0.1)
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:1/x cannot be used: .*Is its server running\?") as caught:
        open_store("postgresql://me:hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_password_may_lie_in_a_file_that_its_user_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "password"
    secret.write_text("p@ss:w/ör d\n")
    monkeypatch.setenv("LRSEARCH_DATABASE_PASSWORD_FILE", str(secret))
    assert parse_url("postgresql://me@db/x").password == "p@ss:w/ör d"  # noqa: S105
    assert parse_url("postgresql://me:given@db/x").password == "given"  # noqa: S105
    secret.chmod(0o000)
    with _without_privileges(), pytest.raises(UsageError, match=r"cannot be read: Permission denied\. .* readable by"):
        parse_url("postgresql://me@db/x")
    secret.unlink()
    with pytest.raises(UsageError, match=r"_PASSWORD_FILE names .*password, which cannot be read: No such file"):
        parse_url("postgresql://me@db/x")


def test_a_bare_file_s_name_is_answered_with_its_url() -> None:
    with pytest.raises(UsageError, match=r"as a URL: sqlite:///runs/mine\.db for the file runs/mine\.db"):
        parse_url("runs/mine.db")
    with pytest.raises(UsageError) as caught:
        parse_url("me:hunter2@host/mine.db")
    assert "hunter2" not in str(caught.value)


def test_a_database_s_name_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(UsageError, match="this one cannot be read"):
        parse_url("sqlite:///b\udcff.db")


@pytest.mark.parametrize("more", ["?timeout=1", "?&x/y.db", "?"])
def test_a_question_mark_in_the_url_of_a_file_is_refused(more: str) -> None:
    with pytest.raises(UsageError, match="takes no settings, and its path no '\\?'"):
        parse_url(f"sqlite:///mine.db{more}")


def test_a_link_to_an_archived_file_is_read_and_an_archived_link_to_a_file_in_use_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, archive = tmp_path / "used", tmp_path / "archive"
    monkeypatch.setattr(os, "access", lambda folder, mode: Path(folder) != archive)  # root may write everywhere
    for folder, other in ((used, archive), (archive, used)):
        folder.mkdir()
        (folder / "x.db").touch()
        (folder / "link.db").symlink_to(other / "x.db")
    assert engine_module.is_archived(used / "link.db")
    assert not engine_module.is_archived(archive / "link.db")
    (archive / "x.db-wal").touch()
    assert not engine_module.is_archived(used / "link.db")


def test_links_that_lead_in_a_circle_are_no_fault_of_ours(tmp_path: Path) -> None:
    link = tmp_path / "x.db"
    link.symlink_to(link)
    with pytest.raises(StorageError, match="cannot be written: unable to open database file"):
        open_store(f"sqlite:///{link}")


def test_a_path_longer_than_sqlite_opens_is_said_to_be_too_long(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 200) / ("e" * 200) / ("f" * 100)
    folder.mkdir(parents=True)
    with pytest.raises(StorageError, match=r"no file whose path has more than 500 bytes, .* of x.db has \d+: give a"):
        open_store(f"sqlite:///{folder}/x.db")


def test_a_link_to_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = file_system_of(tmp_path.resolve(), Path("/proc/self/mountinfo").read_text())
    other = Path("/dev/shm")  # noqa: S108  # only a link is written there
    if not other.is_dir() or file_system_of(other, Path("/proc/self/mountinfo").read_text()) == here:
        pytest.skip("needs a second file system")
    monkeypatch.setattr(engine_module, "NETWORK_FILE_SYSTEMS", frozenset({here}))
    link = other / f"lrsearch-{os.getpid()}.db"
    link.symlink_to(tmp_path / "x.db")
    try:
        with pytest.raises(StorageError, match="network file system"):
            open_store(f"sqlite:///{link}")
    finally:
        link.unlink()


def test_a_server_without_room_for_another_connection_is_not_asked_whether_it_runs() -> None:
    full = sa.exc.OperationalError("", {}, Exception("FATAL:  sorry, too many clients already"))
    told = str(engine_module.translated(full, parse_url("postgresql://me@db/x")))
    assert told.endswith("sorry, too many clients already. End some of them, or raise max_connections.")


def test_a_server_that_answers_is_not_asked_whether_it_runs() -> None:
    errors = pytest.importorskip("psycopg").errors
    full = errors.DiskFull('could not extend file "base/5/1": No space left on device\nHINT:  Check free disk space.')
    told = str(engine_module.translated(sa.exc.OperationalError("", {}, full), parse_url("postgresql://me@db/x")))
    assert told.startswith("The database postgresql://me@db/x refused: could not extend file")
    assert told.endswith("HINT: Check free disk space.")


def test_nobody_waits_any_more_for_a_server_that_is_given_up() -> None:
    psycopg = pytest.importorskip("psycopg")
    url, absence, tries = parse_url("postgresql://me@db/x"), engine_module.Absence(), []

    def work() -> None:
        tries.append("one")
        raise sa.exc.OperationalError("", {}, psycopg.OperationalError("connection refused"))

    def waits() -> None:
        with pytest.raises(StorageError, match="connection refused"):
            engine_module.patiently(work, url, 600.0, absence)

    waiting = threading.Thread(target=waits)
    waiting.start()
    while len(tries) < 2:
        time.sleep(0.001)
    absence.is_given_up = True
    waiting.join()
    tries.clear()
    waits()
    assert tries == ["one"]


def test_who_finds_all_connections_in_use_waits_as_for_a_server_that_is_away(tmp_path: Path) -> None:
    """Each slot's sign of life takes one, and while the server is away they are given back late."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}", pool_size=1, max_overflow=0, pool_timeout=0.05)
    taken = engine.connect()
    with pytest.raises(StorageError, match=r"x\.db .* in use"):
        transact(engine, lambda c: None, patience_seconds=0.1)
    given_back = threading.Timer(0.2, taken.close)
    given_back.start()
    assert transact(engine, lambda c: "done", patience_seconds=60.0) == "done"
    given_back.join()
    engine.dispose()
