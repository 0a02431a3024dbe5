"""Who may take the gateway's time: nobody without a key, and nobody for as long as they like."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest

from flywheel_tasks.serving import app
from tests.serving.conftest import Live

Start = Callable[..., Live]
PATHS = pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback"])


@contextmanager
def unfinished(gateway: Live, path: str, key: str = "") -> Iterator[socket.socket]:
    """A request whose body never comes to its end."""
    place = urlsplit(gateway.served.url)
    head = [f"POST {path} HTTP/1.1", "host: gateway", "content-length: 1000"]
    if key:
        head.append(f"authorization: Bearer {key}")
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.sendall("\r\n".join([*head, "", "{"]).encode())
        yield connection


def status(connection: socket.socket) -> int:
    return int(connection.recv(64).split()[1])


@PATHS
def test_without_a_key_no_body_is_waited_for_and_no_place_taken(make_live: Start, path: str) -> None:
    gateway = make_live(max_in_flight=1)
    with ExitStack() as stack:
        for key in ("", "fw-00000000-x"):
            assert status(stack.enter_context(unfinished(gateway, path, key))) == 401
        assert gateway.gateway.in_flight == 0
        assert gateway.chat("Hi").status_code == 200
    text = gateway.client.get("/metrics").text
    assert f'flywheel_requests_total{{path="{path}",status="401"}} 2' in text


@PATHS
def test_a_body_that_does_not_come_is_given_up(
    make_live: Start, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_BODY_SECONDS", 0.2)
    gateway = make_live(max_in_flight=1)
    with unfinished(gateway, path, gateway.keys["ann"]) as connection:
        assert status(connection) == 408
        assert gateway.gateway.in_flight == 0
        assert gateway.chat("Hi").status_code == 200
