"""A device of several whose step does not come back: others answer, a status says what was last known, nobody waits.

A planted step waits until it is let go; which steps hang is said by the test, not by a clock.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from tests.system.fleets import NAMES, TWO, following, held, queries, routed
from tests.system.serving import served, until
from tests.system.test_fleet_failing import fail_steps
from tests.system.test_llm_router import write

from coterie.api import Coterie, Fleet, Query
from coterie.api import known as known_file
from coterie.api.board import GIVEN_UP
from coterie.api.member import HANGS_S, HANGS_TIMES, Member
from coterie.api.types import Chunk
from coterie.core.errors import DeviceError
from coterie.core.sampling import PartialSampling
from coterie.server.worker import Worker

ONE = Query(Query.text("go on").messages, "ada", PartialSampling(temperature=0.0), max_tokens=30, ignore_end=True)


@dataclass
class Hang:
    """Steps that wait. `times`: how many times as long as makes a step hang they are said to have lasted."""

    times: float = 0.0
    which: set[Member] = field(default_factory=set)
    goes: threading.Event = field(default_factory=threading.Event)

    def plant(self, member: Member, begun: bool = False) -> None:
        """The next step of a member, or if `begun` the one after chunks came, and all behind it wait until let go."""
        step, given = member.coterie.step, [not begun]

        def waits(within_s: float | None = None, goes: threading.Event = self.goes) -> list[Chunk]:
            if any(given):
                goes.wait(120)
            chunks = step(within_s)
            given.append(bool(chunks))
            return chunks

        member.coterie.step = waits  # type: ignore[method-assign]
        self.which.add(member)

    def begin(self) -> None:
        """They hang from now on: each is in such a step."""
        until(lambda: all(member.known.busy_s > 0 for member in self.which))
        self.times = 1.5


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hang]:
    found = Hang()

    def hangs(self: Member, times: float = 1.0) -> bool:
        planted = self in found.which and not found.goes.is_set()  # what comes after that is no hang
        return planted and self.known.busy_s > 0 and found.times > times

    monkeypatch.setattr(Member, "hangs", hangs)
    yield found
    found.goes.set()


def ends_of(fleet: Fleet) -> dict[str, Chunk]:
    """The last chunks of all that is asked; each comes once."""
    ends = dict[str, Chunk]()
    while not fleet.idle:
        for chunk in fleet.step():
            assert chunk.request_id not in ends
            if chunk.last:
                ends[chunk.request_id] = chunk
    return ends


def idle_again(fleet: Fleet) -> None:
    for member in fleet._members:
        until(lambda member=member: member.call(lambda coterie: coterie.idle))
        member.call(lambda coterie: coterie.parts.engine.check_integrity())
        member.call(lambda coterie: coterie.parts.cache.check_integrity())
    assert fleet._board.placing.unfinished == [Counter(), Counter()]


@pytest.mark.parametrize("which", [0, 1])
def test_what_waits_there_is_answered_elsewhere(composition: Path, hang: Hang, which: int) -> None:
    with Coterie.open(composition) as one:
        expected = [(a.token_ids, a.text, a.expert) for a in one.ask_all(queries())]
    told: list[tuple[str, bool]] = []
    with Fleet.open(composition, TWO) as fleet:
        fleet.on_avoid(lambda name, error: told.append((name, error is None)))
        hang.plant(fleet._members[which])
        ids = [fleet.submit(query) for query in queries()]
        with ThreadPoolExecutor(1) as pool:
            ends = pool.submit(ends_of, fleet)
            hang.begin()
            answers = [ends.result(120)[request_id].answer for request_id in ids]
        assert [(a.token_ids, a.text, a.expert) for a in answers] == expected
        assert fleet.avoided.keys() == {f"cpu#{which}"}
        assert "in one step" in str(fleet.avoided[f"cpu#{which}"])
        again = fleet.ask_all(queries())  # nobody is sent there
        assert [(a.token_ids, a.text, a.expert) for a in again] == expected
        hang.goes.set()
        idle_again(fleet)
        assert fleet.avoided == {}
        assert told == [(f"cpu#{which}", False), (f"cpu#{which}", True)]
        assert fleet.members[which].parts.engine.metrics.finished["cancelled"] > 0  # what had gone elsewhere


def test_what_has_begun_goes_on_if_the_step_comes_back_and_ends_if_it_lasts_too_long(
    composition: Path, hang: Hang
) -> None:
    with Coterie.open(composition) as one:
        expected = one.ask(ONE).token_ids
    for given_up in (False, True):
        with Fleet.open(composition, TWO) as fleet:
            hang.which, hang.goes, hang.times = set(), threading.Event(), 0.0
            member = fleet._members[0]  # of equal ones the first
            hang.plant(member, begun=True)
            request_id = fleet.submit(ONE)
            begun: list[Chunk] = []
            while not begun:
                begun = fleet.step()
            hang.begin()
            begun += fleet.step()
            assert not begun[-1].last
            assert fleet.avoided.keys() == {member.name}
            assert request_id in fleet._board.flights
            if given_up:
                hang.times = GIVEN_UP + 1.0
                begun += ends_of(fleet).values()
                assert isinstance(begun[-1].error, DeviceError)
                assert begun[-1].error.where == member.name
                hang.goes.set()
            else:
                hang.goes.set()
                begun += ends_of(fleet).values()
                assert begun[-1].answer is not None
                assert begun[-1].answer.token_ids == expected
            idle_again(fleet)


def test_where_all_hang_it_waits_for_who_comes_back(composition: Path, hang: Hang) -> None:
    with Fleet.open(composition, TWO) as fleet:
        for member in fleet._members:
            hang.plant(member)
        ids = [fleet.submit(replace(ONE, model=name)) for name in NAMES]
        hang.begin()
        assert fleet.step(0.0) == []
        assert fleet.avoided.keys() == set(fleet.names)
        assert set(fleet._board.flights) == set(ids)
        assert not any(flight.retried for flight in fleet._board.flights.values())
        hang.goes.set()
        assert [end.answer is None for end in ends_of(fleet).values()] == [False] * 4
        idle_again(fleet)


def test_who_comes_back_takes_what_waits_where_others_still_hang(composition: Path, hang: Hang) -> None:
    goes = hang.goes
    with Fleet.open(composition, TWO) as fleet:
        first, second = fleet._members
        hang.plant(first)
        hang.goes = threading.Event()
        hang.plant(second)
        ids = [fleet.submit(replace(ONE, model=name)) for name in NAMES]
        hang.begin()
        assert fleet.step(0.0) == []
        assert {flight.member for flight in fleet._board.flights.values()} == {first, second}
        hang.which.remove(second)
        hang.goes.set()
        hang.goes = goes
        ends = ends_of(fleet)
        assert ends.keys() == set(ids)
        assert all(end.answer is not None for end in ends.values())
        assert fleet.avoided.keys() == {first.name}
        goes.set()
        idle_again(fleet)


def test_what_one_fails_while_the_other_hangs_ends_with_that_error(composition: Path, hang: Hang) -> None:
    """To wait for the other one could take minutes, and has an answer already."""
    with Fleet.open(composition, TWO) as fleet:
        fail_steps(fleet.members[0])
        hang.plant(fleet._members[1])
        fleet._members[1].post(lambda coterie: coterie.load_soon("cyd", lambda _: None))
        hang.begin()
        request_id = fleet.submit(ONE)
        (end,) = ends_of(fleet).values()
        assert end.request_id == request_id
        assert "an illegal memory access" in str(end.error)
        hang.goes.set()
        idle_again(fleet)


def test_what_is_known_during_a_long_job_is_no_older_than_a_second_before_it(composition: Path) -> None:
    """Though the last step was long ago: what that ended is known."""
    with Fleet.open(composition, TWO) as fleet:
        member = fleet._members[0]
        assert fleet.ask(ONE).finish_reason == "length"
        until(lambda: member.call(lambda coterie: coterie.quiet))
        member.known.status = replace(member.known.status, running=1)  # as of before that step
        member.known._known_s -= 1000.0
        with held(fleet, [0]):
            until(lambda: member.known.late)
            status = fleet.status()
        assert status.late.keys() == {member.name}
        assert status.late[member.name] < 1000.0
        assert status.devices[member.name].running == 0


def test_a_route_does_not_wait_for_it(tmp_path: Path, hang: Hang) -> None:
    """Of a model that the router asks: the device's own thread steps for it, as for all others."""
    with Fleet.open(write(tmp_path), TWO) as fleet:
        query = routed(1)[0]
        expected = fleet.route(query)
        for member in fleet._members:
            hang.plant(member)
        with ThreadPoolExecutor(1) as pool:
            routing = pool.submit(fleet.route, query)
            until(lambda: any(member.known.busy_s > 0 for member in fleet._members))
            hang.times = 1.5
            with pytest.raises(DeviceError, match="in one step"):
                routing.result(60)
        hang.goes.set()
        idle_again(fleet)
        assert fleet.route(query) == expected
        for member in fleet._members:
            assert member.call(lambda coterie: coterie.routings._jobs) == {}


