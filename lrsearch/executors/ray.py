"""Trials on the nodes of a Ray cluster: on each slot's node a process like those of the executor `process`.

Ray places one actor per slot (`ray_node.Host`) and is asked for nothing else: it restarts and retries nothing. A node
has a lease, which each of its answers renews; when that has run out it is lost, whatever Ray says, and its trial runs
again elsewhere. A node that is not asked for half as long ends the trial itself, so two never work at one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lrsearch import checkpoint
from lrsearch.environment import SECRETS, THREAD_VARIABLES, is_loopback
from lrsearch.errors import (
    ClusterError,
    LrsearchError,
    MachineLostError,
    MissingExtraError,
    StorageError,
    UsageError,
    WorkerDiedError,
)
from lrsearch.executors import ray_node
from lrsearch.executors.process import death_of, refuse_one_device
from lrsearch.executors.slots import Slot, SlotsExecutor, Worker
from lrsearch.interfaces import Channel, RunTrials, Settings
from lrsearch.interrupts import deferred
from lrsearch.trial import TrialResult, TrialSpec

POLL_SECONDS = 1.0
"""A node answers at least so often."""
STOP_SECONDS = 2.0
"""How long nodes have to end their processes, with all children, before Ray kills what keeps them."""
CODE_BYTES = 10_000_000


class Ray(Settings):
    """Trials run on `slots` slots of a Ray cluster, each a process with `threads_per_slot` CPUs and one or no GPU.

    Searches run side by side as with `process`. What is not part of what the study measures may change while it is
    stored: `address`, `wait_seconds`, `lost_after_seconds` and `allow_other_versions`.
    """

    name: Literal["ray"] = "ray"
    slots: Annotated[int, Field(ge=1, le=1024)] = 2
    threads_per_slot: Annotated[int, Field(ge=1)] = 1
    """CPUs that Ray keeps for the slot, and threads of torch for one operation."""
    asynchronous: bool = False
    patience_seconds: Annotated[float, Field(gt=0)] = 300.0
    """A trial without any progress for so long, and for 20 times its worker's longest pause, is given up as hung."""
    address: Annotated[str | None, Field(exclude=True)] = None
    """HOST:PORT, `auto` (the cluster that this machine is a node of) or `local`; by default what RAY_ADDRESS says, else
    `local`: a Ray of our own on this machine, for this study alone."""
    wait_seconds: Annotated[float, Field(gt=0, exclude=True)] = 60.0
    """How long Ray may take to place the slots, and how long the study may be without any."""
    lost_after_seconds: Annotated[float, Field(ge=4, exclude=True)] = 30.0
    """A node that has not answered for so long is lost. It ends its trial itself when not asked for half as long."""
    allow_other_versions: Annotated[bool, Field(exclude=True)] = False
    """Let nodes have other versions of Python, lrsearch, torch, torchvision, numpy and Ray than this process."""

    def start(self, device: str, code: Path | None = None) -> RayExecutor:
        """Return the executor. Raises UsageError, MissingExtraError, ClusterError."""
        refuse_one_device(device)
        modules = _modules(code) if code is not None else {}
        ray = _connect(self)
        gpus = int(device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1))
        return RayExecutor(self, gpus, modules)


def _modules(folder: Path) -> dict[str, bytes]:
    """Return the Python files in `folder`, by their place in it: what a node needs to import the user's code."""
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*.py"))]
    shown = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    found = {path.as_posix(): (folder / path).read_bytes() for path in shown}
    size = sum(map(len, found.values()))
    if size > CODE_BYTES:
        raise UsageError(
            f"workload.python_path {folder} holds {len(found)} Python files of {size / 1e6:.0f} MB, which each node of "
            f"the Ray cluster would get; at most {CODE_BYTES / 1e6:.0f} MB: give your modules a folder of their own."
        )
    return found


# The connection


