"""The engine's thread by itself: which streams it gives chunks to, and that it forgets them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.system.tiny import write_expert

from coterie.api import Chunk, Coterie, Message, Query, Status
from coterie.core.errors import ClosedError
from coterie.engine.expert_control import LoadCallback
from coterie.server.metrics import StatusCollector
from coterie.server.worker import Worker

QUERY = Query((Message("user", "hello"),), raw=True, max_tokens=3, ignore_end=True)
LONG = Query((Message("user", "hello"),), raw=True, max_tokens=100, ignore_end=True)


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(Coterie.open(write_expert(tmp_path / "ada", 1)))


def run(worker: Worker, check: Callable[[], Awaitable[None]]) -> None:
    """Run a check beside the thread, which ends with it."""

    async def within_seconds() -> None:
        await asyncio.wait_for(check(), 60)

    worker.start()
    try:
        asyncio.run(within_seconds())
    finally:
        worker.stop()


def test_what_has_ended_or_was_left_is_forgotten(worker: Worker) -> None:
    async def check() -> None:
        stream, ended = worker.ask([QUERY, QUERY]), 0
        while ended < 2:
            ended += sum(chunk.last for chunk in await stream.take())
        assert worker._streams == {}
        left = worker.ask([LONG])
        await left.take()
        left.leave()
        assert await worker.call(lambda coterie: dict(worker._streams)) == {}

    run(worker, check)


def test_a_stream_gets_its_chunks_in_order(worker: Worker) -> None:
    async def check() -> None:
        streams = [worker.ask([LONG]) for _ in range(3)]
        for stream in streams:
            found = list(await stream.take())
            while not found[-1].last:
                found += await stream.take()
            said = tuple(token for chunk in found for token in chunk.token_ids)
            assert found[-1].answer is not None
            assert said == found[-1].answer.token_ids

    run(worker, check)


def test_a_query_that_comes_in_while_the_server_ends_is_refused(worker: Worker) -> None:
    async def ask_late() -> None:
        worker.end()
        stream = worker.ask([QUERY])  # now both are in the inbox
        worker.start()
        with pytest.raises(ClosedError, match="being shut down"):
            await asyncio.wait_for(stream.take(), 60)

    asyncio.run(ask_late())
    worker.stop()


def test_a_status_does_not_wait_for_a_long_step(tmp_path: Path) -> None:
    """It is that of before the step, and says so; and between two steps it is the present one."""
    coterie, goes = Coterie.open(write_expert(tmp_path / "ada", 1)), threading.Event()
    worker, step = Worker(coterie), coterie.step

    def waits(within_s: float | None = None) -> list[Chunk]:
        goes.wait(60)
        return step(within_s)

    async def check() -> None:
        fresh = await worker.status()
        assert (fresh.metrics.submitted, fresh.late) == (0, {})
        coterie.step = waits  # type: ignore[method-assign]
        stream = worker.ask([QUERY])
        late = await worker.status()
        while not late.late:  # it had not begun
            late = await worker.status()
        assert late.late.keys() == {coterie.names[0]}
        assert (late.metrics.submitted, late.running + late.waiting) in ((0, 0), (1, 1))
        assert "coterie_status_age_seconds 0.0" not in written(late)
        goes.set()
        while not (await stream.take())[-1].last:
            pass
        fresh = await worker.status()
        assert (fresh.metrics.submitted, fresh.metrics.finished.total(), fresh.late) == (1, 1, {})
        assert "coterie_status_age_seconds 0.0" in written(fresh)

    try:
        run(worker, check)
    finally:
        goes.set()


def test_what_was_done_before_a_long_step_is_known_while_it_lasts(tmp_path: Path) -> None:
    coterie, goes = Coterie.open(write_expert(tmp_path / "ada", 1)), threading.Event()
    worker, step = Worker(coterie), coterie.step
    (name,) = coterie.composition.names

    def waits(within_s: float | None = None) -> list[Chunk]:
        goes.wait(60)
        return step(within_s)

    async def check() -> None:
        await worker.call(lambda coterie: coterie.pin(name))
        coterie.step = waits  # type: ignore[method-assign]
        stream = worker.ask([QUERY])
        late = await worker.status()
        while not late.late:
            late = await worker.status()
        goes.set()
        while not (await stream.take())[-1].last:
            pass
        assert late.expert(name).pinned

    try:
        run(worker, check)
    finally:
        goes.set()


def test_a_change_is_known_at_once_though_a_long_step_follows_it(tmp_path: Path) -> None:
    """The thread that steps has begun the next one before who asked for the change hears that it is done."""
    coterie = Coterie.open(write_expert(tmp_path / "ada", 1))
    worker, step = Worker(coterie), coterie.step
    (name,) = coterie.composition.names
    begun, goes = [threading.Event() for _ in range(2)], [threading.Event() for _ in range(2)]

    def waits(within_s: float | None = None) -> list[Chunk]:
        which = int(begun[0].is_set())
        begun[which].set()
        goes[which].wait(60)
        return step(within_s)

    async def check() -> None:
        coterie.step = waits  # type: ignore[method-assign]
        stream = worker.ask([LONG])
        assert begun[0].wait(60)
        pinning = asyncio.create_task(worker.call(lambda coterie: coterie.pin(name)))
        await asyncio.sleep(0)  # it is asked for
        goes[0].set()
        assert begun[1].wait(60)
        try:
            await pinning
            late = await worker.status()
            assert late.late
            assert late.expert(name).pinned
        finally:
            goes[1].set()
        while not (await stream.take())[-1].last:
            pass

    run(worker, check)


def test_what_a_step_brings_to_its_end_is_known_though_a_long_step_follows_it(tmp_path: Path) -> None:
    """A load, for which a pin stands here: that has happened, or not."""
    coterie = Coterie.open(write_expert(tmp_path / "ada", 1))
    worker, step = Worker(coterie), coterie.step
    (name,) = coterie.composition.names
    begun, goes, tells = threading.Event(), threading.Event(), list[LoadCallback]()

    def brings(within_s: float | None = None) -> list[Chunk]:
        if tells:
            coterie.pin(name)
            tells.pop()(None)
        else:
            begun.set()
            goes.wait(60)
        return step(within_s)

    async def check() -> None:
        ending = asyncio.create_task(worker.wait_for_callback(lambda _, tell: tells.append(tell)))
        stream = worker.ask([QUERY])
        while not (await stream.take())[-1].last:
            pass
        assert not (await worker.status()).expert(name).pinned
        coterie.step = brings  # type: ignore[method-assign]
        stream = worker.ask([LONG])
        assert begun.wait(60)
        try:
            await ending
            late = await worker.status()
            assert late.late
            assert late.expert(name).pinned
        finally:
            goes.set()
        while not (await stream.take())[-1].last:
            pass

    run(worker, check)


def written(status: Status) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    return generate_latest(registry).decode()
