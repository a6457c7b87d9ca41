"""The body of a request and its content: parsed off the event loop if it is long, and with a limit on its size.

Knows nothing about what an endpoint reads from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from coterie.server import fields
from coterie.server.body import parsed
from coterie.server.guard import URGENT
from coterie.server.worker import Worker

T = TypeVar("T")
LONG_BYTES = 65536  # bodies above this are parsed off the event loop
PART_S = 60.0  # maximum pause within a body
MAX_BODY_BYTES = 8 * 2**20  # far above any prompt that fits a context; bounds the memory that one caller can use


def _nothing(_: object) -> int:
    return 0


async def read_body(
    request: Request, worker: Worker, parse: Callable[[object], T], more: Callable[[object], int] = _nothing
) -> T:
    """What `parse` makes of a request's decoded body; `more`: how many further bytes such a body makes it read.

    Raises what `parse` does, RequestError and HTTPException.
    """
    body = await _body(request)
    if len(body) > LONG_BYTES:
        return await worker.run_in_pool(lambda _: _read(request, parsed(body), parse))
    given = parsed(body)
    if len(body) + more(given) > LONG_BYTES:
        return await worker.run_in_pool(lambda _: _read(request, given, parse))
    return _read(request, given, parse)


def _read(request: Request, given: Any, parse: Callable[[object], T]) -> T:
    """The parsed body; also records the request's priority."""
    found = parse(given)
    request.state.priority = fields.priority(given, request.scope.get(URGENT, True))
    return found


async def _body(request: Request) -> bytearray:
    body, loop = bytearray(), asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PART_S) as limit:
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"[body] is larger than {MAX_BODY_BYTES} bytes; send a shorter prompt")
                limit.reschedule(loop.time() + PART_S)
    except TimeoutError:
        fact = f"[body] stopped after {len(body)} bytes, and nothing came for {PART_S:g} s; send all of it"
        raise HTTPException(408, fact, headers={"Connection": "close"}) from None
    return body
