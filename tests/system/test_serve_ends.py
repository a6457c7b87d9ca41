"""What ends a server, what it leaves when it ends, and what it says to those who still wait."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from tests.system.commands import command_of
from tests.system.serving import address_of, until

from coterie.api import Chunk, Coterie
from coterie.cli.listening import listen
from coterie.cli.serve import serve
from coterie.core.trace import read_trace
from coterie.server.app import make_app
from coterie.server.shutdown import Server

SERVE = command_of("serve", "demo", "--port", 0)


@contextmanager
def ran(server: Server) -> Iterator[tuple[threading.Thread, str]]:
    """A server that runs in a thread of its own, and the address of its chats."""
    with listen("127.0.0.1", 0) as listener:
        listener.listen()  # the server does so too, but only once it runs
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        serving.start()
        yield serving, f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130), (signal.SIGHUP, -signal.SIGHUP)],
)
def test_a_server_that_is_told_to_end_writes_its_trace(number: int, status: int, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    server = subprocess.Popen([*SERVE, "--trace", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        body = {"model": "demo", "messages": [{"role": "user", "content": "What is 47 plus 85?"}]}
        answer = httpx.post(f"{address_of(server)}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200
        server.send_signal(number)
        _, errors = server.communicate(timeout=60)
    finally:
        server.kill()
    assert server.returncode == status, errors
    assert "Traceback" not in errors
    assert "compute" in read_trace(path).lanes


def test_a_terminal_that_is_gone_leaves_the_grace(composition: Path) -> None:
    """The shell says so, and then the kernel: two signals that are one."""
    coterie = Coterie.open(str(composition))
    step, held = coterie.step, threading.Event()

    def first_words(within_s: float) -> list[Chunk]:
        return step(within_s) if held.is_set() or not coterie.parts.engine.metrics.drawn_tokens else []

    coterie.step = first_words
    server = Server(make_app(coterie), grace_s=60)
    with ran(server) as (serving, chat), ThreadPoolExecutor() as pool:
        body = {"model": "ada", "messages": [{"role": "user", "content": "for ada"}], "max_tokens": 20}
        waits = pool.submit(httpx.post, chat, json=body, timeout=30)
        until(lambda: coterie.parts.engine.metrics.drawn_tokens)
        server.handle_exit(signal.SIGHUP, None)
        until(lambda: not server.servers[0].is_serving())
        server.handle_exit(signal.SIGHUP, None)
        server.handle_exit(signal.SIGHUP, None)
        with pytest.raises(httpx.ConnectError):
            until(lambda: httpx.get(f"{chat}/none").is_error)
        held.set()
        answer = waits.result()
        serving.join(30)
    assert not serving.is_alive()
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 20


def test_a_server_that_ignores_its_terminal_goes_on_without_it() -> None:
    server = subprocess.Popen(["nohup", sys.executable, "-m", "coterie", *SERVE[3:]], stdout=subprocess.PIPE, text=True)
    try:
        url = address_of(server)
        server.send_signal(signal.SIGHUP)
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == -signal.SIGTERM
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(("signals", "grace_s"), [(1, 0.3), (2, 60.0), (3, 60.0)])
def test_who_still_waits_when_a_server_ends_is_told(
    signals: int, grace_s: float, composition: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """After the grace, or at a second or third signal: an error object, for a stream that has begun an error event."""
    coterie = Coterie.open(str(composition))
    step = coterie.step

    def first_words(within_s: float) -> list[Chunk]:
        chunks = step(within_s)
        if chunks:
            coterie.step = lambda within_s: time.sleep(0.01) or []  # the engine is busy for ever
        return chunks

    coterie.step = first_words
    server = Server(make_app(coterie), grace_s)
    with ran(server) as (serving, chat), ThreadPoolExecutor() as pool:
        body = {"model": "ada", "messages": [{"role": "user", "content": "for ada"}], "max_tokens": 100}
        with httpx.stream("POST", chat, json={**body, "stream": True}, timeout=30) as begun:
            lines = begun.iter_lines()
            next(lines)
            waits = pool.submit(httpx.post, chat, json=body, timeout=30)
            until(lambda: coterie.parts.engine.metrics.submitted == 2)
            for _ in range(signals):
                server.handle_exit(signal.SIGTERM, None)
            said = [line for line in lines if line][-1]
        refused = waits.result()
        serving.join(30)
    assert not serving.is_alive()
    assert refused.status_code == 503
    assert refused.json() == json.loads(said.removeprefix("data: "))
    assert "shut down" in refused.json()["error"]["message"]
    assert capfd.readouterr().err == ""


HANGS = """
import sys, threading
from coterie.api import Coterie
from coterie.cli.listening import listen
from coterie.server.app import make_app
from coterie.server.shutdown import Server
coterie = Coterie.open(sys.argv[1])
def hang(within_s):
    print("hangs", flush=True)
    threading.Event().wait()