def test_loads_pins_and_closing_do_not_wait_for_it(composition: Path, hang: Hang) -> None:
    with Fleet.open(composition, TWO) as fleet:
        first, second = fleet._members
        fleet.load("ada")
        assert "ada" in first.snapshot.residents
        hang.plant(first)
        told: list[object] = []
        fleet.load_soon("bob", told.append)
        with ThreadPoolExecutor(2) as pool:
            first.coterie.load_soon("cyd", lambda _: None)  # a step to take
            first.post(lambda _: None)
            until(lambda: first.known.busy_s > 0)
            pinning = pool.submit(fleet.pin, "ada")
            hang.begin()
            with pytest.raises(DeviceError, match=r"cpu#0.*in one step"):
                pinning.result(60)
        while not told:
            fleet.step()
        fleet.load("dan")
        assert "dan" in second.snapshot.residents
        fleet.pin("dan")
        assert fleet.status().expert("dan").pinned
        assert fleet.status().late.keys() == {"cpu#0"}
        assert "dan" in fleet.resident()
        for undoes in (fleet.unpin, fleet.unload):
            with pytest.raises(DeviceError, match=r"cpu#0.*in one step"):
                undoes("dan")
        assert "dan" not in fleet.resident()  # the other one has done it
        fleet.close()  # and does not wait for it either
        assert (first._thread.is_alive(), second._thread.is_alive()) == (True, False)
        hang.goes.set()
        first._thread.join(60)
        assert not first._thread.is_alive()


