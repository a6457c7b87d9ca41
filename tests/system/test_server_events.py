"""What a running server tells those who look on, and those who wait for an expert."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from tests.system.serving import ask, served

from coterie.api import Coterie, Options
from coterie.server.events import ALIVE, Hub, Reader, encode, snapshot
from coterie.server.worker import Worker


class Looking:
    """Reads /v1/events in a thread."""

    def __init__(self, url: str) -> None:
        self.events: list[dict] = []
        self._client = httpx.Client(timeout=30)
        self._stream = self._client.send(self._client.build_request("GET", f"{url}/v1/events"), stream=True)
        assert self._stream.headers["content-type"].startswith("text/event-stream")
        self._lines = self._stream.iter_lines()

    def until(self, what: str, **facts: object) -> dict:
        """The next event of that name, with these facts."""
        for line in self._lines:
            if line.startswith("data: "):
                self.events.append(json.loads(line.removeprefix("data: ")))
                found = self.events[-1]
                if found["event"] == what and all(found[name] == fact for name, fact in facts.items()):
                    return found
        raise AssertionError(f"the stream ended before {what} {facts}: {self.events}")

    def close(self) -> None:
        self._stream.close()
        self._client.close()


@pytest.fixture
def looking(composition: Path) -> Iterator[tuple[Looking, str, Coterie]]:
    """A server with room for two of four experts, and one who looks on."""
    coterie = Coterie.open(str(composition), Options(near_bytes=200 * 1024))
    with served(coterie) as url:
        found = Looking(url)
        yield found, url, coterie
        found.close()


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_a_snapshot_comes_first(looking: tuple[Looking, str, Coterie]) -> None:
    look, url, _ = looking
    first = look.until("snapshot")
    assert len(look.events) == 1
    status = httpx.get(f"{url}/v1/status").json()
    assert first["composition"] == "four"
    assert [e["name"] for e in first["experts"]] == [e["name"] for e in status["experts"]]
    assert first["experts"][0]["description"] == "random ada"
    assert [(t["tier"], t["of"], t["residents"]) for t in first["tiers"]] == [("dram", "experts", [])]


def test_a_request_is_followed_from_its_route_to_its_end(looking: tuple[Looking, str, Coterie]) -> None:
    look, url, coterie = looking
    look.until("snapshot")
    with client_of(url) as client:
        got = ask(client, "for bob: a secret", max_tokens=6)
    end = look.until("ended")
    told = [event["event"] for event in look.events[1:]]
    told.remove("load_ended")  # the answer may begin, and end, before all of the expert is there
    assert told == ["routed", "queued", "load_begun", "admitted", "first_token", "ended"]
    by_name = {event["event"]: event for event in look.events}
    assert {e["request"] for e in look.events[1:] if "request" in e} == {got.id}
    assert {e["expert"] for e in look.events[1:]} == {"bob"}
    assert by_name["load_begun"] | {"from": "disk", "to": "dram", "evicted": []} == by_name["load_begun"]
    assert (
        by_name["load_begun"]["size_bytes"]
        == coterie.models["bob"].layout.size_bytes
        == by_name["load_ended"]["size_bytes"]
    )
    loaded = by_name["load_ended"]
    assert loaded["bytes_per_s"] == pytest.approx(loaded["size_bytes"] / loaded["seconds"])
    assert end["tokens"] == got.usage.completion_tokens
    assert (end["hit"], end["was"], end["reason"]) == (False, "running", got.choices[0].finish_reason)
    assert end["switch_s"] == pytest.approx(got.coterie["switch_s"])
    assert end["ttft_s"] == pytest.approx(got.coterie["ttft_s"])
    assert "secret" not in json.dumps(look.events)
    times = [event["at_s"] for event in look.events[1:]]
    assert times == sorted(times)


def test_who_goes_for_whom_is_told(looking: tuple[Looking, str, Coterie]) -> None:
    look, url, coterie = looking
    residents = set(look.until("snapshot")["tiers"][0]["residents"])
    with client_of(url) as client:
        for name in ("ada", "bob", "cyd", "dan", "ada"):
            ask(client, f"for {name}", max_tokens=2)
    for _ in range(5):
        look.until("ended")
    evicted = []
    for event in look.events:
        if event["event"] == "load_begun":
            evicted += [e["expert"] for e in event["evicted"]]
            residents.add(event["expert"])
        elif event["event"] == "evicted":
            residents.remove(event["expert"])
    assert evicted == [e["expert"] for e in look.events if e["event"] == "evicted"] != []
    assert residents == set(coterie.resident())


def test_who_cannot_be_served_ends_too(looking: tuple[Looking, str, Coterie]) -> None:
    look, url, _ = looking
    with client_of(url) as client, pytest.raises(openai.BadRequestError):
        ask(client, "for ada " + "x" * 300)
    end = look.until("ended")
    assert (end["reason"], end["expert"]) == ("refused", "ada")
    assert "context" in end["error"]


def test_what_is_done_by_hand_is_told(looking: tuple[Looking, str, Coterie]) -> None:
    look, url, _ = looking
    look.until("snapshot")
    for verb in ("load?wait=true", "pin", "unpin", "unload"):
        assert httpx.post(f"{url}/v1/models/cyd/{verb}").is_success
    look.until("dropped", expert="cyd", tier="dram")
    told = [event["event"] for event in look.events[1:]]
    assert told == ["load_begun", "load_ended", "pinned", "unpinned", "dropped"]


def test_nobody_is_told_once_who_looked_has_left(looking: tuple[Looking, str, Coterie]) -> None:
    look, url, coterie = looking
    look.until("snapshot")
    log, cache = coterie.parts.engine.log, coterie.parts.cache
    assert log.follower is not None
    assert cache.follower is not None
    second = Looking(url)
    second.until("snapshot")
    look.close()
    with client_of(url) as client:
        ask(client, "for ada", max_tokens=2)
        second.until("ended")
        second.close()
        deadline = time.monotonic() + 20
        while (log.follower or cache.follower) and time.monotonic() < deadline:
            ask(client, "for ada", max_tokens=2)  # a connection that is gone is noticed by what is sent
    assert (log.follower, cache.follower) == (None, None)


def test_a_slow_reader_loses_the_oldest_and_is_told_how_many() -> None:
    async def read() -> list[bytes]:
        reader = Reader(asyncio.get_running_loop(), max_events=3)
        reader.since("")
        for number in range(8):
            reader.put(encode("news", {"n": number}, number))
        reader.close()
        return [part async for part in reader.read()]

    lost, kept = asyncio.run(read())
    assert json.loads(lost.split(b"data: ")[1]) == {"event": "lost", "count": 5}
    assert [line for line in kept.splitlines() if line.startswith(b"id: ")] == [b"id: 5", b"id: 6", b"id: 7"]


def test_a_snapshot_comes_first_and_then_what_each_device_told_since_its_part_of_it() -> None:
    async def read() -> list[bytes]:
        reader = Reader(asyncio.get_running_loop(), max_events=4)
        reader.put(b"early ", "one")
        reader.since("one")
        reader.put(b"a ", "one")
        reader.put(b"early ", "two")
        reader.since("two")
        reader.put(b"b ", "two")
        reader.begin(b"snapshot ")
        reader.put(b"c ", "three")  # nobody knows it: it has come since
        reader.close()
        return [part async for part in reader.read()]

    assert asyncio.run(read()) == [b"snapshot a b c "]


def test_a_sleeping_reader_is_woken_from_another_thread_and_a_quiet_one_says_so(monkeypatch) -> None:
    monkeypatch.setattr("coterie.server.events.ALIVE_S", 0.05)

    async def read() -> list[bytes]:
        reader = Reader(asyncio.get_running_loop())
        reader.since("")
        parts = reader.read()
        found = [await anext(parts)]
        threading.Timer(0.02, reader.put, [b"news"]).start()
        while found[-1] != b"news":
            found.append(await anext(parts))
        reader.close()
        return [*found, *[part async for part in parts]]

    found = asyncio.run(read())
    assert found[0] == ALIVE
    assert found[-1] == b"news"


def test_a_server_that_ends_lets_its_readers_go(composition: Path) -> None:
    async def look() -> list[bytes]:
        worker = Worker(Coterie.open(str(composition)))
        hub = Hub(worker)
        worker.start()
        parts = hub.stream()
        found = [await anext(parts)]
        worker.end()
        found += [part async for part in parts]
        worker.stop()
        return found

    assert b"event: snapshot" in asyncio.run(look())[0]


def test_what_happens_before_the_snapshot_is_in_it(composition: Path) -> None:
    async def look() -> bytes:
        coterie = Coterie.open(str(composition))
        worker, step = Worker(coterie), threading.Event()
        hub = Hub(worker)
        worker.start()
        first, second = hub.stream(), hub.stream()
        await anext(first)

        def in_a_step(coterie: Coterie) -> None:
            step.wait(20)
            coterie.watch.routing("r")

        worker.soon(in_a_step)
        coming = asyncio.ensure_future(anext(second))
        await asyncio.sleep(0)  # it has asked, in the middle of the step
        step.set()
        found = await coming
        for parts in (first, second):
            await parts.aclose()
        worker.stop()
        return found

    assert asyncio.run(look()).startswith(b"id: 1\nevent: snapshot\n")


def test_one_reader_too_many_is_refused_until_another_leaves(
    looking: tuple[Looking, str, Coterie], monkeypatch: pytest.MonkeyPatch
) -> None:
    look, url, _ = looking
    look.until("snapshot")
    monkeypatch.setattr("coterie.server.events.MAX_READERS", 1)
    refused = httpx.get(f"{url}/v1/events")
    error = refused.json()["error"]
    assert (refused.status_code, error["message"].split()[1], error["code"]) == (429, "1", "rate_limit_exceeded")
    assert int(refused.headers["Retry-After"]) > 0
    look.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with httpx.stream("GET", f"{url}/v1/events") as got:
            if got.status_code == 200:
                return
    pytest.fail("who has left still counts")


def test_who_asks_for_headers_alone_is_no_reader(composition: Path) -> None:
    with served(Coterie.open(str(composition))) as url, httpx.Client(limits=httpx.Limits(max_connections=1)) as client:
        got = client.head(f"{url}/v1/events")
        assert client.get(f"{url}/health").status_code == 200  # on the same connection, so the first has ended
        assert got.status_code == 200
        assert got.headers["content-type"].startswith("text/event-stream")


def test_a_snapshot_says_who_takes_a_conversation(folder: Path, tmp_path: Path) -> None:
    for name in ("ada", "bob"):
        shutil.copytree(folder / name, tmp_path / name)
    for path in tmp_path.glob("bob/*"):
        if path.name in ("tokenizer_config.json", "chat_template.jinja"):
            path.unlink()
    with Coterie.open(tmp_path) as coterie:
        said = {
            expert["name"]: expert["chat_template"] for expert in snapshot(coterie, coterie.status(), [])["experts"]
        }
    assert said == {"ada": True, "bob": False}
