"""A device of several that breaks: what it had goes on elsewhere, or ends, once; and the server goes on with the rest.

Faults are planted in one device's steps. None of these tests says how long anything takes.
"""

from __future__ import annotations

import shutil
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.system.fleets import NAMES, TWO, following, held, queries, routed
from tests.system.serving import served, until
from tests.system.test_llm_router import write

from coterie.api import Coterie, Fleet, Options, Query
from coterie.api.types import Chunk
from coterie.cli.serve import serve
from coterie.core.errors import DeviceError
from coterie.core.sampling import PartialSampling
from coterie.server.shutdown import Server

LONG = Query(Query.text("on and on").messages, "bob", PartialSampling(temperature=0.0), max_tokens=60, ignore_end=True)


def break_at(coterie: Coterie, holds: Callable[[list[Chunk]], bool] = lambda _: True) -> None:
    """Let a device's step fail, the first whose chunks are as `holds` says, which are lost, and all behind it."""
    step = coterie.step

    def fails(within_s: float | None = None) -> list[Chunk]:
        if holds(step(within_s)):
            raise MemoryError("a page is gone")
        return []

    coterie.step = fails  # type: ignore[method-assign]


def break_after(coterie: Coterie, count: int) -> None:
    """Let a device's step fail once it has given out so many chunks."""
    step, given = coterie.step, list[Chunk]()

    def fails(within_s: float | None = None) -> list[Chunk]:
        if len(given) >= count:
            raise MemoryError("a page is gone")
        given.extend(chunks := step(within_s))
        return chunks

    coterie.step = fails  # type: ignore[method-assign]


def ends_of(fleet: Fleet) -> dict[str, list[Chunk]]:
    """The last chunks of all that is asked, by query."""
    found: dict[str, list[Chunk]] = {}
    while not fleet.idle:
        for chunk in fleet.step():
            if chunk.last:
                found.setdefault(chunk.request_id, []).append(chunk)
    return found


@pytest.mark.parametrize("which", [0, 1])
def test_what_has_no_token_yet_is_answered_by_another_device(composition: Path, which: int) -> None:
    """Also what was read there, and whose first tokens were lost with the step: with the same tokens."""
    with Coterie.open(composition) as one:
        expected = [(a.token_ids, a.text, a.expert) for a in one.ask_all(queries())]
    with Fleet.open(composition, TWO) as fleet:
        break_at(fleet.members[which], bool)
        answers = fleet.ask_all(queries())
        assert [(a.token_ids, a.text, a.expert) for a in answers] == expected
        status = fleet.status()
        assert status.broken.keys() == {f"cpu#{which}"}
        assert "a page is gone" in status.broken[f"cpu#{which}"]
        assert status.devices.keys() == {f"cpu#{1 - which}"}
        assert (status.running, status.waiting, fleet.idle) == (0, 0, True)
        assert fleet._board.placing.unfinished == [Counter(), Counter()]
        assert fleet.members[which].parts.engine.metrics.submitted > 0
        assert set(fleet.resident()) == set(NAMES)
        again = fleet.ask_all(queries())  # nobody is sent there any more
        assert [(a.token_ids, a.text, a.expert) for a in again] == expected


def test_what_has_begun_ends_with_the_sentence(composition: Path) -> None:
    with Fleet.open(composition, TWO) as fleet:
        break_after(fleet.members[0], 6)
        with held(fleet):  # so that none is placed by what came of another one
            ids = [fleet.submit(replace(LONG, model=name)) for name in NAMES]
        on_first = [name for name in ids if fleet._board.flights[name].member.number == 0]
        begun = set[str]()
        ends = dict[str, Chunk]()
        while not fleet.idle:
            for chunk in fleet.step():
                assert chunk.request_id not in ends
                if chunk.last:
                    ends[chunk.request_id] = chunk
                else:
                    begun.add(chunk.request_id)
        assert ends.keys() == set(ids)
        failed = {name: end.error for name, end in ends.items() if end.error is not None}
        assert 0 < len(failed) < len(ids)
        assert failed.keys() <= begun & set(on_first)
        for error in failed.values():
            assert isinstance(error, DeviceError)
            assert str(error).startswith("[cpu#0] stopped in the middle of a step: MemoryError('a page is gone')")