def test_what_waits_for_a_device_when_it_begins_to_hang(composition: Path, hang: Hang) -> None:
    """A pin that was not taken away so is not taken away later; what is asked of all is answered by the others."""
    with Fleet.open(composition, TWO) as fleet:
        first, second = fleet._members
        for member in (second, first):
            member.call(lambda coterie: coterie.load_soon("ada", lambda _: None))
            until(lambda member=member: "ada" in member.call(Coterie.resident) and "ada" in member.snapshot.residents)
        fleet.pin("ada")
        hang.plant(first)
        first.post(lambda coterie: coterie.load_soon("cyd", lambda _: None))
        until(lambda: first.known.busy_s > 0)
        with ThreadPoolExecutor(2) as pool:
            unpinning, looking = pool.submit(fleet.unpin, "ada"), pool.submit(fleet.resident)
            until(lambda: first._inbox._jobs.qsize() == 2)
            hang.begin()
            with pytest.raises(DeviceError, match=r"cpu#0.*in one step"):
                unpinning.result(60)
            assert looking.result(60) == ("ada",)
        hang.goes.set()
        idle_again(fleet)
        assert [one.expert("ada").pinned for one in fleet.status().devices.values()] == [True, False]


def test_a_load_under_way_there_ends(composition: Path, hang: Hang) -> None:
    with Fleet.open(composition, TWO) as fleet:
        hang.plant(fleet._members[0])
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(fleet.load, "ada")
            hang.begin()
            with pytest.raises(DeviceError, match=r"cpu#0.*in one step"):
                loading.result(60)
        fleet.load("ada")
        assert "ada" in fleet._members[1].snapshot.residents
        hang.goes.set()
        idle_again(fleet)


