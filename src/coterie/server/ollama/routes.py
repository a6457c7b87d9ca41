"""The endpoints of Ollama's API: chat, generate, embed, tags, ps, show, version, and what is refused there.

Knows nothing about how a body is read, or an answer written.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie import __version__
from coterie.api import Serving
from coterie.composition.composition import Composition
from coterie.server import fields
from coterie.server.choices import numbers, respond, vectors_of
from coterie.server.ollama.answers import LINES, OllamaAnswers, empty_answer
from coterie.server.ollama.asked import OllamaBody, parse_chat, parse_generate
from coterie.server.ollama.keeping import Keeper, Unloading
from coterie.server.ollama.models import VERSION, all_models, loaded, shown_model
from coterie.server.ollama.names import named, not_served
from coterie.server.ollama.vectors import NOTHING, embedded, embedded_one, parse_embed
from coterie.server.reading import read_body
from coterie.server.worker import Worker

_FILES = "models are folders of the machine that it runs on"
_RESCAN = "then POST /v1/models/rescan"
REFUSED = {
    "/api/create": ("POST", f"makes no models: {_FILES}", f"put one beside the others, {_RESCAN}"),
    "/api/copy": ("POST", f"copies no models: {_FILES}", f"give it an alias in the composition file, {_RESCAN}"),
    "/api/delete": ("DELETE", f"deletes no models: {_FILES}", f"take its folder away, {_RESCAN}"),
    "/api/push": ("POST", f"uploads no models: {_FILES}", "use what the registry has for it"),
    "/api/blobs/{digest}": ("POST", f"takes no files: {_FILES}", f"put them there, {_RESCAN}"),
}


def routes(coterie: Serving, worker: Worker, origins: Collection[str] = ()) -> list[Route]:
    """All of them. `origins`: further origins whose pages may load and unload."""
    keeper = Keeper(worker, origins)
    return [
        *_answering(coterie, worker, keeper),
        *_embedding(coterie, worker, keeper),
        *_listing(coterie, worker),
        *[Route(path, partial(_refuse, path), methods=[method]) for path, (method, _, _) in REFUSED.items()],
    ]


def _answering(coterie: Serving, worker: Worker, keeper: Keeper) -> list[Route]:
    def endpoint(parse: Callable[[object, Composition], OllamaBody]) -> Callable[[Request], Awaitable[Response]]:
        is_chat = parse is parse_chat

        async def answer(request: Request) -> Response:
            asked = await read_body(request, worker, lambda given: parse(given, coterie.composition))
            if asked.query is None:
                reason = await keeper.without_prompt(request, asked.model, asked.keep_s)
                return JSONResponse(empty_answer(asked.requested_model, is_chat, time.time(), reason))
            keeper.check(request, asked.keep_s)
            answers = OllamaAnswers(asked.query, asked.stream, is_chat, time.time(), coterie.texts)
            response = await respond(request, worker, answers)
            return Unloading(response, keeper, lambda: answers.expert) if asked.keep_s == 0 else response

        return answer

    found = {"chat": parse_chat, "generate": parse_generate}
    return [Route(f"/api/{name}", endpoint(parse), methods=["POST"]) for name, parse in found.items()]


def _embedding(coterie: Serving, worker: Worker, keeper: Keeper) -> list[Route]:
    def endpoint(name: str) -> Callable[[Request], Awaitable[Response]]:
        async def embed(request: Request) -> Response:
            begun_s = time.perf_counter()
            body = await read_body(request, worker, lambda given: parse_embed(given, coterie, name))
            if not body.queries:
                await keeper.without_prompt(request, body.model, body.keep_s)
                model: dict[str, Any] = {"model": body.requested_model} if name == "embed" else {}
                return JSONResponse({**model, **NOTHING[name]})
            keeper.check(request, body.keep_s)
            answers, text = await vectors_of(request, worker, coterie, body.queries)

            def made() -> dict[str, Any]:
                if name == "embeddings":
                    return embedded_one(body, answers, text)
                return embedded(body, answers, text, time.perf_counter() - begun_s)

            response = await numbers(worker, answers, made)
            return Unloading(response, keeper, lambda: text.expert) if body.keep_s == 0 else response

        return embed

    return [Route(f"/api/{name}", endpoint(name), methods=["POST"]) for name in NOTHING]


def _listing(coterie: Serving, worker: Worker) -> list[Route]:
    async def tags(_: Request) -> Response:
        return JSONResponse(await worker.look(all_models))

    async def running(_: Request) -> Response:
        return JSONResponse(await worker.look(loaded))

    async def version(_: Request) -> Response:
        return JSONResponse({"version": VERSION, "coterie": __version__})

    async def show(request: Request) -> Response:
        def parse(body: object) -> str:
            given = fields.as_object(body, "model")
            fields.check_names(given, ("model", "name", "verbose", "system", "options"), {})
            return named(given, coterie.composition, older="name")

        name = await read_body(request, worker, parse)
        return JSONResponse(await worker.run_in_pool(lambda asked: shown_model(asked, name), reads=True))

    async def pull(request: Request) -> Response:
        """Succeeds for a served model, which needs no download; refused for any other, in either mode as an error."""

        def parse(body: object) -> tuple[str, bool]:
            given = fields.as_object(body, "model")
            fields.check_names(given, ("model", "name", "stream", "insecure"), {})
            return named(given, coterie.composition, older="name"), given.get("stream") is not False

        name, in_lines = await read_body(request, worker, parse)
        if name != coterie.composition.name and coterie.composition.named(name) is None:
            raise coterie.composition.missing(name) or not_served(name, coterie.composition)
        status = JSONResponse({"status": "success"})
        return Response(bytes(status.body) + b"\n", media_type=LINES) if in_lines else status

    return [
        Route("/api/tags", tags, methods=["GET"]),
        Route("/api/ps", running, methods=["GET"]),
        Route("/api/version", version, methods=["GET"]),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/pull", pull, methods=["POST"]),
    ]


async def _refuse(path: str, request: Request) -> Response:
    _, fact, remedy = REFUSED[path]
    raise HTTPException(501, f"[{path}] this server {fact}; {remedy}")
