"""The HTTP application: POST /v1/chat/completions (plain and streamed), GET /v1/models, GET /health, and more.

Knows nothing about kernels, memory or the engine's thread beyond `Worker`.
"""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.api import Serving
from coterie.api.together import metrics_of
from coterie.core.errors import CoterieError, one_line
from coterie.server import events, metrics, models, page
from coterie.server.body import written
from coterie.server.choices import numbers, respond, vectors_of
from coterie.server.completions import TextAnswers, parse_completion
from coterie.server.embeddings import parse_embeddings, whole
from coterie.server.guard import Guard, cors_middleware, retry_headers
from coterie.server.inputs import count_input, parse_response
from coterie.server.keys import digests_of
from coterie.server.log import log_refusal
from coterie.server.ollama import routes as ollama
from coterie.server.ollama.names import API, ollama_error, ollama_words
from coterie.server.openai import ChatAnswers, error_body, parse_chat
from coterie.server.reading import read_body
from coterie.server.rerank import parse_rerank, ranked
from coterie.server.response_store import DEFAULT_BYTES, ClientStore, ResponseStore
from coterie.server.responses import ResponseAnswers, response_words
from coterie.server.shortening import respond_within
from coterie.server.stored_responses import of_client
from coterie.server.stored_responses import routes as stored
from coterie.server.tokens import RUN, detokenize, tokenize
from coterie.server.turn_blocks import TurnAnswers, turn_error
from coterie.server.turns import count_tokens, parse_turns, turn_words
from coterie.server.worker import Worker

COMPLETIONS, RESPONSES, TURNS = "/v1/completions", "/v1/responses", "/v1/messages"
EMBEDDINGS = "/v1/embeddings"
RERANK = ("/v1/rerank", "/v2/rerank", "/rerank")  # paths of Jina and vLLM, of Cohere's client, and of llama.cpp
NEAR = 2  # suggestions in a 404
T = TypeVar("T")


def _as_it_is(error: CoterieError) -> CoterieError:
    return error


@dataclass(frozen=True, slots=True)
class Dialect:
    """How an endpoint reports errors, where it differs from chat.

    `prompt_field`: the body's field with the prompt. `words`: translates an error that uses chat's field names. `form`:
    makes the error object from a status, a message and the field at fault; None: OpenAI's.
    """

    prompt_field: str = "messages"
    words: Callable[[CoterieError], CoterieError] = _as_it_is
    form: Callable[[int, str, str | None], dict[str, Any]] | None = None


CHAT = Dialect()
DIALECTS: Mapping[str, Dialect] = {  # by path prefix
    COMPLETIONS: Dialect("prompt"),
    RESPONSES: Dialect("input", response_words),
    EMBEDDINGS: Dialect("input"),
    **dict.fromkeys(RERANK, Dialect("query")),
    TURNS: Dialect(words=turn_words, form=turn_error),
    API: Dialect(words=ollama_words, form=lambda _, message, __: ollama_error(message)),
}


def make_app(
    coterie: Serving,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    rest_s: float | None = None,
    urgent: Sequence[str] = (),
    responses_bytes: int | None = None,
) -> Starlette:
    """An ASGI application that owns `coterie` and closes it on shutdown. With `keys`, callers must present one.

    `urgent`: further keys; if there are any, only requests with one of them may use a negative priority. `origins`:
    origins of pages, besides its own, whose browsers may call it. `rest_s`: see Worker. `responses_bytes`: memory for
    stored responses, by default DEFAULT_BYTES. Raises UsageError for an invalid key or origin.
    """
    worker = Worker(coterie, rest_s)
    store = ResponseStore(DEFAULT_BYTES if responses_bytes is None else responses_bytes)
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
        known = dict.fromkeys(coterie.avoided, "avoided") | dict.fromkeys(coterie.broken, "stopped")
        states = {name: known.get(name, "answers") for name in coterie.names}
        devices = {"devices": states} if len(states) > 1 else {}
        return JSONResponse({"status": "ok", "composition": coterie.composition.name, **devices})

    app = Starlette(
        routes=[
            *_asking(coterie, worker),
            *_responding(coterie, worker, store),
            *models.routes(worker, origins),
            *ollama.routes(coterie, worker, origins),
            Route("/health", health, methods=["GET"]),
            *metrics.routes(worker, store),
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
            *cors_middleware(origins),
            *([Middleware(Guard, digests_of(keys), _own_form, digests_of(urgent))] if keys else []),
        ],
        lifespan=lifespan,
    )
    app.state.worker, app.state.hub = worker, hub  # for the server's shutdown
    app.state.coterie, app.state.responses = coterie, store
    return app