def test_the_server_answers_meanwhile(composition: Path, hang: Hang, caplog: pytest.LogCaptureFixture) -> None:
    body = {"model": "ada", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    fleet = Fleet.open(composition, TWO)
    with served(fleet) as url:
        httpx.post(f"{url}/v1/models/ada/load", params={"wait": "true"}, timeout=60).raise_for_status()
        hang.plant(fleet._members[0])
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=body, timeout=120)
            hang.begin()
            assert asking.result(120).status_code == 200
        assert httpx.get(f"{url}/health").json()["devices"] == {"cpu#0": "avoided", "cpu#1": "answers"}
        status = httpx.get(f"{url}/v1/status", timeout=60).json()
        assert status["late"].keys() == status["avoided"].keys() == {"cpu#0"}
        assert status["late"]["cpu#0"] > 0
        (ada,) = [one for one in status["devices"]["cpu#0"]["experts"] if one["name"] == "ada"]
        assert ada["state"] == "resident"  # as it was before the step
        text = httpx.get(f"{url}/metrics", timeout=60).text
        assert 'coterie_device_avoided{on="cpu#0"} 1.0' in text
        assert 'coterie_status_age_seconds{on="cpu#1"} 0.0' in text
        assert 'coterie_status_age_seconds{on="cpu#0"} 0.0' not in text
        for path in ("/v1/models", "/v1/models/bob", "/api/tags", "/api/ps"):
            assert httpx.get(f"{url}{path}", timeout=60).status_code == 200
        pinned = httpx.post(f"{url}/v1/models/bob/pin", timeout=60).json()
        assert pinned["coterie"]["pinned"]
        with following(url) as events:
            snapshot = next(events)
            assert (snapshot["event"], snapshot["late"].keys()) == ("snapshot", {"cpu#0"})
            assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
            assert next(event for event in events if event["event"] == "ended")["on"] == "cpu#1"
            hang.goes.set()
            until(lambda: httpx.get(f"{url}/health").json()["devices"]["cpu#0"] == "answers")
            fleet._members[0].post(lambda coterie: coterie.load_soon("dan", lambda _: None))
            assert next(event for event in events if event["on"] == "cpu#0" and event["event"] == "load_begun")
        assert httpx.get(f"{url}/v1/status").json()["late"] == {}
    said = [one.getMessage() for one in caplog.records if "cpu#0" in one.getMessage()]
    assert "is avoided: [cpu#0] has been in one step" in said[0]


def test_signs_of_life_stop_only_where_no_device_takes_a_turn(composition: Path, hang: Hang) -> None:
    """Of the watchdog: one device that hangs is no reason to end the others."""
    fleet = Fleet.open(composition, TWO)
    worker = Worker(fleet)
    worker.start()
    try:
        for member in fleet._members:
            asyncio.run(asyncio.wait_for(worker.turn(), 60))
            hang.plant(member)
            member.post(lambda coterie: coterie.load_soon("ada", lambda _: None))
            until(lambda member=member: member.known.busy_s > 0)
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(worker.turn(), 0.5))
        hang.goes.set()
        asyncio.run(asyncio.wait_for(worker.turn(), 60))
    finally:
        hang.goes.set()
        worker.stop()


def test_a_step_hangs_by_how_long_those_before_it_took(composition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(known_file, "monotonic", lambda: now[0])
    with Fleet.open(composition, TWO) as fleet:
        member = fleet._members[0]
        with member.known.timed():
            now[0] += HANGS_S
            assert not member.hangs()
            now[0] += 1
            assert (member.hangs(), member.hangs(2.0)) == (True, False)
            assert "has been in one step for 31 s" in str(member.hung())
        assert (member.hangs(), member.known.busy_s) == (False, 0.0)
        with member.known.timed():
            now[0] += HANGS_TIMES * (HANGS_S + 1)
            assert not member.hangs()  # one before it took that long
            now[0] += 1
            assert member.hangs()
