"""What takes long before a request can be asked keeps nobody else waiting: forms, long texts, large bodies."""

from __future__ import annotations

import ctypes
import gc
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from tests.system.serving import leaves, served, until
from tests.system.test_python import until_idle

from coterie.api import Coterie, Message, Query
from coterie.api.texts import Text
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.errors import RequestError
from coterie.core.resident import resident_bytes
from coterie.server import choices
from coterie.server.lengths import LONG_CHARS
from coterie.server.worker import POOL_THREADS

FORM = {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": {"enum": ["a", "b"]}}}}
TOOL = {"type": "function", "function": {"name": "add"}}
CHAT = {"model": "ada", "messages": [{"role": "user", "content": "x"}], "max_tokens": 6}
LONG = "x" * 70000


class Slow:
    """Lets who comes with `what` wait until it is told to go on."""

    def __init__(self) -> None:
        self.waits, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, function: Callable[..., Any], what: Callable[..., bool]) -> Callable[..., Any]:
        def slow(*args: Any, **kwargs: Any) -> Any:
            if what(*args):
                self.waits.release()
                assert self.go.wait(60)
            return function(*args, **kwargs)

        return slow


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    found = Slow()
    monkeypatch.setattr(Text, "choice", found(Text.choice, lambda text, query, *_: bool(query.form)))
    for name in ("encode", "has_more"):  # what is cut into tokens, and what is looked at before
        monkeypatch.setattr(Tokenizer, name, found(getattr(Tokenizer, name), lambda its, text, *_: LONG in text))
    yield found
    found.go.set()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", {**CHAT, **FORM}, 200),
        ("/v1/chat/completions", {**CHAT, **FORM, "model": "four", "n": 2}, 200),
        ("/v1/responses", {"model": "ada", "input": "x", "text": {"format": {"type": "json_object"}}}, 200),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": LONG}]}, 400),
        ("/v1/completions", {"model": "ada", "prompt": [LONG, "y"]}, 400),
        ("/tokenize", {"model": "ada", "prompt": LONG}, 200),
    ],
)
def test_others_are_answered_meanwhile(composition: Path, slow: Slow, path: str, body: Any, status: int) -> None:
    with served(Coterie.open(composition)) as url, ThreadPoolExecutor(1) as pool:
        late = pool.submit(httpx.post, f"{url}{path}", json=body, timeout=30)
        assert slow.waits.acquire(timeout=60)
        for _ in range(3):
            assert httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=10).status_code == 200
        until(lambda: httpx.get(f"{url}/v1/status", timeout=10).json()["metrics"]["submitted"] == 3)
        assert not late.done()
        slow.go.set()
        got = late.result()
        assert got.status_code == status, got.text
        if "response_format" in body:
            said = [choice["message"]["content"] for choice in got.json()["choices"]]
            assert set(said) <= {'"a"', '"b"'}


def test_long_texts_wait_for_no_form(composition: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    encode = Text.encode

    def seen(*args: Any, **named: Any) -> Any:
        threads.append(threading.current_thread().name)
        return encode(*args, **named)

    monkeypatch.setattr(Text, "encode", seen)
    with served(Coterie.open(composition)) as url, ThreadPoolExecutor(POOL_THREADS) as pool:
        form = {"json": {**CHAT, **FORM}, "timeout": 60}
        late = [pool.submit(httpx.post, f"{url}/v1/chat/completions", **form) for _ in range(POOL_THREADS)]
        for _ in late:
            assert slow.waits.acquire(timeout=60)
        threads.clear()
        for length in (LONG_CHARS, LONG_CHARS + 1):
            body = {**CHAT, "messages": [{"role": "user", "content": "x" * length}]}
            assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=10).status_code in (200, 400)
        assert [name.rpartition("_")[0] or name for name in threads] == ["coterie-engine", "coterie-reading"]
        slow.go.set()
        assert [one.result().status_code for one in late] == [200] * POOL_THREADS


def test_a_stream_whose_form_takes_long_says_that_it_waits(
    composition: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coterie.server.opening.PATIENCE_S", 0.3)
    body = {**CHAT, **FORM, "stream": True}
    with (
        served(Coterie.open(composition)) as url,
        httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=20) as got,
    ):
        lines = (line for line in got.iter_lines() if line)
        assert next(lines) == ": waiting"
        slow.go.set()
        *events, done = [line.removeprefix("data: ") for line in lines if not line.startswith(":")]
    assert done == "[DONE]"
    said = "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)
    assert said in ('"a"', '"b"')


