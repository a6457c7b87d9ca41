"""Who may ask, and when to ask again: bearer tokens, pages of other sites, `Retry-After` of what is refused for now.

Knows nothing about what is asked. Sources: RFC 6750 (bearer tokens), RFC 9110 section 10.2.3 (Retry-After), the Fetch
standard, "CORS protocol".
"""

from __future__ import annotations

import hmac
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from coterie.core.errors import UsageError
from coterie.engine.metrics import Metrics
from coterie.server.keys import digest_of

OPEN_PATHS = frozenset({"/health", "/"})  # what watches a server has no key; the page asks for it
ANY = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._~-]+(:[0-9]+)?|[a-z]+://\[[0-9a-f:.]+\](:[0-9]+)?|null|\*")
SHOWN = "coterie.key"  # in a request's scope: which key it showed
URGENT = "coterie.urgent"  # likewise, where only some keys may: whether it may go before others
RETRY_LATER = (429, 503)
Form: TypeAlias = Callable[[str, int, dict[str, Any]], dict[str, Any]]
"""A path, a status and OpenAI's error object to the body that this path's clients know."""
MIN_RETRY_S, MAX_RETRY_S = 1, 60


class Guard:
    """Middleware: only who shows a token of one of these digests gets through; `form`: how others are told. `urgent`:
    of those the ones that may go before others; where there is none, all may.
    """

    def __init__(self, app: ASGIApp, digests: Sequence[bytes], form: Form, urgent: Sequence[bytes] = ()) -> None:
        self._app, self._digests, self._form, self._urgent = app, (*digests, *urgent), form, urgent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and _is_among(_token(scope), self._digests):
            scope[URGENT] = not self._urgent or _is_among(_token(scope), self._urgent)
            scope[SHOWN] = digest_of(_token(scope)).hex()[:16]
        elif scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            await self._refuse(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = "[Authorization] no key, or not one of this server's; send 'Authorization: Bearer KEY'"
        detail = {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
        body = self._form(scope["path"], 401, {"error": detail})
        refusal = JSONResponse(body, 401, headers={"WWW-Authenticate": "Bearer"})
        await refusal(scope, receive, send)


def client_of(scope: Scope) -> str:
    """Who asks, for shares of the queue: the key that was shown, and the address that the request comes from."""
    host = scope["client"][0] if scope.get("client") else "?"
    return f"{scope.get(SHOWN, '')}@{host}"


def pages_of(origins: Sequence[str]) -> list[Middleware]:
    """What lets pages of these origins ask, and read what they are answered; nothing for none.

    It stands before the guard: a browser asks without a key whether its page may show one. Raises UsageError.
    """
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            remedy = "give scheme, host and port alone, as in http://localhost:3000, null for files, or * for all"
            raise UsageError("--allow-origin", f"{origin!r} is no origin", remedy)
    allowed = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST", "DELETE"),
        allow_headers=(ANY,),  # OpenAI's client for browsers sends a dozen of its own
        expose_headers=("Retry-After",),
        allow_private_network=True,
    )
    return [allowed] if origins else []


def check_origin(scope: Scope, allowed: Collection[str] = ()) -> None:
    """Raise HTTPException (403) where a page of another site has a browser ask this; with a key it is who it says.

    A browser sends a POST without a body anywhere without asking first: only the answer is kept from such a page.
    """
    headers = Headers(scope=scope)
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is None or SHOWN in scope or origin in allowed or ANY in allowed:
        return
    if origin.partition("://")[2] != host:
        remedy = "ask from its own page, or serve with --allow-origin or --api-key"
        message = f"[Origin] {origin} is not {host}, where this server is; {remedy}"
        raise HTTPException(403, message)


def retry_headers(status: int, metrics: Metrics) -> dict[str, str]:
    """`Retry-After` where it may help to ask again: then as many more can be begun as run now.

    That is after one answer's time, by the mean of those so far, from its first token on; at least one second.
    """
    if status not in RETRY_LATER:
        return {}
    tpot, answers = metrics.tpot, metrics.ttft.total
    answer_s = tpot.sum_s / tpot.total * metrics.drawn_tokens / answers if tpot.total and answers else 0.0
    return {"Retry-After": str(min(max(math.ceil(answer_s), MIN_RETRY_S), MAX_RETRY_S))}


def _token(scope: Scope) -> bytes:
    """The bearer token of a request, or the key as Anthropic's clients send it; empty where there is none."""
    found = {name: value for name, value in scope["headers"] if name in (b"authorization", b"x-api-key")}
    scheme, _, token = found.get(b"authorization", b"").partition(b" ")
    if scheme:
        return bytes(token.strip()) if scheme.lower() == b"bearer" else b""
    return bytes(found.get(b"x-api-key", b"").strip())


def _is_among(token: bytes, digests: Sequence[bytes]) -> bool:
    shown = digest_of(token)
    # All of them, whichever it is.
    return sum([hmac.compare_digest(shown, digest) for digest in digests]) > 0
