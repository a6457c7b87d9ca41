"""A device that breaks between the look whether it answers and the job in its inbox: whoever asked is told."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.system.tiny import write_expert

from coterie.api import Coterie
from coterie.api.jobs import Job
from coterie.api.member import Member
from coterie.core.errors import DeviceError
from coterie.server.worker import Worker

ERROR = DeviceError("cpu", "broke", "restart the server")


class Inbox(queue.SimpleQueue[Job | None]):
    """One whose reader has emptied it for the last time, and goes, just before a job comes."""

    def __init__(self, breaks: Callable[[], None]) -> None:
        self._breaks = breaks

    def put(self, item: Job | None, block: bool = True, timeout: float | None = None) -> None:
        """Keep the job; nobody will read it."""
        self._breaks()
        super().put(item)


class Nobody:
    """A board that is told nothing, since nothing is stepped."""

    def deliver(self, member: Member, chunks: object) -> None:
        raise AssertionError

    def broke(self, member: Member, error: object) -> None:
        raise AssertionError


@pytest.fixture
def coterie(tmp_path: Path) -> Iterator[Coterie]:
    with Coterie.open(write_expert(tmp_path / "ada", 1)) as found:
        yield found


def test_a_member_of_a_fleet(coterie: Coterie) -> None:
    member = Member(0, "cpu#0", coterie, Nobody())
    member._inbox = Inbox(lambda: setattr(member, "broken", ERROR))
    assert member.post(lambda one: one.quiet).exception(timeout=10) is ERROR
    assert member._inbox.empty()


def test_a_servers_worker(coterie: Coterie) -> None:
    worker = Worker(coterie)
    worker._inbox = Inbox(lambda: setattr(worker, "broken", ERROR))

    async def asks() -> None:
        with pytest.raises(DeviceError, match="broke"):
            await asyncio.wait_for(worker.call(lambda one: one.composition), 10)

    asyncio.run(asks())
    assert worker._inbox.empty()
