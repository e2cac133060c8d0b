"""What the dashboard's server does with requests of others, and with clients that go away."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING
from wsgiref.simple_server import make_server

import pytest

from lrsearch.web import HOST, _QuietHandler, _Server, only_local

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"answer"]


def status(**environ: str) -> str:
    told: list[str] = []
    list(only_local(application)(environ, lambda status, headers, *_: told.append(status) or bytes))  # type: ignore[func-returns-value]  # a server's own function, in short
    return told[0]


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:8080"])
def test_this_machines_own_pages_are_served(host: str) -> None:
    assert status(HTTP_HOST=host) == "200 OK"
    assert status(HTTP_HOST=host, HTTP_ORIGIN=f"http://{host}") == "200 OK"


@pytest.mark.parametrize("host", ["", "evil.example", "[::1", "[zz]", "127.0.0.1.evil.example"])
def test_other_hosts_are_refused_also_those_that_are_no_address(host: str) -> None:
    assert status(HTTP_HOST=host) == "403 Forbidden"


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "http://[", "http://[zz]"])
def test_other_origins_are_refused_also_those_that_are_no_address(origin: str) -> None:
    assert status(HTTP_HOST="localhost", HTTP_ORIGIN=origin) == "403 Forbidden"


def test_a_client_that_goes_away_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    with make_server(HOST, 0, application, server_class=_Server, handler_class=_QuietHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.daemon_threads = False  # so that the server's end waits for what it has to say
        with socket.create_connection((HOST, server.server_port)) as client:
            client.sendall(b"GET / HT")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets it
        with socket.create_connection((HOST, server.server_port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert client.makefile("rb").read().endswith(b"answer")
        server.shutdown()
    assert capfd.readouterr().err == ""