def test_a_query_is_asked_again_once_and_where_nobody_is_left_all_say_so(composition: Path) -> None:
    told: list[tuple[str, str, str]] = []
    with Fleet.open(composition, Options(device="cpu", beside=("cpu", "cpu"))) as fleet:
        fleet.on_break(lambda name, error, cause: told.append((name, str(error), repr(cause))))
        for one in fleet.members:
            break_at(one)
        with held(fleet):  # so that none breaks before all were asked
            ids = [fleet.submit(query) for query in queries()]
        ends = ends_of(fleet)
        assert {name: len(chunks) for name, chunks in ends.items()} == dict.fromkeys(ids, 1)
        errors = [chunk.error for (chunk,) in ends.values()]
        assert all(isinstance(error, DeviceError) for error in errors)
        assert {name for name, _, _ in told} == set(fleet.names)
        assert {cause for _, _, cause in told} == {"MemoryError('a page is gone')"}
        assert not fleet.quiet
        for asks in (fleet.step, fleet.status, lambda: fleet.submit(LONG), lambda: fleet.ask(LONG), fleet.resident):
            with pytest.raises(DeviceError, match=r"cpu#0.*a page is gone"):
                asks()
        assert fleet._board.placing.unfinished == [Counter()] * 3


def test_what_breaks_one_device_does_not_break_a_third(composition: Path) -> None:
    """A query that no device survives is given to two."""
    with Fleet.open(composition, Options(device="cpu", beside=("cpu", "cpu"))) as fleet:
        for one in fleet.members:
            break_at(one)
        with pytest.raises(DeviceError, match="a page is gone"):
            fleet.ask(LONG)
        assert len(fleet.status().broken) == 2


def test_who_was_cancelled_is_not_asked_again(composition: Path) -> None:
    with Fleet.open(composition, TWO) as fleet:
        break_at(fleet.members[0])
        with held(fleet):
            ids = [fleet.submit(replace(LONG, model=name)) for name in NAMES]
            its = [name for name in ids if fleet._board.flights[name].member.number == 0]
            fleet.cancel(its[0])
        ends = ends_of(fleet)
        assert {name: len(chunks) for name, chunks in ends.items()} == dict.fromkeys(ids, 1)
        assert [name for name, (chunk,) in ends.items() if chunk.error is not None] == [its[0]]


def test_a_query_that_a_model_routes_is_routed_again(tmp_path: Path) -> None:
    asked = routed(8)
    path = write(tmp_path)
    with Coterie.open(path) as one:
        expected = [(a.token_ids, a.expert) for a in one.ask_all(asked)]
    for count in (0, 1):
        with Fleet.open(path, TWO) as fleet:
            break_at(fleet.members[0], bool if count else lambda _: True)
            assert [(a.token_ids, a.expert) for a in fleet.ask_all(asked)] == expected
            assert fleet._board.placing.unfinished == [Counter(), Counter()]


def test_a_load_on_it_ends_and_the_next_one_goes_elsewhere(composition: Path) -> None:
    with Fleet.open(composition, TWO) as fleet:
        break_at(fleet.members[0])
        with pytest.raises(DeviceError, match="cpu#0"):
            fleet.load("ada")
        fleet.load("ada")
        fleet.pin("ada")
        assert fleet.status().expert("ada").pinned
        fleet.unpin("ada")
        fleet.unload("ada")
        assert fleet.resident() == ()
        assert fleet.release_idle() >= 0


