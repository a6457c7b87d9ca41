"""A connection that sends no head, or takes no answer, is not kept for ever; those that do are left alone."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.system.serving import until

from coterie.api import Coterie
from coterie.cli.listening import listen
from coterie.server import connections
from coterie.server.app import make_app
from coterie.server.shutdown import Server

HEALTH = b"GET /health HTTP/1.1\r\nHost: here\r\n"


@contextlib.contextmanager
def serving(coterie: Coterie, sent_bytes: int = 0) -> Iterator[tuple[Server, tuple[str, int]]]:
    server = Server(make_app(coterie), grace_s=0.0)
    with listen("127.0.0.1", 0) as listener:
        if sent_bytes:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sent_bytes)
        listener.listen()
        address = listener.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield server, address
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive()


def ends(client: socket.socket) -> bool:
    """Whether the server closes this connection, before the test fails for want of it."""
    client.settimeout(60)
    with contextlib.suppress(ConnectionResetError):
        while client.recv(65536):
            pass
    return True


@pytest.mark.parametrize("sent", [b"", b"G", HEALTH])
def test_who_sends_no_whole_head_is_let_go(sent: bytes, composition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    with (
        serving(Coterie.open(composition)) as (server, address),
        socket.create_connection(address) as slow,
    ):
        slow.sendall(sent)
        assert ends(slow)
        until(lambda: not server.server_state.connections)


def test_a_second_head_on_a_connection_has_its_time_too(composition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Coterie.open(composition)) as (_, address), socket.create_connection(address) as slow:
        slow.settimeout(60)
        slow.sendall(HEALTH + b"\r\n")
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        monkeypatch.setattr(connections, "HEAD_S", 0.2)
        slow.sendall(HEALTH)
        assert ends(slow)


def test_who_waits_for_an_answer_is_not_let_go(composition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the time for a head is beside that of the body and of the answer."""
    monkeypatch.setattr(connections, "HEAD_S", 0.05)
    coterie = Coterie.open(composition)
    body = json.dumps({"model": "ada", "messages": [{"role": "user", "content": "for ada"}], "max_tokens": 4}).encode()
    step, later = coterie.step, threading.Event()

    def slowly(within_s: float) -> list[object]:
        later.wait(0.3)
        return step(within_s)

    coterie.step = slowly
    with serving(coterie) as (_, address), socket.create_connection(address) as client:
        client.settimeout(60)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body[:10])
        later.wait(0.3)
        client.sendall(body[10:])
        assert client.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_who_takes_nothing_of_a_stream_is_cut(composition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are answered meanwhile."""
    monkeypatch.setattr(connections, "UNTAKEN_S", 0.2)
    coterie = Coterie.open(composition)
    with serving(coterie, sent_bytes=4096) as (server, address), socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(address)
        reader.sendall(b"GET /v1/events HTTP/1.1\r\nHost: here\r\n\r\n")
        assert reader.recv(16) == b"HTTP/1.1 200 OK\r"

        def crowd(coterie: Coterie) -> None:
            for number in range(1000):  # far above what sockets and transports hold
                coterie.watch.routing(f"{number:01000}")

        server._worker.soon(crowd)
        assert httpx.get(f"http://{address[0]}:{address[1]}/health").status_code == 200
        until(lambda: not any(one.scope and one.scope["path"] == "/v1/events" for one in connections_of(server)))


def connections_of(server: Server) -> tuple[connections.Connection, ...]:
    return tuple(server.server_state.connections)
