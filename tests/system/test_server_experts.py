"""Load, unload, pin and unpin over HTTP and in Python, also while others ask."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.system.serving import served
from tests.system.test_python import open_held
from tests.system.test_status import check_sums
from tests.system.tiny import write_expert

from coterie.api import Coterie, Message, Options, Query
from coterie.core.errors import ClosedError, ConflictError, NotFoundError
from coterie.server.models import model_list
from coterie.server.worker import Worker

NAMES = ("ada", "bob", "cyd", "dan")


def post(client: httpx.Client, path: str, status: int = 200) -> dict:
    got = client.post(f"/v1/models/{path}")
    assert got.status_code == status, got.text
    return got.json()


def test_what_is_asked_is_done_and_shown(composition: Path) -> None:
    with served(Coterie.open(composition)) as url, httpx.Client(base_url=url, timeout=60) as client:
        row = post(client, "ada/load?wait=true")
        assert (row["id"], row["coterie"]["state"], row["coterie"]["tier"]) == ("ada", "resident", "dram")
        assert post(client, "ada/load")["coterie"]["state"] == "resident"
        assert post(client, "ada/pin")["coterie"]["pinned"]
        error = post(client, "ada/unload", 409)["error"]
        assert (error["message"], error["code"]) == ("[unload ada] it is pinned; unpin it first", "conflict")
        assert not post(client, "ada/unpin")["coterie"]["pinned"]
        assert post(client, "ada/unload")["coterie"]["state"] == "absent"
        assert post(client, "ada/unload")["coterie"]["state"] == "absent"
        assert client.get("/v1/models/ada").json()["coterie"]["tier"] == "disk"
        for path in ("eve/load", "eve/pin", "four/unload", "four/load?wait=1"):
            assert post(client, path, 404)["error"]["code"] == "model_not_found"
        assert post(client, "ada/load?wait=perhaps", 400)["error"]["param"] == "wait"
        assert "did you mean POST /v1/chat/completions" in client.get("/nothing").json()["error"]["message"]


def test_rows_say_when_weights_were_written(tmp_path: Path) -> None:
    """The newest's, for the composition; 0 for experts without bytes."""
    for seed, (name, written_s) in enumerate((("ada", 1_700_000_000), ("bob", 1_600_000_000))):
        file = write_expert(tmp_path / "office" / name, seed) / "model.safetensors"
        os.utime(file, (written_s, written_s))
    with Coterie.open(tmp_path / "office") as coterie:
        rows = model_list(coterie)
    created = {row["id"]: row["created"] for row in rows}
    assert created == {"office": 1_700_000_000, "ada": 1_700_000_000, "bob": 1_600_000_000}
    # The same in the words of Anthropic's API.
    assert {row["display_name"]: row["created_at"] for row in rows}["bob"] == "2020-09-13T12:26:40Z"
    assert all((row["type"], row["max_input_tokens"]) == ("model", row["max_model_len"]) for row in rows)
    with Coterie.open("samba-coe-150", Options(device="synthetic:sn40l-node")) as coterie:
        assert {row["created"] for row in model_list(coterie)} == {0}


def test_the_list_is_one_page_of_anthropics(composition: Path) -> None:
    with served(Coterie.open(composition)) as url:
        found = httpx.get(f"{url}/v1/models").json()
    assert not found["has_more"]
    assert (found["first_id"], found["last_id"]) == (found["data"][0]["id"], found["data"][-1]["id"])


def test_a_load_is_begun_or_waited_for_and_a_busy_one_is_not_unloaded(composition: Path) -> None:
    coterie, arrives, waits = open_held(composition)
    with served(coterie) as url, httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
        arrives.clear()
        post(client, "ada/load", 202)
        assert waits.wait(20)
        assert client.get("/v1/models/ada").json()["coterie"]["state"] == "loading"
        waiting = pool.submit(post, client, "ada/load?wait=true")
        assert "it is being loaded" in post(client, "ada/unload", 409)["error"]["message"]
        assert not waiting.done()
        arrives.set()
        assert waiting.result(20)["coterie"]["state"] == "resident"
        assert coterie.parts.cache.stats.misses == 1


def test_who_waits_for_a_load_is_told_that_the_server_ends(composition: Path) -> None:
    coterie, arrives, waits = open_held(composition)
    worker = Worker(coterie)

    async def wait_for_a_load() -> None:
        waiting = asyncio.create_task(worker.wait_for_callback(lambda coterie, tell: coterie.load_soon("ada", tell)))
        assert await asyncio.to_thread(waits.wait, 20)
        worker.end()
        with pytest.raises(ClosedError, match="being shut down"):
            await asyncio.wait_for(waiting, 20)

    arrives.clear()
    worker.start()
    try:
        asyncio.run(wait_for_a_load())
    finally:
        arrives.set()
        worker.stop()


def test_a_load_that_comes_in_while_the_server_ends_is_refused(composition: Path) -> None:
    coterie = Coterie.open(composition)
    worker = Worker(coterie)

    async def load_late() -> None:
        worker.end()
        loading = asyncio.create_task(worker.wait_for_callback(lambda coterie, tell: coterie.load_soon("ada", tell)))
        await asyncio.sleep(0)  # now both are in the inbox
        worker.start()
        with pytest.raises(ClosedError, match="being shut down"):
            await asyncio.wait_for(loading, 20)

    asyncio.run(load_late())
    worker.stop()
    assert not coterie.parts.engine.control.pending_loads


