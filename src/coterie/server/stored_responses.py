"""GET and DELETE /v1/responses/{id}, and its input items: a client's stored responses.

Knows nothing about models or answers. Source: the OpenAI API reference, "Responses".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.core.errors import ForgottenError, RequestError
from coterie.server.guard import KEY_ID
from coterie.server.input_items import page_of
from coterie.server.log import log_refusal
from coterie.server.response_store import ClientStore, ResponseStore

_NOT_REPLAYED = ("stream", "starting_after")


def of_client(store: ResponseStore, request: Request) -> ClientStore:
    """The part of a store that belongs to a request's sender, identified by its key, or without keys by its address."""
    scope = request.scope
    return ClientStore(store, scope.get(KEY_ID) or f"@{scope['client'][0] if scope.get('client') else '?'}")


def routes(store: ResponseStore, path: str) -> list[Route]:
    """The endpoints below `path`."""

    def respond(request: Request, answer: Callable[[ClientStore, str], dict[str, Any]]) -> Response:
        response_id = request.path_params["response_id"]
        try:
            return JSONResponse(answer(of_client(store, request), response_id))
        except ForgottenError as error:
            log_refusal(f"{request.method} {request.url.path}", 404, error)
            message = f"[response_id] {error.fact}"
            detail = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
            return JSONResponse({"error": detail}, 404)

    async def retrieve(request: Request) -> Response:
        for name in _NOT_REPLAYED:
            if request.query_params.get(name, "false").lower() != "false":
                raise RequestError(name, "is given, but events are not kept", "leave it out: the response is whole")
        return respond(request, lambda mine, response_id: mine.find(response_id).response())

    async def delete(request: Request) -> Response:
        def drop(mine: ClientStore, response_id: str) -> dict[str, Any]:
            mine.drop(response_id)
            return {"id": response_id, "object": "response", "deleted": True}

        return respond(request, drop)

    async def input_items(request: Request) -> Response:
        asked = request.query_params
        return respond(request, lambda mine, response_id: page_of(mine.find(response_id).input_items(), asked))

    async def one(request: Request) -> Response:
        return await (delete if request.method == "DELETE" else retrieve)(request)

    place = f"{path}/{{response_id}}"
    return [
        Route(place, one, methods=["GET", "DELETE"]),  # one route, so that a 405 names both methods
        Route(f"{place}/input_items", input_items, methods=["GET"]),
    ]
