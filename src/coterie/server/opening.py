"""The opening of a streamed answer: from the request to its first token, which can take long for a cold expert.

    submitted --refused--> its status            held back for it: HOLD_S, and until the expert is loading
        |----accepted--> 200, "waiting for EXPERT, 3.2 GiB of 13.5 GiB" every few seconds --> first chunk

Knows nothing about HTTP, how chunks are encoded, or how a stream says such words.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

from coterie.api.watch import Waiting
from coterie.core.units import format_bytes
from coterie.server.stream import Stream

HOLD_S = 0.25  # most answers start within it, and most failures occur within it and so get their own status
PATIENCE_S = 5.0  # bounds the wait: in a long queue, whether an expert can be loaded stays unknown for longer
EVERY_S = 3.0

Look: TypeAlias = Callable[[], Awaitable[Waiting | None]]


class Opening:
    """Awaits the first chunk of a stream; `look` reports what it waits for."""

    def __init__(self, stream: Stream, look: Look) -> None:
        self._stream, self._look = stream, look
        self._first = stream.news()
        self._seen: Waiting | None = None

    async def accepted(self) -> None:
        """Return when an answer has begun, or only its turn or the rest of its expert's load is missing.

        Raises CoterieError if it is refused or has failed by then, and any other failure of the stream.
        """
        end_s = self._stream.loop.time() + PATIENCE_S
        while not await _within(self._first, HOLD_S) and self._stream.loop.time() < end_s:
            await self._see()
            if self._seen is not None and self._seen.expert and not self._seen.absent:
                return
        self._stream.check()

    async def waits(self) -> AsyncIterator[str]:
        """What to send at once, and then every few seconds, until the first chunk arrives."""
        while not self._first.done():
            yield _words(self._seen)
            if not await _within(self._first, EVERY_S):
                await self._see()

    async def _see(self) -> None:
        """Look again, unless the first chunk arrives meanwhile or the present step takes too long."""
        look = asyncio.ensure_future(self._look())
        both: set[asyncio.Future[Any]] = {self._first, look}
        await asyncio.wait(both, timeout=HOLD_S, return_when=asyncio.FIRST_COMPLETED)
        if not look.done():
            look.cancel()
        elif look.exception() is None:  # else the engine has ended, which the first chunk reports
            self._seen = look.result() or self._seen


async def _within(first: asyncio.Future[None], seconds: float) -> bool:
    return bool((await asyncio.wait({first}, timeout=seconds))[0])


def _words(seen: Waiting | None) -> str:
    if seen is None:
        return "waiting"
    if not seen.expert:
        return "waiting for the router's model"
    if seen.loading:
        return f"waiting for {seen.expert}, {format_bytes(seen.arrived_bytes)} of {format_bytes(seen.size_bytes)}"
    if seen.begun:
        return f"{seen.expert} reads the prompt"
    return f"waiting for {seen.expert}, {seen.num_waiting} requests wait"