def test_a_checkpoint_alone_has_its_state_in_the_row_of_the_composition(folder: Path) -> None:
    with served(Coterie.open(folder / "ada")) as url, httpx.Client(base_url=url, timeout=60) as client:
        (row,) = client.get("/v1/models").json()["data"]
        assert (row["id"], row["coterie"]["kind"], row["coterie"]["state"]) == ("ada", "composition", "absent")
        assert post(client, "ada/load?wait=true")["coterie"]["resident"]
        assert post(client, "ada/load")["coterie"]["state"] == "resident"


def test_a_pin_that_leaves_no_room_gets_409_and_numbers(composition: Path) -> None:
    """Room for two of four."""
    coterie = Coterie.open(composition, Options(near_bytes=200 * 1024))
    with served(coterie) as url, httpx.Client(base_url=url, timeout=60) as client:
        post(client, "ada/pin")
        message = post(client, "bob/pin", 409)["error"]["message"]
        assert message.startswith("[pin bob] the 2 pinned experts would take ")
        assert message.endswith("serve with a --near that is 4096 B larger")


def test_answers_are_the_same_whatever_is_done_with_experts_meanwhile(composition: Path) -> None:
    prompts = [(name, f"{n} for {name} " * (1 + n % 3)) for n in range(8) for name in NAMES]
    bodies = [
        {"model": name, "max_tokens": 10, "messages": [{"role": "user", "content": text}]} for name, text in prompts
    ]
    with Coterie.open(composition) as alone:
        queries = [Query((Message("user", text),), name, max_tokens=10) for name, text in prompts]
        right = [answer.text for answer in alone.ask_all(queries)]
    coterie = Coterie.open(composition, Options(near_bytes=200 * 1024))
    done = threading.Event()
    seen: list[tuple[str, int]] = []

    def handle(url: str) -> None:
        choice = random.Random(1)
        with httpx.Client(base_url=url, timeout=60) as client:
            while not done.is_set() or len(seen) < 60:
                what = choice.choice(("load", "load?wait=true", "unload", "pin", "unpin"))
                got = client.post(f"/v1/models/{choice.choice(NAMES)}/{what}")
                seen.append((what, got.status_code))

    async def ask_all(url: str) -> list[str]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            got = await asyncio.gather(*[client.post("/v1/chat/completions", json=body) for body in bodies])
        return [each.json()["choices"][0]["message"]["content"] for each in got]

    with served(coterie) as url, ThreadPoolExecutor(1) as pool:
        handling = pool.submit(handle, url)
        try:
            assert asyncio.run(ask_all(url)) == right
        finally:
            done.set()
        handling.result()
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
    assert {status for _, status in seen} <= {200, 202, 409}
    assert {"load", "load?wait=true", "pin", "unpin", "unload"} == {what for what, status in seen if status != 409}
    coterie.parts.cache.check_integrity()


def test_in_python(composition: Path) -> None:
    with Coterie.open(composition, Options(near_bytes=200 * 1024)) as coterie:
        stream = coterie.stream(Query((Message("user", "for ada"),), "ada", max_tokens=20, ignore_end=True))
        first = next(stream)
        with pytest.raises(ConflictError, match="1 requests of it are running"):
            coterie.unload("ada")
        coterie.load("bob")
        assert coterie.status().expert("bob").state == "resident"
        coterie.pin("bob")
        check_sums(coterie, coterie.status())
        assert sum(len(chunk.token_ids) for chunk in (first, *stream)) == 20
        coterie.unload("ada")
        coterie.ask_all([Query.text("x", name) for name in ("ada", "cyd", "dan")])
        status = coterie.status()
        assert (status.expert("bob").state, status.expert("bob").pinned) == ("resident", True)
        coterie.unpin("bob")
        coterie.load("ada")
        told: list[object] = []
        coterie.load_soon("cyd", told.append)
        assert not coterie.idle
        while not coterie.quiet:
            coterie.step()
        assert told == [None]
        with pytest.raises(NotFoundError, match="the experts are ada, bob, cyd, dan"):
            coterie.load("eve")
    for act in (coterie.load, coterie.unload, coterie.pin, coterie.unpin):
        with pytest.raises(ClosedError):
            act("ada")


def test_what_nobody_waits_for_any_more_can_be_unloaded_once_it_is_there(composition: Path) -> None:
    coterie, arrives, waits = open_held(composition)
    with coterie:
        arrives.clear()
        request = coterie.submit(Query.text("x", "ada"))
        coterie.step(0.01)
        assert waits.wait(20)
        coterie.cancel(request)
        while not coterie.idle:
            coterie.step(0.01)
        with pytest.raises(ConflictError, match="it is being loaded"):
            coterie.unload("ada")
        arrives.set()
        while not coterie.quiet:
            coterie.step(0.01)
        coterie.unload("ada")
        assert coterie.status().expert("ada").state == "absent"