def _connect(settings: Ray) -> Any:
    """Join the cluster, or start a Ray of our own, and return the module `ray`."""
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    if "://" in address:
        raise UsageError(
            f"executor.address {address!r}: the study's process must run on a node of the cluster, not behind Ray's "
            "client. Start it there, as with `ray start --address HOST:PORT --num-cpus 0`, and say HOST:PORT or auto."
        )
    is_elsewhere = address != "local" and not is_loopback(address.rpartition(":")[0].strip("[]"))
    options: dict[str, Any] = {"address": address}
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    # We watch nodes ourselves, and stop in order when the cluster is gone; Ray would abort this process.
    variables["RAY_gcs_rpc_server_reconnect_timeout_s"] = "86400"
    if address == "local":
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        options |= {
            "num_cpus": settings.slots * settings.threads_per_slot,
            "include_dashboard": False,
            "object_store_memory": 200_000_000,
            "_node_ip_address": "127.0.0.1",
        }
    elif is_elsewhere:
        _ask_for_token(address)
        variables["RAY_AUTH_MODE"] = "token"
    with _surroundings(variables):
        ray = _import_ray()
        if ray.is_initialized():
            raise UsageError("This process has joined a Ray cluster already: call ray.shutdown() before the study.")
        try:
            # Processes of a Ray that has half started would stay.
            with deferred(signal.SIGINT, signal.SIGTERM) if address == "local" else contextlib.nullcontext():
                ray.init(**options, log_to_driver=False, logging_level="ERROR")
            if is_elsewhere:
                _refuse_open_cluster(ray.get_runtime_context().gcs_address)
        except Exception as error:
            ray.shutdown()
            if isinstance(error, LrsearchError):
                raise
            raise ClusterError(
                f"The Ray cluster at {address!r} cannot be joined: {_first_line(error)} Is it running, is this machine "
                "a node of it, with the same Ray and Python, and is the token the same?"
            ) from error
        except BaseException:  # Ctrl-C or SIGTERM
            ray.shutdown()
            raise
    return ray


def _import_ray() -> Any:
    """Return the module, with the settings that are in the environment now; by itself it reads them once."""
    was_imported = "ray" in sys.modules
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("The executor 'ray'", "ray") from error
    from ray._private import utils, worker

    utils.set_sigterm_handler = lambda handler: None  # the study has its own
    # It would print a page of a raylet's log when a node is lost, which the study says in a line.
    worker.print_to_stdstream = lambda *arguments, **more: None
    if was_imported:
        from ray._raylet import AuthenticationTokenLoader, Config

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
    return ray


def _ask_for_token(address: str) -> None:
    """Raise UsageError when token authentication is off here, or there is no token."""
    home = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or home.is_file()
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or not has_token:
        raise UsageError(
            f"Ray at {address!r} can be reached from other machines, so it must ask for a token, and here "
            f"{'is none' if not has_token else 'RAY_AUTH_MODE says otherwise'}: `ray get-auth-token --generate` makes "
            "one in ~/.ray/auth_token; copy it to each node (mode 0600), and set RAY_AUTH_MODE=token here and before "
            "each `ray start`."
        )


PROBE = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=10)
"""


def _refuse_open_cluster(address: str) -> None:
    """Raise UsageError when the cluster answers those who show no token: whoever reaches it can run programs there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    probe = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", PROBE, address],
        env={**environment, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        timeout=60,
    )
    if probe.returncode == 0:
        raise UsageError(
            f"Ray at {address!r} can be reached from other machines and asks for no token, so that anyone there can "
            "run programs on its nodes: set RAY_AUTH_MODE=token on each node before `ray start`."
        )


@contextmanager
def _surroundings(variables: Mapping[str, str]) -> Iterator[None]:
    """Add these to the environment, without what a Ray started here must not inherit; afterwards it is as before."""
    before = dict(os.environ)
    os.environ |= variables
    for name in SECRETS:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else f"{type(error).__name__}."


# Slots


class RayExecutor(SlotsExecutor["_RaySlot"]):
    """Runs trials on the nodes of the cluster that this process has joined."""

    def __init__(self, settings: Ray, gpus: int, code: Mapping[str, bytes]) -> None:
        self._wait_seconds = settings.wait_seconds
        self._last_place = time.monotonic()
        deadline = self._last_place + settings.wait_seconds
        super().__init__([_RaySlot(settings, gpus, code, deadline) for _ in range(settings.slots)])

    def has_place(self, slot: int) -> bool:
        """Whether a trial can begin there now. Raises ClusterError, and UsageError for a node of other versions."""
        for one in self._slots:
            if one.failure is not None:
                raise one.failure
        if any(one.is_placed for one in self._slots):
            self._last_place = time.monotonic()
        elif time.monotonic() - self._last_place > self._wait_seconds:
            raise ClusterError(
                f"All nodes of the study's slots are lost, and Ray has had no others for {self._wait_seconds:g} s "
                "(executor.wait_seconds). What was done is stored: the same command continues when they are back."
            )
        return self._slots[slot].is_placed

    def versions(self, slot: int) -> Mapping[str, str]:
        return self._slots[slot].versions

    def close(self) -> None:
        import ray

        if not ray.is_initialized():
            return
        stopping = [slot.worker.stop() for slot in self._slots if slot.worker is not None]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=STOP_SECONDS)
        super().close()
        ray.shutdown()


