"""What lrsearch serves to a browser: optuna-dashboard, and the studies' reports.

The dashboard has no login and writes without asking, so it listens on 127.0.0.1 unless told otherwise, and requests
that a foreign web page sends there (by a name that resolves to us, or from another origin) are always refused.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from html import escape
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from lrsearch.environment import is_loopback
from lrsearch.errors import LrsearchError, UsageError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from lrsearch.storage.store import Store

HOST = "127.0.0.1"
PATIENCE_SECONDS = 5.0
"""How long a request waits for a database that is away."""
SANDBOX = "sandbox allow-scripts allow-downloads; frame-ancestors 'none'"
"""A report's own scripts may draw, and its tables be saved, but they do not act on this origin, where the dashboard
would obey them."""

HEAD = (
    "<!doctype html><html lang='en'><meta name='viewport' content='width=device-width'>"
    "<meta name='color-scheme' content='light dark'>"
)
"""How the small pages begin: in the reader's colours, and as wide as a telephone."""


def serve_dashboard(
    database: str, port: int, announce: Callable[[str], None], *, host: str = HOST, exposed: bool = False
) -> None:
    """Serve until Ctrl-C, after telling `announce` the URL; `port` 0 takes a free one.

    Raises UsageError when the port is taken, or when `host` is not loopback and it is not said to be `exposed`;
    StorageError when there is no such database.
    """
    if not exposed and not is_loopback(host):
        raise UsageError(
            f"The dashboard has no login, and --host {host} would let others in: anyone who reaches it could change "
            "studies. Leave it on 127.0.0.1 and use an SSH tunnel, or add --exposed where a container's port mapping "
            "or a proxy with a login stands in front."
        )
    from lrsearch.storage.store import open_store

    with open_store(database, must_exist=True, patience_seconds=PATIENCE_SECONDS) as store:
        application = only_local(_with_reports(store, _dashboard(database)))
        try:
            kind = _ServerOf6 if ":" in host else _Server
            server = make_server(host, port, application, server_class=kind, handler_class=_QuietHandler)
        except OSError as error:
            raise UsageError(
                f"Port {port} of {host} cannot be used: {error.strerror}. Choose another --port, or 0."
            ) from error
        with server:
            own = host if is_loopback(host) else HOST
            announce(f"http://{f'[{own}]' if ':' in own else own}:{server.server_port}/")
            server.serve_forever()


def _dashboard(database: str) -> WSGIApplication:
    import optuna
    import optuna_dashboard

    from lrsearch.storage.engine import connect_args, optuna_url, parse_url, sqlite_path

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = parse_url(database)
    storage = optuna.storages.RDBStorage(
        optuna_url(url),
        engine_kwargs={"connect_args": connect_args(url), "pool_pre_ping": sqlite_path(url) is None},
    )
    # Optuna's caching storage: polls take 0.08 s instead of 4.6 s at 5,000 trials (measured).
    application: WSGIApplication = optuna_dashboard.wsgi(optuna.storages.get_storage(storage))
    return application


def _with_reports(store: Store, dashboard: WSGIApplication) -> WSGIApplication:
    """Return the dashboard with /reports, /reports/ID and /health before it."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        wanted = re.fullmatch(r"/reports/([0-9]{1,9})", path)
        try:
            if wanted is not None:
                return _answer(start_response, *_report(store, int(wanted[1])))
            if path in ("/reports", "/reports/"):
                return _answer(start_response, HTTPStatus.OK, _list_of_reports(store))
            if path == "/health":
                return _answer(start_response, HTTPStatus.OK, "ok")
        except LrsearchError as error:
            return _answer(start_response, HTTPStatus.SERVICE_UNAVAILABLE, escape(str(error)))
        return dashboard(environ, start_response)

    return application


def _report(store: Store, study_id: int) -> tuple[HTTPStatus, str]:
    from lrsearch.report import render

    for summary in store.studies():
        if summary.id == study_id:
            return HTTPStatus.OK, render(store.record(summary.name, summary.version))
    page = (
        f"{HEAD}<title>Reports</title><p>There is no such study; <a href='/reports'>those that are here</a>.</p></html>"
    )
    return HTTPStatus.NOT_FOUND, page


def _list_of_reports(store: Store) -> str:
    lines = "".join(
        f'<li><a href="/reports/{study.id}">{escape(study.name)} version {study.version}</a>, '
        f"{'finished' if study.finished else 'unfinished'}</li>"
        for study in store.studies()
    )
    return f"{HEAD}<title>Reports</title><h1>Reports</h1><ul>{lines}</ul></html>"


def _answer(start_response: StartResponse, status: HTTPStatus, page: str) -> Iterable[bytes]:
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": SANDBOX,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    start_response(f"{status.value} {status.phrase}", list(headers.items()))
    return [page.encode()]


def only_local(application: WSGIApplication) -> WSGIApplication:
    """Return `application` for requests that this machine's own pages send, and 403 for all others."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN")
        own = False
        with suppress(ValueError):  # of what is no address, as "[::1"
            host = urlsplit(f"//{environ.get('HTTP_HOST', '')}")
            own = is_loopback(host.hostname or "") and (origin is None or urlsplit(origin).netloc == host.netloc)
        if own:
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"Only pages of this machine may use the dashboard.\n"]

    return guarded


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128  # by default 5: others would wait a second and more to be let in

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about a browser that has closed its connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _ServerOf6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Keep quiet: the dashboard polls."""
