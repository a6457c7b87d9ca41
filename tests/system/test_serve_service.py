"""A server and who starts and watches it: a socket that is handed over, notices, and its status when it ends."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import pytest
from tests.system.commands import command_of
from tests.system.serving import address_of, until

from coterie.api import Coterie
from coterie.cli import listening
from coterie.cli.main import command
from coterie.cli.options import seconds
from coterie.cli.serve import serve
from coterie.core.errors import UsageError
from coterie.server.shutdown import Server
from coterie.server.supervisor import notify, watched_s

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "What is 47 plus 85?"}]}


def test_it_says_that_it_is_ready_works_and_ends(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(120)
        watched = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
        server = subprocess.Popen(
            command_of("serve", "demo", "--port", 0), env=os.environ | watched, stdout=subprocess.PIPE, text=True
        )
        try:
            url = address_of(server)
            assert manager.recv(100) == b"READY=1"
            assert httpx.get(f"{url}/health").status_code == 200
            assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            server.send_signal(signal.SIGTERM)
            while (said := manager.recv(100)) == b"WATCHDOG=1":
                pass
            assert said == b"STOPPING=1"
            assert server.wait(60) == -signal.SIGTERM
        finally:
            server.kill()
            server.communicate()


def test_nobody_is_told_where_nobody_asked(tmp_path: Path) -> None:
    notify("READY=1", {})
    notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})
    assert watched_s({}) is watched_s({"WATCHDOG_USEC": "0"}) is None
    assert watched_s({"WATCHDOG_USEC": "3000000"}) == 1.5
    assert watched_s({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_whose_engine_has_failed_ends_with_status_1(
    composition: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """So that it is started again; who waits is told first."""
    opened, told = [], []
    start, run = Coterie.open.__func__, Server.run  # type: ignore[attr-defined]

    def open_and_keep(*words: object) -> Coterie:
        opened.append(start(Coterie, *words))
        return opened[0]

    def break_it(within_s: float) -> None:
        raise MemoryError("a bug")

    def run_and_ask(self: Server, sockets: list[socket.socket]) -> None:
        host, port = sockets[0].getsockname()
        opened[0].step = break_it
        body = CHAT | {"model": "ada"}
        asking = threading.Thread(
            target=lambda: told.append(httpx.post(f"http://{host}:{port}/v1/chat/completions", json=body, timeout=60))
        )
        asking.start()
        run(self, sockets)
        asking.join(60)

    monkeypatch.setattr(Coterie, "open", open_and_keep)
    monkeypatch.setattr(Server, "run", run_and_ask)
    with pytest.raises(SystemExit) as ended:
        serve(str(composition), host="127.0.0.1", port=0, grace=0.1)
    assert ended.value.code == 1
    assert told[0].status_code >= 500
    assert "stopped in the middle of a step: MemoryError('a bug')" in told[0].json()["error"]["message"]


def test_a_socket_at_a_file(tmp_path: Path) -> None:
    path = tmp_path / "coterie.sock"
    server = subprocess.Popen(command_of("serve", "demo", "--uds", path), stdout=subprocess.PIPE, text=True)
    try:
        until(path.exists)
        with pytest.raises(UsageError, match="Address already in use"):
            listening.listen_at(path)
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=120) as client:
            until(lambda: _answers(client))
            forwarded = {"X-Forwarded-For": "203.0.113.7"}
            answer = client.post("/v1/chat/completions", json=CHAT, headers=forwarded).json()
            assert answer["choices"][0]["message"]["content"].endswith("132")
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=60)[0]
        assert f"unix:{path}" in said.replace("\n", "")
        assert f"--unix-socket {path} http://localhost/v1/chat/completions" in said.replace("\n", " ")
        assert not path.exists()
    finally:
        server.kill()
        server.communicate()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.ConnectError:
        return False


def test_what_another_server_left_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    left, file = tmp_path / "left", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(left))
    file.write_text("mine")
    with listening.listen_at(left) as found:
        assert found.getsockname() == str(left)
    with pytest.raises(UsageError, match="choose another --uds"):
        listening.listen_at(file)
    assert file.read_text() == "mine"


def test_a_socket_that_is_handed_over_goes_before_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as opened, socket.socket() as closed:
        given = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "OTHER": "1"}
        monkeypatch.setattr(listening, "FIRST_FD", os.dup(opened.fileno()))
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        with listening.listening("nowhere.invalid", 1) as found:
            assert found.getsockname() == opened.getsockname()
            assert found.proto == socket.IPPROTO_TCP  # by which asyncio sends at once
            assert "LISTEN_FDS" not in os.environ
        assert listening.handed_over(given | {"LISTEN_PID": "1"}) is None
        with pytest.raises(UsageError, match=r"is 2; give a .socket unit with one"):
            listening.handed_over(given | {"LISTEN_FDS": "2"})
        monkeypatch.setattr(listening, "FIRST_FD", os.dup(closed.fileno()))
        with pytest.raises(UsageError, match="no stream that is listened on"):
            listening.handed_over(dict(given))
        with (tmp_path / "file").open("w") as file:
            monkeypatch.setattr(listening, "FIRST_FD", file.fileno())
            with pytest.raises(UsageError, match="is no socket"):
                listening.handed_over(dict(given))


def test_a_server_may_have_as_many_files_open_as_the_system_lets_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        listening.more_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, listening.MAX_FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_unit_of_the_examples_asks_for_what_there_is() -> None:
    """Its options are known, and systemd waits longer than the grace before it kills."""
    lines = (Path(__file__).resolve().parents[2] / "examples" / "coterie.service").read_text().splitlines()
    unit = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    words = unit["ExecStart"].split()
    assert (words[0].rsplit("/", 1)[-1], words[1]) == ("coterie", "serve")
    known = {name for option in command("serve").params for name in option.opts}
    given = {word: value for word, value in itertools.pairwise(words) if word.startswith("--")}
    assert given.keys() <= known
    assert float(unit["TimeoutStopSec"].removesuffix("s")) >= seconds(given["--grace"]) + 10
    assert unit["RestartPreventExitStatus"] == "2"


def test_where_no_more_files_may_be_open_it_says_so_once_and_goes_on(tmp_path: Path) -> None:
    """Who is let go makes room for who waits."""
    said, limited = tmp_path / "stderr", ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh"]
    with said.open("w") as errors, contextlib.ExitStack() as clients:
        server = subprocess.Popen(
            [*limited, *command_of("serve", "demo", "--port", 0)], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            url = httpx.URL(address_of(server))
            for _ in range(60):
                clients.enter_context(socket.create_connection((url.host, url.port), timeout=60))
            until(lambda: "no more can be taken" in said.read_text())
            clients.close()
            assert httpx.get(f"{url}/health", timeout=60).status_code == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == -signal.SIGTERM
        finally:
            server.kill()
            server.communicate()
    lines = said.read_text().splitlines()
    assert len([line for line in lines if "raise ulimit -n" in line]) == 1
    assert len(lines) == 2, lines  # that, and that it was told to end