def test_who_leaves_before_his_form_is_there_asks_nothing(
    composition: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    coterie, gone, left = Coterie.open(composition), choices._disconnect, threading.Event()

    async def noticed(request: Request) -> None:
        await gone(request)
        left.set()

    monkeypatch.setattr(choices, "_disconnect", noticed)
    with served(coterie) as url:
        leaves(url, "/v1/chat/completions", {**CHAT, **FORM}, lambda: slow.waits.acquire(timeout=60))
        assert left.wait(60)
        assert httpx.get(f"{url}/health").status_code == 200  # behind what calls off what was begun for him
        slow.go.set()
        assert httpx.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200
        until_idle(coterie)
        assert coterie.status().metrics.submitted == 1


def test_what_breaks_beside_the_engine_is_a_500_and_ends_nobody_else(
    composition: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(Coterie.open(composition)) as url, monkeypatch.context() as patch:
        patch.setattr(Text, "choice", lambda *_: 1 // 0)
        got = httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "tools": [TOOL], "tool_choice": "none", **FORM})
        assert (got.status_code, got.json()["error"]["type"]) == (500, "server_error")
        assert "division" in got.json()["error"]["message"]
        patch.undo()
        assert httpx.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200


def test_a_server_that_ends_answers_who_waits_for_his_form(composition: Path, slow: Slow) -> None:
    coterie = Coterie.open(composition)
    with served(coterie) as url, ThreadPoolExecutor(1) as pool:
        late = pool.submit(httpx.post, f"{url}/v1/chat/completions", json={**CHAT, **FORM}, timeout=30)
        assert slow.waits.acquire(timeout=60)
        threading.Timer(0.5, slow.go.set).start()
    assert late.result().status_code == 200


def refusals() -> list[object]:
    """All of them in memory; other tests may hold some. By type, since some objects warn when asked for a class."""
    return [one for one in gc.get_objects() if issubclass(type(one), RequestError)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["ada", "four"])
def test_a_refused_text_is_kept_by_no_circle(composition: Path, model: str, stream: bool) -> None:
    """Errors hold frames, and these texts: without a collector they are gone too."""
    body = {**CHAT, "model": model, "stream": stream, "messages": [{"role": "user", "content": LONG}]}
    with served(Coterie.open(composition)) as url, httpx.Client() as client:
        assert client.post(f"{url}/v1/chat/completions", json=body).status_code == 400
        gc.collect()
        before = refusals()
        gc.disable()
        try:
            for _ in range(3):
                assert client.post(f"{url}/v1/chat/completions", json=body).status_code == 400
            until(lambda: len(refusals()) == len(before))  # the last frames of the server are left soon
        finally:
            gc.enable()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc, which alone keeps so much")
def test_what_many_small_pieces_took_goes_back(composition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever needed it, in the thread that needed it, while a piece at its end is still in use."""
    libc, last, held = ctypes.CDLL(None), list[int](), list[int]()
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

    def wasteful(text: Text, *more: Any, **named: Any) -> Any:
        pieces = [libc.malloc(1000) for _ in range(100_000)]
        last.append(pieces.pop())
        for piece in pieces:
            libc.free(piece)
        held.append(resident_bytes())
        return encode(text, *more, **named)

    encode = Text.encode
    monkeypatch.setattr(Text, "encode", wasteful)
    monkeypatch.setattr("coterie.server.worker.FREED_S", 0.01)
    with served(Coterie.open(composition)) as url:
        body = {**CHAT, "messages": [{"role": "user", "content": "x" * (LONG_CHARS + 1)}]}
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20)
        until(lambda: held[0] - resident_bytes() >= 50_000_000)
    libc.free(last[0])


def test_python_finds_them_without_the_lock(composition: Path, slow: Slow) -> None:
    """Two threads share a Coterie: one compiles a form, the other one is answered."""
    with Coterie.open(composition) as coterie, ThreadPoolExecutor(1) as pool:
        held = Query((Message("user", "x"),), "ada", form='{"enum": ["a", "b"]}', max_tokens=6)
        late = pool.submit(coterie.ask, held)
        assert slow.waits.acquire(timeout=60)
        assert coterie.ask(Query.text("x", "ada")).expert == "ada"
        assert not late.done()
        slow.go.set()
        assert late.result().text in ('"a"', '"b"')
