"""A device that breaks between the look whether it answers and the job in its inbox: whoever asked is told."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.tiny import write_expert

from coterie.api import Coterie
from coterie.api.jobs import Inbox, Job
from coterie.api.member import Member
from coterie.core.errors import DeviceError
from coterie.server.worker import Worker

ERROR = DeviceError("cpu", "broke", "restart the server")


class Emptied(queue.SimpleQueue[Job | None]):
    """Jobs whose reader has emptied them for the last time, and goes, just before one comes."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def put(self, item: Job | None, block: bool = True, timeout: float | None = None) -> None:
        """Keep the job; nobody will read it."""
        self._inbox.close(ERROR)
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
    jobs = member._inbox._jobs = Emptied(member._inbox)
    assert member.post(lambda one: one.quiet).exception(timeout=10) is ERROR
    assert jobs.empty()


def test_a_servers_worker(coterie: Coterie) -> None:
    worker = Worker(coterie)
    jobs = worker._inbox._jobs = Emptied(worker._inbox)

    async def asks() -> None:
        with pytest.raises(DeviceError, match="broke"):
            await asyncio.wait_for(worker.call(lambda one: one.composition), 10)

    asyncio.run(asks())
    assert jobs.empty()
