"""A stream whose expert is not in memory yet says so, and ends as its client expects."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from tests.system.serving import ask, served, until
from tests.system.test_server_events import Looking, client_of

from coterie.api import Coterie
from coterie.api import assemble as assembly
from coterie.core.errors import CapacityError


class Held:
    """A disk that waits until it is let go, and then fails if it is told to."""

    def __init__(self) -> None:
        self.go, self.fails = threading.Event(), False

    def read(self, *args):
        self.go.wait(20)
        if self.fails:
            raise OSError("the disk is on fire")
        return os.preadv(*args)


@pytest.fixture
def held(composition: Path) -> Iterator[tuple[Held, Coterie]]:
    disk = Held()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "CpuDevice", functools.partial(assembly.CpuDevice, read=disk.read))
        yield disk, Coterie.open(str(composition))
    disk.go.set()


BODY = {"model": "four", "stream": True, "max_tokens": 3, "messages": [{"role": "user", "content": "for ada"}]}


def test_a_stream_that_waits_for_its_expert_says_so_at_once(held: tuple[Held, Coterie], monkeypatch) -> None:
    disk, coterie = held
    monkeypatch.setattr("coterie.server.opening.EVERY_S", 0.1)
    with served(coterie) as url, httpx.stream("POST", f"{url}/v1/chat/completions", json=BODY, timeout=20) as got:
        assert got.status_code == 200
        lines = (line for line in got.iter_lines() if line)
        size = coterie.models["ada"].layout.size_bytes
        assert [next(lines), next(lines)] == [f": waiting for ada, 0 B of {size / 1024:.2f} KiB"] * 2
        disk.go.set()
        rest = list(lines)
    data = [line for line in rest if not line.startswith(": ")]
    assert json.loads(data[0].removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
    assert data[-1] == "data: [DONE]"


def test_clients_do_not_see_that_a_stream_waited(held: tuple[Held, Coterie], monkeypatch) -> None:
    disk, coterie = held
    monkeypatch.setattr("coterie.server.opening.EVERY_S", 0.05)
    with served(coterie) as url, client_of(url) as client:
        stream = ask(client, "for ada", stream=True)
        time.sleep(0.3)
        disk.go.set()
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == ask(client, "for ada").choices[0].message.content


def test_who_leaves_while_his_stream_waits_is_cancelled(held: tuple[Held, Coterie]) -> None:
    disk, coterie = held
    with served(coterie) as url:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=BODY, timeout=20) as got:
            assert next(got.iter_lines()).startswith(": waiting for ada")
        until(lambda: coterie.idle)
        disk.go.set()
        assert coterie.parts.engine.metrics.finished["cancelled"] == 1


def test_what_fails_after_it_was_accepted_is_an_event(held: tuple[Held, Coterie]) -> None:
    disk, coterie = held
    disk.fails = True
    with served(coterie) as url, client_of(url) as client:
        stream = ask(client, "for ada", stream=True)
        look = Looking(url)
        disk.go.set()
        with pytest.raises(openai.APIError, match="on fire"):
            list(stream)
        assert "on fire" in look.until("load_failed", expert="ada")["error"]
        assert "on fire" in look.until("ended", reason="error")["error"]
        look.close()


def test_what_is_refused_after_it_was_accepted_is_logged(
    held: tuple[Held, Coterie], caplog: pytest.LogCaptureFixture
) -> None:
    disk, coterie = held
    full = CapacityError("ada", "the expert", 2, 1, ["unpin others"])
    with served(coterie) as url, client_of(url) as client:
        stream = ask(client, "for ada", stream=True)
        with coterie._lock:
            coterie.parts.engine.fail(coterie.parts.engine.queue.of("ada"), full)
        with pytest.raises(openai.APIError, match="unpin others"):
            list(stream)
        disk.go.set()
    said = [record.getMessage() for record in caplog.records if record.name == "coterie.server"]
    assert said == [f"a stream 503: {full}"]


def test_what_is_refused_at_once_has_its_status(held: tuple[Held, Coterie]) -> None:
    _, coterie = held
    with served(coterie) as url, client_of(url) as client:
        with pytest.raises(openai.NotFoundError):
            ask(client, "x", model="elsewhere", stream=True)
        with pytest.raises(openai.BadRequestError, match="context of this expert"):
            ask(client, "for ada " + "x" * 300, stream=True)


def test_a_load_that_fails_at_once_keeps_its_status(held: tuple[Held, Coterie]) -> None:
    disk, coterie = held
    disk.fails = True
    disk.go.set()
    with served(coterie) as url, client_of(url) as client, pytest.raises(openai.InternalServerError, match="on fire"):
        ask(client, "for ada", stream=True)
