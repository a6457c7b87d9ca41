"""`keep_alive`, and requests without a prompt: a model is loaded, or unloaded, at once or behind an answer.

    below 0, or a time    nothing: a model stays until another one needs its room, as it does with Ollama, too
    0                     it goes when the answer has ended, unless others are asking it or it is pinned

Knows nothing about answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coterie.api import Serving
from coterie.core.errors import CoterieError, RequestError
from coterie.server.guard import check_origin
from coterie.server.ollama.names import expert_of
from coterie.server.worker import Worker

LOADED, UNLOADED = "load", "unload"  # why an answer that says nothing is done


class Keeper:
    """Loads and unloads for who comes from no other site's page, but for these `origins`."""

    def __init__(self, worker: Worker, origins: Collection[str]) -> None:
        self._worker, self._origins = worker, origins

    async def without_prompt(self, request: Request, model: str, keep_s: float | None) -> str:
        """Load the expert of that name, or unload it where nothing shall be kept, and return which.

        Raises NotFoundError, ConflictError, RequestError for a name behind which a router chooses, HTTPException.
        """
        check_origin(request.scope, self._origins)
        expert = await self._worker.look(lambda coterie: expert_of(model, coterie.composition))
        if keep_s != 0:
            if expert is not None:  # else it is known with the prompt who is asked
                await self._worker.told(lambda coterie, tell: coterie.load_soon(expert, tell))
            return LOADED
        if expert is None:
            fact = f"is 0, but {model} is who chooses among experts"
            raise RequestError("keep_alive", fact, "name the expert that shall be unloaded")
        await self._worker.call(lambda coterie: coterie.unload(expert))
        return UNLOADED

    def check(self, request: Request, keep_s: float | None) -> None:
        """Raise HTTPException where who asks may unload nothing, and would."""
        if keep_s == 0:
            check_origin(request.scope, self._origins)

    def unload(self, expert: str) -> None:
        """Unload an expert soon, if it may go."""

        def forget(coterie: Serving) -> None:
            with contextlib.suppress(CoterieError):  # others ask it, it is pinned, or it is gone
                coterie.unload(expert)

        if expert:
            self._worker.soon(forget)


class Unloading(Response):
    """A response, behind which the expert that answered is unloaded; `expert` says who that was."""

    def __init__(self, response: Response, keeper: Keeper, expert: Callable[[], str]) -> None:
        self._response, self._keeper, self._expert = response, keeper, expert

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await self._response(scope, receive, send)
        finally:
            self._keeper.unload(self._expert())
