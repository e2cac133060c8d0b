"""What lrsearch serves to a browser: optuna-dashboard, on this machine alone.

The dashboard has no login and writes without asking, so it listens on 127.0.0.1 only, and requests that a foreign web
page sends there (by a name that resolves to us, or from another origin) are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from lrsearch.errors import UsageError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

HOST = "127.0.0.1"
LOCAL_NAMES = ("127.0.0.1", "localhost")


def serve_dashboard(database: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until Ctrl-C, after telling `announce` the URL; `port` 0 takes a free one.

    Raises UsageError when the port is taken, StorageError when there is no such database.
    """
    application = only_local(_dashboard(database))
    try:
        server = make_server(HOST, port, application, server_class=_Server, handler_class=_QuietHandler)
    except OSError as error:
        raise UsageError(f"Port {port} cannot be used: {error.strerror}. Choose another --port, or 0.") from error
    with server:
        announce(f"http://{HOST}:{server.server_port}/")
        server.serve_forever()


def _dashboard(database: str) -> WSGIApplication:
    import optuna
    import optuna_dashboard

    from lrsearch.storage.engine import connect_args, parse_url
    from lrsearch.storage.store import open_store

    open_store(database, must_exist=True).close()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = parse_url(database)
    storage = optuna.storages.RDBStorage(
        url.render_as_string(hide_password=False), engine_kwargs={"connect_args": connect_args(url)}
    )
    # Optuna's caching storage: polls take 0.08 s instead of 4.6 s at 5,000 trials (DESIGN, facts checked).
    application: WSGIApplication = optuna_dashboard.wsgi(optuna.storages.get_storage(storage))
    return application


def only_local(application: WSGIApplication) -> WSGIApplication:
    """Return `application` for requests that this machine's own pages send, and 403 for all others."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN")
        host = urlsplit(f"//{environ.get('HTTP_HOST', '')}")
        if host.hostname in LOCAL_NAMES and (origin is None or urlsplit(origin).netloc == host.netloc):
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"Only pages of this machine may use the dashboard.\n"]

    return guarded


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Keep quiet: the dashboard polls."""