def _asking(coterie: Serving, worker: Worker) -> list[Route]:
    """The endpoints that query experts, or only their tokenizers."""

    async def read(request: Request, parse: Callable[[object], T]) -> T:
        return await read_body(request, worker, parse)

    async def chat(request: Request) -> Response:
        body = await read(request, parse_chat)
        return await respond(request, worker, ChatAnswers(body, int(time.time()), coterie.texts))

    async def completions(request: Request) -> Response:
        body = await read(request, lambda given: parse_completion(given, coterie))
        return await respond(request, worker, TextAnswers(body, int(time.time())))

    async def embeddings(request: Request) -> Response:
        body = await read(request, lambda given: parse_embeddings(given, coterie))
        answers, text = await vectors_of(request, worker, coterie, body.queries)
        return await numbers(worker, answers, lambda: whole(body, answers, text))

    async def reranked(request: Request) -> Response:
        body = await read(request, lambda given: parse_rerank(given, coterie))
        return JSONResponse(ranked(body, *await vectors_of(request, worker, coterie, body.queries)))

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
        Route(EMBEDDINGS, embeddings, methods=["POST"]),
        *[Route(path, reranked, methods=["POST"]) for path in RERANK],
        Route(TURNS, turns, methods=["POST"]),
        Route(f"{TURNS}/count_tokens", counted, methods=["POST"]),
        Route("/tokenize", tokenized, methods=["POST"]),
        Route("/detokenize", detokenized, methods=["POST"]),
    ]


def _responding(coterie: Serving, worker: Worker, store: ResponseStore) -> list[Route]:
    """Responses, and the endpoints for stored ones."""

    async def read(request: Request, parse: Callable[[object, ClientStore], T]) -> T:
        mine = of_client(store, request)
        return await read_body(request, worker, lambda given: parse(given, mine), mine.earlier_bytes)

    async def responses(request: Request) -> Response:
        body = await read(request, parse_response)
        mine = of_client(store, request)
        answer = respond_within if body.truncates else respond
        return await answer(request, worker, ResponseAnswers(body, int(time.time()), coterie.texts, mine))

    async def counted(request: Request) -> Response:
        return await read(request, lambda given, mine: JSONResponse(count_input(given, coterie, mine)))

    return [
        Route(RESPONSES, responses, methods=["POST"]),
        Route(f"{RESPONSES}/input_tokens", counted, methods=["POST"]),
        *stored(store, RESPONSES),
    ]


def _json(text: bytes) -> Response:
    return Response(text, media_type=JSONResponse.media_type)


async def _on_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, CoterieError):
        raise error
    dialect = _dialect(request.url.path)
    error = dialect.words(error)
    status, body = error_body(error, dialect.prompt_field)
    body = _own_form(request.url.path, status, body)
    log_refusal(f"{request.method} {request.url.path}", status, error)
    so_far = metrics_of([one.parts.engine.metrics for one in request.app.state.coterie.members])
    return JSONResponse(body, status, headers=retry_headers(status, so_far))


async def _on_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # never read; the conventional status for a client that closed the connection


def _dialect(path: str) -> Dialect:
    return next((dialect for begin, dialect in DIALECTS.items() if path.startswith(begin)), CHAT)


def _own_form(path: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's error object, converted for endpoints that use another."""
    form, error = _dialect(path).form, body["error"]
    return body if form is None else form(status, error["message"], error.get("param"))


async def _on_bug(request: Request, error: Exception) -> Response:
    detail = {"message": f"[server] failed: {error!r}; report it", "type": "server_error", "param": None, "code": None}
    return JSONResponse(_own_form(request.url.path, 500, {"error": detail}), 500)


def _near(app: Starlette, method: str, path: str) -> str:
    """Suggestions of routes similar to this path, best first; if there are none, the chat endpoint and the model list.

    With the same method if the route has it, so that a typo is not answered with a suggestion to delete.
    """
    methods = {
        route.path_format: method if method in route.methods else max(route.methods - {"HEAD"})
        for route in app.routes
        if isinstance(route, Route) and route.methods and route.path not in ollama.REFUSED
    }
    found = difflib.get_close_matches(path, methods, NEAR) or ["/v1/chat/completions", "/v1/models"]
    return " or ".join(f"{methods[one]} {one}" for one in found)


def _listed(methods: Iterable[str]) -> str:
    """Methods for a message, in a fixed order; HEAD is implied by GET."""
    return ", ".join(sorted({*methods} - {"HEAD"}, reverse=True))


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = error.detail
    if error.status_code in (404, 405):
        allowed = (error.headers or {}).get("Allow")
        near = _near(request.app, request.method, request.url.path)
        remedy = f"it takes {_listed(allowed.split(', '))}" if allowed else f"did you mean {near}?"
        message = f"[{request.method} {one_line(request.url.path)}] {message}; {remedy}"
    kind, code = ("requests", "rate_limit_exceeded") if error.status_code == 429 else ("invalid_request_error", None)
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    body = _own_form(request.url.path, error.status_code, body)
    return JSONResponse(body, error.status_code, error.headers)  # a 405 has an Allow header
