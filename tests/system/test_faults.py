"""Faults while serving: a request fails with a sentence, the engine goes on, and nothing is lost."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from coterie.api import Coterie, Message, Options, Query
from coterie.api import assemble as assembly
from coterie.core.errors import DeviceError, NotFoundError, TransferError
from coterie.server.app import make_app

ONE_EXPERT = 100 * 1024


def query(expert: str, text: str = "hello") -> Query:
    return Query((Message("user", text),), expert, max_tokens=5)


@pytest.fixture
def mine(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "mine"))


@pytest.fixture
def small(mine: Path) -> Iterator[Coterie]:
    """A budget of one expert, so that every change of expert reads the disk."""
    with Coterie.open(str(mine), Options(near_bytes=ONE_EXPERT)) as coterie:
        yield coterie


def test_a_file_that_changes_between_two_loads(small: Coterie, mine: Path) -> None:
    before = small.ask(query("ada")).token_ids
    small.ask(query("bob"))
    path = mine / "ada" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    with pytest.raises(TransferError, match=r"ada.*model\.safetensors"):
        small.ask(query("ada"))
    assert small.ask(query("bob")).token_ids
    path.write_bytes(data)
    with Coterie.open(str(mine), Options(near_bytes=ONE_EXPERT)) as again:
        assert again.ask(query("ada")).token_ids == before


def test_a_file_of_the_same_size_that_was_written_again(small: Coterie, mine: Path) -> None:
    small.ask(query("ada"))
    small.ask(query("bob"))
    path = mine / "ada" / "model.safetensors"
    path.write_bytes(path.read_bytes())
    with pytest.raises(TransferError, match=r"model\.safetensors"):
        small.ask(query("ada"))


def test_python_callers_may_leave_or_fail_without_harm(small: Coterie) -> None:
    stream = small.stream(query("ada"))
    next(stream)
    stream.close()
    with pytest.raises(NotFoundError):
        small.ask_all([query("ada"), query("nobody")])
    other = small.submit(query("bob"))
    assert small.ask(query("cyd")).expert == "cyd"
    chunks = []
    while not any(chunk.last for chunk in chunks):
        chunks += small.step()
    assert {chunk.request_id for chunk in chunks} == {other}
    small.parts.engine.check_integrity()


def test_a_stream_gets_what_came_while_others_asked(small: Coterie) -> None:
    whole = small.ask(query("ada"))
    stream = small.stream(query("ada"))
    said = [next(stream)]
    assert small.ask(query("cyd")).expert == "cyd"
    other = small.submit(query("bob"))
    said += list(stream)
    assert "".join(chunk.text for chunk in said) == said[-1].answer.text == whole.text
    chunks = []
    while not small.idle:
        chunks += small.step()
    assert {chunk.request_id for chunk in chunks} == {other}
    assert chunks[-1].last


def test_a_file_that_disappears_between_two_loads(small: Coterie, mine: Path) -> None:
    small.ask(query("ada"))
    small.ask(query("bob"))
    (mine / "ada" / "model.safetensors").unlink()
    with pytest.raises(TransferError, match=r"model\.safetensors"):
        small.ask(query("ada"))
    assert small.idle
    assert small.ask(query("cyd")).token_ids


@pytest.mark.parametrize("call", [lambda coterie: coterie.ask(query("bob")), lambda coterie: coterie.load("bob")])
def test_a_coterie_that_failed_is_closed_when_nobody_has_it_any_more(mine: Path, call) -> None:
    """At once, not by a collection that may come late or never: what it has reserved is most of the memory."""
    coterie = Coterie.open(str(mine), Options(near_bytes=ONE_EXPERT))
    (mine / "bob" / "model.safetensors").touch()
    with pytest.raises(TransferError, match="modification time"):
        call(coterie)
    closed, device = weakref.ref(coterie), coterie.parts.device
    gc.disable()
    try:
        del coterie
        assert closed() is None
        with pytest.raises(DeviceError, match="closed"):
            device.reserve("dram", 4096)
    finally:
        gc.enable()


class FlakyDisk:
    """Reads fail while `broken` is set."""

    def __init__(self) -> None:
        self.broken = False
        self._reads = 0

    def __call__(self, *args):
        self._reads += 1
        # Every other read, so that a fetch fails in its middle: some of its bytes have arrived.
        if self.broken and self._reads % 2 == 0:
            raise OSError(5, "Input/output error")
        return os.preadv(*args)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FlakyDisk:
    found = FlakyDisk()
    monkeypatch.setattr(assembly, "CpuDevice", functools.partial(assembly.CpuDevice, read=found))
    return found


def test_a_read_error_fails_one_request_and_the_server_goes_on(mine: Path, disk: FlakyDisk) -> None:
    coterie = Coterie.open(str(mine), Options(near_bytes=ONE_EXPERT))
    with TestClient(make_app(coterie)) as client:

        def post(expert: str, **more: object) -> httpx.Response:
            body = {"model": expert, "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}], **more}
            return client.post("/v1/chat/completions", json=body)

        assert post("ada").status_code == 200
        disk.broken = True
        failed = post("bob")
        assert failed.status_code == 500
        assert "Input/output error" in failed.json()["error"]["message"]
        assert "Input/output error" in post("bob", stream=True).text
        disk.broken = False
        assert post("bob").status_code == 200
        assert post("ada").status_code == 200
        coterie.parts.engine.check_integrity()
        coterie.parts.cache.check_integrity()


def test_weights_that_are_no_numbers_are_named_and_logged(mine: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the expert's name, to who asked and in the log; others' answers, and what was refused, only if they should."""
    path = mine / "bob" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-64:] = b"\xff" * 64
    path.write_bytes(data)
    caplog.set_level("INFO", "coterie.server")
    with TestClient(make_app(Coterie.open(str(mine)))) as client:

        def ask(expert: str) -> httpx.Response:
            body = {"model": expert, "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}
            return client.post("/v1/chat/completions", json=body)

        caplog.set_level("WARNING", "coterie.answers")
        said = [ask(name) for name in ("ada", "bob", "nobody")]
        assert [one.status_code for one in said] == [200, 500, 404]
        found = said[1].json()["error"]["message"]
        assert found.startswith("[bob] the logits of row 0 hold values that are not numbers (cpu); ")
        assert [record.getMessage() for record in caplog.records if "coterie" in record.name] == [
            f"chatcmpl-00000001 of bob: {found}"
        ]
        caplog.clear()
        caplog.set_level("INFO", "coterie.answers")
        ask("ada"), ask("nobody"), client.post("/v1/models/%1b%5b31mred/load")
    lines = [record.getMessage() for record in caplog.records if record.name == "coterie.answers"]
    assert lines[0].startswith("chatcmpl-00000002 of ada (confidence 1.00): length, ")
    assert lines[1].startswith("POST /v1/chat/completions 404: [mine] there is no expert 'nobody'")
    assert lines[2].startswith(r"POST /v1/models/\x1b[31mred/load 404: ")  # nothing that a terminal would take to heart
    assert len(lines) == 3
