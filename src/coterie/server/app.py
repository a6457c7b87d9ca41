"""The HTTP face: POST /v1/chat/completions (plain and streamed), GET /v1/models and one of them, GET /health, and more.

Knows nothing about kernels, memory or the engine's thread beyond `Worker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.api import Answer, Coterie, Query
from coterie.api.texts import Text
from coterie.core.errors import CoterieError, CrowdedError
from coterie.server import events, fields, metrics, models, page
from coterie.server.body import parsed, written
from coterie.server.choices import answered, respond
from coterie.server.completions import TextAnswers, parse_completion
from coterie.server.embeddings import AT_ONCE, EmbeddingsBody, parse_embeddings, whole
from coterie.server.guard import URGENT, Guard, digests_of, pages_of, retry_headers
from coterie.server.inputs import parse_response
from coterie.server.log import log_refusal
from coterie.server.openai import ChatAnswers, error_body, parse_chat
from coterie.server.rerank import parse_rerank, ranked
from coterie.server.responses import ResponseAnswers, own_words
from coterie.server.tokens import RUN, detokenize, tokenize
from coterie.server.turn_blocks import TurnAnswers, turn_error
from coterie.server.turns import count_tokens, own_turn_words, parse_turns
from coterie.server.worker import Worker

COMPLETIONS, RESPONSES, TURNS = "/v1/completions", "/v1/responses", "/v1/messages"
EMBEDDINGS = "/v1/embeddings"
RERANK = ("/v1/rerank", "/v2/rerank", "/rerank")  # Jina's and vLLM's, that of Cohere's client, and llama.cpp's
PROMPTS = {
    COMPLETIONS: "prompt",
    RESPONSES: "input",
    EMBEDDINGS: "input",
    **dict.fromkeys(RERANK, "query"),
}  # the fields that a model reads; elsewhere it is messages
T = TypeVar("T")
RETRY_S = 1.0  # so often it is tried again to find a place for inputs behind those that are answered
QUICK_NUMBERS = 8192  # of vectors, which are written in some 4 ms
LONG_BYTES = 65536  # of a body, from which others do not wait while it is read
PART_S = 60.0  # so long a caller may send nothing in the middle of a body
MAX_BODY_BYTES = 8 * 2**20  # far above any prompt that fits a context; bounds what one caller can make us hold


def make_app(
    coterie: Coterie,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    rest_s: float | None = None,
    urgent: Sequence[str] = (),
) -> Starlette:
    """An ASGI application that owns `coterie` and closes it when it shuts down. With `keys`, callers must show one.

    `urgent`: further keys; if there are any, only who shows one of them may go before others. `origins`: whose pages
    browsers let ask, beside its own. `rest_s`: see Worker. Raises UsageError for a key or an origin that is none.
    """
    worker = Worker(coterie, rest_s)
    hub = events.Hub(worker)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            worker.stop()

    async def health(_: Request) -> Response:
        if worker.broken is not None:
            raise worker.broken
        return JSONResponse({"status": "ok", "composition": coterie.composition.name})

    app = Starlette(
        routes=[
            *_asking(coterie, worker),
            *models.routes(worker, origins),
            Route("/health", health, methods=["GET"]),
            *metrics.routes(worker),
            *events.routes(hub),
            *page.routes(),
        ],
        exception_handlers={
            CoterieError: _on_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_gone,
            Exception: _on_bug,
        },
        middleware=[
            *pages_of(origins),
            *([Middleware(Guard, digests_of(keys), _own_form, digests_of(urgent))] if keys else []),
        ],
        lifespan=lifespan,
    )
    app.state.worker, app.state.hub = worker, hub  # for who ends the server
    app.state.coterie = coterie
    return app


def _asking(coterie: Coterie, worker: Worker) -> list[Route]:
    """What experts are asked by, and what takes their tokenizers alone."""

    async def read(request: Request, parse: Callable[[object], T]) -> T:
        body = await _body(request)
        if len(body) <= LONG_BYTES:
            return _read(request, body, parse)
        return await worker.beside(lambda _: _read(request, body, parse))

    async def chat(request: Request) -> Response:
        body = await read(request, parse_chat)
        return await respond(request, worker, ChatAnswers(body, int(time.time()), coterie.texts))

    async def completions(request: Request) -> Response:
        body = await read(request, lambda given: parse_completion(given, coterie))
        return await respond(request, worker, TextAnswers(body, int(time.time())))

    async def responses(request: Request) -> Response:
        body = await read(request, parse_response)
        return await respond(request, worker, ResponseAnswers(body, int(time.time()), coterie.texts))

    async def embeddings(request: Request) -> Response:
        body = await read(request, lambda given: parse_embeddings(given, coterie))
        answers, text = await vectors(request, body.queries)
        if sum([len(answer.vector) for answer in answers]) <= QUICK_NUMBERS:
            return _embedded(body, answers, text)
        return await worker.beside(lambda _: _embedded(body, answers, text), reads=True)

    async def reranked(request: Request) -> Response:
        body = await read(request, lambda given: parse_rerank(given, coterie))
        return JSONResponse(ranked(body, *await vectors(request, body.queries)))

    async def vectors(request: Request, queries: Sequence[Query]) -> tuple[list[Answer], Text]:
        name, answers, text = queries[0].model, list[Answer](), coterie.texts[queries[0].model]
        while len(answers) < len(queries):
            rest = queries[len(answers) : len(answers) + AT_ONCE]
            try:
                answers += await answered(request, worker, rest, partly=True)
            except CrowdedError:
                if not answers:
                    raise
                await asyncio.sleep(RETRY_S)  # else what is answered would be lost
            if (now := coterie.texts.get(name, text)) is not text:  # replaced: those before do not compare with these
                answers, text = [], now
        return answers, text

    async def turns(request: Request) -> Response:
        body = await read(request, parse_turns)
        return await respond(request, worker, TurnAnswers(body, coterie.texts, coterie.models))

    async def counted(request: Request) -> Response:
        return await read(request, lambda given: JSONResponse(count_tokens(given, coterie)))

    async def tokenized(request: Request) -> Response:
        return await read(request, lambda given: _json(written(tokenize(given, coterie), RUN)))

    async def detokenized(request: Request) -> Response:
        return await read(request, lambda given: JSONResponse(detokenize(given, coterie)))

    return [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route(COMPLETIONS, completions, methods=["POST"]),
        Route(RESPONSES, responses, methods=["POST"]),
        Route(EMBEDDINGS, embeddings, methods=["POST"]),
        *[Route(path, reranked, methods=["POST"]) for path in RERANK],
        Route(TURNS, turns, methods=["POST"]),
        Route(f"{TURNS}/count_tokens", counted, methods=["POST"]),
        Route("/tokenize", tokenized, methods=["POST"]),
        Route("/detokenize", detokenized, methods=["POST"]),
    ]


def _read(request: Request, body: bytearray, parse: Callable[[object], T]) -> T:
    """What a body says, and beside it, of the request, with which priority it is asked."""
    given = parsed(body)
    found = parse(given)
    request.state.priority = fields.priority(given, request.scope.get(URGENT, True))
    return found


def _embedded(body: EmbeddingsBody, answers: Sequence[Answer], text: Text) -> Response:
    return _json(written(whole(body, answers, text), 1))


def _json(text: bytes) -> Response:
    return Response(text, media_type=JSONResponse.media_type)


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


async def _on_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, CoterieError):
        raise error
    if request.url.path == RESPONSES:
        error = own_words(error)
    if request.url.path.startswith(TURNS):
        error = own_turn_words(error)
    status, body = error_body(error, PROMPTS.get(request.url.path, "messages"))
    body = _own_form(request.url.path, status, body)
    log_refusal(f"{request.method} {request.url.path}", status, error)
    metrics_so_far = request.app.state.coterie.parts.engine.metrics
    return JSONResponse(body, status, headers=retry_headers(status, metrics_so_far))


async def _on_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the access log's usual sign for a caller who left


def _own_form(path: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's error object, or that of the endpoint that has another."""
    return turn_error(status, body["error"]["message"]) if path.startswith(TURNS) else body


async def _on_bug(request: Request, error: Exception) -> Response:
    detail = {"message": f"[server] failed: {error!r}; report it", "type": "server_error", "param": None, "code": None}
    return JSONResponse(_own_form(request.url.path, 500, {"error": detail}), 500)


def _paths(app: Starlette) -> str:
    """What may be asked."""
    asked = [route for route in app.routes if isinstance(route, Route) and route.methods]
    return ", ".join(f"{sorted(route.methods - {'HEAD'})[0]} {route.path_format}" for route in asked if route.methods)


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = error.detail
    if error.status_code in (404, 405):
        message = f"[{request.method} {request.url.path}] {message}; there are {_paths(request.app)}"
    kind, code = ("requests", "rate_limit_exceeded") if error.status_code == 429 else ("invalid_request_error", None)
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    body = _own_form(request.url.path, error.status_code, body)
    return JSONResponse(body, error.status_code, error.headers)  # a 405 says what is allowed
