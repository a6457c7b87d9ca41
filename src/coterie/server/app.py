"""The HTTP face: POST /v1/chat/completions (plain and streamed), GET /v1/models and one of them, GET /health, and more.

Knows nothing about kernels, memory or the engine's thread beyond `Worker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from coterie.api import Chunk, Coterie
from coterie.core.errors import CoterieError, RequestError
from coterie.server import metrics, models
from coterie.server.guard import Guard, client_of, digests_of, retry_headers
from coterie.server.openai import ChatBody, chunk_maker, completion, details, error_body, parse_chat, usage
from coterie.server.worker import Worker

MAX_BODY_BYTES = 8 * 2**20  # far above any prompt that fits a context; bounds what one caller can make us hold


def make_app(coterie: Coterie, keys: Sequence[str] = ()) -> Starlette:
    """An ASGI application that owns `coterie` and closes it when it shuts down. With `keys`, callers must show one."""
    worker = Worker(coterie)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            worker.stop()

    async def chat(request: Request) -> Response:
        body = parse_chat(await _json(request))
        created = int(time.time())
        chunks = worker.stream(replace(body.query, client=client_of(request.scope)))
        # A refused request must get its status before any byte of a stream is sent, so its first chunk is awaited.
        chunk = await _unless_gone(request, _take(chunks, to_the_end=not body.stream), chunks)
        if chunk.error is not None:
            raise chunk.error
        if body.stream:
            return StreamingResponse(_events(body, created, chunk, chunks), media_type="text/event-stream")
        if chunk.answer is None:
            raise RuntimeError("a stream ended without its last chunk")
        return JSONResponse(completion(f"chatcmpl-{chunk.request_id}", created, chunk.answer))

    async def health(_: Request) -> Response:
        if worker.broken is not None:
            raise worker.broken
        return JSONResponse({"status": "ok", "composition": coterie.composition.name})

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            *models.routes(worker),
            Route("/health", health, methods=["GET"]),
            *metrics.routes(worker),
        ],
        exception_handlers={
            CoterieError: _on_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_gone,
            Exception: _on_bug,
        },
        middleware=[Middleware(Guard, digests=digests_of(keys))] if keys else [],
        lifespan=lifespan,
    )
    app.state.worker = worker  # for who ends the server
    app.state.coterie = coterie
    return app


async def _json(request: Request) -> Any:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"[body] is larger than {MAX_BODY_BYTES} bytes; send a shorter prompt")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("body", f"is not JSON: {error}", "send an object with model and messages") from error


async def _take(chunks: AsyncIterator[Chunk], to_the_end: bool) -> Chunk:
    """The first chunk, or the last one."""
    chunk = await anext(chunks)
    while to_the_end and not chunk.last:
        chunk = await anext(chunks)
    return chunk


async def _unless_gone(
    request: Request, wanted: Coroutine[Any, Any, Chunk], chunks: AsyncGenerator[Chunk, None]
) -> Chunk:
    """Await a chunk, but stop the query when its caller leaves. Raises ClientDisconnect."""
    work, gone = asyncio.ensure_future(wanted), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
            await chunks.aclose()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(body: ChatBody, created: int, first: Chunk, rest: AsyncIterator[Chunk]) -> AsyncIterator[bytes]:
    make = chunk_maker(f"chatcmpl-{first.request_id}", created, first.expert)
    yield _event(make({"role": "assistant", "content": first.text}))
    last = first
    async for last in rest:
        if last.error is not None:
            yield _event(error_body(last.error)[1])
            return
        if last.text:
            yield _event(make({"content": last.text}))
    if last.answer is None:
        return
    yield _event(make({}, last.answer.finish_reason, coterie=details(last.answer)))
    if body.include_usage:
        yield _event({**make({}), "choices": [], "usage": usage(last.answer)})
    yield b"data: [DONE]\n\n"


def _event(body: object) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


async def _on_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, CoterieError):
        raise error
    status, body = error_body(error)
    metrics_so_far = request.app.state.coterie.parts.engine.metrics
    return JSONResponse(body, status, headers=retry_headers(status, metrics_so_far))


async def _on_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the access log's usual sign for a caller who left


async def _on_bug(_: Request, error: Exception) -> Response:
    detail = {"message": f"[server] failed: {error!r}; report it", "type": "server_error", "param": None, "code": None}
    return JSONResponse({"error": detail}, 500)


def _paths(app: Starlette) -> str:
    """What may be asked."""
    asked = [route for route in app.routes if isinstance(route, Route) and route.methods]
    return ", ".join(f"{sorted(route.methods - {'HEAD'})[0]} {route.path}" for route in asked if route.methods)


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = error.detail
    if error.status_code in (404, 405):
        message = f"[{request.method} {request.url.path}] {message}; there are {_paths(request.app)}"
    detail = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": detail}, error.status_code, error.headers)  # a 405 says what is allowed
