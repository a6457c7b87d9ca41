"""Access control: bearer tokens, origins of web pages, and `Retry-After` for temporary refusals.

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

OPEN_PATHS = frozenset({"/health", "/"})  # health checks have no key; the page asks the user for it
ANY = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._~-]+(:[0-9]+)?|[a-z]+://\[[0-9a-f:.]+\](:[0-9]+)?|null|\*")
KEY_ID = "coterie.key"  # in a request's scope: an id of its key
URGENT = "coterie.urgent"  # in a request's scope: whether its priority may be negative
RETRY_LATER = (429, 503)
Form: TypeAlias = Callable[[str, int, dict[str, Any]], dict[str, Any]]
"""Converts a path, a status and OpenAI's error object to the error body of that path's API."""
MIN_RETRY_S, MAX_RETRY_S = 1, 60


class Guard:
    """Middleware that admits only requests with a token of one of these digests; `form` writes the refusal. `urgent`:
    digests of the tokens that may use a negative priority; if there are none, all may.
    """

    def __init__(self, app: ASGIApp, digests: Sequence[bytes], form: Form, urgent: Sequence[bytes] = ()) -> None:
        self._app, self._digests, self._form, self._urgent = app, (*digests, *urgent), form, urgent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and _is_among(_token(scope), self._digests):
            scope[URGENT] = not self._urgent or _is_among(_token(scope), self._urgent)
            scope[KEY_ID] = digest_of(_token(scope)).hex()[:16]
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
    """The client, for shares of the queue: the key used, and the address of the request."""
    host = scope["client"][0] if scope.get("client") else "?"
    return f"{scope.get(KEY_ID, '')}@{host}"


def cors_middleware(origins: Sequence[str]) -> list[Middleware]:
    """CORS middleware for pages of these origins; none if there are no origins.

    It precedes the guard, because browsers send preflight requests without a key. Raises UsageError.
    """
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            remedy = "give scheme, host and port alone, as in http://localhost:3000, null for files, or * for all"
            raise UsageError("--allow-origin", f"{origin!r} is no origin", remedy)
    allowed = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST", "DELETE"),
        allow_headers=(ANY,),  # OpenAI's browser client sends a dozen headers of its own
        expose_headers=("Retry-After",),
        allow_private_network=True,
    )
    return [allowed] if origins else []


def check_origin(scope: Scope, allowed: Collection[str] = ()) -> None:
    """Raise HTTPException (403) if a page of another site made a browser send this, unless it has a key.

    Browsers send a POST without a body to any site without a preflight, and only withhold the answer from the page.
    """
    headers = Headers(scope=scope)
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is None or KEY_ID in scope or origin in allowed or ANY in allowed:
        return
    if origin.partition("://")[2] != host:
        remedy = "ask from its own page, or serve with --allow-origin or --api-key"
        message = f"[Origin] {origin} is not {host}, where this server is; {remedy}"
        raise HTTPException(403, message)


def retry_headers(status: int, metrics: Metrics) -> dict[str, str]:
    """`Retry-After`, for a status after which a retry may succeed; else empty.

    It is the mean duration of an answer so far, from its first token on (1 to 60 seconds): by then as many requests can
    start as are running now.
    """
    if status not in RETRY_LATER:
        return {}
    tpot, answers = metrics.tpot, metrics.ttft.total
    answer_s = tpot.sum_s / tpot.total * metrics.drawn_tokens / answers if tpot.total and answers else 0.0
    return {"Retry-After": str(min(max(math.ceil(answer_s), MIN_RETRY_S), MAX_RETRY_S))}


def _token(scope: Scope) -> bytes:
    """A request's bearer token, or its key in the header of Anthropic's clients; empty if there is none."""
    found = {name: value for name, value in scope["headers"] if name in (b"authorization", b"x-api-key")}
    scheme, _, token = found.get(b"authorization", b"").partition(b" ")
    if scheme:
        return bytes(token.strip()) if scheme.lower() == b"bearer" else b""
    return bytes(found.get(b"x-api-key", b"").strip())


def _is_among(token: bytes, digests: Sequence[bytes]) -> bool:
    shown = digest_of(token)
    # Compare with all, in constant time.
    return sum([hmac.compare_digest(shown, digest) for digest in digests]) > 0
