"""`coterie ps`: what a running server says, in tables and as JSON, and a sentence where there is none."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from tests.system.commands import command_of
from tests.system.serving import served
from typer.testing import CliRunner, Result

from coterie.api import Coterie, Options
from coterie.cli import ps as module
from coterie.cli.main import app
from coterie.cli.ps import show


def run(*words: object, **environment: str) -> Result:
    return CliRunner(env={"COLUMNS": "90", **environment}).invoke(app, ["ps", *map(str, words)])


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row of the tables, by the first one."""
    found = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]
    return {cells[0]: cells[1:] for cells in found}


@pytest.fixture(scope="module")
def server(composition: Path) -> Iterator[tuple[str, Coterie]]:
    """Room for two of four; one is pinned, two have answered."""
    coterie = Coterie.open(composition, Options(near_bytes=200 * 1024))
    with served(coterie) as url, httpx.Client(base_url=url, timeout=60) as client:
        for name in ("bob", "ada"):
            body = {"model": name, "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert client.post("/v1/models/ada/pin").status_code == 200
        yield url, coterie


def test_tables_say_who_is_where(server: tuple[str, Coterie]) -> None:
    url, coterie = server
    got = run("--url", url)
    assert got.exit_code == 0, got.output
    assert f"at {url}: 2 of 4 experts resident, 0 requests running, 0 waiting" in got.stdout
    found = rows(got.stdout)
    assert [name for name in found if name in coterie.models] == ["ada", "bob", "cyd", "dan"]
    state, tier, pinned, size, last = found["ada"]
    assert (state, tier, pinned) == ("resident", "dram", "yes")
    assert float(size.removesuffix(" KiB")) == pytest.approx(coterie.models["ada"].layout.size_bytes / 1024, abs=0.01)
    assert last.endswith("s ago")
    assert found["cyd"] == ["absent", "disk", size, "never"]
    assert re.search(r"dram +experts +\d+\.\d\d KiB +\d+\.\d\d KiB +\d+% +2 experts", got.stdout)
    assert re.search(r"dram +KV cache +0 B +\d+\.\d\d \w+ +0% +\d+ blocks known", got.stdout)


def test_what_became_of_requests_by_priority_is_told_once_somebody_has_given_one(
    server: tuple[str, Coterie], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = server
    assert "priority" not in run("--url", url).stdout
    status = httpx.get(f"{url}/v1/status").json()
    assert status["priorities"]["usual"]["queued"]["count"] == 2
    behind = {"queued": {"count": 4, "sum_s": 8.0}, "ttft": {"count": 0, "sum_s": 0.0}}
    status["priorities"]["behind"] |= {"running": 1, "waiting": 3, "paused": 2, "pauses": 5, **behind}
    monkeypatch.setattr(module, "ask", lambda *_: status)
    found = rows(run("--url", url).stdout)
    assert found["behind"] == ["1", "3", "2", "5", "2 s", "-"]
    assert len(found["usual"]) == 2
    assert "urgent" not in found


def test_a_long_name_is_one_word(server: tuple[str, Coterie], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line may be wider than the terminal; what is looked at again is folded to fit it, or lines would be lost."""
    url, _ = server
    status, name = (
        httpx.get(f"{url}/v1/status").json(),
        "qwen2.5-coder-1.5b-instruct-q4_k_m.and-what-else-a-name-may-have",
    )
    status["experts"][0]["name"] = name
    monkeypatch.setattr(module, "ask", lambda *_: status)
    assert rows(run("--url", url).stdout)[name][:3] == ["resident", "dram", "yes"]
    folded = Console(width=80)
    with folded.capture() as capture:
        folded.print(show(status, url))
    assert max(map(len, capture.get().splitlines())) == 80
    assert name not in capture.get()


def test_json_is_the_servers_own(server: tuple[str, Coterie]) -> None:
    url, _ = server
    got = json.loads(run("--url", f"{url}/", "--json").stdout)
    again = httpx.get(f"{url}/v1/status").json()
    assert {**got, "now_s": 0} == {**again, "now_s": 0}
    assert sum(got["metrics"]["finished"].values()) == 2
    assert got["composition"] == "four"


def test_watch_looks_again_until_it_is_interrupted(
    server: tuple[str, Coterie], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = server
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", sleep)
    got = run("--url", url, "--watch", "0.5", "--json")
    assert got.exit_code == 0
    seen = [json.loads(line)["now_s"] for line in got.stdout.splitlines()]
    assert len(seen) == 3
    assert seen == sorted(set(seen))
    assert run("--url", url, "--watch", "0.5").exit_code == 0
    assert waits == [0.5] * 6


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:{free}", "no server answers: .*refused; start one with coterie serve, or say with --url"),
        ("127.0.0.1:8000", "is no address of a server; give one like http://127.0.0.1:8000"),
        ("file:///etc/passwd", "is no address of a server"),
        ("http://[::1", "is no address of a server"),
        ("http://127.0.0.1:{free}:1", "no server answers|is no address|what answers there"),
    ],
)
def test_where_no_server_is_one_sentence_says_so(url: str, words: str) -> None:
    with socket.socket() as deaf:  # its port is nobody else's, and it does not listen
        deaf.bind(("127.0.0.1", 0))
        got = run("--url", url.format(free=deaf.getsockname()[1]))
    assert got.exit_code == 2
    assert re.fullmatch(rf"coterie: \[.*({words}).*\n", got.stderr), got.stderr


@pytest.mark.parametrize("key", ["кл", "clé", "a\x01"])
def test_a_key_that_no_header_carries_is_said_to_be_the_fault(server: tuple[str, Coterie], key: str) -> None:
    got = run("--url", server[0], "--api-key", key)
    assert (got.exit_code, got.stderr[:22]) == (2, "coterie: [--api-key] a")


class Stranger(BaseHTTPRequestHandler):
    """A server of another kind: its answers are `said`, in turn."""

    said = ((200, b"<html>"), (200, b"[1]"), (404, b"{}"), (500, b'{"error": {"message": "[engine] stopped"}}'))
    asked = 0

    def do_GET(self) -> None:
        status, body = self.said[type(self).asked % len(self.said)]
        type(self).asked += 1
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_what_is_no_coterie_server_is_said_to_be_none() -> None:
    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = [run("--url", f"http://127.0.0.1:{server.server_port}") for _ in Stranger.said]
        server.shutdown()
    assert {got.exit_code for got in said} == {2}
    assert ["what answers there is no coterie server" in got.stderr for got in said] == [True, True, True, False]
    assert "the server answers 500: [engine] stopped" in said[3].stderr


def test_as_a_process_it_ends_when_it_is_interrupted(server: tuple[str, Coterie]) -> None:
    url, _ = server
    with subprocess.Popen(command_of("ps", "--url", url, "--json", "--watch", 0.1), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["composition"] == "four"
        process.send_signal(2)
        assert process.wait(20) == 0
