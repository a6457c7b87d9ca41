"""`keep_alive`, and requests without a prompt: a model is loaded or unloaded, at once or after an answer.

    negative, or a time   no effect: a model stays until another one needs its room, as it does with Ollama, too
    0                     it is unloaded after the answer, unless it has other requests or is pinned

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

LOADED, UNLOADED = "load", "unload"  # the done_reason of an empty answer


class Keeper:
    """Loads and unloads, except for pages of other sites than these `origins`."""

    def __init__(self, worker: Worker, origins: Collection[str]) -> None:
        self._worker, self._origins = worker, origins

    async def without_prompt(self, request: Request, model: str, keep_s: float | None) -> str:
        """Load the named expert, or unload it if `keep_s` is 0; returns which.

        Raises NotFoundError, ConflictError, RequestError for a name that stands for a router, HTTPException.
        """
        check_origin(request.scope, self._origins)
        expert = await self._worker.look(lambda coterie: expert_of(model, coterie.composition))
        if keep_s != 0:
            if expert is not None:  # else the prompt decides
                await self._worker.wait_for_callback(lambda coterie, tell: coterie.load_soon(expert, tell))
            return LOADED
        if expert is None:
            fact = f"is 0, but {model} is who chooses among experts"
            raise RequestError("keep_alive", fact, "name the expert that shall be unloaded")
        await self._worker.call(lambda coterie: coterie.unload(expert))
        return UNLOADED

    def check(self, request: Request, keep_s: float | None) -> None:
        """Raise HTTPException if the request would unload a model and must not."""
        if keep_s == 0:
            check_origin(request.scope, self._origins)

    def unload(self, expert: str) -> None:
        """Unload an expert soon, if possible."""

        def forget(coterie: Serving) -> None:
            with contextlib.suppress(CoterieError):  # it has other requests, is pinned, or is gone
                coterie.unload(expert)

        if expert:
            self._worker.soon(forget)


class Unloading(Response):
    """A response after which the expert that answered is unloaded; `expert` returns its name."""

    def __init__(self, response: Response, keeper: Keeper, expert: Callable[[], str]) -> None:
        self._response, self._keeper, self._expert = response, keeper, expert

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await self._response(scope, receive, send)
        finally:
            self._keeper.unload(self._expert())