coterie.step = hang
with listen("127.0.0.1", 0) as listener:
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    Server(make_app(coterie), 0.0).run(sockets=[listener])
"""


def test_a_step_that_never_comes_back_is_not_stronger_than_a_fourth_signal(composition: Path) -> None:
    command = [sys.executable, "-c", HANGS, str(composition)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, ThreadPoolExecutor() as pool:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            body = {"model": "ada", "messages": [{"role": "user", "content": "for ada"}]}
            asked = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=body, timeout=60)
            assert server.stdout.readline() == "hangs\n"

            def ended() -> bool:
                server.send_signal(signal.SIGTERM)
                time.sleep(0.1)  # signals that come together are one
                return server.poll() is not None

            until(ended)
            assert server.returncode == -signal.SIGTERM
        finally:
            server.kill()
        assert asked.exception() is not None or asked.result().status_code == 503


def test_who_asks_as_soon_as_the_address_is_printed_is_not_refused(
    composition: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the server runs: the request waits for it."""
    reached = []

    def run(self: Server, sockets: list[socket.socket]) -> None:
        with socket.create_connection(sockets[0].getsockname(), timeout=5):
            reached.append(sockets[0].getsockname()[1])

    monkeypatch.setattr(Server, "run", run)
    serve(str(composition), host="127.0.0.1", port=0)
    assert f"http://127.0.0.1:{reached[0]}" in capsys.readouterr().out


def test_how_long_answers_may_go_on_is_said(composition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graces = []
    monkeypatch.setattr(Server, "run", lambda self, sockets: graces.append((self._grace_s, self._config_s())))
    monkeypatch.setattr(Server, "_config_s", lambda self: self.config.timeout_graceful_shutdown, raising=False)
    serve(str(composition), host="127.0.0.1", port=0, grace=600.0)
    serve(str(composition), host="127.0.0.1", port=0)
    assert graces == [(600.0, 603), (5.0, 8)]


def test_an_idle_connection_is_the_clients_to_close(composition: Path) -> None:
    """Whoever else closes it may do so just when a request is on its way."""
    with Coterie.open(str(composition)) as coterie:
        idle_s = Server(make_app(coterie)).config.timeout_keep_alive
    for limits in (httpx.Limits(), openai.DEFAULT_CONNECTION_LIMITS):
        assert limits.keepalive_expiry is not None
        assert idle_s > 60 > limits.keepalive_expiry


def test_who_looks_on_and_takes_nothing_is_not_waited_for(composition: Path) -> None:
    coterie = Coterie.open(str(composition))
    app = make_app(coterie)
    server = Server(app, grace_s=600)  # that is for who asks
    with listen("127.0.0.1", 0) as listener, socket.socket() as reader:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.listen()  # the server does so too, but only once it runs
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        serving.start()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(listener.getsockname())
        reader.sendall(b"GET /v1/events HTTP/1.1\r\nHost: here\r\n\r\n")
        assert reader.recv(16) == b"HTTP/1.1 200 OK\r"

        told = threading.Event()

        def crowd(coterie: Coterie) -> None:
            for number in range(2000):  # far above what sockets and transports hold
                coterie.watch.routing(f"{number:01000}")
            told.set()

        app.state.worker.soon(crowd)
        assert told.wait(60)
        time.sleep(0.5)  # what the sockets hold is written; no matter if not
        server.handle_exit(signal.SIGTERM, None)
        serving.join(30)
        assert not serving.is_alive()