class _RaySlot(Slot["_RayWorker"]):
    """A worker on a node that Ray chooses; when the node is lost, on another one as soon as there is one."""

    def __init__(self, settings: Ray, gpus: int, code: Mapping[str, bytes], deadline: float) -> None:
        super().__init__(self._start_worker)
        self._settings = settings
        self._gpus = gpus
        self._code = code
        self._deadline = deadline
        self._host: Any = None
        self._name = ""
        self.versions: Mapping[str, str] = {}
        self.is_placed = True
        self.failure: LrsearchError | None = None

    def run(self, run_trials: RunTrials, specs: Sequence[TrialSpec], channel: Channel) -> Sequence[TrialResult]:
        try:
            return super().run(run_trials, specs, channel)
        except MachineLostError:
            self.is_placed = False
            self._give_up_host()
            if not self.closed.is_set():
                self.thread.submit(self._find_another)
            raise

    def close(self) -> None:
        super().close()
        if self._host is not None:
            self._give_up_host()

    def _give_up_host(self) -> None:
        import ray

        host, self._host, self.worker = self._host, None, None
        with contextlib.suppress(Exception):  # it is gone, or out of reach, where it ends by itself
            ray.kill(host)

    def _find_another(self) -> None:
        """Take the next node that Ray has to give, for as long as the study runs."""
        self._deadline = float("inf")
        while not self.closed.is_set():
            try:
                self.living_worker(prepare=True)
            except MachineLostError:
                self._give_up_host()
                self.closed.wait(POLL_SECONDS)
                continue
            except WorkerDiedError:  # the next trial there will show whether that lasts
                pass
            except LrsearchError as error:
                self.failure = error
                return
            self.is_placed = True
            return

    def _start_worker(self) -> _RayWorker:
        if self._host is None:
            self._host = self._place()
        variables = dict.fromkeys(THREAD_VARIABLES, str(self._settings.threads_per_slot))
        begin = partial(self._host.start.remote, variables, self._code, self._settings.lost_after_seconds / 2)
        return _RayWorker(self._host, self._name, begin, self._settings, self.closed)

    def _place(self) -> Any:
        """Return an actor on a node that may be used. Raises ClusterError, UsageError, MachineLostError."""
        import ray

        actor = ray.remote(
            num_cpus=self._settings.threads_per_slot,
            num_gpus=self._gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
            scheduling_strategy="SPREAD",
        )(ray_node.Host)
        host = actor.remote()
        described = host.describe.remote()
        while not ray.wait([described], timeout=POLL_SECONDS)[0]:
            if self.closed.is_set() or time.monotonic() > self._deadline:
                ray.kill(host)
                raise ClusterError(self._no_room())
        try:
            self._name, self.versions = ray.get(described)
        except ray.exceptions.RayError as error:
            if "No module named 'lrsearch'" in str(error):
                raise UsageError(
                    "A node of the Ray cluster cannot import lrsearch: install the same version on each node, in the "
                    "environment that `ray start` runs in."
                ) from error
            raise MachineLostError(f"its node was lost: {_first_line(error)}", 0.0) from error
        self._check_versions(ray_node.versions())
        return host

    def _no_room(self) -> str:
        import ray

        there = ray.cluster_resources()
        return (
            f"Ray did not place {self._settings.slots} slots within {self._settings.wait_seconds:g} s "
            f"(executor.wait_seconds). Each takes {self._settings.threads_per_slot} CPU and {self._gpus} GPU of one "
            f"node, and the cluster has {there.get('CPU', 0):g} CPU and {there.get('GPU', 0):g} GPU in all. Lower "
            "executor.slots or executor.threads_per_slot, or add nodes."
        )

    def _check_versions(self, ours: Mapping[str, str]) -> None:
        differ = [
            f"{package} {version} (here {ours[package]})"
            for package, version in self.versions.items()
            if version != ours[package]
        ]
        if differ and not self._settings.allow_other_versions:
            raise UsageError(
                f"The node {self._name} has {', '.join(differ)}. Results from different versions do not compare: "
                "install the same, or say executor.allow_other_versions: true."
            )


