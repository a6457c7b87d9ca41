"""Memory that nobody uses goes back to the system when nothing is asked for, and what was there comes in again."""

from __future__ import annotations

import asyncio
import mmap
from pathlib import Path

import pytest
from tests.system.commands import run
from tests.system.fleets import TWO
from tests.system.test_python import open_held
from tests.system.tiny import write_adapter_of, write_expert

from coterie.api import Coterie, Options, Query, opened_on
from coterie.core.errors import ClosedError
from coterie.server.worker import Worker

PROMPT = "say it in other words, as often as before"


@pytest.fixture
def office(tmp_path: Path) -> Path:
    for seed, name in enumerate(("ada", "bob", "cyd")):
        write_expert(tmp_path / "office" / name, seed)
    return tmp_path / "office"


def resident_bytes() -> int:
    """Memory of this process that the system has given it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_who_was_there_answers_the_same_from_its_file(office: Path) -> None:
    with Coterie.open(office) as coterie:
        before = {name: coterie.ask(Query.text(PROMPT, name)).token_ids for name in ("ada", "bob", "cyd")}
        coterie.pin("bob")
        pinned, misses = coterie.parts.cache.ledgers[0].copies["bob"].extent, coterie.parts.cache.stats.misses
        assert coterie.release_idle() > 0
        assert coterie.resident() == ("bob",)
        assert coterie.parts.cache.ledgers[0].copies["bob"].extent == pinned
        assert coterie.parts.kv.cached_blocks == coterie.parts.kv.used_blocks == 0
        answers = {name: coterie.ask(Query.text(PROMPT, name)) for name in before}
        assert {name: answer.token_ids for name, answer in answers.items()} == before
        assert {answer.cached_tokens for answer in answers.values()} == {0}
        assert coterie.parts.cache.stats.misses == misses + 2
        coterie.parts.cache.check_integrity()
        coterie.parts.engine.check_integrity()


def test_the_system_gets_the_memory(tmp_path: Path) -> None:
    write_expert(tmp_path / "wide", 1, hidden_size=1024, intermediate_size=4096, num_hidden_layers=3)
    with Coterie.open(tmp_path / "wide") as coterie:
        before = coterie.ask(Query.text(PROMPT)).token_ids
        held, near = resident_bytes(), coterie.parts.plan.near_bytes
        assert near > 64 << 20
        assert coterie.release_idle() >= near
        assert resident_bytes() < held - near * 0.9
        assert coterie.ask(Query.text(PROMPT)).token_ids == before
        assert resident_bytes() > held - near * 0.1


def test_nothing_goes_while_something_runs(office: Path) -> None:
    with Coterie.open(office) as coterie:
        request = coterie.submit(Query.text(PROMPT, "ada"))
        coterie.step()
        assert coterie.release_idle() == 0
        assert coterie.resident() == ("ada",)
        while not coterie.idle:
            last = coterie.step()[-1:]
        assert (last[0].request_id, last[0].error) == (request, None)
    with pytest.raises(ClosedError):
        coterie.release_idle()


def test_bases_stay(tmp_path: Path) -> None:
    base = write_expert(tmp_path / "office" / "base", 1)
    for seed, name in enumerate(("sql", "tax")):
        write_adapter_of(base, tmp_path / "office" / name, ("q_proj", "up_proj"), seed)
    with Coterie.open(tmp_path / "office") as coterie:
        before = {name: coterie.ask(Query.text(PROMPT, name)).token_ids for name in ("sql", "tax", "base")}
        coterie.release_idle()
        assert coterie.resident() == ("base",)
        assert {name: coterie.ask(Query.text(PROMPT, name)).token_ids for name in before} == before


def test_a_server_rests_once_after_its_work(office: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who only looks on does not keep it awake, nor has it rest again."""
    coterie, releases = Coterie.open(office), list[int]()
    monkeypatch.setattr(Coterie, "release_idle", lambda self: releases.append(RELEASE(self)))
    worker = Worker(coterie, rest_s=0.05)

    async def ask_and_look() -> None:
        while not releases:  # it rests before its work too, where that does not come within rest_s
            await asyncio.sleep(0.01)
        releases.clear()
        for count in (1, 2):
            stream = worker.ask([Query.text(PROMPT, "ada")])
            while not (await stream.take())[-1].last:
                pass
            while len(releases) < count:
                assert await worker.call(lambda coterie: coterie.status()) is not None
                await asyncio.sleep(0.001)  # jobs that wait come first
            for _ in range(20):
                assert (await worker.call(lambda coterie: coterie.resident())) == ()
                await asyncio.sleep(0.01)
            assert len(releases) == count

    worker.start()
    try:
        asyncio.run(asyncio.wait_for(ask_and_look(), 60))
    finally:
        worker.stop()
    assert all(releases)


@pytest.mark.parametrize("options", [Options(device="cpu"), TWO], ids=["one", "two"])
def test_memory_of_a_load_that_nobody_waits_for_is_released_too(office: Path, options: Options) -> None:
    coterie, arrives, waits = open_held(office, options, opened_on)
    worker = Worker(coterie, rest_s=0.01)

    async def leave_early() -> None:
        arrives.clear()
        stream = worker.ask([Query.text(PROMPT, "ada")])
        while not waits.is_set():
            await asyncio.sleep(0.01)
        stream.leave()
        await asyncio.sleep(0.2)  # of which it could rest many times
        arrives.set()
        while (await worker.call(lambda coterie: coterie.status())).expert("ada").state != "absent":
            await asyncio.sleep(0.01)

    worker.start()
    try:
        asyncio.run(asyncio.wait_for(leave_early(), 30))
    finally:
        arrives.set()
        worker.stop()


def test_a_server_may_keep_what_it_has_for_centuries(office: Path) -> None:
    """Longer than a thread can wait at once."""
    worker = Worker(Coterie.open(office), rest_s=1e12)
    worker.start()
    try:
        assert asyncio.run(asyncio.wait_for(worker.call(lambda coterie: coterie.resident()), 60)) == ()
    finally:
        worker.stop()


RELEASE = Coterie.release_idle


@pytest.mark.parametrize(
    ("given", "said"),
    [("0s", "is not a time above 0"), ("soon", "is not a time above 0"), ("10", "has no unit; write 10s")],
)
def test_what_is_no_time_is_refused(office: Path, given: str, said: str) -> None:
    done = run("serve", office, "--idle-release", given)
    assert done.exit_code == 2
    assert said in done.stderr
