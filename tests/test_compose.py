"""docker-compose.yml, read by the real Compose: its rules, and its services' own commands started without containers.

No Docker engine is needed and none is used, so images are not built here. `db` is a PostgreSQL of the image's major
version, a volume or secret is a folder or file that stands in its place, and each service runs as its own user where
the tests run as root and that user can reach Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from tests.postgresql import ROOT, USER, Server

pytestmark = pytest.mark.postgres

COMPOSE = ROOT / "build" / "tools" / "bin" / "docker-compose"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
PASSWORD = "marker-of-compose"  # noqa: S105  # of a server that lives for a minute; searched for in all that is printed
TOKEN = "marker-of-ray-0123456789abcdef"  # noqa: S105  # likewise
SERVICES = ("db", "migrate", "ray-head", "ray-worker", "web", "worker", "worker-gpu")
STUDY = """\
version: 1
name: composed
workload: {name: digits, batch_size: 64, train_limit: 400}
training: {epochs: 10, optimizer: {name: sgd, momentum: 0.9}, device: cpu}
seeds: [0]
rates: {low: 1e-4, high: 1}
strategies: {grid: {name: grid, points: 6}}
"""
ON_RAY = STUDY.replace("points: 6}}", "points: 4}}") + "executor: {name: ray, slots: 2}\n"


def compose(*arguments: str, text: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    assert COMPOSE.exists(), "no Compose: `make postgres-test` installs it"
    file = ["--file", "-", "--project-directory", str(ROOT)] if text is not None else []
    return subprocess.run(
        [COMPOSE, *file, *arguments],
        cwd=ROOT,
        input=text,
        env={"PATH": os.environ["PATH"], "HOME": "/nowhere", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    """The file as Compose understands it."""
    read = compose("--profile", "*", "config", "--format", "json")
    assert read.returncode == 0, read.stderr
    parsed: dict[str, Any] = json.loads(read.stdout)
    return parsed


def test_compose_accepts_the_file_without_a_word() -> None:
    read = compose("config", "-q")
    assert (read.returncode, read.stdout, read.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("condition: service_healthy}", "condition: service_well}", "condition"),
        ("stop_grace_period: 60s", "stop_grace_periode: 60s", "stop_grace_periode"),
        ("      db: {condition: service_healthy}\n    mem", "      dv: {condition: service_healthy}\n    mem", "dv"),
    ],
)
def test_compose_finds_a_planted_error(right: str, wrong: str, complaint: str) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert right in text
    read = compose("config", "-q", text=text.replace(right, wrong))
    assert read.returncode != 0
    assert complaint in read.stderr


def test_the_services_are_these(model: dict[str, Any]) -> None:
    assert set(model["services"]) == set(SERVICES)
    assert model["services"]["worker-gpu"]["profiles"] == ["gpu"]
    [device] = model["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_more_rights_than_it_needs(model: dict[str, Any], name: str) -> None:
    service = model["services"][name]
    assert service["user"].split(":")[0] not in ("", "0", "root")
    assert service["read_only"]
    assert service["init"]
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["stop_grace_period"] == "1m0s"
    assert int(service["mem_limit"]) > 0
    assert service["pids_limit"] > 0
    assert re.fullmatch(r"[a-z]+:\d[\w.-]+", service["image"]), "a tag that says its version"
    assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ()))
    assert name == "migrate" or service["healthcheck"]["test"][0] == "CMD"
    assert not [volume for volume in service.get("volumes", ()) if "docker.sock" in volume["source"]]


def test_the_database_is_out_of_reach_and_on_its_volume(model: dict[str, Any]) -> None:
    database = model["services"]["db"]
    assert list(database["networks"]) == ["database"]
    assert model["networks"]["database"]["internal"]
    assert "ports" not in database
    [volume] = database["volumes"]
    assert (volume["type"], volume["target"]) == ("volume", "/var/lib/postgresql")  # from image 18 on not .../data


def test_the_nodes_of_ray_reach_each_other_alone_and_ask_for_a_token(model: dict[str, Any]) -> None:
    head, worker = model["services"]["ray-head"], model["services"]["ray-worker"]
    assert head["profiles"] == worker["profiles"] == ["ray"]
    assert list(worker["networks"]) == ["cluster"]
    assert model["networks"]["cluster"]["internal"]
    assert "ports" not in head
    assert "ports" not in worker
    for service in (head, worker):
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"  # noqa: S105  no secret, a place
        assert service["environment"]["RAY_USAGE_STATS_ENABLED"] == "0"
    assert [secret["source"] for secret in worker["secrets"]] == ["ray_token"]
    assert not [name for name in worker["environment"] if "DATABASE" in name]
    assert worker["depends_on"]["ray-head"]["condition"] == "service_healthy"


def test_services_start_in_order(model: dict[str, Any]) -> None:
    wanted = {"db": "service_healthy", "migrate": "service_completed_successfully"}
    for name in ("worker", "worker-gpu", "web", "ray-head"):
        assert {on: how["condition"] for on, how in model["services"][name]["depends_on"].items()} == wanted
    assert model["services"]["migrate"]["depends_on"]["db"]["condition"] == "service_healthy"


def test_no_password_is_in_the_file(model: dict[str, Any]) -> None:
    for service in model["services"].values():
        for name, value in service["environment"].items():
            assert name.endswith("_FILE") or "PASSWORD" not in name
            assert name.endswith("_PATH") or "TOKEN" not in name
            assert not re.search(r"://[^/]*:[^/]*@", value)


def test_the_image_runs_as_the_services_user(model: dict[str, Any]) -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert f"USER {model['services']['worker']['user']}" in lines
    assert 'ENTRYPOINT ["lrsearch"]' in lines
    assert all(re.search(r":\d+\.\d+\.\d+-", line) for line in lines if line.startswith("FROM"))
    version = re.search(r'__version__ = "(.*)"', (ROOT / "lrsearch" / "__init__.py").read_text())
    assert version
    assert model["services"]["worker"]["image"] == f"lrsearch:{version[1]}"


def test_the_recipe_names_variables_that_are_there() -> None:
    recipe = (ROOT / "docs" / "operations.md").read_text()
    known = set(re.findall(r"LRSEARCH_[A-Z_]+", (ROOT / "docker-compose.yml").read_text()))
    named = set(re.findall(r"LRSEARCH_[A-Z_]+", recipe))
    assert named <= known
    assert known - named == {"LRSEARCH_CACHE"}


# The services' commands, without containers


class Stage:
    """Stands in for the engine: starts services' commands with their environment, users, volumes and secrets."""

    def __init__(self, folder: Path, model: Mapping[str, Any]) -> None:
        self.model = model
        self._folder = folder
        self._volumes = {name: self._new_folder(f"volume-{name}") for name in model["volumes"]}
        self.server: Server | None = None
        self._ray_port = _free_port()
        self.started: dict[str, subprocess.Popen[str]] = {}

    def _new_folder(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            os.chown(folder, 10001, 10001)
        return folder

    def order(self) -> list[str]:
        services = {name: service for name, service in self.model["services"].items() if "profiles" not in service}
        return list(
            TopologicalSorter(
                {name: service.get("depends_on", {}) for name, service in services.items()}
            ).static_order()
        )

    def _places(self, name: str) -> dict[str, Path]:
        """Return what stands in for each of the service's mounts."""
        service = self.model["services"][name]
        # A short name: Ray makes sockets below, whose paths have 107 bytes at most.
        places = {path.split(":")[0]: self._new_folder(f"t-{name}") for path in service.get("tmpfs", ())}
        for volume in service.get("volumes", ()):
            bound = volume["type"] == "bind"
            places[volume["target"]] = Path(volume["source"]) if bound else self._volumes[volume["source"]]
        for secret in service["secrets"]:
            # A bind mount shows the file without its folder, with its owner and mode: as a hard link does.
            link = self._folder / f"secret-{name}-{secret['source']}"
            link.unlink(missing_ok=True)
            link.hardlink_to(self.model["secrets"][secret["source"]]["file"])
            places[secret["target"]] = link
        return places

    def _placed(self, name: str, text: str) -> str:
        """Return a command's word, or a shell's line of them, with the places and addresses of this machine."""
        assert self.server is not None
        text = text.replace("$$(getent hosts ray | cut -d' ' -f1)", "127.0.0.1")
        text = text.replace("ray:6379", f"127.0.0.1:{self._ray_port}").replace(
            "--port=6379", f"--port={self._ray_port}"
        )
        text = text.replace("@db:5432/", f"@127.0.0.1:{self.server.port}/")
        return " ".join(self._placed_word(name, word) for word in text.split(" "))

    def _placed_word(self, name: str, word: str) -> str:
        for target, place in self._places(name).items():
            if word == target or word.startswith(f"{target}/"):
                return str(place) + word[len(target) :]
        return word

    def start(self, name: str, command: list[str] | None = None) -> subprocess.Popen[str]:
        """Start a service, or another command in its place."""
        service = self.model["services"][name]
        command = command or [*(service["entrypoint"] or ["lrsearch"]), *service["command"]]
        assert command[0] in ("lrsearch", "ray", "sh")
        programs = [sys.executable, "-m", "lrsearch"] if command[0] == "lrsearch" else command[:1]
        user = int(service["user"].split(":")[0]) if os.geteuid() == 0 and _others_may_run_us() else None
        environment = {key: self._placed(name, value) for key, value in service["environment"].items()}
        return subprocess.Popen(
            [*programs, *(self._placed(name, part) for part in command[1:])],
            cwd=self._placed(name, service["working_dir"]),
            env={"PATH": PATH, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def study(self, text: str) -> None:
        (self._folder / "studies" / "composed.yaml").write_text(text)

    def start_database(self) -> None:
        service = self.model["services"]["db"]
        environment = service["environment"]
        assert environment["POSTGRES_USER"] == USER
        password = self._places("db")[environment["POSTGRES_PASSWORD_FILE"]].read_text().strip()
        self.server = Server(
            int(service["image"].partition(":")[2].partition(".")[0]),
            password,
            shlex.split(environment["POSTGRES_INITDB_ARGS"]),
            " ".join(service["command"][1:]),
        )
        self.server.new_database(environment["POSTGRES_DB"])

    def is_healthy(self, name: str) -> bool:
        kind, *command = self.model["services"][name]["healthcheck"]["test"]
        assert kind == "CMD"
        if name == "db":
            assert self.server is not None
            program = self.server.programs / command[0]
            environment = {"PGPORT": str(self.server.port)}
            return subprocess.run([program, *command[1:]], env=environment, capture_output=True).returncode == 0
        check = self.start(name, command)
        check.communicate(timeout=120)
        return check.returncode == 0

    def wait_until_healthy(self, name: str) -> None:
        for _ in range(60):
            if self.is_healthy(name):
                return
            time.sleep(0.5)
        raise AssertionError(f"{name} did not become healthy")


def _others_may_run_us() -> bool:
    needed = (ROOT / "lrsearch", Path(sys.executable), Path(sys.executable).resolve())
    return all(folder.stat().st_mode & 0o001 for path in needed for folder in path.parents)


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


@pytest.fixture
def stage() -> Iterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="lrs-"))  # not tmp_path, whose parents others may not enter
    folder.chmod(0o755)
    (folder / "studies").mkdir()
    (folder / "studies" / "composed.yaml").write_text(STUDY)
    (folder / "secrets").mkdir(mode=0o700)
    for name, content in (("db_password", PASSWORD), ("ray_token", TOKEN)):
        (folder / "secrets" / name).write_text(f"{content}\n")
        (folder / "secrets" / name).chmod(0o444)
    file = (ROOT / "docker-compose.yml").read_text()
    variables = {"LRSEARCH_STUDY": "composed.yaml", "LRSEARCH_PORT": _free_port()}
    read = subprocess.run(
        [COMPOSE, "--file", "-", "--project-directory", folder, "--profile", "*", "config", "--format", "json"],
        input=file,
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    stage = Stage(folder, json.loads(read.stdout))
    yield stage
    for process in stage.started.values():
        process.kill()
        process.communicate()
    _end_processes_of(folder)
    if stage.server is not None:
        stage.server.close()
    shutil.rmtree(folder)


def _end_processes_of(folder: Path) -> None:
    """End what Ray has started in the background, as a container's end would."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


def _ask(url: str, **headers: str) -> tuple[int, dict[str, str], str]:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # http, to ourselves
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def _process_list() -> str:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return "\n".join(lines)


def test_the_services_work_together_in_the_order_of_the_file(stage: Stage) -> None:
    order = stage.order()
    assert order[:2] == ["db", "migrate"]
    stage.start_database()
    stage.wait_until_healthy("db")
    assert not stage.is_healthy("worker"), "there are no tables yet"

    migrate = stage.start("migrate")
    said, _ = migrate.communicate(timeout=120)
    assert migrate.returncode == 0, said

    for name in order[2:]:
        stage.started[name] = stage.start(name)
    seen = [_process_list()]  # now: the study may be done before each service is healthy
    while "lrsearch run-study" not in seen[-1] and stage.started["worker"].poll() is None:
        seen.append(_process_list())  # what starts the command has not come to that yet
    for name in order[2:]:
        stage.wait_until_healthy(name)
        seen.append(_process_list())
    assert any("lrsearch run-study" in processes for processes in seen)
    assert not any(PASSWORD in processes for processes in seen)

    worker = stage.started.pop("worker")
    trained, _ = worker.communicate(timeout=120)
    assert worker.returncode == 0, trained
    assert PASSWORD not in trained + said
    again = stage.start("worker")
    assert "is finished; nothing to run" in again.communicate(timeout=120)[0]

    [port] = stage.model["services"]["web"]["ports"]
    url = f"http://{port['host_ip']}:{port['published']}"
    assert "composed/grid/0" in _ask(f"{url}/api/studies")[2]
    assert '<a href="/reports/1">composed version 1</a>, finished' in _ask(f"{url}/reports")[2]
    status, headers, page = _ask(f"{url}/reports/1")
    assert (status, headers["Content-Security-Policy"].split(";")[0]) == (200, "sandbox allow-scripts allow-downloads")
    assert "composed" in page
    assert PASSWORD not in page
    assert _ask(f"{url}/reports/2")[0] == 404
    for path in ("/reports/..%2f..%2fetc%2fpasswd", "/reports/1%00", "/reports//etc/passwd"):
        assert "root:" not in _ask(url + path)[2]
    assert _ask(f"{url}/reports/1", Host="evil.example")[0] == 403
    assert stage.server is not None
    stage.server.stop("fast")
    assert _ask(f"{url}/reports")[0] == 503
    stage.server.start()
    for path in ("/reports", "/api/studies"):
        assert _ask(url + path)[0] == 200, "a restart of the database is no more than a pause"
    web = stage.started.pop("web")
    web.terminate()
    assert PASSWORD not in web.communicate(timeout=120)[0]


@pytest.mark.ray_long
def test_ray_trains_without_a_way_to_the_database(stage: Stage) -> None:
    pytest.importorskip("ray", reason="needs the extra ray: `make ray-test` installs it")
    stage.study(ON_RAY)
    stage.start_database()
    stage.wait_until_healthy("db")
    migrate = stage.start("migrate")
    assert migrate.wait(timeout=120) == 0
    migrate.communicate()
    for name in ("ray-head", "ray-worker"):
        stage.started[name] = stage.start(name)
        stage.wait_until_healthy(name)
    said, _ = stage.started.pop("ray-head").communicate(timeout=150)
    assert "Study composed version 1 is done" in said
    assert PASSWORD not in said
    assert TOKEN not in said + _process_list()
    assert stage.server is not None