def test_a_folder_is_served_on_without_the_device_that_was_the_first(folder: Path, tmp_path: Path) -> None:
    """What a rescan finds is served by those that are left, and asked by its name."""
    for name in ("ada", "bob"):
        shutil.copytree(folder / name, tmp_path / name)
    with Fleet.open(tmp_path, TWO) as fleet:
        break_at(fleet.members[0])
        assert fleet.ask(Query(Query.text("hello").messages, "ada", max_tokens=3)).expert == "ada"
        assert fleet.broken.keys() == {"cpu#0"}
        shutil.copytree(folder / "cyd", tmp_path / "cyd")
        shutil.rmtree(tmp_path / "bob")
        found = fleet.rescan()
        assert (found.added, found.removed) == (("cyd",), ("bob",))
        assert fleet.ask(Query(Query.text("hello").messages, "cyd", max_tokens=3)).expert == "cyd"
        assert set(fleet.composition.names) == {"ada", "cyd"}


def test_the_server_goes_on_with_the_rest(composition: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = {"model": "four", "messages": [{"role": "user", "content": "for ada"}], "temperature": 0, "max_tokens": 5}
    fleet = Fleet.open(composition, TWO)
    with served(fleet) as url:
        assert httpx.get(f"{url}/health").json()["devices"] == {"cpu#0": "answers", "cpu#1": "answers"}
        with following(url) as events:
            assert next(events)["event"] == "snapshot"
            break_at(fleet.members[0])
            answers = [httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60) for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200] * 3
            stopped = next(event for event in events if event["event"] == "stopped")
        assert stopped["on"] == "cpu#0"
        assert "a page is gone" in stopped["error"]
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (200, "ok")
        assert health.json()["devices"] == {"cpu#0": "stopped", "cpu#1": "answers"}
        assert "a page is gone" in httpx.get(f"{url}/v1/status").json()["broken"]["cpu#0"]
        assert 'coterie_device_answers{on="cpu#0"} 0.0' in httpx.get(f"{url}/metrics").text
        with following(url) as events:
            assert next(events)["broken"].keys() == {"cpu#0"}
    (line,) = [one for one in caplog.records if "the device cpu#0 has stopped" in one.getMessage()]
    assert line.exc_info is not None
    assert isinstance(line.exc_info[1], MemoryError)


@pytest.mark.parametrize("asks", [True, False])
def test_a_server_with_no_device_left_ends_with_status_1(
    composition: Path, monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    """Also where the last one breaks while nobody waits for an answer."""
    opened, told, asking = [], [], []
    start, run = Fleet.open.__func__, Server.run  # type: ignore[attr-defined]

    def open_and_keep(*words: object) -> Fleet:
        opened.append(start(Fleet, *words))
        return opened[0]

    def run_and_break(self: Server, sockets: list[socket.socket]) -> None:
        host, port = sockets[0].getsockname()
        body = {"model": "ada", "messages": [{"role": "user", "content": "x"}]}

        def ask() -> None:
            until(lambda: httpx.get(f"http://{host}:{port}/health", timeout=60).status_code == 200)
            for one in opened[0].members:
                break_at(one)
            if asks:
                told.append(httpx.post(f"http://{host}:{port}/v1/chat/completions", json=body, timeout=60))
            else:
                for one in opened[0].members:  # a load that nobody waits for: there is a step to take
                    one.load_soon("ada", lambda _: None)
                    one.interrupt()
                for member in opened[0]._members:
                    member.post(lambda _: None)

        asking.append(threading.Thread(target=ask))
        asking[0].start()
        run(self, sockets)
        asking[0].join(60)

    monkeypatch.setattr(Fleet, "open", open_and_keep)
    monkeypatch.setattr(Server, "run", run_and_break)
    with pytest.raises(SystemExit) as ended:
        serve(str(composition), host="127.0.0.1", port=0, grace=0.1, device=["cpu", "cpu"])
    assert ended.value.code == 1
    assert len(told) == asks
    for one in told:
        assert one.status_code == 500
        assert "a page is gone" in one.json()["error"]["message"]