class _RayWorker(Worker):
    """A process on another machine, at the other end of an actor. All but `kill` is for the slot's thread."""

    def __init__(self, host: Any, name: str, begin: Callable[[], Any], settings: Ray, closed: threading.Event) -> None:
        super().__init__(settings.patience_seconds)
        self._host = host
        self._name = name
        self._lost_after = settings.lost_after_seconds
        self._closed = closed
        self._heard = time.monotonic()
        self._orders: deque[tuple[Any, ...]] = deque()
        self._obeyed = 0
        self._taken = 0
        self._arrived: deque[tuple[Any, ...]] = deque()
        self._ended = False
        self._incoming: dict[str, checkpoint.Incoming] = {}
        self._checkpoints: dict[str, Path] = {}
        self._folder: str = self._ask(begin)

    def is_alive(self) -> bool:
        if not self._ended:
            self._exchange(0.0, busy=False)
        return not self._ended and not any(kind == "ended" for kind, *_ in self._arrived)

    def send(self, message: Any) -> None:
        self._orders.append(("wire", bytes(ForkingPickler.dumps(message))))

    def receive(self, timeout: float | None) -> tuple[Any, ...] | None:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            while self._arrived:
                kind, *content = self._arrived.popleft()
                if kind == "wire":
                    return ForkingPickler.loads(content[0])  # type: ignore[no-any-return]  # our own process's
                if kind == "checkpoint":
                    self._keep(*content)
                else:
                    self._ended = True
                    raise death_of(content[0])
            left = POLL_SECONDS if until is None else until - time.monotonic()
            if left <= 0:
                return None
            self._exchange(min(left, POLL_SECONDS), busy=True)

    def run(self, run_trials: RunTrials, specs: Sequence[TrialSpec], channel: Channel) -> Sequence[TrialResult]:
        """Run the trials there, with the checkpoints that they may go on from; those that they make come back."""
        self._checkpoints = {spec.uuid: Path(spec.checkpoint.folder) for spec in specs if spec.checkpoint}
        self._orders.append(("forget",))
        for uuid, folder in self._checkpoints.items():
            self._send_checkpoint(folder, uuid)
        there = [
            spec if spec.checkpoint is None else replace(spec, checkpoint=replace(spec.checkpoint, folder=self._folder))
            for spec in specs
        ]
        try:
            return super().run(run_trials, there, channel)
        finally:
            self._checkpoints = {}

    def _converse(self, order: tuple[Any, ...], report: Callable[..., bool], *, watched: bool) -> Any:
        answer = super()._converse(order, report, watched=watched)
        # It may be long until it is asked again. Whether that arrives matters little: a process can be started anew.
        self._host.exchange.remote(self._folder, self._obeyed, [], self._taken, 0.0, busy=False)
        return answer

    def kill(self) -> None:
        self._ended = True
        with contextlib.suppress(Exception):  # it is gone, or out of reach, where it ends by itself
            self.stop()

    def stop(self) -> Any:
        """Have the process end, and return what Ray will answer."""
        return self._host.stop.remote(self._folder)

    def bury(self) -> None:
        pass

    def _send_checkpoint(self, folder: Path, uuid: str) -> None:
        found = checkpoint.newest(folder, uuid)
        if found is None:
            return
        path = checkpoint.path_of(folder, found[0])
        with path.open("rb") as file:
            while piece := file.read(ray_node.PIECE_BYTES):
                self._orders.append(("keep", path.name, piece))
                self._exchange(0.0, busy=True)

    def _keep(self, name: str, piece: bytes, last: bool) -> None:
        """Put a piece of a checkpoint where the ledger looks for it, if its trial still runs here."""
        folder = self._checkpoints.get(name.partition(".")[0])
        if folder is None:
            return
        incoming = self._incoming.get(name) or checkpoint.Incoming(folder, name)
        self._incoming[name] = incoming
        incoming.append(piece)
        if last:
            incoming.finish()
            del self._incoming[name]

    def _exchange(self, wait_seconds: float, *, busy: bool) -> None:
        """Hand over the orders that wait, and take what there is to hear. Raises MachineLostError."""
        orders = list(self._orders)
        answer = self._ask(
            partial(
                self._host.exchange.remote, self._folder, self._obeyed, orders, self._taken, wait_seconds, busy=busy
            )
        )
        self._orders.clear()
        self._obeyed += len(orders)
        self._taken += len(answer)
        self._arrived += answer

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Return the node's answer. Raises MachineLostError when it has none for too long, or is known to be dead."""
        import ray

        self._heard = max(self._heard, time.monotonic() - POLL_SECONDS)
        asked = call()
        while True:
            try:
                if ray.wait([asked], timeout=POLL_SECONDS / 2)[0]:
                    answer = ray.get(asked)
                    self._heard = time.monotonic()
                    return answer
            except ray.exceptions.ActorUnavailableError:  # it may be reached again
                time.sleep(POLL_SECONDS / 5)
                asked = call()
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, OSError):
                    raise StorageError(
                        f"The node {self._name} cannot keep the study's code and checkpoints below its TMPDIR: "
                        f"{error.cause.strerror}. Mend that there and type the same command again; what was stored "
                        "before is kept."
                    ) from error
                raise  # a fault of ours
            except ray.exceptions.RayError as error:
                raise self._lost("has ended") from error
            if self._closed.is_set():
                raise self._lost("is given back")
            if time.monotonic() - self._heard > self._lost_after:
                raise self._lost(f"has not answered for {self._lost_after:g} s")

    def _lost(self, how: str) -> MachineLostError:
        self._ended = True
        return MachineLostError(f"its Ray worker on the node {self._name} {how}", time.monotonic() - self._heard)
