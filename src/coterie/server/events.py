"""GET /v1/events: events of experts and requests, as server-sent events; a snapshot first.

    engine thread: EngineEvent -> Hub -> one bounded Reader each -> HTTP task        slow readers lose the oldest

Knows nothing about what the facts mean. Source of the format: the HTML standard, "Server-sent events".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from coterie.api import Serving, Status
from coterie.api.watch import ON, EngineEvent
from coterie.server.worker import Worker

PATH = "/v1/events"
MAX_EVENTS = 1024  # per reader: about 200 KiB, and far more than a reader that keeps up ever has
MAX_READERS = 64
RETRY_S = 5  # Retry-After when the limit is reached: an arbitrary value, as readers leave at any time
ALIVE_S = 5.0  # heartbeat interval of a quiet stream, so that neither proxies nor clients drop it
ALIVE = b": nothing new\n\n"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # keeps proxies from buffering events


class Reader:
    """One reader's unsent events, at most `max_events`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_events: int = MAX_EVENTS) -> None:
        self._loop, self._lock = loop, threading.Lock()
        self._events: deque[bytes] = deque(maxlen=max_events)
        self._lost, self._closed, self._asleep = 0, False, False
        self._news = asyncio.Event()
        self._live: set[str] | None = set()  # devices already in its snapshot; None: the snapshot is complete

    def since(self, device: str) -> None:
        """Events of a device ("": the only one) from now on are not in the snapshot. Any thread."""
        with self._lock:
            if self._live is not None:
                self._live.add(device)

    def begin(self, event: bytes) -> None:
        """Put the snapshot before all held events. Any thread."""
        with self._lock:
            self._live = None
            if len(self._events) == self._events.maxlen:
                self._events.popleft()
                self._lost += 1
            self._events.appendleft(event)
            self._wake()

    def put(self, event: bytes, device: str = "") -> None:
        """Hold a device's event, unless the pending snapshot will include it; may drop the oldest. Any thread."""
        with self._lock:
            if self._live is not None and device not in self._live:
                return
            self._lost += len(self._events) == self._events.maxlen
            self._events.append(event)
            self._wake()

    def close(self) -> None:
        """End after the held events. Any thread."""
        with self._lock:
            self._closed = True
            self._wake()

    async def read(self) -> AsyncIterator[bytes]:
        """The held events, as they come, until closed."""
        while True:
            with self._lock:
                events, lost, closed = tuple(self._events), self._lost, self._closed
                self._events.clear()
                self._lost, self._asleep = 0, not events
                self._news.clear()
            if lost:
                yield encode("lost", {"count": lost})
            if events:
                yield b"".join(events)
            elif closed:
                return
            else:
                try:
                    await asyncio.wait_for(self._news.wait(), ALIVE_S)
                except TimeoutError:
                    yield ALIVE

    def _wake(self) -> None:
        if self._asleep:  # one call for many events
            self._asleep = False
            with contextlib.suppress(RuntimeError):  # its loop has ended
                self._loop.call_soon_threadsafe(self._news.set)


class Hub:
    """Distributes events to all readers. Without readers events are off, and cost nothing."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._readers = worker, set[Reader]()
        self._told, self._closed = 0, False
        worker.on_end(self.close)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """A snapshot, then the events after it. Raises HTTPException if there are too many readers."""
        if len(self._readers) >= MAX_READERS:
            fact = f"[events] {MAX_READERS} read them, and no more may; let one of them go"
            raise HTTPException(429, fact, headers={"Retry-After": str(RETRY_S)})
        reader = Reader(asyncio.get_running_loop())
        self._readers.add(reader)
        try:
            await self._worker.call(lambda coterie: self._begin(coterie, reader))
            async for part in reader.read():
                yield part
        finally:
            self._readers.discard(reader)
            if not self._readers:
                self._worker.soon(self._rest)

    def close(self) -> None:
        """End all present and future readers: the server is shutting down."""
        self._closed = True
        for reader in tuple(self._readers):
            reader.close()

    def _begin(self, coterie: Serving, reader: Reader) -> None:
        """Called between two steps of each device: its events are either in its part of the snapshot or follow it."""
        number = self._told
        status, residents = coterie.observe(self._tell, reader.since)
        reader.begin(encode("snapshot", snapshot(coterie, status, residents), number))
        if self._closed:
            reader.close()

    def _rest(self, coterie: Serving) -> None:
        if not self._readers:
            coterie.watch.follow(None)

    def _tell(self, happening: EngineEvent) -> None:
        self._told += 1
        facts = {"at_s": round(happening.at_s, 6), "time": round(time.time(), 3), **happening.facts}
        if "request" in facts:
            facts["request"] = f"chatcmpl-{facts['request']}"  # the id of a chat's answer
        event = encode(happening.what, facts, self._told)
        for reader in tuple(self._readers):
            reader.put(event, str(facts.get(ON, "")))


def routes(hub: Hub) -> list[Route]:
    """The endpoint."""

    async def events(request: Request) -> Response:
        if request.method == "HEAD":  # it has no body to wait for
            return Response(media_type="text/event-stream", headers=HEADERS)
        parts = hub.stream()
        first = await anext(parts)  # a refusal must come before the status is sent

        async def all_parts() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(parts):
                yield first
                async for part in parts:
                    yield part

        return StreamingResponse(all_parts(), media_type="text/event-stream", headers=HEADERS)

    return [Route(PATH, events, methods=["GET"])]


def snapshot(coterie: Serving, found: Status, residents: list[dict[str, Any]]) -> dict[str, Any]:
    """The status `found`, each expert's description and whether it has a chat template, and each tier's residents.

    `routes`: whether the composition's name can be asked.
    """
    status = found.to_dict()
    about = {expert.name: expert.description for expert in coterie.composition.experts}
    experts = [
        {**expert, "of": "experts" if expert["name"] in about else "router",
         "description": about.get(expert["name"], "asked where requests go"),
         "chat_template": expert["name"] in about and coterie.texts[expert["name"]].template is not None}
        for expert in status["experts"]
    ]  # fmt: skip
    return {
        **status,
        "time": round(time.time(), 3),
        "experts": experts,
        "tiers": residents,
        "routes": coterie.composition.router is not None or len(about) == 1,
    }


def encode(what: str, facts: Mapping[str, Any], number: int | None = None) -> bytes:
    """One encoded event, on a single line: JSON escapes line breaks."""
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {what}\ndata: {json.dumps({'event': what, **facts}, ensure_ascii=False)}\n\n".encode(
        errors="replace"
    )
